#include "cpu/parallel.h"

#include <atomic>

#include "cpu/signals_blocked.h"

namespace cohort::cpu {
namespace {

// gomp hands work over by means that ThreadSanitizer does not see. These two atomics say the same
// in its terms: what the caller wrote is there for the parts, and theirs for the caller.
struct Job {
  void (*run)(const void* body, std::int64_t part);
  const void* body;
  std::atomic<int> started = 0;
  std::atomic<int> finished = 0;

  void RunPart(std::int64_t part) {
    (void)started.load(std::memory_order_acquire);
    run(body, part);
    finished.fetch_add(1, std::memory_order_release);
  }
};

// Not instrumented, and neither is the function that the compiler makes of the region: it reads the
// caller's stack before anything of ours runs.
__attribute__((no_sanitize("thread"))) void RunRegion(std::int64_t parts, Job* job) {
#pragma omp parallel for num_threads(static_cast <int>(parts)) schedule(static, 1)
  for (std::int64_t part = 0; part < parts; ++part) {
    job->RunPart(part);
  }
}

}  // namespace

void RunParts(std::int64_t parts, void (*run)(const void* body, std::int64_t part),
              const void* body) {
  Job job{.run = run, .body = body};
  const SignalsBlocked quiet;  // oneDNN will compute on the threads that this may start
  job.started.store(1, std::memory_order_release);
  RunRegion(parts, &job);
  (void)job.finished.load(std::memory_order_acquire);
}

}  // namespace cohort::cpu
