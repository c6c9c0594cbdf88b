// What a worker's step function writes itself, and no gradient trains.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <numeric>
#include <vector>

#include <cohort/optim/parameter_set.h>

#include "parameter_server/fixed_values.h"

namespace cohort::ps {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

std::vector<float> PartOf(const std::vector<float>& arena, const ParameterSet& parameters, int p) {
  const auto from = arena.begin() + static_cast<std::ptrdiff_t>(parameters[p].offset);
  return {from, from + static_cast<std::ptrdiff_t>(parameters[p].shape.elements())};
}

TEST(FixedValues, OnlyWhatIsNotTrainedIsPutBackAndSent) {
  ParameterSet parameters;
  parameters.Add("weight", {2}, nullptr);
  parameters.Add("mean", {2}, nullptr, /*trainable=*/false);
  parameters.Add("bias", {1}, nullptr);
  parameters.Add("variance", {1}, nullptr, /*trainable=*/false);
  parameters.Build();
  std::vector<float> values(parameters.all().size());
  std::iota(values.begin(), values.end(), 1.0F);
  const std::vector<float> before = values;
  FixedValues fixed(parameters);
  fixed.Keep(values);
  for (float& value : values) {
    value += 100;
  }

  std::vector<float> gradients(values.size(), -1);
  fixed.Put(values, gradients, /*difference=*/true);
  EXPECT_THAT(PartOf(gradients, parameters, 0), Each(-1));
  EXPECT_THAT(PartOf(gradients, parameters, 1), ElementsAre(100, 100));
  EXPECT_THAT(PartOf(gradients, parameters, 2), Each(-1));
  EXPECT_THAT(PartOf(gradients, parameters, 3), ElementsAre(100));
  fixed.Put(values, gradients, /*difference=*/false);
  EXPECT_EQ(PartOf(gradients, parameters, 1), PartOf(values, parameters, 1));
  EXPECT_EQ(PartOf(gradients, parameters, 3), PartOf(values, parameters, 3));

  fixed.Restore(values);
  EXPECT_EQ(PartOf(values, parameters, 0)[0], PartOf(before, parameters, 0)[0] + 100);
  EXPECT_EQ(PartOf(values, parameters, 1), PartOf(before, parameters, 1));
  EXPECT_EQ(PartOf(values, parameters, 2)[0], PartOf(before, parameters, 2)[0] + 100);
  EXPECT_EQ(PartOf(values, parameters, 3), PartOf(before, parameters, 3));
}

}  // namespace
}  // namespace cohort::ps
