// What servers do to gradients beside the rule, against sequences worked out by hand.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_optimizer.h>
#include <cohort/optim/server_side.h>

namespace cohort {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::HasSubstr;

// One update of two elements.
std::vector<float> Late(const Optimizer& rule, std::vector<float> value,
                        const std::vector<float>& gradient, const std::vector<float>& pulled,
                        std::uint64_t staleness, float scale = 1) {
  const ServerSideOptimizer* const late = ServerSideOptimizer::Of(rule);
  EXPECT_NE(late, nullptr);
  std::vector<std::vector<float>> slots;
  std::vector<std::span<float>> spans;
  for (int s = 0; s < rule.num_slots(); ++s) {
    slots.emplace_back(value.size(), rule.slot_initial_value(s));
  }
  for (std::vector<float>& slot : slots) {
    spans.emplace_back(slot);
  }
  late->ApplyLate({.value = value, .gradient = gradient, .slots = spans, .gradient_scale = scale},
                  pulled, staleness);
  return value;
}

TEST(ServerSide, AGradientIsCompensatedForWhatHasMovedSince) {
  const auto rule = ServerSide(Sgd({.learning_rate = 0.5}), {.delay_compensation = 0.25});
  // g + 0.25 g g (w - w_pulled): 2 + 0.25 * 4 * (3 - 1) = 4, and -4 + 0.25 * 16 * (1 - 2) = -8.
  EXPECT_THAT(Late(*rule, {3, 1}, {2, -4}, {1, 2}, 1), ElementsAre(1, 5));
  EXPECT_THAT(Late(*rule, {3, 1}, {4, -8}, {1, 2}, 1, 0.5F), ElementsAre(1, 5)) << "of the mean";
  EXPECT_THAT(Late(*rule, {3, 1}, {2, -4}, {}, 0), ElementsAre(2, 3)) << "nothing has moved";
}

TEST(ServerSide, ElementsAreClippedAfterTheyWereCompensated) {
  const auto rule =
      ServerSide(Sgd({.learning_rate = 1}), {.clip_value = 3, .delay_compensation = 0.25});
  EXPECT_THAT(Late(*rule, {3, 1}, {2, -4}, {1, 2}, 1), ElementsAre(0, 4)) << "4 and -8, clipped";
  EXPECT_THAT(Late(*rule, {3, 1}, {2, -4}, {}, 0), ElementsAre(1, 4));
}

TEST(ServerSide, TheRateIsDividedByTheStaleness) {
  const auto sgd = ServerSide(Sgd({.learning_rate = 1}), {.staleness_scaling = true});
  EXPECT_THAT(Late(*sgd, {8, 8}, {4, -4}, {}, 0), ElementsAre(4, 12));
  EXPECT_THAT(Late(*sgd, {8, 8}, {4, -4}, {}, 1), ElementsAre(4, 12));
  EXPECT_THAT(Late(*sgd, {8, 8}, {4, -4}, {}, 4), ElementsAre(7, 9));
  // Of every rule: what it takes off the weights is a third.
  std::vector<std::unique_ptr<Optimizer>> rules;
  rules.push_back(Sgd({.learning_rate = 0.5, .momentum = 0.9, .l2 = 0.5}));
  rules.push_back(Sgd({.learning_rate = 0.5, .momentum = 0.9, .nesterov = true}));
  rules.push_back(Adagrad({.learning_rate = 0.5, .l2 = 0.5}));
  rules.push_back(RmsProp({.learning_rate = 0.5}));
  rules.push_back(RmsProp({.learning_rate = 0.5, .momentum = 0.9}));
  rules.push_back(Adam({.learning_rate = 0.5}));
  rules.push_back(AdamW({.learning_rate = 0.5, .weight_decay = 0.25}));
  for (std::unique_ptr<Optimizer>& rule : rules) {
    const std::string name = rule->config();
    const auto scaled = ServerSide(std::move(rule), {.staleness_scaling = true});
    const std::vector<float> fresh = Late(*scaled, {8, -2}, {4, 1}, {}, 1);
    const std::vector<float> stale = Late(*scaled, {8, -2}, {4, 1}, {}, 3);
    EXPECT_NEAR(stale[0] - 8, (fresh[0] - 8) / 3, 1e-5) << name;
    EXPECT_NEAR(stale[1] + 2, (fresh[1] + 2) / 3, 1e-5) << name;
    EXPECT_NE(fresh[0], 8) << name;
  }
}

TEST(ServerSide, ARowsGradientIsClipped) {
  const std::string sgd = Sgd({.learning_rate = 1})->config();
  const auto apply = [](const std::string& config) {
    std::vector<float> weights = {10, 10};
    const std::vector<float> gradient = {6, -8};
    const auto rule = OrThrow(RowOptimizer::Make(config));
    std::vector<float> slots(rule->slot_floats(2));
    rule->Initialize(slots);
    rule->Apply({.weights = weights, .slots = slots, .gradient = gradient, .gradient_scale = 0.5});
    EXPECT_EQ(rule->config(), config);
    return weights;
  };
  EXPECT_THAT(apply(ServerSide(sgd, {.clip_value = 3.5})), ElementsAre(7, 13.5));
  // A norm of 5 becomes one of 2.5; then each element at most 1.75.
  EXPECT_THAT(apply(ServerSide(sgd, {.clip_norm = 2.5})), ElementsAre(8.5, 12));
  EXPECT_THAT(apply(ServerSide(sgd, {.clip_norm = 5})), ElementsAre(7, 14)) << "not above it";
  EXPECT_THAT(apply(ServerSide(sgd, {.clip_value = 1.75, .clip_norm = 2.5})),
              ElementsAre(8.5, 11.75));
  // The accumulator of a row: 0 + (1.5 1.5 + 2 2) / 2 = 3.125.
  const std::string adagrad =
      RowWiseAdagradConfig({.learning_rate = 1, .initial_accumulator = 0, .epsilon = 1e-12});
  EXPECT_THAT(
      apply(ServerSide(adagrad, {.clip_norm = 2.5})),
      ElementsAre(FloatEq(10 - 1.5F / std::sqrt(3.125F)), FloatEq(10 + 2 / std::sqrt(3.125F))));
}

TEST(ServerSide, OptionsAreFieldsOfTheConfiguration) {
  const auto rule = ServerSide(
      Adam({.learning_rate = 0.5}),
      {.clip_value = 3, .clip_norm = 4, .delay_compensation = 0.25, .staleness_scaling = true});
  const auto made = OrThrow(MakeOptimizer(rule->config()));
  EXPECT_EQ(made->config(), rule->config());
  EXPECT_EQ(made->name(), "adam");
  EXPECT_EQ(made->slot_name(1), "v");
  EXPECT_EQ(ServerSideOptimizer::Of(*made)->options(), ServerSideOptimizer::Of(*rule)->options());
  EXPECT_EQ(ServerSideOptimizer::Of(*made)->options().clip_norm, 4);
  EXPECT_THAT(rule->config(), HasSubstr(R"("delay_compensation":0.25)"));
  const auto plain = ServerSide(Adam(), {});
  EXPECT_EQ(ServerSideOptimizer::Of(*plain), nullptr);
  EXPECT_EQ(plain->config(), Adam()->config());
}

TEST(ServerSide, WhatMakesNoSenseIsRefused) {
  const auto message = [](const std::string& config) {
    return MakeOptimizer(config).status().message();
  };
  EXPECT_THAT(message(R"({"name":"sgd","clip_value":-1})"), HasSubstr("clip_value is -1"));
  EXPECT_THAT(message(R"({"name":"sgd","staleness_scaling":1})"),
              HasSubstr("staleness_scaling is 1 [true or false]"));
  EXPECT_THAT(message(R"({"name":"sgd","clip_norm":1,"momentom":1})"),
              HasSubstr("did you mean \"momentum\"?"));
  EXPECT_THAT(message(R"({"name":"ftrl","staleness_scaling":true})"),
              HasSubstr("ftrl: staleness_scaling is not for it"));
  EXPECT_THROW(ServerSide(Ftrl(), {.staleness_scaling = true}), ContractError);
  EXPECT_THROW(ServerSide(Sgd(), {.clip_norm = -1}), ContractError);
  EXPECT_THROW(ServerSide(ServerSide(Sgd(), {.clip_norm = 1}), {.clip_value = 1}), ContractError);
  EXPECT_THROW(ServerSide(Sgd(), {.clip_norm = 1})->RuleAt(1), ContractError);
  for (const ServerSideOptions& options :
       {ServerSideOptions{.delay_compensation = 1}, ServerSideOptions{.staleness_scaling = true}}) {
    EXPECT_THAT(RowOptimizer::Make(ServerSide(Sgd()->config(), options)).status().message(),
                HasSubstr("is not for tables of rows"));
  }
}

}  // namespace
}  // namespace cohort
