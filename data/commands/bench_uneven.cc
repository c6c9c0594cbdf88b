#include "bench_uneven.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <thread>

#include <cohort/core/random.h>
#include <cohort/data/memory.h>

namespace cohort::data {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

// What an ordinary example takes. It is waited for, as for a server: the figures are then those of
// the order, whatever else the machine's cores do.
constexpr Seconds kOrdinary{200e-6};

struct Epoch {
  double seconds = 0;
  double perfect = 0;  // seconds
};

// Which examples are slow is theirs: every epoch has the same work.
Result<Epoch> Read(const BenchUnevenOptions& options, std::int64_t examples, int ahead) {
  const Philox draw(1, "bench/uneven");
  std::atomic<std::int64_t> spent = 0;
  const auto map = [&](Example& example) {
    const auto id = static_cast<std::uint64_t>(example.at("id").data<std::int64_t>()[0]);
    const double times = draw.Uniform(id) < options.part ? options.times : 1.0;
    const Clock::time_point begin = Clock::now();
    std::this_thread::sleep_until(begin +
                                  std::chrono::duration_cast<Clock::duration>(times * kOrdinary));
    spent += (Clock::now() - begin).count();
    return Status();
  };
  Tensor ids(DType::kInt64, {examples});
  for (std::int64_t i = 0; i < examples; ++i) {
    ids.data<std::int64_t>()[static_cast<std::size_t>(i)] = i;
  }
  COHORT_ASSIGN_OR_RETURN(const Dataset data, FromTensors({{"id", ids}}));
  const Clock::time_point begin = Clock::now();
  COHORT_ASSIGN_OR_RETURN(
      const auto batches,
      data.Shuffle(1).Map(map).Batch(options.batch).Prefetch(ahead, options.threads).Iterate());
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const auto batch, batches->Next());
    if (!batch.has_value()) {
      break;
    }
  }
  return Epoch{.seconds = Seconds(Clock::now() - begin).count(),
               .perfect = Seconds(Clock::duration(spent)).count() / options.threads};
}

}  // namespace

Status BenchUneven(const BenchUnevenOptions& options) {
  const double mean = kOrdinary.count() * (1 + options.part * (options.times - 1));
  const double batch_seconds = mean * static_cast<double>(options.batch);
  const auto batches = std::max<std::int64_t>(
      std::int64_t{50} * options.threads,
      static_cast<std::int64_t>(options.seconds * options.threads / batch_seconds));
  nlohmann::json report = {{"command", "bench input"},        {"slow_part", options.part},
                           {"slow_times", options.times},     {"batch", options.batch},
                           {"threads", options.threads},      {"batches", batches},
                           {"cases", nlohmann::json::array()}};
  if (!options.json) {
    std::printf("%g of the examples take %g times as long, %lld batches of %lld, %d threads\n",
                options.part, options.times, static_cast<long long>(batches),
                static_cast<long long>(options.batch), options.threads);
    std::printf("%-14s %14s %26s\n", "batches ahead", "examples/s", "of threads never waiting");
  }
  for (int ahead = options.threads; ahead <= 64 * options.threads; ahead *= 2) {
    const std::int64_t examples = batches * options.batch;
    COHORT_ASSIGN_OR_RETURN(const Epoch epoch, Read(options, examples, ahead));
    const double rate = static_cast<double>(examples) / epoch.seconds;
    report["cases"].push_back({{"ahead", ahead},
                               {"examples_per_second", rate},
                               {"of_perfect_sharing", epoch.perfect / epoch.seconds}});
    if (!options.json) {
      std::printf("%-14d %14.0f %26.2f\n", ahead, rate, epoch.perfect / epoch.seconds);
    }
  }
  if (options.json) {
    std::printf("%s\n", report.dump().c_str());
  }
  return {};
}

}  // namespace cohort::data
