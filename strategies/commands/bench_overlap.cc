// `cohort bench overlap`: gradients reduced in buckets while the backward pass goes on, beside the
// same gradients in one bucket, whose reduction begins when the backward pass has ended, and beside
// what a strategy does by default: buckets of adapted sizes, or one pass.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "command.h"
#include "core/commands/run_command.h"
#include "training_rounds.h"

namespace cohort {
namespace {

void Print(const TrainingOptions& options, std::int64_t bucket, const TrainingTimes& times) {
  const double overlapped = times.Milliseconds("overlapped");
  const double after = times.Milliseconds("after backward");
  const double silent = times.Milliseconds("without communication");
  const double faster = times.Ratio("after backward", "overlapped");
  const double by_default = times.Milliseconds("by default");
  const double default_faster = times.Ratio("after backward", "by default");
  const nlohmann::ordered_json result = {{"model", options.model},
                                         {"transport", options.transport},
                                         {"workers", options.workers},
                                         {"batch", options.batch},
                                         {"sizes", options.sizes},
                                         {"gradient_bytes", times.gradient_bytes},
                                         {"bucket_bytes", bucket},
                                         {"ms_per_step_overlapped", overlapped},
                                         {"ms_per_step_after_backward", after},
                                         {"ms_per_step_without_communication", silent},
                                         {"speedup", faster},
                                         {"exposed_ms_overlapped", overlapped - silent},
                                         {"exposed_ms_after_backward", after - silent},
                                         {"ms_per_step_by_default", by_default},
                                         {"speedup_by_default", default_faster},
                                         {"exposed_ms_by_default", by_default - silent},
                                         {"rounds_ms", times.rounds}};
  if (options.json) {
    std::printf("%s\n", result.dump().c_str());
    return;
  }
  std::printf("%s, %d workers, %s, %d examples each, %.1f MB of gradients, buckets of %lld KiB\n",
              options.model.c_str(), options.workers, options.transport.c_str(), options.batch,
              static_cast<double>(times.gradient_bytes) / 1e6,
              static_cast<long long>(bucket >> 10));
  std::printf("  overlapped             %9.3f ms/step  %9.3f ms exposed\n", overlapped,
              overlapped - silent);
  std::printf("  by default             %9.3f ms/step  %9.3f ms exposed\n", by_default,
              by_default - silent);
  std::printf(
      "  after backward         %9.3f ms/step  %9.3f ms exposed; overlapped is %.1f%% faster, the "
      "default %.1f%%\n",
      after, after - silent, 100 * (faster - 1), 100 * (default_faster - 1));
  std::printf("  without communication  %9.3f ms/step\n", silent);
}

}  // namespace

int BenchOverlapCommand(int argc, char** argv) {
  TrainingOptions options;
  options.model = "cnn";
  std::int64_t bucket = 256 << 10;
  CLI::App app(
      "Measures what overlapping the reduction of gradients with the backward pass gains. For a "
      "shaped link, see scripts/netns and --exec-prefix.",
      argv[0]);
  DeclareTrainingOptions(app, options);
  app.add_option("--bucket-bytes", bucket, "of the overlapped buckets")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40))
      ->capture_default_str();
  return ParseAndRun(app, argc, argv, [&]() -> Status {
    COHORT_RETURN_IF_ERROR(CompleteTrainingOptions(options));
    if (options.folder.empty()) {
      return RunTrainingWorkers(options, "overlap", {argv + 1, argv + argc});
    }
    constexpr std::int64_t kAll = std::int64_t{1} << 40;  // one bucket
    // What "auto" may put in its place does not overlap.
    const std::string algorithm = options.transport == "shm" ? "shared" : "auto";
    const std::vector<Contestant> contestants = {
        {.name = "overlapped",
         .batch = options.batch,
         .algorithm = algorithm,
         .first_bucket_bytes = bucket,
         .bucket_bytes = bucket},
        {.name = "by default", .batch = options.batch},
        {.name = "after backward",
         .batch = options.batch,
         .algorithm = algorithm,
         .first_bucket_bytes = kAll,
         .bucket_bytes = kAll},
        {.name = "without communication", .batch = options.batch, .communicates = false}};
    COHORT_ASSIGN_OR_RETURN(const TrainingTimes times, RunTrainingRounds(options, contestants));
    if (options.rank == 0 && options.server < 0) {
      Print(options, bucket, times);
    }
    return {};
  });
}

}  // namespace cohort
