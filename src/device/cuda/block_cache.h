// BlockCache: memory of a device (or pinned memory of the host) in blocks that are kept when they
// are dropped, since neither taking nor returning any is cheap there. Knows nothing of CUDA.
//
// Thread rules: all methods from any thread. To drop a block calls nothing of the device's, so that
// it may happen anywhere: inside a host function on a stream, or while the process ends.

#pragma once

#include <cohort/core/status.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

namespace cohort::cuda {

// Where blocks come from.
class BlockSource {
 public:
  virtual ~BlockSource() = default;
  // nullptr: there is not so much left. Throws StatusError for what else may fail.
  virtual std::byte* Take(std::size_t bytes) = 0;
  virtual void Return(std::byte* block) noexcept = 0;
  // Whether all work that the device has been given until now has run. `patiently`: waits for it,
  // within limits; otherwise it does little more than look. Another thread's work may wait for
  // what this thread is about to do.
  virtual bool Drain(bool patiently) = 0;
  // For error texts: what is left of how much, "" if unknown.
  virtual std::string Left() = 0;
};

class BlockCache : public std::enable_shared_from_this<BlockCache> {
 public:
  // `name` is whose memory it is, for error texts.
  BlockCache(std::string name, std::unique_ptr<BlockSource> source)
      : name_(std::move(name)), source_(std::move(source)) {}
  ~BlockCache();
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  // At least `bytes`, never null. A block that was dropped is given out again only once work
  // that was put on the device before that has run. Throws StatusError: ResourceExhausted names
  // `what`, the request, who holds how much, and the most there was in use; before that, all that
  // is kept goes back.
  std::shared_ptr<std::byte> Allocate(std::size_t bytes, std::string_view what);

  struct Use {
    std::size_t held = 0;  // by blocks that are in use
    std::size_t kept = 0;  // by blocks that were dropped
    std::size_t most = 0;  // the most held at once
  };
  Use use() const;

 private:
  struct Kept {
    std::byte* block = nullptr;
    std::uint64_t dropped = 0;  // drops_ then
  };
  using Holders = std::map<std::string, std::size_t, std::less<>>;

  std::byte* Reuse(std::size_t size, std::size_t& actual);
  std::byte* TakeNew(std::size_t size);
  void Hold(std::size_t size, std::string_view what);
  void Drop(std::byte* block, std::size_t size, const std::string& what);
  Status Exhausted(std::size_t bytes, std::string_view what) const;

  const std::string name_;
  const std::unique_ptr<BlockSource> source_;

  mutable std::mutex mutex_;
  std::multimap<std::size_t, Kept> kept_;  // by size
  Holders holders_;
  Use use_;
  std::uint64_t drops_ = 0;
  std::uint64_t drained_ = 0;  // blocks dropped up to then are idle
};

}  // namespace cohort::cuda
