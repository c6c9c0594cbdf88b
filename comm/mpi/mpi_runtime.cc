#include "mpi/mpi_runtime.h"

#include <cohort/core/thread_pool.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <string>

namespace cohort {
namespace {

constexpr auto kSpin =
    std::chrono::microseconds(50);  // both sides of a hand-over, before they sleep,
constexpr auto kSoon = 4 * kSpin;   // where the last was not longer ago

std::atomic<bool> initialized_here = false;  // this process's MPI
std::atomic<bool> leaving = false;           // finalises it

template <typename F>
bool SpinUntil(F done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  while (!done()) {
    if (std::chrono::steady_clock::now() >= end) {
      return false;
    }
    ::sched_yield();
  }
  return true;
}

}  // namespace

Result<std::shared_ptr<MpiRuntime>> MpiRuntime::Get(int level) {
  // MPI is one per process, and so is the count of who uses it.
  static std::mutex mutex;
  static std::weak_ptr<MpiRuntime> current;
  const std::lock_guard lock(mutex);
  if (std::shared_ptr<MpiRuntime> runtime = current.lock()) {
    return runtime;
  }
  if (Finalized() || initialized_here) {  // by a runtime that has gone, or goes now
    return FailedPrecondition(
        "MPI was finalised in this process and cannot be started again [call MPI_Init_thread in "
        "the program to make communicators one after the other]");
  }
  std::shared_ptr<MpiRuntime> runtime(new MpiRuntime());
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized == 0) {
    COHORT_RETURN_IF_ERROR(runtime->Initialize(level));
  } else {
    int provided = MPI_THREAD_SINGLE;
    MPI_Query_thread(&provided);
    if (provided < MPI_THREAD_SERIALIZED) {
      return FailedPrecondition(
          "the program initialised MPI with a thread level below MPI_THREAD_SERIALIZED, so that "
          "only its own thread may call it [initialise it with MPI_Init_thread(..., "
          "MPI_THREAD_SERIALIZED, ...), or leave that to cohort, which also works with "
          "MPI_THREAD_FUNNELED]");
    }
  }
  current = runtime;
  return runtime;
}

Status MpiRuntime::Initialize(int level) {
  std::promise<Status> promise;
  std::future<Status> begun = promise.get_future();
  std::promise<void> served;
  served_ = served.get_future();
  std::promise<void> finalized;
  finalized_ = finalized.get_future();
  thread_ = std::thread([this, level, started = std::move(promise), served = std::move(served),
                         finalized = std::move(finalized)]() mutable {
    NameThisThread("mpi");
    int provided = MPI_THREAD_SINGLE;
    Status status = Check(MPI_Init_thread(nullptr, nullptr, level, &provided), "MPI_Init_thread");
    const bool begins = status.ok();
    initialized_here = begins;
    if (begins && provided < MPI_THREAD_FUNNELED) {
      status = FailedPrecondition("this MPI has no MPI_THREAD_FUNNELED [install one with threads]");
    }
    funneled_ = provided < MPI_THREAD_SERIALIZED;
    started.set_value(std::move(status));
    if (!begins) {
      return;
    }
    Serve();
    const std::vector<std::vector<std::byte>> kept = std::move(kept_);
    served.set_value();
    int finalized_already = 0;
    MPI_Finalized(&finalized_already);
    if (finalized_already == 0) {
      MPI_Finalize();
    }
    finalized.set_value();
  });
  return begun.get();
}

MpiRuntime::~MpiRuntime() {
  if (!thread_.joinable()) {
    if (!kept_.empty()) {  // the program's MPI runs on, and may touch it
      static std::mutex mutex;
      static auto* const for_ever = new std::vector<std::vector<std::byte>>();
      const std::lock_guard lock(mutex);
      std::ranges::move(kept_, std::back_inserter(*for_ever));
    }
    return;
  }
  leaving = true;
  {
    const std::lock_guard lock(jobs_mutex_);
    stopping_ = true;
  }
  jobs_changed_.notify_one();
  served_.wait();
  if (finalized_.wait_for(patience_.load()) == std::future_status::ready) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

void MpiRuntime::RunThere(const std::function<void()>& f) {
  Job job;
  job.run = &f;
  {
    const std::lock_guard lock(jobs_mutex_);
    job.soon = std::chrono::steady_clock::now() - last_done_ < kSoon;
    jobs_.push_back(&job);
    ++waiting_;
  }
  jobs_changed_.notify_one();
  if (!job.soon || !SpinUntil([&] { return job.done.load(); })) {
    std::unique_lock lock(jobs_mutex_);
    job_done_.wait(lock, [&] { return job.done.load(); });
  }
  if (job.error) {
    std::rethrow_exception(job.error);
  }
}

// The thread that initialised MPI, until the last transport is gone.
void MpiRuntime::Serve() {
  for (;;) {
    Job* job = nullptr;
    {
      std::unique_lock lock(jobs_mutex_);
      jobs_changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) {
        break;
      }
      job = jobs_.front();
      jobs_.pop_front();
      --waiting_;
    }
    try {
      (*job->run)();
    } catch (...) {
      job->error = std::current_exception();
    }
    const bool soon = job->soon;
    {
      const std::lock_guard lock(jobs_mutex_);
      last_done_ = std::chrono::steady_clock::now();
      job->done = true;
    }
    job_done_.notify_all();
    if (soon) {  // whoever waits for MPI looks again, at first soon
      SpinUntil([this] { return waiting_ > 0; });
    }
  }
}

bool MpiRuntime::Finalized() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  return finalized != 0 || leaving;
}

Duration MpiRuntime::Nap(Duration waited) {
  return std::clamp<Duration>(waited / 16, std::chrono::microseconds(20),
                              std::chrono::milliseconds(10));
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
