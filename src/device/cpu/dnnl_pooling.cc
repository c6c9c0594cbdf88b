#include "cpu/dnnl_common.h"

namespace cohort::cpu {
namespace {

using Tag = dnnl::memory::format_tag;

class DnnlPool final : public PoolPlan {
 public:
  DnnlPool(const DnnlEngine& engine, const PoolSpec& s)
      : engine_(engine),
        x_(Desc({s.batch, s.channels, s.height, s.width}, Tag::nhwc)),
        y_(Desc({s.batch, s.channels, s.out_height(), s.out_width()}, Tag::nhwc)) {
    if (empty()) {
      return;
    }
    const auto kind =
        s.max ? dnnl::algorithm::pooling_max : dnnl::algorithm::pooling_avg_exclude_padding;
    const dnnl::memory::dims strides = {s.stride_h, s.stride_w};
    const dnnl::memory::dims window = {s.window_h, s.window_w};
    const dnnl::memory::dims before = {s.pad_top, s.pad_left};
    const dnnl::memory::dims after = {s.pad_bottom, s.pad_right};
    const dnnl::pooling_forward::primitive_desc forward(
        {dnnl::prop_kind::forward_training, kind, x_, y_, strides, window, before, after},
        Attributes(), engine.state().engine);
    forward_ = DnnlCall(engine, dnnl::pooling_forward(forward), forward);
    forward_.Declare(DNNL_ARG_SRC, x_);
    forward_.Declare(DNNL_ARG_DST, y_);
    const dnnl::pooling_backward::primitive_desc backward(
        {kind, x_, y_, strides, window, before, after}, Attributes(), engine.state().engine,
        forward);
    backward_ = DnnlCall(engine, dnnl::pooling_backward(backward), backward);
    backward_.Declare(DNNL_ARG_DIFF_SRC, x_);
    backward_.Declare(DNNL_ARG_DIFF_DST, y_);
    if (s.max) {
      workspace_bytes_ = static_cast<std::int64_t>(forward.workspace_desc().get_size());
      forward_.Declare(DNNL_ARG_WORKSPACE, forward.workspace_desc());
      backward_.Declare(DNNL_ARG_WORKSPACE, forward.workspace_desc());
    }
  }

  std::int64_t workspace_bytes() const override { return workspace_bytes_; }

  void Forward(Stream& stream, const float* x, float* y, std::byte* workspace) override {
    PutDnnl(stream, engine_, [=, this] {
      if (empty()) {
        return;
      }
      forward_.Set(DNNL_ARG_SRC, x);
      forward_.Set(DNNL_ARG_DST, y);
      if (workspace_bytes_ > 0) {
        forward_.Set(DNNL_ARG_WORKSPACE, workspace);
      }
      forward_.Run();
    });
  }

  void Backward(Stream& stream, const float* dy, const std::byte* workspace, float* dx) override {
    PutDnnl(stream, engine_, [=, this] {
      if (empty()) {
        std::fill_n(dx, x_.get_size() / sizeof(float), 0.0F);
        return;
      }
      backward_.Set(DNNL_ARG_DIFF_DST, dy);
      backward_.Set(DNNL_ARG_DIFF_SRC, dx);
      if (workspace_bytes_ > 0) {
        backward_.Set(DNNL_ARG_WORKSPACE, workspace);
      }
      backward_.Run();
    });
  }

 private:
  bool empty() const { return y_.get_size() == 0 || x_.get_size() == 0; }

  const DnnlEngine& engine_;
  const dnnl::memory::desc x_, y_;
  std::int64_t workspace_bytes_ = 0;
  DnnlCall forward_, backward_;
};

}  // namespace

std::unique_ptr<PoolPlan> MakePool(const DnnlEngine& engine, const PoolSpec& spec) {
  return MakeDnnl(engine, "a pooling", [&] { return std::make_unique<DnnlPool>(engine, spec); });
}

}  // namespace cohort::cpu
