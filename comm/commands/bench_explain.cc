// `cohort bench explain`: what the cost model has measured on a communicator, what it predicts for
// each algorithm and size, which one "auto" takes, and how long each really takes, in the same run.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <cohort/comm/communicator.h>
#include <cohort/comm/hierarchical.h>
#include <cohort/comm/local.h>
#include <cohort/comm/mpi.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>

#include "../thread_store.h"
#include "command.h"

namespace cohort {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string transport = "local";
  int ranks = 2;
  int ranks_per_host = 2;
  std::string operation = "allreduce";
  std::vector<std::int64_t> sizes = {64, 4 << 10, 64 << 10, 1 << 20, 16 << 20};
  int rounds = 15;
  bool json = false;

  OperationKind kind() const {
    return operation == "allreduce"       ? OperationKind::kAllReduce
           : operation == "reducescatter" ? OperationKind::kReduceScatter
                                          : OperationKind::kAllGather;
  }
};

// One algorithm at one size.
struct Line {
  AlgorithmCost cost;
  std::vector<double> seconds;
  double median() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

struct Size {
  std::int64_t bytes = 0;
  CostEstimate estimate;
  std::vector<Line> lines;
};

Status Wait(Communicator::Pending pending) {
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

// The operation on a buffer of this size; for the two others that is all ranks' part together.
Status RunOnce(Communicator& comm, const Options& options, std::span<float> all,
               const std::string& algorithm) {
  const CollectiveOptions how = {.name = "explain", .algorithm = algorithm};
  const std::size_t part = all.size() / static_cast<std::size_t>(comm.size());
  const std::span<float> mine = all.subspan(static_cast<std::size_t>(comm.rank()) * part, part);
  switch (options.kind()) {
    case OperationKind::kReduceScatter:
      return Wait(comm.ReduceScatter(all, mine, ReduceOp::kSum, how));
    case OperationKind::kAllGather:
      return Wait(comm.AllGather(mine, all, how));
    default:
      return Wait(comm.AllReduce(all, ReduceOp::kSum, how));
  }
}

Result<Size> Measure(Communicator& comm, const Options& options, std::int64_t bytes) {
  const auto n = static_cast<std::size_t>(comm.size());
  const std::size_t count = std::max<std::size_t>(static_cast<std::size_t>(bytes) / 4 / n, 1) * n;
  COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> memory,
                          comm.Allocate(count * sizeof(float)));
  const std::span all(reinterpret_cast<float*>(memory->bytes().data()), count);
  Size size;
  size.bytes = static_cast<std::int64_t>(all.size_bytes());
  COHORT_ASSIGN_OR_RETURN(size.estimate, comm.Explain(options.kind(), size.bytes));
  for (const AlgorithmCost& cost : size.estimate.algorithms) {
    size.lines.push_back({cost, {}});
  }
  for (int round = -1; round < options.rounds; ++round) {  // in turns; the first is not counted
    for (Line& line : size.lines) {
      COHORT_RETURN_IF_ERROR(Wait(comm.Barrier()));
      const auto start = Clock::now();
      COHORT_RETURN_IF_ERROR(RunOnce(comm, options, all, std::string(line.cost.algorithm)));
      if (round >= 0) {
        line.seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
      }
    }
  }
  return size;
}

double GigabytesPerSecond(double seconds_per_byte) {
  return seconds_per_byte > 0 ? 1e-9 / seconds_per_byte : 0;
}

void PrintTable(const Communicator& comm, const Options& options, const std::vector<Size>& sizes) {
  const CostEstimate& first = sizes.front().estimate;
  const double calibration = std::chrono::duration<double>(first.calibration).count();
  std::printf("# %s, %d ranks, transport %s; measured once, in %.2f ms:\n",
              options.operation.c_str(), comm.size(), options.transport.c_str(), calibration * 1e3);
  std::printf("#   latency %.2f us, each further message %.2f us, %.2f GB/s, combining ",
              first.parameters.latency * 1e6, first.parameters.per_message * 1e6,
              GigabytesPerSecond(first.parameters.per_byte));
  if (first.parameters.per_reduced_byte > 0) {
    std::printf("at %.2f GB/s\n", GigabytesPerSecond(first.parameters.per_reduced_byte));
  } else {
    std::printf("costs nothing more\n");
  }
  std::printf("#%11s %-20s %14s %14s\n", "bytes", "algorithm", "predicted us", "measured us");
  for (const Size& size : sizes) {
    for (const Line& line : size.lines) {
      const std::string name(line.cost.algorithm);
      char predicted[32] = "-";
      if (line.cost.seconds) {
        std::snprintf(predicted, sizeof(predicted), "%.2f", *line.cost.seconds * 1e6);
      }
      std::printf("%12lld %-20s %14s %14.2f%s%s\n", static_cast<long long>(size.bytes),
                  name.c_str(), predicted, line.median() * 1e6,
                  line.cost.in_order ? "" : "  (by name only)",
                  name == size.estimate.chosen ? "  <- auto" : "");
    }
  }
}

void PrintJson(const Communicator& comm, const Options& options, const std::vector<Size>& sizes) {
  nlohmann::json results = nlohmann::json::array();
  for (const Size& size : sizes) {
    for (const Line& line : size.lines) {
      const std::optional<double> seconds = line.cost.seconds;
      results.push_back({{"bytes", size.bytes},
                         {"algorithm", line.cost.algorithm},
                         {"predicted_us", seconds ? nlohmann::json(*seconds * 1e6) : nullptr},
                         {"time_us", line.median() * 1e6},
                         {"in_order", line.cost.in_order},
                         {"chosen", line.cost.algorithm == size.estimate.chosen}});
    }
  }
  const CostEstimate& first = sizes.front().estimate;
  const nlohmann::json all = {
      {"op", options.operation},
      {"transport", options.transport},
      {"ranks", comm.size()},
      {"calibration_ms", std::chrono::duration<double>(first.calibration).count() * 1e3},
      {"latency_us", first.parameters.latency * 1e6},
      {"per_message_us", first.parameters.per_message * 1e6},
      {"per_byte_ns", first.parameters.per_byte * 1e9},
      {"per_reduced_byte_ns", first.parameters.per_reduced_byte * 1e9},
      {"results", results}};
  std::printf("%s\n", all.dump().c_str());
}

Status RunRank(Communicator& comm, const Options& options) {
  std::vector<Size> sizes;
  for (const std::int64_t bytes : options.sizes) {
    COHORT_ASSIGN_OR_RETURN(Size size, Measure(comm, options, bytes));
    sizes.push_back(std::move(size));
  }
  if (comm.rank() == 0) {
    (options.json ? PrintJson : PrintTable)(comm, options, sizes);
  }
  return {};
}

Result<std::unique_ptr<Communicator>> Connect(int rank, const Options& options,
                                              KeyValueStore& store) {
  if (options.transport == "shm") {
    return MakeShmCommunicator(rank, options.ranks, store, "explain");
  }
  if (options.transport == "hierarchical") {
    HierarchicalOptions hierarchical;
    hierarchical.host = "host " + std::to_string(rank / options.ranks_per_host);
    return MakeHierarchicalCommunicator(rank, options.ranks, store, "explain", hierarchical);
  }
  return MakeTcpCommunicator(rank, options.ranks, store, "explain", {});
}

// The ranks are threads of this process.
Status RunThreads(const Options& options) {
  ThreadStore store;
  std::vector<std::unique_ptr<Communicator>> local;
  if (options.transport == "local") {
    local = MakeLocalCommunicators(options.ranks);
  }
  std::vector<Status> statuses(static_cast<std::size_t>(options.ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < options.ranks; ++rank) {
    threads.emplace_back([&, rank] {
      const auto at = static_cast<std::size_t>(rank);
      auto comm = local.empty() ? Connect(rank, options, store)
                                : Result<std::unique_ptr<Communicator>>(std::move(local[at]));
      statuses[at] = comm.ok() ? RunRank(*comm.value(), options) : comm.status();
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const Status& status : statuses) {
    COHORT_RETURN_IF_ERROR(status);
  }
  return {};
}

Status Run(const Options& options) {
  if (options.transport != "mpi") {
    return RunThreads(options);
  }
  COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> comm, MakeMpiCommunicator());
  return RunRank(*comm, options);
}

}  // namespace

int BenchExplainCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Shows the measured parameters of the cost model, its prediction for each algorithm and "
      "size, the one that \"auto\" takes, and the time that each really takes on memory from "
      "Communicator::Allocate. \"-\": taken where it can be, without a prediction.",
      argv[0]);
  app.add_option("--transport", options.transport,
                 "local, shm, tcp, hierarchical (ranks are threads), mpi")
      ->check(CLI::IsMember({"local", "shm", "tcp", "hierarchical", "mpi"}))
      ->capture_default_str();
  app.add_option("--ranks", options.ranks, "how many; mpirun says for mpi")
      ->check(CLI::Range(2, 256))
      ->capture_default_str();
  app.add_option("--ranks-per-host", options.ranks_per_host,
                 "hierarchical: so many consecutive ranks are taken for one host's")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--op", options.operation, "the operation")
      ->check(CLI::IsMember({"allreduce", "reducescatter", "allgather"}))
      ->capture_default_str();
  app.add_option("--sizes", options.sizes, "bytes of the whole buffer, as in 4k,1m")
      ->delimiter(',')
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--rounds", options.rounds, "of each algorithm and size, in turns")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  app.add_flag("--json", options.json, "machine-readable output");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const Status status = Run(options);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
