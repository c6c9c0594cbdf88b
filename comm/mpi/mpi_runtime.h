// MpiRuntime: this process's one MPI library, and the lock under which it is called.

#pragma once

#include <cohort/core/status.h>
#include <mpi.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace cohort {

class MpiRuntime {
 public:
  // Initialises MPI if nobody has. Owners: every transport; the last one to go finalises MPI if it
  // was initialised here. FailedPrecondition if MPI was finalised already or its thread level is
  // too low.
  static Result<std::shared_ptr<MpiRuntime>> Get();
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  // MPI_THREAD_SERIALIZED: one call at a time in the whole process.
  std::mutex& mutex() { return mutex_; }
  // Memory that MPI may still touch: keeps it as long as MPI runs. Needs the lock.
  void Keep(std::vector<std::byte> memory) { kept_.push_back(std::move(memory)); }
  // The program may finalise MPI before its communicators are gone; then nothing is called any
  // more. Needs no lock.
  static bool Finalized();
  static Status Check(int code, const char* what);

 private:
  explicit MpiRuntime(bool initialized_here) : initialized_here_(initialized_here) {}

  const bool initialized_here_;
  std::mutex mutex_;
  std::vector<std::vector<std::byte>> kept_;  // guarded by mutex_
};

}  // namespace cohort
