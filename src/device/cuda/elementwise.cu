#include <cmath>

#include "cuda/cuda_kernels.h"
#include "cuda/launch.cuh"

namespace cohort::cuda {
namespace {

// y[i] = f.At<1>(i) for all i; V of them at once, two such groups for each thread so that their
// loads are under way together.
template <int V, typename T, typename F>
__global__ void __launch_bounds__(kThreads) ElementKernel(std::int64_t n, T* y, F f) {
  constexpr std::int64_t kPerBlock = 2 * kThreads;
  const std::int64_t groups = n / V;
  for (std::int64_t first = blockIdx.x * kPerBlock; first < groups;
       first += gridDim.x * kPerBlock) {
    const std::int64_t i = first + threadIdx.x;
    const std::int64_t j = i + kThreads;
    if (j < groups) {
      const Floats<V> a = f.template At<V>(i * V);
      const Floats<V> b = f.template At<V>(j * V);
      Store<V>(y + i * V, a);
      Store<V>(y + j * V, b);
    } else if (i < groups) {
      Store<V>(y + i * V, f.template At<V>(i * V));
    }
  }
  if constexpr (V > 1) {
    const std::int64_t i = groups * V + threadIdx.x;
    if (blockIdx.x == 0 && i < n) {
      Store<1>(y + i, f.template At<1>(i));
    }
  }
}

// W elements at once where pointers are aligned.
template <int W, typename T, typename F>
void ForElements(Stream& stream, const char* what, bool aligned, std::int64_t n, T* y, const F& f) {
  if (n == 0) {
    return;
  }
  const cudaStream_t native = Native(stream);
  if (aligned && Aligned16(y)) {
    ElementKernel<W><<<Blocks(n, 2 * W * kThreads), kThreads, 0, native>>>(n, y, f);
  } else {
    ElementKernel<1><<<Blocks(n, 2 * kThreads), kThreads, 0, native>>>(n, y, f);
  }
  Launched(stream, what);
}

// Of how many elements of these types a thread moves 16 bytes, at least of the widest.
template <typename... T>
constexpr int kWidth = (std::is_same_v<T, float> || ...) ? 4 : 8;

struct Constant {
  float value;
  template <int V>
  __device__ Floats<V> At(std::int64_t /*i*/) const {
    Floats<V> y;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      y.v[k] = value;
    }
    return y;
  }
};

// Op()(a[i]).
template <typename Op, typename A>
struct Unary {
  const A* a;
  template <int V>
  __device__ Floats<V> At(std::int64_t i) const {
    Floats<V> y = Load<V>(a + i);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      y.v[k] = Op()(y.v[k]);
    }
    return y;
  }
};

template <typename Op, typename A, typename B>
struct Binary {
  const A* a;
  const B* b;
  template <int V>
  __device__ Floats<V> At(std::int64_t i) const {
    Floats<V> y = Load<V>(a + i);
    const Floats<V> other = Load<V>(b + i);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      y.v[k] = Op()(y.v[k], other.v[k]);
    }
    return y;
  }
};

constexpr float kGeluScale = 0.7978845608028654F;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715F;

struct Identity {
  __device__ float operator()(float x) const { return x; }
};
struct Plus {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Times {
  __device__ float operator()(float a, float b) const { return a * b; }
};
struct Relu {
  __device__ float operator()(float x) const { return x > 0.0F ? x : 0.0F; }
};
struct Gelu {
  __device__ float operator()(float x) const {
    return 0.5F * x * (1.0F + tanhf(kGeluScale * (x + kGeluCubic * x * x * x)));
  }
};
struct Sigmoid {
  __device__ float operator()(float x) const { return 1.0F / (1.0F + expf(-x)); }
};
struct Tanh {
  __device__ float operator()(float x) const { return tanhf(x); }
};

// Gradients: of y (of x for gelu) and dy.
struct ReluBackward {
  __device__ float operator()(float y, float dy) const { return y > 0.0F ? dy : 0.0F; }
};
struct GeluBackward {
  __device__ float operator()(float x, float dy) const {
    const float t = tanhf(kGeluScale * (x + kGeluCubic * x * x * x));
    return dy * (0.5F * (1.0F + t) +
                 0.5F * x * (1.0F - t * t) * kGeluScale * (1.0F + 3.0F * kGeluCubic * x * x));
  }
};
struct SigmoidBackward {
  __device__ float operator()(float y, float dy) const { return dy * y * (1.0F - y); }
};
struct TanhBackward {
  __device__ float operator()(float y, float dy) const { return dy * (1.0F - y * y); }
};

std::int64_t CountOf(const Elements& y) { return static_cast<std::int64_t>(y.size()); }

template <typename Op, typename A, typename Y>
void OfOne(Stream& stream, const char* what, const A* a, std::int64_t n, Y* y) {
  ForElements<kWidth<A, Y>>(stream, what, Aligned16(a), n, y, Unary<Op, A>{a});
}

template <typename Op, typename A, typename B, typename Y>
void OfTwo(Stream& stream, const char* what, const A* a, const B* b, std::int64_t n, Y* y) {
  ForElements<kWidth<A, B, Y>>(stream, what, Aligned16(a, b), n, y, Binary<Op, A, B>{a, b});
}

// All of one type.
template <typename Op>
void OfOne(Stream& stream, const char* what, ConstElements a, Elements y) {
  RequireType(a.dtype() == y.dtype(), what);
  WithType(y.dtype(), [&](auto* type) {
    OfOne<Op>(stream, what, DataOf(a, type), CountOf(y), DataOf(y, type));
  });
}

template <typename Op>
void OfTwo(Stream& stream, const char* what, ConstElements a, ConstElements b, Elements y) {
  RequireType(a.dtype() == y.dtype() && b.dtype() == y.dtype(), what);
  WithType(y.dtype(), [&](auto* type) {
    OfTwo<Op>(stream, what, DataOf(a, type), DataOf(b, type), CountOf(y), DataOf(y, type));
  });
}

// The four words of cohort::Philox::At(low, high).
__device__ Vec<std::uint32_t, 4> PhiloxAt(std::uint64_t key, std::uint64_t low,
                                          std::uint64_t high) {
  auto c0 = static_cast<std::uint32_t>(low);
  auto c1 = static_cast<std::uint32_t>(low >> 32);
  auto c2 = static_cast<std::uint32_t>(high);
  auto c3 = static_cast<std::uint32_t>(high >> 32);
  auto k0 = static_cast<std::uint32_t>(key);
  auto k1 = static_cast<std::uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint32_t n0 = __umulhi(0xCD9E8D57U, c2) ^ c1 ^ k0;
    const std::uint32_t n2 = __umulhi(0xD2511F53U, c0) ^ c3 ^ k1;
    c1 = 0xCD9E8D57U * c2;
    c3 = 0xD2511F53U * c0;
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return {{c0, c1, c2, c3}};
}

struct DropoutArguments {
  std::uint64_t key, step, first;
  std::uint64_t threshold;  // kept where the draw of 32 bits is at least that
  float scale;
};

// A thread has the four elements of one counter; those that begin the span may share theirs with
// elements before it.
template <bool kVectors, typename T>
__global__ void __launch_bounds__(kThreads)
    DropoutKernel(std::int64_t n, const T* x, T* y, DropoutArguments d) {
  const auto before = static_cast<std::int64_t>(d.first % 4);
  const std::int64_t groups = (n + before + 3) / 4;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t g = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; g < groups;
       g += step) {
    const std::uint64_t counter = (d.first - d.first % 4 + 4 * static_cast<std::uint64_t>(g)) / 4;
    const Vec<std::uint32_t, 4> draw = PhiloxAt(d.key, counter, d.step);
    const std::int64_t i = 4 * g - before;
    if (kVectors && i + 4 <= n) {
      Floats<4> v = Load<4>(x + i);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        v.v[k] = draw.v[k] >= d.threshold ? v.v[k] * d.scale : 0.0F;
      }
      Store<4>(y + i, v);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (i + k >= 0 && i + k < n) {
          y[i + k] = RoundedTo<T>(draw.v[k] >= d.threshold ? ToFloat(x[i + k]) * d.scale : 0.0F);
        }
      }
    }
  }
}

}  // namespace

void CudaKernels::Fill(Stream& stream, FloatSpan y, float value) {
  ForElements<4>(stream, "Fill", true, static_cast<std::int64_t>(y.size()), y.data(),
                 Constant{value});
}

void Convert(Stream& stream, ConstElements x, Elements y) {
  if (x.raw() == y.raw() && x.dtype() == y.dtype()) {
    return;
  }
  if (x.dtype() == y.dtype()) {
    OfOne<Identity>(stream, "Copy", x, y);
  } else if (IsHalf(y.dtype())) {
    RequireType(x.dtype() == DType::kFloat32, "Copy");
    WithType(y.dtype(), [&](auto* type) {
      OfOne<Identity>(stream, "Copy", x.floats(), CountOf(y), DataOf(y, type));
    });
  } else {
    WithType(x.dtype(), [&](auto* type) {
      OfOne<Identity>(stream, "Copy", DataOf(x, type), CountOf(y), y.floats());
    });
  }
}

void CudaKernels::Copy(Stream& stream, ConstElements x, Elements y) { Convert(stream, x, y); }

void CudaKernels::Add(Stream& stream, ConstElements a, ConstElements b, Elements y) {
  if (b.dtype() == y.dtype()) {
    OfTwo<Plus>(stream, "Add", a, b, y);
    return;
  }
  RequireType(a.dtype() == y.dtype() && y.dtype() == DType::kFloat32, "Add");
  WithType(b.dtype(), [&](auto* type) {
    OfTwo<Plus>(stream, "Add", a.floats(), DataOf(b, type), CountOf(y), y.floats());
  });
}

void CudaKernels::Multiply(Stream& stream, ConstFloatSpan a, ConstFloatSpan b, FloatSpan y) {
  OfTwo<Times>(stream, "Multiply", a.data(), b.data(), static_cast<std::int64_t>(y.size()),
               y.data());
}

void CudaKernels::Activate(Stream& stream, Activation f, ConstElements x, Elements y) {
  switch (f) {
    case Activation::kNone:
      Copy(stream, x, y);
      return;
    case Activation::kRelu:
      OfOne<Relu>(stream, "Activate relu", x, y);
      return;
    case Activation::kGelu:
      OfOne<Gelu>(stream, "Activate gelu", x, y);
      return;
    case Activation::kSigmoid:
      OfOne<Sigmoid>(stream, "Activate sigmoid", x, y);
      return;
    case Activation::kTanh:
      OfOne<Tanh>(stream, "Activate tanh", x, y);
      return;
  }
}

void CudaKernels::ActivateBackward(Stream& stream, Activation f, ConstElements x, ConstElements y,
                                   ConstElements dy, Elements dx) {
  switch (f) {
    case Activation::kNone:
      Copy(stream, dy, dx);
      return;
    case Activation::kRelu:
      OfTwo<ReluBackward>(stream, "ActivateBackward relu", y, dy, dx);
      return;
    case Activation::kGelu:
      OfTwo<GeluBackward>(stream, "ActivateBackward gelu", x, dy, dx);
      return;
    case Activation::kSigmoid:
      OfTwo<SigmoidBackward>(stream, "ActivateBackward sigmoid", y, dy, dx);
      return;
    case Activation::kTanh:
      OfTwo<TanhBackward>(stream, "ActivateBackward tanh", y, dy, dx);
      return;
  }
}

void CudaKernels::Dropout(Stream& stream, const DropoutSpec& spec, ConstElements x, Elements y) {
  RequireType(x.dtype() == y.dtype(), "Dropout");
  const auto n = static_cast<std::int64_t>(x.size());
  if (n == 0) {
    return;
  }
  const DropoutArguments d{
      .key = spec.key,
      .step = spec.step,
      .first = spec.first,
      .threshold = static_cast<std::uint64_t>(static_cast<double>(spec.rate) * 0x1p32),
      .scale = 1.0F / (1.0F - spec.rate)};
  const cudaStream_t native = Native(stream);
  const unsigned blocks = Blocks(n + 3, 4 * kThreads);
  WithType(x.dtype(), [&](auto* type) {
    const auto* const from = DataOf(x, type);
    auto* const to = DataOf(y, type);
    if (spec.first % 4 == 0 && Aligned16(from, to)) {
      DropoutKernel<true><<<blocks, kThreads, 0, native>>>(n, from, to, d);
    } else {
      DropoutKernel<false><<<blocks, kThreads, 0, native>>>(n, from, to, d);
    }
  });
  Launched(stream, "Dropout");
}

}  // namespace cohort::cuda
