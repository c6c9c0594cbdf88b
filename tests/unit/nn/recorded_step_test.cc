// Replayed steps against fed ones, bit for bit, on a device whose memory the host cannot reach.

#include <cohort/nn/recorded_step.h>

#include <cohort/device/ahead_copy.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/models.h>
#include <cohort/optim/optimizers.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "testing/far_device.h"
#include "testing/finite_difference.h"

namespace cohort::nn {
namespace {

using ::cohort::testing::MakeFarDevice;
using ::cohort::testing::RandomTensor;

constexpr std::chrono::seconds kTimeout{30};

// Gradients in the device's memory; the same place for a parameter, unless they are moved.
class DeviceSink final : public GradientSink {
 public:
  DeviceSink(const ParameterSet& parameters, Device& device)
      : parameters_(parameters), device_(device) {
    Move();
  }
  void Move() {
    const std::size_t bytes = parameters_.all().size_bytes();
    arena_ = Tensor(DType::kFloat32, {static_cast<std::int64_t>(parameters_.all().size())},
                    device_.Allocate(bytes, "gradients"), device_.memory_space());
  }
  std::span<float> Accumulator(int parameter) override {
    return all().subspan(static_cast<std::size_t>(parameters_[parameter].offset),
                         parameters_.value(parameter).size());
  }
  void AddSlices(int, const IndexedSlices&) override { FAIL() << "no rows here"; }
  void Ready(int parameter) override {
    ready.push_back(parameter);
    if (on_ready) {
      on_ready(parameter);
    }
  }
  std::int64_t early_bytes() const override { return early; }
  float loss_seed() const override { return seed; }
  std::span<float> all() const { return arena_.data<float>(); }

  float seed = 4;
  std::int64_t early = 0;
  std::vector<int> ready;
  std::function<void(int parameter)> on_ready;

 private:
  const ParameterSet& parameters_;
  Device& device_;
  Tensor arena_;
};

// A model on a device, trained by SGD. `dropout`: its step depends on the step's number.
struct Bench {
  explicit Bench(bool with_dropout = false)
      : dropout(with_dropout),
        model(OrThrow(
            MakeImageModel("mlp", parameters, {.image = {4, 4, 1}, .classes = 3, .hidden = 8}))) {
    parameters.Build();
    on_device.emplace(parameters.CopyOn(*device, *stream));
    EXPECT_EQ(stream->Synchronize(DeadlineAfter(kTimeout)), OkStatus());
    sink.emplace(*on_device, *device);
    step.emplace(*on_device, workspace);
  }

  // Memory goes when nothing on the stream uses it.
  ~Bench() { EXPECT_EQ(stream->Synchronize(DeadlineAfter(kTimeout)), OkStatus()); }

  std::vector<Variable> Body(Tape& tape, std::span<const Tensor> in) const {
    Variable images = tape.Input(in[0]);
    if (dropout) {
      images = Dropout(images, 0.5F, "drop");
    }
    const Variable logits = model->Logits(images);
    return {SoftmaxCrossEntropy(logits, in[1]), logits};
  }

  void Update(std::int64_t number) {
    const UpdatePart part{.value = on_device->all(),
                          .gradient = sink->all(),
                          .slots = {},
                          .gradient_scale = 1.0F / sink->seed};
    workspace.KernelsFor(1).Update(*stream, Sgd({.learning_rate = 0.1})->RuleAt(number),
                                   std::span(&part, 1));
  }

  // Loss and logits of the step, which is fed anew if `record` is not set.
  std::vector<std::vector<float>> Train(std::int64_t number, const std::vector<Tensor>& inputs,
                                        bool record) {
    const TapeOptions options{.step = number, .intra_op_threads = 1};
    std::vector<Tensor> out;
    if (record) {
      out = OrThrow(step->Run(
          *stream, *sink, options, inputs,
          [this](Tape& tape, std::span<const Tensor> in) { return Body(tape, in); }, kTimeout));
    } else {
      Tape tape(*on_device, *stream, workspace, options);
      const std::vector<Variable> variables = Body(tape, inputs);
      tape.Backward(variables.front(), *sink);
      for (const Variable& variable : variables) {
        out.push_back(tape.Fetch(variable));
      }
      EXPECT_EQ(tape.Finish(kTimeout), OkStatus());
    }
    Update(number);
    std::vector<std::vector<float>> values;
    for (const Tensor& tensor : out) {
      values.emplace_back(tensor.data<float>().begin(), tensor.data<float>().end());
    }
    return values;
  }

  const bool dropout;
  std::shared_ptr<Device> device = MakeFarDevice();
  std::unique_ptr<Stream> stream = device->MakeStream();
  Workspace workspace{device};
  ParameterSet parameters;
  std::unique_ptr<ImageModel> model;
  std::optional<ParameterSet> on_device;
  std::optional<DeviceSink> sink;
  std::optional<RecordedStep> step;
};

std::vector<Tensor> Batch(std::int64_t examples, std::uint64_t seed) {
  Tensor labels(DType::kInt64, {examples});
  for (std::int64_t i = 0; i < examples; ++i) {
    labels.data<std::int64_t>()[static_cast<std::size_t>(i)] =
        (i + static_cast<std::int64_t>(seed)) % 3;
  }
  return {RandomTensor({examples, 4, 4, 1}, seed), labels};
}

// Other data in every step, and a short batch in between, which has a recording of its own.
TEST(RecordedStep, HasTheBitsOfFedSteps) {
  Bench recorded;
  Bench fed;
  for (int i = 1; i <= 12; ++i) {
    const std::vector<Tensor> batch = Batch(i % 4 == 0 ? 2 : 5, static_cast<std::uint64_t>(i));
    recorded.sink->ready.clear();
    fed.sink->ready.clear();
    ASSERT_EQ(recorded.Train(i, batch, true), fed.Train(i, batch, false)) << "step " << i;
    ASSERT_EQ(recorded.sink->ready, fed.sink->ready) << "step " << i;
  }
  EXPECT_EQ(recorded.step->replays(), 12 - 2 - 2) << "two of each size are fed";
}

// In parts, for who begins with gradients while others are computed.
TEST(RecordedStep, InPartsHasTheBitsOfFedSteps) {
  Bench recorded;
  Bench fed;
  recorded.sink->early = 1;
  for (int i = 1; i <= 12; ++i) {
    const std::vector<Tensor> batch = Batch(i % 4 == 0 ? 2 : 5, static_cast<std::uint64_t>(i));
    recorded.sink->ready.clear();
    fed.sink->ready.clear();
    ASSERT_EQ(recorded.Train(i, batch, true), fed.Train(i, batch, false)) << "step " << i;
    ASSERT_EQ(recorded.sink->ready, fed.sink->ready) << "step " << i;
  }
  EXPECT_EQ(recorded.step->replays(), 12 - 2 - 2);
}

// What is put on the stream when the first gradient is Ready finds the last one not yet written,
// unless nobody asked for the step in parts.
TEST(RecordedStep, SaysReadyBehindThePartThatWroteIt) {
  for (const bool early : {true, false}) {
    SCOPED_TRACE(early);
    Bench bench;
    bench.sink->early = early ? 1 : 0;
    for (int i = 1; i <= 3; ++i) {
      bench.sink->ready.clear();
      bench.Train(i, Batch(5, static_cast<std::uint64_t>(i)), true);
    }
    ASSERT_EQ(bench.step->replays(), 1);
    const int first = bench.sink->ready.front();
    const int last = bench.sink->ready.back();
    const auto value = [&bench](int parameter) {
      const FloatSpan gradient = bench.sink->Accumulator(parameter);
      return *reinterpret_cast<const float*>(testing::BytesOf(
          *bench.device, reinterpret_cast<std::byte*>(gradient.data()), sizeof(float)));
    };
    constexpr float kBefore = 77;
    bench.workspace.KernelsFor(1).Fill(*bench.stream, bench.sink->all(), kBefore);
    std::vector<float> seen;
    bench.sink->on_ready = [&](int parameter) {
      if (parameter == first) {
        bench.stream->Enqueue([&seen, &value, first, last] {
          seen = {value(first), value(last)};
          return OkStatus();
        });
      }
    };
    bench.Train(4, Batch(5, 4), true);
    EXPECT_EQ(bench.step->replays(), 2);
    ASSERT_EQ(seen.size(), 2U);
    EXPECT_NE(seen[0], kBefore);
    EXPECT_EQ(seen[1] == kBefore, early);
    EXPECT_NE(value(last), kBefore);
  }
}

// A copy in memory that a device copies from by itself.
std::vector<Tensor> PageLocked(Device& device, const std::vector<Tensor>& batch) {
  std::vector<Tensor> copies;
  for (const Tensor& tensor : batch) {
    copies.emplace_back(tensor.dtype(), tensor.shape(),
                        device.AllocateHost(tensor.bytes(), "a batch"));
    std::copy_n(tensor.raw(), tensor.bytes(), copies.back().raw());
    EXPECT_TRUE(device.PageLocked(copies.back().raw()));
    EXPECT_FALSE(device.PageLocked(tensor.raw()));
  }
  return copies;
}

// Batches in page-locked memory are copied from where they are, wherever each lies; those of other
// memory have a recording of their own.
TEST(RecordedStep, TakesPageLockedBatchesFromWhereTheyAre) {
  Bench recorded;
  Bench fed;
  std::vector<std::vector<Tensor>> kept;  // so that no two lie in one place
  for (int i = 1; i <= 10; ++i) {
    const std::vector<Tensor> batch = Batch(5, static_cast<std::uint64_t>(i));
    kept.push_back(i % 3 == 0 ? batch : PageLocked(*recorded.device, batch));
    ASSERT_EQ(recorded.Train(i, kept.back(), true), fed.Train(i, batch, false)) << "step " << i;
  }
  EXPECT_EQ(recorded.step->replays(), 10 - 2 - 2);
}

// What goes along with a batch in the device's memory is taken from there: the host's may hold
// anything.
TEST(RecordedStep, TakesCopiesThatWereMadeAhead) {
  Bench recorded;
  Bench fed;
  const auto stream = recorded.device->MakeStream();
  for (int i = 1; i <= 6; ++i) {
    const std::vector<Tensor> batch = Batch(5, static_cast<std::uint64_t>(i));
    std::vector<Tensor> ahead = PageLocked(*recorded.device, batch);
    std::vector<std::shared_ptr<AheadCopy>> copies;
    for (Tensor& tensor : ahead) {
      copies.push_back(std::make_shared<AheadCopy>(
          recorded.device, recorded.device->Allocate(tensor.bytes(), "a batch")));
      recorded.device->Copy(*stream, tensor.raw(), copies.back()->memory(), tensor.bytes());
      copies.back()->Begun(stream->Record());
      ASSERT_EQ(stream->Synchronize(DeadlineAfter(kTimeout)), OkStatus());
      std::memset(tensor.raw(), 0xff, tensor.bytes());  // NaN, and no class
      tensor = tensor.WithTwin(copies.back());
    }
    ASSERT_EQ(recorded.Train(i, ahead, true), fed.Train(i, batch, false)) << "step " << i;
    EXPECT_TRUE(copies[0]->used() && copies[1]->used());
  }
  EXPECT_EQ(recorded.step->replays(), 6 - 2);
}

TEST(RecordedStep, IsRecordedAnewWhereGradientsMove) {
  Bench recorded;
  Bench fed;
  for (int i = 1; i <= 8; ++i) {
    const std::vector<Tensor> batch = Batch(5, static_cast<std::uint64_t>(i));
    if (i == 5) {
      ASSERT_EQ(recorded.stream->Synchronize(DeadlineAfter(kTimeout)), OkStatus());
      recorded.sink->Move();
    }
    ASSERT_EQ(recorded.Train(i, batch, true), fed.Train(i, batch, false)) << "step " << i;
  }
  EXPECT_EQ(recorded.step->replays(), 6);
}

TEST(RecordedStep, OfAnotherWeightIsAnotherRecording) {
  Bench recorded;
  Bench fed;
  for (int i = 1; i <= 8; ++i) {
    recorded.sink->seed = fed.sink->seed = i % 2 == 0 ? 4 : 8;
    const std::vector<Tensor> batch = Batch(5, static_cast<std::uint64_t>(i));
    ASSERT_EQ(recorded.Train(i, batch, true), fed.Train(i, batch, false)) << "step " << i;
  }
  EXPECT_EQ(recorded.step->replays(), 4);
}

TEST(RecordedStep, IsNeverReplayedWhereItDependsOnTheStep) {
  Bench recorded(true);
  Bench fed(true);
  std::vector<float> last;
  for (int i = 1; i <= 6; ++i) {
    const std::vector<Tensor> batch = Batch(5, 1);
    const auto got = recorded.Train(i, batch, true);
    ASSERT_EQ(got, fed.Train(i, batch, false)) << "step " << i;
    EXPECT_NE(got[1], last);
    last = got[1];
  }
  EXPECT_EQ(recorded.step->replays(), 0);
}

// Padded batches have another weight in nearly every step: two are kept.
TEST(RecordedStep, KeepsAFewRecordingsOnly) {
  Bench bench;
  std::int64_t after_some = 0;
  for (int i = 1; i <= 60; ++i) {
    bench.sink->seed = static_cast<float>(i);
    bench.Train(i, Batch(5, 1), true);
    if (i == 4) {
      after_some = bench.workspace.bytes();
    }
  }
  EXPECT_EQ(bench.workspace.bytes(), after_some);
}

TEST(RecordedStep, IsFedWhereGradientsMoveAllTheTime) {
  Bench recorded;
  Bench fed;
  for (int i = 1; i <= 12; ++i) {
    const std::vector<Tensor> batch = Batch(5, static_cast<std::uint64_t>(i));
    ASSERT_EQ(recorded.stream->Synchronize(DeadlineAfter(kTimeout)), OkStatus());
    recorded.sink->Move();
    ASSERT_EQ(recorded.Train(i, batch, true), fed.Train(i, batch, false)) << "step " << i;
  }
  EXPECT_EQ(recorded.step->replays(), 4);
}

TEST(RecordedStep, SurvivesAnEvaluationWithOtherThreads) {
  Bench bench;
  for (int i = 1; i <= 4; ++i) {
    bench.Train(i, Batch(5, 1), true);
  }
  Kernels& table = bench.workspace.KernelsFor(1);
  EXPECT_EQ(&bench.workspace.KernelsFor(2), &table) << "graphs use its memory";
}

TEST(RecordedStep, FailsWithTheStreamsError) {
  Bench bench;
  std::vector<Tensor> batch = Batch(5, 1);
  for (int i = 1; i <= 3; ++i) {
    bench.Train(i, batch, true);
  }
  ASSERT_EQ(bench.step->replays(), 1);
  batch[1].data<std::int64_t>()[2] = 17;
  const auto failed = bench.step->Run(
      *bench.stream, *bench.sink, {.step = 4, .intra_op_threads = 1}, batch,
      [&](Tape& tape, std::span<const Tensor> in) { return bench.Body(tape, in); }, kTimeout);
  EXPECT_FALSE(failed.ok());
  EXPECT_NE(failed.status().message().find("17"), std::string::npos) << failed.status().ToString();
}

}  // namespace
}  // namespace cohort::nn
