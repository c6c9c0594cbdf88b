// `cohort bench input`: examples per second of the input pipeline on MNIST-like images, beside what
// memcpy does with the same bytes in the same order; with --format, what reading a file takes
// beside a limit of the machine (bench_formats.cc); with --uneven, what the order costs
// (bench_uneven.cc).

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include <cohort/core/random.h>
#include <cohort/data/digits.h>
#include <cohort/data/idx.h>
#include <cohort/data/memory.h>

#include "bench_formats.h"
#include "bench_uneven.h"
#include "command.h"
#include "core/commands/scratch_folder.h"

namespace cohort {
namespace {

using Seconds = std::chrono::duration<double>;

struct Options {
  std::int64_t examples = 20000;
  std::int64_t batch = 64;
  double seconds = 0.5;  // per case
  std::string format;
  std::vector<std::string> paths;
  int threads = 2;
  int rounds = 5;
  std::int64_t repeat = 1;
  std::vector<double> uneven;  // a part of the examples, and how many times as long it takes
  bool json = false;
};

// Images and labels as IDX files in a folder of its own, gone with this.
class ImageFiles {
 public:
  explicit ImageFiles(std::int64_t count) {
    Tensor images(DType::kUInt8, {count, 28, 28});
    const Philox random(1);
    auto pixels = images.data<std::uint8_t>();
    for (std::size_t i = 0; i < pixels.size(); i += 4) {
      const Philox::Block words = random.At(i);
      for (std::size_t k = 0; k < 4; ++k) {
        pixels[i + k] = static_cast<std::uint8_t>(words[k]);
      }
    }
    OrThrow(data::WriteIdx(FileSystem::Local(), images_path(), images));
    OrThrow(data::WriteIdx(FileSystem::Local(), labels_path(), Tensor(DType::kUInt8, {count})));
  }
  std::string images_path() const { return folder_ / "images"; }
  std::string labels_path() const { return folder_ / "labels"; }

 private:
  const ScratchFolder folder_ = OrThrow(ScratchFolder::Make());
};

// Examples per second over whole epochs, after one to warm up.
double Measure(const data::Dataset& dataset, double seconds) {
  const auto epoch = [&dataset](std::int64_t number) {
    auto batches = OrThrow(dataset.Iterate({.epoch = number}));
    std::int64_t examples = 0;
    while (const auto batch = OrThrow(batches->Next())) {
      examples += batch->size;
    }
    return examples;
  };
  epoch(0);
  const auto start = std::chrono::steady_clock::now();
  std::int64_t examples = 0;
  Seconds elapsed{};
  for (std::int64_t number = 1; elapsed.count() < seconds; ++number) {
    examples += epoch(number);
    elapsed = std::chrono::steady_clock::now() - start;
  }
  return static_cast<double>(examples) / elapsed.count();
}

// The limit: float images copied in a shuffled order into one batch buffer that stays in cache.
double MeasureCopy(const Tensor& images, std::int64_t batch, double seconds) {
  const std::int64_t count = images.shape()[0];
  const std::size_t bytes = images.bytes() / static_cast<std::size_t>(count);
  const Tensor buffer(DType::kFloat32, {batch, 28, 28, 1});
  const Permutation order(static_cast<std::uint64_t>(count), 1);
  const auto start = std::chrono::steady_clock::now();
  std::int64_t examples = 0;
  Seconds elapsed{};
  while (elapsed.count() < seconds) {
    for (std::int64_t i = 0; i < count; ++i) {
      std::memcpy(buffer.raw() + static_cast<std::size_t>(i % batch) * bytes,
                  images.raw() + order(static_cast<std::uint64_t>(i)) * bytes, bytes);
    }
    examples += count;
    elapsed = std::chrono::steady_clock::now() - start;
  }
  return static_cast<double>(examples) / elapsed.count();
}

Status Standardise(data::Example& example) {
  for (float& pixel : example.at("image").data<float>()) {
    pixel = (pixel - 0.1307F) / 0.3081F;
  }
  return {};
}

void Run(const Options& options) {
  const ImageFiles files(options.examples);
  const data::Dataset idx = OrThrow(data::Idx(files.images_path(), files.labels_path())).Shuffle(1);
  const Tensor floats(DType::kFloat32, {options.examples, 28, 28, 1});
  const data::Dataset memory =
      OrThrow(data::FromTensors(
                  {{"image", floats}, {"label", Tensor(DType::kInt64, {options.examples})}}))
          .Shuffle(1);
  const data::Dataset digits = data::GeneratedDigits({.count = options.examples}).Shuffle(1);

  const double copy = MeasureCopy(floats, options.batch, options.seconds);
  nlohmann::json report = {{"command", "bench input"},
                           {"examples", options.examples},
                           {"batch", options.batch},
                           {"memcpy_examples_per_second", copy},
                           {"cases", nlohmann::json::array()}};
  if (!options.json) {
    std::printf("%lld images of 28 x 28, shuffled, batches of %lld, 1 thread\n",
                static_cast<long long>(options.examples), static_cast<long long>(options.batch));
    std::printf("%-28s %14s %14s\n", "", "examples/s", "of memcpy");
    std::printf("%-28s %14.0f %14.2f\n", "memcpy", copy, 1.0);
  }
  const std::pair<const char*, data::Dataset> cases[] = {
      {"memory float32", memory.Batch(options.batch)},
      {"idx uint8 to float32", idx.Batch(options.batch)},
      {"idx, prefetch 4", idx.Batch(options.batch).Prefetch(4)},
      {"idx, map standardise", idx.Map(Standardise).Batch(options.batch)},
      {"generated digits", digits.Batch(options.batch)},
  };
  for (const auto& [name, dataset] : cases) {
    const double rate = Measure(dataset, options.seconds);
    report["cases"].push_back(
        {{"name", name}, {"examples_per_second", rate}, {"of_memcpy", rate / copy}});
    if (!options.json) {
      std::printf("%-28s %14.0f %14.2f\n", name, rate, rate / copy);
    }
  }
  if (options.json) {
    std::printf("%s\n", report.dump().c_str());
  }
}

}  // namespace

int BenchInputCommand(int argc, char** argv) {
  Options options;
  CLI::App app("Measures the input pipeline beside memcpy.", argv[0]);
  app.add_option("--examples", options.examples, "images in the data set")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000}))
      ->capture_default_str();
  app.add_option("--batch", options.batch, "images in a batch")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000}))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "for each case")
      ->check(CLI::Range(0.001, 600.0))
      ->capture_default_str();
  app.add_option("--format", options.format, "read files, beside a limit of the machine")
      ->check(CLI::IsMember(data::BenchFormats()));
  app.add_option("path", options.paths, "with --format: files that are read");
  app.add_option("--uneven", options.uneven,
                 "PART TIMES: that part of the examples takes so many times as long as the others; "
                 "batches in their order beside the same work shared out perfectly")
      ->expected(2)
      ->check(CLI::PositiveNumber)
      ->excludes("--format");
  app.add_option("--threads", options.threads, "with --format, --uneven: that decode")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "with --format: times that each is measured")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--repeat", options.repeat, "with --format: passes over the files in each round")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000}))
      ->capture_default_str();
  app.add_flag("--json", options.json, "print a JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (options.format.empty() != options.paths.empty()) {
    std::fprintf(stderr, "%s: --format and files come together\n", argv[0]);
    return 2;
  }
  if (!options.uneven.empty()) {
    if (options.uneven[0] > 1) {
      std::fprintf(stderr, "%s: --uneven: a part of %g of the examples [at most 1]\n", argv[0],
                   options.uneven[0]);
      return 2;
    }
    const Status status = data::BenchUneven({.part = options.uneven[0],
                                             .times = options.uneven[1],
                                             .batch = options.batch,
                                             .threads = options.threads,
                                             .seconds = options.seconds,
                                             .json = options.json});
    if (!status.ok()) {
      std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
    }
    return ExitCode(status);
  }
  if (options.format.empty()) {
    try {
      Run(options);
    } catch (const StatusError& error) {
      std::fprintf(stderr, "%s: %s\n", argv[0], error.status().ToString().c_str());
      return ExitCode(error.status());
    }
    return 0;
  }
  const Status status = data::BenchFormat({.format = options.format,
                                           .paths = options.paths,
                                           .batch = options.batch,
                                           .threads = options.threads,
                                           .rounds = options.rounds,
                                           .repeat = options.repeat,
                                           .json = options.json});
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
