// Products under a shower of signals. A kernel of oneDNN's that works with its stack pointer in
// heap memory must not be interrupted there: the handler's frame would be written over the heap.

#include <cohort/device/kernels.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace cohort {
namespace {

std::atomic<int> handled = 0;

// Takes stack, as a handler does that calls anything.
void OnSignal(int /*signal*/) {
  volatile char frame[2048];
  for (volatile char& byte : frame) {
    byte = 0x5a;
  }
  ++handled;
}

// Handles SIGUSR1 and sends it to the thread that made this, until destroyed: the next one a little
// after the last was handled, so that the thread gets on with its work on any machine.
class Shower {
 public:
  Shower() {
    struct sigaction action = {};
    action.sa_handler = OnSignal;
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGUSR1, &action, &before_);
    sender_ = std::thread([this, target = ::pthread_self()] {
      while (!stop_) {
        const int before = handled;
        ::pthread_kill(target, SIGUSR1);
        while (!stop_ && handled == before) {
          std::this_thread::yield();
        }
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    });
  }
  ~Shower() {
    stop_ = true;
    sender_.join();
    ::sigaction(SIGUSR1, &before_, nullptr);
  }

 private:
  std::atomic<bool> stop_ = false;
  struct sigaction before_ = {};
  std::thread sender_;
};

TEST(Signals, DoNotDisturbAProduct) {
  // Few columns and a long sum: what a classifier's last layer computes.
  const MatMulSpec spec{.m = 64, .n = 10, .k = 784, .bias = true};
  const std::vector<float> a(64 * 784, 1.0F);
  const std::vector<float> b(784 * 10, 2.0F);
  const std::vector<float> bias(10, 3.0F);
  const auto kernels = MakeCpuKernels(1);
  const auto stream = MakeInlineStream();
  const Shower shower;
  for (int round = 0; round < 3000 || handled < 100; ++round) {
    std::vector<float> c(64 * 10);
    kernels->MatMul(spec).Run(*stream, a.data(), b.data(), bias.data(), c.data());
    ASSERT_EQ(stream->Synchronize(DeadlineAfter(std::chrono::seconds(30))), OkStatus());
    ASSERT_THAT(c, ::testing::Each(2.0F * 784 + 3.0F)) << "round " << round;
  }
}

}  // namespace
}  // namespace cohort
