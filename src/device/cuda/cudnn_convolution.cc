// Convolutions on cuDNN. Images lie in [batch, height, width, channels], which it takes as NHWC;
// kernels in [height, width, in, out], of which it wants the transpose. Both layouts that it knows
// are tried, and for each the way that it finds fastest, at the first run of a plan outside of a
// graph's recording; what is bitwise the same each time goes before what is faster.

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/cuda_common.h"
#include "cuda/cuda_stream.h"
#include "cuda/layout.h"
#include "cuda/libraries.h"
#include "cuda/measured.h"
#include "cuda/stopwatch.h"

namespace cohort::cuda {
namespace {

// Scratch memory that a way may ask for.
constexpr std::size_t kMaxWorkspace = std::size_t{256} << 20;
constexpr int kMaxWays = 16;  // that cuDNN is asked for
// A choice changes only for one that is so much faster: what noise decides should be rare.
constexpr float kWorthwhile = 0.9F;

enum class Part { kForward, kBackwardKernel, kBackwardInput };

// One way to compute a part.
struct Way {
  cudnnTensorFormat_t layout = CUDNN_TENSOR_NHWC;
  int algorithm = 0;
  std::size_t workspace = 0;
  cudnnMathType_t math = CUDNN_FMA_MATH;
  bool fused = false;  // bias and activation with it
  bool exact = false;  // the same bits each time
};

using MeasuredWays = Measured<std::tuple<int, bool, ConvSpec, Part>, Way>;  // GPU, TF32

std::string Text(const ConvSpec& s) {
  const auto list = [](std::initializer_list<std::int64_t> numbers) {
    std::string text = "[";
    for (const std::int64_t n : numbers) {
      text += (text.size() == 1 ? "" : ",") + std::to_string(n);
    }
    return text + "]";
  };
  return "a convolution of " + list({s.batch, s.height, s.width, s.in}) + " by " +
         list({s.kernel_h, s.kernel_w, s.in / s.groups, s.out});
}

// What a part reads and writes; those that it has nothing to do with are null.
struct Operands {
  const float* x = nullptr;
  const float* kernel = nullptr;
  const float* bias = nullptr;
  const float* dy = nullptr;
  float* out = nullptr;
};

// Scratch memory of a run.
struct Areas {
  float* kernel = nullptr;
  float* kernel_between = nullptr;  // of two transpositions
  float* padded = nullptr;
  float* x = nullptr;
  float* y = nullptr;
  std::byte* workspace = nullptr;
};

// cuDNN's description of the problem in one layout.
class Problem {
 public:
  Problem(const LibraryCalls& calls, const ConvSpec& s, const Padding& padding, bool padded,
          cudnnTensorFormat_t layout, const std::string& text)
      : calls_(calls) {
    const auto check = [&](cudnnStatus_t status) { OrThrow(CudnnStatus(calls, status, text)); };
    const auto narrow = [&](std::int64_t value) {
      Require(value <= std::numeric_limits<int>::max(), text + ": too large for cuDNN");
      return static_cast<int>(value);
    };
    try {
      check(calls.cudnnCreateTensorDescriptor(&x));
      check(calls.cudnnCreateTensorDescriptor(&y));
      check(calls.cudnnCreateTensorDescriptor(&bias));
      check(calls.cudnnCreateFilterDescriptor(&kernel));
      check(calls.cudnnCreateConvolutionDescriptor(&convolution));
      check(calls.cudnnCreateActivationDescriptor(&activation));
      check(calls.cudnnSetTensor4dDescriptor(x, layout, CUDNN_DATA_FLOAT, narrow(s.batch),
                                             narrow(s.in),
                                             narrow(padded ? padding.padded_height() : s.height),
                                             narrow(padded ? padding.padded_width() : s.width)));
      check(calls.cudnnSetTensor4dDescriptor(y, layout, CUDNN_DATA_FLOAT, narrow(s.batch),
                                             narrow(s.out), narrow(s.out_height()),
                                             narrow(s.out_width())));
      check(
          calls.cudnnSetTensor4dDescriptor(bias, layout, CUDNN_DATA_FLOAT, 1, narrow(s.out), 1, 1));
      check(calls.cudnnSetFilter4dDescriptor(kernel, CUDNN_DATA_FLOAT, layout, narrow(s.out),
                                             narrow(s.in / s.groups), narrow(s.kernel_h),
                                             narrow(s.kernel_w)));
      check(calls.cudnnSetConvolution2dDescriptor(
          convolution, padded ? 0 : narrow(s.pad_top), padded ? 0 : narrow(s.pad_left),
          narrow(s.stride_h), narrow(s.stride_w), 1, 1, CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT));
      check(calls.cudnnSetConvolutionGroupCount(convolution, narrow(s.groups)));
      check(calls.cudnnSetActivationDescriptor(
          activation,
          s.activation == Activation::kRelu ? CUDNN_ACTIVATION_RELU : CUDNN_ACTIVATION_IDENTITY,
          CUDNN_PROPAGATE_NAN, 0.0));
    } catch (...) {
      Destroy();
      throw;
    }
  }
  ~Problem() { Destroy(); }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

 private:
  void Destroy() {
    for (const cudnnTensorDescriptor_t tensor : {x, y, bias}) {
      if (tensor != nullptr) {
        (void)calls_.cudnnDestroyTensorDescriptor(tensor);
      }
    }
    if (kernel != nullptr) {
      (void)calls_.cudnnDestroyFilterDescriptor(kernel);
    }
    if (convolution != nullptr) {
      (void)calls_.cudnnDestroyConvolutionDescriptor(convolution);
    }
    if (activation != nullptr) {
      (void)calls_.cudnnDestroyActivationDescriptor(activation);
    }
  }

  const LibraryCalls& calls_;

 public:
  cudnnTensorDescriptor_t x = nullptr, y = nullptr, bias = nullptr;
  cudnnFilterDescriptor_t kernel = nullptr;
  cudnnConvolutionDescriptor_t convolution = nullptr;
  cudnnActivationDescriptor_t activation = nullptr;
};

// In float32, whatever the spec's type: what was of 16 bits comes widened.
class CudnnConv final : public ConvPlan {
 public:
  CudnnConv(Libraries& libraries, const ConvSpec& s)
      : libraries_(libraries),
        calls_(*libraries.handles().calls),
        spec_(s),
        text_(Text(s)),
        padding_{s.batch,   s.height,     s.width,    s.in,
                 s.pad_top, s.pad_bottom, s.pad_left, s.pad_right},
        padded_(s.pad_top != s.pad_bottom || s.pad_left != s.pad_right),
        x_elements_(s.batch * s.height * s.width * s.in),
        y_elements_(s.batch * s.out_height() * s.out_width() * s.out),
        kernel_elements_(s.kernel_h * s.kernel_w * (s.in / s.groups) * s.out) {}

  void Forward(Stream& stream, const void* x, const void* kernel, const void* bias,
               void* y) override {
    const Operands operands{.x = static_cast<const float*>(x),
                            .kernel = static_cast<const float*>(kernel),
                            .bias = spec_.bias ? static_cast<const float*>(bias) : nullptr,
                            .out = static_cast<float*>(y)};
    if (empty()) {
      FillRows(stream, y_elements_ == 0 ? 0 : y_elements_ / spec_.out, spec_.out, operands.bias,
               spec_.activation, operands.out);
      return;
    }
    Run(Part::kForward, stream, operands);
  }

  void BackwardKernel(Stream& stream, const void* x, const void* dy, float* dkernel) override {
    if (empty()) {
      FillRows(stream, kernel_elements_, 1, nullptr, Activation::kNone, dkernel);
      return;
    }
    Run(Part::kBackwardKernel, stream,
        {.x = static_cast<const float*>(x), .dy = static_cast<const float*>(dy), .out = dkernel});
  }

  void BackwardInput(Stream& stream, const void* kernel, const void* dy, void* dx) override {
    if (empty()) {
      FillRows(stream, x_elements_, 1, nullptr, Activation::kNone, static_cast<float*>(dx));
      return;
    }
    Run(Part::kBackwardInput, stream,
        {.kernel = static_cast<const float*>(kernel),
         .dy = static_cast<const float*>(dy),
         .out = static_cast<float*>(dx)});
  }

 private:
  // TF32 holds operands that were of 16 bits exactly.
  bool tf32() const { return libraries_.tf32() || IsHalf(spec_.type); }
  bool empty() const { return x_elements_ == 0 || y_elements_ == 0 || kernel_elements_ == 0; }

  void Run(Part part, Stream& stream, const Operands& operands) {
    std::optional<Way>& way = ways_[static_cast<std::size_t>(part)];
    (void)CudnnOn(libraries_, stream);
    if (way.has_value()) {
      Put(part, stream, *way, operands);
      return;
    }
    way = Known(part);
    if (!way.has_value() && !Capturing(stream) && Settle(*AsCuda(stream).state())) {
      way = Measure(part, stream, operands);
    }
    // While a graph is recorded nothing can be measured: by guess, this time.
    Put(part, stream, way.has_value() ? *way : Guess(part), operands);
  }

  // Puts the part on the stream; what cuDNN refuses fails it.
  void Put(Part part, Stream& stream, const Way& way, const Operands& operands) {
    const cudnnStatus_t status = TryPut(part, stream, way, operands);
    if (status != CUDNN_STATUS_SUCCESS) {
      Fail(stream, CudnnStatus(calls_, status, text_));
    }
    Launched(stream, "a convolution");
  }

  cudnnStatus_t TryPut(Part part, Stream& stream, const Way& way, const Operands& o) {
    const Problem& problem = ProblemIn(way.layout);
    const Areas areas = AreasFor(way.layout, way.workspace);
    cudnnStatus_t status = calls_.cudnnSetConvolutionMathType(problem.convolution, way.math);
    if (status != CUDNN_STATUS_SUCCESS) {
      return status;
    }
    const cudnnHandle_t handle = libraries_.handles().cudnn;
    const float one = 1.0F;
    const float zero = 0.0F;
    const bool images = way.layout == CUDNN_TENSOR_NHWC;
    switch (part) {
      case Part::kForward: {
        const float* const x = XIn(stream, way.layout, areas, o.x);
        const float* const kernel = KernelIn(stream, way.layout, areas, o.kernel);
        float* const y = images ? o.out : areas.y;
        const auto algorithm = static_cast<cudnnConvolutionFwdAlgo_t>(way.algorithm);
        status = way.fused
                     ? calls_.cudnnConvolutionBiasActivationForward(
                           handle, &one, problem.x, x, problem.kernel, kernel, problem.convolution,
                           algorithm, areas.workspace, way.workspace, &zero, problem.y, y,
                           problem.bias, o.bias, problem.activation, problem.y, y)
                     : calls_.cudnnConvolutionForward(
                           handle, &one, problem.x, x, problem.kernel, kernel, problem.convolution,
                           algorithm, areas.workspace, way.workspace, &zero, problem.y, y);
        if (!images) {
          Transpose(stream, spec_.batch, spec_.out, spec_.out_height() * spec_.out_width(), areas.y,
                    o.out);
        }
        if (!way.fused && (o.bias != nullptr || spec_.activation != Activation::kNone)) {
          AddBias(stream, y_elements_ / spec_.out, spec_.out, o.bias, spec_.activation, o.out);
        }
        return status;
      }
      case Part::kBackwardKernel: {
        const float* const x = XIn(stream, way.layout, areas, o.x);
        const float* const dy = YIn(stream, way.layout, areas, o.dy);
        status = calls_.cudnnConvolutionBackwardFilter(
            handle, &one, problem.x, x, problem.y, dy, problem.convolution,
            static_cast<cudnnConvolutionBwdFilterAlgo_t>(way.algorithm), areas.workspace,
            way.workspace, &zero, problem.kernel, areas.kernel);
        const float* from = areas.kernel;
        if (!images) {
          Transpose(stream, spec_.out, spec_.in / spec_.groups, spec_.kernel_h * spec_.kernel_w,
                    from, areas.kernel_between);
          from = areas.kernel_between;
        }
        Transpose(stream, 1, spec_.out, kernel_elements_ / spec_.out, from, o.out);
        return status;
      }
      case Part::kBackwardInput: {
        const float* const kernel = KernelIn(stream, way.layout, areas, o.kernel);
        const float* const dy = YIn(stream, way.layout, areas, o.dy);
        float* const dx = images ? (padded_ ? areas.padded : o.out) : areas.x;
        status = calls_.cudnnConvolutionBackwardData(
            handle, &one, problem.kernel, kernel, problem.y, dy, problem.convolution,
            static_cast<cudnnConvolutionBwdDataAlgo_t>(way.algorithm), areas.workspace,
            way.workspace, &zero, problem.x, dx);
        if (!images) {
          Transpose(stream, spec_.batch, spec_.in, x_plane(), areas.x,
                    padded_ ? areas.padded : o.out);
        }
        if (padded_) {
          Crop(stream, padding_, areas.padded, o.out);
        }
        return status;
      }
    }
    return CUDNN_STATUS_BAD_PARAM;
  }

  // Operands in cuDNN's layout.
  const float* XIn(Stream& stream, cudnnTensorFormat_t layout, const Areas& areas, const float* x) {
    if (padded_) {
      Pad(stream, padding_, x, areas.padded);
      x = areas.padded;
    }
    if (layout == CUDNN_TENSOR_NCHW) {
      Transpose(stream, spec_.batch, x_plane(), spec_.in, x, areas.x);
      x = areas.x;
    }
    return x;
  }
  const float* YIn(Stream& stream, cudnnTensorFormat_t layout, const Areas& areas, const float* y) {
    if (layout == CUDNN_TENSOR_NCHW) {
      Transpose(stream, spec_.batch, spec_.out_height() * spec_.out_width(), spec_.out, y, areas.y);
      y = areas.y;
    }
    return y;
  }
  const float* KernelIn(Stream& stream, cudnnTensorFormat_t layout, const Areas& areas,
                        const float* kernel) {
    const bool images = layout == CUDNN_TENSOR_NHWC;
    float* const to = images ? areas.kernel : areas.kernel_between;
    Transpose(stream, 1, kernel_elements_ / spec_.out, spec_.out, kernel, to);
    if (!images) {
      Transpose(stream, spec_.out, spec_.kernel_h * spec_.kernel_w, spec_.in / spec_.groups, to,
                areas.kernel);
    }
    return areas.kernel;
  }

  // Elements of a channel of an image, as cuDNN sees it.
  std::int64_t x_plane() const {
    return padded_ ? padding_.padded_height() * padding_.padded_width()
                   : spec_.height * spec_.width;
  }

  Areas AreasFor(cudnnTensorFormat_t layout, std::size_t workspace) {
    constexpr std::size_t kAlignment = 256;
    std::size_t total = 0;
    const auto reserve = [&](std::size_t bytes) {
      const std::size_t at = total;
      total += (bytes + kAlignment - 1) / kAlignment * kAlignment;
      return at;
    };
    const auto floats = [&](bool wanted, std::int64_t elements) {
      return reserve(wanted ? static_cast<std::size_t>(elements) * sizeof(float) : 0);
    };
    const bool planes = layout == CUDNN_TENSOR_NCHW;
    const std::int64_t x = spec_.batch * x_plane() * spec_.in;
    const std::size_t kernel_at = floats(true, kernel_elements_);
    const std::size_t between_at = floats(planes, kernel_elements_);
    const std::size_t padded_at = floats(padded_, x);
    const std::size_t x_at = floats(planes, x);
    const std::size_t y_at = floats(planes, y_elements_);
    const std::size_t workspace_at = reserve(workspace);
    std::byte* const base = libraries_.Scratch(total);
    const auto at = [&](std::size_t offset) { return reinterpret_cast<float*>(base + offset); };
    return {at(kernel_at), at(between_at), at(padded_at), at(x_at), at(y_at), base + workspace_at};
  }

  const Problem& ProblemIn(cudnnTensorFormat_t layout) {
    auto& problem = problems_[layout == CUDNN_TENSOR_NHWC ? 0 : 1];
    if (problem == nullptr) {
      problem = std::make_unique<Problem>(calls_, spec_, padding_, padded_, layout, text_);
    }
    return *problem;
  }

  std::optional<Way> Known(Part part) {
    return MeasuredWays::OfProcess().Find({libraries_.ordinal(), tf32(), spec_, part});
  }

  cudnnMathType_t math() const { return tf32() ? CUDNN_DEFAULT_MATH : CUDNN_FMA_MATH; }

  // The usable ones of cuDNN's answers, in its order: the fastest first.
  template <typename Answer>
  std::vector<Way> Usable(cudnnTensorFormat_t layout, cudnnStatus_t status,
                          const std::array<Answer, kMaxWays>& answers, int count) const {
    std::vector<Way> ways;
    for (int i = 0; status == CUDNN_STATUS_SUCCESS && i < count; ++i) {
      const Answer& answer = answers[static_cast<std::size_t>(i)];
      if (answer.status == CUDNN_STATUS_SUCCESS && answer.memory <= kMaxWorkspace) {
        ways.push_back({layout, static_cast<int>(answer.algo), answer.memory,
                        tf32() ? answer.mathType : CUDNN_FMA_MATH, false,
                        answer.determinism == CUDNN_DETERMINISTIC});
      }
    }
    return ways;
  }

  // By cuDNN's rules of thumb.
  Way Guess(Part part) {
    for (const cudnnTensorFormat_t layout : {CUDNN_TENSOR_NHWC, CUDNN_TENSOR_NCHW}) {
      const std::vector<Way> ways = Guesses(part, layout);
      if (!ways.empty()) {
        return Preferred(ways);
      }
    }
    throw ContractError(text_ + ": cuDNN has no way to compute it");
  }

  // The first of the exact ones, or else the first.
  static Way Preferred(const std::vector<Way>& ways) {
    const auto exact = std::find_if(ways.begin(), ways.end(), [](const Way& w) { return w.exact; });
    return exact == ways.end() ? ways.front() : *exact;
  }

  std::vector<Way> Guesses(Part part, cudnnTensorFormat_t layout) {
    const Problem& p = ProblemIn(layout);
    const cudnnHandle_t handle = libraries_.handles().cudnn;
    (void)calls_.cudnnSetConvolutionMathType(p.convolution, math());
    int count = 0;
    switch (part) {
      case Part::kForward: {
        std::array<cudnnConvolutionFwdAlgoPerf_t, kMaxWays> answers{};
        const cudnnStatus_t status = calls_.cudnnGetConvolutionForwardAlgorithm_v7(
            handle, p.x, p.kernel, p.convolution, p.y, kMaxWays, &count, answers.data());
        return Usable(layout, status, answers, count);
      }
      case Part::kBackwardKernel: {
        std::array<cudnnConvolutionBwdFilterAlgoPerf_t, kMaxWays> answers{};
        const cudnnStatus_t status = calls_.cudnnGetConvolutionBackwardFilterAlgorithm_v7(
            handle, p.x, p.y, p.convolution, p.kernel, kMaxWays, &count, answers.data());
        return Usable(layout, status, answers, count);
      }
      case Part::kBackwardInput: {
        std::array<cudnnConvolutionBwdDataAlgoPerf_t, kMaxWays> answers{};
        const cudnnStatus_t status = calls_.cudnnGetConvolutionBackwardDataAlgorithm_v7(
            handle, p.kernel, p.y, p.convolution, p.x, kMaxWays, &count, answers.data());
        return Usable(layout, status, answers, count);
      }
    }
    return {};
  }

  // By trying each on the operands.
  std::vector<Way> Tried(Part part, Stream& stream, cudnnTensorFormat_t layout, const Operands& o) {
    const Problem& p = ProblemIn(layout);
    const cudnnHandle_t handle = libraries_.handles().cudnn;
    (void)calls_.cudnnSetConvolutionMathType(p.convolution, math());
    const Areas areas = AreasFor(layout, kMaxWorkspace);
    const bool images = layout == CUDNN_TENSOR_NHWC;
    int count = 0;
    switch (part) {
      case Part::kForward: {
        std::array<cudnnConvolutionFwdAlgoPerf_t, kMaxWays> answers{};
        const float* const x = XIn(stream, layout, areas, o.x);
        const float* const kernel = KernelIn(stream, layout, areas, o.kernel);
        const cudnnStatus_t status = calls_.cudnnFindConvolutionForwardAlgorithmEx(
            handle, p.x, x, p.kernel, kernel, p.convolution, p.y, images ? o.out : areas.y,
            kMaxWays, &count, answers.data(), areas.workspace, kMaxWorkspace);
        return Usable(layout, status, answers, count);
      }
      case Part::kBackwardKernel: {
        std::array<cudnnConvolutionBwdFilterAlgoPerf_t, kMaxWays> answers{};
        const float* const x = XIn(stream, layout, areas, o.x);
        const float* const dy = YIn(stream, layout, areas, o.dy);
        const cudnnStatus_t status = calls_.cudnnFindConvolutionBackwardFilterAlgorithmEx(
            handle, p.x, x, p.y, dy, p.convolution, p.kernel, areas.kernel, kMaxWays, &count,
            answers.data(), areas.workspace, kMaxWorkspace);
        return Usable(layout, status, answers, count);
      }
      case Part::kBackwardInput: {
        std::array<cudnnConvolutionBwdDataAlgoPerf_t, kMaxWays> answers{};
        const float* const kernel = KernelIn(stream, layout, areas, o.kernel);
        const float* const dy = YIn(stream, layout, areas, o.dy);
        const cudnnStatus_t status = calls_.cudnnFindConvolutionBackwardDataAlgorithmEx(
            handle, p.kernel, kernel, p.y, dy, p.convolution, p.x,
            images ? (padded_ ? areas.padded : o.out) : areas.x, kMaxWays, &count, answers.data(),
            areas.workspace, kMaxWorkspace);
        return Usable(layout, status, answers, count);
      }
    }
    return {};
  }

  // The fastest way of either layout, everything around it included. Nothing if none could be
  // measured.
  std::optional<Way> Measure(Part part, Stream& stream, const Operands& operands) {
    std::vector<Way> ways;
    for (const cudnnTensorFormat_t layout : {CUDNN_TENSOR_NHWC, CUDNN_TENSOR_NCHW}) {
      std::vector<Way> of_layout = Tried(part, stream, layout, operands);
      (void)cudaGetLastError();
      if (of_layout.empty()) {
        of_layout = Guesses(part, layout);
      }
      if (of_layout.empty()) {
        continue;
      }
      Way way = Preferred(of_layout);
      ways.push_back(way);
      if (part == Part::kForward && operands.bias != nullptr) {
        way.fused = true;
        ways.push_back(way);
      }
    }
    const cudaStream_t native = Native(stream);
    Stopwatch watch;
    std::optional<Way> best;
    float best_time = Stopwatch::kNever;
    for (const Way& way : ways) {
      const auto run = [&](int times) {
        bool ok = true;
        for (int i = 0; ok && i < times; ++i) {
          ok = TryPut(part, stream, way, operands) == CUDNN_STATUS_SUCCESS;
        }
        return ok;
      };
      const float time = run(1) ? watch.Time(native, [&] { return run(3); }) : Stopwatch::kNever;
      (void)cudaGetLastError();
      const bool better = best.has_value() && way.exact != best->exact
                              ? way.exact && time != Stopwatch::kNever
                              : time < kWorthwhile * best_time;
      if (better) {
        best = way;
        best_time = time;
      }
    }
    if (!best.has_value()) {
      return std::nullopt;
    }
    return MeasuredWays::OfProcess().Keep({libraries_.ordinal(), tf32(), spec_, part}, *best);
  }

  Libraries& libraries_;
  const LibraryCalls& calls_;
  const ConvSpec spec_;
  const std::string text_;
  const Padding padding_;
  const bool padded_;  // by a kernel of ours: cuDNN pads both sides alike
  const std::int64_t x_elements_, y_elements_, kernel_elements_;
  std::array<std::unique_ptr<Problem>, 2> problems_;
  std::array<std::optional<Way>, 3> ways_;
};

}  // namespace

std::unique_ptr<ConvPlan> MakeConv(Libraries& libraries, const ConvSpec& spec) {
  Require(spec.groups > 0 && spec.in % spec.groups == 0 && spec.out % spec.groups == 0,
          "a convolution's channels divide into its groups");
  Require(spec.out_height() >= 0 && spec.out_width() >= 0,
          "a convolution's kernel is no larger than its padded input");
  return std::make_unique<CudnnConv>(libraries, spec);
}

}  // namespace cohort::cuda
