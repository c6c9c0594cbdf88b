// The communicator suite over MPI_COMM_WORLD: one process of `mpirun` each, all of them run every
// test.
//
//   mpi_conformance [--funneled] LIBRARY
//
// LIBRARY: what MPI must be, "Open MPI" or "MPICH". --funneled: cohort initialises MPI, with
// MPI_THREAD_FUNNELED only; otherwise this program does, with MPI_THREAD_SERIALIZED.
#include <cohort/comm/mpi.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdio>
#include <memory>
#include <string>

#include "conformance/communicator_conformance.h"

namespace cohort::testing {
namespace {

struct Job {  // of this process
  bool funneled = false;
  int size = 1;
};
Job& ThisJob() {
  static Job job;
  return job;
}

RunGroup RunMpi(const std::string& implementation) {
  return [implementation](int /*size*/, const CommunicatorOptions& options,
                          const std::function<Status(Communicator&)>& fn) -> std::vector<Status> {
    Result<std::unique_ptr<Communicator>> mine = MakeMpiCommunicator(
        {.implementation = implementation, .funneled = ThisJob().funneled}, options);
    if (!mine.ok()) {
      return {mine.status()};
    }
    return {fn(*mine.value())};
  };
}

std::vector<CommunicatorCase> Cases(int least) {
  const int size = ThisJob().size;
  if (size < least) {
    return {};
  }
  return {{"mpi", RunMpi("cohort"), size, 64},
          {"mpi", RunMpi("cohort"), size, 0},
          {"mpi_native", RunMpi("mpi"), size, 0, /*deterministic=*/false}};
}

INSTANTIATE_TEST_SUITE_P(Mpi, CommunicatorConformance, ::testing::ValuesIn(Cases(1)),
                         CommunicatorCaseName);
INSTANTIATE_TEST_SUITE_P(Mpi, CommunicatorFailureConformance, ::testing::ValuesIn(Cases(2)),
                         CommunicatorCaseName);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorFailureConformance);

}  // namespace
}  // namespace cohort::testing

namespace cohort::testing {
namespace {

int Main(int argc, char** argv) {
  Job& job = ThisJob();
  job.funneled = argc > 2 && std::string(argv[argc - 2]) == "--funneled";
  const std::string library = argv[argc - 1];
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(version, &length);
  if (argc < 2 || std::string(version).rfind(library, 0) != 0) {
    std::fprintf(stderr, "this program has %s, not '%s'\n", version, library.c_str());
    return 1;
  }
  std::unique_ptr<Communicator> keep;  // cohort's MPI ends with its last communicator
  if (job.funneled) {
    keep = OrThrow(MakeMpiCommunicator({.funneled = true}));
    job.size = keep->size();
  } else {
    int level = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
    MPI_Comm_size(MPI_COMM_WORLD, &job.size);
  }
  ::testing::InitGoogleTest(&argc, argv);  // which asks for the cases
  const int result = RUN_ALL_TESTS();
  if (job.funneled) {
    keep.reset();
  } else {
    MPI_Finalize();
  }
  return result;
}

}  // namespace
}  // namespace cohort::testing

int main(int argc, char** argv) { return cohort::testing::Main(argc, argv); }
