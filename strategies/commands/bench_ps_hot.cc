// `cohort bench ps hot`: servers' and workers' processes with a sparse table whose ids are drawn by
// Zipf's law, few to a call, the most frequent ones in buckets of one server; and what becomes of
// it when these move to the idler servers, as StrategyOptions::balance_interval has it: before,
// while they move, and after.

#include <sys/mman.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/random.h>
#include <cohort/core/status.h>
#include <cohort/core/zipf.h>
#include <cohort/optim/optimizers.h>

#include "bench_children.h"
#include "bench_ps_modes.h"
#include "core/commands/run_command.h"
#include "parameter_server/rows/bucket_balance.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"

namespace cohort {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMost = 16;  // servers, or workers

struct Options {
  int servers = 2;
  int workers = 2;
  std::uint64_t rows = 100'000;
  std::int64_t dim = 16;
  std::uint32_t buckets = 64;
  std::size_t ids = 32;  // of one call
  double zipf = 1.2;
  std::size_t together = 16;  // of the most frequent ids, at first on ps:0
  double seconds = 3;         // of each measurement
  int looks = 10;             // between which buckets move
  bool json = false;
};

enum Phase { kWarm, kBefore, kWhile, kAfter, kEnd };

// Counts of times, each within 2 % of what it was.
struct Times {
  static constexpr double kStep = 1.02;
  std::array<std::atomic<std::uint32_t>, 1000> counts{};  // from 1 us on
  void Add(double seconds) {
    const double steps = std::log(std::max(seconds * 1e6, 1.0)) / std::log(kStep);
    counts[std::min(static_cast<std::size_t>(steps), counts.size() - 1)].fetch_add(1);
  }
  std::uint64_t all() const {
    return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  }
  double Quantile(double part) const {
    const double wanted = part * static_cast<double>(all());
    double seen = 0;
    std::size_t at = 0;
    for (; at < counts.size() && seen < wanted; ++at) {
      seen += counts[at];
    }
    return std::pow(kStep, static_cast<double>(at)) * 1e-6;
  }
};

// Memory of all processes.
struct Shared {
  std::atomic<int> phase{kWarm};
  std::array<std::atomic<int>, kMost> ports{};  // of servers; 0: not known yet
  std::atomic<bool> declared{false};
  std::array<Times, kEnd> pulls;
  std::array<Times, kEnd> pushes;
};

ps::ModelSpec ModelOf(const Options& options) {
  ps::ModelSpec model;
  model.parameters = {{.name = "w", .shape = {1}}};
  model.optimizer = Sgd()->config();
  model.servers = options.servers;
  ps::TableSpec table;
  table.name = "items";
  table.dim = options.dim;
  table.buckets = options.buckets;
  table.optimizer = Adagrad()->config();
  model.tables = {table};
  return model;
}

// The ids of the most frequent ranks, in buckets of ps:0.
std::vector<std::uint64_t> IdsTogether(const Options& options) {
  std::vector<std::uint64_t> ids;
  for (std::uint64_t n = options.rows + 1; ids.size() < options.together; ++n) {
    const std::uint64_t id = ps::HashId(n);
    if (ps::ServerOf(ps::BucketOf(id, options.buckets), options.servers, options.buckets) == 0) {
      ids.push_back(id);
    }
  }
  return ids;
}

std::vector<std::string> AddressesOf(const Options& options, const Shared& shared) {
  std::vector<std::string> addresses;
  for (int s = 0; s < options.servers; ++s) {
    while (shared.ports[static_cast<std::size_t>(s)] == 0 && shared.phase != kEnd) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    addresses.push_back("127.0.0.1:" +
                        std::to_string(shared.ports[static_cast<std::size_t>(s)].load()));
  }
  return addresses;
}

Status Serve(int index, Shared& shared) {
  COHORT_ASSIGN_OR_RETURN(const auto server, ps::Server::Start("127.0.0.1:0", index, Log()));
  shared.ports[static_cast<std::size_t>(index)] = server->port();
  while (!server->WaitDrained(DeadlineAfter(std::chrono::hours(1)))) {
  }
  return {};
}

Status Train(const Options& options, int index, Shared& shared) {
  const std::vector<std::string> addresses = AddressesOf(options, shared);
  while (!shared.declared && shared.phase != kEnd) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  const auto rows = ps::RowClient::Make(ModelOf(options), addresses,
                                        {.client = 2 + static_cast<std::uint64_t>(index)});
  const Zipf popularity(options.rows, options.zipf);
  const std::vector<std::uint64_t> together = IdsTogether(options);
  const Philox random(7, std::to_string(index));
  std::uint64_t draws = 0;
  std::vector<std::uint64_t> ids(options.ids);
  std::vector<float> weights(options.ids * static_cast<std::size_t>(options.dim));
  const std::vector<float> gradients(weights.size(), 0.001F);
  for (std::int64_t step = 1; shared.phase != kEnd; ++step) {
    for (std::uint64_t& id : ids) {
      const std::uint64_t rank = popularity([&] { return random.Uniform(draws++); });
      id = rank <= together.size() ? together[rank - 1] : ps::HashId(rank);
    }
    const auto phase = static_cast<std::size_t>(shared.phase.load());
    const Clock::time_point begun = Clock::now();
    COHORT_RETURN_IF_ERROR(rows->Pull(0, ids, step, /*training=*/true, weights));
    const Clock::time_point pulled = Clock::now();
    const ps::RowClient::Gradients push{.table = 0, .ids = ids, .values = gradients};
    COHORT_RETURN_IF_ERROR(rows->Push(std::span(&push, 1), step, 1));
    if (phase < kEnd) {
      shared.pulls[phase].Add(std::chrono::duration<double>(pulled - begun).count());
      shared.pushes[phase].Add(std::chrono::duration<double>(Clock::now() - pulled).count());
    }
  }
  return {};
}

// What the busiest server gets, in shares of the mean.
double Skew(const std::vector<ps::BucketLoad>& loads, int servers) {
  std::vector<double> of(static_cast<std::size_t>(servers));
  for (const ps::BucketLoad& load : loads) {
    of[static_cast<std::size_t>(load.server)] += static_cast<double>(load.updates);
  }
  const double all = std::accumulate(of.begin(), of.end(), 0.0);
  return all == 0 ? 1 : *std::ranges::max_element(of) * servers / all;
}

Status Measure(const Options& options, Shared& shared) {
  const std::vector<std::string> addresses = AddressesOf(options, shared);
  const ps::ModelSpec model = ModelOf(options);
  const auto client = ps::Client::Make(model, addresses, {});
  const auto rows = ps::RowClient::Make(model, addresses, {});
  COHORT_RETURN_IF_ERROR(client->Declare());
  COHORT_RETURN_IF_ERROR(client->Assign(std::vector<float>(1), {}, 0));
  shared.declared = true;
  const auto wait = [&](double seconds) {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  };
  ps::LoadMeter meter;
  const auto look = [&]() -> Result<std::vector<ps::BucketLoad>> {
    COHORT_ASSIGN_OR_RETURN(const auto counts, rows->Loads(0));
    return meter.Since(counts);
  };
  wait(options.seconds / 3);
  COHORT_RETURN_IF_ERROR(look().status());
  shared.phase = kBefore;
  wait(options.seconds);
  shared.phase = kWhile;
  COHORT_ASSIGN_OR_RETURN(std::vector<ps::BucketLoad> loads, look());
  const double before = Skew(loads, options.servers);
  std::vector<double> moves;
  for (int i = 0; i < options.looks; ++i) {
    for (const ps::BucketMoveTo& move : ps::PlanMoves(loads, options.servers, 8)) {
      const Clock::time_point begun = Clock::now();
      COHORT_RETURN_IF_ERROR(rows->Move(0, move.bucket, move.to));
      moves.push_back(std::chrono::duration<double>(Clock::now() - begun).count());
    }
    COHORT_RETURN_IF_ERROR(look().status());  // buckets are counted anew where they went
    wait(options.seconds / options.looks);
    COHORT_ASSIGN_OR_RETURN(loads, look());
  }
  shared.phase = kAfter;
  wait(options.seconds);
  COHORT_ASSIGN_OR_RETURN(loads, look());
  const double after = Skew(loads, options.servers);
  shared.phase = kEnd;
  COHORT_RETURN_IF_ERROR(client->Drain());

  std::ranges::sort(moves);
  const auto of_phase = [&](Phase phase) {
    const Times& pulls = shared.pulls[phase];
    const Times& pushes = shared.pushes[phase];
    return nlohmann::ordered_json{{"steps", pulls.all()},
                                  {"pull_p50_ms", 1e3 * pulls.Quantile(0.5)},
                                  {"pull_p99_ms", 1e3 * pulls.Quantile(0.99)},
                                  {"push_p50_ms", 1e3 * pushes.Quantile(0.5)},
                                  {"push_p99_ms", 1e3 * pushes.Quantile(0.99)}};
  };
  const nlohmann::ordered_json report = {
      {"servers", options.servers},
      {"workers", options.workers},
      {"zipf", options.zipf},
      {"ids_together", options.together},
      {"ids_per_call", options.ids},
      {"seconds", options.seconds},
      {"busiest_before", before},
      {"busiest_after", after},
      {"moves", moves.size()},
      {"move_ms", moves.empty() ? 0.0 : 1e3 * moves[moves.size() / 2]},
      {"before", of_phase(kBefore)},
      {"while_moving", of_phase(kWhile)},
      {"after", of_phase(kAfter)}};
  if (options.json) {
    std::printf("%s\n", report.dump().c_str());
    return {};
  }
  std::printf("%d servers, %d workers, %zu ids a call, Zipf %g, the first %zu on one server\n",
              options.servers, options.workers, options.ids, options.zipf, options.together);
  std::printf("the busiest server gets %.2f times the mean, after %zu moves (%.2f ms each) %.2f\n",
              before, moves.size(), report["move_ms"].get<double>(), after);
  std::printf("%-14s %10s %12s %12s %12s %12s\n", "", "steps/s", "pull p50 ms", "p99",
              "push p50 ms", "p99");
  for (const char* phase : {"before", "while_moving", "after"}) {
    const auto& of = report[phase];
    std::printf("%-14s %10.0f %12.3f %12.3f %12.3f %12.3f\n", phase,
                of["steps"].get<double>() / options.seconds, of["pull_p50_ms"].get<double>(),
                of["pull_p99_ms"].get<double>(), of["push_p50_ms"].get<double>(),
                of["push_p99_ms"].get<double>());
  }
  return {};
}

// gRPC has no part in a process before it forks.
Status Run(const Options& options) {
  void* const memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return ResourceExhausted("no shared memory");
  }
  auto* const shared = new (memory) Shared;
  Children children;
  for (int s = 0; s < options.servers; ++s) {
    COHORT_RETURN_IF_ERROR(
        children.Start("ps:" + std::to_string(s), [&] { return Serve(s, *shared); }).status());
  }
  for (int w = 0; w < options.workers; ++w) {
    COHORT_RETURN_IF_ERROR(
        children.Start("worker:" + std::to_string(w), [&] { return Train(options, w, *shared); })
            .status());
  }
  const Status status = Measure(options, *shared);
  shared->phase = kEnd;
  return status.ok() ? children.Wait() : status;
}

}  // namespace

int BenchPsHotCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Measures what buckets of a sparse table that are asked for more than others cost, and what "
      "their move to idler servers changes: pulls and pushes before, while they move, and after; "
      "a process for each server and worker.",
      argv[0]);
  app.add_option("--servers", options.servers)->check(CLI::Range(2, kMost))->capture_default_str();
  app.add_option("--workers", options.workers)->check(CLI::Range(1, kMost))->capture_default_str();
  app.add_option("--rows", options.rows, "of the table")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--dim", options.dim, "floats of a row")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--buckets", options.buckets, "a power of two")->capture_default_str();
  app.add_option("--ids", options.ids, "of one call")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--zipf", options.zipf, "exponent of the ids' popularity")
      ->check(CLI::Range(0.0, 4.0))
      ->capture_default_str();
  app.add_option("--together", options.together, "of the most frequent ids, at first on one server")
      ->check(CLI::Range(0, 1'000'000))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "of each measurement")
      ->check(CLI::Range(0.01, 600.0))
      ->capture_default_str();
  app.add_flag("--json", options.json, "machine-readable output");
  return ParseAndRun(app, argc, argv, [&]() -> Status {
    COHORT_RETURN_IF_ERROR(ModelOf(options).tables[0].Check());
    return Run(options);
  });
}

}  // namespace cohort
