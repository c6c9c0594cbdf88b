// OperationKind: the operations of a Communicator.

#pragma once

#include <cstdint>
#include <string_view>

namespace cohort {

// Values go over the wire: never renumber.
enum class OperationKind : std::uint8_t {
  kAllReduce = 1,
  kReduceScatter = 2,
  kAllGather = 3,
  kAllGatherV = 4,
  kBroadcast = 5,
  kAllToAll = 6,
  kAllToAllV = 7,
  kBarrier = 8,
  kSend = 9,
  kReceive = 10,
  kSplit = 11,
  kReduce = 12,
  kJoin = 13,  // of one rank alone: see Exchange
};
std::string_view OperationKindName(OperationKind kind);  // "AllReduce", ...

}  // namespace cohort
