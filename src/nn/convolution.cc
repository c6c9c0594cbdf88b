#include <cohort/nn/initializers.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/operations.h>

#include "checks.h"
#include "window.h"

namespace cohort::nn {
namespace {

Shape KernelShape(std::int64_t in, std::int64_t out, const Conv2DOptions& options) {
  Require(options.groups > 0 && in % options.groups == 0 && out % options.groups == 0,
          "Conv2D: channels that divide into the groups");
  return {options.kernel[0], options.kernel[1], in / options.groups, out};
}

}  // namespace

Conv2D::Conv2D(ParameterSet& parameters, const std::string& name, std::int64_t in, std::int64_t out,
               const Conv2DOptions& options)
    : name_(name), in_(in), out_(out), options_(options) {
  const Shape kernel = KernelShape(in, out, options);
  kernel_ = parameters.Add(name + "/kernel", kernel,
                           options.kernel_initializer
                               ? options.kernel_initializer
                               : GlorotUniform(kernel, options.seed, name + "/kernel"));
  if (options.bias) {
    bias_ = parameters.Add(name + "/bias", {out},
                           options.bias_initializer ? options.bias_initializer : Zeros());
  }
  options_.kernel_initializer = nullptr;
  options_.bias_initializer = nullptr;
}

Variable Conv2D::operator()(const Variable& given) const {
  const Shape& in = given.shape();
  RequireShape(in.rank() == 4 && in[3] == in_, "Conv2D " + name_, in,
               "[batch, height, width, " + std::to_string(in_) + "]");
  const auto rows = PadWindow(options_.padding, in[1], options_.kernel[0], options_.stride[0]);
  const auto columns = PadWindow(options_.padding, in[2], options_.kernel[1], options_.stride[1]);
  const bool relu = options_.activation == Activation::kRelu;
  const ConvSpec spec{.batch = in[0],
                      .height = in[1],
                      .width = in[2],
                      .in = in_,
                      .kernel_h = options_.kernel[0],
                      .kernel_w = options_.kernel[1],
                      .out = out_,
                      .stride_h = options_.stride[0],
                      .stride_w = options_.stride[1],
                      .pad_top = rows.before,
                      .pad_bottom = rows.after,
                      .pad_left = columns.before,
                      .pad_right = columns.after,
                      .groups = options_.groups,
                      .bias = bias_ >= 0,
                      .activation = relu ? Activation::kRelu : Activation::kNone,
                      .type = given.tape().compute_type()};
  RequireShape(in[1] + rows.before + rows.after >= spec.kernel_h &&
                   in[2] + columns.before + columns.after >= spec.kernel_w,
               "Conv2D " + name_, in, "at least as large as the kernel");
  const Variable x = Cast(given, spec.type);
  Tape& tape = x.tape();
  ConvPlan& plan = tape.kernels().Conv(spec);
  const ConstElements kernel = tape.Operand(kernel_, KernelShape(in_, out_, options_));
  const void* bias = bias_ < 0 ? nullptr : tape.Operand(bias_, {out_}).raw();
  const Tensor y = tape.Buffer({spec.batch, spec.out_height(), spec.out_width(), out_}, spec.type);
  plan.Forward(tape.stream(), x.tensor().raw(), kernel.raw(), bias, y.raw());

  std::vector<int> parameters = {kernel_};
  if (bias_ >= 0) {
    parameters.push_back(bias_);
  }
  const Variable linear = tape.Record(
      y, {x}, parameters,
      [&tape, &plan, has_bias = bias_ >= 0, relu, kernel,
       size = RowsOf{RowsBeforeLast(y.shape()), out_}, x = x.tensor(),
       y = relu ? y : Tensor()](BackwardPass& pass) {
        const Elements dy = pass.output_gradient();
        if (has_bias && pass.WantsParameter(1)) {
          pass.Parameter(1, [&](FloatSpan dbias) {
            if (relu) {
              tape.kernels().ReluBackwardSumRows(tape.stream(), size, ElementsOf(y), dy, dbias);
            } else {
              tape.kernels().SumRows(tape.stream(), size, dy, dbias);
            }
          });
        } else if (relu) {
          tape.kernels().ReluBackwardSumRows(tape.stream(), size, ElementsOf(y), dy, {});
        }
        pass.Parameter(0, [&](FloatSpan dkernel) {
          plan.BackwardKernel(tape.stream(), x.raw(), dy.raw(), dkernel.data());
        });
        pass.Input(0, [&](Elements dx) {
          plan.BackwardInput(tape.stream(), kernel.raw(), dy.raw(), dx.raw());
        });
      });
  return relu ? linear : Activate(linear, options_.activation);
}

}  // namespace cohort::nn
