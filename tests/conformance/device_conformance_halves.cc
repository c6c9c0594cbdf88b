// Kernels and plans with operands of 16 bits: what float32's come to on the same values, rounded
// once.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "device_conformance.h"

namespace cohort::testing {
namespace {

TEST_P(DeviceHalves, CopiesRoundToNearestEven) {
  for (const std::int64_t n : sizes()) {
    SCOPED_TRACE(n);
    for (const DType half : kHalves) {
      SCOPED_TRACE(std::string(DTypeName(half)));
      std::vector<float> x = RandomFloats(n, 1);
      for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] *= std::ldexp(1.0F, static_cast<int>(i % 40) - 20);
      }
      const auto doubles = [](const std::vector<float>& floats) {
        return std::vector<double>(floats.begin(), floats.end());
      };
      const std::vector<double> rounded = doubles(RoundedTo(half, x));
      Check(0,
            [&](const Call& c) {
              const Elements narrow = c.memory.Out(n, half);
              c.kernels.Copy(c.stream, c.memory.In(x), narrow);
              c.kernels.Copy(c.stream, narrow, c.memory.Out(n));
              c.kernels.Copy(c.stream, narrow, c.memory.Out(n, half));
            },
            {rounded, rounded, rounded});
    }
  }
  // Halfway: 1 + 2^-8 and 1 + 3 * 2^-8 of bfloat16, 1 + 2^-11 and 1 + 3 * 2^-11 of float16; and
  // what float16 does not reach.
  Check(0,
        [](const Call& c) {
          c.kernels.Copy(c.stream, c.memory.In({1 + 0x1p-8F, 1 + 0x1.8p-7F}),
                         c.memory.Out(2, DType::kBFloat16));
          c.kernels.Copy(
              c.stream,
              c.memory.In({1 + 0x1p-11F, 1 + 0x1.8p-10F, 65504, 65519, 65520, -1e30F, 0x1p-25F}),
              c.memory.Out(7, DType::kFloat16));
        },
        {{1, 1 + 0x1p-6}, {1, 1 + 0x1p-9, 65504, 65504, INFINITY, -INFINITY, 0}});
}

TEST_P(DeviceHalves, SumsActivationsAndDropout) {
  for (const std::int64_t n : sizes()) {
    SCOPED_TRACE(n);
    CheckHalves(0, [&](const Call& c, const Maker& m) {
      const Elements a = m.In(n, 1);
      const Elements b = m.In(n, 2);
      c.kernels.Add(c.stream, a, b, m.Out(n));
      const Elements both = m.InOut(n, 3);
      c.kernels.Add(c.stream, both, both, both);
      // To float32, which loses nothing.
      c.kernels.Add(c.stream, c.memory.In(n, 4), b, c.memory.Out(n));
      c.kernels.Dropout(c.stream, {.rate = 0.25F, .key = 7, .step = 1, .first = 3}, a, m.Out(n));
      c.kernels.Dropout(c.stream, {.rate = 0.25F, .key = 7, .step = 1, .first = 4}, a, m.Out(n));
    });
    for (const Activation f :
         {Activation::kRelu, Activation::kGelu, Activation::kSigmoid, Activation::kTanh}) {
      SCOPED_TRACE(static_cast<int>(f));
      CheckHalves(2e-6, [&](const Call& c, const Maker& m) {
        const bool of_x = f == Activation::kGelu;
        const Elements x = m.In(n, 1, 3);
        c.kernels.Activate(c.stream, f, x, m.Out(n));
        c.kernels.ActivateBackward(c.stream, f, of_x ? x : Elements(), of_x ? Elements() : x,
                                   m.In(n, 2), m.Out(n));
      });
    }
  }
}

TEST_P(DeviceHalves, SumsOverRows) {
  for (const RowsOf& size : shapes()) {
    SCOPED_TRACE(std::to_string(size.rows) + " x " + std::to_string(size.columns));
    const std::int64_t n = size.rows * size.columns;
    CheckHalves(4e-6 * std::sqrt(static_cast<double>(size.rows) + 1),
                [&](const Call& c, const Maker& m) {
                  c.kernels.SumRows(c.stream, size, m.In(n, 1), c.memory.Out(size.columns));
                  c.kernels.ReluBackwardSumRows(c.stream, size, m.In(n, 2), m.InOut(n, 3),
                                                c.memory.Out(size.columns));
                  c.kernels.ReluBackwardSumRows(c.stream, size, m.In(n, 2), m.InOut(n, 3), {});
                });
  }
}

TEST_P(DeviceHalves, MomentsAndSumsOverAMiddleAxis) {
  for (const RowsOf& size : shapes()) {
    SCOPED_TRACE(std::to_string(size.rows) + " x " + std::to_string(size.columns));
    const std::int64_t n = size.rows * size.columns;
    CheckHalves(4e-6 * std::sqrt(static_cast<double>(size.rows) + 1),
                [&](const Call& c, const Maker& m) {
                  c.kernels.Moments(c.stream, size, m.In(n, 1), c.memory.Out(size.columns),
                                    c.memory.Out(size.columns));
                  c.kernels.SumSquaresRows(c.stream, size, m.In(n, 2), c.memory.In(size.columns, 3),
                                           c.memory.Out(size.columns));
                });
    // Short sums and long ones.
    const MiddleOf middle{.outer = 2, .middle = size.rows, .inner = size.columns};
    CheckHalves(4e-6 * std::sqrt(static_cast<double>(size.rows) + 1), [&](const Call& c,
                                                                          const Maker& m) {
      c.kernels.SumMiddle(c.stream, middle, 0.3F, m.In(2 * n, 1), c.memory.Out(2 * size.columns));
      c.kernels.SumMiddleBackward(c.stream, middle, 0.3F, c.memory.In(2 * size.columns, 2),
                                  m.Out(2 * n));
    });
  }
}

// With relu, and what is added: forward and both gradients.
TEST_P(DeviceHalves, BatchNormAndItsGradient) {
  for (const RowsOf& size : shapes()) {
    const auto [rows, columns] = size;
    const std::int64_t n = rows * columns;
    for (const bool relu : {false, true}) {
      for (const bool adds : {false, true}) {
        SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns) +
                     (relu ? ", relu" : "") + (adds ? ", added" : ""));
        CheckHalves(1e-5, [&, rows = rows, columns = columns](const Call& c, const Maker& m) {
          NormArguments norm{.rows = rows,
                             .columns = columns,
                             .x = m.In(n, 1),
                             .scale = c.memory.In(columns, 2),
                             .offset = c.memory.In(columns, 3),
                             .mean = c.memory.In(columns, 4),
                             .inverse_deviation = c.memory.In(columns, 5),
                             .y = m.Out(n),
                             .activation = relu ? Activation::kRelu : Activation::kNone};
          if (adds) {
            norm.added = m.In(n, 6);
          }
          c.kernels.BatchNorm(c.stream, norm);
        });
        CheckHalves(1e-5 + 4e-6 * std::sqrt(static_cast<double>(rows) + 1),
                    [&, rows = rows, columns = columns](const Call& c, const Maker& m) {
                      NormBackwardArguments n_backward{
                          .rows = rows,
                          .columns = columns,
                          .x = m.In(n, 1),
                          .scale = c.memory.In(columns, 2),
                          .mean = c.memory.In(columns, 3),
                          .inverse_deviation = c.memory.In(columns, 4),
                          .dy = m.InOut(n, 5),
                          .activation = relu ? Activation::kRelu : Activation::kNone,
                          .offset = c.memory.In(columns, 7)};
                      if (adds && relu) {
                        n_backward.y = m.In(n, 8);
                      }
                      c.kernels.BatchNormBackwardSums(c.stream, n_backward,
                                                      c.memory.Out(2 * columns));
                      if (adds && relu) {
                        n_backward.activation = Activation::kNone;
                      }
                      n_backward.dx = m.Out(n);
                      c.kernels.BatchNormBackward(c.stream, n_backward, c.memory.In(2 * columns, 6),
                                                  c.memory.In({40.0F}));
                    });
      }
    }
  }
}

TEST_P(DeviceHalves, PoolsAndTheirGradients) {
  const PoolSpec specs[] = {
      {.batch = 0, .height = 4, .width = 4, .channels = 3, .window_h = 2, .window_w = 2},
      {.batch = 2,
       .height = 9,
       .width = 7,
       .channels = 5,
       .window_h = 3,
       .window_w = 3,
       .stride_h = 2,
       .stride_w = 2,
       .pad_top = 1,
       .pad_bottom = 1,
       .pad_left = 1,
       .pad_right = 1},
      {.batch = 1, .height = 20, .width = 20, .channels = 8, .window_h = 20, .window_w = 20}};
  for (const PoolSpec& of_largest : specs) {
    for (const bool max : {true, false}) {
      SCOPED_TRACE(std::to_string(&of_largest - specs) + (max ? ", max" : ", average"));
      CheckHalves(1e-5, [&](const Call& c, const Maker& m) {
        PoolSpec s = of_largest;
        s.max = max;
        s.type = m.type();
        PoolPlan& plan = c.kernels.Pool(s);
        std::byte* const workspace = c.memory.Workspace(plan.workspace_bytes());
        const std::int64_t y = s.batch * s.out_height() * s.out_width() * s.channels;
        const std::int64_t x = s.batch * s.height * s.width * s.channels;
        plan.Forward(c.stream, m.In(x, 1).raw(), m.Out(y).raw(), workspace);
        plan.Backward(c.stream, m.In(y, 2).raw(), workspace, m.Out(x).raw());
      });
    }
  }
}

TEST_P(DeviceHalves, LayerNormAndItsGradient) {
  for (const RowsOf& size : shapes()) {
    SCOPED_TRACE(std::to_string(size.rows) + " x " + std::to_string(size.columns));
    const auto [rows, columns] = size;
    const std::int64_t n = rows * columns;
    CheckHalves(1e-5, [&, rows = rows, columns = columns](const Call& c, const Maker& m) {
      c.kernels.LayerNorm(c.stream, {.rows = rows,
                                     .columns = columns,
                                     .epsilon = 1e-2F,
                                     .x = c.memory.In(n, 1),
                                     .scale = c.memory.In(columns, 2),
                                     .offset = c.memory.In(columns, 3),
                                     .mean = c.memory.Out(rows),
                                     .inverse_deviation = c.memory.Out(rows),
                                     .y = m.Out(n)});
    });
    CheckHalves(1e-5 + 4e-6 * std::sqrt(static_cast<double>(rows) + 1),
                [&, rows = rows, columns = columns](const Call& c, const Maker& m) {
                  std::vector<float> inverse = RandomFloats(rows, 6);
                  for (float& i : inverse) {
                    i = i * 0.5F + 1;
                  }
                  c.kernels.LayerNormBackward(c.stream, {.rows = rows,
                                                         .columns = columns,
                                                         .x = c.memory.In(n, 1),
                                                         .scale = c.memory.In(columns, 2),
                                                         .mean = c.memory.In(rows, 4),
                                                         .inverse_deviation = c.memory.In(inverse),
                                                         .dy = m.In(n, 5),
                                                         .dx = c.memory.Out(n),
                                                         .dscale = c.memory.Out(columns),
                                                         .doffset = c.memory.Out(columns)});
                });
  }
}

TEST_P(DeviceHalves, SoftmaxCrossEntropyAndItsGradient) {
  for (const RowsOf& size : shapes()) {
    for (const bool targets : {false, true}) {
      SCOPED_TRACE(std::to_string(size.rows) + " x " + std::to_string(size.columns) +
                   (targets ? ", targets" : ""));
      const std::int64_t n = size.rows * size.columns;
      std::vector<std::int64_t> classes;
      for (std::int64_t r = 0; r < size.rows; ++r) {
        classes.push_back(r * 7 % std::max<std::int64_t>(size.columns, 1));
      }
      CheckHalves(4e-6 * std::sqrt(static_cast<double>(size.columns) + 1), [&](const Call& c,
                                                                               const Maker& m) {
        LossArguments l;
        l.rows = size.rows;
        l.columns = size.columns;
        l.x = m.In(n, 1, 8);
        if (targets) {
          std::vector<float> shares = RandomFloats(n, 3);
          for (float& share : shares) {
            share = std::fabs(share) / static_cast<float>(size.columns);
          }
          l.targets = c.memory.In(shares);
        } else {
          l.wide_classes = true;
          l.classes = c.memory.Ids(classes, true).data;
        }
        const FloatSpan loss = c.memory.Out(2);
        c.kernels.SoftmaxCrossEntropy(c.stream, l, loss);
        // So that gradients are of the size of probabilities.
        const auto rows = static_cast<float>(size.rows);
        c.kernels.SoftmaxCrossEntropyBackward(c.stream, l, loss, c.memory.In({rows}), m.Out(n));
      });
    }
  }
}

// The last columns may be no classes.
TEST_P(DeviceHalves, LabelsBehindTheLastClassFail) {
  for (const DType half : kHalves) {
    CheckFails([&](const Call& c) {
      const Maker m(c, half, half);
      LossArguments l;
      l.rows = 3;
      l.columns = 8;
      l.x = m.In(24, 1);
      l.classes = c.memory.Ids({4, 5, 0}, true).data;
      l.classes_end = 5;
      c.kernels.SoftmaxCrossEntropy(c.stream, l, c.memory.Out(2));
    });
  }
}

// A library may round a product before it adds the bias, which is below 1: the product is at most 1
// larger than the sum, and its rounding at most two of the sum's.
TEST_P(DeviceHalves, Products) {
  struct Size {
    std::int64_t m, n, k;
  };
  std::vector<Size> sizes = {{1, 1, 1}, {7, 13, 5}, {13, 1, 67}, {64, 96, 32}, {85, 19, 33}};
  if (large()) {
    sizes.insert(sizes.end(), {{300, 257, 515}, {512, 128, 1024}});
  }
  for (const Size& size : sizes) {
    for (const int transposed : {0, 1, 2, 3}) {
      for (const int epilogue : {0, 1, 3}) {
        SCOPED_TRACE(std::to_string(size.m) + " x " + std::to_string(size.n) + " x " +
                     std::to_string(size.k) + ", transposed " + std::to_string(transposed) +
                     ", epilogue " + std::to_string(epilogue));
        CheckHalves(
            4e-6 * std::sqrt(static_cast<double>(size.k) + 1),
            [&](const Call& c, const Maker& m) {
              MatMulSpec spec{.m = size.m,
                              .n = size.n,
                              .k = size.k,
                              .transpose_a = transposed % 2 == 1,
                              .transpose_b = transposed >= 2,
                              .bias = epilogue % 2 == 1,
                              .activation = epilogue >= 2 ? Activation::kRelu : Activation::kNone,
                              .type = m.type(),
                              .out = m.type()};
              const void* const a = m.In(size.m * size.k, 1).raw();
              const void* const b = m.In(size.k * size.n, 2).raw();
              c.kernels.MatMul(spec).Run(c.stream, a, b, m.In(size.n, 3).raw(),
                                         m.Out(size.m * size.n).raw());
              spec.out = DType::kFloat32;
              c.kernels.MatMul(spec).Run(c.stream, a, b, c.memory.In(size.n, 4).data(),
                                         c.memory.Out(size.m * size.n).data());
            },
            epilogue % 2 == 1 ? 3 : 1);
      }
    }
  }
  for (const DType half : kHalves) {
    Check(0,
          [&](const Call& c) {
            c.kernels.MatMul({.m = 3, .n = 5, .k = 0, .transpose_a = true, .type = half})
                .Run(c.stream, c.memory.In({}, half).raw(), c.memory.In({}, half).raw(), nullptr,
                     c.memory.Out(15).data());
            MatMulSpec spec{.m = 2, .n = 3, .k = 0, .type = half, .out = half};
            const void* const none = c.memory.In({}, half).raw();
            c.kernels.MatMul(spec).Run(c.stream, none, none, nullptr, c.memory.Out(6, half).raw());
            spec.bias = true;
            spec.activation = Activation::kRelu;
            c.kernels.MatMul(spec).Run(c.stream, none, none, c.memory.In({1, -2, 3}, half).raw(),
                                       c.memory.Out(6, half).raw());
          },
          {std::vector<double>(15, 0.0), std::vector<double>(6, 0.0), {1, 0, 3, 1, 0, 3}});
  }
}

// A device may round what gelu is given, or gives its gradient to, before.
TEST_P(DeviceHalves, ProductsWithGeluAndItsGradient) {
  struct Size {
    std::int64_t m, n, k;
  };
  std::vector<Size> sizes = {{1, 1, 1}, {7, 13, 5}, {64, 96, 32}, {2, 3, 0}};
  if (large()) {
    sizes.insert(sizes.end(), {{300, 257, 515}, {512, 1024, 256}});
  }
  for (const Size& size : sizes) {
    for (const bool bias : {false, true}) {
      SCOPED_TRACE(std::to_string(size.m) + " x " + std::to_string(size.n) + " x " +
                   std::to_string(size.k) + (bias ? ", bias" : ""));
      for (const DType half : kHalves) {
        SCOPED_TRACE(std::string(DTypeName(half)));
        const std::int64_t n = size.m * size.n;
        const auto run = [&](const Call& c, const Maker& m) {
          MatMulSpec spec{.m = size.m,
                          .n = size.n,
                          .k = size.k,
                          .transpose_b = true,
                          .bias = bias,
                          .activation = Activation::kGelu,
                          .type = m.type(),
                          .out = m.type()};
          const void* const a = m.In(size.m * size.k, 1).raw();
          const void* const b = m.In(size.k * size.n, 2).raw();
          const void* const add = m.In(size.n, 3).raw();
          c.kernels.MatMul(spec).Run(c.stream, a, b, add, m.Out(n).raw());
          spec.keeps_before = true;
          void* const y = m.Out(n).raw();
          c.kernels.MatMul(spec).Run(c.stream, a, b, add, y, m.Out(n).raw());
          if (!bias) {
            spec.keeps_before = false;
            spec.activation = Activation::kNone;
            spec.gradient_of = Activation::kGelu;
            c.kernels.MatMul(spec).Run(c.stream, a, b, nullptr, m.Out(n).raw(), m.In(n, 4).raw());
          }
        };
        const auto expected =
            RunOnOracle([&](const Call& c) { run(c, Maker(c, half, DType::kFloat32)); });
        Check(
            4 * RoundingOf(half) + 4e-6 * std::sqrt(static_cast<double>(size.k) + 1),
            [&](const Call& c) { run(c, Maker(c, half, half)); }, expected);
      }
    }
  }
}

// Few results of long sums, which a library may cut into parts: these are added up in float32.
TEST_P(DeviceHalves, LongSumsAreRoundedOnce) {
  constexpr std::int64_t kSize = 16;
  constexpr std::int64_t kLength = 16384;
  CheckHalves(4e-6 * std::sqrt(static_cast<double>(kLength)), [&](const Call& c, const Maker& m) {
    const MatMulSpec spec{.m = kSize, .n = kSize, .k = kLength, .type = m.type(), .out = m.type()};
    const void* const a = m.In(kSize * kLength, 1).raw();
    const void* const b = m.In(kLength * kSize, 2).raw();
    c.kernels.MatMul(spec).Run(c.stream, a, b, nullptr, m.Out(kSize * kSize).raw());
  });
}

TEST_P(DeviceHalves, ConvolutionsAndTheirGradients) {
  const ConvSpec specs[] = {{.batch = 0,
                             .height = 5,
                             .width = 5,
                             .in = 3,
                             .kernel_h = 3,
                             .kernel_w = 3,
                             .out = 4,
                             .bias = true},
                            {.batch = 3,
                             .height = 7,
                             .width = 5,
                             .in = 4,
                             .kernel_h = 3,
                             .kernel_w = 3,
                             .out = 6,
                             .pad_top = 1,
                             .pad_bottom = 1,
                             .pad_left = 1,
                             .pad_right = 1,
                             .bias = true,
                             .activation = Activation::kRelu},
                            {.batch = 2,
                             .height = 6,
                             .width = 6,
                             .in = 8,
                             .kernel_h = 3,
                             .kernel_w = 3,
                             .out = 4,
                             .stride_h = 2,
                             .stride_w = 2,
                             .pad_bottom = 1,
                             .pad_right = 1,
                             .groups = 2},
                            // As a residual network's: of an image, in the middle, of one place.
                            {.batch = 2,
                             .height = 20,
                             .width = 20,
                             .in = 3,
                             .kernel_h = 7,
                             .kernel_w = 7,
                             .out = 16,
                             .stride_h = 2,
                             .stride_w = 2,
                             .pad_top = 3,
                             .pad_bottom = 3,
                             .pad_left = 3,
                             .pad_right = 3},
                            {.batch = 2,
                             .height = 14,
                             .width = 14,
                             .in = 32,
                             .kernel_h = 3,
                             .kernel_w = 3,
                             .out = 64,
                             .pad_top = 1,
                             .pad_bottom = 1,
                             .pad_left = 1,
                             .pad_right = 1},
                            {.batch = 2,
                             .height = 14,
                             .width = 14,
                             .in = 64,
                             .kernel_h = 1,
                             .kernel_w = 1,
                             .out = 128,
                             .stride_h = 2,
                             .stride_w = 2}};
  for (const ConvSpec& of_float : specs) {
    SCOPED_TRACE(&of_float - specs);
    CheckHalves(
        1e-4,
        [&](const Call& c, const Maker& m) {
          ConvSpec s = of_float;
          s.type = m.type();
          const std::int64_t x_size = s.batch * s.height * s.width * s.in;
          const std::int64_t kernel_size = s.kernel_h * s.kernel_w * s.in / s.groups * s.out;
          const std::int64_t y_size = s.batch * s.out_height() * s.out_width() * s.out;
          ConvPlan& plan = c.kernels.Conv(s);
          const void* const x = m.In(x_size, 1).raw();
          const void* const kernel = m.In(kernel_size, 2).raw();
          const void* const dy = m.In(y_size, 4).raw();
          plan.Forward(c.stream, x, kernel, s.bias ? m.In(s.out, 3).raw() : nullptr,
                       m.Out(y_size).raw());
          plan.BackwardKernel(c.stream, x, dy, c.memory.Out(kernel_size).data());
          plan.BackwardInput(c.stream, kernel, dy, m.Out(x_size).raw());
        },
        of_float.bias ? 3 : 1);
  }
}

TEST_P(DeviceHalves, AttentionAndItsGradient) {
  std::vector<AttentionSpec> specs = {{.batch = 0, .length = 3, .heads = 2, .head_size = 4},
                                      {.batch = 1, .length = 1, .heads = 1, .head_size = 1},
                                      {.batch = 2, .length = 5, .heads = 3, .head_size = 6},
                                      {.batch = 1, .length = 64, .heads = 2, .head_size = 32},
                                      {.batch = 2, .length = 65, .heads = 1, .head_size = 64},
                                      {.batch = 1, .length = 130, .heads = 2, .head_size = 40}};
  if (large()) {
    specs.insert(specs.end(), {{.batch = 1, .length = 200, .heads = 2, .head_size = 128},
                               {.batch = 1, .length = 71, .heads = 3, .head_size = 101},
                               {.batch = 2, .length = 512, .heads = 4, .head_size = 64}});
  }
  for (AttentionSpec s : specs) {
    for (const bool causal : {false, true}) {
      s.causal = causal;
      SCOPED_TRACE("batch " + std::to_string(s.batch) + ", length " + std::to_string(s.length) +
                   ", heads " + std::to_string(s.heads) + " of " + std::to_string(s.head_size) +
                   (causal ? ", causal" : ""));
      for (const DType half : kHalves) {
        SCOPED_TRACE(std::string(DTypeName(half)));
        const std::int64_t n = s.batch * s.length * s.heads * s.head_size;
        const auto run = [&](const Call& c, const Maker& m) {
          AttentionSpec spec = s;
          spec.type = m.type();
          AttentionPlan& plan = c.kernels.Attention(spec);
          const void* const qkv = m.In(3 * n, 1, 2).raw();
          void* const y = m.Out(n).raw();
          auto* const saved = reinterpret_cast<float*>(
              c.memory.Workspace(plan.saved_elements() * static_cast<std::int64_t>(sizeof(float))));
          plan.Forward(c.stream, qkv, y, saved);
          plan.Backward(c.stream, qkv, y, saved, m.In(n, 2).raw(), m.Out(3 * n).raw());
        };
        const auto expected =
            RunOnOracle([&](const Call& c) { run(c, Maker(c, half, DType::kFloat32)); });
        // A device may round probabilities and their gradients too, as operands of products.
        Check(
            4 * RoundingOf(half), [&](const Call& c) { run(c, Maker(c, half, half)); }, expected);
      }
    }
  }
}

// Gradients of scores that float16 would not reach without the scores' own scale, of 1/8. What
// comes of them it does: of two queries and keys, at most half of those.
TEST_P(DeviceHalves, AttentionOfLargeGradients) {
  const AttentionSpec s{.batch = 32, .length = 2, .heads = 8, .head_size = 64};
  const std::int64_t n = s.batch * s.length * s.heads * s.head_size;
  for (const DType half : kHalves) {
    SCOPED_TRACE(std::string(DTypeName(half)));
    const auto run = [&](const Call& c, const Maker& m) {
      AttentionSpec spec = s;
      spec.type = m.type();
      AttentionPlan& plan = c.kernels.Attention(spec);
      const void* const qkv = m.In(3 * n, 1, 2).raw();
      void* const y = m.Out(n).raw();
      auto* const saved = reinterpret_cast<float*>(
          c.memory.Workspace(plan.saved_elements() * static_cast<std::int64_t>(sizeof(float))));
      plan.Forward(c.stream, qkv, y, saved);
      plan.Backward(c.stream, qkv, y, saved, m.In(n, 2, 28500).raw(), m.Out(3 * n).raw());
    };
    const auto expected =
        RunOnOracle([&](const Call& c) { run(c, Maker(c, half, DType::kFloat32)); });
    double largest = 0;
    double of_queries = 0;
    for (std::size_t i = 0; i < expected.back().size(); ++i) {
      const double gradient = std::fabs(expected.back()[i]);
      largest = std::max(largest, gradient);
      if (i / static_cast<std::size_t>(s.heads * s.head_size) % 3 == 0) {
        of_queries = std::max(of_queries, gradient);
      }
    }
    // Keys differ by less than 4: scores' gradients are more than twice this, before the scale.
    EXPECT_GT(of_queries, 65504.0 / 2);
    EXPECT_LT(largest, 65504.0);
    // Small ones are what large ones leave, of a y that is rounded.
    const std::vector<double> got =
        RunOnDevice(0, [&](const Call& c) { run(c, Maker(c, half, half)); }).back();
    ASSERT_EQ(got.size(), expected.back().size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_LE(std::fabs(got[i] - expected.back()[i]), 4 * RoundingOf(half) * largest) << i;
    }
  }
}

}  // namespace
}  // namespace cohort::testing
