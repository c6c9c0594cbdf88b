// What communicators check of the buffers and counts that they are given.

#pragma once

#include <cstdint>
#include <numeric>
#include <span>

#include <cohort/comm/communicator.h>
#include <cohort/core/status.h>

namespace cohort {

inline void CheckBuffer(const Buffer& buffer) {
  Require(buffer.count >= 0, "a buffer's count is not negative");
  Require(buffer.data != nullptr || buffer.count == 0, "a buffer with elements has data");
}

inline void CheckReduceOp(ReduceOp op) { Require(op <= ReduceOp::kProduct, "a known reduction"); }

// For operations whose steps take Buffers and write to none of this one.
inline Buffer OnlyRead(const ConstBuffer& buffer) {
  return {const_cast<void*>(buffer.data), buffer.count, buffer.dtype};
}

inline std::int64_t Total(std::span<const std::int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

// FNV-1a over the counts: what ranks compare.
inline std::uint64_t Digest(std::span<const std::int64_t> counts) {
  std::uint64_t digest = 0xcbf29ce484222325U;
  for (const std::int64_t count : counts) {
    digest = (digest ^ static_cast<std::uint64_t>(count)) * 0x100000001b3U;
  }
  return digest;
}

}  // namespace cohort
