// One rank as a process of its own, for collective_process_test and fault_run_test.
//
//   collective_task TRANSPORT RANK SIZE FOLDER TIMEOUT_MS CONNECT_MS STEPS [name=value ...]
//
// All-reduces STEPS times, says "step N" after each, and ends with the status's exit code, having
// said how long the operation that failed was waited for. FOLDER is the rendezvous. Flight records
// go to FOLDER/flight, on SIGUSR1 too. TRANSPORT is tcp, shm, hierarchical (as if two ranks shared
// a host), or under mpirun mpi, where RANK and SIZE mean nothing.
//
//   algorithm=auto   of the all-reduces; mpi: MPI's own
//   count=500000     elements
//   mixed=1          other collectives in turn with the all-reduces
//   stop_after=N     the process stops itself (SIGSTOP) after step N
//   log=1            what it says goes to FOLDER/log.RANK too; and the number of the last step
//                    that is done, in eight bytes, to FOLDER/done.RANK
//   private=1        the buffer is in memory that the communicator has not allocated
//   linger=1         after a failure: writes it to FOLDER/failed.RANK and waits to be killed
#include <cohort/cluster/folder_store.h>
#include <cohort/comm/hierarchical.h>
#include <cohort/comm/mpi.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace cohort::testing {
namespace {

using std::chrono::milliseconds;

struct Settings {
  std::string transport;
  int rank = 0;
  int size = 1;
  std::string folder;
  milliseconds timeout{0};
  milliseconds connect{0};
  int steps = 0;
  std::map<std::string, std::string> more;

  std::string Text(const std::string& name, const std::string& otherwise) const {
    const auto it = more.find(name);
    return it == more.end() ? otherwise : it->second;
  }
  int Number(const std::string& name, int otherwise) const {
    return std::stoi(Text(name, std::to_string(otherwise)));
  }
};

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

Result<std::unique_ptr<Communicator>> Connect(const Settings& s, KeyValueStore& store) {
  CommunicatorOptions options;
  options.timeout = s.timeout;
  options.peer_name = [](int r) { return "worker:" + std::to_string(r); };
  options.flight_folder = s.folder + "/flight";
  if (s.transport == "mpi") {
    return MakeMpiCommunicator(
        {.implementation = s.Text("algorithm", "auto") == "mpi" ? "mpi" : "cohort",
         .connect_timeout = s.connect},
        options);
  }
  if (s.transport == "shm") {
    return MakeShmCommunicator(s.rank, s.size, store, "job", {.connect_timeout = s.connect},
                               options);
  }
  if (s.transport == "hierarchical") {
    HierarchicalOptions hierarchical;
    hierarchical.tcp = {.connect_timeout = s.connect};
    hierarchical.host = "host " + std::to_string(s.rank / 2);
    return MakeHierarchicalCommunicator(s.rank, s.size, store, "job", hierarchical, options);
  }
  return MakeTcpCommunicator(s.rank, s.size, store, "job", {.connect_timeout = s.connect}, options);
}

// By which `kind` goes where all-reduces go by `algorithm`: that, or what is like it.
std::string AlgorithmOf(const Communicator& comm, OperationKind kind,
                        const std::string& algorithm) {
  const std::vector<std::string_view> names = comm.algorithms(kind);
  const bool halves = algorithm == "halving_doubling" || algorithm == "recursive_doubling";
  for (const std::string_view name : names) {
    if (name == algorithm || (halves && (name == "recursive_halving" || name == "bruck"))) {
      return std::string(name);
    }
  }
  return "auto";
}

Communicator::Pending Start(Communicator& comm, int step, const Settings& s,
                            std::span<float> values, std::vector<float>& all) {
  std::string algorithm = s.Text("algorithm", "auto");
  algorithm = algorithm == "mpi" ? "auto" : algorithm;  // the implementation, see Connect
  const auto named = [&](OperationKind kind) -> CollectiveOptions {
    return {.name = "gradients", .algorithm = AlgorithmOf(comm, kind, algorithm)};
  };
  switch (s.Number("mixed", 0) == 0 ? 0 : step % 6) {
    case 2:
      return comm.Broadcast(values, step % comm.size(), named(OperationKind::kBroadcast));
    case 3:
      all.resize(values.size() * static_cast<std::size_t>(comm.size()));
      return comm.AllGather(values, std::span(all), named(OperationKind::kAllGather));
    case 4:
      all.resize(values.size() * static_cast<std::size_t>(comm.size()));
      return comm.ReduceScatter(std::span(all), values, ReduceOp::kSum,
                                named(OperationKind::kReduceScatter));
    case 5:
      return comm.Barrier({.name = "gradients"});
    default:
      return comm.AllReduce(values, ReduceOp::kSum, {.name = "gradients", .algorithm = algorithm});
  }
}

Status Train(Communicator& comm, const Settings& s) {
  std::ofstream log;
  std::ofstream done;
  if (s.Number("log", 0) != 0) {
    log.open(s.folder + "/log." + std::to_string(comm.rank()));
    done.open(s.folder + "/done." + std::to_string(comm.rank()), std::ios::binary);
  }
  const auto count = static_cast<std::size_t>(s.Number("count", 500'000));
  const std::size_t bytes = count * sizeof(float);
  const bool own = s.Number("private", 0) != 0;
  COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> memory,
                          own ? AllocateMemory(bytes) : comm.Allocate(bytes));
  const std::span<float> values(reinterpret_cast<float*>(memory->bytes().data()), count);
  std::vector<float> all;
  for (int step = 1; step <= s.steps; ++step) {
    const Deadline begun = std::chrono::steady_clock::now();
    Communicator::Pending work = Start(comm, step, s, values, all);
    const Status status = work.ok() ? work.value()->Wait() : work.status();
    if (!status.ok()) {
      const auto waited =
          std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - begun);
      Say("waited " + std::to_string(waited.count()) + " ms.");
      if (s.Number("linger", 0) != 0) {
        const std::string path = s.folder + "/failed." + std::to_string(comm.rank());
        std::ofstream(path + ".draft") << waited.count() << "\n" << status.ToString() << "\n";
        std::rename((path + ".draft").c_str(), path.c_str());
        for (;;) {
          ::pause();
        }
      }
      return status;
    }
    Say("step " + std::to_string(step));
    if (log.is_open() && step <= 100) {
      log << "step " << step << std::endl;
    }
    if (done.is_open()) {
      const std::int64_t number = step;
      done.seekp(0).write(reinterpret_cast<const char*>(&number), sizeof(number)).flush();
    }
    if (step == s.Number("stop_after", 0)) {
      ::raise(SIGSTOP);
    }
  }
  return {};
}

Status Run(const Settings& s) {
  // Threads inherit this: the signal waits for the one that asks for it.
  sigset_t usr1;
  ::sigemptyset(&usr1);
  ::sigaddset(&usr1, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &usr1, nullptr);
  FolderStore store(s.folder);
  COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> comm, Connect(s, store));
  std::ofstream(s.folder + "/pid." + std::to_string(comm->rank())) << ::getpid() << "\n";
  const std::jthread dumper([&](const std::stop_token& stop) {
    const timespec slice = {0, 20'000'000};
    while (!stop.stop_requested()) {
      if (::sigtimedwait(&usr1, nullptr, &slice) == SIGUSR1) {
        const Result<std::string> path = comm->DumpFlightRecord("SIGUSR1");
        Say("dumped " + (path.ok() ? *path : path.status().ToString()));
      }
    }
  });
  return Train(*comm, s);
}

}  // namespace
}  // namespace cohort::testing

int main(int argc, char** argv) {
  using std::chrono::milliseconds;
  cohort::testing::Settings s = {argv[1],
                                 std::atoi(argv[2]),
                                 std::atoi(argv[3]),
                                 argv[4],
                                 milliseconds(std::atoi(argv[5])),
                                 milliseconds(std::atoi(argv[6])),
                                 std::atoi(argv[7]),
                                 {}};
  for (int i = 8; i < argc; ++i) {
    const std::string setting = argv[i];
    const std::size_t equals = setting.find('=');
    s.more[setting.substr(0, equals)] = setting.substr(equals + 1);
  }
  const cohort::Status status = cohort::testing::Run(s);
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return cohort::ExitCode(status);
}
