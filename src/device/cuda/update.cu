// Update rules over many parts in few launches. Compiled without contraction, as the CPU's, so that
// both come to the same bits.

#include <algorithm>
#include <variant>

#include "cuda/cuda_kernels.h"
#include "cuda/launch.cuh"

namespace cohort::cuda {
namespace {

constexpr int kRuns = 2;  // of four elements, for each thread
constexpr std::int64_t kChunk = std::int64_t{kThreads} * 4 * kRuns;
constexpr int kMostParts = 64;  // of a launch, whose arguments are at most 4 KiB

struct Part {
  float* value;
  const float* gradient;
  float* slots[kMaxUpdateSlots];
  std::int64_t size;
  float gradient_scale;
  bool aligned;
};

struct Parts {
  Part part[kMostParts];
  unsigned first_block[kMostParts];  // of each part
  int count;
};
static_assert(sizeof(Parts) + 64 <= 4096);

template <typename Rule>
__device__ __forceinline__ void Apply(const Rule& rule, float g, float& w, float& a, float& b) {
  if constexpr (Rule::kSlots == 0) {
    rule(g, w);
  } else if constexpr (Rule::kSlots == 1) {
    rule(g, w, a);
  } else {
    rule(g, w, a, b);
  }
}

// A block has kChunk elements of one part.
template <typename Rule>
__global__ void __launch_bounds__(kThreads) UpdateKernel(Rule rule, const __grid_constant__ Parts parts) {
  int p = 0;
  while (p + 1 < parts.count && parts.first_block[p + 1] <= blockIdx.x) {
    ++p;
  }
  const Part& part = parts.part[p];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x - parts.first_block[p]) * kChunk;
  const float scale = part.gradient_scale;
  if (part.aligned && begin + kChunk <= part.size) {
    Floats<4> g[kRuns];
    Floats<4> w[kRuns];
    Floats<4> a[kRuns] = {};
    Floats<4> b[kRuns] = {};
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const std::int64_t i = begin + (run * kThreads + static_cast<int>(threadIdx.x)) * 4;
      g[run] = Load<4>(part.gradient + i);
      w[run] = Load<4>(part.value + i);
      if constexpr (Rule::kSlots > 0) {
        a[run] = Load<4>(part.slots[0] + i);
      }
      if constexpr (Rule::kSlots > 1) {
        b[run] = Load<4>(part.slots[1] + i);
      }
    }
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const std::int64_t i = begin + (run * kThreads + static_cast<int>(threadIdx.x)) * 4;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Apply(rule, g[run].v[k] * scale, w[run].v[k], a[run].v[k], b[run].v[k]);
      }
      Store<4>(part.value + i, w[run]);
      if constexpr (Rule::kSlots > 0) {
        Store<4>(part.slots[0] + i, a[run]);
      }
      if constexpr (Rule::kSlots > 1) {
        Store<4>(part.slots[1] + i, b[run]);
      }
    }
    return;
  }
  const std::int64_t end = min(part.size, begin + kChunk);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    float w = part.value[i];
    float a = Rule::kSlots > 0 ? part.slots[0][i] : 0.0F;
    float b = Rule::kSlots > 1 ? part.slots[1][i] : 0.0F;
    Apply(rule, part.gradient[i] * scale, w, a, b);
    part.value[i] = w;
    if constexpr (Rule::kSlots > 0) {
      part.slots[0][i] = a;
    }
    if constexpr (Rule::kSlots > 1) {
      part.slots[1][i] = b;
    }
  }
}

template <typename Rule>
void LaunchUpdate(Stream& stream, const Rule& rule, std::span<const UpdatePart> parts) {
  const cudaStream_t native = Native(stream);
  Parts some = {};
  std::int64_t blocks = 0;
  const auto launch = [&] {
    if (some.count > 0) {
      UpdateKernel<<<static_cast<unsigned>(blocks), kThreads, 0, native>>>(rule, some);
      Launched(stream, "Update");
    }
    some.count = 0;
    blocks = 0;
  };
  for (const UpdatePart& part : parts) {
    if (part.value.empty()) {
      continue;
    }
    const auto size = static_cast<std::int64_t>(part.value.size());
    if (some.count == kMostParts || blocks + CeilDiv(size, kChunk) > kMostBlocks) {
      launch();
    }
    some.first_block[some.count] = static_cast<unsigned>(blocks);
    some.part[some.count] = {
        .value = part.value.data(),
        .gradient = part.gradient.data(),
        .slots = {part.slots[0].data(), part.slots[1].data()},
        .size = size,
        .gradient_scale = part.gradient_scale,
        .aligned = Aligned16(part.value.data(), part.gradient.data(),
                             Rule::kSlots > 0 ? part.slots[0].data() : nullptr,
                             Rule::kSlots > 1 ? part.slots[1].data() : nullptr)};
    ++some.count;
    blocks += CeilDiv(size, kChunk);
  }
  launch();
}

}  // namespace

void CudaKernels::Update(Stream& stream, const UpdateRule& rule,
                         std::span<const UpdatePart> parts) {
  std::visit([&](const auto& r) { LaunchUpdate(stream, r, parts); }, rule);
}

}  // namespace cohort::cuda
