// The communicator suite over MPI_COMM_WORLD: one process of `mpirun` each, all of them run every
// test.
#include <cohort/comm/mpi.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include "conformance/communicator_conformance.h"

namespace cohort::testing {
namespace {

RunGroup RunMpi(const std::string& implementation) {
  return [implementation](int /*size*/, const CommunicatorOptions& options,
                          const std::function<Status(Communicator&)>& fn) -> std::vector<Status> {
    Result<std::unique_ptr<Communicator>> mine =
        MakeMpiCommunicator({.implementation = implementation}, options);
    if (!mine.ok()) {
      return {mine.status()};
    }
    return {fn(*mine.value())};
  };
}

std::vector<CommunicatorCase> Cases(int least) {
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (size < least) {
    return {};
  }
  return {{"mpi", RunMpi("cohort"), size, 64},
          {"mpi", RunMpi("cohort"), size, 0},
          {"mpi_native", RunMpi("mpi"), size, 0}};
}

INSTANTIATE_TEST_SUITE_P(Mpi, CommunicatorConformance, ::testing::ValuesIn(Cases(1)),
                         CommunicatorCaseName);
INSTANTIATE_TEST_SUITE_P(Mpi, CommunicatorFailureConformance, ::testing::ValuesIn(Cases(2)),
                         CommunicatorCaseName);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorFailureConformance);

}  // namespace
}  // namespace cohort::testing

int main(int argc, char** argv) {
  int level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  ::testing::InitGoogleTest(&argc, argv);
  const int result = RUN_ALL_TESTS();
  MPI_Finalize();
  return result;
}
