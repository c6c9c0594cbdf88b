#include "options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <sstream>

namespace cohort::bench {
namespace {

constexpr std::string_view kNames[] = {"allreduce", "reducescatter", "allgather", "broadcast"};

std::optional<DType> DTypeNamed(const std::string& name) {
  for (int value = 1; value <= 7; ++value) {
    if (DTypeName(static_cast<DType>(value)) == name) {
      return static_cast<DType>(value);
    }
  }
  return std::nullopt;
}

}  // namespace

std::string_view OperationName(Operation operation) {
  return kNames[static_cast<std::size_t>(operation)];
}

std::optional<int> ParseOptions(int argc, char** argv, Options& options) {
  const std::string command = argv[0];
  const std::string word = command.substr(command.rfind(' ') + 1);
  const auto* name = std::find(std::begin(kNames), std::end(kNames), word);
  options.operation = static_cast<Operation>(name - std::begin(kNames));

  CLI::App app(
      "Measures a collective operation in processes that this command starts: time, bandwidth and "
      "correctness, beside other libraries and the machine's limits in the same run, in turns.\n"
      "Columns as nccl-tests; ratio = time / cohort's time.",
      argv[0]);
  std::int64_t begin = 8;
  std::int64_t end = 64 << 20;
  int factor = 8;
  std::string dtype = "float32";
  std::string prefix;
  std::int64_t timeout = 60;
  bool no_pin = false;
  bool no_read = false;
  app.add_option("--transport,--backend", options.transport,
                 "local (ranks are threads), shm, tcp, mpi (ranks are processes), hierarchical "
                 "(shared memory inside a host, TCP across; beside TCP alone)")
      ->check(CLI::IsMember({"local", "shm", "tcp", "mpi", "hierarchical"}))
      ->capture_default_str();
  app.add_option("--ranks", options.ranks, "how many; under mpirun it says")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--sizes", options.sizes, "bytes, as in 8,64k,1m; instead of -b -e -f")
      ->delimiter(',')
      ->transform(CLI::AsSizeValue(false));
  app.add_option("-b,--begin", begin, "smallest size")->transform(CLI::AsSizeValue(false));
  app.add_option("-e,--end", end, "largest size")->transform(CLI::AsSizeValue(false));
  app.add_option("-f,--factor", factor, "from one size to the next")->check(CLI::Range(2, 1024));
  app.add_option("--dtype", dtype, "element type")->capture_default_str();
  app.add_option("--algorithm", options.algorithm, "cohort's algorithm")->capture_default_str();
  app.add_option("--buffer", options.buffers,
                 "private, shared: the communicator's own memory (Communicator::Allocate, where "
                 "gradients lie), or both in turns, the first is what the ratios are to; default: "
                 "shared,private over shm and hierarchical, else private")
      ->delimiter(',')
      ->check(CLI::IsMember({"private", "shared"}));
  app.add_option("--mpi-implementation", options.mpi_implementation,
                 "mpi: cohort (ours over MPI messages) or mpi (MPI_Iallreduce and its kin)")
      ->check(CLI::IsMember({"cohort", "mpi"}))
      ->capture_default_str();
  app.add_option("--peer", options.peers, "openmpi (each of its configurations), gloo")
      ->delimiter(',')
      ->check(CLI::IsMember({"openmpi", "gloo"}));
  app.add_option(
         "--limit", options.limits,
         "memory (the same loads and stores without a peer), handover (one store and one load "
         "between cores; allreduce up to 64 KiB), loopback (the same bytes as raw TCP "
         "streams); without --peer, the one that fits the transport")
      ->delimiter(',')
      ->check(CLI::IsMember({"memory", "handover", "loopback"}));
  app.add_option("--rounds", options.rounds, "turns of each implementation")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "measured for each implementation and size")
      ->check(CLI::Range(0.001, 600.0))
      ->capture_default_str();
  app.add_option("--timeout", timeout, "seconds, of starting and of one turn")
      ->check(CLI::Range(1, 3600))
      ->capture_default_str();
  app.add_flag("--no-pin", no_pin, "leave ranks to the scheduler instead of one core each");
  app.add_flag("--no-read", no_read,
               "an operation lasts until it is done on every rank, instead of until each has read "
               "its result: what it takes of a link, for instance");
  app.add_option("--rendezvous-host", options.rendezvous_host,
                 "tcp: use the interface that routes to this host, instead of loopback");
  app.add_option("--rails", options.rails, "tcp: connections between two ranks; several in turns")
      ->delimiter(',')
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--exec-prefix", prefix,
                 "words before the command of a rank's process, {rank} and {host} replaced: "
                 "\"ip netns exec cohort{rank}\"; not for what mpirun starts");
  app.add_option("--ranks-per-host", options.ranks_per_host,
                 "hierarchical: so many consecutive ranks are one host's; {host} is rank / this")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--across", options.across, "hierarchical: the algorithm across hosts")
      ->capture_default_str();
  int late = 0;
  app.add_option("--late-ms", late,
                 "allreduce: the last rank comes so much later to each operation; tells what the "
                 "others' waiting takes of a core")
      ->check(CLI::Range(1, 10'000));
  app.add_flag("--json", options.json, "one JSON object a line");
  app.add_option("--join", options.folder)->group("");  // what rank processes are started with
  app.add_option("--group", options.group)->group("");
  app.add_option("--rank", options.rank)->group("");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const std::optional<DType> type = DTypeNamed(dtype);
  if (!type) {
    std::fprintf(stderr, "%s: no element type '%s'\n", argv[0], dtype.c_str());
    return 2;
  }
  options.dtype = *type;
  if (options.buffers.empty()) {
    options.buffers = options.transport == "shm" || options.transport == "hierarchical"
                          ? std::vector<std::string>{"shared", "private"}
                          : std::vector<std::string>{"private"};
  }
  options.timeout = std::chrono::seconds(timeout);
  options.late = std::chrono::milliseconds(late);
  if (late > 0 && (options.operation != Operation::kAllReduce || options.ranks < 2)) {
    std::fprintf(stderr, "%s: --late-ms is for allreduce, of 2 ranks or more\n", argv[0]);
    return 2;
  }
  if (late > 0 && options.folder.empty() && options.transport == "local" &&
      std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr && std::getenv("PMI_SIZE") == nullptr) {
    std::fprintf(stderr, "%s: --late-ms needs ranks that are processes: --transport shm, tcp\n",
                 argv[0]);
    return 2;
  }
  if (options.across != "auto" &&
      (options.transport != "hierarchical" || options.ranks_per_host == 1 ||
       options.ranks_per_host >= options.ranks)) {
    std::fprintf(stderr,
                 "%s: --across is for --transport hierarchical with several hosts of several ranks "
                 "(--ranks 4 --ranks-per-host 2)\n",
                 argv[0]);
    return 2;
  }
  options.pin = !no_pin;
  options.read = !no_read;
  std::istringstream words(prefix);
  for (std::string part; words >> part;) {
    options.exec_prefix.push_back(part);
  }
  if (options.sizes.empty()) {
    for (std::int64_t bytes = std::max<std::int64_t>(begin, 1); bytes <= end; bytes *= factor) {
      options.sizes.push_back(bytes);
    }
  }
  const bool none = std::any_of(options.sizes.begin(), options.sizes.end(),
                                [](std::int64_t bytes) { return bytes < 1; });
  if (none || options.sizes.empty()) {
    std::fprintf(stderr, "%s: %s\n", argv[0],
                 none ? "--sizes are of 1 byte or more" : "--begin is more than --end");
    return 2;
  }
  if (options.peers.empty() && options.limits.empty()) {
    options.limits.emplace_back(
        options.transport == "tcp" || options.transport == "hierarchical" ? "loopback" : "memory");
  }
  return std::nullopt;
}

}  // namespace cohort::bench
