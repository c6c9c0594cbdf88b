#include <cohort/nn/gpt.h>

#include <cohort/nn/losses.h>
#include <cohort/optim/optimizers.h>
#include <gmock/gmock.h>

#include <cmath>

#include "oracles.h"

namespace cohort::nn {
namespace {

using testing::CollectingSink;
using testing::ExpectGradients;

constexpr GptOptions kSmall = {
    .vocabulary = 7, .length = 6, .layers = 2, .heads = 2, .width = 4, .seed = 3};

Tensor Tokens(const Shape& shape, std::vector<std::int32_t> tokens) {
  return Tensor::Of<std::int32_t>(shape, tokens);
}

TEST(Gpt, HasTheParametersOfThePaper) {
  ParameterSet parameters;
  const Gpt gpt(parameters, {});
  EXPECT_EQ(parameters.elements(), 124'439'808);
}

TEST(Gpt, StartsAsThePaperSays) {
  ParameterSet parameters;
  const Gpt gpt(parameters, {.vocabulary = 500, .layers = 8, .heads = 2, .width = 64});
  parameters.Build();
  const auto deviation = [&](const std::string& name) {
    double sum = 0;
    const auto values = parameters.value(parameters.Find(name));
    for (const float x : values) {
      sum += static_cast<double>(x) * x;
    }
    return std::sqrt(sum / static_cast<double>(values.size()));
  };
  for (const char* name :
       {"tokens/table", "positions/table", "block1/attention/qkv/kernel", "block8/up/kernel"}) {
    EXPECT_NEAR(deviation(name), 0.02, 0.002) << name;
  }
  for (const char* name : {"block1/attention/out/kernel", "block8/down/kernel"}) {
    EXPECT_NEAR(deviation(name), 0.005, 0.0005) << name;
  }
  EXPECT_EQ(deviation("block8/down/bias"), 0);
}

TEST(Gpt, HasTheGradientsOfFiniteDifferences) {
  ParameterSet parameters;
  const Gpt gpt(parameters, kSmall);
  parameters.Build();
  // Far from where activations are all alike.
  for (int p = 0; p < parameters.size(); ++p) {
    const Tensor values =
        testing::RandomTensor(parameters[p].shape, 50 + static_cast<std::uint64_t>(p), -0.7F, 0.7F);
    std::copy_n(values.data<float>().begin(), values.elements(), parameters.value(p).begin());
  }
  const Tensor tokens = Tokens({2, 5}, {0, 6, 3, 3, 1, 2, 4, 5, 6, 0});
  ExpectGradients(parameters, {}, [&](Tape& tape, const auto&) { return gpt.Logits(tape, tokens); },
                  {.epsilon = 3e-3, .tolerance = 5e-3});
}

TEST(Gpt, LearnsAFewTokensByHeart) {
  ParameterSet parameters;
  const Gpt gpt(parameters, {.vocabulary = 7, .length = 8, .layers = 2, .heads = 2, .width = 16});
  parameters.Build();
  const auto stream = MakeInlineStream();
  Workspace workspace;
  const Tensor tokens = Tokens({2, 8}, {0, 1, 1, 2, 0, 1, 1, 3, 4, 5, 6, 5, 6, 5, 0, 1});
  const Tensor next = Tokens({2, 8}, {1, 1, 2, 0, 1, 1, 3, 0, 5, 6, 5, 6, 5, 0, 1, 2});
  const auto optimizer = Adam({.learning_rate = 0.02});
  std::vector<std::vector<float>> slots(2, std::vector<float>(parameters.all().size()));
  float first = 0;
  float last = 0;
  for (int step = 1; step <= 60; ++step) {
    Tape tape(parameters, *stream, workspace, {.step = step, .intra_op_threads = 1});
    CollectingSink sink(parameters);
    const Variable loss = SoftmaxCrossEntropy(gpt.Logits(tape, tokens), next);
    tape.Backward(loss, sink);
    ASSERT_EQ(tape.Finish(), OkStatus());
    last = loss.value();
    first = step == 1 ? last : first;
    for (int p = 0; p < parameters.size(); ++p) {
      const auto offset = static_cast<std::size_t>(parameters[p].offset);
      const std::size_t size = parameters.value(p).size();
      const std::vector<std::span<float>> mine = {std::span(slots[0]).subspan(offset, size),
                                                  std::span(slots[1]).subspan(offset, size)};
      optimizer->Apply({.value = parameters.value(p),
                        .gradient = sink.gradient(p),
                        .slots = mine,
                        .step = step});
    }
  }
  EXPECT_NEAR(first, std::log(7.0F), 0.2F);
  EXPECT_LT(last, 0.1F);
}

TEST(Gpt, DoesNotSeeWhatComes) {
  Bench bench;
  const Gpt gpt(bench.parameters, kSmall);
  const auto logits = [&](const Tensor& tokens) {
    return bench.Run({}, [&](Tape& tape, const auto&) { return gpt.Logits(tape, tokens); },
                     {.training = false});
  };
  const Tensor one = logits(Tokens({1, 4}, {1, 2, 3, 4}));
  const Tensor other = logits(Tokens({1, 4}, {1, 2, 5, 4}));
  ASSERT_EQ(one.shape(), (Shape{4, 7}));
  for (std::size_t i = 0; i < 4 * 7; ++i) {
    EXPECT_EQ(one.data<float>()[i] == other.data<float>()[i], i < 2 * 7) << i;
  }
}

TEST(Gpt, DropsOutInTrainingOnly) {
  Bench bench;
  GptOptions options = kSmall;
  options.dropout = 0.5F;
  const Gpt gpt(bench.parameters, options);
  const auto logits = [&](const TapeOptions& tape_options) {
    const Tensor y = bench.Run(
        {},
        [&](Tape& tape, const auto&) {
          return gpt.Logits(tape, Tokens({1, 2}, {1, 2}));
        },
        tape_options);
    return AsDoubles(y);
  };
  EXPECT_EQ(logits({.training = false, .step = 1}), logits({.training = false, .step = 2}));
  EXPECT_EQ(logits({.step = 1}), logits({.step = 1}));
  EXPECT_NE(logits({.step = 1}), logits({.step = 2}));
}

TEST(Gpt, TakesAnEmptyBatch) {
  ParameterSet parameters;
  const Gpt gpt(parameters, kSmall);
  parameters.Build();
  const auto stream = MakeInlineStream();
  Workspace workspace;
  Tape tape(parameters, *stream, workspace);
  CollectingSink sink(parameters, 0.0F);
  const Variable loss =
      SoftmaxCrossEntropy(gpt.Logits(tape, Tokens({0, 6}, {})), Tokens({0, 6}, {}));
  tape.Backward(loss, sink);
  ASSERT_EQ(tape.Finish(), OkStatus());
  EXPECT_EQ(loss.value(), 0.0F);
  for (int p = 0; p < parameters.size(); ++p) {
    EXPECT_THAT(sink.gradient(p), ::testing::Each(0.0F)) << parameters[p].name;
  }
}

TEST(Gpt, RefusesSizesThatMakeNoModel) {
  for (const GptOptions& options :
       {GptOptions{.heads = 5}, GptOptions{.vocabulary = 0}, GptOptions{.length = 0},
        GptOptions{.layers = -1}, GptOptions{.dropout = 1}}) {
    ParameterSet parameters;
    EXPECT_THROW(Gpt(parameters, options), ContractError);
  }
  Bench bench;
  const Gpt gpt(bench.parameters, kSmall);
  const auto run = [&](const Tensor& tokens) {
    bench.Run({}, [&](Tape& tape, const auto&) { return gpt.Logits(tape, tokens); });
  };
  EXPECT_THROW(run(Tokens({1, 7}, {0, 0, 0, 0, 0, 0, 0})), ContractError);
  EXPECT_THROW(run(Tokens({3}, {0, 0, 0})), ContractError);
}

}  // namespace
}  // namespace cohort::nn
