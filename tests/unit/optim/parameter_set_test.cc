#include <cohort/optim/parameter_set.h>
#include <gtest/gtest.h>

#include <cstdint>

namespace cohort {
namespace {

float Index(std::uint64_t element) { return static_cast<float>(element) + 1.0F; }

ParameterSet Three() {
  ParameterSet set;
  EXPECT_EQ(set.Add("w", {3, 5}, Index), 0);
  EXPECT_EQ(set.Add("scale", {}, Index), 1);
  EXPECT_EQ(set.Add("mean", {17}, nullptr, /*trainable=*/false), 2);
  return set;
}

TEST(ParameterSet, LaysParametersInOrderAligned) {
  ParameterSet set = Three();
  set.Build();
  EXPECT_EQ(set[0].offset, 0);
  EXPECT_EQ(set[1].offset, 16);
  EXPECT_EQ(set[2].offset, 32);
  EXPECT_EQ(set.all().size(), 64U);
  EXPECT_EQ(set.elements(), 15 + 1 + 17);
  for (int p = 0; p < set.size(); ++p) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(set.value(p).data()) % 64, 0U);
    EXPECT_EQ(static_cast<std::int64_t>(set.value(p).size()), set[p].shape.elements());
    EXPECT_EQ(set.value(p).data(), set.all().data() + set[p].offset);
  }
}

TEST(ParameterSet, FillsFromInitializersAndZeroesPadding) {
  ParameterSet set = Three();
  set.Build();
  EXPECT_EQ(set.value(0)[14], 15.0F);
  EXPECT_EQ(set.value(1)[0], 1.0F);
  for (const float x : set.value(2)) {
    EXPECT_EQ(x, 0.0F);
  }
  EXPECT_EQ(set.all()[15], 0.0F);
  EXPECT_EQ(set.all()[63], 0.0F);
}

TEST(ParameterSet, MovingKeepsSpans) {
  ParameterSet set = Three();
  set.Build();
  const std::span<float> before = set.value(0);
  const ParameterSet moved = std::move(set);
  EXPECT_EQ(moved.value(0).data(), before.data());
}

TEST(ParameterSet, FindsByName) {
  const ParameterSet set = Three();
  EXPECT_EQ(set.Find("mean"), 2);
  EXPECT_EQ(set.Find("means"), -1);
}

TEST(ParameterSet, FingerprintSeesNamesShapesOrderAndTrainability) {
  const auto fingerprint = [](const auto& declare) {
    ParameterSet set;
    declare(set);
    return set.Fingerprint();
  };
  const auto base = fingerprint([](ParameterSet& s) {
    s.Add("a", {2, 3}, nullptr);
    s.Add("bc", {4}, nullptr);
  });
  EXPECT_EQ(base, fingerprint([](ParameterSet& s) {
              s.Add("a", {2, 3}, Index);  // values may differ: rank 0's are broadcast
              s.Add("bc", {4}, nullptr);
            }));
  EXPECT_NE(base, fingerprint([](ParameterSet& s) {
              s.Add("bc", {4}, nullptr);
              s.Add("a", {2, 3}, nullptr);
            }));
  EXPECT_NE(base, fingerprint([](ParameterSet& s) {
              s.Add("a", {3, 2}, nullptr);
              s.Add("bc", {4}, nullptr);
            }));
  EXPECT_NE(base, fingerprint([](ParameterSet& s) {
              s.Add("ab", {2, 3}, nullptr);
              s.Add("c", {4}, nullptr);
            }));
  EXPECT_NE(base, fingerprint([](ParameterSet& s) {
              s.Add("a", {2, 3}, nullptr);
              s.Add("bc", {4}, nullptr, false);
            }));
  EXPECT_NE(base, fingerprint([](ParameterSet& s) { s.Add("a", {2, 3}, nullptr); }));
}

TEST(ParameterSet, AFrozenParameterIsNotTrainableAndSaysSo) {
  ParameterSet set = Three();
  const std::uint64_t before = set.Fingerprint();
  set.Build();
  set.Freeze(1);
  EXPECT_FALSE(set[1].trainable);
  EXPECT_TRUE(set[1].frozen);
  EXPECT_FALSE(set[0].frozen);
  EXPECT_NE(set.Fingerprint(), before);
  EXPECT_THROW(set.Freeze(3), std::out_of_range);
}

TEST(ParameterSet, RejectsBreaches) {
  ParameterSet set = Three();
  EXPECT_THROW(set.Add("w", {1}, nullptr), ContractError);
  EXPECT_THROW(set.Add("", {1}, nullptr), ContractError);
  EXPECT_THROW(set.all(), ContractError);
  EXPECT_THROW(set.value(0), ContractError);
  set.Build();
  EXPECT_THROW(set.Build(), ContractError);
  EXPECT_THROW(set.Add("late", {1}, nullptr), ContractError);
}

TEST(ParameterSet, EmptySetAndEmptyParameterAreFine) {
  ParameterSet empty;
  empty.Build();
  EXPECT_TRUE(empty.all().empty());
  ParameterSet set;
  set.Add("none", {0, 7}, Index);
  set.Add("one", {1}, Index);
  set.Build();
  EXPECT_TRUE(set.value(0).empty());
  EXPECT_EQ(set.value(1)[0], 1.0F);
}

}  // namespace
}  // namespace cohort
