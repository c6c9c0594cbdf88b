// The model layer on a device of which only its kernels reach the memory: every operation, forward
// and backward, gives the CPU's bits, and the host never follows an address of the device.

#include <cohort/device/device.h>
#include <cohort/nn/bags.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/models.h>
#include <cohort/nn/operations.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "oracles.h"
#include "testing/far_device.h"

namespace cohort::nn {
namespace {

using testing::MakeFarDevice;
using testing::RandomTensor;

std::span<const std::byte> BytesOf(ConstFloatSpan span) { return std::as_bytes(span); }

// Gradients in a device's memory.
class DeviceSink final : public GradientSink {
 public:
  DeviceSink(const ParameterSet& parameters, Device& device, Stream& stream, Kernels& kernels)
      : parameters_(parameters) {
    for (int p = 0; p < parameters.size(); ++p) {
      const Shape& shape = parameters[p].shape;
      gradients_.emplace_back(
          DType::kFloat32, shape,
          device.Allocate(static_cast<std::size_t>(shape.elements()) * sizeof(float), "gradients"),
          device.memory_space());
      kernels.Fill(stream, Floats(gradients_.back()), 0.0F);
    }
  }
  std::span<float> Accumulator(int parameter) override { return Floats(gradient(parameter)); }
  void AddSlices(int parameter, const IndexedSlices& slices) override {
    const auto row = static_cast<std::size_t>(parameters_[parameter].shape[1]);
    for (std::size_t k = 0; k < slices.values.size(); ++k) {
      Accumulator(parameter)[static_cast<std::size_t>(slices.indices[k / row]) * row + k % row] +=
          slices.values[k];
    }
  }
  void Ready(int /*parameter*/) override {}
  float loss_seed() const override { return 4.0F; }
  const Tensor& gradient(int parameter) const {
    return gradients_[static_cast<std::size_t>(parameter)];
  }

 private:
  const ParameterSet& parameters_;
  std::vector<Tensor> gradients_;
};

// Declares parameters, and returns what makes a loss of them.
using Forward = std::function<Variable(Tape&)>;
struct Case {
  const char* name;
  std::function<Forward(ParameterSet&)> make;
  friend std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }
};

Tensor Ids(const Shape& shape, std::int64_t below) {
  std::vector<std::int64_t> ids(static_cast<std::size_t>(shape.elements()));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<std::int64_t>(i * 7 % static_cast<std::size_t>(below));
  }
  return Tensor::Of<std::int64_t>(shape, ids);
}

Variable SquareLoss(const Variable& x) { return MeanSquaredError(x, RandomTensor(x.shape(), 99)); }

Forward ImageLoss(const char* name, ParameterSet& parameters) {
  const std::shared_ptr<ImageModel> model =
      OrThrow(MakeImageModel(name, parameters, {.image = {8, 8, 2}, .classes = 5, .hidden = 24}));
  return [model](Tape& tape) {
    return SoftmaxCrossEntropy(model->Logits(tape.Input(RandomTensor({6, 8, 8, 2}, 1))),
                               Ids({6}, 5));
  };
}

Forward EmbeddingLoss(bool sparse, ParameterSet& parameters) {
  const Embedding embedding(parameters, "words", 11, 6, {.sparse_gradient = sparse});
  const Dense dense(parameters, "dense", 18, 4);
  return [=](Tape& tape) {
    return SquareLoss(dense(Reshape(embedding(tape, Ids({5, 3}, 11)), {5, 18})));
  };
}

const Case kCases[] = {
    {"linear", [](ParameterSet& p) { return ImageLoss("linear", p); }},
    {"mlp", [](ParameterSet& p) { return ImageLoss("mlp", p); }},
    {"cnn", [](ParameterSet& p) { return ImageLoss("cnn", p); }},
    {"embedding", [](ParameterSet& p) { return EmbeddingLoss(false, p); }},
    {"sparse_embedding", [](ParameterSet& p) { return EmbeddingLoss(true, p); }},
    {"bags",
     [](ParameterSet& p) -> Forward {
       const Embedding words(p, "words", 11, 6);
       return [=](Tape& tape) {
         const std::vector<std::int64_t> splits = {0, 2, 2, 9};
         const std::vector<float> weights = {0.5F, 2, 1, 3, 0.25F, 4, 1, 0.125F, 3};
         std::vector<Variable> bags;
         for (const Combiner combiner : {Combiner::kSum, Combiner::kMean, Combiner::kSqrtN}) {
           bags.push_back(Combine(words(tape, Ids({9}, 11)), Tensor::Of<std::int64_t>({4}, splits),
                                  combiner, Tensor::Of<float>({9}, weights)));
         }
         return SquareLoss(Concat(bags, 1));
       };
     }},
    {"batch_norm",
     [](ParameterSet& p) -> Forward {
       const Dense first(p, "first", 7, 9);
       const BatchNorm norm(p, "norm", 9);
       return [=](Tape& tape) {
         return SquareLoss(norm(first(tape.Input(RandomTensor({12, 7}, 2)))));
       };
     }},
    {"layer_norm",
     [](ParameterSet& p) -> Forward {
       const Dense first(p, "first", 7, 9);
       const LayerNorm norm(p, "norm", 9);
       return [=](Tape& tape) {
         return SquareLoss(norm(first(tape.Input(RandomTensor({12, 7}, 2)))));
       };
     }},
    {"dropout",
     [](ParameterSet& p) -> Forward {
       const Dense first(p, "first", 7, 9, {.activation = Activation::kRelu});
       const Dense second(p, "second", 9, 3);
       return [=](Tape& tape) {
         return SquareLoss(
             second(Dropout(first(tape.Input(RandomTensor({12, 7}, 2))), 0.5F, "drop")));
       };
     }},
    {"activations",
     [](ParameterSet& p) -> Forward {
       const Dense first(p, "first", 7, 8, {.activation = Activation::kGelu});
       const Dense second(p, "second", 8, 8, {.activation = Activation::kTanh});
       return [=](Tape& tape) {
         const Variable x = first(tape.Input(RandomTensor({4, 7}, 2)));
         return SquareLoss(Softmax(Add(Multiply(Sigmoid(x), second(x)), Gelu(Relu(x)))));
       };
     }},
    {"shapes",
     [](ParameterSet& p) -> Forward {
       const Dense first(p, "first", 6, 12);
       return [=](Tape& tape) {
         const Variable x = Reshape(first(tape.Input(RandomTensor({5, 6}, 2))), {5, 4, 3});
         return SquareLoss(Concat({DotInteraction(Sum(x, 1), x), Flatten(x)}, 1));
       };
     }},
    {"pools",
     [](ParameterSet& p) -> Forward {
       const Conv2D conv(p, "conv", 4, 6, {.stride = {2, 2}, .groups = 2});
       return [=](Tape& tape) {
         const Variable x = conv(tape.Input(RandomTensor({3, 9, 9, 4}, 2)));
         return SquareLoss(GlobalAvgPool2D(MaxPool2D(AvgPool2D(x, {.stride = {1, 1}}))));
       };
     }},
    {"soft_labels",
     [](ParameterSet& p) -> Forward {
       const Dense first(p, "first", 6, 3);
       return [=](Tape& tape) {
         std::vector<float> targets(15, 1.0F / 3);
         return SoftmaxCrossEntropy(first(tape.Input(RandomTensor({5, 6}, 2))),
                                    Tensor::Of<float>({5, 3}, targets), RandomTensor({5}, 3));
       };
     }},
    {"sigmoid_loss",
     [](ParameterSet& p) -> Forward {
       const Dense first(p, "first", 6, 3);
       return [=](Tape& tape) {
         std::vector<float> targets(15, 0.25F);
         return SigmoidCrossEntropy(first(tape.Input(RandomTensor({5, 6}, 2))),
                                    Tensor::Of<float>({5, 3}, targets));
       };
     }},
};

// Loss, gradients and parameters after two passes, in the host's memory.
std::vector<std::vector<float>> RunOn(const std::shared_ptr<Device>& device, const Case& c) {
  ParameterSet declared;
  const Forward forward = c.make(declared);
  declared.Build();
  const auto stream = device->MakeStream();
  ParameterSet parameters = declared.CopyOn(*device, *stream);
  std::vector<std::vector<float>> results;
  const auto add = [&](Tape& tape, const Tensor& tensor) {
    const Tensor copy = tape.Fetch(tensor);
    EXPECT_EQ(tape.Finish(), OkStatus());
    const ConstFloatSpan values = Floats(copy);
    results.emplace_back(values.begin(), values.end());
  };
  {
    Workspace workspace(device);
    Kernels& kernels = workspace.KernelsFor(1);
    for (int step = 1; step <= 2; ++step) {
      DeviceSink sink(parameters, *device, *stream, kernels);
      Tape tape(parameters, *stream, workspace, {.seed = 3, .step = step, .intra_op_threads = 1});
      const Variable loss = forward(tape);
      tape.Backward(loss, sink);
      EXPECT_EQ(tape.Finish(), OkStatus());
      results.push_back({loss.value()});
      for (int p = 0; p < parameters.size(); ++p) {
        add(tape, sink.gradient(p));
        add(tape, Tensor(DType::kFloat32, parameters[p].shape,
                         std::shared_ptr<std::byte>(
                             std::shared_ptr<std::byte>(),
                             reinterpret_cast<std::byte*>(parameters.value(p).data())),
                         device->memory_space()));
      }
    }
  }
  return results;
}

class FarModel : public ::testing::TestWithParam<Case> {};

TEST_P(FarModel, HasTheCpusBits) {
  const auto expected = RunOn(CpuDevice(), GetParam());
  const auto got = RunOn(MakeFarDevice(), GetParam());
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].size(), expected[i].size());
    EXPECT_EQ(
        std::memcmp(BytesOf(got[i]).data(), BytesOf(expected[i]).data(), BytesOf(got[i]).size()), 0)
        << "result " << i << ": " << got[i][0] << " and " << expected[i][0];
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, FarModel, ::testing::ValuesIn(kCases),
                         [](const ::testing::TestParamInfo<Case>& c) {
                           return std::string(c.param.name);
                         });

// What lies in page-locked memory is copied from there; the rest goes through memory of the
// workspace.
TEST(FarInputs, ArePlacedWithoutACopyOnTheHostWhereTheyArePageLocked) {
  const auto device = MakeFarDevice();
  ParameterSet declared;
  const Dense dense(declared, "dense", 300, 2);
  declared.Build();
  const auto stream = device->MakeStream();
  ParameterSet parameters = declared.CopyOn(*device, *stream);
  const Tensor plain = RandomTensor({40, 300}, 1);
  Tensor locked(plain.dtype(), plain.shape(), device->AllocateHost(plain.bytes(), "a batch"));
  std::copy_n(plain.raw(), plain.bytes(), locked.raw());
  std::vector<std::vector<float>> results;
  std::vector<std::int64_t> taken;
  for (const Tensor& input : {plain, locked}) {
    Workspace workspace(device);
    Tape tape(parameters, *stream, workspace, {.intra_op_threads = 1});
    const Tensor out = tape.Fetch(dense(tape.Input(input)));
    ASSERT_EQ(tape.Finish(), OkStatus());
    results.emplace_back(out.data<float>().begin(), out.data<float>().end());
    taken.push_back(workspace.bytes());
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_LE(taken[1] + static_cast<std::int64_t>(plain.bytes()), taken[0]);
}

TEST(FarModelErrors, ALabelOutOfRangeIsFinishsStatus) {
  const auto device = MakeFarDevice();
  ParameterSet declared;
  const Dense dense(declared, "dense", 3, 2);
  declared.Build();
  const auto stream = device->MakeStream();
  ParameterSet parameters = declared.CopyOn(*device, *stream);
  Workspace workspace(device);
  Tape tape(parameters, *stream, workspace, {.intra_op_threads = 1});
  static_cast<void>(SoftmaxCrossEntropy(dense(tape.Input(RandomTensor({4, 3}, 1))), Ids({4}, 11)));
  EXPECT_EQ(tape.Finish().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace cohort::nn
