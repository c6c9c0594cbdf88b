// Inflater: gzip-compressed bytes as a stream of what they contain.

#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <cohort/core/status.h>

namespace cohort::data {

// Do these bytes begin as a gzip file does?
bool LooksLikeGzip(std::string_view bytes);

// One or more gzip members, zero bytes of padding allowed after the last (tapes, block devices).
// Thread rules: one thread.
class Inflater {
 public:
  // `compressed` must outlive this.
  explicit Inflater(std::string_view compressed);
  ~Inflater();
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  // Fills `out` as far as there is content; returns how many bytes. DataLoss with the offset in
  // the compressed bytes: damaged, cut short, or followed by something else.
  Result<std::size_t> Read(std::span<std::byte> out);

  // No content is larger than this.
  static std::uint64_t MaxContent(std::size_t compressed_bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The gzip file that contains `content`. The same bytes for the same content: no time stamp.
std::string Gzip(std::string_view content);

}  // namespace cohort::data
