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

namespace {

// A product with a layer's kernel, its bias and its gradients: what Dense and FeedForward are made
// of. `x` and `dy` are of the type.
struct Product {
  Tape& tape;
  DType type;
  std::int64_t rows, in, out;
  ConstElements kernel;
  const void* bias;  // or nullptr

  Kernels& kernels() const { return tape.kernels(); }
  // `before`: of gelu, where its gradient will be wanted.
  void Forward(const Tensor& x, Activation f, const Tensor& y, const Tensor& before) const {
    kernels()
        .MatMul({.m = rows,
                 .n = out,
                 .k = in,
                 .bias = bias != nullptr,
                 .activation = f,
                 .keeps_before = before.raw() != nullptr,
                 .type = type,
                 .out = type})
        .Run(tape.stream(), x.raw(), kernel.raw(), bias, y.raw(),
             before.raw() == nullptr ? nullptr : before.raw());
  }
  void BackwardKernel(const Tensor& x, ConstElements dy, FloatSpan dkernel) const {
    kernels()
        .MatMul({.m = in, .n = out, .k = rows, .transpose_a = true, .type = type})
        .Run(tape.stream(), x.raw(), dy.raw(), nullptr, dkernel.data());
  }
  // With `before`: times gelu's gradient there.
  void BackwardInput(ConstElements dy, Elements dx, const Tensor& before = Tensor()) const {
    const bool gelu = before.raw() != nullptr;
    kernels()
        .MatMul({.m = rows,
                 .n = in,
                 .k = out,
                 .transpose_b = true,
                 .gradient_of = gelu ? Activation::kGelu : Activation::kNone,
                 .type = type,
                 .out = type})
        .Run(tape.stream(), dy.raw(), kernel.raw(), nullptr, dx.raw(),
             gelu ? before.raw() : nullptr);
  }
};

}  // namespace

Variable Dense::operator()(const Variable& given) const {
  RequireShape(given.shape().rank() >= 1 && Last(given.shape()) == in_, "Dense " + name_,
               given.shape(), "[..., " + std::to_string(in_) + "]");
  Tape& tape = given.tape();
  const DType type = tape.compute_type();
  const Variable x = Cast(given, type);
  const bool relu = activation_ == Activation::kRelu;
  const bool gelu = activation_ == Activation::kGelu;
  const Product product{.tape = tape,
                        .type = type,
                        .rows = RowsBeforeLast(x.shape()),
                        .in = in_,
                        .out = out_,
                        .kernel = tape.Operand(kernel_, {in_, out_}),
                        .bias = bias_ < 0 ? nullptr : tape.Operand(bias_, {out_}).raw()};
  const Tensor y = tape.Buffer(WithLast(x.shape(), out_), type);
  const Tensor before = gelu && tape.options().training ? tape.Buffer(y.shape(), type) : Tensor();
  product.Forward(x.tensor(), relu || gelu ? activation_ : Activation::kNone, y, before);

  std::vector<int> parameters = {kernel_};
  if (bias_ >= 0) {
    parameters.push_back(bias_);
  }
  const Variable linear = tape.Record(
      y, {x}, parameters,
      [product, has_bias = bias_ >= 0, relu, before, x = x.tensor(),
       y = relu ? y : Tensor()](BackwardPass& pass) {
        Kernels& kernels = product.kernels();
        Stream& stream = product.tape.stream();
        const Elements dy = pass.output_gradient();
        const RowsOf size{product.rows, product.out};
        if (before.raw() != nullptr) {
          kernels.ActivateBackward(stream, Activation::kGelu, ElementsOf(before), {}, dy, dy);
        }
        if (has_bias && pass.WantsParameter(1)) {
          pass.Parameter(1, [&](FloatSpan dbias) {
            if (relu) {
              kernels.ReluBackwardSumRows(stream, size, ElementsOf(y), dy, dbias);
            } else {
              kernels.SumRows(stream, size, dy, dbias);
            }
          });
        } else if (relu) {
          kernels.ReluBackwardSumRows(stream, size, ElementsOf(y), dy, {});
        }
        pass.Parameter(0, [&](FloatSpan dkernel) { product.BackwardKernel(x, dy, dkernel); });
        pass.Input(0, [&](Elements dx) { product.BackwardInput(dy, dx); });
      });
  return relu || gelu ? linear : Activate(linear, activation_);
}

FeedForward::FeedForward(ParameterSet& parameters, const std::string& up, const std::string& down,
                         std::int64_t width, std::int64_t hidden, const DenseOptions& up_options,
                         const DenseOptions& down_options)
    : up_(parameters, up, width, hidden, up_options),
      down_(parameters, down, hidden, width, down_options) {}

Variable FeedForward::operator()(const Variable& given) const {
  RequireShape(given.shape().rank() >= 1 && Last(given.shape()) == up_.in_,
               "FeedForward " + up_.name_, given.shape(), "[..., " + std::to_string(up_.in_) + "]");
  Tape& tape = given.tape();
  const DType type = tape.compute_type();
  const Variable x = Cast(given, type);
  const auto product = [&](const Dense& layer) {
    return Product{
        .tape = tape,
        .type = type,
        .rows = RowsBeforeLast(x.shape()),
        .in = layer.in_,
        .out = layer.out_,
        .kernel = tape.Operand(layer.kernel_, {layer.in_, layer.out_}),
        .bias = layer.bias_ < 0 ? nullptr : tape.Operand(layer.bias_, {layer.out_}).raw()};
  };
  const Product up = product(up_);
  const Product down = product(down_);
  const Tensor hidden = tape.Buffer(WithLast(x.shape(), up.out), type);
  const Tensor before = tape.options().training ? tape.Buffer(hidden.shape(), type) : Tensor();
  const Tensor y = tape.Buffer(WithLast(x.shape(), down.out), type);
  up.Forward(x.tensor(), Activation::kGelu, hidden, before);
  down.Forward(hidden, Activation::kNone, y, Tensor());

  // Numbers of the parameters as the backward function knows them; -1: none.
  std::vector<int> parameters = {down_.kernel_, up_.kernel_};
  const auto number = [&](int bias) {
    if (bias < 0) {
      return -1;
    }
    parameters.push_back(bias);
    return static_cast<int>(parameters.size()) - 1;
  };
  const int down_bias = number(down_.bias_);
  const int up_bias = number(up_.bias_);
  return tape.Record(
      y, {x}, parameters,
      [up, down, hidden, before, down_bias, up_bias, x = x.tensor()](BackwardPass& pass) {
        const auto of_bias = [&](int bias, const Product& of, ConstElements gradient) {
          if (bias >= 0 && pass.WantsParameter(bias)) {
            pass.Parameter(bias, [&](FloatSpan dbias) {
              of.kernels().SumRows(of.tape.stream(), {of.rows, of.out}, gradient, dbias);
            });
          }
        };
        const Elements dy = pass.output_gradient();
        of_bias(down_bias, down, dy);
        pass.Parameter(0, [&](FloatSpan dkernel) { down.BackwardKernel(hidden, dy, dkernel); });
        const Tensor between = down.tape.Buffer(hidden.shape(), down.type);
        const Elements dbetween = ElementsOf(between);
        down.BackwardInput(dy, dbetween, before);
        of_bias(up_bias, up, dbetween);
        pass.Parameter(1, [&](FloatSpan dkernel) { up.BackwardKernel(x, dbetween, dkernel); });
        pass.Input(0, [&](Elements dx) { up.BackwardInput(dbetween, dx); });
      });
}

}  // namespace cohort::nn
