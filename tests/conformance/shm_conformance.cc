// The communicator suite with one process for each rank, over shared memory:
//
//   shm_conformance RANKS [gtest flags]
//
// forks before any thread exists; each process runs the whole suite as its rank, and they meet for
// each test in a folder. Exit code 0: all ranks passed.
#include <cohort/cluster/folder_store.h>
#include <cohort/comm/shm.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "conformance/communicator_conformance.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

struct Place {
  int rank = 0;
  int ranks = 1;
  std::string folder;
};

Place& ThisPlace() {
  static Place place;
  return place;
}

std::vector<Status> RunHere(int size, const CommunicatorOptions& options,
                            const std::function<Status(Communicator&)>& fn) {
  static int groups = 0;  // every rank makes the same groups in the same order
  FolderStore store(ThisPlace().folder);
  const std::string prefix = "group" + std::to_string(groups++);
  const auto make = [&](const CommunicatorOptions& o) {
    return MakeShmCommunicator(ThisPlace().rank, size, store, prefix,
                               {.connect_timeout = std::chrono::seconds(30)}, o);
  };
  return {RunGenerations(options, make, fn)};
}

std::vector<CommunicatorCase> Cases() {
  return {{"shm_process", RunHere, ThisPlace().ranks, 64},
          {"shm_process", RunHere, ThisPlace().ranks, 0}};
}
std::vector<CommunicatorCase> FailureCases() {
  return ThisPlace().ranks > 1 ? Cases() : std::vector<CommunicatorCase>();
}

INSTANTIATE_TEST_SUITE_P(ShmProcesses, CommunicatorConformance, ::testing::ValuesIn(Cases()),
                         CommunicatorCaseName);
INSTANTIATE_TEST_SUITE_P(ShmProcesses, CommunicatorFailureConformance,
                         ::testing::ValuesIn(FailureCases()), CommunicatorCaseName);

}  // namespace

// The exit codes of the other ranks' processes; 0 if all are.
int ForkRanks(int ranks, std::vector<pid_t>& children) {
  for (int rank = 1; rank < ranks; ++rank) {
    const pid_t child = ::fork();
    if (child == 0) {
      ThisPlace().rank = rank;
      children.clear();
      return rank;
    }
    children.push_back(child);
  }
  return 0;
}

}  // namespace cohort::testing

int main(int argc, char** argv) {
  using cohort::testing::ThisPlace;
  const cohort::testing::TempDir folder;
  ThisPlace().ranks = argc > 1 ? std::max(1, std::atoi(argv[1])) : 2;
  ThisPlace().folder = folder.path();
  std::vector<pid_t> children;
  cohort::testing::ForkRanks(ThisPlace().ranks, children);
  ::testing::InitGoogleTest(&argc, argv);
  int code = RUN_ALL_TESTS();
  if (ThisPlace().rank > 0) {
    std::fflush(nullptr);
    ::_exit(code);  // the folder is the first process's
  }
  for (const pid_t child : children) {
    int status = 0;
    if (::waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
      std::fprintf(stderr, "a rank's process ended with status %d\n", status);
      code = 1;
    }
  }
  return code;
}
