#include "algorithms/choose.h"

#include <algorithm>
#include <string>

namespace cohort {

std::string_view AlgorithmName(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kAuto:
      return "auto";
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
    case Algorithm::kHalvingDoubling:
      return "halving_doubling";
    case Algorithm::kRecursiveHalving:
      return "recursive_halving";
    case Algorithm::kBruck:
      return "bruck";
    case Algorithm::kHierarchical:
      return "hierarchical";
    case Algorithm::kNccl:
      return "nccl";
  }
  return "unknown algorithm";
}

std::span<const Algorithm> AlgorithmsOf(OperationKind kind) {
  static constexpr Algorithm kAllReduce[] = {Algorithm::kDirect, Algorithm::kRecursiveDoubling,
                                             Algorithm::kHalvingDoubling, Algorithm::kTree,
                                             Algorithm::kRing};
  static constexpr Algorithm kReduceScatter[] = {Algorithm::kDirect, Algorithm::kRecursiveHalving,
                                                 Algorithm::kRing};
  static constexpr Algorithm kAllGather[] = {Algorithm::kDirect, Algorithm::kBruck,
                                             Algorithm::kRing};
  static constexpr Algorithm kTree[] = {Algorithm::kTree};
  static constexpr Algorithm kDissemination[] = {Algorithm::kDissemination};
  static constexpr Algorithm kDirect[] = {Algorithm::kDirect};
  switch (kind) {
    case OperationKind::kAllReduce:
      return kAllReduce;
    case OperationKind::kReduceScatter:
      return kReduceScatter;
    case OperationKind::kAllGather:
    case OperationKind::kAllGatherV:
      return kAllGather;
    case OperationKind::kBroadcast:
    case OperationKind::kReduce:
      return kTree;
    case OperationKind::kBarrier:
      return kDissemination;
    case OperationKind::kAllToAll:
    case OperationKind::kAllToAllV:
    case OperationKind::kSend:
    case OperationKind::kReceive:
    case OperationKind::kSplit:
    case OperationKind::kJoin:
      break;
  }
  return kDirect;
}

bool KeepsOrder(Algorithm algorithm) {
  return algorithm != Algorithm::kRing && algorithm != Algorithm::kNative &&
         algorithm != Algorithm::kNccl;
}

Result<Algorithm> AlgorithmNamed(OperationKind kind, std::string_view name,
                                 std::span<const Algorithm> offered,
                                 std::span<const Algorithm> refused) {
  std::string names = "auto";
  for (const Algorithm algorithm : offered) {
    if (AlgorithmName(algorithm) == name) {
      return algorithm;
    }
    names += ", " + std::string(AlgorithmName(algorithm));
  }
  const bool known = std::any_of(refused.begin(), refused.end(), [name](Algorithm algorithm) {
    return AlgorithmName(algorithm) == name;
  });
  const std::string quoted = "'" + std::string(name) + "'";
  const std::string choice = " [choose one of " + names + "]";
  return InvalidArgument(std::string(OperationKindName(kind)) +
                         (known ? " by " + quoted +
                                      " does not combine in the canonical order, which "
                                      "`deterministic` asks for"
                                : " has no algorithm " + quoted) +
                         choice);
}

}  // namespace cohort
