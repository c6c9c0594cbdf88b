#include <cohort/nn/layers.h>
#include <cohort/nn/operations.h>

#include "checks.h"

namespace cohort::nn {

Variable Attention(const Variable& qkv, std::int64_t heads, bool causal) {
  Require(heads >= 1, "Attention has at least one head");
  const Shape& shape = qkv.shape();
  RequireShape(shape.rank() == 3 && shape[2] > 0 && shape[2] % (3 * heads) == 0, "Attention", shape,
               "[batch, length, a multiple of " + std::to_string(3 * heads) + "]");
  Tape& tape = qkv.tape();
  AttentionPlan& plan = tape.kernels().Attention({.batch = shape[0],
                                                  .length = shape[1],
                                                  .heads = heads,
                                                  .head_size = shape[2] / (3 * heads),
                                                  .causal = causal});
  const Tensor y = tape.Buffer(WithLast(shape, shape[2] / 3));
  const Tensor saved = tape.Buffer({plan.saved_elements()});
  plan.Forward(tape.stream(), Floats(qkv.tensor()).data(), Floats(y).data(), Floats(saved).data());
  return tape.Record(y, {qkv}, {}, [&tape, &plan, y, saved, x = qkv.tensor()](BackwardPass& pass) {
    pass.Input(0, [&](FloatSpan dx) {
      plan.Backward(tape.stream(), Floats(x).data(), Floats(y).data(), Floats(saved).data(),
                    pass.output_gradient().data(), dx.data());
    });
  });
}

SelfAttention::SelfAttention(ParameterSet& parameters, const std::string& name, std::int64_t width,
                             std::int64_t heads, const SelfAttentionOptions& options)
    : heads_(heads),
      causal_(options.causal),
      qkv_(parameters, name + "/qkv", width, 3 * width, options.qkv),
      out_(parameters, name + "/out", width, width, options.out) {
  Require(heads >= 1 && width % heads == 0,
          "SelfAttention " + name + ": the number of heads divides the width");
}

Variable SelfAttention::operator()(const Variable& x) const {
  return out_(Attention(qkv_(x), heads_, causal_));
}

}  // namespace cohort::nn
