// What a GPU's streams, graphs and memory promise beyond tests/conformance. Skipped without one.

#include <cohort/device/device.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cohort {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

Deadline Soon() { return DeadlineAfter(seconds(20)); }

class CudaDeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    auto devices = OpenDevices("cuda:0");
    if (!devices.ok()) {
      GTEST_SKIP() << devices.status().message();
    }
    device = (*devices)[0];
    stream = device->MakeStream();
    kernels = device->MakeKernels(0);
  }

  FloatSpan Floats(std::size_t count) {
    blocks.push_back(device->Allocate(count * sizeof(float), "a test"));
    return {reinterpret_cast<float*>(blocks.back().get()), count};
  }
  float Read(FloatSpan from) {
    float value = -1;
    device->Copy(*stream, reinterpret_cast<const std::byte*>(from.data()),
                 reinterpret_cast<std::byte*>(&value), sizeof(value));
    OrThrow(stream->Synchronize(Soon()));
    return value;
  }

  std::shared_ptr<Device> device;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Kernels> kernels;
  std::vector<std::shared_ptr<std::byte>> blocks;
};

TEST_F(CudaDeviceTest, AFunctionOfTheHostRunsInOrder) {
  const FloatSpan x = Floats(1 << 20);
  const auto host = device->AllocateHost(sizeof(float), "a test");
  auto* const value = reinterpret_cast<float*>(host.get());
  float seen = 0;
  for (int i = 1; i <= 3; ++i) {
    kernels->Fill(*stream, x, static_cast<float>(i));
    device->Copy(*stream, reinterpret_cast<const std::byte*>(x.data()), host.get(), sizeof(float));
    stream->Enqueue([&seen, value] {
      seen = 10 * seen + *value;
      return OkStatus();
    });
  }
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
  EXPECT_EQ(seen, 123.0F);
}

TEST_F(CudaDeviceTest, AnErrorDropsLaterFunctionsUntilSynchronizeReportsIt) {
  int ran = 0;
  stream->Enqueue([] { return DataLoss("first"); });
  stream->Enqueue([&] { return ++ran, DataLoss("second"); });
  EXPECT_EQ(stream->Record()->Wait(Soon()), DataLoss("first"));
  EXPECT_EQ(stream->Synchronize(Soon()), DataLoss("first"));
  EXPECT_EQ(ran, 0);
  stream->Enqueue([&] { return ++ran, OkStatus(); });
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
  EXPECT_EQ(ran, 1);
  stream->Enqueue([]() -> Status { throw std::runtime_error("thrown"); });
  EXPECT_THAT(stream->Synchronize(Soon()).message(), HasSubstr("thrown"));
}

TEST_F(CudaDeviceTest, AStreamHasTheErrorOfTheEventsItWaitsFor) {
  const auto other = device->MakeStream();
  other->Enqueue([] { return DataLoss("of the other"); });
  const auto event = other->Record();
  stream->WaitFor(event);
  int ran = 0;
  stream->Enqueue([&] { return ++ran, OkStatus(); });
  EXPECT_EQ(stream->Synchronize(Soon()), DataLoss("of the other"));
  EXPECT_EQ(ran, 0);
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
  EXPECT_EQ(other->Synchronize(Soon()), DataLoss("of the other"));
  EXPECT_EQ(event->Wait(Soon()), DataLoss("of the other"));
}

TEST_F(CudaDeviceTest, WaitsForAnEventOfTheHost) {
  const auto host = MakeInlineStream();
  host->Enqueue([] { return DataLoss("of the host"); });
  stream->WaitFor(host->Record());
  EXPECT_EQ(stream->Synchronize(Soon()), DataLoss("of the host"));
}

TEST_F(CudaDeviceTest, WaitsEndAtTheirDeadline) {
  std::promise<void> release;
  stream->Enqueue([done = release.get_future().share()] {
    done.wait_for(seconds(20));
    return OkStatus();
  });
  const auto event = stream->Record();
  EXPECT_FALSE(event->done());
  EXPECT_EQ(event->Wait(DeadlineAfter(milliseconds(20))).code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(stream->Synchronize(DeadlineAfter(milliseconds(20))).code(),
            StatusCode::kDeadlineExceeded);
  release.set_value();
  EXPECT_TRUE(event->Wait(Soon()).ok());
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
  EXPECT_TRUE(event->done());
}

// So that what they hold may give memory back, or call CUDA.
TEST_F(CudaDeviceTest, FunctionsAreDestroyedByTheThreadThatFeeds) {
  std::thread::id destroyed_on;
  std::shared_ptr<int> mark(new int(0), [&](const int* p) {
    destroyed_on = std::this_thread::get_id();
    delete p;
  });
  const std::weak_ptr<int> held = mark;
  stream->Enqueue([mark] { return OkStatus(); });
  mark.reset();
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
  EXPECT_TRUE(held.expired());
  EXPECT_EQ(destroyed_on, std::this_thread::get_id());
}

TEST_F(CudaDeviceTest, AGraphRunsAllOfItAtEachReplayAndNothingBefore) {
  const FloatSpan x = Floats(1000);
  const FloatSpan one = Floats(1000);
  kernels->Fill(*stream, x, 0.0F);
  kernels->Fill(*stream, one, 1.0F);
  const auto other = device->MakeStream();
  std::atomic<int> ran = 0;
  const auto graph = device->Capture(*stream, [&] {
    kernels->Add(*stream, x, one, x);
    stream->Enqueue([&ran] { return ++ran, OkStatus(); });
    other->WaitFor(stream->Record());
    other->Enqueue([&ran] { return ran += 10, OkStatus(); });
    stream->WaitFor(other->Record());
  });
  ASSERT_NE(graph, nullptr);
  EXPECT_EQ(Read(x), 0.0F);
  EXPECT_EQ(ran, 0);
  for (int i = 0; i < 3; ++i) {
    graph->Replay(*stream);
  }
  EXPECT_EQ(Read(x), 3.0F);
  EXPECT_EQ(ran, 33);
  EXPECT_THROW(graph->Replay(*other), ContractError);
}

TEST_F(CudaDeviceTest, AFailedRecordingLeavesTheStreamUsable) {
  const FloatSpan x = Floats(10);
  EXPECT_THROW((void)device->Capture(*stream, [&] { throw StatusError(DataLoss("in feed")); }),
               StatusError);
  EXPECT_THROW((void)device->Capture(*stream, [&] { (void)stream->Synchronize(Soon()); }),
               ContractError);
  kernels->Fill(*stream, x, 5.0F);
  EXPECT_EQ(Read(x), 5.0F);
}

TEST_F(CudaDeviceTest, AGraphHoldsItsProduct) {
  constexpr std::int64_t kSize = 48;
  const FloatSpan a = Floats(kSize * kSize);
  const FloatSpan b = Floats(kSize * kSize);
  const FloatSpan c = Floats(kSize * kSize);
  kernels->Fill(*stream, a, 2.0F);
  kernels->Fill(*stream, b, 0.5F);
  MatMulPlan& plan = kernels->MatMul({.m = kSize, .n = kSize, .k = kSize});
  // The plan's first run is the recording.
  const auto graph =
      device->Capture(*stream, [&] { plan.Run(*stream, a.data(), b.data(), nullptr, c.data()); });
  graph->Replay(*stream);
  EXPECT_EQ(Read(c), static_cast<float>(kSize));
  kernels->Fill(*stream, c, 0.0F);
  plan.Run(*stream, a.data(), b.data(), nullptr, c.data());
  EXPECT_EQ(Read(c), static_cast<float>(kSize));
}

TEST_F(CudaDeviceTest, MemoryThatIsOutNamesTheRequest) {
  try {
    (void)device->Allocate(std::size_t{1} << 50, "everything");
    FAIL();
  } catch (const StatusError& error) {
    EXPECT_EQ(error.status().code(), StatusCode::kResourceExhausted);
    EXPECT_THAT(error.status().message(),
                HasSubstr("cuda:0 has no 1125899906842624 bytes (1.0 PiB) for everything"));
    EXPECT_THAT(error.status().message(), HasSubstr(" are left"));
  }
  EXPECT_TRUE(stream->Synchronize(Soon()).ok()) << "nothing else is harmed";
}

// In a process of its own: what loses the context is told as Unavailable, with the kernel's name,
// by this stream and all that comes after, and everything can still be let go of, at exit too.
TEST_F(CudaDeviceTest, AnIllegalAddressLosesTheDeviceAndNotTheProgram) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto lose = [this] {
    const auto expect = [](bool right, const char* what, const std::string& message) {
      if (!right) {
        std::fprintf(stderr, "%s: %s\n", what, message.c_str());
        std::_Exit(1);
      }
    };
    const FloatSpan x = Floats(1000);
    const auto other = device->MakeStream();
    kernels->Fill(*stream, x, 1.0F);
    OrThrow(stream->Synchronize(Soon()));
    kernels->Fill(*stream, {reinterpret_cast<float*>(std::uintptr_t{4096}), 1000}, 1.0F);
    int ran = 0;
    stream->Enqueue([&ran] { return ++ran, OkStatus(); });
    const Status status = stream->Synchronize(Soon());
    expect(status.code() == StatusCode::kUnavailable, "no loss", status.ToString());
    expect(status.message().find("Fill") != std::string::npos, "unnamed", status.message());
    expect(status.message().find("cudaErrorIllegalAddress") != std::string::npos, "without reason",
           status.message());
    kernels->Fill(*other, x, 2.0F);
    const Status later = other->Synchronize(Soon());
    expect(later.code() == StatusCode::kUnavailable, "another stream goes on", later.ToString());
    try {
      (void)device->Allocate(std::size_t{1} << 20, "after the loss");
      expect(false, "memory of a lost device", "");
    } catch (const StatusError& error) {
      expect(error.status().code() == StatusCode::kUnavailable, "memory", error.what());
    }
    blocks.clear();
    kernels.reset();
    stream.reset();
    device.reset();
    std::fprintf(stderr, "let go\n");
    std::exit(0);
  };
  EXPECT_EXIT(lose(), ::testing::ExitedWithCode(0), "let go");
}

TEST_F(CudaDeviceTest, MemoryOutlivesItsDevice) {
  auto block = device->Allocate(1 << 20, "a test");
  auto host = device->AllocateHost(1 << 20, "a test");
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block.get()) % 256, 0);
  kernels.reset();
  stream.reset();
  device.reset();
  block.reset();
  host.reset();
}

TEST_F(CudaDeviceTest, TablesTakeStreamsOfTheirDeviceOnly) {
  const auto host = MakeInlineStream();
  const FloatSpan x = Floats(10);
  EXPECT_THROW(kernels->Fill(*host, x, 1.0F), ContractError);
}

}  // namespace
}  // namespace cohort
