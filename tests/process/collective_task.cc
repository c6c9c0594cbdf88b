// One rank of a TCP group as a process of its own, for collective_process_test.
//
//   collective_task RANK SIZE FOLDER TIMEOUT_MS CONNECT_MS STEPS [STOP_AFTER]
//
// All-reduces STEPS times, says "step N" after each, and ends with the status's exit code. FOLDER
// is the rendezvous: a file for each key. After step STOP_AFTER the process stops itself (SIGSTOP).
// Flight records go to FOLDER/flight, on SIGUSR1 too.
#include <cohort/comm/tcp.h>

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

namespace cohort {
namespace {

class FolderStore final : public KeyValueStore {
 public:
  explicit FolderStore(std::string folder) : folder_(std::move(folder)) {}

  Status Insert(const std::string& key, const std::string& value) override {
    const std::string draft = folder_ + "/draft." + std::to_string(::getpid());
    std::ofstream(draft) << value;
    const int result = ::link(draft.c_str(), Path(key).c_str());  // whole, or not at all
    const int error = errno;
    std::filesystem::remove(draft);
    return result == 0 ? OkStatus() : ErrnoStatus(error, key);
  }
  Result<std::string> Get(const std::string& key) override {
    std::ifstream file(Path(key));
    if (!file) {
      return NotFound(key);
    }
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  Result<std::string> Wait(const std::string& key, Deadline deadline) override {
    for (;;) {
      Result<std::string> value = Get(key);
      if (value.ok()) {
        return value;
      }
      if (std::chrono::steady_clock::now() >= deadline) {
        return DeadlineExceeded(key);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

 private:
  std::string Path(std::string key) const {
    for (char& c : key) {
      c = c == '/' ? '_' : c;
    }
    return folder_ + "/" + key;
  }

  const std::string folder_;
};

Status Run(int rank, int size, const std::string& folder, int timeout_ms, int connect_ms, int steps,
           int stop_after) {
  FolderStore store(folder);
  CommunicatorOptions options;
  options.timeout = std::chrono::milliseconds(timeout_ms);
  options.peer_name = [](int r) { return "worker:" + std::to_string(r); };
  options.flight_folder = folder + "/flight";
  // Threads inherit this: the signal waits for the one that asks for it.
  sigset_t usr1;
  ::sigemptyset(&usr1);
  ::sigaddset(&usr1, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &usr1, nullptr);
  COHORT_ASSIGN_OR_RETURN(
      const std::unique_ptr<Communicator> comm,
      MakeTcpCommunicator(rank, size, store, "job",
                          {.connect_timeout = std::chrono::milliseconds(connect_ms)}, options));
  std::jthread dumper([&](const std::stop_token& stop) {
    const timespec slice = {0, 20'000'000};
    while (!stop.stop_requested()) {
      if (::sigtimedwait(&usr1, nullptr, &slice) == SIGUSR1) {
        const Result<std::string> path = comm->DumpFlightRecord("SIGUSR1");
        std::printf("dumped %s\n", path.ok() ? path->c_str() : path.status().ToString().c_str());
        std::fflush(stdout);
      }
    }
  });
  std::vector<float> values(500'000);
  for (int step = 1; step <= steps; ++step) {
    COHORT_ASSIGN_OR_RETURN(
        const std::unique_ptr<Work> work,
        comm->AllReduce(std::span(values), ReduceOp::kSum, {.name = "gradients"}));
    COHORT_RETURN_IF_ERROR(work->Wait());
    std::printf("step %d\n", step);
    std::fflush(stdout);
    if (step == stop_after) {
      ::raise(SIGSTOP);
    }
  }
  return {};
}

}  // namespace
}  // namespace cohort

int main(int argc, char** argv) {
  const cohort::Status status =
      cohort::Run(std::atoi(argv[1]), std::atoi(argv[2]), argv[3], std::atoi(argv[4]),
                  std::atoi(argv[5]), std::atoi(argv[6]), argc > 7 ? std::atoi(argv[7]) : 0);
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return cohort::ExitCode(status);
}
