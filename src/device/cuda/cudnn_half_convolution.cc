// Convolutions of 16 bits on cuDNN's graphs, with float32 sums. Images lie in [batch, height,
// width, channels], as it wants them; kernels in [height, width, in, out], of which it wants the
// transpose. The first run of a part outside of a graph's recording measures the ways that cuDNN
// offers; what is bitwise the same each time goes before what is faster. Where it offers none, or
// memory is not aligned as it wants, the float32 convolutions compute (half_plans.cc).

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/cuda_common.h"
#include "cuda/cuda_stream.h"
#include "cuda/cudnn_graph.h"
#include "cuda/layout.h"
#include "cuda/libraries.h"
#include "cuda/measured.h"
#include "cuda/stopwatch.h"

namespace cohort::cuda {
namespace {

constexpr std::int64_t kMaxWorkspace = std::int64_t{256} << 20;
constexpr int kMaxWays = 6;
constexpr int kTimed = 3;  // runs of each
// A choice changes only for one that is so much faster: what noise decides should be rare.
constexpr float kWorthwhile = 0.9F;
// And to a gradient of the kernel that is rounded to 16 bits only for one that is so much faster.
constexpr float kWorthRounding = 0.75F;

enum class Part { kForward, kBackwardKernel, kBackwardInput };
constexpr std::size_t kParts = 3;

cudnnDataType_t NativeType(DType type) {
  return type == DType::kBFloat16  ? CUDNN_DATA_BFLOAT16
         : type == DType::kFloat16 ? CUDNN_DATA_HALF
                                   : CUDNN_DATA_FLOAT;
}

using MeasuredWays = Measured<std::tuple<int, ConvSpec, Part>, std::size_t>;  // GPU; which way

struct ConvWay {
  GraphWay way;
  DType kernel = DType::kFloat32;  // of the kernel, or its gradient
};

// Places of the tensors, as cuDNN's ids.
constexpr std::int64_t kX = 1;
constexpr std::int64_t kY = 2;
constexpr std::int64_t kKernel = 3;

class HalfConvolution final : public ConvPlan {
 public:
  HalfConvolution(Libraries& libraries, const ConvSpec& spec)
      : libraries_(libraries),
        calls_(*libraries.handles().calls),
        s_(spec),
        x_elements_(s_.batch * s_.height * s_.width * s_.in),
        y_elements_(s_.batch * s_.out_height() * s_.out_width() * s_.out),
        kernel_elements_(s_.kernel_h * s_.kernel_w * (s_.in / s_.groups) * s_.out) {}

  void Forward(Stream& stream, const void* x, const void* kernel, const void* bias,
               void* y) override {
    if (!Run(Part::kForward, stream, x, kernel, y)) {
      Widened().Forward(stream, x, kernel, bias, y);
    } else if (s_.bias || s_.activation != Activation::kNone) {
      AddBias(stream, y_elements_ / s_.out, s_.out, s_.bias ? bias : nullptr, s_.activation, y,
              s_.type);
    }
  }
  void BackwardKernel(Stream& stream, const void* x, const void* dy, float* dkernel) override {
    if (!Run(Part::kBackwardKernel, stream, x, dkernel, dy)) {
      Widened().BackwardKernel(stream, x, dy, dkernel);
    }
  }
  void BackwardInput(Stream& stream, const void* kernel, const void* dy, void* dx) override {
    if (!Run(Part::kBackwardInput, stream, dx, kernel, dy)) {
      Widened().BackwardInput(stream, kernel, dy, dx);
    }
  }

 private:
  ConvPlan& Widened() {
    if (widened_ == nullptr) {
      widened_ = MakeWidenedConv(libraries_, s_);
    }
    return *widened_;
  }

  // False where the graphs have no way: nothing was put on the stream.
  bool Run(Part part, Stream& stream, const void* x, const void* kernel, const void* y) {
    if (x_elements_ == 0 || y_elements_ == 0 || kernel_elements_ == 0 || !Aligned(x) ||
        !Aligned(y)) {
      return false;
    }
    const cudnnHandle_t handle = CudnnOn(libraries_, stream);
    const auto p = static_cast<std::size_t>(part);
    if (!ways_[p].has_value()) {
      const OutsideCapture outside;
      ways_[p] = Ways(handle, part);
    }
    if (ways_[p]->empty()) {
      return false;
    }
    const auto run = [&](const ConvWay& way) {
      return Put(part, stream, handle, way, x, kernel, y);
    };
    if (!chosen_[p].has_value()) {
      chosen_[p] = Here(p, MeasuredWays::OfProcess().Find({libraries_.ordinal(), s_, part}));
    }
    if (!chosen_[p].has_value() && !Capturing(stream) && Settle(*AsCuda(stream).state())) {
      chosen_[p] = Measure(part, stream, run);
      if (!chosen_[p].has_value()) {
        ways_[p]->clear();
        return false;
      }
    }
    // While a graph is recorded nothing can be measured: by guess, this time.
    const cudnnStatus_t status = run((*ways_[p])[chosen_[p].value_or(0)]);
    if (status != CUDNN_STATUS_SUCCESS) {
      Fail(stream, CudnnStatus(calls_, status, "a convolution of 16 bits"));
    }
    Launched(stream, "a convolution");
    return true;
  }

  // Another table may have had more ways: memory is short.
  std::optional<std::size_t> Here(std::size_t part, std::optional<std::size_t> way) const {
    return way.has_value() && *way < ways_[part]->size() ? way : std::nullopt;
  }

  static bool Aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

  cudnnStatus_t Put(Part part, Stream& stream, cudnnHandle_t handle, const ConvWay& way,
                    const void* x, const void* kernel, const void* y) {
    // Behind the scratch memory of the way: the kernel as cuDNN has it.
    constexpr std::size_t kAlignment = 256;
    const auto workspace = static_cast<std::size_t>(way.way.workspace);
    const std::size_t kernel_at = (workspace + kAlignment - 1) / kAlignment * kAlignment;
    const std::size_t kernel_bytes = static_cast<std::size_t>(kernel_elements_) * sizeof(float);
    std::byte* const base = libraries_.Scratch(kernel_at + kernel_bytes);
    std::byte* const of_kernel = base + kernel_at;
    const std::int64_t rows = kernel_elements_ / s_.out;
    if (part != Part::kBackwardKernel) {
      Transpose(stream, 1, rows, s_.out, kernel, s_.type, of_kernel, s_.type);
    }
    const std::array<std::int64_t, 3> ids = {kX, kY, kKernel};
    const std::array<const void*, 3> data = {x, y, of_kernel};
    const cudnnStatus_t status = RunWay(calls_, handle, way.way, ids, data, base);
    if (part == Part::kBackwardKernel) {
      Transpose(stream, 1, s_.out, rows, of_kernel, way.kernel, const_cast<void*>(kernel),
                DType::kFloat32);
    }
    return status;
  }

  // dims [batch, channels, height, width], channels-last.
  GraphDescriptor TensorOf(std::int64_t id, DType type, std::int64_t batch, std::int64_t channels,
                           std::int64_t height, std::int64_t width) const {
    GraphDescriptor tensor(calls_, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    tensor.Set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, NativeType(type));
    tensor.Set(CUDNN_ATTR_TENSOR_DIMENSIONS, {batch, channels, height, width});
    tensor.Set(CUDNN_ATTR_TENSOR_STRIDES,
               {height * width * channels, 1, width * channels, channels});
    tensor.Set(CUDNN_ATTR_TENSOR_UNIQUE_ID, {id});
    tensor.Set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, {16});
    tensor.Finalize();
    return tensor;
  }

  // The operation of a part, with a kernel (or its gradient) of the type.
  GraphDescriptor OperationOf(Part part, DType kernel_type) const {
    const GraphDescriptor x = TensorOf(kX, s_.type, s_.batch, s_.in, s_.height, s_.width);
    const GraphDescriptor y =
        TensorOf(kY, s_.type, s_.batch, s_.out, s_.out_height(), s_.out_width());
    const GraphDescriptor kernel =
        TensorOf(kKernel, kernel_type, s_.out, s_.in / s_.groups, s_.kernel_h, s_.kernel_w);
    GraphDescriptor convolution(calls_, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    convolution.Set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
    convolution.Set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE,
                    CUDNN_CROSS_CORRELATION);
    convolution.Set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, {2});
    convolution.Set(CUDNN_ATTR_CONVOLUTION_DILATIONS, {1, 1});
    convolution.Set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, {s_.stride_h, s_.stride_w});
    convolution.Set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, {s_.pad_top, s_.pad_left});
    convolution.Set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, {s_.pad_bottom, s_.pad_right});
    convolution.Finalize();

    const auto operation = [&](cudnnBackendDescriptorType_t type, cudnnBackendAttributeName_t alpha,
                               cudnnBackendAttributeName_t beta, cudnnBackendAttributeName_t conv,
                               cudnnBackendAttributeName_t of_x, cudnnBackendAttributeName_t of_y,
                               cudnnBackendAttributeName_t of_kernel) {
      GraphDescriptor made(calls_, type);
      made.Set(conv, convolution);
      made.Set(of_x, x);
      made.Set(of_y, y);
      made.Set(of_kernel, kernel);
      made.Set(alpha, CUDNN_TYPE_FLOAT, 1.0F);
      made.Set(beta, CUDNN_TYPE_FLOAT, 0.0F);
      made.Finalize();
      return made;
    };
    switch (part) {
      case Part::kForward:
        return operation(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W);
      case Part::kBackwardKernel:
        return operation(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW);
      case Part::kBackwardInput:
        break;
    }
    return operation(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
                     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W);
  }

  // Exact ones first, else in cuDNN's order. Gradients of kernels in float32, and then rounded.
  std::vector<ConvWay> Ways(cudnnHandle_t handle, Part part) const {
    std::vector<ConvWay> exact;
    std::vector<ConvWay> others;
    const auto add = [&](DType kernel) {
      const GraphDescriptor operation = OperationOf(part, kernel);
      if (!operation.ok()) {
        return;
      }
      for (GraphWay& way : WaysOf(calls_, handle, operation, kMaxWays, kMaxWorkspace)) {
        auto& of_kind = way.exact ? exact : others;
        of_kind.push_back({std::move(way), kernel});
      }
    };
    if (part == Part::kBackwardKernel) {
      add(DType::kFloat32);
    }
    add(s_.type);
    for (ConvWay& way : others) {
      exact.push_back(std::move(way));
    }
    return exact;
  }

  // Nothing if none ran.
  template <typename Run>
  std::optional<std::size_t> Measure(Part part, Stream& stream, const Run& run) {
    const std::vector<ConvWay>& ways = *ways_[static_cast<std::size_t>(part)];
    const cudaStream_t native = Native(stream);
    Stopwatch watch;
    std::size_t best = 0;
    float best_time = Stopwatch::kNever;
    for (std::size_t w = 0; w < ways.size(); ++w) {
      if (best_time != Stopwatch::kNever && ways[best].way.exact && !ways[w].way.exact) {
        break;
      }
      const auto times = [&](int count) {
        bool ok = true;
        for (int i = 0; ok && i < count; ++i) {
          ok = run(ways[w]) == CUDNN_STATUS_SUCCESS;
        }
        return ok;
      };
      const float time =
          times(1) ? watch.Time(native, [&] { return times(kTimed); }) : Stopwatch::kNever;
      (void)cudaGetLastError();
      const bool rounds =
          part == Part::kBackwardKernel && IsHalf(ways[w].kernel) && !IsHalf(ways[best].kernel);
      if (time < (rounds ? kWorthRounding : kWorthwhile) * best_time) {
        best = w;
        best_time = time;
      }
    }
    if (best_time == Stopwatch::kNever) {
      return std::nullopt;
    }
    const std::size_t kept = MeasuredWays::OfProcess().Keep({libraries_.ordinal(), s_, part}, best);
    return kept < ways.size() ? kept : best;
  }

  Libraries& libraries_;
  const LibraryCalls& calls_;
  const ConvSpec s_;
  const std::int64_t x_elements_, y_elements_, kernel_elements_;
  std::array<std::optional<std::vector<ConvWay>>, kParts> ways_;
  std::array<std::optional<std::size_t>, kParts> chosen_;
  std::unique_ptr<ConvPlan> widened_;
};

}  // namespace

std::unique_ptr<ConvPlan> MakeHalfConv(Libraries& libraries, const ConvSpec& spec) {
  RequireTypeOf(libraries, spec.type);
  Require(spec.groups > 0 && spec.in % spec.groups == 0 && spec.out % spec.groups == 0,
          "a convolution's channels divide into its groups");
  return std::make_unique<HalfConvolution>(libraries, spec);
}

}  // namespace cohort::cuda
