#include "cuda/cuda_kernels.h"

#include <utility>

#include "cuda/cuda_common.h"
#include "gelu_apart.h"

namespace cohort::cuda {
namespace {

template <typename Map, typename Spec, typename Make>
auto& FindOrMake(Map& plans, const Spec& spec, const Make& make) {
  auto& plan = plans[spec];
  if (plan == nullptr) {
    plan = make();
  }
  return *plan;
}

int Attribute(cudaDeviceAttr attribute, int ordinal) {
  int value = 0;
  Check(cudaDeviceGetAttribute(&value, attribute, ordinal), "an attribute of the GPU");
  return value;
}

}  // namespace

CudaKernels::CudaKernels(std::shared_ptr<Device> device, int ordinal, bool tf32)
    : libraries_(std::move(device), ordinal, tf32),
      processors_(Attribute(cudaDevAttrMultiProcessorCount, ordinal)),
      shared_bytes_(Attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal) - 1024) {}

MatMulPlan& CudaKernels::MatMul(const MatMulSpec& spec) {
  return FindOrMake(matmuls_, spec, [&] {
    std::unique_ptr<MatMulPlan> apart = MakeGeluApart(*this, spec);
    return apart == nullptr ? MakeMatMul(libraries_, spec)
                            : MakeGeluMatMul(libraries_, spec, std::move(apart));
  });
}

ConvPlan& CudaKernels::Conv(const ConvSpec& spec) {
  return FindOrMake(convs_, spec, [&] {
    return IsHalf(spec.type) ? MakeHalfConv(libraries_, spec) : MakeConv(libraries_, spec);
  });
}

PoolPlan& CudaKernels::Pool(const PoolSpec& spec) {
  return FindOrMake(pools_, spec, [&] { return MakePool(spec); });
}

AttentionPlan& CudaKernels::Attention(const AttentionSpec& spec) {
  return FindOrMake(attentions_, spec, [&] { return MakeAttention(libraries_, spec); });
}

std::unique_ptr<Kernels> MakeCudaKernels(std::shared_ptr<Device> device, int ordinal, bool tf32) {
  return std::make_unique<CudaKernels>(std::move(device), ordinal, tf32);
}

}  // namespace cohort::cuda
