// What operations compute, as plain loops in double, and a place to run one.
#pragma once

#include <cohort/nn/tape.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include "testing/finite_difference.h"

namespace cohort::nn {

using Doubles = std::vector<double>;

inline Doubles AsDoubles(const Tensor& t) {
  return {t.data<float>().begin(), t.data<float>().end()};
}

inline void ExpectNear(std::span<const float> got, const Doubles& want, double tolerance = 1e-5) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(got[i], want[i], tolerance * std::max(1.0, std::abs(want[i]))) << "element " << i;
  }
}

// A stream, memory and parameters for one test.
struct Bench {
  ParameterSet parameters;
  std::unique_ptr<Stream> stream = MakeInlineStream();
  Workspace workspace;

  // The tensor that `forward` makes of the inputs.
  Tensor Run(const std::vector<Tensor>& inputs, const testing::Forward& forward,
             TapeOptions options = {}) {
    if (!parameters.built()) {
      parameters.Build();
    }
    options.intra_op_threads = std::max(1, options.intra_op_threads);
    Tape tape(parameters, *stream, workspace, options);
    std::vector<Variable> variables;
    for (const Tensor& input : inputs) {
      variables.push_back(tape.Input(input));
    }
    const Variable y = forward(tape, variables);
    EXPECT_EQ(tape.Finish(std::chrono::seconds(30)), OkStatus());
    return y.tensor();
  }
};

// Places the window of output `o` begins at, with the padding rule of `same` or `valid`.
inline std::int64_t WindowStart(std::int64_t o, std::int64_t size, std::int64_t window,
                                std::int64_t stride, bool same) {
  const std::int64_t out = (size + stride - 1) / stride;
  const std::int64_t pad =
      same ? std::max<std::int64_t>((out - 1) * stride + window - size, 0) / 2 : 0;
  return o * stride - pad;
}
inline std::int64_t WindowCount(std::int64_t size, std::int64_t window, std::int64_t stride,
                                bool same) {
  return same ? (size + stride - 1) / stride : (size - window) / stride + 1;
}

}  // namespace cohort::nn
