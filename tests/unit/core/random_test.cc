#include <cohort/core/random.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace cohort {
namespace {

// Known answers of Random123's kat_vectors file, philox4x32 10.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(Philox(0).At(0, 0), (Philox::Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox(~0ULL).At(~0ULL, ~0ULL),
            (Philox::Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox(0x299f31d0a4093822ULL).At(0x85a308d3243f6a88ULL, 0x0370734413198a2eULL),
            (Philox::Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, NormalHasMeanZeroAndVarianceOne) {
  const Philox random(7, "weights");
  double sum = 0;
  double squares = 0;
  constexpr int kCount = 100000;
  for (int i = 0; i < kCount; ++i) {
    const double x = random.Normal(static_cast<std::uint64_t>(i));
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kCount, 0.0, 0.02);
  EXPECT_NEAR(squares / kCount, 1.0, 0.02);
}

TEST(Philox, NamesGiveIndependentNumbers) {
  EXPECT_NE(Philox(1, "a").At(0), Philox(1, "b").At(0));
  EXPECT_NE(Philox(1, "a").At(0), Philox(2, "a").At(0));
}

TEST(Permutation, IsABijectionForEverySize) {
  for (std::uint64_t size : {0, 1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097}) {
    const Permutation permutation(size, 42);
    std::vector<bool> seen(size);
    for (std::uint64_t i = 0; i < size; ++i) {
      const std::uint64_t value = permutation(i);
      ASSERT_LT(value, size);
      ASSERT_FALSE(seen[value]);
      seen[value] = true;
    }
  }
}

TEST(Permutation, KeysGiveDifferentOrders) {
  int same = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    same += Permutation(1000, 1)(i) == Permutation(1000, 2)(i) ? 1 : 0;
  }
  EXPECT_LT(same, 20);
}

// Every position sends elements everywhere: no bias of the first places to low elements.
TEST(Permutation, FirstPlaceIsUniform) {
  double mean = 0;
  for (std::uint64_t key = 0; key < 4000; ++key) {
    mean += static_cast<double>(Permutation(101, key)(0)) / 4000;
  }
  EXPECT_NEAR(mean, 50.0, 2.0);
}

}  // namespace
}  // namespace cohort
