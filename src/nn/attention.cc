#include <cohort/nn/layers.h>
#include <cohort/nn/operations.h>

#include "checks.h"

namespace cohort::nn {

Variable Attention(const Variable& given, std::int64_t heads, bool causal) {
  Require(heads >= 1, "Attention has at least one head");
  const Shape& shape = given.shape();
  RequireShape(shape.rank() == 3 && shape[2] > 0 && shape[2] % (3 * heads) == 0, "Attention", shape,
               "[batch, length, a multiple of " + std::to_string(3 * heads) + "]");
  Tape& tape = given.tape();
  const DType type = tape.compute_type();
  const Variable qkv = Cast(given, type);
  AttentionPlan& plan = tape.kernels().Attention({.batch = shape[0],
                                                  .length = shape[1],
                                                  .heads = heads,
                                                  .head_size = shape[2] / (3 * heads),
                                                  .causal = causal,
                                                  .type = type});
  const Tensor y = tape.Buffer(WithLast(shape, shape[2] / 3), type);
  const Tensor saved = tape.Buffer({plan.saved_elements()});
  plan.Forward(tape.stream(), qkv.tensor().raw(), y.raw(), Floats(saved).data());
  return tape.Record(y, {qkv}, {}, [&tape, &plan, y, saved, x = qkv.tensor()](BackwardPass& pass) {
    pass.Input(0, [&](Elements dx) {
      plan.Backward(tape.stream(), x.raw(), y.raw(), Floats(saved).data(),
                    pass.output_gradient().raw(), dx.raw());
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
