// Which algorithm a collective runs. The table with costs is in comm/README.md.

#pragma once

#include <cohort/core/status.h>

#include <cstdint>
#include <string_view>

#include "operation.h"

namespace cohort {

// Values go over the wire: never renumber.
enum class Algorithm : std::uint8_t {
  kNone = 0,
  kRing = 1,
  kRecursiveDoubling = 2,
  kDirect = 3,
  kTree = 4,
  kDissemination = 5,
  kNative = 6,  // the MPI library's own
  kOneShot = 16,
  kShared = 17,
};
std::string_view AlgorithmName(Algorithm algorithm);
// Ranks see without a message that all are in the operation: see Exchange::Begin.
constexpr bool IsQuiet(Algorithm algorithm) {
  return algorithm == Algorithm::kOneShot || algorithm == Algorithm::kShared;
}

// Messages up to this size go by recursive doubling: latency, not bandwidth, is their cost.
inline constexpr std::int64_t kSmallBytes = 16 << 10;
// All-gathers up to this total go directly from each to each.
inline constexpr std::int64_t kSmallGatherBytes = 64 << 10;

// The algorithm for `name` ("auto" or one that `kind` has) over `bytes` of buffer among `ranks`.
// `shared_memory`: peers read each other's memory, so direct exchange has no wire to share.
// InvalidArgument lists the names that `kind` has.
Result<Algorithm> ChooseAlgorithm(OperationKind kind, std::string_view name, std::int64_t bytes,
                                  int ranks, bool shared_memory);

}  // namespace cohort
