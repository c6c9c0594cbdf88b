#include <cohort/nn/initializers.h>
#include <cohort/nn/layers.h>

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

Variable Dense::operator()(const Variable& x) const {
  RequireShape(x.shape().rank() >= 1 && Last(x.shape()) == in_, "Dense " + name_, x.shape(),
               "[..., " + std::to_string(in_) + "]");
  Tape& tape = x.tape();
  const std::int64_t rows = RowsBeforeLast(x.shape());
  const bool relu = activation_ == Activation::kRelu;
  const ConstFloatSpan kernel = tape.Value(kernel_, {in_, out_});
  const float* bias = bias_ < 0 ? nullptr : tape.Value(bias_, {out_}).data();
  const Tensor y = tape.Buffer(WithLast(x.shape(), out_));
  tape.kernels()
      .MatMul({.m = rows,
               .n = out_,
               .k = in_,
               .bias = bias_ >= 0,
               .activation = relu ? Activation::kRelu : Activation::kNone})
      .Run(tape.stream(), Floats(x.tensor()).data(), kernel.data(), bias, Floats(y).data());

  std::vector<int> parameters = {kernel_};
  if (bias_ >= 0) {
    parameters.push_back(bias_);
  }
  const Variable linear =
      tape.Record(y, {x}, parameters,
                  [&tape, rows, in = in_, out = out_, has_bias = bias_ >= 0, relu, kernel,
                   x = x.tensor(), y = relu ? y : Tensor()](BackwardPass& pass) {
                    Kernels& kernels = tape.kernels();
                    const FloatSpan dy = pass.output_gradient();
                    const RowsOf size{rows, out};
                    if (has_bias && pass.WantsParameter(1)) {
                      pass.Parameter(1, [&](FloatSpan dbias) {
                        if (relu) {
                          kernels.ReluBackwardSumRows(tape.stream(), size, Floats(y), dy, dbias);
                        } else {
                          kernels.SumRows(tape.stream(), size, dy, dbias);
                        }
                      });
                    } else if (relu) {
                      kernels.ReluBackwardSumRows(tape.stream(), size, Floats(y), dy, {});
                    }
                    pass.Parameter(0, [&](FloatSpan dkernel) {
                      kernels.MatMul({.m = in, .n = out, .k = rows, .transpose_a = true})
                          .Run(tape.stream(), Floats(x).data(), dy.data(), nullptr, dkernel.data());
                    });
                    pass.Input(0, [&](FloatSpan dx) {
                      kernels.MatMul({.m = rows, .n = in, .k = out, .transpose_b = true})
                          .Run(tape.stream(), dy.data(), kernel.data(), nullptr, dx.data());
                    });
                  });
  return relu ? linear : Activate(linear, activation_);
}

}  // namespace cohort::nn
