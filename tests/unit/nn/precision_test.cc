// Mixed policies: what is of 16 bits and what is not, and that gradients are float32's up to what
// rounding takes.

#include <cohort/nn/precision.h>

#include <cohort/nn/gpt.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/models.h>
#include <cohort/nn/operations.h>
#include <cohort/nn/recorded_step.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "oracles.h"
#include "testing/far_device.h"

namespace cohort::nn {
namespace {

using ::testing::HasSubstr;
using testing::MakeFarDevice;
using testing::RandomTensor;

constexpr Precision kMixed[] = {Precision::kMixedBFloat16, Precision::kMixedFloat16};
// What one operand's rounding changes, as a share.
double Unit(Precision precision) {
  return precision == Precision::kFloat32         ? 0
         : precision == Precision::kMixedBFloat16 ? 0x1p-8
                                                  : 0x1p-11;
}

TEST(Precision, HasNames) {
  for (const Precision precision :
       {Precision::kFloat32, Precision::kMixedBFloat16, Precision::kMixedFloat16}) {
    EXPECT_EQ(OrThrow(ParsePrecision(PrecisionName(precision))), precision);
  }
  const Status status = ParsePrecision("bf16").status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("precision 'bf16' [float32, mixed_bfloat16"));
}

// Gradients in one arena of a device.
class ArenaSink final : public GradientSink {
 public:
  ArenaSink(const ParameterSet& parameters, Device& device)
      : parameters_(parameters),
        arena_(DType::kFloat32, {static_cast<std::int64_t>(parameters.all().size())},
               device.Allocate(parameters.all().size_bytes(), "gradients"), device.memory_space()) {
  }
  std::span<float> Accumulator(int parameter) override {
    return Floats(arena_).subspan(static_cast<std::size_t>(parameters_[parameter].offset),
                                  parameters_.value(parameter).size());
  }
  void AddSlices(int, const IndexedSlices&) override { FAIL() << "no rows here"; }
  void Ready(int) override {}
  float loss_seed() const override { return 4; }
  const Tensor& arena() const { return arena_; }

 private:
  const ParameterSet& parameters_;
  const Tensor arena_;
};

using Forward = std::function<std::vector<Variable>(Tape&, std::span<const Tensor>)>;

struct Model {
  ParameterSet parameters;
  std::vector<Tensor> inputs;
  Forward forward;  // the loss, and what else is fetched
};

struct Outcome {
  std::vector<std::vector<float>> fetched;
  std::vector<float> gradients;  // of all parameters
};

std::vector<float> Host(const Tensor& tensor) {
  return {tensor.data<float>().begin(), tensor.data<float>().end()};
}

// The last of so many steps, recorded ones, on the device.
Outcome Computed(Model& model, Precision precision, const std::shared_ptr<Device>& device,
                 int steps = 1) {
  const auto stream = device->MakeStream();
  Workspace workspace(device);
  ParameterSet on_device = model.parameters.CopyOn(*device, *stream);
  OrThrow(stream->Synchronize(DeadlineAfter(std::chrono::minutes(1))));
  ArenaSink sink(on_device, *device);
  // As many threads on the CPU as a far device takes: cut otherwise, products have other bits.
  workspace.KernelsFor(0).Fill(*stream, Floats(sink.arena()), 0);
  RecordedStep step(on_device, workspace);
  Outcome outcome;
  for (int s = 0; s < steps; ++s) {
    outcome.fetched.clear();
    for (const Tensor& tensor :
         OrThrow(step.Run(*stream, sink, {.precision = precision}, model.inputs, model.forward))) {
      outcome.fetched.push_back(Host(tensor));
    }
  }
  EXPECT_EQ(step.replays(), device->memory_space() == MemorySpace::kHost ? 0
                            : steps > 2                                  ? steps - 2
                                                                         : 0);
  Tape tape(on_device, *stream, workspace, {.training = false});
  const Tensor gradients = tape.Fetch(sink.arena());
  OrThrow(tape.Finish());
  outcome.gradients = Host(gradients);
  OrThrow(stream->Synchronize(DeadlineAfter(std::chrono::minutes(1))));
  return outcome;
}

// |a - b| / |b|.
double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

// The first gradients of which bits differ, or "".
std::string Difference(const ParameterSet& parameters, const Outcome& a, const Outcome& b) {
  for (int p = 0; p < parameters.size(); ++p) {
    for (std::int64_t e = 0; e < parameters[p].shape.elements(); ++e) {
      const auto at = static_cast<std::size_t>(parameters[p].offset + e);
      if (a.gradients[at] != b.gradients[at]) {
        return parameters[p].name + ", element " + std::to_string(e) + ": " +
               ::testing::PrintToString(a.gradients[at]) + ", " +
               ::testing::PrintToString(b.gradients[at]);
      }
    }
  }
  return "";
}

Tensor Labels(std::int64_t count, std::int64_t classes) {
  Tensor labels(DType::kInt64, {count});
  for (std::int64_t i = 0; i < count; ++i) {
    labels.data<std::int64_t>()[static_cast<std::size_t>(i)] = i * 5 % classes;
  }
  return labels;
}

std::unique_ptr<Model> Images(const std::string& name) {
  auto model = std::make_unique<Model>();
  const std::shared_ptr<ImageModel> images = OrThrow(MakeImageModel(
      name, model->parameters, {.image = {8, 8, 1}, .classes = 3, .hidden = 16, .seed = 1}));
  model->parameters.Build();
  model->inputs = {RandomTensor({6, 8, 8, 1}, 1), Labels(6, 3)};
  model->forward = [images](Tape& tape, std::span<const Tensor> in) -> std::vector<Variable> {
    const Variable logits = images->Logits(tape.Input(in[0]));
    EXPECT_EQ(logits.tensor().dtype(), tape.compute_type());
    return {SoftmaxCrossEntropy(logits, in[1]), logits};
  };
  return model;
}

// `padded`: with its loss of a multiple of 8 scores, 13 of which count.
std::unique_ptr<Model> SmallGpt(bool padded) {
  auto model = std::make_unique<Model>();
  const auto gpt = std::make_shared<Gpt>(
      model->parameters,
      GptOptions{.vocabulary = 13, .length = 8, .layers = 2, .heads = 2, .width = 16, .seed = 1});
  model->parameters.Build();
  Tensor tokens = Labels(16, 13).Reshaped({2, 8});
  model->inputs = {tokens, Labels(16, 13)};
  model->forward = [gpt, padded](Tape& tape, std::span<const Tensor> in) -> std::vector<Variable> {
    const Variable logits = gpt->Logits(tape, in[0]);
    EXPECT_EQ(logits.tensor().dtype(), tape.compute_type());
    return {padded ? gpt->Loss(tape, in[0], in[1]) : SoftmaxCrossEntropy(logits, in[1]), logits};
  };
  return model;
}

// Every operation that knows float32 only, behind and before layers of 16 bits.
std::unique_ptr<Model> Everything() {
  auto model = std::make_unique<Model>();
  ParameterSet& p = model->parameters;
  const auto first = std::make_shared<Dense>(
      p, "first", 8, 16, DenseOptions{.activation = Activation::kTanh, .seed = 1});
  const auto norm = std::make_shared<BatchNorm>(p, "norm", 16);
  const auto second = std::make_shared<Dense>(
      p, "second", 16, 16, DenseOptions{.activation = Activation::kSigmoid, .seed = 2});
  const auto conv = std::make_shared<Conv2D>(p, "conv", 1, 4, Conv2DOptions{.seed = 3});
  const auto last = std::make_shared<Dense>(p, "last", 16, 2, DenseOptions{.seed = 4});
  p.Build();
  model->inputs = {RandomTensor({6, 8}, 1), RandomTensor({6, 2}, 2)};
  model->forward = [=](Tape& tape, std::span<const Tensor> in) -> std::vector<Variable> {
    const Variable x = (*first)(tape.Input(in[0]));
    const Variable y = (*second)((*norm)(x));
    const Variable both = Add(Multiply(x, y), Dropout(y, 0, "drop"));
    EXPECT_EQ(both.tensor().dtype(), DType::kFloat32) << "of types that differ";
    EXPECT_EQ(Add(x, y).tensor().dtype(), tape.compute_type());
    const Variable images = (*conv)(Reshape(Concat({both, Softmax(y)}, 1), {6, 4, 8, 1}));
    const Variable pooled = Concat({GlobalAvgPool2D(images), GlobalAvgPool2D(MaxPool2D(images)),
                                    GlobalAvgPool2D(AvgPool2D(images)), Sum(Sum(images, 1), 1)},
                                   1);
    const Variable out = (*last)(pooled);
    return {Add(MeanSquaredError(out, in[1]),
                SigmoidCrossEntropy(out, Tensor::Of<float>({6, 2}, std::vector<float>(12, 0.5F)))),
            out};
  };
  return model;
}

std::vector<std::pair<std::string, std::unique_ptr<Model>>> Models() {
  std::vector<std::pair<std::string, std::unique_ptr<Model>>> models;
  models.emplace_back("mlp", Images("mlp"));
  models.emplace_back("cnn", Images("cnn"));
  models.emplace_back("gpt", SmallGpt(false));
  models.emplace_back("gpt, padded", SmallGpt(true));
  models.emplace_back("everything", Everything());
  return models;
}

TEST(Precision, MixedGradientsAreThoseOfFloat32UpToRounding) {
  for (auto& [name, model] : Models()) {
    const Outcome exact = Computed(*model, Precision::kFloat32, CpuDevice());
    for (const Precision precision : kMixed) {
      SCOPED_TRACE(name + ", " + std::string(PrecisionName(precision)));
      const Outcome mixed = Computed(*model, precision, CpuDevice());
      ASSERT_EQ(mixed.fetched.size(), exact.fetched.size());
      for (std::size_t i = 0; i < exact.fetched.size(); ++i) {
        EXPECT_LT(Distance(mixed.fetched[i], exact.fetched[i]), 8 * Unit(precision)) << i;
      }
      const double distance = Distance(mixed.gradients, exact.gradients);
      EXPECT_LT(distance, 16 * Unit(precision));
      EXPECT_GT(distance, Unit(precision) / 64) << "as if nothing had been rounded";
    }
  }
}

TEST(Precision, FarDevicesAndReplayedStepsHaveTheCpusBits) {
  for (auto& [name, model] : Models()) {
    if (name == "mlp" || name == "gpt") {
      continue;  // parts of the others
    }
    for (const Precision precision : kMixed) {
      SCOPED_TRACE(name + ", " + std::string(PrecisionName(precision)));
      const Outcome near = Computed(*model, precision, CpuDevice());
      const Outcome far = Computed(*model, precision, MakeFarDevice(), 3);
      if (name != "everything") {  // whose averages of batch norm move
        EXPECT_EQ(far.fetched, near.fetched);
        EXPECT_EQ(Difference(model->parameters, far, near), "");
      } else {
        const Outcome fed = Computed(*model, precision, MakeFarDevice(), 2);
        EXPECT_EQ(Difference(model->parameters, far, fed), "");
      }
    }
  }
}

// Scores that are none change nothing: the same loss, and gradients but for the order of sums.
TEST(Precision, ALossOfPaddedScoresIsThatOfTheScores) {
  for (const Precision precision :
       {Precision::kFloat32, Precision::kMixedBFloat16, Precision::kMixedFloat16}) {
    SCOPED_TRACE(std::string(PrecisionName(precision)));
    const Outcome plain = Computed(*SmallGpt(false), precision, CpuDevice());
    const Outcome padded = Computed(*SmallGpt(true), precision, CpuDevice());
    EXPECT_NEAR(padded.fetched[0][0], plain.fetched[0][0], 1e-6);
    EXPECT_LT(Distance(padded.gradients, plain.gradients), 1e-6 + Unit(precision));
  }
}

// Nor are they labels: of 5 rows, padded to 8.
TEST(Precision, LabelsOfPaddedScoresAreRefused) {
  for (const auto& device : {CpuDevice(), MakeFarDevice()}) {
    for (const Precision precision : {Precision::kFloat32, Precision::kMixedBFloat16}) {
      ParameterSet parameters;
      const Embedding embedding(parameters, "embedding", 5, 4);
      parameters.Build();
      const auto stream = device->MakeStream();
      ParameterSet on_device = parameters.CopyOn(*device, *stream);
      Workspace workspace(device);
      for (const std::int64_t label : {4, 5, 7}) {
        const std::vector<std::int64_t> labels{0, label};
        Tape tape(on_device, *stream, workspace, {.precision = precision});
        (void)embedding.ScoresLoss(tape.Input(RandomTensor({2, 4}, 1)),
                                   Tensor::Of<std::int64_t>({2}, labels));
        const Status status = tape.Finish();
        EXPECT_EQ(status.code(), label < 5 ? StatusCode::kOk : StatusCode::kInvalidArgument);
        EXPECT_THAT(status.message(),
                    HasSubstr(label < 5 ? ""
                                        : "label " + std::to_string(label) +
                                              " of example 1 is not one of 5 classes"));
      }
    }
  }
}

// What came from the host's memory, of 16 bits, is fetched as float32 on any device.
TEST(Precision, TensorsOfTheHostAreFetchedInFloat32) {
  for (const auto& device : {CpuDevice(), MakeFarDevice()}) {
    ParameterSet parameters;
    parameters.Build();
    const auto stream = device->MakeStream();
    Workspace workspace(device);
    Tape tape(parameters, *stream, workspace);
    const std::vector<BFloat16> halves{BFloat16(1.5F), BFloat16(-2.0F)};
    const Tensor fetched = tape.Fetch(Tensor::Of<BFloat16>({2}, halves));
    OrThrow(tape.Finish());
    EXPECT_EQ(Host(fetched), (std::vector<float>{1.5F, -2}));
  }
}

// All parameters are rounded at once, to nearest even, and lie as in the set.
TEST(Precision, ParametersAreRoundedOncePerTape) {
  ParameterSet parameters;
  parameters.Add("a", {3}, [](std::uint64_t e) { return 1 + static_cast<float>(e) * 0x1p-8F; });
  parameters.Add("b", {2}, [](std::uint64_t) { return 0.1F; });
  parameters.Build();
  const auto stream = MakeInlineStream();
  Workspace workspace;
  Tape tape(parameters, *stream, workspace, {.precision = Precision::kMixedBFloat16});
  const ConstElements a = tape.Operand(0, {3});
  const ConstElements b = tape.Operand(1, {2});
  EXPECT_EQ(a.dtype(), DType::kBFloat16);
  EXPECT_EQ(static_cast<const BFloat16*>(b.raw()) - static_cast<const BFloat16*>(a.raw()),
            parameters[1].offset);
  EXPECT_EQ(tape.Operand(0, {3}).raw(), a.raw());
  std::vector<float> values;
  for (std::size_t i = 0; i < 3; ++i) {
    values.push_back(static_cast<float>(static_cast<const BFloat16*>(a.raw())[i]));
  }
  EXPECT_EQ(values, (std::vector<float>{1, 1, 1 + 0x1p-7F}));
  Tape plain(parameters, *stream, workspace);
  EXPECT_EQ(plain.Operand(0, {3}).raw(), parameters.value(0).data()) << "nothing is copied";
}

}  // namespace
}  // namespace cohort::nn
