// One process of a job under mpirun, for mpi_process_test.
//
//   mpi_task FOLDER TIMEOUT_MS WHAT
//
// Makes a communicator and all-reduces until that fails; ends with the status's exit code. Of all
// waits TIMEOUT_MS is the deadline. Writes FOLDER/pid.RANK, and FOLDER/begun.RANK when the third
// all-reduce is done. WHAT:
//
//   reduces     no more than that
//   absent      initialises MPI and makes no communicator
//   stops       stops itself (SIGSTOP) when it is to duplicate MPI_COMM_WORLD
//   single      initialises MPI itself, with MPI_THREAD_SINGLE
#include <cohort/comm/mpi.h>
#include <mpi.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

namespace {

bool stops = false;

void StopIfAsked() {
  if (stops) {
    ::raise(SIGSTOP);
  }
}

}  // namespace

// In place of MPI's: by whichever of them the communicator is made.
extern "C" {
int MPI_Comm_dup(MPI_Comm comm, MPI_Comm* made) {
  StopIfAsked();
  return PMPI_Comm_dup(comm, made);
}
int MPI_Comm_idup(MPI_Comm comm, MPI_Comm* made, MPI_Request* request) {
  StopIfAsked();
  return PMPI_Comm_idup(comm, made, request);
}
}

namespace {

using namespace cohort;  // NOLINT

Status Run(const std::string& folder, std::chrono::milliseconds timeout, const std::string& what) {
  const auto write = [&](const std::string& name, long long number) {
    std::ofstream(folder + "/" + name + ".draft") << number << "\n";
    std::rename((folder + "/" + name + ".draft").c_str(), (folder + "/" + name).c_str());
  };
  const char* const open_mpi = std::getenv("OMPI_COMM_WORLD_RANK");
  const std::string rank = open_mpi != nullptr ? open_mpi : std::getenv("PMI_RANK");
  write("pid." + rank, ::getpid());
  if (what == "absent" || what == "single") {
    int level = MPI_THREAD_SINGLE;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SINGLE, &level);
    while (what == "absent") {
      ::pause();
    }
  }
  stops = what == "stops";
  CommunicatorOptions options;
  options.timeout = timeout;
  options.peer_name = [](int r) { return "worker:" + std::to_string(r); };
  const Result<std::unique_ptr<Communicator>> made =
      MakeMpiCommunicator({.connect_timeout = timeout}, options);
  if (!made.ok()) {
    if (what == "single") {
      MPI_Finalize();
    }
    return made.status();
  }
  Communicator& comm = *made.value();
  std::vector<float> values(4'000'000, 1.0F);
  for (int step = 1;; ++step) {
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                            comm.AllReduce(std::span(values), ReduceOp::kMax, {.name = "x"}));
    COHORT_RETURN_IF_ERROR(work->Wait());
    if (step == 3) {
      write("begun." + rank, step);
    }
  }
}

}  // namespace

int main(int /*argc*/, char** argv) {
  const Status status = Run(argv[1], std::chrono::milliseconds(std::atoi(argv[2])), argv[3]);
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return ExitCode(status);
}
