#include "algorithms/cost_model.h"

#include <gtest/gtest.h>

namespace cohort {
namespace {

constexpr CostParameters kLatency = {.latency = 1};
constexpr CostParameters kBytes = {.per_byte = 1};
constexpr CostParameters kCombined = {.per_reduced_byte = 1};
constexpr CostParameters kMessages = {.per_message = 1};

double AllReduce(const CostParameters& parameters, Algorithm algorithm, int ranks) {
  return PredictedSeconds(parameters, OperationKind::kAllReduce, algorithm, 1000, ranks);
}

// The table of comm/README.md.
TEST(CostModel, PredictsWhatTheTableSays) {
  EXPECT_DOUBLE_EQ(AllReduce(kLatency, Algorithm::kDirect, 6), 2);
  EXPECT_DOUBLE_EQ(AllReduce(kMessages, Algorithm::kDirect, 6), 8);
  EXPECT_DOUBLE_EQ(AllReduce(kBytes, Algorithm::kDirect, 5), 1600);
  EXPECT_DOUBLE_EQ(AllReduce(kCombined, Algorithm::kDirect, 5), 800);
  EXPECT_DOUBLE_EQ(AllReduce(kLatency, Algorithm::kRecursiveDoubling, 8), 3);
  EXPECT_DOUBLE_EQ(AllReduce(kLatency, Algorithm::kRecursiveDoubling, 6), 4);
  EXPECT_DOUBLE_EQ(AllReduce(kBytes, Algorithm::kRecursiveDoubling, 6), 4000);
  EXPECT_DOUBLE_EQ(AllReduce(kLatency, Algorithm::kHalvingDoubling, 8), 6);
  EXPECT_DOUBLE_EQ(AllReduce(kBytes, Algorithm::kHalvingDoubling, 8), 1750);
  EXPECT_DOUBLE_EQ(AllReduce(kBytes, Algorithm::kHalvingDoubling, 5), 3500);
  EXPECT_DOUBLE_EQ(AllReduce(kLatency, Algorithm::kTree, 4), 4);
  EXPECT_DOUBLE_EQ(AllReduce(kLatency, Algorithm::kRing, 5), 8);
  EXPECT_DOUBLE_EQ(AllReduce(kBytes, Algorithm::kRing, 5), 1600);
  for (const OperationKind kind :
       {OperationKind::kReduceScatter, OperationKind::kAllGather, OperationKind::kAllGatherV}) {
    EXPECT_DOUBLE_EQ(PredictedSeconds(kLatency, kind, Algorithm::kDirect, 1000, 5), 1);
    EXPECT_DOUBLE_EQ(PredictedSeconds(kBytes, kind, Algorithm::kRing, 1000, 5), 800);
  }
  EXPECT_DOUBLE_EQ(
      PredictedSeconds(kLatency, OperationKind::kAllGather, Algorithm::kBruck, 1000, 5), 3);
}

TEST(CostModel, TakesTheLeastThatKeepsTheOrder) {
  const CostParameters network = {25e-6, 4e-6, 1 / 2.5e9, 1 / 20e9};
  const auto best = [&](std::int64_t bytes, int ranks) {
    return BestAlgorithm(network, OperationKind::kAllReduce, bytes, ranks);
  };
  EXPECT_EQ(best(8, 2), Algorithm::kRecursiveDoubling);
  EXPECT_EQ(best(64 << 20, 2), Algorithm::kDirect);
  EXPECT_EQ(best(8, 8), Algorithm::kRecursiveDoubling);
  EXPECT_EQ(best(64 << 20, 5), Algorithm::kDirect);
  // Many ranks: a message for each peer costs more than steps do.
  EXPECT_EQ(best(256 << 10, 128), Algorithm::kHalvingDoubling);
  for (int ranks = 2; ranks < 40; ++ranks) {
    for (const OperationKind kind :
         {OperationKind::kAllReduce, OperationKind::kReduceScatter, OperationKind::kAllGather}) {
      for (std::int64_t bytes = 1; bytes < (std::int64_t{1} << 32); bytes *= 8) {
        EXPECT_TRUE(KeepsOrder(BestAlgorithm(network, kind, bytes, ranks)));
      }
    }
  }
}

TEST(AlgorithmNamed, SaysWhatThereIsAndWhatIsRefused) {
  constexpr Algorithm kOffered[] = {Algorithm::kDirect, Algorithm::kTree};
  constexpr Algorithm kRefused[] = {Algorithm::kRing};
  const auto named = [&](std::string_view name) {
    return AlgorithmNamed(OperationKind::kAllReduce, name, kOffered, kRefused);
  };
  EXPECT_EQ(OrThrow(named("tree")), Algorithm::kTree);
  EXPECT_EQ(
      named("rings").status(),
      InvalidArgument("AllReduce has no algorithm 'rings' [choose one of auto, direct, tree]"));
  EXPECT_EQ(named("ring").status(),
            InvalidArgument("AllReduce by 'ring' does not combine in the canonical order, which "
                            "`deterministic` asks for [choose one of auto, direct, tree]"));
}

}  // namespace
}  // namespace cohort
