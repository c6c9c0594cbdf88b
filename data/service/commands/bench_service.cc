// `cohort bench service`: an epoch through the data service, one process beside this one, and the
// same epoch made in this process, in turns: of images that are decoded, where the work is, and of
// plain rows of as many bytes, which show what the way costs.

#include <poll.h>
#include <time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include <cohort/core/random.h>
#include <cohort/data/arrays.h>
#include <cohort/data/image.h>
#include <cohort/data/webdataset.h>
#include <cohort/data_service/data_service.h>

#include "command.h"
#include "core/commands/processes.h"
#include "core/commands/scratch_folder.h"
#include "open_files.h"

namespace cohort {
namespace {

using SteadyClock = std::chrono::steady_clock;

struct Options {
  std::int64_t images = 512;
  std::int64_t batch = 64;
  int threads = 2;
  int rounds = 5;
  bool json = false;
};

constexpr std::int64_t kHeight = 375, kWidth = 500, kSide = 224;

// Smooth shapes with noise: about as many bytes a pixel as photographs.
Tensor Picture(std::uint64_t number) {
  Tensor image(DType::kUInt8, {kHeight, kWidth, 3});
  auto pixels = image.data<std::uint8_t>();
  const Philox random(number);
  std::size_t at = 0;
  for (std::int64_t y = 0; y < kHeight; ++y) {
    for (std::int64_t x = 0; x < kWidth; ++x) {
      const auto shape = 128 + 90 * std::sin(0.02 * static_cast<double>(x + number) +
                                             0.03 * static_cast<double>(y));
      for (int c = 0; c < 3; ++c, ++at) {
        const double noise = 20 * random.Uniform(at);
        pixels[at] = static_cast<std::uint8_t>(shape + noise + 5 * c);
      }
    }
  }
  return image;
}

Status WriteImages(const std::string& path, std::int64_t images) {
  COHORT_ASSIGN_OR_RETURN(const auto tar, data::TarWriter::Create(FileSystem::Local(), path));
  std::vector<std::string> pictures;
  for (std::uint64_t i = 0; i < 16; ++i) {
    pictures.push_back(data::EncodeJpeg(Picture(i)));
  }
  for (std::int64_t i = 0; i < images; ++i) {
    COHORT_RETURN_IF_ERROR(tar->AddSample(
        std::to_string(i),
        {{"jpg", pictures[static_cast<std::size_t>(i) % 16]}, {"cls", std::to_string(i)}}));
  }
  return tar->Close();
}

double ReadClock(clockid_t clock) {
  timespec time{};
  ::clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

// `cohort data serve` of these files, ended with this.
class Service {
 public:
  Status Start(const std::vector<std::string>& files, int threads) {
    std::vector<std::string> argv = {
        ThisProgram(), "data",        "serve",     "--json",
        "--listen",    "127.0.0.1:0", "--threads", std::to_string(threads)};
    argv.insert(argv.end(), files.begin(), files.end());
    std::vector<std::string> variables;
    for (char** variable = environ; *variable != nullptr; ++variable) {
      variables.emplace_back(*variable);
    }
    COHORT_ASSIGN_OR_RETURN(child_, ChildProcess::Start(argv, variables));
    const Deadline deadline = DeadlineAfter(std::chrono::seconds(60));
    std::string line;
    while (line.find('\n') == std::string::npos) {
      pollfd poll{child_.stdout_fd(), POLLIN, 0};
      ::poll(&poll, 1, 100);
      char buffer[4096];
      if (const ssize_t n = ::read(child_.stdout_fd(), buffer, sizeof(buffer)); n > 0) {
        line.append(buffer, static_cast<std::size_t>(n));
      } else if (child_.Poll().has_value()) {
        return Internal("cohort data serve: " + child_.Poll()->ToString());
      } else if (SteadyClock::now() >= deadline) {
        return DeadlineExceeded("cohort data serve did not begin within 60 s");
      }
    }
    port_ = nlohmann::json::parse(line).at("port").get<int>();
    return {};
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  double CpuSeconds() const {
    clockid_t clock{};
    return ::clock_getcpuclockid(child_.pid(), &clock) == 0 ? ReadClock(clock) : 0;
  }

 private:
  ChildProcess child_;
  int port_ = 0;
};

struct Epoch {
  double seconds = 0;
  double cpu_seconds = 0;  // of this process
  std::int64_t batches = 0;
  std::int64_t bytes = 0;
};

Result<Epoch> Run(const data::Dataset& dataset, const Options& options) {
  const auto begun = SteadyClock::now();
  const double cpu = ReadClock(CLOCK_PROCESS_CPUTIME_ID);
  COHORT_ASSIGN_OR_RETURN(const auto batches, dataset.Shuffle(1)
                                                  .Batch(options.batch)
                                                  .Prefetch(2 * options.threads, options.threads)
                                                  .Iterate());
  Epoch epoch;
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const auto batch, batches->Next());
    if (!batch.has_value()) {
      break;
    }
    ++epoch.batches;
    for (const auto& [name, tensor] : batch->features) {
      epoch.bytes += static_cast<std::int64_t>(tensor.bytes());
    }
  }
  epoch.seconds = std::chrono::duration<double>(SteadyClock::now() - begun).count();
  epoch.cpu_seconds = ReadClock(CLOCK_PROCESS_CPUTIME_ID) - cpu;
  return epoch;
}

Result<nlohmann::json> Measure(const char* name, const data::OpenOptions& files,
                               const std::vector<std::string>& arguments, const Options& options) {
  COHORT_ASSIGN_OR_RETURN(const data::OpenedFiles opened, data::OpenFiles(files));
  Service service;
  COHORT_RETURN_IF_ERROR(service.Start(arguments, options.threads));
  COHORT_ASSIGN_OR_RETURN(const data::Dataset remote, data::FromService(service.address(), "data"));
  std::vector<double> local_seconds;
  std::vector<double> service_seconds;
  std::vector<double> local_cpu;
  std::vector<double> trainer_cpu;
  std::vector<double> worker_cpu;
  Epoch last;
  for (int round = -1; round < options.rounds; ++round) {  // the first warms up
    COHORT_ASSIGN_OR_RETURN(const Epoch local, Run(opened.dataset, options));
    const double worker = service.CpuSeconds();
    COHORT_ASSIGN_OR_RETURN(last, Run(remote, options));
    if (last.bytes != local.bytes) {
      return Internal("the service gave " + std::to_string(last.bytes) + " bytes instead of " +
                      std::to_string(local.bytes));
    }
    if (round >= 0) {
      local_seconds.push_back(local.seconds);
      service_seconds.push_back(last.seconds);
      local_cpu.push_back(local.cpu_seconds);
      trainer_cpu.push_back(last.cpu_seconds);
      worker_cpu.push_back(service.CpuSeconds() - worker);
    }
  }
  const double local = Median(local_seconds);
  const double through = Median(service_seconds);
  const auto batches = static_cast<double>(last.batches);
  const double megabytes = static_cast<double>(last.bytes) / 1e6;
  return nlohmann::json{{"name", name},
                        {"batches", last.batches},
                        {"bytes", last.bytes},
                        {"local_us_per_batch", local / batches * 1e6},
                        {"service_us_per_batch", through / batches * 1e6},
                        {"overhead_us_per_batch", (through - local) / batches * 1e6},
                        {"local_cpu_us_per_batch", Median(local_cpu) / batches * 1e6},
                        {"trainer_cpu_us_per_batch", Median(trainer_cpu) / batches * 1e6},
                        {"worker_cpu_us_per_batch", Median(worker_cpu) / batches * 1e6},
                        {"local_mb_per_second", megabytes / local},
                        {"service_mb_per_second", megabytes / through},
                        {"local_rounds", local_seconds},
                        {"service_rounds", service_seconds}};
}

Status RunAll(const Options& options) {
  COHORT_ASSIGN_OR_RETURN(const ScratchFolder folder, ScratchFolder::Make());
  const std::string size = std::to_string(kSide) + "x" + std::to_string(kSide);
  COHORT_RETURN_IF_ERROR(WriteImages(folder / "images.tar", options.images));
  const Tensor rows(DType::kUInt8, {options.images, kSide, kSide, 3});
  COHORT_RETURN_IF_ERROR(data::WriteNpy(FileSystem::Local(), folder / "rows.npy", rows));
  nlohmann::json report = {{"command", "bench service"},
                           {"images", options.images},
                           {"batch", options.batch},
                           {"threads", options.threads},
                           {"cases", nlohmann::json::array()}};
  COHORT_ASSIGN_OR_RETURN(
      nlohmann::json images,
      Measure("JPEG 500 x 375 to 224 x 224, uint8",
              {.paths = {folder / "images.tar"}, .image = size, .unit_range = false},
              {"--image", size, "--uint8", folder / "images.tar"}, options));
  report["cases"].push_back(std::move(images));
  COHORT_ASSIGN_OR_RETURN(nlohmann::json plain,
                          Measure("rows of as many bytes", {.paths = {folder / "rows.npy"}},
                                  {folder / "rows.npy"}, options));
  report["cases"].push_back(std::move(plain));
  if (options.json) {
    std::printf("%s\n", report.dump().c_str());
    return {};
  }
  std::printf("%lld examples, batches of %lld, %d threads here or in one service process\n",
              static_cast<long long>(options.images), static_cast<long long>(options.batch),
              options.threads);
  std::printf("%-36s %10s %10s %10s %10s\n", "us a batch (MB/s)", "here", "service", "", "more");
  for (const nlohmann::json& item : report["cases"]) {
    const auto number = [&item](const char* name) { return item[name].get<double>(); };
    std::printf("%-36s %10.0f %10.0f %10s %10.0f  (%.0f, %.0f)\n",
                item["name"].get<std::string>().c_str(), number("local_us_per_batch"),
                number("service_us_per_batch"), "", number("overhead_us_per_batch"),
                number("local_mb_per_second"), number("service_mb_per_second"));
    const double more = number("worker_cpu_us_per_batch") + number("trainer_cpu_us_per_batch") -
                        number("local_cpu_us_per_batch");
    std::printf("%-36s %10.0f %10.0f + %8.0f %10.0f\n", "  of cores: here, worker + trainer",
                number("local_cpu_us_per_batch"), number("worker_cpu_us_per_batch"),
                number("trainer_cpu_us_per_batch"), more);
  }
  return {};
}

}  // namespace

int BenchServiceCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Measures an epoch through the data service, with one input worker on this machine, beside "
      "the same epoch made in this process.",
      argv[0]);
  app.add_option("--images", options.images, "examples in an epoch")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000}))
      ->capture_default_str();
  app.add_option("--batch", options.batch, "examples in a batch")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000}))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "that make examples")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "times that each is measured")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--json", options.json, "print a JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const Status status = [&options] {
    try {
      return RunAll(options);
    } catch (const StatusError& error) {  // a build without JPEG
      return error.status();
    }
  }();
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
