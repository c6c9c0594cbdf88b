// MpiRuntime: this process's one MPI library, and where it is called.
//
// A thread of its own initialises and finalises MPI, which wants both from one thread. With
// MPI_THREAD_SERIALIZED it sleeps in between, and whoever drives a communicator calls MPI itself,
// one at a time. With MPI_THREAD_FUNNELED, the most that some builds of MPI have, it makes every
// call, and who wants one waits for it: the same results, a hand-over for each look at MPI.

#pragma once

#include <cohort/core/status.h>
#include <mpi.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace cohort {

class MpiRuntime {
 public:
  // Initialises MPI if nobody has, asking for `level`: MPI_THREAD_SERIALIZED, or _FUNNELED for
  // whoever wants no more. Owners: every transport; the last one to go finalises MPI if it was
  // initialised here. FailedPrecondition if MPI was finalised already, or the program initialised
  // it with too low a thread level.
  static Result<std::shared_ptr<MpiRuntime>> Get(int level = MPI_THREAD_SERIALIZED);
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  // Runs f() on a thread that may call MPI, and returns what it returns. Not with the lock held; f
  // takes the lock, and does not block. May be nested.
  template <typename F>
  auto Funnel(F&& f) -> decltype(f()) {
    if (!funneled_ || std::this_thread::get_id() == thread_.get_id()) {
      return f();
    }
    if constexpr (std::is_void_v<decltype(f())>) {
      RunThere([&] { f(); });
    } else {
      std::optional<decltype(f())> result;
      RunThere([&] { result.emplace(f()); });
      return std::move(*result);
    }
  }
  // Funnel with the lock held: for calls that stand alone.
  template <typename F>
  auto Call(F&& f) -> decltype(f()) {
    return Funnel([&] {
      const std::lock_guard lock(mutex_);
      return f();
    });
  }
  // One call at a time in the whole process.
  std::mutex& mutex() { return mutex_; }
  // Memory that MPI may still touch: keeps it as long as MPI runs. Needs the lock.
  void Keep(std::vector<std::byte> memory) { kept_.push_back(std::move(memory)); }
  // The program may finalise MPI before its communicators are gone; then nothing is called any
  // more. Needs no lock.
  static bool Finalized();
  static Status Check(int code, const char* what);

 private:
  struct Job {
    const std::function<void()>* run = nullptr;
    std::exception_ptr error;
    std::atomic<bool> done = false;  // the last that is stored here
  };

  MpiRuntime() = default;
  Status Initialize(int level);
  void RunThere(const std::function<void()>& f);
  void Serve();

  bool funneled_ = false;
  std::mutex mutex_;
  std::vector<std::vector<std::byte>> kept_;  // guarded by mutex_

  std::mutex jobs_mutex_;
  std::condition_variable jobs_changed_;  // for thread_
  std::condition_variable job_done_;      // for who waits
  std::deque<Job*> jobs_;                 // guarded by jobs_mutex_
  std::atomic<int> waiting_ = 0;          // jobs in jobs_, for a look without the mutex
  bool stopping_ = false;                 // guarded by jobs_mutex_
  std::thread thread_;                    // not joinable where the program initialised MPI
};

}  // namespace cohort
