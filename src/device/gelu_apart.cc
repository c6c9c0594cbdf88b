#include "gelu_apart.h"

namespace cohort {
namespace {

class GeluApart final : public MatMulPlan {
 public:
  GeluApart(Kernels& kernels, const MatMulSpec& spec, const MatMulSpec& plain)
      : kernels_(kernels), spec_(spec), product_(kernels.MatMul(plain)) {}

  void Run(Stream& stream, const void* a, const void* b, const void* bias, void* c,
           void* before) override {
    if (spec_.gradient_of == Activation::kGelu) {
      product_.Run(stream, a, b, nullptr, c);
      kernels_.ActivateBackward(stream, Activation::kGelu, Of(before), {}, Of(c), Of(c));
      return;
    }
    void* const x = spec_.keeps_before ? before : c;
    product_.Run(stream, a, b, bias, x);
    kernels_.Activate(stream, Activation::kGelu, Of(x), Of(c));
  }

 private:
  Elements Of(void* data) const {
    return {data, static_cast<std::size_t>(spec_.m * spec_.n), spec_.out};
  }

  Kernels& kernels_;
  const MatMulSpec spec_;
  MatMulPlan& product_;
};

}  // namespace

std::unique_ptr<MatMulPlan> MakeGeluApart(Kernels& kernels, const MatMulSpec& spec) {
  const bool forward = spec.activation == Activation::kGelu;
  const bool backward = spec.gradient_of == Activation::kGelu;
  Require(spec.gradient_of == Activation::kNone || backward,
          "a product's gradient of an activation is that of gelu");
  Require(!backward || (!spec.bias && spec.activation == Activation::kNone),
          "the gradient of gelu behind a product without bias and activation");
  Require(!spec.keeps_before || forward, "only gelu keeps what it was given");
  if (!forward && !backward) {
    return nullptr;
  }
  MatMulSpec plain = spec;
  plain.activation = plain.gradient_of = Activation::kNone;
  plain.keeps_before = false;
  return std::make_unique<GeluApart>(kernels, spec, plain);
}

}  // namespace cohort
