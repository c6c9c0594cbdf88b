// Plans on cuBLASLt and cuDNN, and what they share.

#pragma once

#include <cohort/device/device.h>
#include <cohort/device/plan.h>

#include <cstddef>
#include <memory>
#include <vector>

namespace cohort::cuda {

struct LibraryHandles;

// What cuBLASLt may use in each product.
constexpr std::size_t kLeastScratch = std::size_t{64} << 20;

// The libraries' handles and scratch memory of one table. As the table, for one stream.
class Libraries {
 public:
  // `tf32`: products, convolutions and attention may round their operands to 10 bits of mantissa.
  Libraries(std::shared_ptr<Device> device, int ordinal, bool tf32);
  ~Libraries();

  Device& device() const { return *device_; }
  int ordinal() const { return ordinal_; }
  bool tf32() const { return tf32_; }
  LibraryHandles& handles() const { return *handles_; }

  // Scratch memory, for the work that is put on the stream next. Grows; what it was before stays
  // allocated, since a graph may hold its address.
  std::byte* Scratch(std::size_t bytes);
  int compute_capability() const { return compute_capability_; }  // 90 is 9.0

 private:
  const std::shared_ptr<Device> device_;
  const int ordinal_;
  const bool tf32_;
  const int compute_capability_;
  const std::unique_ptr<LibraryHandles> handles_;
  std::vector<std::shared_ptr<std::byte>> scratch_;
  std::size_t scratch_bytes_ = 0;
};

// FailedPrecondition where the GPU cannot compute in that type.
void RequireTypeOf(const Libraries& libraries, DType type);

std::unique_ptr<MatMulPlan> MakeMatMul(Libraries& libraries, const MatMulSpec& spec);
// With gelu: in one kernel, or as `apart` does it, whichever is faster.
std::unique_ptr<MatMulPlan> MakeGeluMatMul(Libraries& libraries, const MatMulSpec& spec,
                                           std::unique_ptr<MatMulPlan> apart);
std::unique_ptr<ConvPlan> MakeConv(Libraries& libraries, const ConvSpec& spec);
// half_plans.cc: of 16 bits, by the float32 one.
std::unique_ptr<MatMulPlan> MakeWidenedMatMul(Libraries& libraries, const MatMulSpec& spec);
// Of 16 bits: by cuDNN's graphs.
std::unique_ptr<ConvPlan> MakeHalfConv(Libraries& libraries, const ConvSpec& spec);
// half_plans.cc: of 16 bits, by the float32 ones (of which MakeConv gives one for any type).
std::unique_ptr<ConvPlan> MakeWidenedConv(Libraries& libraries, const ConvSpec& spec);
std::unique_ptr<AttentionPlan> MakeWidenedAttention(Libraries& libraries,
                                                    const AttentionSpec& spec);
// elementwise.cu: Kernels::Copy.
void Convert(Stream& stream, ConstElements x, Elements y);
std::unique_ptr<PoolPlan> MakePool(const PoolSpec& spec);

}  // namespace cohort::cuda
