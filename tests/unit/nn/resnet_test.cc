#include <cohort/nn/resnet.h>

#include <cohort/nn/losses.h>
#include <cohort/optim/optimizers.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "oracles.h"

namespace cohort::nn {
namespace {

using testing::CollectingSink;
using testing::RandomTensor;

std::int64_t Trainable(const ParameterSet& parameters) {
  std::int64_t elements = 0;
  for (int p = 0; p < parameters.size(); ++p) {
    elements += parameters[p].trainable ? parameters[p].shape.elements() : 0;
  }
  return elements;
}

TEST(ResNet, HasAsManyParametersAsTorchvisions) {
  for (const auto& [depth, elements] :
       {std::pair{18, 11'689'512}, std::pair{34, 21'797'672}, std::pair{50, 25'557'032}}) {
    ParameterSet parameters;
    const ResNet model(parameters, {.depth = depth});
    EXPECT_EQ(Trainable(parameters), elements) << depth;
  }
}

TEST(ResNet, TheStrideOfABottleneckIsThatOfIts3x3) {
  ParameterSet parameters;
  const ResNet model(parameters, {});
  const auto shape = [&](const std::string& name) {
    const int p = parameters.Find(name);
    EXPECT_GE(p, 0) << name;
    return p < 0 ? Shape() : parameters[p].shape;
  };
  EXPECT_EQ(shape("stem/kernel"), (Shape{7, 7, 3, 64}));
  EXPECT_EQ(shape("stage1/block1/shortcut/kernel"), (Shape{1, 1, 64, 256}));
  EXPECT_EQ(shape("stage2/block1/conv1/kernel"), (Shape{1, 1, 256, 128}));
  EXPECT_EQ(shape("stage2/block1/conv2/kernel"), (Shape{3, 3, 128, 128}));
  EXPECT_EQ(shape("stage4/block3/conv3/kernel"), (Shape{1, 1, 512, 2048}));
  EXPECT_EQ(shape("stage4/block3/conv3/norm/variance"), (Shape{2048}));
  EXPECT_EQ(parameters.Find("stage4/block2/shortcut/kernel"), -1);
  EXPECT_EQ(parameters.Find("stage4/block4/conv1/kernel"), -1);
}

TEST(ResNet, ImagesOfAnySizeBecomeOneRowOfScores) {
  for (const int depth : {18, 34, 50}) {
    for (const bool small : {false, true}) {
      Bench bench;
      const ResNet model(
          bench.parameters,
          {.depth = depth, .classes = 5, .channels = 2, .width = 8, .small_images = small});
      for (const Shape& images : {Shape{2, 32, 32, 2}, Shape{1, 33, 17, 2}, Shape{0, 32, 32, 2}}) {
        const Tensor logits = bench.Run({RandomTensor(images, 1)},
                                        [&](Tape&, const auto& in) { return model.Logits(in[0]); },
                                        {.training = false});
        EXPECT_EQ(logits.shape(), (Shape{images[0], 5})) << depth << images.ToString();
      }
    }
  }
}

// Then a block's output is the relu of its shortcut, whatever its convolutions are.
TEST(ResNet, ABlockStartsAsItsShortcutIfAskedTo) {
  for (const int depth : {18, 50}) {
    Bench bench;
    const ResNet model(bench.parameters,
                       {.depth = depth, .classes = 3, .width = 8, .zero_last_scale = true});
    bench.parameters.Build();
    const std::string last = depth == 18 ? "conv2" : "conv3";
    const Tensor images = RandomTensor({2, 32, 32, 3}, 1);
    const auto logits = [&] {
      const Tensor scores =
          bench.Run({images}, [&](Tape&, const auto& in) { return model.Logits(in[0]); },
                    {.training = false});
      return AsDoubles(scores);
    };
    const Doubles before = logits();
    int zeros = 0;
    for (int p = 0; p < bench.parameters.size(); ++p) {
      const std::string& name = bench.parameters[p].name;
      const std::span<float> value = bench.parameters.value(p);
      if (name.ends_with("/scale")) {
        EXPECT_EQ(value[0], name.ends_with(last + "/norm/scale") ? 0.0F : 1.0F) << name;
        zeros += value[0] == 0.0F ? 1 : 0;
      } else if (name.ends_with("conv1/kernel")) {
        std::fill(value.begin(), value.end(), 0.5F);
      }
    }
    EXPECT_EQ(zeros, depth == 18 ? 8 : 16);
    EXPECT_EQ(logits(), before);
    EXPECT_NE(before, Doubles(before.size(), 0.0));
  }
}

TEST(ResNet, SaysWhatItCannotBe) {
  ParameterSet parameters;
  EXPECT_THROW(ResNet(parameters, {.depth = 20}), ContractError);
  EXPECT_THROW(ResNet(parameters, {.classes = 0}), ContractError);
  EXPECT_EQ(parameters.size(), 0);
}

// The loss of a model that is held fixed but for what a test changes, and its gradient.
struct Fixed {
  ParameterSet parameters;
  ResNet model;
  Tensor images = RandomTensor({4, 16, 16, 3}, 1);
  std::vector<std::int64_t> classes = {0, 1, 2, 1};
  std::unique_ptr<Stream> stream = MakeInlineStream();
  Workspace workspace;

  explicit Fixed(ResNetOptions options) : model(parameters, options) { parameters.Build(); }
  double Loss(GradientSink* sink = nullptr) {
    Tape tape(parameters, *stream, workspace, {.updates_averages = false, .intra_op_threads = 1});
    const Variable loss = SoftmaxCrossEntropy(model.Logits(tape.Input(images)),
                                              Tensor::Of<std::int64_t>({4}, classes));
    if (sink != nullptr) {
      tape.Backward(loss, *sink);
    }
    EXPECT_EQ(tape.Finish(std::chrono::seconds(30)), OkStatus());
    return loss.value();
  }
};

// Along the gradient of each parameter alone: relu's kinks, which a step in one element meets or
// does not, are few among all elements. A wrong path, a wrong scale or a sum that lacks a part
// changes the slope by far more.
TEST(ResNet, HasTheGradientsOfFiniteDifferences) {
  for (const int depth : {18, 50}) {
    Fixed fixed({.depth = depth, .classes = 3, .width = 8, .small_images = true, .seed = 3});
    ParameterSet& parameters = fixed.parameters;
    // No branch is small beside another, nor are scores.
    for (int p = 0; p < parameters.size(); ++p) {
      const std::string& name = parameters[p].name;
      if (name.ends_with("norm/offset") || name.starts_with("logits")) {
        const Tensor values =
            RandomTensor(parameters[p].shape, 70 + static_cast<std::uint64_t>(p), -0.3F, 0.3F);
        std::copy_n(values.data<float>().begin(), values.elements(), parameters.value(p).begin());
      }
    }
    CollectingSink sink(parameters);
    fixed.Loss(&sink);
    int checked = 0;
    for (int p = 0; p < parameters.size(); ++p) {
      if (!parameters[p].trainable) {
        continue;
      }
      const std::vector<float>& gradient = sink.gradient(p);
      const double norm =
          std::sqrt(std::inner_product(gradient.begin(), gradient.end(), gradient.begin(), 0.0));
      ASSERT_GT(norm, 1e-4) << parameters[p].name;
      const std::span<float> value = parameters.value(p);
      const std::vector<float> before(value.begin(), value.end());
      // As far as changes the loss by about 6e-4: far above its rounding, and few kinks.
      const double step = 6e-4 / norm;
      const auto at = [&](double distance) {
        for (std::size_t i = 0; i < value.size(); ++i) {
          value[i] = before[i] + static_cast<float>(distance * gradient[i] / norm);
        }
        return fixed.Loss();
      };
      const double slope = (at(step) - at(-step)) / (2 * step);
      std::copy(before.begin(), before.end(), value.begin());
      EXPECT_NEAR(slope / norm, 1.0, 0.08) << depth << " " << parameters[p].name;
      ++checked;
    }
    EXPECT_EQ(checked, depth == 18 ? 3 * 20 + 2 : 3 * 53 + 2);
  }
}

TEST(ResNet, LearnsAFewImagesByHeartAndKnowsThemAgain) {
  ParameterSet parameters;
  const auto model =
      OrThrow(MakeImageModel("resnet18", parameters, {.image = {16, 16, 3}, .classes = 3}));
  EXPECT_GE(parameters.Find("stage4/block2/conv2/kernel"), 0);
  EXPECT_EQ(parameters[parameters.Find("stem/kernel")].shape, (Shape{3, 3, 3, 64}));

  Fixed fixed({.depth = 18, .classes = 3, .width = 8, .small_images = true});
  ParameterSet& all = fixed.parameters;
  const auto optimizer = Sgd({.learning_rate = 0.05, .momentum = 0.9});
  std::vector<float> momentum(all.all().size());
  const auto labels = Tensor::Of<std::int64_t>({4}, fixed.classes);
  float first = 0;
  float last = 0;
  for (int step = 1; step <= 60; ++step) {
    Tape tape(all, *fixed.stream, fixed.workspace, {.step = step, .intra_op_threads = 1});
    CollectingSink sink(all);
    const Variable loss = SoftmaxCrossEntropy(fixed.model.Logits(tape.Input(fixed.images)), labels);
    tape.Backward(loss, sink);
    ASSERT_EQ(tape.Finish(), OkStatus());
    last = loss.value();
    first = step == 1 ? last : first;
    for (int p = 0; p < all.size(); ++p) {
      if (all[p].trainable) {
        const std::span<float> slot = std::span(momentum).subspan(
            static_cast<std::size_t>(all[p].offset), all.value(p).size());
        optimizer->Apply({.value = all.value(p),
                          .gradient = sink.gradient(p),
                          .slots = std::span(&slot, 1),
                          .step = step});
      }
    }
  }
  EXPECT_NEAR(first, std::log(3.0F), 0.5F);
  EXPECT_LT(last, 0.05F);
  // With the running averages of the 60 steps.
  Tape tape(all, *fixed.stream, fixed.workspace, {.training = false, .intra_op_threads = 1});
  const Variable loss = SoftmaxCrossEntropy(fixed.model.Logits(tape.Input(fixed.images)), labels);
  ASSERT_EQ(tape.Finish(), OkStatus());
  EXPECT_LT(loss.value(), 0.2F);
}

TEST(ResNet, ComputesIn16Bits) {
  Fixed fixed({.depth = 18, .classes = 3, .width = 8, .small_images = true});
  const auto logits = [&](Precision precision) {
    Tape tape(fixed.parameters, *fixed.stream, fixed.workspace,
              {.updates_averages = false, .intra_op_threads = 1, .precision = precision});
    const Tensor scores = tape.Fetch(fixed.model.Logits(tape.Input(fixed.images)));
    EXPECT_EQ(tape.Finish(), OkStatus());
    return scores;
  };
  const Tensor exact = logits(Precision::kFloat32);
  const Tensor rounded = logits(Precision::kMixedBFloat16);
  double most = 0;
  double difference = 0;
  for (std::size_t i = 0; i < exact.data<float>().size(); ++i) {
    most = std::max<double>(most, std::abs(exact.data<float>()[i]));
    difference =
        std::max<double>(difference, std::abs(exact.data<float>()[i] - rounded.data<float>()[i]));
  }
  EXPECT_GT(difference, 0);
  EXPECT_LT(difference, 0.2 * most);
}

}  // namespace
}  // namespace cohort::nn
