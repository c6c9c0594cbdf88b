#include "cpu/short_spins.h"

#include <omp.h>

#include <future>
#include <memory>
#include <mutex>
#include <thread>

#include <cohort/core/environment.h>

#include "cpu/signals_blocked.h"

namespace cohort::cpu {
namespace {

// A team of its own for the calling thread: gomp counts all but the caller, as long as that lives.
__attribute__((no_sanitize("thread"))) void StartTeam(int threads) {
#pragma omp parallel num_threads(threads)
  asm volatile("");
}

}  // namespace

void SpinShortly(int threads) {
  static const bool decided = [] {
    const Environment environment = Environment::OfProcess();
    return environment.Has("OMP_WAIT_POLICY") || environment.Has("GOMP_SPINCOUNT");
  }();
  if (threads < 2 || decided) {
    return;
  }
  static std::mutex mutex;
  static int asleep = 0;
  const std::lock_guard lock(mutex);
  const int more = omp_get_num_procs() - threads + 2 - asleep;
  if (more <= 0) {
    return;
  }
  auto started = std::make_shared<std::promise<void>>();
  std::future<void> wait = started->get_future();
  std::thread([more, started] {
    const SignalsBlocked quiet;
    StartTeam(more + 1);
    started->set_value();
    std::promise<void>().get_future().wait();  // until the process ends
  }).detach();
  wait.wait();
  asleep += more;
}

}  // namespace cohort::cpu
