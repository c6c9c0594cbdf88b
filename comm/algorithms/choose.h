// The algorithms by name, and which operation has which. What they cost is in cost_model.h.

#pragma once

#include <cohort/comm/operation_kind.h>
#include <cohort/core/status.h>

#include <cstdint>
#include <span>
#include <string_view>

namespace cohort {

// Values go over the wire: never renumber.
enum class Algorithm : std::uint8_t {
  kAuto = 0,  // the ranks choose when all have entered the operation: see CostModel
  kRing = 1,
  kRecursiveDoubling = 2,
  kDirect = 3,
  kTree = 4,
  kDissemination = 5,
  kNative = 6,  // the MPI library's own
  kHalvingDoubling = 7,
  kRecursiveHalving = 8,
  kBruck = 9,
  kHierarchical = 10,
  kNccl = 11,
  kOneShot = 16,
  kShared = 17,
};
std::string_view AlgorithmName(Algorithm algorithm);

// The algorithms of an operation; at least one.
std::span<const Algorithm> AlgorithmsOf(OperationKind kind);

// Whether it combines in canonical order (canonical_order.h) or does not combine at all.
bool KeepsOrder(Algorithm algorithm);

// The algorithm called `name` of those offered. InvalidArgument lists their names; or says that it
// is refused since it does not keep the order.
Result<Algorithm> AlgorithmNamed(OperationKind kind, std::string_view name,
                                 std::span<const Algorithm> offered,
                                 std::span<const Algorithm> refused);

}  // namespace cohort
