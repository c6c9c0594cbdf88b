#include "window.h"

#include <cohort/nn/operations.h>

#include "checks.h"

namespace cohort::nn {

WindowPadding PadWindow(Padding padding, std::int64_t size, std::int64_t window,
                        std::int64_t stride) {
  Require(window > 0 && stride > 0, "a window and a stride of at least 1");
  if (padding == Padding::kValid) {
    return {};
  }
  if (padding == Padding::kSymmetric) {
    return {(window - 1) / 2, (window - 1) / 2};
  }
  const std::int64_t out = (size + stride - 1) / stride;
  const std::int64_t total = std::max<std::int64_t>((out - 1) * stride + window - size, 0);
  return {total / 2, total - total / 2};
}

namespace {

Variable Pool(const char* operation, bool max, const Variable& given,
              const Pool2DOptions& options) {
  const Variable& x = given;
  const Shape& in = x.shape();
  RequireShape(in.rank() == 4, operation, in, "[batch, height, width, channels]");
  const auto rows = PadWindow(options.padding, in[1], options.window[0], options.stride[0]);
  const auto columns = PadWindow(options.padding, in[2], options.window[1], options.stride[1]);
  const PoolSpec spec{.max = max,
                      .batch = in[0],
                      .height = in[1],
                      .width = in[2],
                      .channels = in[3],
                      .window_h = options.window[0],
                      .window_w = options.window[1],
                      .stride_h = options.stride[0],
                      .stride_w = options.stride[1],
                      .pad_top = rows.before,
                      .pad_bottom = rows.after,
                      .pad_left = columns.before,
                      .pad_right = columns.after,
                      .type = x.tensor().dtype()};
  RequireShape(in[1] + rows.before + rows.after >= spec.window_h &&
                   in[2] + columns.before + columns.after >= spec.window_w,
               operation, in, "at least as large as the window");
  Tape& tape = x.tape();
  PoolPlan& plan = tape.kernels().Pool(spec);
  const Tensor y =
      tape.Buffer({spec.batch, spec.out_height(), spec.out_width(), spec.channels}, spec.type);
  const Tensor kept = tape.workspace().Take(DType::kUInt8, {plan.workspace_bytes()});
  plan.Forward(tape.stream(), x.tensor().raw(), y.raw(), kept.raw());
  return tape.Record(y, {x}, {}, [&tape, &plan, kept](BackwardPass& pass) {
    pass.Input(0, [&](Elements dx) {
      plan.Backward(tape.stream(), pass.output_gradient().raw(), kept.raw(), dx.raw());
    });
  });
}

}  // namespace

Variable MaxPool2D(const Variable& x, const Pool2DOptions& options) {
  return Pool("MaxPool2D", true, x, options);
}

Variable AvgPool2D(const Variable& x, const Pool2DOptions& options) {
  return Pool("AvgPool2D", false, x, options);
}

Variable GlobalAvgPool2D(const Variable& x) {
  const Shape& in = x.shape();
  RequireShape(in.rank() == 4, "GlobalAvgPool2D", in, "[batch, height, width, channels]");
  Tape& tape = x.tape();
  const MiddleOf size{.outer = in[0], .middle = in[1] * in[2], .inner = in[3]};
  const float scale = size.middle == 0 ? 0.0F : 1.0F / static_cast<float>(size.middle);
  const Tensor y = tape.Buffer({size.outer, size.inner});
  tape.kernels().SumMiddle(tape.stream(), size, scale, ElementsOf(x.tensor()), Floats(y));
  return tape.Record(y, {x}, {}, [&tape, size, scale](BackwardPass& pass) {
    pass.Input(0, [&](Elements dx) {
      tape.kernels().SumMiddleBackward(tape.stream(), size, scale, pass.output_gradient(), dx);
    });
  });
}

}  // namespace cohort::nn
