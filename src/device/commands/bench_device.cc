// `cohort bench device`: a device's kernels beside what its memory gives a copy.
//
// A sample is as many calls as take a while, up to a Synchronize; a figure is the median of the
// samples. Bytes are those that a kernel cannot do without: what it reads, and what it writes,
// once.

#include "command.h"

#include <cohort/core/status.h>
#include <cohort/device/device.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace cohort {
namespace {

using namespace std::chrono_literals;

struct Flags {
  std::string device = "cuda:0";
  int threads = 0;
  int samples = 11;
  std::int64_t parameters = 0;  // 0: by the kind of device
  std::int64_t rows = 0;
  bool json = false;
};

struct Figure {
  std::string kernel, size;
  double seconds = 0;
  double bytes = 0;
  double flops = 0;
};

class Bench {
 public:
  Bench(std::shared_ptr<Device> device, const Flags& flags)
      : device_(std::move(device)),
        stream_(device_->MakeStream()),
        kernels_(device_->MakeKernels(flags.threads)),
        samples_(flags.samples),
        parameters_(flags.parameters),
        rows_(flags.rows) {}

  std::vector<Figure> Run() {
    Copies();
    Updates();
    for (const DType type : {DType::kFloat32, DType::kBFloat16}) {
      Rows(type);
      BatchNorm(type);
      Pools(type);
      CrossEntropy(type);
      Attention(type);
      Convolution(type);
      Product(type);
    }
    return std::move(figures_);
  }

 private:
  FloatSpan Floats(std::int64_t count, float value = 0.25F) {
    const auto size = static_cast<std::size_t>(count);
    memory_.push_back(device_->Allocate(size * sizeof(float), "an operand of the benchmark"));
    const FloatSpan span(reinterpret_cast<float*>(memory_.back().get()), size);
    kernels_->Fill(*stream_, span, value);
    return span;
  }

  // Of `type`, all 0.25.
  Elements Filled(std::int64_t count, DType type) {
    const auto size = static_cast<std::size_t>(count);
    memory_.push_back(device_->Allocate(size * SizeOf(type), "an operand of the benchmark"));
    const Elements elements(memory_.back().get(), size, type);
    kernels_->Copy(*stream_, Floats(count), elements);
    Finish();  // what was copied may go
    memory_.pop_back();
    return elements;
  }
  // Of a float's bytes.
  static double Share(DType type) { return static_cast<double>(SizeOf(type)) / sizeof(float); }
  static std::string Named(const std::string& kernel, DType type) {
    return IsHalf(type) ? kernel + ", " + std::string(DTypeName(type)) : kernel;
  }

  void Finish() { OrThrow(stream_->Synchronize(DeadlineAfter(120s))); }

  double Seconds(int calls, const std::function<void()>& call) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) {
      call();
    }
    Finish();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  // Floats moved, and operations.
  void Measure(const std::string& kernel, const std::string& size, double floats, double flops,
               const std::function<void()>& call) {
    Seconds(1, call);
    const double once = Seconds(1, call);
    const int calls = std::clamp(static_cast<int>(0.005 / std::max(once, 1e-6)), 1, 200);
    std::vector<double> samples;
    for (int i = 0; i < samples_; ++i) {
      samples.push_back(Seconds(calls, call) / calls);
    }
    const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
    std::nth_element(samples.begin(), middle, samples.end());
    figures_.push_back({kernel, size, *middle, floats * sizeof(float), flops});
  }

  void Free() { memory_.clear(); }

  void Copies() {
    const auto n = static_cast<double>(parameters_);
    const std::string size = std::to_string(parameters_) + " floats";
    const FloatSpan a = Floats(parameters_);
    const FloatSpan b = Floats(parameters_);
    Measure("memory copy", size, 2 * n, 0, [&] {
      device_->Copy(*stream_, reinterpret_cast<const std::byte*>(a.data()),
                    reinterpret_cast<std::byte*>(b.data()), a.size_bytes());
    });
    Measure("copy", size, 2 * n, 0, [&] { kernels_->Copy(*stream_, a, b); });
    Measure("add", size, 3 * n, 0, [&] { kernels_->Add(*stream_, a, b, b); });
    Measure("gelu", size, 2 * n, 0, [&] { kernels_->Activate(*stream_, Activation::kGelu, a, b); });
    Measure("dropout", size, 2 * n, 0, [&] {
      kernels_->Dropout(*stream_, {.rate = 0.1F, .key = 1, .step = 2, .first = 0}, a, b);
    });
    const Elements narrow = Filled(parameters_, DType::kBFloat16);
    Measure("compress, with feedback", size, 3.5 * n, 0,
            [&] { kernels_->Compress(*stream_, a, 1, b, narrow); });
    Free();
  }

  void Updates() {
    const auto n = static_cast<double>(parameters_);
    const UpdatePart part{.value = Floats(parameters_),
                          .gradient = Floats(parameters_),
                          .slots = {Floats(parameters_), Floats(parameters_)}};
    const AdamUpdate rule{.beta1 = 0.9F,
                          .beta2 = 0.999F,
                          .fresh1 = 0.1F,
                          .fresh2 = 0.001F,
                          .rate = 1e-4F,
                          .root = 1,
                          .epsilon = 1e-8F,
                          .l2 = 0,
                          .decay = 1e-5F};
    Measure("adamw", std::to_string(parameters_) + " parameters", 7 * n, 0, [&] {
      kernels_->Update(*stream_, rule, {&part, 1});
    });
    memory_.push_back(device_->Allocate(sizeof(double), "a sum"));
    const std::span<double> sum(reinterpret_cast<double*>(memory_.back().get()), 1);
    Measure("sum of squares", std::to_string(parameters_) + " parameters", n, 0,
            [&] { kernels_->SumSquares(*stream_, part.gradient, sum); });
    Free();
  }

  // `type`: of what a product takes.
  void Rows(DType type) {
    constexpr std::int64_t kColumns = 768;
    const std::int64_t rows = 2 * rows_;
    const auto n = static_cast<double>(rows * kColumns);
    const std::string size = std::to_string(rows) + " x " + std::to_string(kColumns);
    const double narrow = n * Share(type);
    const FloatSpan x = Floats(rows * kColumns);
    const Elements y = Filled(rows * kColumns, type);
    const FloatSpan dx = Floats(rows * kColumns);
    const FloatSpan scale = Floats(kColumns);
    const FloatSpan offset = Floats(kColumns);
    const FloatSpan mean = Floats(rows);
    const FloatSpan inverse = Floats(rows);
    Measure(Named("layer norm", type), size, n + narrow, 0, [&] {
      kernels_->LayerNorm(*stream_, {.rows = rows,
                                     .columns = kColumns,
                                     .epsilon = 1e-5F,
                                     .x = x,
                                     .scale = scale,
                                     .offset = offset,
                                     .mean = mean,
                                     .inverse_deviation = inverse,
                                     .y = y});
    });
    Measure(Named("layer norm, backward", type), size, 2 * n + narrow, 0, [&] {
      kernels_->LayerNormBackward(*stream_, {.rows = rows,
                                             .columns = kColumns,
                                             .x = x,
                                             .scale = scale,
                                             .mean = mean,
                                             .inverse_deviation = inverse,
                                             .dy = y,
                                             .dx = dx,
                                             .dscale = scale,
                                             .doffset = offset});
    });
    Measure(Named("sum of rows", type), size, narrow, 0, [&] {
      kernels_->SumRows(*stream_, {rows, kColumns}, y, offset);
    });
    if (IsHalf(type)) {
      Measure(Named("add to float32", type), size, 2 * n + narrow, 0,
              [&] { kernels_->Add(*stream_, x, y, x); });
      Measure(Named("gelu", type), size, 2 * narrow, 0,
              [&] { kernels_->Activate(*stream_, Activation::kGelu, y, y); });
    } else {
      Measure("softmax", size, 2 * n, 0, [&] {
        kernels_->Softmax(*stream_, {rows, kColumns}, x, y);
      });
    }
    Free();
  }

  // As behind a convolution: many rows of few columns.
  void BatchNorm(DType type) {
    constexpr std::int64_t kColumns = 256;
    const std::int64_t rows = 32 * rows_;
    const double n = static_cast<double>(rows * kColumns) * Share(type);
    const std::string size = std::to_string(rows) + " x " + std::to_string(kColumns);
    const Elements x = Filled(rows * kColumns, type);
    const Elements y = Filled(rows * kColumns, type);
    const FloatSpan scale = Floats(kColumns);
    const FloatSpan offset = Floats(kColumns);
    const FloatSpan mean = Floats(kColumns);
    const FloatSpan inverse = Floats(kColumns);
    const FloatSpan sums = Floats(2 * kColumns);
    const FloatSpan count = Floats(1, static_cast<float>(rows));
    Measure(Named("moments", type), size, n, 0, [&] {
      kernels_->Moments(*stream_, {rows, kColumns}, x, mean, inverse);
    });
    Measure(Named("batch norm, relu", type), size, 2 * n, 0, [&] {
      kernels_->BatchNorm(*stream_, {.rows = rows,
                                     .columns = kColumns,
                                     .x = x,
                                     .scale = scale,
                                     .offset = offset,
                                     .mean = mean,
                                     .inverse_deviation = inverse,
                                     .y = y,
                                     .activation = Activation::kRelu});
    });
    Measure(Named("batch norm, backward", type), size, 5 * n, 0, [&] {
      const NormBackwardArguments norm{.rows = rows,
                                       .columns = kColumns,
                                       .x = x,
                                       .scale = scale,
                                       .mean = mean,
                                       .inverse_deviation = inverse,
                                       .dy = y,
                                       .dx = y,
                                       .activation = Activation::kRelu,
                                       .offset = offset};
      kernels_->BatchNormBackwardSums(*stream_, norm, sums);
      kernels_->BatchNormBackward(*stream_, norm, sums, count);
    });
    Free();
  }

  // As behind a ResNet's first convolution.
  void Pools(DType type) {
    const PoolSpec spec{.batch = std::max<std::int64_t>(rows_ / 32, 1),
                        .height = 112,
                        .width = 112,
                        .channels = 64,
                        .window_h = 3,
                        .window_w = 3,
                        .stride_h = 2,
                        .stride_w = 2,
                        .pad_top = 1,
                        .pad_bottom = 1,
                        .pad_left = 1,
                        .pad_right = 1,
                        .type = type};
    PoolPlan& plan = kernels_->Pool(spec);
    const std::int64_t in = spec.batch * spec.height * spec.width * spec.channels;
    const std::int64_t out = spec.batch * spec.out_height() * spec.out_width() * spec.channels;
    const auto chosen = static_cast<double>(plan.workspace_bytes()) / sizeof(float);
    const double floats = static_cast<double>(in + out) * Share(type) + chosen;
    const std::string size = std::to_string(spec.batch) + " x 112 x 112 x 64, 3 x 3, by 2";
    const Elements x = Filled(in, type);
    const Elements y = Filled(out, type);
    memory_.push_back(device_->Allocate(
        static_cast<std::size_t>(std::max<std::int64_t>(plan.workspace_bytes(), 1)),
        "where maxima were"));
    std::byte* const workspace = memory_.back().get();
    Measure(Named("max pool", type), size, floats, 0,
            [&] { plan.Forward(*stream_, x.raw(), y.raw(), workspace); });
    Measure(Named("max pool, backward", type), size, floats, 0,
            [&] { plan.Backward(*stream_, y.raw(), workspace, x.raw()); });
    Free();
  }

  void Convolution(DType type) {
    const ConvSpec spec{.batch = std::max<std::int64_t>(rows_ / 128, 1),
                        .height = 28,
                        .width = 28,
                        .in = 128,
                        .kernel_h = 3,
                        .kernel_w = 3,
                        .out = 128,
                        .pad_top = 1,
                        .pad_bottom = 1,
                        .pad_left = 1,
                        .pad_right = 1,
                        .type = type};
    const std::int64_t n = spec.batch * spec.height * spec.width * spec.in;
    const double flops = 2.0 * 9 * static_cast<double>(n * spec.out);
    const Elements x = Filled(n, type);
    const Elements y = Filled(n, type);
    const Elements kernel = Filled(9 * spec.in * spec.out, type);
    const FloatSpan dkernel = Floats(9 * spec.in * spec.out);
    ConvPlan& plan = kernels_->Conv(spec);
    const std::string size = std::to_string(spec.batch) + " x 28 x 28, 3 x 3, 128 to 128";
    Measure(Named("convolution", type), size, 0, flops,
            [&] { plan.Forward(*stream_, x.raw(), kernel.raw(), nullptr, y.raw()); });
    Measure(Named("convolution, by kernel", type), size, 0, flops,
            [&] { plan.BackwardKernel(*stream_, x.raw(), y.raw(), dkernel.data()); });
    Measure(Named("convolution, by input", type), size, 0, flops,
            [&] { plan.BackwardInput(*stream_, kernel.raw(), y.raw(), x.raw()); });
    Free();
  }

  void CrossEntropy(DType type) {
    constexpr std::int64_t kClasses = 50257;
    const double n = static_cast<double>(rows_ * kClasses) * Share(type);
    const std::string size = std::to_string(rows_) + " x " + std::to_string(kClasses);
    const Elements dx = Filled(rows_ * kClasses, type);
    const FloatSpan loss = Floats(2);
    const FloatSpan dloss = Floats(1);
    std::vector<std::int64_t> labels(static_cast<std::size_t>(rows_));
    for (std::size_t i = 0; i < labels.size(); ++i) {
      labels[i] = static_cast<std::int64_t>(i * 7919) % kClasses;
    }
    const std::size_t bytes = labels.size() * sizeof(std::int64_t);
    memory_.push_back(device_->Allocate(bytes, "labels"));
    device_->Copy(*stream_, reinterpret_cast<const std::byte*>(labels.data()), memory_.back().get(),
                  bytes);
    Finish();
    LossArguments l;
    l.rows = rows_;
    l.columns = kClasses;
    l.classes = memory_.back().get();
    l.x = Filled(rows_ * kClasses, type);
    Measure(Named("cross-entropy", type), size, n, 0,
            [&] { kernels_->SoftmaxCrossEntropy(*stream_, l, loss); });
    Measure(Named("cross-entropy, backward", type), size, 2 * n, 0,
            [&] { kernels_->SoftmaxCrossEntropyBackward(*stream_, l, loss, dloss, dx); });
    Free();
  }

  void Attention(DType type) {
    const AttentionSpec spec{.batch = std::max<std::int64_t>(rows_ / 1024, 1),
                             .length = std::min<std::int64_t>(rows_, 1024),
                             .heads = 12,
                             .head_size = 64,
                             .causal = true,
                             .type = type};
    const std::int64_t n = spec.batch * spec.length * spec.heads * spec.head_size;
    // Half of the scores of two products.
    const double flops = 2.0 * static_cast<double>(n) * static_cast<double>(spec.length);
    AttentionPlan& plan = kernels_->Attention(spec);
    const Elements qkv = Filled(3 * n, type);
    const Elements dqkv = Filled(3 * n, type);
    const Elements y = Filled(n, type);
    const Elements dy = Filled(n, type);
    const FloatSpan saved = Floats(plan.saved_elements());
    const std::string size = std::to_string(spec.batch) + " x " + std::to_string(spec.length) +
                             ", 12 heads of 64, causal";
    Measure(Named("attention", type), size, 0, flops,
            [&] { plan.Forward(*stream_, qkv.raw(), y.raw(), saved.data()); });
    Measure(Named("attention, backward", type), size, 0, 2.5 * flops, [&] {
      plan.Backward(*stream_, qkv.raw(), y.raw(), saved.data(), dy.raw(), dqkv.raw());
    });
    Free();
  }

  void Product(DType type) {
    const std::int64_t n = rows_ >= 4096 ? 4096 : 512;
    const Elements a = Filled(n * n, type);
    const Elements b = Filled(n * n, type);
    const Elements c = Filled(n * n, type);
    MatMulPlan& plan = kernels_->MatMul({.m = n, .n = n, .k = n, .type = type, .out = type});
    const auto side = static_cast<double>(n);
    Measure(Named("product", type), std::to_string(n) + "^3", 0, 2 * side * side * side,
            [&] { plan.Run(*stream_, a.raw(), b.raw(), nullptr, c.raw()); });
    Free();
  }

  const std::shared_ptr<Device> device_;
  const std::unique_ptr<Stream> stream_;
  const std::unique_ptr<Kernels> kernels_;
  const int samples_;
  const std::int64_t parameters_;
  const std::int64_t rows_;
  std::vector<std::shared_ptr<std::byte>> memory_;
  std::vector<Figure> figures_;
};

void Print(const std::string& device, const std::vector<Figure>& figures, bool json) {
  // The faster of the two copies, which come first.
  const double limit =
      std::max(figures[0].bytes / figures[0].seconds, figures[1].bytes / figures[1].seconds);
  if (!json) {
    std::printf("%s; a copy moves %.0f GB/s\n", device.c_str(), limit / 1e9);
  }
  for (const Figure& f : figures) {
    if (json) {
      nlohmann::json line = {
          {"device", device}, {"kernel", f.kernel}, {"size", f.size}, {"ms", f.seconds * 1e3}};
      if (f.bytes > 0) {
        line["gb_per_s"] = f.bytes / f.seconds / 1e9;
        line["share_of_copy"] = f.bytes / f.seconds / limit;
      }
      if (f.flops > 0) {
        line["tflops"] = f.flops / f.seconds / 1e12;
      }
      std::printf("%s\n", line.dump().c_str());
    } else if (f.bytes > 0) {
      std::printf("  %-24s %-32s %9.3f ms  %7.1f GB/s  %5.1f %% of a copy\n", f.kernel.c_str(),
                  f.size.c_str(), f.seconds * 1e3, f.bytes / f.seconds / 1e9,
                  f.bytes / f.seconds / limit * 100);
    } else {
      std::printf("  %-24s %-32s %9.3f ms  %7.3f TFLOP/s\n", f.kernel.c_str(), f.size.c_str(),
                  f.seconds * 1e3, f.flops / f.seconds / 1e12);
    }
  }
}

}  // namespace

int BenchDeviceCommand(int argc, char** argv) {
  Flags flags;
  CLI::App app("Measures the kernels of a device, beside a copy of its memory.", argv[0]);
  app.add_option("--device", flags.device, "cuda:0, cuda:0+tf32, cpu, ...")->capture_default_str();
  app.add_option("--threads", flags.threads, "threads of a CPU's kernels; 0: one for each core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--samples", flags.samples, "timings of each kernel, of which the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--parameters", flags.parameters,
                 "elements of the long operands (default: 124 million, on a CPU 4 million)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 34));
  app.add_option("--rows", flags.rows, "rows of 50257 classes (default: 8192, on a CPU 64)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20));
  app.add_flag("--json", flags.json, "one JSON object for each kernel instead of a table");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const auto devices = OpenDevices(flags.device);
  if (!devices.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], devices.status().ToString().c_str());
    return ExitCode(devices.status());
  }
  const std::shared_ptr<Device>& device = devices->front();
  const bool cpu = device->memory_space() == MemorySpace::kHost;
  flags.parameters = flags.parameters > 0 ? flags.parameters : cpu ? 4'000'000 : 124'000'000;
  flags.rows = flags.rows > 0 ? flags.rows : cpu ? 64 : 8192;
  try {
    Print(device->name(), Bench(device, flags).Run(), flags.json);
  } catch (const StatusError& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return ExitCode(error.status());
  }
  return 0;
}

}  // namespace cohort
