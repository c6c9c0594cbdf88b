#include "cpu/cpu_kernels.h"

#include <cohort/core/thread_pool.h>

#include "cpu/attention.h"
#include "cpu/half_plans.h"
#include "cpu/pooling.h"
#include "cpu/short_spins.h"
#include "gelu_apart.h"

namespace cohort {
namespace cpu {
namespace {

template <typename Map, typename Spec, typename Make>
auto& FindOrMake(Map& plans, const Spec& spec, const Make& make) {
  auto& plan = plans[spec];
  if (plan == nullptr) {
    plan = make();
  }
  return *plan;
}

}  // namespace

CpuKernels::CpuKernels(int threads) : threads_(threads), engine_(threads) {}

MatMulPlan& CpuKernels::MatMul(const MatMulSpec& spec) {
  return FindOrMake(matmuls_, spec, [&]() -> std::unique_ptr<MatMulPlan> {
    if (std::unique_ptr<MatMulPlan> apart = MakeGeluApart(*this, spec)) {
      return apart;
    }
    if (IsHalf(spec.type) || IsHalf(spec.out)) {
      Require(spec.out == spec.type || spec.out == DType::kFloat32,
              "a product into float32, or the type of its operands");
      MatMulSpec wide = spec;
      wide.type = wide.out = DType::kFloat32;
      return MakeHalfMatMul(threads_, spec, MatMul(wide));
    }
    std::unique_ptr<MatMulPlan> plan = MakeEigenMatMul(threads_, spec);
    return plan ? std::move(plan) : MakeMatMul(engine_, spec);
  });
}

ConvPlan& CpuKernels::Conv(const ConvSpec& spec) {
  return FindOrMake(convs_, spec, [&] {
    if (IsHalf(spec.type)) {
      ConvSpec wide = spec;
      wide.type = DType::kFloat32;
      return MakeHalfConv(threads_, spec, Conv(wide));
    }
    return MakeConv(engine_, spec);
  });
}

PoolPlan& CpuKernels::Pool(const PoolSpec& spec) {
  return FindOrMake(pools_, spec, [&] {
    if (IsHalf(spec.type)) {
      PoolSpec wide = spec;
      wide.type = DType::kFloat32;
      return MakeHalfPool(threads_, spec, Pool(wide));
    }
    return MakePool(threads_, spec);
  });
}

AttentionPlan& CpuKernels::Attention(const AttentionSpec& spec) {
  return FindOrMake(attentions_, spec, [&] {
    if (IsHalf(spec.type)) {
      AttentionSpec wide = spec;
      wide.type = DType::kFloat32;
      return MakeHalfAttention(threads_, spec, Attention(wide));
    }
    return MakeAttention(threads_, spec);
  });
}

}  // namespace cpu

std::unique_ptr<Kernels> MakeCpuKernels(int threads) {
  Require(threads >= 0, "a number of threads, or 0 for one per available core");
  if (threads == 0) {
    threads = AvailableCores();
  }
  cpu::SpinShortly(threads);
  return std::make_unique<cpu::CpuKernels>(threads);
}

}  // namespace cohort
