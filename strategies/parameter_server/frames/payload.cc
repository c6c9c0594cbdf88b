#include "parameter_server/frames/payload.h"

#include <algorithm>
#include <cstring>

namespace cohort::ps {

PayloadReader::PayloadReader(Segments segments, bool finite)
    : segments_(std::move(segments)), finite_(finite) {
  std::erase_if(segments_, [](const auto& segment) { return segment.empty(); });
  for (const auto& segment : segments_) {
    remaining_ += segment.size();
  }
}

void PayloadReader::Advance(std::size_t bytes) {
  remaining_ -= bytes;
  while (bytes > 0) {
    const std::size_t here = std::min(bytes, segments_[segment_].size() - position_);
    position_ += here;
    bytes -= here;
    if (position_ == segments_[segment_].size()) {
      ++segment_;
      position_ = 0;
    }
  }
}

bool PayloadReader::Read(void* to, std::size_t bytes) {
  if (bytes > remaining_) {
    return false;
  }
  auto* out = static_cast<std::byte*>(to);
  while (bytes > 0) {
    const auto here = segments_[segment_].subspan(position_);
    const std::size_t count = std::min(bytes, here.size());
    std::memcpy(out, here.data(), count);
    Advance(count);
    out += count;
    bytes -= count;
  }
  return true;
}

bool PayloadReader::Skip(std::size_t bytes) {
  if (bytes > remaining_) {
    return false;
  }
  Advance(bytes);
  return true;
}

std::span<const float> PayloadReader::NextFloats(std::size_t most, Staging& staging) {
  most = std::min(most, remaining_ / sizeof(float));
  if (most == 0) {
    return {};
  }
  const auto here = segments_[segment_].subspan(position_);
  const std::size_t whole = std::min(most, here.size() / sizeof(float));
  if (whole > 0 && reinterpret_cast<std::uintptr_t>(here.data()) % alignof(float) == 0) {
    Advance(whole * sizeof(float));
    return {reinterpret_cast<const float*>(here.data()), whole};
  }
  // A float that straddles two pieces is carried over alone, so that the rest may be read in place.
  const std::size_t count = whole == 0 ? 1 : std::min(whole, staging.size());
  Read(staging.data(), count * sizeof(float));
  return {staging.data(), count};
}

bool AllFinite(std::span<const float> values) {
  constexpr std::uint32_t kExponent = 0x7F800000;
  std::uint32_t bad = 0;
  for (const float value : values) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    bad |= static_cast<std::uint32_t>((bits & kExponent) == kExponent);
  }
  return bad == 0;
}

bool AllFinite(PayloadReader& reader, std::size_t floats) {
  if (reader.finite()) {
    return reader.Skip(floats * sizeof(float));
  }
  PayloadReader::Staging staging;
  while (floats > 0) {
    const std::span<const float> run = reader.NextFloats(floats, staging);
    if (run.empty() || !AllFinite(run)) {
      return false;
    }
    floats -= run.size();
  }
  return true;
}

}  // namespace cohort::ps
