#include "mpi/mpi_runtime.h"

#include <string>

namespace cohort {

Result<std::shared_ptr<MpiRuntime>> MpiRuntime::Get() {
  // MPI is one per process, and so is the count of who uses it.
  static std::mutex mutex;
  static std::weak_ptr<MpiRuntime> current;
  const std::lock_guard lock(mutex);
  if (std::shared_ptr<MpiRuntime> runtime = current.lock()) {
    return runtime;
  }
  if (Finalized()) {
    return FailedPrecondition(
        "MPI was finalised in this process and cannot be started again [call MPI_Init_thread in "
        "the program to make communicators one after the other]");
  }
  int initialized = 0;
  MPI_Initialized(&initialized);
  int level = MPI_THREAD_SINGLE;
  if (initialized == 0) {
    COHORT_RETURN_IF_ERROR(
        Check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &level), "MPI_Init_thread"));
  } else {
    MPI_Query_thread(&level);
  }
  if (level < MPI_THREAD_SERIALIZED) {
    return FailedPrecondition(
        "MPI runs with a thread level below MPI_THREAD_SERIALIZED [initialise it with "
        "MPI_Init_thread(..., MPI_THREAD_SERIALIZED, ...)]");
  }
  std::shared_ptr<MpiRuntime> runtime(new MpiRuntime(initialized == 0));
  current = runtime;
  return runtime;
}

MpiRuntime::~MpiRuntime() {
  if (initialized_here_ && !Finalized()) {
    MPI_Finalize();
  }
}

bool MpiRuntime::Finalized() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  return finalized != 0;
}

Status MpiRuntime::Check(int code, const char* what) {
  if (code == MPI_SUCCESS) {
    return {};
  }
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return Unavailable(std::string(what) + ": " +
                     std::string(text, static_cast<std::size_t>(length)));
}

}  // namespace cohort
