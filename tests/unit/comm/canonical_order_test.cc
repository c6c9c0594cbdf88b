#include "algorithms/canonical_order.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

namespace cohort {
namespace {

// The tree over the numbers [first, first + count), as text.
std::string Tree(const CanonicalOrder& order, int first, int count) {
  if (count > 1) {
    return "(" + Tree(order, first, count / 2) + Tree(order, first + count / 2, count / 2) + ")";
  }
  const std::string rank = std::to_string(order.first_rank(first));
  return first < order.extra() ? "(" + rank + std::to_string(order.actor(first)) + ")" : rank;
}

std::string Tree(int ranks) {
  const CanonicalOrder order(ranks);
  return Tree(order, 0, order.power());
}

TEST(CanonicalOrder, Trees) {
  EXPECT_EQ(Tree(1), "0");
  EXPECT_EQ(Tree(2), "(01)");
  EXPECT_EQ(Tree(3), "((01)2)");
  EXPECT_EQ(Tree(4), "((01)(23))");
  EXPECT_EQ(Tree(5), "(((01)2)(34))");
  EXPECT_EQ(Tree(6), "(((01)(23))(45))");
  EXPECT_EQ(Tree(7), "(((01)(23))((45)6))");
  EXPECT_EQ(Tree(8), "(((01)(23))((45)(67)))");
}

TEST(CanonicalOrder, EveryRankHasItsNumber) {
  for (int ranks = 1; ranks <= 40; ++ranks) {
    const CanonicalOrder order(ranks);
    int acting = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      acting += order.folds(rank) ? 0 : 1;
      const int actor = order.actor(order.number(rank));
      EXPECT_EQ(actor, order.folds(rank) ? rank + 1 : rank);
      EXPECT_EQ(order.number(order.first_rank(order.number(rank))), order.number(rank));
    }
    EXPECT_EQ(acting, order.power());
  }
}

float TreeSum(const CanonicalOrder& order, const std::vector<float>& leaves, int first, int count) {
  if (count > 1) {
    return TreeSum(order, leaves, first, count / 2) +
           TreeSum(order, leaves, first + count / 2, count / 2);
  }
  const float value = leaves[static_cast<std::size_t>(order.first_rank(first))];
  return first < order.extra() ? value + leaves[static_cast<std::size_t>(order.actor(first))]
                               : value;
}

TEST(CanonicalOrder, CombinesTheTreeAlsoInPlace) {
  constexpr std::size_t kCount = 2500;  // more than two blocks
  std::mt19937 random(1);
  for (int ranks = 1; ranks <= 9; ++ranks) {
    std::vector<std::vector<float>> sources(static_cast<std::size_t>(ranks));
    for (std::vector<float>& source : sources) {
      for (std::size_t i = 0; i < kCount; ++i) {
        source.push_back(
            std::ldexp(static_cast<float>(random()), static_cast<int>(random() % 40) - 20));
      }
    }
    const CanonicalOrder order(ranks);
    std::vector<float> expected;
    for (std::size_t i = 0; i < kCount; ++i) {
      std::vector<float> leaves;
      for (const std::vector<float>& source : sources) {
        leaves.push_back(source[i]);
      }
      expected.push_back(TreeSum(order, leaves, 0, order.power()));
    }
    for (int in_place = -1; in_place < ranks; ++in_place) {
      std::vector<std::vector<float>> copy = sources;
      std::vector<float> apart(kCount);
      std::vector<const std::byte*> pointers;
      for (const std::vector<float>& source : copy) {
        pointers.push_back(reinterpret_cast<const std::byte*>(source.data()));
      }
      std::vector<float>& to = in_place < 0 ? apart : copy[static_cast<std::size_t>(in_place)];
      CombineCanonically(Reduction(DType::kFloat32, ReduceOp::kSum),
                         reinterpret_cast<std::byte*>(to.data()), pointers, kCount * 4);
      EXPECT_EQ(to, expected) << ranks << " ranks, destination " << in_place;
    }
  }
}

}  // namespace
}  // namespace cohort
