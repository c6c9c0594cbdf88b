#include "algorithms/choose.h"

#include <algorithm>
#include <vector>

namespace cohort {
namespace {

std::vector<Algorithm> Available(OperationKind kind) {
  switch (kind) {
    case OperationKind::kAllReduce:
      return {Algorithm::kRing, Algorithm::kRecursiveDoubling, Algorithm::kDirect};
    case OperationKind::kReduceScatter:
    case OperationKind::kAllGather:
    case OperationKind::kAllGatherV:
      return {Algorithm::kRing, Algorithm::kDirect};
    case OperationKind::kBroadcast:
      return {Algorithm::kTree};
    case OperationKind::kBarrier:
      return {Algorithm::kDissemination};
    case OperationKind::kAllToAll:
    case OperationKind::kAllToAllV:
    case OperationKind::kSend:
    case OperationKind::kReceive:
    case OperationKind::kSplit:
      return {Algorithm::kDirect};
  }
  return {};
}

Algorithm Auto(OperationKind kind, std::int64_t bytes, int ranks, bool shared_memory) {
  switch (kind) {
    case OperationKind::kAllReduce:
      if (bytes <= kSmallBytes) {
        return Algorithm::kRecursiveDoubling;
      }
      return shared_memory || ranks == 2 ? Algorithm::kDirect : Algorithm::kRing;
    case OperationKind::kReduceScatter:
      return shared_memory || ranks == 2 || bytes <= kSmallBytes ? Algorithm::kDirect
                                                                 : Algorithm::kRing;
    case OperationKind::kAllGather:
    case OperationKind::kAllGatherV:
      return shared_memory || ranks == 2 || bytes <= kSmallGatherBytes ? Algorithm::kDirect
                                                                       : Algorithm::kRing;
    default:
      return Available(kind).front();
  }
}

}  // namespace

std::string_view AlgorithmName(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kNone:
      return "none";
    case Algorithm::kRing:
      return "ring";
    case Algorithm::kRecursiveDoubling:
      return "recursive_doubling";
    case Algorithm::kDirect:
      return "direct";
    case Algorithm::kTree:
      return "tree";
    case Algorithm::kDissemination:
      return "dissemination";
    case Algorithm::kNative:
      return "mpi";
    case Algorithm::kOneShot:
      return "one_shot";
    case Algorithm::kShared:
      return "shared";
  }
  return "unknown algorithm";
}

Result<Algorithm> ChooseAlgorithm(OperationKind kind, std::string_view name, std::int64_t bytes,
                                  int ranks, bool shared_memory) {
  if (name == "auto") {
    return Auto(kind, bytes, ranks, shared_memory);
  }
  std::string names = "auto";
  for (const Algorithm algorithm : Available(kind)) {
    if (AlgorithmName(algorithm) == name) {
      return algorithm;
    }
    names += ", " + std::string(AlgorithmName(algorithm));
  }
  return InvalidArgument(std::string(OperationKindName(kind)) + " has no algorithm '" +
                         std::string(name) + "' [choose one of " + names + "]");
}

}  // namespace cohort
