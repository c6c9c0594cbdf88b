// `cohort bench scaling`: what communication costs W workers with one core each, beside the same W
// workers without communication (weak scaling), and how much faster W are than one at the same
// global batch (strong scaling). Workers that only begin each step together show what of it is
// waiting for the slower one, which nothing that is synchronous can save. Beside them, in the same
// turns, LibTorch's DistributedDataParallel and one process of LibTorch.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "command.h"
#include "core/commands/run_command.h"
#include "training_rounds.h"

namespace cohort {
namespace {

void Print(const TrainingOptions& options, const TrainingTimes& times) {
  const int w = options.workers;
  const double together = times.Milliseconds("together");
  const double silent = times.Milliseconds("without communication");
  const double efficiency = times.Ratio("without communication", "together");
  const double in_step = times.Ratio("without communication", "in step");
  const double one = times.Milliseconds("one worker");
  const double speedup = times.Ratio("one worker, all examples", "together");
  nlohmann::ordered_json result = {
      {"model", options.model},
      {"transport", options.transport},
      {"workers", w},
      {"batch", options.batch},
      {"sizes", options.sizes},
      {"gradient_bytes", times.gradient_bytes},
      {"ms_per_step", together},
      {"ms_per_step_without_communication", silent},
      {"efficiency", efficiency},
      {"exposed_communication_ms", together * (1 - efficiency)},
      {"efficiency_of_barriers_alone", in_step},
      {"ms_per_step_one_worker", one},
      {"weak_scaling_efficiency", times.Ratio("one worker", "together")},
      {"strong_scaling_speedup", speedup},
      {"strong_scaling_efficiency", speedup / w},
      {"examples_per_second", w * options.batch / together * 1e3},
      {"rounds_ms", times.rounds}};
  const bool in_buckets = times.rounds.contains("in buckets");
  if (in_buckets) {
    result["ms_per_step_in_buckets"] = times.Milliseconds("in buckets");
    result["efficiency_in_buckets"] = times.Ratio("without communication", "in buckets");
  }
  const bool torch = times.rounds.contains("LibTorch DDP");
  const double weak = times.Ratio("one worker", "together");
  const double torch_weak = torch ? times.Ratio("LibTorch, one worker", "LibTorch DDP") : 0;
  if (torch) {
    result["libtorch_ddp_ms_per_step"] = times.Milliseconds("LibTorch DDP");
    result["libtorch_ms_per_step_one_worker"] = times.Milliseconds("LibTorch, one worker");
    result["libtorch_ddp_weak_scaling_efficiency"] = torch_weak;
    result["speed_over_libtorch_ddp"] = times.Ratio("LibTorch DDP", "together");
    result["efficiency_over_libtorch_ddp"] = weak / torch_weak;
  } else if (!times.no_torch.empty()) {
    result["libtorch_ddp"] = times.no_torch;
  }
  if (options.json) {
    std::printf("%s\n", result.dump().c_str());
    return;
  }
  std::printf("%s, %d workers with one core each, %s, %d examples each, %.1f MB of gradients\n",
              options.model.c_str(), w, options.transport.c_str(), options.batch,
              static_cast<double>(times.gradient_bytes) / 1e6);
  std::printf("  together               %9.3f ms/step  %9.0f examples/s\n", together,
              w * options.batch / together * 1e3);
  std::printf("  without communication  %9.3f ms/step; %.1f%% of its speed, %.3f ms exposed\n",
              silent, 100 * efficiency, together * (1 - efficiency));
  std::printf("  in step, by a barrier  %9.3f ms/step; %.1f%% of its speed\n",
              times.Milliseconds("in step"), 100 * in_step);
  if (in_buckets) {
    std::printf("  together, in buckets   %9.3f ms/step; %.1f%% of its speed\n",
                times.Milliseconds("in buckets"),
                100 * times.Ratio("without communication", "in buckets"));
  }
  std::printf("  one worker, others idle%9.3f ms/step; weak scaling %.1f%%\n", one,
              100 * times.Ratio("one worker", "together"));
  std::printf("  one worker, all examples%8.3f ms/step; strong scaling %.2fx\n",
              times.Milliseconds("one worker, all examples"), speedup);
  if (torch) {
    const double ddp = times.Milliseconds("LibTorch DDP");
    std::printf("  LibTorch DDP, by Gloo  %9.3f ms/step  %9.0f examples/s; weak scaling %.1f%%\n",
                ddp, w * options.batch / ddp * 1e3, 100 * torch_weak);
    std::printf("  cohort over it         %8.2fx examples/s, %.2fx weak scaling\n",
                times.Ratio("LibTorch DDP", "together"), weak / torch_weak);
  } else if (!times.no_torch.empty()) {
    std::printf("  LibTorch DDP           not measured: %s\n", times.no_torch.c_str());
  }
}

}  // namespace

int BenchScalingCommand(int argc, char** argv) {
  TrainingOptions options;
  CLI::App app(
      "Measures training on several worker processes: with communication, without, and on one "
      "worker, in turns in the same run.",
      argv[0]);
  DeclareTrainingOptions(app, options);
  return ParseAndRun(app, argc, argv, [&]() -> Status {
    COHORT_RETURN_IF_ERROR(CompleteTrainingOptions(options));
    if (options.folder.empty()) {
      return RunTrainingWorkers(options, "scaling", {argv + 1, argv + argc});
    }
    std::vector<Contestant> contestants = {
        {.name = "together", .batch = options.batch},
        {.name = "without communication", .batch = options.batch, .communicates = false},
        {.name = "in step", .batch = options.batch, .communicates = false, .in_step = true},
        {.name = "one worker", .batch = options.batch, .communicates = false, .alone = true},
        {.name = "one worker, all examples",
         .batch = options.batch * options.workers,
         .communicates = false,
         .alone = true}};
    if (options.transport == "shm" && options.workers == 2) {  // not in one pass
      contestants.push_back({.name = "in buckets", .batch = options.batch, .algorithm = "shared"});
    }
    if (options.workers > 1) {
      contestants.push_back({.name = "LibTorch DDP", .batch = options.batch, .torch = true});
      contestants.push_back({.name = "LibTorch, one worker",
                             .batch = options.batch,
                             .communicates = false,
                             .alone = true,
                             .torch = true});
    }
    COHORT_ASSIGN_OR_RETURN(const TrainingTimes times, RunTrainingRounds(options, contestants));
    if (options.rank == 0 && options.server < 0) {
      Print(options, times);
    }
    return {};
  });
}

}  // namespace cohort
