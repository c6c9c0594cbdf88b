// `cohort bench train`: how fast one replica trains, beside LibTorch and the machine's limit.
//
// A step is forward, backward and the SGD update on random data. The contestants take turns, a
// round each, so that other load on the machine hits all of them. Of a round counts the fastest
// step (what the machine does when it is left alone); a figure is the median over the rounds, of
// ratios too. The median step is given beside it.

#include "command.h"

#include <cohort/core/random.h>
#include <cohort/core/thread_pool.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/models.h>
#include <cohort/optim/optimizers.h>
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nn/commands/bench_train_device.h"
#include "nn/commands/fma_peak.h"
#include "nn/commands/torch_peer.h"

namespace cohort {
namespace {

struct Flags {
  std::string device;
  std::string model = "mlp";
  std::string precision = "float32";
  std::string step_trace;
  int threads = 1;
  int batch = 0;
  int image_size = 224;
  int rounds = 9;
  bool json = false;
  bool peer = true;
};

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Floating-point operations of a step's products: forward, and backward by kernel and, but for the
// first layer, by input.
double StepFlops(const std::string& model, int batch) {
  const std::vector<double> products =
      model == "mlp"
          ? std::vector<double>{784.0 * 512, 512.0 * 512, 512.0 * 10}
          : std::vector<double>{784.0 * 9 * 32, 196.0 * 9 * 32 * 64, 3136.0 * 128, 128.0 * 10};
  double sum = 0;
  for (std::size_t i = 0; i < products.size(); ++i) {
    sum += products[i] * (i == 0 ? 2 : 3);
  }
  return 2.0 * batch * sum;
}

// Gradients in an arena laid out like the parameters.
class ArenaSink final : public GradientSink {
 public:
  ArenaSink(const ParameterSet& parameters, float weight)
      : parameters_(parameters),
        gradients_(DType::kFloat32, {static_cast<std::int64_t>(parameters.all().size())}),
        weight_(weight) {}
  std::span<float> Accumulator(int parameter) override {
    return all().subspan(static_cast<std::size_t>(parameters_[parameter].offset),
                         parameters_.value(parameter).size());
  }
  void AddSlices(int, const IndexedSlices&) override {
    throw ContractError("no model here has sparse gradients");
  }
  void Ready(int) override {}
  float loss_seed() const override { return weight_; }
  std::span<float> all() const { return gradients_.data<float>(); }

 private:
  const ParameterSet& parameters_;
  Tensor gradients_;
  const float weight_;
};

class Trainer {
 public:
  Trainer(const Flags& flags, int threads)
      : model_(OrThrow(nn::MakeImageModel(flags.model, parameters_, {.seed = 1}))),
        optimizer_(Sgd({.learning_rate = 0.01})),
        images_(DType::kFloat32, {flags.batch, 28, 28, 1}),
        labels_(DType::kInt64, {flags.batch}),
        threads_(threads) {
    parameters_.Build();
    sink_ = std::make_unique<ArenaSink>(parameters_, static_cast<float>(flags.batch));
    const Philox philox(1, "images");
    std::uint64_t i = 0;
    for (float& pixel : images_.data<float>()) {
      pixel = philox.Uniform(i++);
    }
    for (std::int64_t& label : labels_.data<std::int64_t>()) {
      label = static_cast<std::int64_t>(philox.Below(10, i++));
    }
  }

  void Step() {
    ++step_;
    nn::Tape tape(parameters_, *stream_, workspace_, {.step = step_, .intra_op_threads = threads_});
    const nn::Variable loss = nn::SoftmaxCrossEntropy(model_->Logits(tape.Input(images_)), labels_);
    tape.Backward(loss, *sink_);
    OrThrow(tape.Finish());
    optimizer_->Apply({.value = parameters_.all(),
                       .gradient = sink_->all(),
                       .gradient_scale = 1.0F / sink_->loss_seed(),
                       .step = step_});
  }

  StepTimes Round(int steps) {
    std::vector<double> times;
    for (int i = 0; i < steps; ++i) {
      const auto start = std::chrono::steady_clock::now();
      Step();
      times.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
              .count());
    }
    return {.fastest = *std::min_element(times.begin(), times.end()), .median = Median(times)};
  }

 private:
  ParameterSet parameters_;
  std::unique_ptr<nn::ImageModel> model_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<ArenaSink> sink_;
  std::unique_ptr<Stream> stream_ = MakeInlineStream();
  nn::Workspace workspace_;
  Tensor images_, labels_;
  const int threads_;
  std::int64_t step_ = 0;
};

nlohmann::json Measure(const Flags& flags) {
  const int steps = flags.model == "mlp" ? 40 : 20;
  Trainer trainer(flags, flags.threads);
  Trainer alone(flags, 1);
  std::unique_ptr<TorchPeer> torch;
  std::string no_torch;
  if (flags.peer) {
    auto started = TorchPeer::Start({flags.model, std::to_string(flags.batch),
                                     std::to_string(flags.threads), std::to_string(steps)},
                                    flags.threads);
    no_torch = started.ok() ? "" : started.status().message();
    torch = started.ok() ? std::move(started).value() : nullptr;
  }
  trainer.Round(5);
  alone.Round(5);
  const double flops = StepFlops(flags.model, flags.batch);
  std::map<std::string, std::vector<double>> rounds;
  for (int i = 0; i < flags.rounds; ++i) {
    const double peak = FmaPeak(flags.threads, std::chrono::milliseconds(30));
    const StepTimes step = trainer.Round(steps);
    rounds["ms_per_step"].push_back(step.fastest);
    rounds["median_ms_per_step"].push_back(step.median);
    rounds["fma_peak_gflops"].push_back(peak / 1e9);
    rounds["share_of_fma_peak"].push_back(flops / (step.fastest * 1e-3) / peak);
    if (flags.threads > 1) {
      const StepTimes one = alone.Round(steps);
      rounds["ms_per_step_1_thread"].push_back(one.fastest);
      rounds["speedup_over_1_thread"].push_back(one.fastest / step.fastest);
    }
    if (torch != nullptr) {
      const StepTimes peer = OrThrow(torch->Round());
      rounds["torch_ms_per_step"].push_back(peer.fastest);
      rounds["torch_median_ms_per_step"].push_back(peer.median);
      rounds["torch_time_ratio"].push_back(peer.fastest / step.fastest);
    }
  }
  nlohmann::json result = {{"model", flags.model},
                           {"batch", flags.batch},
                           {"threads", flags.threads},
                           {"rounds", flags.rounds},
                           {"fma_instructions", FmaInstructions()}};
  for (const auto& [name, values] : rounds) {
    result[name] = Median(values);
  }
  const double milliseconds = result["ms_per_step"];
  result["examples_per_second"] = flags.batch / milliseconds * 1e3;
  result["gflops"] = flops / milliseconds / 1e6;
  if (!no_torch.empty()) {
    result["torch"] = no_torch;
  }
  return result;
}

int OnDevice(const Flags& flags) {
  const auto measured = MeasureOnDevice({.device = flags.device,
                                         .model = flags.model,
                                         .batch = flags.batch,
                                         .image_size = flags.image_size,
                                         .threads = flags.threads,
                                         .rounds = flags.rounds,
                                         .precision = OrThrow(nn::ParsePrecision(flags.precision)),
                                         .step_trace = flags.step_trace,
                                         .log = StderrLog("")});
  if (!measured.ok()) {
    std::fprintf(stderr, "cohort bench train: %s\n", measured.status().ToString().c_str());
    return ExitCode(measured.status());
  }
  const nlohmann::json& r = *measured;
  if (flags.json) {
    std::printf("%s\n", r.dump().c_str());
    return 0;
  }
  std::printf(
      "%s, batch %d, on %s, %s: %.3f ms/step, %.2f TFLOP/s, %.1f%% of a large product's %.1f%s\n",
      flags.model.c_str(), flags.batch, flags.device.c_str(), flags.precision.c_str(),
      r["ms_per_step"].get<double>(), r["tflops"].get<double>(),
      100 * r["share_of_matmul"].get<double>(), r["matmul_tflops"].get<double>(),
      r["replayed"].get<bool>() ? " (replayed as a graph)" : "");
  return 0;
}

void PrintTable(const nlohmann::json& r) {
  std::printf("%s, batch %d, %d thread(s), fastest step, median of %d rounds\n",
              r["model"].get<std::string>().c_str(), r["batch"].get<int>(), r["threads"].get<int>(),
              r["rounds"].get<int>());
  std::printf("  cohort     %8.3f ms/step  %9.0f examples/s  %7.1f GFLOP/s\n",
              r["ms_per_step"].get<double>(), r["examples_per_second"].get<double>(),
              r["gflops"].get<double>());
  std::printf("  FMA peak   %7.1f GFLOP/s (%s); cohort reaches %.1f%%\n",
              r["fma_peak_gflops"].get<double>(), r["fma_instructions"].get<std::string>().c_str(),
              100 * r["share_of_fma_peak"].get<double>());
  if (r.contains("speedup_over_1_thread")) {
    std::printf("  1 thread   %8.3f ms/step; %.2fx\n", r["ms_per_step_1_thread"].get<double>(),
                r["speedup_over_1_thread"].get<double>());
  }
  if (r.contains("torch_time_ratio")) {
    std::printf("  LibTorch   %8.3f ms/step; %.2fx\n", r["torch_ms_per_step"].get<double>(),
                r["torch_time_ratio"].get<double>());
  } else if (r.contains("torch")) {
    std::printf("  LibTorch   not measured: %s\n", r["torch"].get<std::string>().c_str());
  }
}

}  // namespace

int BenchTrainCommand(int argc, char** argv) {
  Flags flags;
  CLI::App app("Measures training steps of one replica, beside LibTorch and the FMA peak.",
               argv[0]);
  app.add_option("--device", flags.device,
                 "a device, as cuda:0 or cuda:0+tf32, instead of the CPU beside LibTorch");
  app.add_option("--model", flags.model,
                 "mlp (784-512-512-10), cnn (conv32-conv64-dense128) or, with --device, resnet18, "
                 "resnet50, gpt2")
      ->check(CLI::IsMember({"mlp", "cnn", "resnet18", "resnet50", "gpt2"}))
      ->capture_default_str();
  app.add_option("--precision", flags.precision,
                 "with --device: float32, mixed_bfloat16 or mixed_float16")
      ->check([](const std::string& text) { return nn::ParsePrecision(text).status().message(); })
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "threads of each operation")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--batch", flags.batch,
                 "examples per step (default: mlp 256, cnn and resnets 64, gpt2 8 sequences)")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--image-size", flags.image_size, "height and width of a resnet's images")
      ->check(CLI::Range(64, 1024))
      ->capture_default_str();
  app.add_option("--rounds", flags.rounds, "turns of each contestant")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--step-trace", flags.step_trace,
                 "with --device: a file for what the device does in the first steps that are "
                 "measured (which makes them slower)");
  app.add_flag("--json", flags.json, "one JSON object instead of a table");
  app.add_flag("!--no-peer", flags.peer, "without LibTorch");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (flags.batch == 0) {
    flags.batch = flags.model == "mlp" ? 256 : flags.model == "gpt2" ? 8 : 64;
  }
  if (!flags.device.empty()) {
    return OnDevice(flags);
  }
  if (!flags.step_trace.empty()) {
    std::fprintf(stderr, "cohort bench train: --step-trace with --device [--device cpu]\n");
    return 2;
  }
  if (flags.precision != "float32") {
    std::fprintf(stderr, "cohort bench train: --precision with --device [--device cpu]\n");
    return 2;
  }
  if (flags.model != "mlp" && flags.model != "cnn") {
    std::fprintf(stderr, "cohort bench train: --model %s with --device [--device cpu]\n",
                 flags.model.c_str());
    return 2;
  }
  // Freed memory stays mapped, as in the peer.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  const nlohmann::json result = Measure(flags);
  if (flags.json) {
    std::printf("%s\n", result.dump().c_str());
  } else {
    PrintTable(result);
  }
  return 0;
}

}  // namespace cohort
