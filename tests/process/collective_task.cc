// One rank of a group as a process of its own, for collective_process_test.
//
//   collective_task TRANSPORT RANK SIZE FOLDER TIMEOUT_MS CONNECT_MS STEPS [STOP_AFTER]
//
// All-reduces STEPS times, says "step N" after each, and ends with the status's exit code. FOLDER
// is the rendezvous: a file for each key. After step STOP_AFTER the process stops itself (SIGSTOP).
// Flight records go to FOLDER/flight, on SIGUSR1 too.
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "testing/folder_store.h"

namespace cohort {
namespace {

Status Run(const std::string& transport, int rank, int size, const std::string& folder,
           int timeout_ms, int connect_ms, int steps, int stop_after) {
  testing::FolderStore store(folder);
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
      transport == "shm"
          ? MakeShmCommunicator(rank, size, store, "job",
                                {.connect_timeout = std::chrono::milliseconds(connect_ms)}, options)
          : MakeTcpCommunicator(rank, size, store, "job",
                                {.connect_timeout = std::chrono::milliseconds(connect_ms)},
                                options));
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
  COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> memory,
                          comm->Allocate(500'000 * sizeof(float)));
  const std::span<float> values(reinterpret_cast<float*>(memory->bytes().data()), 500'000);
  for (int step = 1; step <= steps; ++step) {
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                            comm->AllReduce(values, ReduceOp::kSum, {.name = "gradients"}));
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
      cohort::Run(argv[1], std::atoi(argv[2]), std::atoi(argv[3]), argv[4], std::atoi(argv[5]),
                  std::atoi(argv[6]), std::atoi(argv[7]), argc > 8 ? std::atoi(argv[8]) : 0);
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return cohort::ExitCode(status);
}
