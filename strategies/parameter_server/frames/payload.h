// PayloadReader: floats out of a message that lies in several pieces of memory, of any alignment,
// without putting it together first.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace cohort::ps {

using Segments = std::vector<std::span<const std::byte>>;

// A cursor over borrowed memory. Copies are independent cursors, so that a payload can be checked
// first and used afterwards.
class PayloadReader {
 public:
  PayloadReader() = default;
  // `finite`: it is known that all of it, read as floats from its begin on, is AllFinite.
  explicit PayloadReader(Segments segments, bool finite = false);

  std::size_t remaining() const { return remaining_; }  // bytes
  bool finite() const { return finite_; }

  // Copies or skips exactly `bytes`; false, with nothing consumed, if there are fewer.
  bool Read(void* to, std::size_t bytes);
  bool Skip(std::size_t bytes);

  // The next floats, at least one and at most `most`: in place where the memory is aligned and in
  // one piece, else copied to `staging`. Empty only if less than one float is left, or most is 0.
  static constexpr std::size_t kStagingFloats = 4096;
  using Staging = std::array<float, kStagingFloats>;
  std::span<const float> NextFloats(std::size_t most, Staging& staging);

 private:
  void Advance(std::size_t bytes);

  Segments segments_;
  std::size_t segment_ = 0;  // never an exhausted one, unless all are
  std::size_t position_ = 0;
  std::size_t remaining_ = 0;
  bool finite_ = false;
};

// Are all of them neither infinite nor NaN?
bool AllFinite(std::span<const float> values);
// Are the next `floats`? Consumes them.
bool AllFinite(PayloadReader& reader, std::size_t floats);

}  // namespace cohort::ps
