// Threads that have computed leave the processor to others.

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <thread>
#include <vector>

#include <cohort/core/environment.h>
#include <cohort/device/kernels.h>

#include "cpu/parallel.h"

namespace cohort::cpu {
namespace {

double ProcessorSeconds() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

TEST(ShortSpins, BetweenLoopsTheThreadsSleep) {
  const Environment environment = Environment::OfProcess();
  if (environment.Has("OMP_WAIT_POLICY") || environment.Has("GOMP_SPINCOUNT")) {
    GTEST_SKIP() << "the environment says how gomp's threads wait";
  }
  constexpr int kThreads = 2;
  const auto kernels = MakeCpuKernels(kThreads);
  const OmpThreads threads(kThreads);
  std::vector<int> ran(kThreads);
  const auto loop = [&ran] {
    ParallelFor(kThreads, 1, [&ran](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) {
        ++ran[static_cast<std::size_t>(i)];
      }
    });
  };
  loop();  // starts the threads
  constexpr int kLoops = 20;
  const double before = ProcessorSeconds();
  for (int i = 0; i < kLoops; ++i) {
    loop();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  // By default each loop is followed by some 6 ms of spinning.
  EXPECT_LT(ProcessorSeconds() - before, 0.04);
  EXPECT_EQ(ran, std::vector<int>(kThreads, kLoops + 1));
}

}  // namespace
}  // namespace cohort::cpu
