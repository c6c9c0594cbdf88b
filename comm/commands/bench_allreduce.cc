// `cohort bench allreduce`: what nccl-tests prints (bytes, time, algbw, busbw, #wrong), and beside
// it what memcpy does with as many bytes, and under mpirun MPI_Allreduce, in the same run.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include <cohort/comm/communicator.h>
#include <cohort/comm/local.h>
#include <cohort/comm/mpi.h>
#include <cohort/comm/tcp.h>

#include "../mpi/mpi_peer.h"
#include "command.h"

namespace cohort {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

struct Options {
  std::string backend = "local";
  int ranks = 2;
  std::vector<std::int64_t> sizes;  // bytes
  std::int64_t begin = 8;
  std::int64_t end = 64 << 20;
  int factor = 8;
  std::string dtype = "float32";
  std::string algorithm = "auto";
  std::string mpi_implementation = "cohort";
  double seconds = 0.3;  // per size
  bool json = false;
};

struct Row {
  std::int64_t bytes = 0;
  double seconds = 0;  // median
  std::int64_t wrong = 0;
  double memcpy_seconds = 0;
  double mpi_seconds = 0;  // 0: not measured
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The rendezvous of ranks that are threads of this process.
class ThreadStore final : public KeyValueStore {
 public:
  Status Insert(const std::string& key, const std::string& value) override {
    const std::lock_guard lock(mutex_);
    if (!values_.emplace(key, value).second) {
      return AlreadyExists(key);
    }
    changed_.notify_all();
    return {};
  }
  Result<std::string> Get(const std::string& key) override {
    const std::lock_guard lock(mutex_);
    const auto it = values_.find(key);
    return it == values_.end() ? Result<std::string>(NotFound(key)) : it->second;
  }
  Result<std::string> Wait(const std::string& key, Deadline deadline) override {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_until(lock, deadline, [&] { return values_.contains(key); })) {
      return DeadlineExceeded(key);
    }
    return values_.at(key);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;  // guarded by mutex_
};

std::optional<DType> DTypeNamed(const std::string& name) {
  for (int value = 1; value <= 7; ++value) {
    if (DTypeName(static_cast<DType>(value)) == name) {
      return static_cast<DType>(value);
    }
  }
  return std::nullopt;
}

// Rank r gives (i + r) % 3 at place i: small integers, so that every sum is exact in every type.
template <typename T>
void Fill(std::span<std::byte> bytes, int rank) {
  for (std::size_t i = 0; i < bytes.size() / sizeof(T); ++i) {
    T value;
    if constexpr (std::is_arithmetic_v<T>) {
      value = static_cast<T>((i + static_cast<std::size_t>(rank)) % 3);
    } else {
      value = T(static_cast<float>((i + static_cast<std::size_t>(rank)) % 3));
    }
    std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
  }
}

template <typename T>
std::int64_t CountWrong(std::span<const std::byte> bytes, int ranks) {
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < bytes.size() / sizeof(T); ++i) {
    int expected = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      expected += static_cast<int>((i + static_cast<std::size_t>(rank)) % 3);
    }
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    if constexpr (std::is_arithmetic_v<T>) {
      wrong += value != static_cast<T>(expected) ? 1 : 0;
    } else {
      wrong += static_cast<float>(value) != static_cast<float>(expected) ? 1 : 0;
    }
  }
  return wrong;
}

// fill(bytes, rank) and count(bytes, ranks) of an element type.
struct Pattern {
  void (*fill)(std::span<std::byte>, int);
  std::int64_t (*count_wrong)(std::span<const std::byte>, int);
};

Pattern PatternOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return {Fill<float>, CountWrong<float>};
    case DType::kFloat64:
      return {Fill<double>, CountWrong<double>};
    case DType::kInt32:
      return {Fill<std::int32_t>, CountWrong<std::int32_t>};
    case DType::kInt64:
      return {Fill<std::int64_t>, CountWrong<std::int64_t>};
    case DType::kFloat16:
      return {Fill<Float16>, CountWrong<Float16>};
    case DType::kBFloat16:
      return {Fill<BFloat16>, CountWrong<BFloat16>};
    case DType::kUInt8:
      return {Fill<std::uint8_t>, CountWrong<std::uint8_t>};
  }
  throw ContractError("a known element type");
}

Status Wait(Communicator::Pending pending) {
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

double TimeMemcpy(std::size_t bytes) {
  const std::vector<std::byte> from(bytes, std::byte{1});
  std::vector<std::byte> to(bytes);
  std::vector<double> times;
  for (int i = 0; i < 9; ++i) {
    const auto start = Clock::now();
    std::memcpy(to.data(), from.data(), bytes);
    times.push_back(Seconds(Clock::now() - start).count());
    asm volatile("" : : "r"(to.data()) : "memory");  // the copy is used
  }
  return Median(times);
}

// One size, on every rank. All ranks do the number of rounds that rank 0 finds fitting.
Result<Row> Measure(Communicator& comm, DType dtype, std::int64_t bytes, const Options& options) {
  const Pattern pattern = PatternOf(dtype);
  const auto count = std::max<std::int64_t>(1, bytes / static_cast<std::int64_t>(SizeOf(dtype)));
  std::vector<std::byte> memory(static_cast<std::size_t>(count) * SizeOf(dtype));
  const Buffer buffer(memory.data(), count, dtype);
  const CollectiveOptions how = {.name = "bench", .algorithm = options.algorithm};
  Row row;
  row.bytes = static_cast<std::int64_t>(memory.size());
  pattern.fill(memory, comm.rank());
  COHORT_RETURN_IF_ERROR(Wait(comm.AllReduce(buffer, ReduceOp::kSum, how)));
  std::int64_t wrong[1] = {pattern.count_wrong(memory, comm.size())};
  COHORT_RETURN_IF_ERROR(Wait(comm.AllReduce(std::span(wrong), ReduceOp::kSum)));
  row.wrong = wrong[0];

  const auto once = [&](std::vector<double>& times) -> Status {
    std::memset(memory.data(), 0, memory.size());  // sums stay small
    COHORT_RETURN_IF_ERROR(Wait(comm.Barrier()));
    const auto start = Clock::now();
    COHORT_RETURN_IF_ERROR(Wait(comm.AllReduce(buffer, ReduceOp::kSum, how)));
    times.push_back(Seconds(Clock::now() - start).count());
    return {};
  };
  std::vector<double> times;
  for (int warm = 0; warm < 3; ++warm) {
    COHORT_RETURN_IF_ERROR(once(times));
  }
  std::int64_t rounds[1] = {static_cast<std::int64_t>(options.seconds / Median(times))};
  rounds[0] = std::clamp<std::int64_t>(rounds[0], 5, 2000);
  COHORT_RETURN_IF_ERROR(Wait(comm.Broadcast(std::span(rounds), 0)));
  times.clear();
  std::vector<double> mpi_times;
  const bool mpi_peer = options.backend == "mpi" && dtype == DType::kFloat32;
  for (std::int64_t i = 0; i < rounds[0]; ++i) {
    COHORT_RETURN_IF_ERROR(once(times));
    if (mpi_peer) {  // in turns, so that both see the same machine
      COHORT_ASSIGN_OR_RETURN(const double seconds,
                              MpiAllReduceSeconds({reinterpret_cast<float*>(memory.data()),
                                                   static_cast<std::size_t>(count)}));
      mpi_times.push_back(seconds);
    }
  }
  row.seconds = Median(times);
  row.mpi_seconds = mpi_times.empty() ? 0 : Median(mpi_times);
  if (comm.rank() == 0) {
    row.memcpy_seconds = TimeMemcpy(memory.size());
  }
  COHORT_RETURN_IF_ERROR(Wait(comm.Barrier()));
  return row;
}

void PrintTable(const Communicator& comm, const Options& options, const std::vector<Row>& rows) {
  std::printf("# all-reduce (sum) of %s, %d ranks, backend %.*s, algorithm %s\n",
              options.dtype.c_str(), comm.size(), static_cast<int>(comm.backend().size()),
              comm.backend().data(), options.algorithm.c_str());
  std::printf(
      "# algbw = bytes / time; busbw = algbw * 2 (n - 1) / n; ratios: peer time / our time\n");
  std::printf("#%11s %12s %9s %9s %7s %12s %7s %12s %7s\n", "bytes", "time us", "algbw", "busbw",
              "#wrong", "memcpy us", "ratio", "MPI us", "ratio");
  const double bus = 2.0 * (comm.size() - 1) / comm.size();
  for (const Row& row : rows) {
    const double bandwidth = static_cast<double>(row.bytes) / row.seconds / 1e9;
    std::printf("%12lld %12.2f %9.3f %9.3f %7lld %12.2f %7.2f", static_cast<long long>(row.bytes),
                row.seconds * 1e6, bandwidth, bandwidth * bus, static_cast<long long>(row.wrong),
                row.memcpy_seconds * 1e6, row.memcpy_seconds / row.seconds);
    if (row.mpi_seconds > 0) {
      std::printf(" %12.2f %7.2f", row.mpi_seconds * 1e6, row.mpi_seconds / row.seconds);
    }
    std::printf("\n");
  }
}

void PrintJson(const Communicator& comm, const Options& options, const std::vector<Row>& rows) {
  nlohmann::json list = nlohmann::json::array();
  const double bus = 2.0 * (comm.size() - 1) / comm.size();
  for (const Row& row : rows) {
    const double bandwidth = static_cast<double>(row.bytes) / row.seconds / 1e9;
    nlohmann::json entry = {{"bytes", row.bytes},
                            {"time_us", row.seconds * 1e6},
                            {"algbw_gb_per_s", bandwidth},
                            {"busbw_gb_per_s", bandwidth * bus},
                            {"wrong", row.wrong},
                            {"memcpy_us", row.memcpy_seconds * 1e6},
                            {"ratio_to_memcpy", row.memcpy_seconds / row.seconds}};
    if (row.mpi_seconds > 0) {
      entry["mpi_us"] = row.mpi_seconds * 1e6;
      entry["ratio_to_mpi"] = row.mpi_seconds / row.seconds;
    }
    list.push_back(std::move(entry));
  }
  const nlohmann::json all = {{"backend", comm.backend()},
                              {"ranks", comm.size()},
                              {"dtype", options.dtype},
                              {"algorithm", options.algorithm},
                              {"results", list}};
  std::printf("%s\n", all.dump(2).c_str());
}

Status RunRank(Communicator& comm, DType dtype, const Options& options) {
  std::vector<Row> rows;
  bool right = true;
  for (const std::int64_t bytes : options.sizes) {
    COHORT_ASSIGN_OR_RETURN(const Row row, Measure(comm, dtype, bytes, options));
    right &= row.wrong == 0;
    rows.push_back(row);
  }
  if (comm.rank() == 0) {
    (options.json ? PrintJson : PrintTable)(comm, options, rows);
  }
  return right ? OkStatus() : Internal("wrong results");
}

// Local and TCP: the ranks are threads of this process.
Status RunThreads(DType dtype, const Options& options) {
  ThreadStore store;
  std::vector<std::unique_ptr<Communicator>> local;
  if (options.backend == "local") {
    local = MakeLocalCommunicators(options.ranks);
  }
  std::vector<Status> statuses(static_cast<std::size_t>(options.ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < options.ranks; ++rank) {
    threads.emplace_back([&, rank] {
      const auto at = static_cast<std::size_t>(rank);
      std::unique_ptr<Communicator> comm;
      if (!local.empty()) {
        comm = std::move(local[at]);
      } else {
        auto made = MakeTcpCommunicator(rank, options.ranks, store, "bench", {});
        if (!made.ok()) {
          statuses[at] = made.status();
          return;
        }
        comm = std::move(made).value();
      }
      statuses[at] = RunRank(*comm, dtype, options);
      if (!statuses[at].ok() && comm->status().ok()) {
        comm->Abort(statuses[at]);
      }
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

Status Run(DType dtype, const Options& options) {
  if (options.backend != "mpi") {
    return RunThreads(dtype, options);
  }
  COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> comm,
                          MakeMpiCommunicator({.implementation = options.mpi_implementation}));
  return RunRank(*comm, dtype, options);
}

}  // namespace

int BenchAllReduceCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Measures all-reduce (sum): time, bandwidth and correctness, beside memcpy and, "
      "under mpirun, MPI_Allreduce.",
      argv[0]);
  app.add_option("--backend", options.backend, "local (threads), tcp (threads over loopback), mpi")
      ->check(CLI::IsMember({"local", "tcp", "mpi"}))
      ->capture_default_str();
  app.add_option("--ranks", options.ranks, "ranks of local and tcp; mpirun says for mpi")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--sizes", options.sizes, "sizes, as in 8,64k,1m; instead of -b -e -f")
      ->delimiter(',')
      ->transform(CLI::AsSizeValue(false));
  app.add_option("-b,--begin", options.begin, "smallest size")->transform(CLI::AsSizeValue(false));
  app.add_option("-e,--end", options.end, "largest size")->transform(CLI::AsSizeValue(false));
  app.add_option("-f,--factor", options.factor, "from one size to the next")
      ->check(CLI::Range(2, 1024));
  app.add_option("--dtype", options.dtype, "element type")->capture_default_str();
  app.add_option("--algorithm", options.algorithm, "auto, ring, recursive_doubling, direct")
      ->capture_default_str();
  app.add_option("--mpi-implementation", options.mpi_implementation,
                 "cohort (ours over MPI messages) or mpi (MPI_Iallreduce)")
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "measured for each size")
      ->check(CLI::Range(0.001, 600.0))
      ->capture_default_str();
  app.add_flag("--json", options.json, "machine-readable output");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const std::optional<DType> dtype = DTypeNamed(options.dtype);
  if (!dtype) {
    std::fprintf(stderr, "%s: no element type '%s'\n", argv[0], options.dtype.c_str());
    return 2;
  }
  if (options.sizes.empty()) {
    for (std::int64_t bytes = std::max<std::int64_t>(options.begin, 1); bytes <= options.end;
         bytes *= options.factor) {
      options.sizes.push_back(bytes);
    }
  }
  const Status status = Run(*dtype, options);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
