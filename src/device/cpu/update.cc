#include <cohort/device/update.h>

#include "cpu/cpu_kernels.h"
#include "cpu/parallel.h"

namespace cohort::cpu {
namespace {

// Elements of one part, alone: the compiler sees that its spans do not overlap.
template <typename Rule>
void UpdateRun(const Rule& rule, const UpdatePart& part, std::size_t begin, std::size_t end) {
  float* __restrict w = part.value.data();
  const float* __restrict gradient = part.gradient.data();
  [[maybe_unused]] float* __restrict a = part.slots[0].data();
  [[maybe_unused]] float* __restrict b = part.slots[1].data();
  const float scale = part.gradient_scale;
  for (std::size_t i = begin; i < end; ++i) {
    if constexpr (Rule::kSlots == 0) {
      rule(gradient[i] * scale, w[i]);
    } else if constexpr (Rule::kSlots == 1) {
      rule(gradient[i] * scale, w[i], a[i]);
    } else {
      rule(gradient[i] * scale, w[i], a[i], b[i]);
    }
  }
}

}  // namespace

void CpuKernels::Update(Stream& stream, const UpdateRule& rule, std::span<const UpdatePart> parts) {
  Put(stream, [rule, parts = std::vector<UpdatePart>(parts.begin(), parts.end())] {
    std::visit(
        [&](const auto& r) {
          for (const UpdatePart& part : parts) {
            ParallelFor(static_cast<std::int64_t>(part.value.size()), kGrain,
                        [&](std::int64_t begin, std::int64_t end, int) {
                          UpdateRun(r, part, static_cast<std::size_t>(begin),
                                    static_cast<std::size_t>(end));
                        });
          }
        },
        rule);
  });
}

void CpuKernels::SumSquares(Stream& stream, ConstFloatSpan x, std::span<double> sum) {
  Put(stream, [=] { sum[0] = SquaredNorm(x); });
}

}  // namespace cohort::cpu

namespace cohort {

void UpdateOnHost(const UpdateRule& rule, const UpdatePart& part) {
  std::visit([&](const auto& r) { cpu::UpdateRun(r, part, 0, part.value.size()); }, rule);
}

double SquaredNorm(std::span<const float> values) {
  // Eight running sums, for the vector units; which element goes to which depends on its position
  // only.
  constexpr std::size_t kLanes = 8;
  std::array<double, kLanes> sums{};
  const std::size_t whole = values.size() / kLanes * kLanes;
  for (std::size_t i = 0; i < whole; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const double x = values[i + lane];
      sums[lane] += x * x;
    }
  }
  for (std::size_t i = whole; i < values.size(); ++i) {
    const double x = values[i];
    sums[i - whole] += x * x;
  }
  double total = 0;
  for (const double lane : sums) {
    total += lane;
  }
  return total;
}

}  // namespace cohort
