#include <string_view>

#include "cpu/dnnl_common.h"

// Images stay [batch, height, width, channels] between layers: on AVX-512 oneDNN's convolutions are
// as fast on this format as on its blocked ones (faster forward), and nothing has to be reordered
// between layers. Kernels are small: they are reordered into the format that oneDNN picks, at each
// use.

namespace cohort::cpu {
namespace {

using Tag = dnnl::memory::format_tag;
using Dims = dnnl::memory::dims;

class DnnlConv final : public ConvPlan {
 public:
  DnnlConv(const DnnlEngine& engine, const ConvSpec& s)
      : engine_(engine),
        spec_(s),
        strides_{s.stride_h, s.stride_w},
        pad_before_{s.pad_top, s.pad_left},
        pad_after_{s.pad_bottom, s.pad_right},
        x_(Desc({s.batch, s.in, s.height, s.width}, Tag::nhwc)),
        y_(Desc({s.batch, s.out, s.out_height(), s.out_width()}, Tag::nhwc)),
        bias_(Desc({s.out}, Tag::a)) {
    if (s.groups == 1) {
      const Dims dims = {s.out, s.in, s.kernel_h, s.kernel_w};
      kernel_ = Desc(dims, Tag::hwio);
      any_kernel_ = Desc(dims, Tag::any);
    } else {
      const Dims dims = {s.groups, s.out / s.groups, s.in / s.groups, s.kernel_h, s.kernel_w};
      kernel_ = Desc(dims, Tag::hwigo);
      any_kernel_ = Desc(dims, Tag::any);
    }
    if (empty()) {
      return;
    }
    forward_desc_ = ForwardDesc();
    forward_ = DnnlCall(engine, dnnl::convolution_forward(forward_desc_), forward_desc_);
    forward_.Declare(DNNL_ARG_SRC, x_);
    forward_.Declare(DNNL_ARG_DST, y_);
    if (s.bias) {
      forward_.Declare(DNNL_ARG_BIAS, bias_);
    }
    pack_forward_ = Pack(forward_, forward_desc_.weights_desc());
  }

  void Forward(Stream& stream, const void* x, const void* kernel, const void* bias,
               void* y) override {
    PutDnnl(stream, engine_, [=, this] {
      if (empty()) {
        return;
      }
      RunPack(pack_forward_, forward_, kernel);
      forward_.Set(DNNL_ARG_SRC, x);
      forward_.Set(DNNL_ARG_DST, y);
      if (spec_.bias) {
        forward_.Set(DNNL_ARG_BIAS, bias);
      }
      forward_.Run();
    });
  }

  void BackwardKernel(Stream& stream, const void* x, const void* dy, float* dkernel) override {
    if (!empty() && !backward_kernel_) {
      MakeDnnl(engine_, "a convolution's kernel gradient", [&] { return MakeBackwardKernel(); });
    }
    PutDnnl(stream, engine_, [=, this] {
      if (empty()) {
        std::fill_n(dkernel, kernel_.get_size() / sizeof(float), 0.0F);
        return;
      }
      backward_kernel_.Set(DNNL_ARG_SRC, x);
      backward_kernel_.Set(DNNL_ARG_DIFF_DST, dy);
      if (unpack_) {
        backward_kernel_.Run();
        unpack_.Set(DNNL_ARG_TO, dkernel);
        unpack_.Run();
      } else {
        backward_kernel_.Set(DNNL_ARG_DIFF_WEIGHTS, dkernel);
        backward_kernel_.Run();
      }
    });
  }

  void BackwardInput(Stream& stream, const void* kernel, const void* dy, void* dx) override {
    if (!empty() && !backward_input_) {
      MakeDnnl(engine_, "a convolution's input gradient", [&] { return MakeBackwardInput(); });
    }
    PutDnnl(stream, engine_, [=, this] {
      if (empty()) {
        std::fill_n(static_cast<float*>(dx), x_.get_size() / sizeof(float), 0.0F);
        return;
      }
      RunPack(pack_backward_, backward_input_, kernel);
      backward_input_.Set(DNNL_ARG_DIFF_DST, dy);
      backward_input_.Set(DNNL_ARG_DIFF_SRC, dx);
      backward_input_.Run();
    });
  }

 private:
  bool StridedOdd1x1() const {
    constexpr int kVector = 16;  // floats of AVX-512
    return spec_.kernel_h == 1 && spec_.kernel_w == 1 &&
           (spec_.stride_h > 1 || spec_.stride_w > 1) &&
           (spec_.in % kVector != 0 || spec_.out % kVector != 0);
  }
  bool empty() const { return y_.get_size() == 0 || x_.get_size() == 0; }

  dnnl::convolution_forward::primitive_desc ForwardDesc() const {
    const auto kind = dnnl::prop_kind::forward_training;
    const auto direct = dnnl::algorithm::convolution_direct;
    using Op = dnnl::convolution_forward::desc;
    const Op op =
        spec_.bias ? Op(kind, direct, x_, any_kernel_, bias_, y_, strides_, pad_before_, pad_after_)
                   : Op(kind, direct, x_, any_kernel_, y_, strides_, pad_before_, pad_after_);
    return {op, Attributes(spec_.activation), engine_.state().engine};
  }

  // A reorder from the user's kernel into the primitive's, or none where they are the same.
  DnnlCall Pack(DnnlCall& primitive, const dnnl::memory::desc& wanted) const {
    if (wanted == kernel_) {
      primitive.Declare(DNNL_ARG_WEIGHTS, kernel_);
      return {};
    }
    primitive.Bind(DNNL_ARG_WEIGHTS, wanted);
    DnnlCall pack = Reorder(kernel_, wanted);
    pack.Share(DNNL_ARG_TO, primitive[DNNL_ARG_WEIGHTS]);
    return pack;
  }
  static void RunPack(DnnlCall& pack, DnnlCall& primitive, const void* kernel) {
    if (pack) {
      pack.Set(DNNL_ARG_FROM, kernel);
      pack.Run();
    } else {
      primitive.Set(DNNL_ARG_WEIGHTS, kernel);
    }
  }
  DnnlCall Reorder(const dnnl::memory::desc& from, const dnnl::memory::desc& to) const {
    const auto& engine = engine_.state().engine;
    const dnnl::reorder::primitive_desc desc(engine, from, engine, to, Attributes());
    DnnlCall call(engine_, dnnl::reorder(desc), desc);
    call.Declare(DNNL_ARG_FROM, from);
    call.Declare(DNNL_ARG_TO, to);
    return call;
  }

  bool MakeBackwardKernel() {
    const dnnl::convolution_backward_weights::desc op(dnnl::algorithm::convolution_direct, x_,
                                                      any_kernel_, y_, strides_, pad_before_,
                                                      pad_after_);
    dnnl::convolution_backward_weights::primitive_desc desc(op, Attributes(),
                                                            engine_.state().engine, forward_desc_);
    // Where a stride meets channels that fill no vector, this one of oneDNN 2.6 writes behind the
    // end of its scratch memory.
    while (StridedOdd1x1() && std::string_view(desc.impl_info_str()).starts_with("jit_1x1") &&
           desc.next_impl()) {
    }
    backward_kernel_ = DnnlCall(engine_, dnnl::convolution_backward_weights(desc), desc);
    backward_kernel_.Declare(DNNL_ARG_SRC, x_);
    backward_kernel_.Declare(DNNL_ARG_DIFF_DST, y_);
    if (desc.diff_weights_desc() == kernel_) {
      backward_kernel_.Declare(DNNL_ARG_DIFF_WEIGHTS, kernel_);
    } else {
      backward_kernel_.Bind(DNNL_ARG_DIFF_WEIGHTS, desc.diff_weights_desc());
      unpack_ = Reorder(desc.diff_weights_desc(), kernel_);
      unpack_.Share(DNNL_ARG_FROM, backward_kernel_[DNNL_ARG_DIFF_WEIGHTS]);
    }
    return true;
  }

  bool MakeBackwardInput() {
    const dnnl::convolution_backward_data::desc op(dnnl::algorithm::convolution_direct, x_,
                                                   any_kernel_, y_, strides_, pad_before_,
                                                   pad_after_);
    const dnnl::convolution_backward_data::primitive_desc desc(
        op, Attributes(), engine_.state().engine, forward_desc_);
    backward_input_ = DnnlCall(engine_, dnnl::convolution_backward_data(desc), desc);
    backward_input_.Declare(DNNL_ARG_DIFF_DST, y_);
    backward_input_.Declare(DNNL_ARG_DIFF_SRC, x_);
    pack_backward_ = Pack(backward_input_, desc.weights_desc());
    return true;
  }

  const DnnlEngine& engine_;
  const ConvSpec spec_;
  const Dims strides_, pad_before_, pad_after_;
  const dnnl::memory::desc x_, y_, bias_;
  dnnl::memory::desc kernel_, any_kernel_;
  dnnl::convolution_forward::primitive_desc forward_desc_;
  DnnlCall forward_, pack_forward_;
  DnnlCall backward_kernel_, unpack_;        // made at the first use
  DnnlCall backward_input_, pack_backward_;  // likewise: a first layer needs none
};

}  // namespace

std::unique_ptr<ConvPlan> MakeConv(const DnnlEngine& engine, const ConvSpec& spec) {
  Require(spec.groups > 0 && spec.in % spec.groups == 0 && spec.out % spec.groups == 0,
          "a convolution's channels divide into its groups");
  return MakeDnnl(engine, "a convolution",
                  [&] { return std::make_unique<DnnlConv>(engine, spec); });
}

}  // namespace cohort::cpu
