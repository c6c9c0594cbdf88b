#include <cohort/core/random.h>

#include <Eigen/Core>
#include <cstring>

#include "cpu/cpu_kernels.h"

namespace cohort::cpu {
namespace {

using Array = Eigen::Map<Eigen::ArrayXf>;
using ConstArray = Eigen::Map<const Eigen::ArrayXf>;

// body(begin, length) over pieces that stay in the first-level cache.
template <typename Body>
void ForBlocks(std::int64_t count, const Body& body) {
  constexpr std::int64_t kBlock = 2048;
  ParallelFor(count, kGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; i += kBlock) {
      body(i, std::min(kBlock, end - i));
    }
  });
}

std::int64_t Size(ConstElements x) { return static_cast<std::int64_t>(x.size()); }

constexpr float kGeluScale = 0.7978845608028654F;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715F;

void ActivateBlock(Activation f, const ConstArray& x, Array& y) {
  switch (f) {
    case Activation::kNone:
      y = x;
      return;
    case Activation::kRelu:
      y = (x > 0.0F).select(x, 0.0F);
      return;
    case Activation::kGelu:
      y = 0.5F * x * (1.0F + (kGeluScale * (x + kGeluCubic * x * x * x)).tanh());
      return;
    case Activation::kSigmoid:
      y = 1.0F / (1.0F + (-x).exp());
      return;
    case Activation::kTanh:
      y = x.tanh();
      return;
  }
}

}  // namespace

void CpuKernels::Fill(Stream& stream, FloatSpan y, float value) {
  Put(stream, [=] { std::fill(y.begin(), y.end(), value); });
}

void CpuKernels::Copy(Stream& stream, ConstElements x, Elements y) {
  Put(stream, [=] {
    if (x.empty()) {
      return;
    }
    if (x.dtype() == y.dtype()) {
      std::memmove(y.raw(), x.raw(), x.bytes());
    } else if (IsHalf(y.dtype())) {
      Round(Widened(x).data(), y);
    } else {
      Widen(x, y.floats());
    }
  });
}

void CpuKernels::Add(Stream& stream, ConstElements a, ConstElements b, Elements y) {
  Require(a.dtype() == y.dtype() && (b.dtype() == y.dtype() || !IsHalf(y.dtype())),
          "Add of one type, or of 16 bits to float32");
  Put(stream, [=] {
    const Widened left(a);
    const Widened right(b);
    Rounded out(y);
    const float* const l = left.data();
    const float* const r = right.data();
    float* const sum = out.data();
    ParallelFor(Size(y), kGrain, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) {
        sum[i] = l[i] + r[i];
      }
    });
  });
}

void CpuKernels::Multiply(Stream& stream, ConstFloatSpan a, ConstFloatSpan b, FloatSpan y) {
  Put(stream, [=] {
    ParallelFor(Size(y), kGrain, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) {
        y.data()[i] = a.data()[i] * b.data()[i];
      }
    });
  });
}

void CpuKernels::Activate(Stream& stream, Activation f, ConstElements x, Elements y) {
  Put(stream, [=] {
    const Widened in(x);
    Rounded result(y);
    ForBlocks(Size(x), [&](std::int64_t i, std::int64_t n) {
      Array out(result.data() + i, n);
      ActivateBlock(f, ConstArray(in.data() + i, n), out);
    });
  });
}

void CpuKernels::ActivateBackward(Stream& stream, Activation f, ConstElements x, ConstElements y,
                                  ConstElements dy, Elements dx) {
  Put(stream, [=] {
    const Widened of(f == Activation::kGelu ? x : y);
    const Widened gradient(dy);
    Rounded result(dx);
    ForBlocks(Size(dy), [&](std::int64_t i, std::int64_t n) {
      const ConstArray g(gradient.data() + i, n);
      Array out(result.data() + i, n);
      if (f == Activation::kNone) {
        out = g;
      } else if (f == Activation::kGelu) {
        const ConstArray v(of.data() + i, n);
        const Eigen::ArrayXf t = (kGeluScale * (v + kGeluCubic * v * v * v)).tanh();
        out = g * (0.5F * (1.0F + t) +
                   0.5F * v * (1.0F - t * t) * kGeluScale * (1.0F + 3.0F * kGeluCubic * v * v));
      } else {
        const ConstArray v(of.data() + i, n);
        if (f == Activation::kRelu) {
          out = (v > 0.0F).select(g, 0.0F);
        } else if (f == Activation::kSigmoid) {
          out = g * v * (1.0F - v);
        } else {
          out = g * (1.0F - v * v);
        }
      }
    });
  });
}

void CpuKernels::Dropout(Stream& stream, const DropoutSpec& spec, ConstElements x, Elements y) {
  Put(stream, [=] {
    const Widened in(x);
    Rounded result(y);
    const float* const from = in.data();
    float* const to = result.data();
    const Philox philox(spec.key);
    const float scale = 1.0F / (1.0F - spec.rate);
    // Kept where the draw of 32 bits is at least rate * 2^32.
    const auto threshold = static_cast<std::uint64_t>(static_cast<double>(spec.rate) * 0x1p32);
    ParallelFor(Size(x), kGrain, [&](std::int64_t begin, std::int64_t end, int) {
      Philox::Block block{};
      for (std::int64_t i = begin; i < end; ++i) {
        const std::uint64_t counter = spec.first + static_cast<std::uint64_t>(i);
        if (i == begin || counter % 4 == 0) {
          block = philox.At(counter / 4, spec.step);
        }
        to[i] = block[counter % 4] >= threshold ? from[i] * scale : 0.0F;
      }
    });
  });
}

}  // namespace cohort::cpu
