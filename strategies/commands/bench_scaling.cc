// `cohort bench scaling`: what communication costs W workers with one core each, beside the same W
// workers without communication (weak scaling), and how much faster W are than one at the same
// global batch (strong scaling).

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "command.h"
#include "training_rounds.h"

namespace cohort {
namespace {

void Print(const TrainingOptions& options, const TrainingTimes& times) {
  const int w = options.workers;
  const double together = times.Milliseconds("together");
  const double silent = times.Milliseconds("without communication");
  const double efficiency = times.Ratio("without communication", "together");
  const double one = times.Milliseconds("one worker");
  const double speedup = times.Ratio("one worker, all examples", "together");
  const nlohmann::ordered_json result = {
      {"model", options.model},
      {"transport", options.transport},
      {"workers", w},
      {"batch", options.batch},
      {"gradient_bytes", times.gradient_bytes},
      {"ms_per_step", together},
      {"ms_per_step_without_communication", silent},
      {"efficiency", efficiency},
      {"exposed_communication_ms", together * (1 - efficiency)},
      {"ms_per_step_one_worker", one},
      {"weak_scaling_efficiency", times.Ratio("one worker", "together")},
      {"strong_scaling_speedup", speedup},
      {"strong_scaling_efficiency", speedup / w},
      {"examples_per_second", w * options.batch / together * 1e3},
      {"rounds_ms", times.rounds}};
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
  std::printf("  one worker, others idle%9.3f ms/step; weak scaling %.1f%%\n", one,
              100 * times.Ratio("one worker", "together"));
  std::printf("  one worker, all examples%8.3f ms/step; strong scaling %.2fx\n",
              times.Milliseconds("one worker, all examples"), speedup);
}

}  // namespace

int BenchScalingCommand(int argc, char** argv) {
  TrainingOptions options;
  CLI::App app(
      "Measures training on several worker processes: with communication, without, and on one "
      "worker, in turns in the same run.",
      argv[0]);
  DeclareTrainingOptions(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  CompleteTrainingOptions(options);
  const auto run = [&]() -> Status {
    if (options.folder.empty()) {
      return RunTrainingWorkers(options, "scaling", {argv + 1, argv + argc});
    }
    const std::vector<Contestant> contestants = {
        {.name = "together", .batch = options.batch},
        {.name = "without communication", .batch = options.batch, .communicates = false},
        {.name = "one worker", .batch = options.batch, .communicates = false, .alone = true},
        {.name = "one worker, all examples",
         .batch = options.batch * options.workers,
         .communicates = false,
         .alone = true}};
    COHORT_ASSIGN_OR_RETURN(const TrainingTimes times, RunTrainingRounds(options, contestants));
    if (options.rank == 0) {
      Print(options, times);
    }
    return {};
  };
  const Status status = run();
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
