// The backends whose ranks can be threads of one process.
#include <cohort/comm/local.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>

#include "conformance/communicator_conformance.h"
#include "testing/memory_store.h"
#include "testing/run_ranks.h"

namespace cohort::testing {
namespace {

std::vector<Status> RunLocal(int size, const CommunicatorOptions& options,
                             const std::function<Status(Communicator&)>& fn) {
  std::vector<std::unique_ptr<Communicator>> communicators = MakeLocalCommunicators(size, options);
  return RunRanks(size, [&](int rank) {
    const std::unique_ptr<Communicator> mine =
        std::move(communicators[static_cast<std::size_t>(rank)]);
    return fn(*mine);
  });
}

// Every rank maps the others' memory, as processes do.
std::vector<Status> RunShm(int size, const CommunicatorOptions& options,
                           const std::function<Status(Communicator&)>& fn) {
  MemoryStore store;
  return RunRanks(size, [&](int rank) -> Status {
    COHORT_ASSIGN_OR_RETURN(
        const std::unique_ptr<Communicator> mine,
        MakeShmCommunicator(rank, size, store, "job", {.connect_timeout = std::chrono::seconds(20)},
                            options));
    return fn(*mine);
  });
}

std::vector<Status> RunTcp(int size, const CommunicatorOptions& options,
                           const std::function<Status(Communicator&)>& fn) {
  MemoryStore store;
  return RunRanks(size, [&](int rank) -> Status {
    COHORT_ASSIGN_OR_RETURN(
        const std::unique_ptr<Communicator> mine,
        MakeTcpCommunicator(rank, size, store, "job", {.connect_timeout = std::chrono::seconds(20)},
                            options));
    return fn(*mine);
  });
}

std::vector<CommunicatorCase> Cases(const std::string& name, const RunGroup& run, int least) {
  std::vector<CommunicatorCase> cases;
  for (int size = least; size <= 9; ++size) {
    cases.push_back({name, run, size, 64});
  }
  for (const int size : {2, 3, 4}) {
    cases.push_back({name, run, size, 0});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Local, CommunicatorConformance,
                         ::testing::ValuesIn(Cases("local", RunLocal, 1)), CommunicatorCaseName);
INSTANTIATE_TEST_SUITE_P(Local, CommunicatorFailureConformance,
                         ::testing::ValuesIn(Cases("local", RunLocal, 2)), CommunicatorCaseName);

INSTANTIATE_TEST_SUITE_P(Shm, CommunicatorConformance, ::testing::ValuesIn(Cases("shm", RunShm, 1)),
                         CommunicatorCaseName);
INSTANTIATE_TEST_SUITE_P(Shm, CommunicatorFailureConformance,
                         ::testing::ValuesIn(Cases("shm", RunShm, 2)), CommunicatorCaseName);

INSTANTIATE_TEST_SUITE_P(Tcp, CommunicatorConformance, ::testing::ValuesIn(Cases("tcp", RunTcp, 1)),
                         CommunicatorCaseName);
INSTANTIATE_TEST_SUITE_P(Tcp, CommunicatorFailureConformance,
                         ::testing::ValuesIn(Cases("tcp", RunTcp, 2)), CommunicatorCaseName);

}  // namespace
}  // namespace cohort::testing
