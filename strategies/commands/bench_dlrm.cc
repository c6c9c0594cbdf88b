// `cohort bench dlrm`: how fast one process trains a recommendation model, beside LibTorch.
//
// A step is what Strategy::Step does: lookups, forward, backward, the update of the networks and of
// the rows. Batches are drawn before; contestants take turns, a round each, so that other load on
// the machine hits all of them. Of a round counts the median step; a figure is the median over the
// rounds, of ratios too.

#include <malloc.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/core/zipf.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/models.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include "command.h"
#include "core/commands/processes.h"
#include "core/commands/run_command.h"
#include "nn/commands/torch_peer.h"

namespace cohort {
namespace {

constexpr std::int64_t kIntegers = 13;
constexpr std::int64_t kCategories = 26;
constexpr int kBatches = 32;  // different ones, in turns

struct Options {
  std::string optimizer = "adagrad";
  std::int64_t rows = 100'000;  // of each category
  std::int64_t width = 16;
  int batch = 2048;
  int threads = 1;
  double zipf = 0;
  int steps = 40;
  int rounds = 5;
  bool json = false;
  bool peer = true;
};

std::unique_ptr<Optimizer> MakeOptimizer(const Options& options) {
  return options.optimizer == "sgd" ? Sgd({.learning_rate = 0.01})
                                    : Adagrad({.learning_rate = 0.01});
}

nn::DlrmOptions ModelOptions(const Options& options) {
  return {.width = options.width,
          .bottom = {128, 64},
          .top = {128, 64},
          .table = {.optimizer = MakeOptimizer(options)->config(),
                    .initializer = {RowInitializer::Kind::kUniform, 0.05}},
          .seed = 1};
}

class Contestant {
 public:
  explicit Contestant(const Options& options)
      : options_(options), model_(parameters_, ModelOptions(options)) {
    parameters_.Build();
    StrategyOptions how;
    how.intra_op_threads = options.threads;
    strategy_ = OrThrow(MakeSynchronousStrategy({.kind = "one_device"}, std::move(how)));
    OrThrow(strategy_->Bind(parameters_, MakeOptimizer(options)));
    const Philox philox(1, "bench/dlrm");
    const Zipf zipf(static_cast<std::uint64_t>(options.rows), options.zipf);
    std::uint64_t next = 0;
    const auto uniform = [&] { return double{philox.Uniform(next++)}; };
    for (int b = 0; b < kBatches; ++b) {
      Tensor integers(DType::kFloat32, {options.batch, kIntegers});
      for (float& x : integers.data<float>()) {
        x = static_cast<float>(uniform());
      }
      Tensor categories(DType::kInt64, {options.batch, kCategories});
      std::int64_t category = 0;
      for (std::int64_t& id : categories.data<std::int64_t>()) {
        id = category << 32 | static_cast<std::int64_t>(zipf(uniform) - 1);
        category = (category + 1) % kCategories;
      }
      Tensor label(DType::kFloat32, {options.batch});
      for (float& y : label.data<float>()) {
        y = uniform() < 0.25 ? 1 : 0;
      }
      data::Batch batch;
      batch.size = options.batch;
      batch.features = {{"integers", integers}, {"categories", categories}, {"label", label}};
      batches_.push_back(DistributedBatch{.replicas = {std::move(batch)}});
    }
  }

  void Step() {
    OrThrow(strategy_->Step(
        batches_[static_cast<std::size_t>(step_++ % kBatches)],
        [&](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
          nn::Tape tape(context.parameters, context.stream, workspaces_.For(0),
                        {.step = context.step, .intra_op_threads = context.intra_op_threads});
          const nn::Variable loss = nn::SigmoidCrossEntropy(
              model_.Logits(tape, batch["integers"], batch["categories"]), batch["label"]);
          tape.Backward(loss, context.gradients);
          COHORT_RETURN_IF_ERROR(tape.Finish());
          return ReplicaResult{.loss_sum = loss.value() * options_.batch,
                               .weight = static_cast<double>(options_.batch),
                               .metric_sums = {}};
        }));
  }

  double Round(int steps) {  // the median step, in milliseconds
    std::vector<double> times;
    for (int i = 0; i < steps; ++i) {
      const auto start = std::chrono::steady_clock::now();
      Step();
      times.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
              .count());
    }
    return Median(times);
  }

 private:
  const Options options_;
  ParameterSet parameters_;
  nn::Dlrm model_;
  std::unique_ptr<Strategy> strategy_;
  nn::Workspaces workspaces_;
  std::vector<DistributedBatch> batches_;
  int step_ = 0;
};

nlohmann::json Measure(const Options& options) {
  Contestant ours(options);
  std::unique_ptr<TorchPeer> torch;
  std::string no_torch;
  if (options.peer) {
    auto started = TorchPeer::Start(
        {"dlrm", std::to_string(options.batch), std::to_string(options.threads),
         std::to_string(options.steps), options.optimizer, std::to_string(options.rows),
         std::to_string(options.width), std::to_string(options.zipf)},
        options.threads);
    no_torch = started.ok() ? "" : started.status().message();
    torch = started.ok() ? std::move(started).value() : nullptr;
  }
  ours.Round(kBatches);
  std::vector<double> times;
  std::vector<double> peer_times;
  std::vector<double> ratios;
  for (int i = 0; i < options.rounds; ++i) {
    times.push_back(ours.Round(options.steps));
    if (torch != nullptr) {
      peer_times.push_back(OrThrow(torch->Round()).median);
      ratios.push_back(peer_times.back() / times.back());
    }
  }
  const double milliseconds = Median(times);
  nlohmann::json result = {{"model", "dlrm"},
                           {"optimizer", options.optimizer},
                           {"rows", options.rows},
                           {"width", options.width},
                           {"batch", options.batch},
                           {"zipf", options.zipf},
                           {"threads", options.threads},
                           {"rounds", options.rounds},
                           {"ms_per_step", milliseconds},
                           {"examples_per_second", options.batch / milliseconds * 1e3}};
  if (torch != nullptr) {
    result["torch_ms_per_step"] = Median(peer_times);
    result["torch_time_ratio"] = Median(ratios);
  } else if (!no_torch.empty()) {
    result["torch"] = no_torch;
  }
  return result;
}

void PrintTable(const Options& options, const nlohmann::json& r) {
  std::printf("dlrm, %lld x %lld rows of %lld, %s, batch %d, %d thread(s), median step\n",
              static_cast<long long>(kCategories), static_cast<long long>(options.rows),
              static_cast<long long>(options.width), options.optimizer.c_str(), options.batch,
              options.threads);
  std::printf("  cohort     %8.3f ms/step  %9.0f examples/s\n", r["ms_per_step"].get<double>(),
              r["examples_per_second"].get<double>());
  if (r.contains("torch_time_ratio")) {
    std::printf("  LibTorch   %8.3f ms/step; %.2fx\n", r["torch_ms_per_step"].get<double>(),
                r["torch_time_ratio"].get<double>());
  } else if (r.contains("torch")) {
    std::printf("  LibTorch   not measured: %s\n", r["torch"].get<std::string>().c_str());
  }
}

}  // namespace

int BenchDlrmCommand(int argc, char** argv) {
  Options options;
  CLI::App app("Measures training steps of a recommendation model in one process, beside LibTorch.",
               argv[0]);
  app.add_option("--optimizer", options.optimizer, "of the networks and of the rows")
      ->check(CLI::IsMember({"sgd", "adagrad"}))
      ->capture_default_str();
  app.add_option("--rows", options.rows, "of each of the 26 categories")
      ->check(CLI::Range(1, 100'000'000))
      ->capture_default_str();
  app.add_option("--width", options.width, "floats of a row")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--batch", options.batch, "examples per step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "threads of each operation")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--zipf", options.zipf, "exponent of the ids' popularity; 0: all alike")
      ->check(CLI::Range(0.0, 4.0))
      ->capture_default_str();
  app.add_option("--steps", options.steps, "of a round")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "turns of each contestant")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--json", options.json, "one JSON object instead of a table");
  app.add_flag("!--no-peer", options.peer, "without LibTorch");
  if (const std::optional<int> code = ParseCommandLine(app, argc, argv)) {
    return *code;
  }
  // Freed memory stays mapped, as in the peer.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  const nlohmann::json result = Measure(options);
  if (options.json) {
    std::printf("%s\n", result.dump().c_str());
  } else {
    PrintTable(options, result);
  }
  return 0;
}

}  // namespace cohort
