// Each kernel of the table beside the CPU's.

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "device_conformance.h"

namespace cohort::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kRounding = 2e-6;  // of a few operations on numbers near 1

// What the sum of `count` numbers below 1 may be off by.
double SumRounding(std::int64_t count) { return 2e-6 * std::sqrt(static_cast<double>(count) + 1); }

std::string Text(const RowsOf& size) {
  return std::to_string(size.rows) + " x " + std::to_string(size.columns);
}

TEST_P(DeviceKernels, ElementwiseArithmeticIsExact) {
  for (const std::int64_t n : sizes()) {
    SCOPED_TRACE(n);
    Check(0, [&](const Call& c) { c.kernels.Fill(c.stream, c.memory.Out(n), -2.5F); });
    Check(0, [&](const Call& c) { c.kernels.Copy(c.stream, c.memory.In(n, 1), c.memory.Out(n)); });
    Check(0, [&](const Call& c) {
      const FloatSpan a = c.memory.In(n, 1);
      const FloatSpan b = c.memory.In(n, 2);
      c.kernels.Add(c.stream, a, b, c.memory.Out(n));
      c.kernels.Multiply(c.stream, a, b, c.memory.Out(n));
    });
    Check(0, [&](const Call& c) {  // in place, of either
      const FloatSpan a = c.memory.InOut(n, 1);
      const FloatSpan b = c.memory.InOut(n, 2);
      c.kernels.Add(c.stream, a, b, a);
      c.kernels.Multiply(c.stream, a, b, b);
      c.kernels.Copy(c.stream, a, a);
    });
  }
}

constexpr Activation kActivations[] = {Activation::kNone, Activation::kRelu, Activation::kGelu,
                                       Activation::kSigmoid, Activation::kTanh};

TEST_P(DeviceKernels, ActivationsAndTheirGradients) {
  for (const Activation f : kActivations) {
    SCOPED_TRACE(static_cast<int>(f));
    const double tolerance = f == Activation::kNone || f == Activation::kRelu ? 0 : kRounding;
    for (const std::int64_t n : sizes()) {
      SCOPED_TRACE(n);
      Check(tolerance, [&](const Call& c) {
        const FloatSpan x = c.memory.In(n, 1);
        const FloatSpan y = c.memory.Out(n);
        const FloatSpan dy = c.memory.In(n, 2);
        c.kernels.Activate(c.stream, f, x, y);
        const bool of_x = f == Activation::kGelu;
        c.kernels.ActivateBackward(c.stream, f, of_x ? x : FloatSpan(), of_x ? FloatSpan() : y, dy,
                                   c.memory.Out(n));
      });
      Check(tolerance, [&](const Call& c) {  // in place
        const FloatSpan x = c.memory.InOut(n, 1);
        const FloatSpan dy = c.memory.InOut(n, 2);
        if (f == Activation::kGelu) {
          c.kernels.ActivateBackward(c.stream, f, x, {}, dy, dy);
          c.kernels.Activate(c.stream, f, x, x);
        } else {
          c.kernels.Activate(c.stream, f, x, x);
          c.kernels.ActivateBackward(c.stream, f, {}, x, dy, dy);
        }
      });
    }
    Check(tolerance, [&](const Call& c) {
      c.kernels.Activate(c.stream, f, c.memory.In({-100, -20, -0.0F, 0, 1e-30F, 20, 100, -1e-4F}),
                         c.memory.Out(8));
    });
  }
  Check(0, [&](const Call& c) {
    const FloatSpan x = c.memory.In({kNan, kInfinity, -kInfinity, 0, -0.0F, 1, -1, kNan, 2});
    c.kernels.Activate(c.stream, Activation::kRelu, x, c.memory.Out(9));
    c.kernels.ActivateBackward(c.stream, Activation::kRelu, {}, x, c.memory.In(9, 1),
                               c.memory.Out(9));
  });
}

TEST_P(DeviceKernels, DropoutKeepsTheSameElementsEverywhere) {
  for (const std::int64_t n : sizes()) {
    for (const std::uint64_t first : {0ULL, 1ULL, 6ULL, (1ULL << 40) + 3, ~0ULL - 5}) {
      SCOPED_TRACE(std::to_string(n) + " from " + std::to_string(first));
      const DropoutSpec spec{.rate = first % 2 == 0 ? 0.1F : 0.75F,
                             .key = 0x123456789ABCDEFULL,
                             .step = first + 7,
                             .first = first};
      Check(0, [&](const Call& c) {
        c.kernels.Dropout(c.stream, spec, c.memory.In(n, 1), c.memory.Out(n));
        const FloatSpan x = c.memory.InOut(n, 2);
        c.kernels.Dropout(c.stream, spec, x, x);
      });
    }
  }
  Check(0, [&](const Call& c) {
    c.kernels.Dropout(c.stream, {.rate = 0, .key = 1}, c.memory.In(101, 1), c.memory.Out(101));
  });
}

TEST_P(DeviceKernels, CopyRowsLeavesTheRestOfTheWiderMatrix) {
  for (const RowsOf& size : shapes()) {
    for (const std::int64_t wider : {0, 3, 4}) {
      SCOPED_TRACE(Text(size) + " in " + std::to_string(wider));
      const std::int64_t stride = size.columns + wider;
      Check(0, [&](const Call& c) {
        const FloatSpan from = c.memory.In(size.rows * size.columns, 1);
        const FloatSpan to = c.memory.InOut(size.rows * stride, 2);
        c.kernels.CopyRows(c.stream, size, {from.data(), size.columns}, {to.data(), stride});
        c.kernels.CopyRows(c.stream, size, {to.data(), stride},
                           {c.memory.Out(size.rows * size.columns).data(), size.columns});
      });
    }
  }
}

TEST_P(DeviceKernels, SumsOverRows) {
  for (const RowsOf& size : shapes()) {
    SCOPED_TRACE(Text(size));
    const std::int64_t n = size.rows * size.columns;
    Check(SumRounding(size.rows), [&](const Call& c) {
      c.kernels.SumRows(c.stream, size, c.memory.In(n, 1), c.memory.Out(size.columns));
      c.kernels.SumSquaresRows(c.stream, size, c.memory.In(n, 2), c.memory.In(size.columns, 3),
                               c.memory.Out(size.columns));
      c.kernels.ReluBackwardSumRows(c.stream, size, c.memory.In(n, 4), c.memory.InOut(n, 5),
                                    c.memory.Out(size.columns));
    });
    Check(0, [&](const Call& c) {
      c.kernels.ReluBackwardSumRows(c.stream, size, c.memory.In(n, 1), c.memory.InOut(n, 2), {});
    });
  }
}

// Beside a mean that is a thousand deviations: squares around anything else lose all digits.
TEST_P(DeviceKernels, MomentsOfColumns) {
  for (const RowsOf& size : shapes()) {
    SCOPED_TRACE(Text(size));
    const auto columns = static_cast<std::size_t>(size.columns);
    std::vector<float> x = RandomFloats(size.rows * size.columns, 1);
    for (float& value : x) {
      value = value * 0.125F + 128.0F;
    }
    std::vector<double> mean(columns, 0.0);
    std::vector<double> squares(columns, 0.0);
    for (std::size_t i = 0; i < x.size(); ++i) {
      mean[i % columns] += x[i] / static_cast<double>(size.rows);
    }
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double d = x[i] - mean[i % columns];
      squares[i % columns] += d * d;
    }
    Check(2e-5,
          [&](const Call& c) {
            const FloatSpan means = c.memory.Out(size.columns);
            c.kernels.Moments(c.stream, size, c.memory.In(x), means, c.memory.Out(size.columns));
          },
          {mean, squares});
  }
}

TEST_P(DeviceKernels, SumsOverAMiddleAxis) {
  std::vector<MiddleOf> sizes = {{0, 3, 4},   {2, 0, 3},    {1, 1, 1},    {3, 5, 7},  {4, 49, 32},
                                 {2, 200, 1}, {1, 500, 12}, {2, 100, 66}, {100, 2, 1}};
  if (large()) {
    sizes.insert(sizes.end(), {{64, 49, 2048}, {1, 100000, 7}, {70000, 9, 3}});
  }
  for (const MiddleOf& size : sizes) {
    SCOPED_TRACE(std::to_string(size.outer) + " x " + std::to_string(size.middle) + " x " +
                 std::to_string(size.inner));
    const std::int64_t n = size.outer * size.middle * size.inner;
    Check(SumRounding(size.middle), [&](const Call& c) {
      c.kernels.SumMiddle(c.stream, size, 0.3F, c.memory.In(n, 1),
                          c.memory.Out(size.outer * size.inner));
    });
    Check(0, [&](const Call& c) {
      c.kernels.SumMiddleBackward(c.stream, size, 0.3F, c.memory.In(size.outer * size.inner, 1),
                                  c.memory.Out(n));
    });
  }
}

TEST_P(DeviceKernels, SoftmaxAndItsGradient) {
  for (const RowsOf& size : shapes()) {
    SCOPED_TRACE(Text(size));
    const std::int64_t n = size.rows * size.columns;
    Check(kRounding, [&](const Call& c) {
      std::vector<float> logits = RandomFloats(n, 1);
      for (std::size_t i = 0; i < logits.size(); ++i) {
        logits[i] = i % 5 == 4 ? -kInfinity : logits[i] * 30 + 50;
      }
      c.kernels.Softmax(c.stream, size, c.memory.In(logits), c.memory.Out(n));
    });
    Check(SumRounding(size.columns), [&](const Call& c) {
      c.kernels.SoftmaxBackward(c.stream, size, c.memory.In(n, 1), c.memory.In(n, 2),
                                c.memory.Out(n));
    });
  }
  Check(0, [&](const Call& c) {  // a NaN spoils its row alone
    c.kernels.Softmax(c.stream, {3, 2}, c.memory.In({1, 1, kNan, 0, kInfinity, 0}),
                      c.memory.Out(6));
  });
}

std::vector<std::int64_t> RandomIds(std::int64_t count, std::int64_t rows, std::uint64_t seed) {
  std::vector<std::int64_t> ids;
  for (const float u : RandomFloats(count, seed)) {
    ids.push_back(static_cast<std::int64_t>((u + 1) / 2 * static_cast<float>(rows)));
  }
  return ids;
}

TEST_P(DeviceKernels, RowsAreLookedUpAndAddedUpInTheOrderOfIds) {
  struct Case {
    std::int64_t ids, rows, columns;
  };
  std::vector<Case> cases = {{0, 4, 3},      {1, 1, 1},    {5, 9, 4},      {300, 7, 13},
                             {40, 1000, 20}, {1000, 1, 6}, {700, 100, 64}, {3, 0, 4}};
  if (large()) {
    cases.insert(cases.end(), {{8192, 50257, 768}, {100000, 1000000, 16}, {20000, 3, 5}});
  }
  for (const Case& size : cases) {
    for (const bool wide : {false, true}) {
      SCOPED_TRACE(std::to_string(size.ids) + " of " + std::to_string(size.rows) + " x " +
                   std::to_string(size.columns) + (wide ? ", int64" : ", int32"));
      const std::vector<std::int64_t> ids = RandomIds(size.rows == 0 ? 0 : size.ids, size.rows, 1);
      const auto count = static_cast<std::int64_t>(ids.size());
      const RowsOf table{size.rows, size.columns};
      Check(0, [&](const Call& c) {
        const Indices at = c.memory.Ids(ids, wide);
        c.kernels.Gather(c.stream, at, table, c.memory.In(table.rows * table.columns, 2),
                         c.memory.Out(count * table.columns));
        c.kernels.ScatterAdd(c.stream, at, table, c.memory.In(count * table.columns, 3),
                             c.memory.Out(table.rows * table.columns));
      });
    }
  }
}

TEST_P(DeviceKernels, AnIdOutsideTheTableFailsTheStream) {
  for (const std::int64_t bad : {-1, 9, 1 << 30}) {
    for (const bool wide : {false, true}) {
      CheckFails([&](const Call& c) {
        std::vector<std::int64_t> ids(100, 3);
        ids[71] = bad;
        c.kernels.Gather(c.stream, c.memory.Ids(ids, wide), {9, 5}, c.memory.In(45, 1),
                         c.memory.Out(500));
      });
    }
  }
}

TEST_P(DeviceKernels, InteractionAndItsGradients) {
  struct Case {
    std::int64_t batch, rows, columns;
  };
  std::vector<Case> cases = {{0, 3, 4}, {2, 1, 5}, {1, 2, 1}, {3, 5, 7}, {9, 27, 16}, {2, 3, 5000}};
  if (large()) {
    cases.push_back({2048, 27, 64});
  }
  for (const Case& s : cases) {
    SCOPED_TRACE(std::to_string(s.batch) + " x " + std::to_string(s.rows) + " x " +
                 std::to_string(s.columns));
    const std::int64_t first = s.batch * s.columns;
    const std::int64_t rest = first * (s.rows - 1);
    const std::int64_t all = s.batch * (s.columns + s.rows * (s.rows - 1) / 2);
    const RowsOf size{s.rows, s.columns};
    Check(SumRounding(s.columns), [&](const Call& c) {
      c.kernels.Interaction(c.stream, s.batch, size, c.memory.In(first, 1), c.memory.In(rest, 2),
                            c.memory.Out(all));
    });
    for (const bool of_first : {false, true}) {
      for (const bool of_rest : {false, true}) {
        Check(SumRounding(s.rows), [&](const Call& c) {
          c.kernels.InteractionBackward(c.stream, s.batch, size, c.memory.In(first, 1),
                                        c.memory.In(rest, 2), c.memory.In(all, 3),
                                        of_first ? c.memory.Out(first) : FloatSpan(),
                                        of_rest ? c.memory.Out(rest) : FloatSpan());
        });
      }
    }
  }
}

TEST_P(DeviceKernels, LayerNormAndItsGradient) {
  for (const RowsOf& size : shapes()) {
    SCOPED_TRACE(Text(size));
    const auto [rows, columns] = size;
    const std::int64_t n = rows * columns;
    Check(1e-5, [&, rows = rows, columns = columns](const Call& c) {
      c.kernels.LayerNorm(c.stream, {.rows = rows,
                                     .columns = columns,
                                     .epsilon = 1e-2F,
                                     .x = c.memory.In(n, 1),
                                     .scale = c.memory.In(columns, 2),
                                     .offset = c.memory.In(columns, 3),
                                     .mean = c.memory.Out(rows),
                                     .inverse_deviation = c.memory.Out(rows),
                                     .y = c.memory.Out(n)});
    });
    for (const bool wants_dx : {true, false}) {
      Check(1e-5 + SumRounding(rows), [&, rows = rows, columns = columns](const Call& c) {
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
                                               .dy = c.memory.In(n, 5),
                                               .dx = wants_dx ? c.memory.Out(n) : FloatSpan(),
                                               .dscale = c.memory.Out(columns),
                                               .doffset = c.memory.Out(columns)});
      });
    }
  }
}

TEST_P(DeviceKernels, BatchNormAndItsGradient) {
  for (const RowsOf& size : shapes()) {
    SCOPED_TRACE(Text(size));
    const auto [rows, columns] = size;
    const std::int64_t n = rows * columns;
    Check(kRounding, [&, rows = rows, columns = columns](const Call& c) {
      c.kernels.BatchNorm(c.stream, {.rows = rows,
                                     .columns = columns,
                                     .x = c.memory.In(n, 1),
                                     .scale = c.memory.In(columns, 2),
                                     .offset = c.memory.In(columns, 3),
                                     .mean = c.memory.In(columns, 4),
                                     .inverse_deviation = c.memory.In(columns, 5),
                                     .y = c.memory.Out(n)});
    });
    for (const bool adds : {false, true}) {
      Check(kRounding, [&, rows = rows, columns = columns](const Call& c) {
        NormArguments norm{.rows = rows,
                           .columns = columns,
                           .x = c.memory.In(n, 1),
                           .scale = c.memory.In(columns, 2),
                           .offset = c.memory.In(columns, 3),
                           .mean = c.memory.In(columns, 4),
                           .inverse_deviation = c.memory.In(columns, 5),
                           .y = c.memory.Out(n),
                           .activation = Activation::kRelu};
        if (adds) {
          norm.added = c.memory.In(n, 6);
        }
        c.kernels.BatchNorm(c.stream, norm);
      });
    }
    const auto backward = [&, columns = columns](const Call& c) {
      return NormBackwardArguments{.rows = size.rows,
                                   .columns = columns,
                                   .x = c.memory.In(n, 1),
                                   .scale = c.memory.In(columns, 2),
                                   .mean = c.memory.In(columns, 3),
                                   .inverse_deviation = c.memory.In(columns, 4),
                                   .dy = c.memory.In(n, 5),
                                   .dx = {},
                                   .dscale = {},
                                   .doffset = {}};
    };
    Check(SumRounding(rows), [&, columns = columns](const Call& c) {
      c.kernels.BatchNormBackwardSums(c.stream, backward(c), c.memory.Out(2 * columns));
    });
    // What counts of dy by what is found again of x, and by y.
    Check(SumRounding(rows), [&, columns = columns](const Call& c) {
      NormBackwardArguments of_x = backward(c);
      of_x.activation = Activation::kRelu;
      of_x.offset = c.memory.In(columns, 7);
      c.kernels.BatchNormBackwardSums(c.stream, of_x, c.memory.Out(2 * columns));
      of_x.dx = c.memory.Out(n);
      c.kernels.BatchNormBackward(c.stream, of_x, c.memory.In(2 * columns, 6), c.memory.In({3.0F}));
      NormBackwardArguments of_y = backward(c);
      of_y.activation = Activation::kRelu;
      of_y.y = c.memory.In(n, 8);
      of_y.dy = c.memory.InOut(n, 9);
      c.kernels.BatchNormBackwardSums(c.stream, of_y, c.memory.Out(2 * columns));
    });
    for (const float count : {0.0F, 1.0F, 40.0F, -1.0F}) {
      Check(kRounding, [&, columns = columns](const Call& c) {
        NormBackwardArguments n_backward = backward(c);
        n_backward.dx = c.memory.Out(n);
        const bool constant = count < 0;
        c.kernels.BatchNormBackward(c.stream, n_backward,
                                    constant ? FloatSpan() : c.memory.In(2 * columns, 6),
                                    constant ? FloatSpan() : c.memory.In({count}));
      });
    }
  }
}

TEST_P(DeviceKernels, MomentsAreFinished) {
  for (const std::int64_t columns : {0, 1, 7, 1000}) {
    for (const float count : {0.0F, 1.0F, 8.0F}) {
      SCOPED_TRACE(std::to_string(columns) + " columns, count " + std::to_string(count));
      Check(kRounding, [&](const Call& c) {
        c.kernels.DivideByCount(c.stream, c.memory.In(columns, 1), c.memory.In({count}),
                                c.memory.Out(columns));
        std::vector<float> squares = RandomFloats(columns, 2);
        for (float& s : squares) {
          s = s * s;
        }
        for (const bool running : {true, false}) {
          c.kernels.FinishMoments(
              c.stream, {.mean = c.memory.In(columns, 3),
                         .square_sums = c.memory.In(squares),
                         .count = c.memory.In({count}),
                         .epsilon = 0.1F,
                         .momentum = 0.9F,
                         .inverse_deviation = c.memory.Out(columns),
                         .running_mean = running ? c.memory.InOut(columns, 4) : FloatSpan(),
                         .running_variance = running ? c.memory.InOut(columns, 5) : FloatSpan()});
        }
      });
    }
  }
}

enum class Weights { kNone, kSome, kZero };

// Logits of some rows that weigh nothing are infinite.
LossArguments LossOf(const Call& c, RowsOf size, Weights weights) {
  LossArguments l;
  l.rows = size.rows;
  l.columns = size.columns;
  std::vector<float> x = RandomFloats(size.rows * size.columns, 1);
  for (float& value : x) {
    value *= 8;
  }
  if (weights != Weights::kNone) {
    std::vector<float> of_rows = RandomFloats(size.rows, 2);
    for (std::int64_t r = 0; r < size.rows; ++r) {
      auto& weight = of_rows[static_cast<std::size_t>(r)];
      weight = weights == Weights::kZero || r % 3 == 1 ? 0.0F : weight + 1.5F;
      if (weight == 0.0F && size.columns > 0) {
        x[static_cast<std::size_t>(r * size.columns)] = kInfinity;
      }
    }
    l.weights = c.memory.In(of_rows);
  }
  l.x = c.memory.In(x);
  return l;
}

// Rows of numbers in [0, 1), some of them 0.
FloatSpan Targets(const Call& c, RowsOf size) {
  std::vector<float> targets = RandomFloats(size.rows * size.columns, 3);
  for (float& t : targets) {
    t = std::max(0.0F, t);
  }
  return c.memory.In(targets);
}

TEST_P(DeviceKernels, SoftmaxCrossEntropyAndItsGradient) {
  for (const RowsOf& size : shapes()) {
    for (const Weights weights : {Weights::kNone, Weights::kSome, Weights::kZero}) {
      for (const int labels : {0, 32, 64}) {
        SCOPED_TRACE(Text(size) + ", weights " + std::to_string(static_cast<int>(weights)) +
                     ", labels " + std::to_string(labels));
        const std::vector<std::int64_t> classes = RandomIds(size.rows, size.columns, 4);
        // The oracle adds up a row's exponentials one after the other.
        const double tolerance = 4e-6 * std::sqrt(static_cast<double>(size.columns) + 1);
        Check(tolerance, [&](const Call& c) {
          LossArguments l = LossOf(c, size, weights);
          if (labels == 0) {
            l.targets = Targets(c, size);
          } else {
            l.wide_classes = labels == 64;
            l.classes = c.memory.Ids(classes, l.wide_classes).data;
          }
          const FloatSpan loss = c.memory.Out(2);
          c.kernels.SoftmaxCrossEntropy(c.stream, l, loss);
          c.kernels.SoftmaxCrossEntropyBackward(c.stream, l, loss, c.memory.In({1.75F}),
                                                c.memory.Out(size.rows * size.columns));
        });
      }
    }
  }
}

TEST_P(DeviceKernels, ALabelThatIsNoClassFailsTheStream) {
  for (const std::int64_t bad : {-1, 10}) {
    for (const bool wide : {false, true}) {
      CheckFails([&](const Call& c) {
        std::vector<std::int64_t> classes(50, 9);
        classes[17] = bad;
        LossArguments l = LossOf(c, {50, 10}, Weights::kNone);
        l.wide_classes = wide;
        l.classes = c.memory.Ids(classes, wide).data;
        const FloatSpan loss = c.memory.Out(2);
        c.kernels.SoftmaxCrossEntropy(c.stream, l, loss);
        c.kernels.SoftmaxCrossEntropyBackward(c.stream, l, loss, c.memory.In({1}),
                                              c.memory.Out(500));
      });
    }
  }
}

TEST_P(DeviceKernels, OtherLossesAndTheirGradients) {
  for (const RowsOf& size : shapes()) {
    for (const Weights weights : {Weights::kNone, Weights::kSome, Weights::kZero}) {
      SCOPED_TRACE(Text(size) + ", weights " + std::to_string(static_cast<int>(weights)));
      Check(1e-5, [&](const Call& c) {
        LossArguments l = LossOf(c, size, weights);
        l.targets = Targets(c, size);
        const FloatSpan loss = c.memory.Out(2);
        const FloatSpan dloss = c.memory.In({0.5F});
        c.kernels.SigmoidCrossEntropy(c.stream, l, loss);
        c.kernels.SigmoidCrossEntropyBackward(c.stream, l, loss, dloss,
                                              c.memory.Out(size.rows * size.columns));
        const FloatSpan squared = c.memory.Out(2);
        c.kernels.MeanSquaredError(c.stream, l, squared);
        c.kernels.MeanSquaredErrorBackward(c.stream, l, squared, dloss,
                                           c.memory.Out(size.rows * size.columns));
      });
    }
  }
}

TEST_P(DeviceKernels, UpdatesHaveTheSameBitsEverywhere) {
  const UpdateRule rules[] = {
      SgdUpdate{.eta = 0.1F, .l2 = 0.01F},
      MomentumUpdate<false>{.eta = 0.1F, .mu = 0.9F, .l2 = 0.01F},
      MomentumUpdate<true>{.eta = 0.1F, .mu = 0.9F, .l2 = 0},
      AdagradUpdate{.eta = 0.1F, .epsilon = 1e-7F, .l2 = 0.01F},
      RmsPropUpdate{.eta = 0.1F, .rho = 0.9F, .fresh = 0.1F, .epsilon = 1e-7F, .l2 = 0.01F},
      RmsPropMomentumUpdate{
          .plain = {.eta = 0.1F, .rho = 0.9F, .fresh = 0.1F, .epsilon = 1e-7F, .l2 = 0},
          .mu = 0.9F},
      AdamUpdate{.beta1 = 0.9F,
                 .beta2 = 0.999F,
                 .fresh1 = 0.1F,
                 .fresh2 = 0.001F,
                 .rate = 0.01F,
                 .root = 31.6F,
                 .epsilon = 1e-8F,
                 .l2 = 0.01F,
                 .decay = 0.001F},
      FtrlUpdate{.inverse_eta = 10, .beta = 1, .lambda1 = 0.3F, .lambda2 = 0.1F, .l2 = 0.01F}};
  std::vector<std::vector<std::int64_t>> layouts = {{}, {0}, {1}, {5, 0, 4099, 2048, 2047}};
  layouts.emplace_back(150, 33);  // more parts than one launch takes
  if (large()) {
    layouts.push_back({(1 << 22) + 1, 3});
  }
  for (const UpdateRule& rule : rules) {
    for (const auto& layout : layouts) {
      SCOPED_TRACE("rule " + std::to_string(rule.index()) + ", " + std::to_string(layout.size()) +
                   " parts");
      Check(0, [&](const Call& c) {
        const std::size_t slots = std::visit([](const auto& r) { return r.kSlots; }, rule);
        std::vector<UpdatePart> parts;
        std::uint64_t seed = 1;
        for (const std::int64_t size : layout) {
          UpdatePart& part = parts.emplace_back();
          part.value = c.memory.InOut(size, seed++);
          part.gradient = c.memory.In(size, seed++);
          part.gradient_scale = seed % 3 == 0 ? 1.0F : 0.37F;
          for (std::size_t s = 0; s < slots; ++s) {
            std::vector<float> slot = RandomFloats(size, seed++);
            for (float& value : slot) {
              value = std::fabs(value);
            }
            part.slots[s] = c.memory.InOut(slot);
          }
        }
        c.kernels.Update(c.stream, rule, parts);
        c.kernels.Update(c.stream, rule, parts);
      });
    }
  }
}

TEST_P(DeviceKernels, SumsOfSquaresAreAddedUpInDouble) {
  for (const std::int64_t n : sizes()) {
    SCOPED_TRACE(n);
    Check(1e-12, [&](const Call& c) {
      c.kernels.SumSquares(c.stream, c.memory.In(n, 1), c.memory.OutDoubles(1));
    });
  }
}

}  // namespace
}  // namespace cohort::testing
