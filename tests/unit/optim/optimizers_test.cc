// Each rule against its published formula, computed here in double.

#include <cohort/optim/optimizers.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

namespace cohort {
namespace {

constexpr int kElements = 37;  // more than two vectors, and a remainder
constexpr int kSteps = 6;

float Start(int i) { return static_cast<float>(i % 7 - 3) * 0.25F; }
float GradientOf(int i, int step) {
  return static_cast<float>((i * 13 + step * 5) % 11 - 5) * 0.125F;
}

// Values and slots, and the spans that Apply takes.
struct State {
  explicit State(const Optimizer& optimizer, int elements = kElements) {
    for (int i = 0; i < elements; ++i) {
      value.push_back(Start(i));
    }
    for (int s = 0; s < optimizer.num_slots(); ++s) {
      slots.emplace_back(value.size(), optimizer.slot_initial_value(s));
    }
  }
  void Apply(const Optimizer& optimizer, std::span<const float> gradient, int step,
             std::size_t begin, std::size_t end, float scale = 1.0F) {
    std::vector<std::span<float>> spans;
    for (auto& slot : slots) {
      spans.push_back(std::span(slot).subspan(begin, end - begin));
    }
    optimizer.Apply({std::span(value).subspan(begin, end - begin),
                     gradient.subspan(begin, end - begin), spans, scale, step});
  }
  std::vector<float> value;
  std::vector<std::vector<float>> slots;
};

std::vector<float> Gradients(int step, int elements = kElements) {
  std::vector<float> g;
  for (int i = 0; i < elements; ++i) {
    g.push_back(GradientOf(i, step));
  }
  return g;
}

// One element of the reference: `update(w, g, t)` with the slots as the closure's own doubles.
using Reference = std::function<void(double& w, double g, int t)>;

// Runs the rule and, for each element, a fresh reference. Tolerance: a few float roundings a step.
void ExpectFollows(const Optimizer& optimizer, const std::function<Reference()>& make,
                   double l2 = 0, double tolerance = 2e-6) {
  State state(optimizer);
  for (int t = 1; t <= kSteps; ++t) {
    state.Apply(optimizer, Gradients(t), t, 0, kElements, 0.5F);
  }
  for (int i = 0; i < kElements; ++i) {
    const Reference reference = make();
    double w = Start(i);
    for (int t = 1; t <= kSteps; ++t) {
      reference(w, GradientOf(i, t) * 0.5 + l2 * w, t);
    }
    EXPECT_NEAR(state.value[static_cast<std::size_t>(i)], w,
                tolerance * std::max(1.0, std::fabs(w)))
        << optimizer.config() << " element " << i;
  }
}

TEST(Optimizers, SgdIsGradientDescent) {
  ExpectFollows(*Sgd({.learning_rate = 0.3}),
                [] { return [](double& w, double g, int) { w -= 0.3 * g; }; });
}

TEST(Optimizers, L2AddsToTheGradient) {
  ExpectFollows(
      *Sgd({.learning_rate = 0.3, .l2 = 0.1}),
      [] { return [](double& w, double g, int) { w -= 0.3 * g; }; }, 0.1);
}

TEST(Optimizers, MomentumIsHeavyBall) {
  ExpectFollows(*Sgd({.learning_rate = 0.3, .momentum = 0.9}), [] {
    return [v = 0.0](double& w, double g, int) mutable {
      v = 0.9 * v - 0.3 * g;
      w += v;
    };
  });
}

// Sutskever's form on f(theta) = theta^2 / 2 with the gradient at the look-ahead point; the rule's
// value is that point.
TEST(Optimizers, NesterovTakesTheGradientAhead) {
  const auto rule = Sgd({.learning_rate = 0.1, .momentum = 0.8, .nesterov = true});
  State state(*rule, 5);
  std::vector<double> theta(state.value.begin(), state.value.end());
  std::vector<double> v(5, 0.0);
  for (int t = 1; t <= 10; ++t) {
    const std::vector<float> gradient = state.value;
    state.Apply(*rule, gradient, t, 0, 5);
    for (std::size_t i = 0; i < 5; ++i) {
      const double ahead = theta[i] + 0.8 * v[i];
      v[i] = 0.8 * v[i] - 0.1 * ahead;
      theta[i] += v[i];
      EXPECT_NEAR(state.value[i], theta[i] + 0.8 * v[i], 1e-6);
    }
  }
}

TEST(Optimizers, AdagradDividesByTheRootOfAllSquares) {
  ExpectFollows(*Adagrad({.learning_rate = 0.2, .initial_accumulator = 0.3, .epsilon = 1e-3}), [] {
    return [a = 0.3](double& w, double g, int) mutable {
      a += g * g;
      w -= 0.2 * g / (std::sqrt(a) + 1e-3);
    };
  });
}

TEST(Optimizers, RmsPropDividesByTheRunningRoot) {
  ExpectFollows(*RmsProp({.learning_rate = 0.02, .rho = 0.8, .epsilon = 1e-3}), [] {
    return [a = 0.0](double& w, double g, int) mutable {
      a = 0.8 * a + 0.2 * g * g;
      w -= 0.02 * g / (std::sqrt(a) + 1e-3);
    };
  });
}

TEST(Optimizers, RmsPropWithMomentum) {
  ExpectFollows(*RmsProp({.learning_rate = 0.02, .rho = 0.8, .momentum = 0.5, .epsilon = 1e-3}),
                [] {
                  return [a = 0.0, v = 0.0](double& w, double g, int) mutable {
                    a = 0.8 * a + 0.2 * g * g;
                    v = 0.5 * v + 0.02 * g / (std::sqrt(a) + 1e-3);
                    w -= v;
                  };
                });
}

Reference AdamReference(double eta, double weight_decay) {
  return [eta, weight_decay, m = 0.0, v = 0.0](double& w, double g, int t) mutable {
    m = 0.9 * m + 0.1 * g;
    v = 0.99 * v + 0.01 * g * g;
    const double m_hat = m / (1 - std::pow(0.9, t));
    const double v_hat = v / (1 - std::pow(0.99, t));
    w -= eta * (m_hat / (std::sqrt(v_hat) + 1e-6) + weight_decay * w);
  };
}

TEST(Optimizers, AdamIsAlgorithm1) {
  ExpectFollows(*Adam({.learning_rate = 0.05, .beta2 = 0.99, .epsilon = 1e-6}),
                [] { return AdamReference(0.05, 0); });
}

TEST(Optimizers, AdamWDecaysOutsideTheAdaptiveStep) {
  ExpectFollows(
      *AdamW({.learning_rate = 0.05, .beta2 = 0.99, .epsilon = 1e-6, .weight_decay = 0.2}),
      [] { return AdamReference(0.05, 0.2); });
}

TEST(Optimizers, AdamsFirstStepIsTheRateTimesTheSign) {
  const auto rule = Adam({.learning_rate = 0.001});
  State state(*rule, 2);
  const std::vector<float> before = state.value;
  const std::vector<float> gradient = {1e-3F, -400.0F};
  state.Apply(*rule, gradient, 1, 0, 2);
  EXPECT_NEAR(state.value[0] - before[0], -0.001, 1e-6);
  EXPECT_NEAR(state.value[1] - before[1], +0.001, 1e-6);
}

TEST(Optimizers, FtrlIsAlgorithm1) {
  ExpectFollows(
      *Ftrl({.learning_rate = 0.3,
             .beta = 0.7,
             .lambda1 = 0.05,
             .lambda2 = 0.2,
             .initial_accumulator = 0.1}),
      [] {
        return [z = 0.0, n = 0.1](double& w, double g, int) mutable {
          const double sigma = (std::sqrt(n + g * g) - std::sqrt(n)) / 0.3;
          z += g - sigma * w;
          n += g * g;
          w = std::fabs(z) <= 0.05
                  ? 0
                  : -(z - (z < 0 ? -1 : 1) * 0.05) / ((0.7 + std::sqrt(n)) / 0.3 + 0.2);
        };
      },
      0, 5e-6);
}

TEST(Optimizers, FtrlWithLambda1IsSparse) {
  const auto rule = Ftrl({.learning_rate = 0.3, .lambda1 = 100});
  State state(*rule);
  state.Apply(*rule, Gradients(1), 1, 0, kElements);
  EXPECT_EQ(state.value, std::vector<float>(kElements, 0.0F));
}

TEST(Optimizers, ScheduleIsReadAtTheUpdatesStep) {
  const auto rule = Sgd({.learning_rate = Schedule::Step(1.0, 2, 0.5)});
  EXPECT_EQ(rule->learning_rate(2), 1.0F);
  EXPECT_EQ(rule->learning_rate(3), 0.5F);
  State state(*rule, 1);
  const float before = state.value[0];
  const std::vector<float> gradient = {1.0F};
  state.Apply(*rule, gradient, 5, 0, 1);
  EXPECT_EQ(state.value[0], before - 0.25F);
}

std::vector<std::unique_ptr<Optimizer>> AllRules() {
  std::vector<std::unique_ptr<Optimizer>> all;
  all.push_back(Sgd({.l2 = 0.01}));
  all.push_back(Sgd({.momentum = 0.9}));
  all.push_back(Sgd({.momentum = 0.9, .nesterov = true, .l2 = 0.01}));
  all.push_back(Adagrad({.l2 = 0.01}));
  all.push_back(RmsProp({}));
  all.push_back(RmsProp({.momentum = 0.9}));
  all.push_back(Adam({.global_clip_norm = 2.5}));
  all.push_back(AdamW({.learning_rate = Schedule::Cosine(0.1, 100, 0.01).WithWarmUp(5)}));
  all.push_back(Ftrl({.lambda1 = 0.1}));
  return all;
}

TEST(Optimizers, PartsEqualTheWholeBitwise) {
  for (const auto& rule : AllRules()) {
    State whole(*rule);
    State parts(*rule);
    for (int t = 1; t <= kSteps; ++t) {
      const std::vector<float> gradient = Gradients(t);
      whole.Apply(*rule, gradient, t, 0, kElements, 0.3F);
      // Cuts that move from step to step, at odd places, an empty part among them.
      const std::size_t first = static_cast<std::size_t>(t);
      for (const auto& [begin, end] : {std::pair<std::size_t, std::size_t>{20, kElements},
                                       {first, first},
                                       {0, first},
                                       {first, 20}}) {
        parts.Apply(*rule, gradient, t, begin, end, 0.3F);
      }
    }
    EXPECT_EQ(whole.value, parts.value) << rule->config();
    EXPECT_EQ(whole.slots, parts.slots) << rule->config();
  }
}

TEST(Optimizers, ZeroGradientKeepsZeroPadding) {
  for (const auto& rule : AllRules()) {
    State state(*rule);
    state.value.assign(kElements, 0.0F);
    const std::vector<float> gradient(kElements, 0.0F);
    for (int t = 1; t <= 3; ++t) {
      state.Apply(*rule, gradient, t, 0, kElements);
    }
    EXPECT_EQ(state.value, std::vector<float>(kElements, 0.0F)) << rule->config();
  }
}

TEST(Optimizers, ConfigMakesTheSameRule) {
  for (const auto& rule : AllRules()) {
    const auto made = MakeOptimizer(rule->config());
    ASSERT_TRUE(made.ok()) << made.status().ToString();
    EXPECT_EQ((*made)->config(), rule->config());
    EXPECT_EQ((*made)->name(), rule->name());
    EXPECT_EQ((*made)->global_clip_norm(), rule->global_clip_norm());
    ASSERT_EQ((*made)->num_slots(), rule->num_slots());
    for (int s = 0; s < rule->num_slots(); ++s) {
      EXPECT_EQ((*made)->slot_name(s), rule->slot_name(s));
    }
    State a(*rule);
    State b(**made);
    for (int t = 1; t <= 3; ++t) {
      a.Apply(*rule, Gradients(t), t, 0, kElements);
      b.Apply(**made, Gradients(t), t, 0, kElements);
    }
    EXPECT_EQ(a.value, b.value);
    EXPECT_EQ(rule->config().find('\n'), std::string::npos);
  }
}

TEST(Optimizers, ConfigIsReadable) {
  EXPECT_EQ(Sgd({.learning_rate = 0.001, .momentum = 0.9})->config(),
            R"({"name":"sgd","learning_rate":0.001,"momentum":0.9,"nesterov":false,"l2":0.0,)"
            R"("global_clip_norm":0.0})");
  EXPECT_EQ((*MakeOptimizer(R"({"name":"adam"})"))->config(), Adam()->config())
      << "absent fields have their defaults";
}

TEST(Optimizers, BadConfigNamesTheField) {
  const auto expect = [](const std::string& config, const std::string& part) {
    const auto made = MakeOptimizer(config);
    ASSERT_FALSE(made.ok()) << config;
    EXPECT_EQ(made.status().code(), StatusCode::kInvalidArgument);
    EXPECT_NE(made.status().message().find(part), std::string::npos)
        << config << ": " << made.status().message();
  };
  expect("", "no JSON");
  expect("[1]", "no JSON object");
  expect("{}", "name");
  expect(R"({"name":3})", "name");
  expect(R"({"name":"adma"})", "did you mean \"adam\"?");
  expect(R"({"name":"lion"})", "sgd, adagrad");
  expect(R"({"name":"adam","beta_1":0.9})", "did you mean \"beta1\"?");
  expect(R"({"name":"adam","beta1":1})", "beta1 is 1.0 [at least 0.0 and below 1.0]");
  expect(R"({"name":"adam","beta1":"0.9"})", "beta1 is \"0.9\" [a number]");
  expect(R"({"name":"adam","epsilon":0})", "epsilon");
  expect(R"({"name":"adam","l2":-1})", "l2 is -1.0");
  expect(R"({"name":"adam","l2":0.5,"l2":0.25})", "l2 stands twice");
  expect(R"({"name":"sgd","nesterov":1})", "nesterov is 1 [true or false]");
  expect(R"({"name":"sgd","nesterov":true})", "nesterov needs a momentum");
  expect(R"({"name":"sgd","learning_rate":-0.1})", "learning_rate.rate");
  expect(R"({"name":"sgd","learning_rate":true})", "learning_rate is true");
  expect(R"({"name":"sgd","learning_rate":{"rate":1}})", "learning_rate.schedule is missing");
  expect(R"({"name":"sgd","learning_rate":{"schedule":"cosin","rate":1}})", "\"cosine\"");
  expect(R"({"name":"sgd","learning_rate":{"schedule":"cosine","rate":1}})",
         "learning_rate.steps is missing");
  expect(R"({"name":"sgd","learning_rate":{"schedule":"cosine","rate":1,"steps":1.5}})",
         "learning_rate.steps is 1.5 [a whole number]");
  expect(R"({"name":"sgd","learning_rate":{"schedule":"cosine","rate":1,"step":10,"steps":5}})",
         "learning_rate.step is no field of cosine [did you mean \"steps\"?]");
  expect(R"({"name":"sgd","learning_rate":{"schedule":"step","rate":1,"steps":0,"factor":0.5}})",
         "steps");
  expect(R"({"name":"ftrl","learning_rate":0})", "may not reach 0");
  // All at once.
  expect(R"({"name":"adam","beta1":2,"betta2":0.9})", "betta2");
  expect(R"({"name":"adam","beta1":2,"betta2":0.9})", "beta1 is 2.0");
}

TEST(Optimizers, BadOptionsAndSpansAreTheCallersBreach) {
  EXPECT_THROW(Adam({.beta1 = 1.0}), ContractError);
  EXPECT_THROW(Sgd({.learning_rate = -1.0}), ContractError);
  EXPECT_THROW(Sgd({.learning_rate = std::nan("")}), ContractError);
  EXPECT_THROW(Sgd({.nesterov = true}), ContractError);
  const auto rule = Sgd({.momentum = 0.5});
  std::vector<float> four(4);
  std::vector<float> three(3);
  const std::vector<std::span<float>> right = {four};
  const std::vector<std::span<float>> shorter = {three};
  EXPECT_THROW(rule->Apply({four, three, right}), ContractError);
  EXPECT_THROW(rule->Apply({four, four, {}}), ContractError);
  EXPECT_THROW(rule->Apply({four, four, shorter}), ContractError);
  EXPECT_THROW(rule->Apply({four, four, right, 1.0F, 0}), ContractError);
}

}  // namespace
}  // namespace cohort
