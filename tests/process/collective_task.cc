// One rank as a process of its own, for collective_process_test and fault_run_test.
//
//   collective_task TRANSPORT RANK SIZE FOLDER TIMEOUT_MS CONNECT_MS STEPS [name=value ...]
//
// All-reduces STEPS times, says "step N" after each, and ends with the status's exit code, having
// said how long the operation that failed was waited for; Internal where a result is wrong. FOLDER
// is the rendezvous. Flight records go to FOLDER/flight, on SIGUSR1 too. TRANSPORT is tcp, shm,
// hierarchical (as if two ranks shared a host), or under mpirun mpi, where RANK and SIZE mean
// nothing.
//
//   algorithm=auto   of the all-reduces; mpi: MPI's own
//   count=500000     elements
//   mixed=1          all other operations in turn with the all-reduces
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
#include <cstdint>
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

// What a rank gives at place i in a step: whole numbers, so that sums are exact in any order, which
// differ from step to step and tell the ranks apart.
float Given(int rank, int step, std::size_t i) {
  const std::uint32_t mixed =
      static_cast<std::uint32_t>(i) * 2'654'435'761U + static_cast<std::uint32_t>(step) * 40'503U;
  return static_cast<float>(static_cast<int>(mixed >> 24 << rank));
}
float Summed(int ranks, int step, std::size_t i) {
  return Given(ranks, step, i) - Given(0, step, i);
}

// The operations, one a step, on values that it fills in and whose results it looks at.
class Exercise {
 public:
  Exercise(Communicator& comm, const Settings& s, std::span<float> values)
      : comm_(comm), algorithm_(s.Text("algorithm", "auto")), mine_(values) {
    algorithm_ = algorithm_ == "mpi" ? "auto" : algorithm_;  // the implementation, see Connect
    if (s.Number("mixed", 0) != 0) {
      all_.resize(values.size() * static_cast<std::size_t>(comm.size()));
      theirs_.resize(all_.size());
    }
  }

  // Internal where a result is wrong.
  Status Step(int step) {
    step_ = step;
    const int rank = comm_.rank();
    const int n = comm_.size();
    const int root = step % n;
    const std::size_t part = mine_.size();
    Fill(mine_);
    switch (all_.empty() ? 0 : step % 9) {
      case 2:
        COHORT_RETURN_IF_ERROR(
            Await([&] { return comm_.Broadcast(mine_, root, By(OperationKind::kBroadcast)); }));
        return Check("Broadcast", mine_, [&](std::size_t i) { return Given(root, step, i); });
      case 3:
        COHORT_RETURN_IF_ERROR(Await([&] {
          return comm_.AllGather(mine_, std::span(all_), By(OperationKind::kAllGather));
        }));
        return Check("AllGather", all_, [&](std::size_t i) {
          return Given(static_cast<int>(i / part), step, i % part);
        });
      case 4:
        Fill(all_);
        COHORT_RETURN_IF_ERROR(Await([&] {
          return comm_.ReduceScatter(std::span(all_), mine_, ReduceOp::kSum,
                                     By(OperationKind::kReduceScatter));
        }));
        return Check("ReduceScatter", mine_, [&](std::size_t i) {
          return Summed(n, step, static_cast<std::size_t>(rank) * part + i);
        });
      case 5:
        return Await([&] { return comm_.Barrier({.name = "gradients"}); });
      case 6:
        Fill(all_);
        COHORT_RETURN_IF_ERROR(Await([&] {
          return comm_.AllToAll(std::span(all_), std::span(theirs_), {.name = "gradients"});
        }));
        return Check("AllToAll", theirs_, [&](std::size_t i) {
          return Given(static_cast<int>(i / part), step,
                       static_cast<std::size_t>(rank) * part + i % part);
        });
      case 7:
        COHORT_RETURN_IF_ERROR(Await(
            [&] { return comm_.Reduce(mine_, ReduceOp::kSum, root, By(OperationKind::kReduce)); }));
        return rank == root ? CheckSums("Reduce") : OkStatus();
      case 8:
        return PassOn();
      default:
        COHORT_RETURN_IF_ERROR(Await([&] {
          return comm_.AllReduce(mine_, ReduceOp::kSum,
                                 {.name = "gradients", .algorithm = algorithm_});
        }));
        return CheckSums("AllReduce");
    }
  }
  // When the last operation was called.
  Deadline begun() const { return begun_; }

 private:
  template <typename F>
  Status Await(const F& call) {
    begun_ = std::chrono::steady_clock::now();
    const Communicator::Pending work = call();
    return work.ok() ? work.value()->Wait() : work.status();
  }
  CollectiveOptions By(OperationKind kind) const {
    return {.name = "gradients", .algorithm = AlgorithmOf(comm_, kind, algorithm_)};
  }
  // Each sends to the next rank, and receives from the one before.
  Status PassOn() {
    const int rank = comm_.rank();
    const int n = comm_.size();
    const int before = (rank + n - 1) % n;
    const std::span<float> arrived = std::span(theirs_).first(mine_.size());
    const auto send = [&] {
      return Await([&] { return comm_.Send(mine_, (rank + 1) % n, {.name = "gradients"}); });
    };
    if (rank % 2 == 0) {
      COHORT_RETURN_IF_ERROR(send());
    }
    COHORT_RETURN_IF_ERROR(
        Await([&] { return comm_.Receive(arrived, before, {.name = "gradients"}); }));
    if (rank % 2 != 0) {
      COHORT_RETURN_IF_ERROR(send());
    }
    return Check("Receive", arrived, [&](std::size_t i) { return Given(before, step_, i); });
  }
  void Fill(std::span<float> values) const {
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = Given(comm_.rank(), step_, i);
    }
  }
  Status CheckSums(const std::string& operation) const {
    return Check(operation, mine_, [&](std::size_t i) { return Summed(comm_.size(), step_, i); });
  }
  template <typename F>
  Status Check(const std::string& operation, std::span<const float> values,
               const F& expected) const {
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i] != expected(i)) {
        return Internal("wrong result of " + operation + " in step " + std::to_string(step_) +
                        ": element " + std::to_string(i) + " is " + std::to_string(values[i]) +
                        ", not " + std::to_string(expected(i)));
      }
    }
    return {};
  }

  Communicator& comm_;
  std::string algorithm_;
  const std::span<float> mine_;
  std::vector<float> all_, theirs_;  // of all ranks
  int step_ = 0;
  Deadline begun_;
};

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
  Exercise exercise(comm, s, values);
  for (int step = 1; step <= s.steps; ++step) {
    const Status status = exercise.Step(step);
    if (!status.ok()) {
      const auto waited = std::chrono::duration_cast<milliseconds>(
          std::chrono::steady_clock::now() - exercise.begun());
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
