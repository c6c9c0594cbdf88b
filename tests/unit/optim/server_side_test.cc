// What servers do to gradients beside the rule, against sequences worked out by hand.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_optimizer.h>
#include <cohort/optim/server_side.h>
#include <cohort/optim/table_spec.h>

namespace cohort {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::HasSubstr;
using ::testing::Not;

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

// ---- Decay of weights beside the rule ----------------------------------------------------------

TEST(ServerSide, WeightsDecayBesideTheRule) {
  // 8 - 0.5 2 - 0.5 0.25 8, and -4 - 0.5 4 + 0.5 0.25 4.
  const ServerSideOptions decay = {.weight_decay = 0.25};
  EXPECT_THAT(Late(*ServerSide(Sgd({.learning_rate = 0.5}), decay), {8, -4}, {2, 4}, {}, 0),
              ElementsAre(6, -5.5));
  EXPECT_THAT(Late(*ServerSide(Sgd({.learning_rate = 0.5}), decay), {8, -4}, {4, 8}, {}, 0, 0.5F),
              ElementsAre(6, -5.5))
      << "the decay is not of the gradient";
  // l2 is of the gradient, and both of the weights before: 8 - 0.5 (2 + 0.5 8) - 1.
  EXPECT_THAT(
      Late(*ServerSide(Sgd({.learning_rate = 0.5, .l2 = 0.5}), decay), {8, -4}, {2, 4}, {}, 0),
      ElementsAre(4, -4.5));
  // A gradient that is compensated, with the weights before, clipped, and late: all of the step is
  // divided. g = 4 and -8, of which 3 are left; 3 - 3 / 4 - 0.25 3 / 4.
  EXPECT_THAT(Late(*ServerSide(Sgd({.learning_rate = 1}), {.clip_value = 3,
                                                           .delay_compensation = 0.25,
                                                           .staleness_scaling = true,
                                                           .weight_decay = 0.25}),
                   {3, 1}, {2, -4}, {1, 2}, 4),
              ElementsAre(2.0625, 1.6875));
}

// Against the same rule without decay, and the decay computed here in double.
TEST(ServerSide, WeightsDecayBesideEveryRule) {
  constexpr double kDecay = 0.3;
  const std::vector<float> gradient = {0.5F, 0, -3, 1e-3F};
  const auto make = [](std::size_t r) {
    std::vector<std::unique_ptr<Optimizer>> rules;
    rules.push_back(Sgd({.learning_rate = Schedule::Step(0.25, 2, 0.5), .l2 = 0.125}));
    rules.push_back(Sgd({.learning_rate = 0.25, .momentum = 0.9}));
    rules.push_back(Sgd({.learning_rate = 0.25, .momentum = 0.9, .nesterov = true}));
    rules.push_back(Adagrad({.learning_rate = 0.25}));
    rules.push_back(RmsProp({.learning_rate = 0.05, .momentum = 0.5}));
    rules.push_back(Adam({.learning_rate = Schedule::Step(0.05, 2, 0.5)}));
    return r < rules.size() ? std::move(rules[r]) : nullptr;
  };
  for (std::size_t r = 0; make(r) != nullptr; ++r) {
    const auto plain = make(r);
    const auto decays = ServerSide(make(r), {.weight_decay = kDecay});
    std::vector<float> value = {4, -8, 0, 1e-4F};
    std::vector<std::vector<float>> slots(static_cast<std::size_t>(plain->num_slots()),
                                          std::vector<float>(value.size()));
    for (std::size_t s = 0; s < slots.size(); ++s) {
      std::ranges::fill(slots[s], plain->slot_initial_value(static_cast<int>(s)));
    }
    std::vector<std::vector<float>> plain_slots = slots;
    for (std::int64_t step = 1; step <= 5; ++step) {
      const auto apply = [&](const Optimizer& rule, std::vector<float>& values,
                             std::vector<std::vector<float>>& its) {
        const std::vector<std::span<float>> spans(its.begin(), its.end());
        rule.Apply({.value = values, .gradient = gradient, .slots = spans, .step = step});
      };
      const std::vector<float> before = value;
      std::vector<float> without = value;
      apply(*plain, without, plain_slots);
      apply(*decays, value, slots);
      EXPECT_EQ(slots, plain_slots) << plain->config();
      const double rate = plain->learning_rate(step);
      for (std::size_t i = 0; i < value.size(); ++i) {
        const double expected = without[i] - rate * kDecay * before[i];
        EXPECT_NEAR(value[i], expected, std::abs(expected) * 1e-6) << plain->config() << " " << i;
      }
    }
    EXPECT_LT(value[0], 4) << plain->config();
  }
}

TEST(ServerSide, AdamThatDecaysIsAdamW) {
  const auto adamw = AdamW({.learning_rate = 0.01, .weight_decay = 0.5});
  const auto adam = ServerSide(Adam({.learning_rate = 0.01}), {.weight_decay = 0.5});
  std::vector<float> one = {1, -2, 30};
  std::vector<float> other = one;
  const std::vector<float> gradient = {1, 0, -0.25};
  std::vector<std::vector<float>> slots(4, std::vector<float>(3));
  const std::vector<std::span<float>> first = {slots[0], slots[1]};
  const std::vector<std::span<float>> second = {slots[2], slots[3]};
  for (std::int64_t step = 1; step <= 50; ++step) {
    adamw->Apply({.value = one, .gradient = gradient, .slots = first, .step = step});
    adam->Apply({.value = other, .gradient = gradient, .slots = second, .step = step});
  }
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_NEAR(one[i], other[i], 1e-5 * std::abs(one[i])) << i;
  }
  EXPECT_NEAR(one[1], -2 * std::pow(1 - 0.005, 50), 1e-5) << "decay alone";
}

// A row decays with its gradients, by its rule's rate in that step.
TEST(ServerSide, ARowDecaysWhenItIsUpdated) {
  const auto apply = [](const std::string& config, std::int64_t step) {
    std::vector<float> weights = {10, -20};
    const std::vector<float> gradient = {6, -8};
    const auto rule = OrThrow(RowOptimizer::Make(config));
    std::vector<float> slots(rule->slot_floats(2));
    rule->Initialize(slots);
    rule->Apply({.weights = weights, .slots = slots, .gradient = gradient, .step = step});
    EXPECT_EQ(rule->config(), config);
    return weights;
  };
  const std::string sgd = Sgd({.learning_rate = Schedule::Step(0.5, 2, 0.5)})->config();
  // 10 - 3 - 1.25 and -20 + 4 + 2.5; at half the rate half of it.
  EXPECT_THAT(apply(ServerSide(sgd, {.weight_decay = 0.25}), 1), ElementsAre(5.75, -13.5));
  EXPECT_THAT(apply(ServerSide(sgd, {.weight_decay = 0.25}), 3), ElementsAre(7.875, -16.75));
  EXPECT_THAT(apply(ServerSide(sgd, {.clip_value = 2, .weight_decay = 0.25}), 1),
              ElementsAre(7.75, -16.5));
  const std::string adagrad = RowWiseAdagradConfig({.learning_rate = 0.5});
  const std::vector<float> plain = apply(adagrad, 1);
  const std::vector<float> decayed = apply(ServerSide(adagrad, {.weight_decay = 0.25}), 1);
  EXPECT_FLOAT_EQ(decayed[0], plain[0] - 1.25F);
  EXPECT_FLOAT_EQ(decayed[1], plain[1] + 2.5F);
}

TEST(ServerSide, DecayThatMakesNoSenseIsRefused) {
  const auto message = [](const std::string& config) {
    const Status status = MakeOptimizer(config).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << config;
    EXPECT_EQ(RowOptimizer::Make(config).status(), status);
    return status.message();
  };
  EXPECT_THAT(message(R"({"name":"sgd","decoupled_weight_decay":-0.5})"),
              HasSubstr("decoupled_weight_decay is -0.5 [at least 0"));
  EXPECT_THAT(message(R"({"name":"adamw","decoupled_weight_decay":0.5})"),
              HasSubstr("adamw: decoupled_weight_decay is not for it"));
  EXPECT_THAT(message(R"({"name":"ftrl","decoupled_weight_decay":0.5})"),
              HasSubstr("ftrl: decoupled_weight_decay is not for it"));
  for (const double decay : {-1.0, static_cast<double>(NAN), HUGE_VAL}) {
    EXPECT_THROW(ServerSide(Sgd(), {.weight_decay = decay}), ContractError) << decay;
  }
  EXPECT_THROW(ServerSide(AdamW(), {.weight_decay = 0.5}), ContractError);
  // Its own is a field of its own.
  EXPECT_EQ(
      OrThrow(MakeOptimizer(ServerSide(AdamW({.weight_decay = 0.5}), {.clip_value = 1})->config()))
          ->config(),
      ServerSide(AdamW({.weight_decay = 0.5}), {.clip_value = 1})->config());
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
  EXPECT_THAT(rule->config(), Not(HasSubstr("decoupled_weight_decay"))) << "as before there was it";
  const auto decays = ServerSide(Adam(), {.weight_decay = 0.125});
  EXPECT_THAT(decays->config(), HasSubstr(R"("decoupled_weight_decay":0.125)"));
  EXPECT_EQ(ServerSideOptimizer::Of(*OrThrow(MakeOptimizer(decays->config())))->options(),
            (ServerSideOptions{.weight_decay = 0.125}));
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
}

// ---- Late gradients of rows --------------------------------------------------------------------

std::vector<float> LateRow(const std::string& config, std::vector<float> weights,
                           const std::vector<float>& gradient, const std::vector<float>& pulled,
                           std::uint64_t staleness, float scale = 1) {
  const auto rule = OrThrow(RowOptimizer::Make(config));
  std::vector<float> slots(rule->slot_floats(weights.size()));
  rule->Initialize(slots);
  rule->Apply({.weights = weights,
               .slots = slots,
               .gradient = gradient,
               .gradient_scale = scale,
               .pulled = pulled,
               .staleness = staleness});
  weights.insert(weights.end(), slots.begin(), slots.end());
  return weights;
}

TEST(ServerSide, ALateGradientOfARowIsCompensatedAndItsRateDivided) {
  const std::string sgd = Sgd({.learning_rate = 1})->config();
  const std::string compensates = ServerSide(sgd, {.delay_compensation = 0.25});
  // 2 + 0.25 * 4 * (3 - 1) = 4, and -4 + 0.25 * 16 * (1 - 2) = -8.
  EXPECT_THAT(LateRow(compensates, {3, 1}, {2, -4}, {1, 2}, 1), ElementsAre(-1, 9));
  EXPECT_THAT(LateRow(compensates, {3, 1}, {4, -8}, {1, 2}, 1, 0.5F), ElementsAre(-1, 9));
  EXPECT_THAT(LateRow(compensates, {3, 1}, {2, -4}, {}, 5), ElementsAre(1, 5)) << "as it is";
  const std::string scales = ServerSide(sgd, {.staleness_scaling = true});
  EXPECT_THAT(LateRow(scales, {3, 1}, {2, -4}, {}, 1), ElementsAre(1, 5));
  EXPECT_THAT(LateRow(scales, {3, 1}, {2, -4}, {}, 4), ElementsAre(2.5, 2));
  // A norm of 5 becomes one of 2.5: 1.5 and -2, which become 1.5 + 0.25 * 2.25 * 2 = 2.625 and
  // -2 + 0.25 * 4 * -1 = -3, of which at most 2.75 are left; all of the step is halved.
  EXPECT_THAT(LateRow(ServerSide(sgd, {.clip_value = 2.75,
                                       .clip_norm = 2.5,
                                       .delay_compensation = 0.25,
                                       .staleness_scaling = true,
                                       .weight_decay = 0.5}),
                      {3, 1}, {3, -4}, {1, 2}, 2),
              ElementsAre(3 - 2.625F / 2 - 0.75F, 1 + 2.75F / 2 - 0.25F));
  // The accumulator of a row takes the whole gradient: (9 + 16) / 2.
  const std::vector<float> adagrad = LateRow(
      ServerSide(
          RowWiseAdagradConfig({.learning_rate = 1, .initial_accumulator = 0, .epsilon = 1e-12}),
          {.staleness_scaling = true}),
      {3, 1}, {3, -4}, {}, 4);
  EXPECT_THAT(adagrad, ElementsAre(FloatEq(3 - 0.75F / std::sqrt(12.5F)),
                                   FloatEq(1 + 1 / std::sqrt(12.5F)), 12.5F));
}

TEST(ServerSide, RowsThatCannotBeLateAreRefusedByTheirTablesName) {
  const std::string sgd = Sgd()->config();
  TableSpec table;
  table.name = "users";
  for (const auto& [options, field] :
       {std::pair{ServerSideOptions{.delay_compensation = 1}, "delay_compensation"},
        std::pair{ServerSideOptions{.staleness_scaling = true}, "staleness_scaling"}}) {
    table.optimizer = ServerSide(sgd, options);
    table.dim = 1;
    EXPECT_EQ(table.Check(), OkStatus());
    const Status status = RefuseLateRows(table, "consistency sync:1");
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(),
                HasSubstr("table \"users\": optimizer sgd: " + std::string(field)));
    EXPECT_THAT(status.message(), HasSubstr("under consistency sync:1 ["));
  }
  for (const std::string& config :
       {sgd, ServerSide(sgd, {.clip_value = 1, .clip_norm = 1, .weight_decay = 0.5}),
        RowWiseAdagradConfig(), std::string()}) {
    table.optimizer = config;
    EXPECT_EQ(RefuseLateRows(table, "one_device"), OkStatus()) << config;
  }
}

// The same code: a row has the bits of a dense parameter under every rule.
TEST(ServerSide, ALateRowHasTheBitsOfALateParameter) {
  const ServerSideOptions options = {
      .clip_value = 0.7, .delay_compensation = 0.3, .staleness_scaling = true};
  const std::vector<float> weights = {0.3F, -1.7F, 2.9F};
  const std::vector<float> gradient = {0.11F, -0.53F, 1.9F};
  const std::vector<float> pulled = {0.1F, -1.1F, 3.3F};
  for (const std::uint64_t staleness : {0U, 1U, 3U}) {
    for (const auto& make : {+[] { return Sgd({.learning_rate = 0.3, .momentum = 0.9}); },
                             +[] { return Adagrad({.learning_rate = 0.3}); },
                             +[] { return RmsProp({.learning_rate = 0.3}); },
                             +[] { return Adam({.learning_rate = 0.3}); },
                             +[] { return AdamW({.learning_rate = 0.3}); }}) {
      const auto rule = ServerSide(make(), options);
      const std::vector<float> dense = Late(*rule, weights, gradient, pulled, staleness, 0.7F);
      std::vector<float> row = LateRow(rule->config(), weights, gradient, pulled, staleness, 0.7F);
      row.resize(weights.size());
      EXPECT_EQ(row, dense) << rule->config() << ", staleness " << staleness;
    }
  }
}

// Where a gradient is not late the options leave every bit as it is.
TEST(ServerSide, AGradientOfARowThatIsNotLateIsAppliedAsItIs) {
  for (const std::string& config : {Sgd({.learning_rate = 0.3, .momentum = 0.9})->config(),
                                    Adam({.learning_rate = 0.3})->config(),
                                    RowWiseAdagradConfig({.learning_rate = 0.3, .l2 = 0.1})}) {
    const std::vector<float> plain = LateRow(config, {0.3F, -1.7F}, {0.11F, -0.53F}, {}, 0, 0.7F);
    for (const std::uint64_t staleness : {0U, 1U}) {
      EXPECT_EQ(LateRow(ServerSide(config, {.delay_compensation = 1, .staleness_scaling = true}),
                        {0.3F, -1.7F}, {0.11F, -0.53F}, {}, staleness, 0.7F),
                plain)
          << config;
    }
  }
}

}  // namespace
}  // namespace cohort
