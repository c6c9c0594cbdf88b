// Bytes that a thread fetches while those before them are looked at.

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <cohort/core/thread_pool.h>

#include "byte_source.h"

namespace cohort::io {
namespace {

constexpr std::size_t kBlockBytes = std::size_t{1} << 18;
constexpr std::size_t kBlocks = 4;
constexpr std::size_t kAtOnce = 2;  // so many are waited for: to be woken costs as much as one
constexpr std::size_t kAlone = std::size_t{1} << 20;  // so many are read without a thread

class ReadAhead final : public ByteSource {
 public:
  explicit ReadAhead(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

  ~ReadAhead() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) {
      thread_.join();
    }
  }

  Result<std::size_t> Read(std::span<std::byte> out) override {
    if (!thread_.joinable()) {
      const Result<std::size_t> n = source_->Read(out);
      alone_ += n.ok() ? *n : 0;
      if (n.ok() && *n > 0 && alone_ >= kAlone) {
        Start();
      }
      return n;
    }
    if (at_ == current_.size) {
      COHORT_RETURN_IF_ERROR(Take());
    }
    const std::size_t n = std::min(out.size(), current_.size - at_);
    std::copy_n(current_.bytes.begin() + static_cast<std::ptrdiff_t>(at_), n, out.begin());
    at_ += n;
    return n;
  }

 private:
  struct Block {
    std::vector<std::byte> bytes;
    std::size_t size = 0;  // 0: the end, or the error
    Status status;
  };

  // What cannot be started is done without.
  void Start() {
    for (std::size_t i = 0; i < kBlocks; ++i) {
      free_.emplace_back(kBlockBytes);
    }
    try {
      thread_ = std::thread([this] {
        NameThisThread("read ahead");
        Fetch();
      });
    } catch (const std::system_error&) {
      free_.clear();
    }
  }

  void Fetch() {
    std::unique_lock lock(mutex_);
    for (;;) {
      if (free_.empty() || halted_) {
        changed_.wait(lock, [this] { return stop_ || (!halted_ && free_.size() >= kAtOnce); });
      }
      if (stop_) {
        return;
      }
      Block block;
      block.bytes = std::move(free_.back());
      free_.pop_back();
      lock.unlock();
      const Result<std::size_t> n = source_->Read(block.bytes);
      lock.lock();
      block.status = n.status();
      block.size = n.ok() ? *n : 0;
      halted_ = block.size == 0;
      ready_.push_back(std::move(block));
      if (halted_ || ready_.size() == kAtOnce) {
        changed_.notify_all();
      }
    }
  }

  // The next block; the end stays the last one. After an error the source is asked again.
  Status Take() {
    std::unique_lock lock(mutex_);
    if (!current_.bytes.empty()) {
      free_.push_back(std::move(current_.bytes));
      current_ = {};
      at_ = 0;
      if (free_.size() == kAtOnce) {
        changed_.notify_all();
      }
    }
    if (ready_.empty()) {
      changed_.wait(lock, [this] { return halted_ || ready_.size() >= kAtOnce; });
    }
    if (ready_.front().size > 0) {
      current_ = std::move(ready_.front());
      ready_.pop_front();
      return {};
    }
    if (ready_.front().status.ok()) {
      return {};
    }
    Status status = std::move(ready_.front().status);
    free_.push_back(std::move(ready_.front().bytes));
    ready_.pop_front();
    halted_ = false;
    changed_.notify_all();
    return status;
  }

  const std::unique_ptr<ByteSource> source_;  // the thread's, once there is one
  std::size_t alone_ = 0;
  Block current_;
  std::size_t at_ = 0;  // of current_
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::vector<std::byte>> free_;  // guarded by mutex_
  std::deque<Block> ready_;                   // guarded by mutex_
  bool halted_ = false;                       // at the end or an error; guarded by mutex_
  bool stop_ = false;                         // guarded by mutex_
  std::thread thread_;
};

}  // namespace

std::unique_ptr<ByteSource> ReadAheadSource(std::unique_ptr<ByteSource> source) {
  return std::make_unique<ReadAhead>(std::move(source));
}

}  // namespace cohort::io
