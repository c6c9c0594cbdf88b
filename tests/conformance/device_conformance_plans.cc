// Plans beside plain loops in double.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string>
#include <vector>

#include "device_conformance.h"

namespace cohort::testing {

// An operand that is cut to 10 bits of mantissa is off by up to a thousandth.
double DevicePlans::ProductRounding(std::int64_t count) const {
  return (GetParam().tf32 ? 2e-3 : 2e-6) * std::sqrt(static_cast<double>(count) + 1);
}

namespace {

using Doubles = std::vector<double>;

Doubles Random(std::int64_t size, std::uint64_t seed) {
  const std::vector<float> values = RandomFloats(size, seed);
  return {values.begin(), values.end()};
}

double& At(Doubles& values, std::int64_t i) { return values[static_cast<std::size_t>(i)]; }
double At(const Doubles& values, std::int64_t i) { return values[static_cast<std::size_t>(i)]; }

Doubles Product(const MatMulSpec& s, const Doubles& a, const Doubles& b, const Doubles& bias) {
  Doubles c(static_cast<std::size_t>(s.m * s.n), 0.0);
  for (std::int64_t i = 0; i < s.m; ++i) {
    for (std::int64_t l = 0; l < s.k; ++l) {
      const double left = At(a, s.transpose_a ? l * s.m + i : i * s.k + l);
      for (std::int64_t j = 0; j < s.n; ++j) {
        At(c, i * s.n + j) += left * At(b, s.transpose_b ? j * s.k + l : l * s.n + j);
      }
    }
    for (std::int64_t j = 0; j < s.n; ++j) {
      double& sum = At(c, i * s.n + j);
      sum += s.bias ? At(bias, j) : 0.0;
      sum = s.activation == Activation::kRelu ? std::max(sum, 0.0) : sum;
    }
  }
  return c;
}

TEST_P(DevicePlans, ProductsOfAllTransposesAndEpilogues) {
  struct Size {
    std::int64_t m, n, k;
  };
  std::vector<Size> sizes = {{1, 1, 1},  {7, 13, 5},   {13, 1, 67},
                             {1, 31, 9}, {64, 96, 32}, {85, 19, 33}};
  if (large()) {
    sizes.insert(sizes.end(), {{300, 257, 515}, {512, 128, 1024}});
  }
  for (const Size& size : sizes) {
    for (const bool transpose_a : {false, true}) {
      for (const bool transpose_b : {false, true}) {
        for (const int epilogue : {0, 1, 2, 3}) {
          const MatMulSpec spec{
              .m = size.m,
              .n = size.n,
              .k = size.k,
              .transpose_a = transpose_a,
              .transpose_b = transpose_b,
              .bias = epilogue % 2 == 1,
              .activation = epilogue >= 2 ? Activation::kRelu : Activation::kNone};
          SCOPED_TRACE(std::to_string(size.m) + " x " + std::to_string(size.n) + " x " +
                       std::to_string(size.k) + (transpose_a ? ", a transposed" : "") +
                       (transpose_b ? ", b transposed" : "") + ", epilogue " +
                       std::to_string(epilogue));
          Check(ProductRounding(size.k),
                [&](const Call& c) {
                  c.kernels.MatMul(spec).Run(c.stream, c.memory.In(size.m * size.k, 1).data(),
                                             c.memory.In(size.k * size.n, 2).data(),
                                             spec.bias ? c.memory.In(size.n, 3).data() : nullptr,
                                             c.memory.Out(size.m * size.n).data());
                },
                {Product(spec, Random(size.m * size.k, 1), Random(size.k * size.n, 2),
                         Random(size.n, 3))});
        }
      }
    }
  }
}

TEST_P(DevicePlans, AProductOverNothingIsZero) {
  for (const MatMulSpec& spec :
       {MatMulSpec{.m = 5, .n = 7, .k = 0}, MatMulSpec{.m = 5, .n = 7, .k = 0, .transpose_a = true},
        MatMulSpec{.m = 0, .n = 7, .k = 3, .bias = true}}) {
    SCOPED_TRACE(spec.m);
    Check(0,
          [&](const Call& c) {
            c.kernels.MatMul(spec).Run(c.stream, c.memory.In(spec.m * spec.k, 1).data(),
                                       c.memory.In(spec.k * spec.n, 2).data(),
                                       c.memory.In(spec.n, 3).data(),
                                       c.memory.Out(spec.m * spec.n).data());
          },
          {Doubles(static_cast<std::size_t>(spec.m * spec.n), 0.0)});
  }
}

// visit(x index, kernel index, y index) for each product of a convolution.
template <typename Visit>
void ForProducts(const ConvSpec& s, const Visit& visit) {
  const std::int64_t in = s.in / s.groups;
  const std::int64_t out = s.out / s.groups;
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t h = 0; h < s.out_height(); ++h) {
      for (std::int64_t w = 0; w < s.out_width(); ++w) {
        for (std::int64_t kh = 0; kh < s.kernel_h; ++kh) {
          for (std::int64_t kw = 0; kw < s.kernel_w; ++kw) {
            const std::int64_t y = h * s.stride_h - s.pad_top + kh;
            const std::int64_t x = w * s.stride_w - s.pad_left + kw;
            if (y < 0 || y >= s.height || x < 0 || x >= s.width) {
              continue;
            }
            for (std::int64_t o = 0; o < s.out; ++o) {
              for (std::int64_t i = 0; i < in; ++i) {
                visit(((b * s.height + y) * s.width + x) * s.in + o / out * in + i,
                      ((kh * s.kernel_w + kw) * in + i) * s.out + o,
                      ((b * s.out_height() + h) * s.out_width() + w) * s.out + o);
              }
            }
          }
        }
      }
    }
  }
}

TEST_P(DevicePlans, ConvolutionsAndTheirGradients) {
  const ConvSpec specs[] = {
      {.batch = 1, .height = 1, .width = 1, .in = 1, .kernel_h = 1, .kernel_w = 1, .out = 1},
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
       .height = 9,
       .width = 8,
       .in = 3,
       .kernel_h = 3,
       .kernel_w = 2,
       .out = 5,
       .stride_h = 2,
       .stride_w = 3,
       .pad_bottom = 1,
       .pad_left = 1,
       .bias = true},
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
      {.batch = 2,
       .height = 5,
       .width = 5,
       .in = 6,
       .kernel_h = 3,
       .kernel_w = 3,
       .out = 6,
       .pad_top = 1,
       .pad_bottom = 1,
       .pad_left = 1,
       .pad_right = 1,
       .groups = 6},
      {.batch = 4,
       .height = 8,
       .width = 8,
       .in = 16,
       .kernel_h = 1,
       .kernel_w = 1,
       .out = 32,
       .stride_h = 2,
       .stride_w = 2}};
  for (const ConvSpec& s : specs) {
    SCOPED_TRACE(&s - specs);
    const std::int64_t x_size = s.batch * s.height * s.width * s.in;
    const std::int64_t kernel_size = s.kernel_h * s.kernel_w * s.in / s.groups * s.out;
    const std::int64_t y_size = s.batch * s.out_height() * s.out_width() * s.out;
    const Doubles x = Random(x_size, 1);
    const Doubles kernel = Random(kernel_size, 2);
    const Doubles bias = Random(s.out, 3);
    const Doubles dy = Random(y_size, 4);
    Doubles y(static_cast<std::size_t>(y_size), 0.0);
    Doubles dkernel(static_cast<std::size_t>(kernel_size), 0.0);
    Doubles dx(static_cast<std::size_t>(x_size), 0.0);
    ForProducts(s, [&](std::int64_t i, std::int64_t k, std::int64_t o) {
      At(y, o) += At(x, i) * At(kernel, k);
      At(dkernel, k) += At(x, i) * At(dy, o);
      At(dx, i) += At(kernel, k) * At(dy, o);
    });
    for (std::int64_t o = 0; o < y_size; ++o) {
      At(y, o) += s.bias ? At(bias, o % s.out) : 0.0;
      At(y, o) = s.activation == Activation::kRelu ? std::max(At(y, o), 0.0) : At(y, o);
    }
    const std::int64_t products =
        std::max(s.kernel_h * s.kernel_w * s.out, s.batch * s.out_height() * s.out_width());
    Check(ProductRounding(products),
          [&](const Call& c) {
            ConvPlan& plan = c.kernels.Conv(s);
            const float* const in = c.memory.In(x_size, 1).data();
            const float* const of = c.memory.In(kernel_size, 2).data();
            const float* const gradient = c.memory.In(y_size, 4).data();
            plan.Forward(c.stream, in, of, s.bias ? c.memory.In(s.out, 3).data() : nullptr,
                         c.memory.Out(y_size).data());
            plan.BackwardKernel(c.stream, in, gradient, c.memory.Out(kernel_size).data());
            plan.BackwardInput(c.stream, of, gradient, c.memory.Out(x_size).data());
          },
          {y, dkernel, dx});
  }
}

TEST_P(DevicePlans, AConvolutionOfNoExamplesHasNoGradient) {
  const ConvSpec s{.batch = 0,
                   .height = 5,
                   .width = 5,
                   .in = 3,
                   .kernel_h = 3,
                   .kernel_w = 3,
                   .out = 4,
                   .bias = true};
  Check(0,
        [&](const Call& c) {
          ConvPlan& plan = c.kernels.Conv(s);
          const float* const in = c.memory.In(0, 1).data();
          const float* const kernel = c.memory.In(108, 2).data();
          plan.Forward(c.stream, in, kernel, c.memory.In(4, 3).data(), c.memory.Out(0).data());
          plan.BackwardKernel(c.stream, in, in, c.memory.Out(108).data());
          plan.BackwardInput(c.stream, kernel, in, c.memory.Out(0).data());
        },
        {Doubles(), Doubles(108, 0.0), Doubles()});
}

TEST_P(DevicePlans, ProductsWithGeluAndItsGradient) {
  const std::int64_t m = 17;
  const std::int64_t n = 32;
  const std::int64_t k = 24;
  const auto gelu = [](double x) {
    return x / 2 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
  };
  const auto derivative = [&](double x) { return (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5; };
  const Doubles a = Random(m * k, 1);
  const Doubles b = Random(k * n, 2);
  const Doubles bias = Random(n, 3);
  const Doubles at = Random(m * n, 4);
  Doubles y;
  Doubles before;
  Doubles gradient;
  for (std::int64_t i = 0; i < m * n; ++i) {
    double sum = 0;
    for (std::int64_t j = 0; j < k; ++j) {
      sum +=
          a[static_cast<std::size_t>(i / n * k + j)] * b[static_cast<std::size_t>(j * n + i % n)];
    }
    gradient.push_back(sum * derivative(at[static_cast<std::size_t>(i)]));
    before.push_back(sum + bias[static_cast<std::size_t>(i % n)]);
    y.push_back(gelu(before.back()));
  }
  Check(ProductRounding(k) + 1e-5,
        [&](const Call& c) {
          MatMulSpec spec{.m = m, .n = n, .k = k, .bias = true, .activation = Activation::kGelu};
          const float* const in_a = c.memory.In(m * k, 1).data();
          const float* const in_b = c.memory.In(k * n, 2).data();
          const float* const add = c.memory.In(n, 3).data();
          c.kernels.MatMul(spec).Run(c.stream, in_a, in_b, add, c.memory.Out(m * n).data());
          spec.keeps_before = true;
          float* const out = c.memory.Out(m * n).data();
          c.kernels.MatMul(spec).Run(c.stream, in_a, in_b, add, out, c.memory.Out(m * n).data());
          spec = {.m = m, .n = n, .k = k, .gradient_of = Activation::kGelu};
          // It is only read.
          c.kernels.MatMul(spec).Run(c.stream, in_a, in_b, nullptr, c.memory.Out(m * n).data(),
                                     c.memory.In(m * n, 4).data());
        },
        {y, y, before, gradient});
}

TEST_P(DevicePlans, PoolsAndTheirGradients) {
  const PoolSpec specs[] = {
      {.batch = 0,
       .height = 4,
       .width = 4,
       .channels = 3,
       .window_h = 2,
       .window_w = 2,
       .stride_h = 2,
       .stride_w = 2},
      {.batch = 2,
       .height = 4,
       .width = 6,
       .channels = 3,
       .window_h = 2,
       .window_w = 2,
       .stride_h = 2,
       .stride_w = 2},
      {.batch = 3,
       .height = 7,
       .width = 5,
       .channels = 9,
       .window_h = 3,
       .window_w = 3,
       .stride_h = 2,
       .stride_w = 2,
       .pad_top = 1,
       .pad_bottom = 1,
       .pad_left = 1,
       .pad_right = 1},
      {.batch = 1,
       .height = 5,
       .width = 5,
       .channels = 1,
       .window_h = 2,
       .window_w = 3,
       .pad_right = 1},
      {.batch = 2, .height = 20, .width = 20, .channels = 8, .window_h = 20, .window_w = 20}};
  for (const PoolSpec& of_largest : specs) {
    for (const bool max : {true, false}) {
      PoolSpec s = of_largest;
      s.max = max;
      SCOPED_TRACE(std::to_string(&of_largest - specs) + (max ? ", max" : ", average"));
      const std::int64_t x_size = s.batch * s.height * s.width * s.channels;
      const std::int64_t y_size = s.batch * s.out_height() * s.out_width() * s.channels;
      // Few values, so that windows have equal elements.
      std::vector<float> x = RandomFloats(x_size, 1);
      for (float& value : x) {
        value = std::floor(value * 4);
      }
      const Doubles dy = Random(y_size, 2);
      Doubles y(static_cast<std::size_t>(y_size), 0.0);
      Doubles dx(static_cast<std::size_t>(x_size), 0.0);
      for (std::int64_t o = 0; o < y_size; ++o) {
        const std::int64_t channel = o % s.channels;
        const std::int64_t left = o / s.channels % s.out_width() * s.stride_w - s.pad_left;
        const std::int64_t top =
            o / s.channels / s.out_width() % s.out_height() * s.stride_h - s.pad_top;
        const std::int64_t image = o / s.channels / s.out_width() / s.out_height();
        std::vector<std::int64_t> window;
        for (std::int64_t h = top; h < top + s.window_h; ++h) {
          for (std::int64_t w = left; w < left + s.window_w; ++w) {
            if (h >= 0 && h < s.height && w >= 0 && w < s.width) {
              window.push_back(((image * s.height + h) * s.width + w) * s.channels + channel);
            }
          }
        }
        const auto value = [&](std::int64_t i) { return x[static_cast<std::size_t>(i)]; };
        if (max) {
          const auto best = *std::max_element(
              window.begin(), window.end(),
              [&](std::int64_t a, std::int64_t b) { return value(a) < value(b); });
          At(y, o) = value(best);
          At(dx, best) += At(dy, o);
        } else {
          for (const std::int64_t i : window) {
            At(y, o) += value(i) / static_cast<double>(window.size());
            At(dx, i) += At(dy, o) / static_cast<double>(window.size());
          }
        }
      }
      Check(1e-5,
            [&](const Call& c) {
              PoolPlan& plan = c.kernels.Pool(s);
              std::byte* const workspace = c.memory.Workspace(plan.workspace_bytes());
              plan.Forward(c.stream, c.memory.In(x).data(), c.memory.Out(y_size).data(), workspace);
              plan.Backward(c.stream, c.memory.In(y_size, 2).data(), workspace,
                            c.memory.Out(x_size).data());
            },
            {y, dx});
    }
  }
}

struct AttentionResults {
  Doubles y, dqkv;
};

AttentionResults PlainAttention(const AttentionSpec& s, const Doubles& qkv, const Doubles& dy) {
  AttentionResults r{Doubles(dy.size(), 0.0), Doubles(qkv.size(), 0.0)};
  const double scale = 1 / std::sqrt(static_cast<double>(s.head_size));
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t h = 0; h < s.heads; ++h) {
      const auto packed = [&](std::int64_t place, std::int64_t part, std::int64_t d) {
        return (((b * s.length + place) * 3 + part) * s.heads + h) * s.head_size + d;
      };
      const auto plain = [&](std::int64_t place, std::int64_t d) {
        return ((b * s.length + place) * s.heads + h) * s.head_size + d;
      };
      for (std::int64_t q = 0; q < s.length; ++q) {
        const std::int64_t keys = s.causal ? q + 1 : s.length;
        Doubles p(static_cast<std::size_t>(keys));
        for (std::int64_t k = 0; k < keys; ++k) {
          for (std::int64_t d = 0; d < s.head_size; ++d) {
            At(p, k) += At(qkv, packed(q, 0, d)) * At(qkv, packed(k, 1, d)) * scale;
          }
        }
        const double largest = *std::max_element(p.begin(), p.end());
        double sum = 0;
        for (double& score : p) {
          score = std::exp(score - largest);
          sum += score;
        }
        Doubles dp(p.size(), 0.0);
        double delta = 0;
        for (std::int64_t k = 0; k < keys; ++k) {
          At(p, k) /= sum;
          for (std::int64_t d = 0; d < s.head_size; ++d) {
            const double g = At(dy, plain(q, d));
            At(r.y, plain(q, d)) += At(p, k) * At(qkv, packed(k, 2, d));
            At(r.dqkv, packed(k, 2, d)) += At(p, k) * g;
            At(dp, k) += g * At(qkv, packed(k, 2, d));
          }
          delta += At(p, k) * At(dp, k);
        }
        for (std::int64_t k = 0; k < keys; ++k) {
          const double ds = At(p, k) * (At(dp, k) - delta) * scale;
          for (std::int64_t d = 0; d < s.head_size; ++d) {
            At(r.dqkv, packed(q, 0, d)) += ds * At(qkv, packed(k, 1, d));
            At(r.dqkv, packed(k, 1, d)) += ds * At(qkv, packed(q, 0, d));
          }
        }
      }
    }
  }
  return r;
}

TEST_P(DevicePlans, AttentionAndItsGradient) {
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
      const std::int64_t n = s.batch * s.length * s.heads * s.head_size;
      // Scores in [-6, 6] or so: some places matter more than others.
      std::vector<float> qkv = RandomFloats(3 * n, 1);
      for (float& value : qkv) {
        value *= 2;
      }
      const AttentionResults expected =
          PlainAttention(s, Doubles(qkv.begin(), qkv.end()), Random(n, 2));
      Check(GetParam().tf32 ? 5e-3 : 2e-5,
            [&](const Call& c) {
              AttentionPlan& plan = c.kernels.Attention(s);
              const float* const packed = c.memory.In(qkv).data();
              float* const y = c.memory.Out(n).data();
              auto* const saved = reinterpret_cast<float*>(c.memory.Workspace(
                  plan.saved_elements() * static_cast<std::int64_t>(sizeof(float))));
              plan.Forward(c.stream, packed, y, saved);
              plan.Backward(c.stream, packed, y, saved, c.memory.In(n, 2).data(),
                            c.memory.Out(3 * n).data());
            },
            {expected.y, expected.dqkv});
    }
  }
}

}  // namespace
}  // namespace cohort::testing
