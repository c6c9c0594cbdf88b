#include "testing/finite_difference.h"

#include <cohort/core/random.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

namespace cohort::testing {

CollectingSink::CollectingSink(const ParameterSet& parameters, float loss_seed)
    : parameters_(parameters), loss_seed_(loss_seed) {
  for (int p = 0; p < parameters.size(); ++p) {
    gradients_.emplace_back(parameters.value(p).size(), 0.0F);
  }
}

std::span<float> CollectingSink::Accumulator(int parameter) {
  EXPECT_TRUE(parameters_[parameter].trainable) << parameters_[parameter].name;
  return gradients_.at(static_cast<std::size_t>(parameter));
}

void CollectingSink::AddSlices(int parameter, const IndexedSlices& slices) {
  ++slices_;
  const std::span<float> table = Accumulator(parameter);
  const auto width = static_cast<std::size_t>(parameters_[parameter].shape[1]);
  for (std::size_t i = 0; i < slices.indices.size(); ++i) {
    for (std::size_t c = 0; c < width; ++c) {
      table[static_cast<std::size_t>(slices.indices[i]) * width + c] +=
          slices.values[i * width + c];
    }
  }
}

void CollectingSink::Ready(int parameter) {
  EXPECT_TRUE(parameters_[parameter].trainable) << parameters_[parameter].name;
  EXPECT_EQ(std::count(ready_.begin(), ready_.end(), parameter), 0)
      << parameters_[parameter].name << " ready twice";
  ready_.push_back(parameter);
}

Tensor RandomTensor(const Shape& shape, std::uint64_t seed, float low, float high) {
  const Philox philox(seed, "test tensor");
  Tensor t(DType::kFloat32, shape);
  std::uint64_t i = 0;
  for (float& x : t.data<float>()) {
    x = low + (high - low) * philox.Uniform(i++);
  }
  return t;
}

Tensor DistinctTensor(const Shape& shape, std::uint64_t seed, float step) {
  Tensor t(DType::kFloat32, shape);
  const auto n = static_cast<std::uint64_t>(shape.elements());
  const Permutation permutation(n, seed);
  std::uint64_t i = 0;
  for (float& x : t.data<float>()) {
    x = (static_cast<float>(permutation(i++)) - static_cast<float>(n / 2) + 0.5F) * step;
  }
  return t;
}

namespace {

std::vector<float> Coefficients(std::int64_t n, std::uint64_t seed) {
  const Tensor t = RandomTensor({n}, seed, 0.5F, 1.5F);
  return {t.data<float>().begin(), t.data<float>().end()};
}

double DotOf(const Tensor& x, std::uint64_t seed) {
  const auto coefficients = Coefficients(x.elements(), seed);
  double sum = 0;
  for (std::size_t i = 0; i < coefficients.size(); ++i) {
    sum += static_cast<double>(coefficients[i]) * x.data<float>()[i];
  }
  return sum;
}

constexpr std::uint64_t kDotSeed = 99;
constexpr std::chrono::seconds kTimeout{30};

}  // namespace

nn::Variable Dot(const nn::Variable& x, std::uint64_t seed) {
  nn::Tape& tape = x.tape();
  const Tensor y = tape.Buffer({});
  tape.stream().Enqueue([in = x.tensor(), y, seed] {
    y.data<float>()[0] = static_cast<float>(DotOf(in, seed));
    return OkStatus();
  });
  return tape.Record(y, {x}, {}, [&tape, seed](nn::BackwardPass& pass) {
    pass.Input(0, [&](FloatSpan dx) {
      tape.stream().Enqueue([dx, dy = FloatSpan(pass.output_gradient()), seed] {
        const auto c = Coefficients(static_cast<std::int64_t>(dx.size()), seed);
        std::transform(c.begin(), c.end(), dx.begin(), [&](float k) { return k * dy[0]; });
        return OkStatus();
      });
    });
  });
}

void ExpectGradients(ParameterSet& parameters, const std::vector<Tensor>& inputs,
                     const Forward& forward, const GradientCheck& check) {
  const auto stream = MakeInlineStream();
  nn::Workspace workspace;
  nn::TapeOptions options = check.tape;
  options.intra_op_threads = std::max(1, options.intra_op_threads);
  const auto record = [&](nn::Tape& tape, std::vector<nn::Variable>& variables) {
    for (const Tensor& input : inputs) {
      variables.push_back(tape.Input(input, true));
    }
    return forward(tape, variables);
  };
  const auto objective = [&] {
    nn::Tape tape(parameters, *stream, workspace, options);
    std::vector<nn::Variable> variables;
    const nn::Variable y = record(tape, variables);
    EXPECT_EQ(tape.Finish(kTimeout), OkStatus());
    return DotOf(y.tensor(), kDotSeed);
  };

  CollectingSink sink(parameters);
  std::vector<Tensor> input_gradients;
  {
    nn::Tape tape(parameters, *stream, workspace, options);
    std::vector<nn::Variable> variables;
    tape.Backward(Dot(record(tape, variables), kDotSeed), sink);
    ASSERT_EQ(tape.Finish(kTimeout), OkStatus());
    for (const nn::Variable& v : variables) {
      input_gradients.push_back(tape.Gradient(v));
    }
  }
  const auto expect = [&](std::span<float> values, std::span<const float> gradient,
                          const std::string& what) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float before = values[i];
      const auto up = static_cast<float>(before + check.epsilon);
      const auto down = static_cast<float>(before - check.epsilon);
      values[i] = up;
      const double high = objective();
      values[i] = down;
      const double low = objective();
      values[i] = before;
      const double numeric = (high - low) / (static_cast<double>(up) - down);
      ASSERT_NEAR(gradient[i], numeric, check.tolerance * std::max(1.0, std::abs(numeric)))
          << what << " element " << i;
    }
  };
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    expect(inputs[i].data<float>(), input_gradients[i].data<float>(), "input " + std::to_string(i));
  }
  std::size_t trainable = 0;
  for (int p = 0; p < parameters.size(); ++p) {
    if (parameters[p].trainable) {
      ++trainable;
      expect(parameters.value(p), sink.gradient(p), parameters[p].name);
    }
  }
  EXPECT_EQ(sink.ready().size(), trainable);
}

}  // namespace cohort::testing
