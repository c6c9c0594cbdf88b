// Rows against the same rule on the whole table as one span, bit by bit; row-wise Adagrad against
// its formula in double.

#include <cohort/device/update.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_optimizer.h>
#include <cohort/optim/server_side.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace cohort {
namespace {

using ::testing::HasSubstr;

constexpr std::size_t kRows = 9;
constexpr std::size_t kDim = 13;

float GradientOf(std::size_t i, int step) {
  return static_cast<float>((i * 13 + static_cast<std::size_t>(step) * 5) % 11) * 0.125F - 0.6F;
}

std::vector<float> Start() {
  std::vector<float> values;
  for (std::size_t i = 0; i < kRows * kDim; ++i) {
    values.push_back(static_cast<float>(i % 7) * 0.25F - 0.75F);
  }
  return values;
}

class RowsEqualSpan : public ::testing::TestWithParam<std::string> {};

TEST_P(RowsEqualSpan, BitForBit) {
  const auto span_rule = OrThrow(MakeOptimizer(GetParam()));
  const auto row_rule = OrThrow(RowOptimizer::Make(GetParam()));
  EXPECT_EQ(row_rule->config(), span_rule->config());
  EXPECT_EQ(row_rule->name(), span_rule->name());
  const std::size_t slot_floats = row_rule->slot_floats(kDim);
  ASSERT_EQ(slot_floats, static_cast<std::size_t>(span_rule->num_slots()) * kDim);

  std::vector<float> whole = Start();
  std::vector<std::vector<float>> slots;
  std::vector<std::span<float>> spans;
  for (int s = 0; s < span_rule->num_slots(); ++s) {
    slots.emplace_back(whole.size(), span_rule->slot_initial_value(s));
  }
  for (std::vector<float>& slot : slots) {
    spans.emplace_back(slot);
  }
  std::vector<float> rows = Start();
  std::vector<float> row_slots(kRows * slot_floats);
  for (std::size_t r = 0; r < kRows; ++r) {
    row_rule->Initialize(std::span(row_slots).subspan(r * slot_floats, slot_floats));
  }
  for (int step = 1; step <= 5; ++step) {
    std::vector<float> gradient;
    for (std::size_t i = 0; i < whole.size(); ++i) {
      gradient.push_back(GradientOf(i, step));
    }
    span_rule->Apply({whole, gradient, spans, 0.5F, step});
    for (std::size_t r = 0; r < kRows; ++r) {
      row_rule->Apply({.weights = std::span(rows).subspan(r * kDim, kDim),
                       .slots = std::span(row_slots).subspan(r * slot_floats, slot_floats),
                       .gradient = std::span(gradient).subspan(r * kDim, kDim),
                       .gradient_scale = 0.5F,
                       .step = step});
    }
  }
  EXPECT_EQ(rows, whole);
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t s = 0; s < slots.size(); ++s) {
      for (std::size_t i = 0; i < kDim; ++i) {
        EXPECT_EQ(row_slots[r * slot_floats + s * kDim + i], slots[s][r * kDim + i]);
      }
    }
  }
}

// For whoever updates many rows in a step, and makes the rule once.
TEST_P(RowsEqualSpan, TheRuleOfAStepDoesWhatApplyDoes) {
  const auto rule = OrThrow(RowOptimizer::Make(GetParam()));
  const std::size_t slot_floats = rule->slot_floats(kDim);
  std::vector<float> applied = Start();
  std::vector<float> slots(slot_floats);
  rule->Initialize(slots);
  std::vector<float> updated = applied;
  std::vector<float> updated_slots = slots;
  const auto row = [](std::vector<float>& values) { return std::span(values).first(kDim); };
  for (int step = 1; step <= 5; ++step) {
    std::vector<float> gradient;
    for (std::size_t i = 0; i < kDim; ++i) {
      gradient.push_back(GradientOf(i, step));
    }
    const std::int64_t bias_step = step + 3;
    rule->Apply({.weights = row(applied),
                 .slots = slots,
                 .gradient = gradient,
                 .gradient_scale = 0.5F,
                 .step = step,
                 .bias_step = bias_step});
    const std::optional<UpdateRule> once = rule->RuleAt(step, bias_step);
    ASSERT_TRUE(once.has_value());
    UpdatePart part{
        .value = row(updated), .gradient = gradient, .slots = {}, .gradient_scale = 0.5F};
    for (std::size_t slot = 0; slot < slot_floats / kDim; ++slot) {
      part.slots[slot] = std::span(updated_slots).subspan(slot * kDim, kDim);
    }
    UpdateOnHost(*once, part);
    EXPECT_EQ(updated, applied) << "step " << step;
    EXPECT_EQ(updated_slots, slots) << "step " << step;
  }
  // Rows with steps of their own have no rule in common where it depends on that.
  const bool corrects_bias = rule->name() == "adam" || rule->name() == "adamw";
  EXPECT_EQ(rule->RuleAt(3, 0).has_value(), !corrects_bias);
}

TEST(RowOptimizer, WhatIsNoRuleOfElementsHasNoneForAStep) {
  EXPECT_FALSE(OrThrow(RowOptimizer::Make(RowWiseAdagradConfig()))->RuleAt(1, 1).has_value());
  const std::string clipped = ServerSide(Sgd()->config(), {.clip_norm = 1});
  EXPECT_FALSE(OrThrow(RowOptimizer::Make(clipped))->RuleAt(1, 1).has_value());
}

INSTANTIATE_TEST_SUITE_P(
    Rules, RowsEqualSpan,
    ::testing::Values(Sgd({.learning_rate = 0.1, .l2 = 0.01})->config(),
                      Sgd({.momentum = 0.9})->config(),
                      Sgd({.momentum = 0.9, .nesterov = true})->config(), Adagrad()->config(),
                      RmsProp()->config(), RmsProp({.momentum = 0.5})->config(), Adam()->config(),
                      Adam({.learning_rate = Schedule::Step(0.1, 2, 0.5)})->config(),
                      AdamW({.weight_decay = 0.1})->config(), Ftrl({.lambda1 = 0.1})->config()));

TEST(RowOptimizer, BiasStepMovesTheBiasCorrectionAndNotTheSchedule) {
  const auto rule = OrThrow(RowOptimizer::Make(
      Adam({.learning_rate = Schedule::Step(0.5, 10, 0.5), .beta1 = 0.5, .beta2 = 0.5})->config()));
  const std::vector<float> gradient{1};
  std::vector<float> weights{0};
  std::vector<float> slots{0, 0};
  // In step 11 the rate is halved; the row's first update has no bias: m / (1 - b1) = g.
  rule->Apply(
      {.weights = weights, .slots = slots, .gradient = gradient, .step = 11, .bias_step = 1});
  EXPECT_NEAR(weights[0], -0.25, 1e-6);
  weights = {0};
  slots = {0, 0};
  rule->Apply({.weights = weights, .slots = slots, .gradient = gradient, .step = 11});
  const double m = 0.5 / (1 - std::pow(0.5, 11));
  EXPECT_NEAR(weights[0], -0.25 * m / std::sqrt(m), 1e-6);
}

TEST(RowWiseAdagrad, FollowsItsFormula) {
  for (const std::size_t dim : {std::size_t{1}, std::size_t{16}, std::size_t{700}}) {
    const auto rule = OrThrow(RowOptimizer::Make(RowWiseAdagradConfig(
        {.learning_rate = 0.5, .initial_accumulator = 0.25, .epsilon = 0.001, .l2 = 0.125})));
    ASSERT_EQ(rule->slot_floats(dim), 1U);
    std::vector<float> weights(dim, 0.5F);
    std::vector<double> expected(dim, 0.5);
    std::vector<float> slot(1);
    rule->Initialize(slot);
    double a = 0.25;
    for (int step = 1; step <= 4; ++step) {
      std::vector<float> gradient;
      double squares = 0;
      for (std::size_t i = 0; i < dim; ++i) {
        gradient.push_back(GradientOf(i, step));
        const double g = 2.0 * gradient[i] + 0.125 * expected[i];
        squares += g * g;
      }
      a += squares / static_cast<double>(dim);
      for (std::size_t i = 0; i < dim; ++i) {
        expected[i] -= 0.5 * (2.0 * gradient[i] + 0.125 * expected[i]) / (std::sqrt(a) + 0.001);
      }
      rule->Apply({.weights = weights,
                   .slots = slot,
                   .gradient = gradient,
                   .gradient_scale = 2,
                   .step = step});
    }
    EXPECT_NEAR(slot[0], a, 1e-5 * a);
    for (std::size_t i = 0; i < dim; ++i) {
      EXPECT_NEAR(weights[i], expected[i], 1e-5) << "dim " << dim << ", element " << i;
    }
  }
}

TEST(RowOptimizer, ConfigurationsAreCheckedAndTravel) {
  const std::string config = RowWiseAdagradConfig({.learning_rate = 0.25, .l2 = 0.5});
  EXPECT_EQ(OrThrow(RowOptimizer::Make(config))->config(), config);
  EXPECT_THAT(RowOptimizer::Make(R"({"name":"row_wise_adagrad","epsilon":0})").status().message(),
              HasSubstr("epsilon"));
  EXPECT_THAT(RowOptimizer::Make(R"({"name":"row_wise_adagrad","beta1":0})").status().message(),
              HasSubstr("beta1 is no field"));
  EXPECT_THAT(RowOptimizer::Make(R"({"name":"magic"})").status().message(), HasSubstr("magic"));
  EXPECT_THAT(RowOptimizer::Make("{}").status().message(), HasSubstr("name is missing"));
  EXPECT_THAT(RowOptimizer::Make(Sgd({.global_clip_norm = 1})->config()).status().message(),
              HasSubstr("global_clip_norm"));
  EXPECT_THAT(MakeOptimizer(config).status().message(), HasSubstr("for tables of rows"));
  EXPECT_THROW(RowWiseAdagradConfig({.epsilon = 0}), ContractError);
}

}  // namespace
}  // namespace cohort
