// The double of a device with memory of its own: what it must catch, and that it computes.

#include "testing/far_device.h"

#include <cohort/core/clock.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

namespace cohort::testing {
namespace {

constexpr std::size_t kCount = 1000;

Deadline Soon() { return DeadlineAfter(std::chrono::seconds(20)); }

struct Block {
  explicit Block(Device& device, std::size_t count = kCount)
      : memory(device.Allocate(count * sizeof(float), "a test")),
        values(reinterpret_cast<float*>(memory.get()), count) {}
  std::shared_ptr<std::byte> memory;
  FloatSpan values;
};

const std::byte* Bytes(const std::vector<float>& values) {
  return reinterpret_cast<const std::byte*>(values.data());
}

std::vector<float> Fetch(Device& device, Stream& stream, ConstFloatSpan from) {
  std::vector<float> values(from.size());
  device.Copy(stream, reinterpret_cast<const std::byte*>(from.data()),
              reinterpret_cast<std::byte*>(values.data()), from.size_bytes());
  OrThrow(stream.Synchronize(Soon()));
  return values;
}

TEST(FarDeviceDeathTest, AHostThatReadsOrWritesItsMemoryCrashes) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto device = MakeFarDevice();
  EXPECT_DEATH(
      {
        const Block block(*device);
        volatile float read = block.values[0];
        static_cast<void>(read);
      },
      "");
  EXPECT_DEATH(
      {
        const Block block(*device);
        *const_cast<volatile float*>(&block.values[kCount - 1]) = 1.0F;
      },
      "");
}

TEST(FarDevice, ComputesAndCopies) {
  const auto device = MakeFarDevice("far:7");
  EXPECT_EQ(device->name(), "far:7");
  EXPECT_EQ(device->memory_space(), MemorySpace::kDevice);
  const auto stream = device->MakeStream();
  const auto kernels = device->MakeKernels(1);
  std::vector<float> host(kCount);
  std::iota(host.begin(), host.end(), 0.0F);
  const Block a(*device);
  const Block b(*device);
  const Block two(*device, 3);
  EXPECT_TRUE(std::isnan(Fetch(*device, *stream, a.values)[0])) << "new memory holds NaNs";
  device->Copy(*stream, Bytes(host), reinterpret_cast<std::byte*>(a.values.data()),
               a.values.size_bytes());
  kernels->Copy(*stream, a.values, b.values);
  kernels->Add(*stream, a.values, b.values, b.values);
  kernels->Fill(*stream, b.values.first(2), -1.0F);
  std::vector<float> expected(kCount);
  for (std::size_t i = 0; i < kCount; ++i) {
    expected[i] = i < 2 ? -1.0F : 2.0F * host[i];
  }
  EXPECT_EQ(Fetch(*device, *stream, b.values), expected);
  // Plans: [1, 3] = [1, kCount] [kCount, 3], of which the first column counts.
  const Block wide(*device, kCount * 3);
  kernels->Fill(*stream, wide.values, 1.0F);
  kernels->MatMul({.m = 1, .n = 3, .k = static_cast<std::int64_t>(kCount)})
      .Run(*stream, a.values.data(), wide.values.data(), nullptr, two.values.data());
  EXPECT_EQ(Fetch(*device, *stream, two.values)[2],
            std::accumulate(host.begin(), host.end(), 0.0F));
}

TEST(FarDevice, RefusesWhatIsNotItsOwn) {
  const auto devices = MakeFarDevices(2);
  const auto stream = devices[0]->MakeStream();
  const auto kernels = devices[0]->MakeKernels(1);
  const Block mine(*devices[0]);
  Block others(*devices[1]);
  std::vector<float> host(kCount);
  EXPECT_THROW(kernels->Fill(*stream, host, 0.0F), ContractError);
  EXPECT_THROW(kernels->Fill(*stream, others.values, 0.0F), ContractError);
  EXPECT_THROW(
      kernels->Fill(*stream, FloatSpan(mine.values.data(), mine.values.size() + 2048), 0.0F),
      ContractError)
      << "past the end";
  const FloatSpan gone = others.values;
  others.memory = nullptr;
  EXPECT_THROW(devices[1]->MakeKernels(1)->Fill(*stream, gone, 0.0F), ContractError);
  kernels->Fill(*stream, {}, 0.0F);
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
}

TEST(FarDevice, CopiesBetweenDevicesOfOneKind) {
  const auto devices = MakeFarDevices(2);
  const auto first = devices[0]->MakeStream();
  const auto second = devices[1]->MakeStream();
  const Block from(*devices[0]);
  const Block to(*devices[1]);
  devices[0]->MakeKernels(1)->Fill(*first, from.values, 5.0F);
  second->WaitFor(first->Record());
  devices[1]->Copy(*second, reinterpret_cast<const std::byte*>(from.values.data()),
                   reinterpret_cast<std::byte*>(to.values.data()), from.values.size_bytes());
  EXPECT_EQ(Fetch(*devices[1], *second, to.values), std::vector<float>(kCount, 5.0F));
}

TEST(FarDevice, ReplaysWhatItCaptured) {
  const auto device = MakeFarDevice();
  const auto stream = device->MakeStream();
  const auto kernels = device->MakeKernels(1);
  const Block sum(*device);
  const Block one(*device);
  kernels->Fill(*stream, sum.values, 0.0F);
  kernels->Fill(*stream, one.values, 1.0F);
  const auto graph =
      device->Capture(*stream, [&] { kernels->Add(*stream, sum.values, one.values, sum.values); });
  ASSERT_NE(graph, nullptr);
  EXPECT_EQ(Fetch(*device, *stream, sum.values)[0], 0.0F) << "captured, not run";
  for (int i = 0; i < 3; ++i) {
    graph->Replay(*stream);
  }
  EXPECT_EQ(Fetch(*device, *stream, sum.values), std::vector<float>(kCount, 3.0F));
  EXPECT_THROW(device->Capture(*stream, [&] { static_cast<void>(stream->Synchronize(Soon())); }),
               ContractError);
}

}  // namespace
}  // namespace cohort::testing
