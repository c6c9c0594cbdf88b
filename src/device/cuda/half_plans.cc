// Plans of 16 bits by those of float32, where there is no other: what is read is widened into
// memory of the plan's own, and what comes out is rounded. TF32 holds both types exactly, so that
// tensor cores may compute.

#include <array>
#include <cstdint>
#include <memory>
#include <utility>

#include "cuda/cuda_kernels.h"
#include "cuda/plans.h"

namespace cohort::cuda {
namespace {

// Float32 copies of a plan's operands, each with memory of its own from its first use on: not while
// a graph is recorded, which a step fed before has seen to.
class Widener {
 public:
  Widener(Libraries& libraries, DType type) : libraries_(libraries), type_(type) {}

  // Operand number `place`, widened; nullptr stays.
  const float* Read(Stream& stream, std::size_t place, const void* data, std::int64_t size) {
    if (data == nullptr) {
      return nullptr;
    }
    float* const to = Write(place, size);
    const auto count = static_cast<std::size_t>(size);
    Convert(stream, ConstElements(data, count, type_), FloatSpan(to, count));
    return to;
  }
  float* Write(std::size_t place, std::int64_t size) {
    std::shared_ptr<std::byte>& memory = memory_.at(place);
    if (memory == nullptr) {
      memory = libraries_.device().Allocate(static_cast<std::size_t>(size) * sizeof(float),
                                            "operands of 16 bits, widened");
    }
    return reinterpret_cast<float*>(memory.get());
  }
  // What Write's memory holds, rounded.
  void Finish(Stream& stream, std::size_t place, void* data, std::int64_t size) {
    const auto count = static_cast<std::size_t>(size);
    Convert(stream, ConstFloatSpan(Write(place, size), count), Elements(data, count, type_));
  }

 private:
  Libraries& libraries_;
  const DType type_;
  std::array<std::shared_ptr<std::byte>, 5> memory_;
};

class WidenedMatMul final : public MatMulPlan {
 public:
  WidenedMatMul(Libraries& libraries, const MatMulSpec& s, std::unique_ptr<MatMulPlan> plan)
      : s_(s), plan_(std::move(plan)), wide_(libraries, s.type) {}

  void Run(Stream& stream, const void* a, const void* b, const void* bias, void* c,
           void* /*before*/) override {
    const float* const wide_a = wide_.Read(stream, kA, a, s_.m * s_.k);
    const float* const wide_b = wide_.Read(stream, kB, b, s_.k * s_.n);
    const bool rounds = IsHalf(s_.out);
    const void* const wide_bias = !s_.bias ? nullptr
                                  : rounds ? wide_.Read(stream, kBias, bias, s_.n)
                                           : bias;
    plan_->Run(stream, wide_a, wide_b, wide_bias, rounds ? wide_.Write(kC, s_.m * s_.n) : c);
    if (rounds) {
      wide_.Finish(stream, kC, c, s_.m * s_.n);
    }
  }

 private:
  enum Place : std::size_t { kA, kB, kBias, kC };

  const MatMulSpec s_;
  const std::unique_ptr<MatMulPlan> plan_;
  Widener wide_;
};

class WidenedConv final : public ConvPlan {
 public:
  WidenedConv(Libraries& libraries, const ConvSpec& s, std::unique_ptr<ConvPlan> plan)
      : has_bias_(s.bias),
        out_(s.out),
        x_(s.batch * s.height * s.width * s.in),
        y_(s.batch * s.out_height() * s.out_width() * s.out),
        kernel_(s.kernel_h * s.kernel_w * (s.in / s.groups) * s.out),
        plan_(std::move(plan)),
        wide_(libraries, s.type) {}

  void Forward(Stream& stream, const void* x, const void* kernel, const void* bias,
               void* y) override {
    const float* const wide_x = wide_.Read(stream, kX, x, x_);
    const float* const wide_kernel = wide_.Read(stream, kKernel, kernel, kernel_);
    const float* const wide_bias = has_bias_ ? wide_.Read(stream, kBias, bias, out_) : nullptr;
    plan_->Forward(stream, wide_x, wide_kernel, wide_bias, wide_.Write(kY, y_));
    wide_.Finish(stream, kY, y, y_);
  }
  void BackwardKernel(Stream& stream, const void* x, const void* dy, float* dkernel) override {
    const float* const wide_x = wide_.Read(stream, kX, x, x_);
    plan_->BackwardKernel(stream, wide_x, wide_.Read(stream, kY, dy, y_), dkernel);
  }
  void BackwardInput(Stream& stream, const void* kernel, const void* dy, void* dx) override {
    const float* const wide_kernel = wide_.Read(stream, kKernel, kernel, kernel_);
    const float* const wide_dy = wide_.Read(stream, kY, dy, y_);
    plan_->BackwardInput(stream, wide_kernel, wide_dy, wide_.Write(kX, x_));
    wide_.Finish(stream, kX, dx, x_);
  }

 private:
  enum Place : std::size_t { kX, kKernel, kBias, kY };

  const bool has_bias_;
  const std::int64_t out_, x_, y_, kernel_;
  const std::unique_ptr<ConvPlan> plan_;
  Widener wide_;
};

class WidenedAttention final : public AttentionPlan {
 public:
  WidenedAttention(Libraries& libraries, const AttentionSpec& s,
                   std::unique_ptr<AttentionPlan> plan)
      : places_(s.batch * s.length * s.heads * s.head_size),
        plan_(std::move(plan)),
        wide_(libraries, s.type) {}

  std::int64_t saved_elements() const override { return plan_->saved_elements(); }
  void Forward(Stream& stream, const void* qkv, void* y, float* saved) override {
    const float* const wide = wide_.Read(stream, kQkv, qkv, 3 * places_);
    plan_->Forward(stream, wide, wide_.Write(kY, places_), saved);
    wide_.Finish(stream, kY, y, places_);
  }
  void Backward(Stream& stream, const void* qkv, const void* y, const float* saved, const void* dy,
                void* dqkv) override {
    const float* const wide = wide_.Read(stream, kQkv, qkv, 3 * places_);
    const float* const wide_y = wide_.Read(stream, kY, y, places_);
    const float* const wide_dy = wide_.Read(stream, kGradient, dy, places_);
    plan_->Backward(stream, wide, wide_y, saved, wide_dy, wide_.Write(kResult, 3 * places_));
    wide_.Finish(stream, kResult, dqkv, 3 * places_);
  }

 private:
  enum Place : std::size_t { kQkv, kY, kGradient, kResult };

  const std::int64_t places_;
  const std::unique_ptr<AttentionPlan> plan_;
  Widener wide_;
};

}  // namespace

std::unique_ptr<MatMulPlan> MakeWidenedMatMul(Libraries& libraries, const MatMulSpec& spec) {
  MatMulSpec wide = spec;
  wide.type = wide.out = DType::kFloat32;
  return std::make_unique<WidenedMatMul>(libraries, spec, MakeMatMul(libraries, wide));
}

std::unique_ptr<ConvPlan> MakeWidenedConv(Libraries& libraries, const ConvSpec& spec) {
  return std::make_unique<WidenedConv>(libraries, spec, MakeConv(libraries, spec));
}

std::unique_ptr<AttentionPlan> MakeWidenedAttention(Libraries& libraries,
                                                    const AttentionSpec& spec) {
  AttentionSpec wide = spec;
  wide.type = DType::kFloat32;
  return std::make_unique<WidenedAttention>(libraries, spec, MakeAttention(libraries, wide));
}

}  // namespace cohort::cuda
