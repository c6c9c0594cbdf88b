#include <cohort/nn/initializers.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/operations.h>

#include "checks.h"

namespace cohort::nn {

Dense::Dense(ParameterSet& parameters, const std::string& name, std::int64_t in, std::int64_t out,
             const DenseOptions& options)
    : name_(name), in_(in), out_(out), activation_(options.activation) {
  const Shape kernel{in, out};
  kernel_ = parameters.Add(name + "/kernel", kernel,
                           options.kernel_initializer
                               ? options.kernel_initializer
                               : GlorotUniform(kernel, options.seed, name + "/kernel"));
  if (options.bias) {
    bias_ = parameters.Add(name + "/bias", {out},
                           options.bias_initializer ? options.bias_initializer : Zeros());
  }
}

Variable Dense::operator()(const Variable& given) const {
  RequireShape(given.shape().rank() >= 1 && Last(given.shape()) == in_, "Dense " + name_,
               given.shape(), "[..., " + std::to_string(in_) + "]");
  Tape& tape = given.tape();
  const DType type = tape.compute_type();
  const Variable x = Cast(given, type);
  const std::int64_t rows = RowsBeforeLast(x.shape());
  const bool relu = activation_ == Activation::kRelu;
  const ConstElements kernel = tape.Operand(kernel_, {in_, out_});
  const void* bias = bias_ < 0 ? nullptr : tape.Operand(bias_, {out_}).raw();
  const Tensor y = tape.Buffer(WithLast(x.shape(), out_), type);
  tape.kernels()
      .MatMul({.m = rows,
               .n = out_,
               .k = in_,
               .bias = bias_ >= 0,
               .activation = relu ? Activation::kRelu : Activation::kNone,
               .type = type,
               .out = type})
      .Run(tape.stream(), x.tensor().raw(), kernel.raw(), bias, y.raw());

  std::vector<int> parameters = {kernel_};
  if (bias_ >= 0) {
    parameters.push_back(bias_);
  }
  const Variable linear = tape.Record(
      y, {x}, parameters,
      [&tape, type, rows, in = in_, out = out_, has_bias = bias_ >= 0, relu, kernel, x = x.tensor(),
       y = relu ? y : Tensor()](BackwardPass& pass) {
        Kernels& kernels = tape.kernels();
        const Elements dy = pass.output_gradient();
        const RowsOf size{rows, out};
        if (has_bias && pass.WantsParameter(1)) {
          pass.Parameter(1, [&](FloatSpan dbias) {
            if (relu) {
              kernels.ReluBackwardSumRows(tape.stream(), size, ElementsOf(y), dy, dbias);
            } else {
              kernels.SumRows(tape.stream(), size, dy, dbias);
            }
          });
        } else if (relu) {
          kernels.ReluBackwardSumRows(tape.stream(), size, ElementsOf(y), dy, {});
        }
        pass.Parameter(0, [&](FloatSpan dkernel) {
          kernels.MatMul({.m = in, .n = out, .k = rows, .transpose_a = true, .type = type})
              .Run(tape.stream(), x.raw(), dy.raw(), nullptr, dkernel.data());
        });
        pass.Input(0, [&](Elements dx) {
          kernels
              .MatMul(
                  {.m = rows, .n = in, .k = out, .transpose_b = true, .type = type, .out = type})
              .Run(tape.stream(), dy.raw(), kernel.raw(), nullptr, dx.raw());
        });
      });
  return relu ? linear : Activate(linear, activation_);
}

}  // namespace cohort::nn
