// MpiRuntime: this process's one MPI library, and where it is called.
//
// A thread of its own initialises and finalises MPI, which wants both from one thread. With
// MPI_THREAD_SERIALIZED it sleeps in between, and whoever drives a communicator calls MPI itself,
// one at a time. With MPI_THREAD_FUNNELED, the most that some builds of MPI have, it makes every
// call, and who wants one waits for it: the same results, a hand-over for each look at MPI.
//
// MPI_Finalize waits for every process of the job, so it is waited for only so long: one that has
// stopped keeps nobody from ending. The process then ends in the middle of it, which mpirun counts
// as a failure.

#pragma once

#include <cohort/core/clock.h>
#include <cohort/core/status.h>
#include <mpi.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <future>
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
  // initialised here, and waits for that as LeaveWithin says. FailedPrecondition if MPI was
  // finalised already, or the program initialised it with too low a thread level.
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
  // For how long the other processes are waited for at the end, from now on: long where all goes
  // well, since they may have much to do before they end; not where one may never come.
  void LeaveWithin(Duration patience) { patience_ = patience; }
  // The program may finalise MPI before its communicators are gone; then nothing is called any
  // more. Needs no lock.
  static bool Finalized();
  static Status Check(int code, const char* what);
  // MPI cannot be waited for together with anything else, so whoever waits looks again and again:
  // for how long it may sleep after having waited for so long, without losing much by it.
  static Duration Nap(Duration waited);
  // A number for a group of this process's ranks; never the same twice.
  int NewGroup() { return ++groups_; }

 private:
  struct Job {
    const std::function<void()>* run = nullptr;
    std::exception_ptr error;
    bool soon = false;               // after the one before
    std::atomic<bool> done = false;  // the last that is stored here
  };

  MpiRuntime() = default;
  Status Initialize(int level);
  void RunThere(const std::function<void()>& f);
  void Serve();

  std::atomic<Duration> patience_ = Duration(std::chrono::minutes(5));
  std::atomic<int> groups_ = 0;
  bool funneled_ = false;
  std::mutex mutex_;
  std::vector<std::vector<std::byte>> kept_;  // guarded by mutex_

  std::mutex jobs_mutex_;
  std::condition_variable jobs_changed_;  // for thread_
  std::condition_variable job_done_;      // for who waits
  std::deque<Job*> jobs_;                 // guarded by jobs_mutex_
  std::atomic<int> waiting_ = 0;          // jobs in jobs_, for a look without the mutex
  Deadline last_done_;                    // guarded by jobs_mutex_
  bool stopping_ = false;                 // guarded by jobs_mutex_
  std::future<void> served_;              // thread_ looks at this object no more
  std::future<void> finalized_;
  std::thread thread_;  // not joinable where the program initialised MPI
};

}  // namespace cohort
