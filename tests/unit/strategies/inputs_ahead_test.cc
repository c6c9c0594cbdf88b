// Inputs that are copied to devices ahead of their steps: what is copied when, and that nothing
// else about the batches changes. That models get the CPU's bits with them is in devices_test.cc.

#include <cohort/data/memory.h>
#include <cohort/device/ahead_copy.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "synchronous/inputs_ahead.h"
#include "testing/far_device.h"
#include "testing/integer_model.h"
#include "testing/late_stream.h"

namespace cohort {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IntegerData;
using testing::IntegerParameters;
using testing::LateStreams;
using testing::MakeFarDevices;
using Devices = std::vector<std::shared_ptr<Device>>;

Deadline Soon() { return DeadlineAfter(std::chrono::seconds(30)); }

// The batches of a strategy on these devices.
struct Input {
  explicit Input(Devices devices, StrategyOptions options = {}) {
    options.devices = std::move(devices);
    strategy = OrThrow(MakeSynchronousStrategy({}, std::move(options)));
    OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = 0.5})));
    data = OrThrow(strategy->Distribute(IntegerData(40, 10).Prefetch(2), {.copy_ahead = true}));
    OrThrow(data->BeginEpoch(0));
  }
  DistributedBatch Next() const { return OrThrow(data->Next()).value(); }

  ParameterSet parameters = IntegerParameters();
  std::unique_ptr<Strategy> strategy;
  std::unique_ptr<DistributedDataset> data;
};

// What the copy holds, by way of `stream`; empty where there is none.
std::vector<float> CopyOf(const Tensor& tensor, Device& device, Stream& stream) {
  const auto copy = AheadCopy::Of(tensor, device, stream);
  if (!copy.has_value()) {
    return {};
  }
  EXPECT_EQ(copy->space(), MemorySpace::kDevice);
  EXPECT_EQ(copy->shape(), tensor.shape());
  Tensor back(tensor.dtype(), tensor.shape());
  device.Copy(stream, copy->raw(), back.raw(), back.bytes());
  EXPECT_EQ(stream.Synchronize(Soon()), OkStatus());
  return {back.data<float>().begin(), back.data<float>().end()};
}

std::vector<float> HostsOf(const Tensor& tensor) {
  return {tensor.data<float>().begin(), tensor.data<float>().end()};
}

TEST(InputsAhead, EveryBatchButAnEpochsFirstIsOnItsReplicasDevice) {
  const Devices far = MakeFarDevices(2, LateStreams(3, std::chrono::microseconds(200)));
  const Input input({far[0], CpuDevice(), far[1]});
  const auto stream = far[0]->MakeStream();
  const auto other = far[1]->MakeStream();
  for (int epoch = 0; epoch < 2; ++epoch) {
    OrThrow(input.data->BeginEpoch(epoch));
    int batches = 0;
    while (const auto batch = OrThrow(input.data->Next())) {
      const Tensor& x = batch->replicas[0]["x"];
      EXPECT_EQ(x.space(), MemorySpace::kHost);
      EXPECT_EQ(CopyOf(x, *far[0], *stream), batches == 0 ? std::vector<float>() : HostsOf(x));
      EXPECT_EQ(CopyOf(x, *far[1], *other), std::vector<float>()) << "of another device";
      EXPECT_EQ(batch->replicas[1]["x"].twin(), nullptr) << "of a replica on the host";
      const Tensor& last = batch->replicas[2]["x"];
      EXPECT_EQ(CopyOf(last, *far[1], *other), batches == 0 ? std::vector<float>() : HostsOf(last));
      ++batches;
    }
    EXPECT_EQ(batches, 4);
  }
}

// The copy runs while the stream of the step before it is held up.
TEST(InputsAhead, CopiesDoNotWaitForTheStepThatComputes) {
  const Devices far = MakeFarDevices(1);
  const Input input(far);
  const auto compute = far[0]->MakeStream();
  std::promise<void> release;
  const DistributedBatch first = input.Next();
  compute->Enqueue([done = release.get_future().share()]() -> Status {
    return done.wait_for(std::chrono::seconds(30)) == std::future_status::ready
               ? OkStatus()
               : DeadlineExceeded("nobody let it go on");
  });
  const DistributedBatch second = input.Next();
  const auto stream = far[0]->MakeStream();
  const Tensor& x = second.replicas[0]["x"];
  EXPECT_EQ(CopyOf(x, *far[0], *stream), HostsOf(x));
  release.set_value();
  EXPECT_EQ(compute->Synchronize(Soon()), OkStatus());
}

TEST(InputsAhead, WhatNoStepAsksForIsCopiedNoMore) {
  const Devices far = MakeFarDevices(1);
  const Input input(far);
  const auto stream = far[0]->MakeStream();
  for (int epoch = 0; epoch < 2; ++epoch) {
    OrThrow(input.data->BeginEpoch(epoch));
    std::vector<bool> ids;
    std::vector<bool> inputs;
    while (const auto batch = OrThrow(input.data->Next())) {
      inputs.push_back(AheadCopy::Of(batch->replicas[0]["x"], *far[0], *stream).has_value());
      ids.push_back(batch->replicas[0]["id"].twin() != nullptr);
    }
    EXPECT_THAT(inputs, ElementsAre(false, true, true, true));
    // The third is copied before the step of the second has done without it.
    EXPECT_THAT(ids, ElementsAre(false, true, true, false));
    EXPECT_EQ(stream->Synchronize(Soon()), OkStatus());
  }
}

TEST(InputsAhead, BatchesAreThoseThatWouldComeWithout) {
  const Devices far = MakeFarDevices(2);
  const Input input({far[0], far[1]});
  const auto plain = OrThrow(input.strategy->Distribute(IntegerData(40, 10)));
  EXPECT_EQ(input.data->batches_per_epoch(), plain->batches_per_epoch());
  for (const std::int64_t first : {0, 3, 1, 2}) {
    SCOPED_TRACE(first);
    // What was begun before is dropped.
    OrThrow(input.data->BeginEpoch(1, first));
    OrThrow(plain->BeginEpoch(1, first));
    for (std::int64_t index = first; index < 4; ++index) {
      const DistributedBatch batch = input.Next();
      const DistributedBatch expected = OrThrow(plain->Next()).value();
      EXPECT_EQ(batch.epoch, 1);
      EXPECT_EQ(batch.index, index);
      for (std::size_t r = 0; r < 2; ++r) {
        EXPECT_EQ(HostsOf(batch.replicas[r]["x"]), HostsOf(expected.replicas[r]["x"]));
      }
      if (first == 1) {
        break;  // in the middle of an epoch
      }
    }
    if (first != 1) {
      EXPECT_FALSE(OrThrow(input.data->Next()).has_value());
      EXPECT_FALSE(OrThrow(plain->Next()).has_value());
    }
  }
}

TEST(InputsAhead, AnErrorComesInItsTurn) {
  Tensor ids(DType::kInt64, {40});
  std::iota(ids.data<std::int64_t>().begin(), ids.data<std::int64_t>().end(), 0);
  const data::Dataset torn = OrThrow(data::FromTensors({{"id", ids}}))
                                 .Map([](data::Example& example) {
                                   return example["id"].data<std::int64_t>()[0] == 25
                                              ? DataLoss("the example is torn")
                                              : OkStatus();
                                 })
                                 .Batch(10);
  StrategyOptions options;
  options.devices = MakeFarDevices(1);
  const auto strategy = OrThrow(MakeSynchronousStrategy({}, std::move(options)));
  const auto data = OrThrow(strategy->Distribute(torn, {.copy_ahead = true}));
  for (int epoch = 0; epoch < 2; ++epoch) {
    OrThrow(data->BeginEpoch(epoch));
    for (int batch = 0; batch < 2; ++batch) {
      EXPECT_TRUE(OrThrow(data->Next()).has_value());
    }
    const Status status = data->Next().status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_THAT(status.message(), HasSubstr("the example is torn"));
  }
}

TEST(InputsAhead, AShardIsOnTheDeviceThatComputesIt) {
  const Devices far = MakeFarDevices(2);
  StrategyOptions options;
  options.virtual_shards = 4;
  const Input input({far[0], far[1]}, options);
  const auto stream = far[0]->MakeStream();
  const auto other = far[1]->MakeStream();
  (void)input.Next();
  const DistributedBatch batch = input.Next();
  ASSERT_EQ(batch.replicas.size(), 4U);
  for (std::size_t r = 0; r < 4; ++r) {
    const Tensor& x = batch.replicas[r]["x"];
    EXPECT_EQ(CopyOf(x, *far[0], *stream), r < 2 ? HostsOf(x) : std::vector<float>());
    EXPECT_EQ(CopyOf(x, *far[1], *other), r < 2 ? std::vector<float>() : HostsOf(x));
  }
}

TEST(InputsAhead, ACopyGoesWithTheTensorAndNotWithItsRows) {
  const Devices far = MakeFarDevices(1);
  const Input input(far);
  (void)input.Next();
  const DistributedBatch batch = input.Next();
  const Tensor& x = batch.replicas[0]["x"];
  const auto stream = far[0]->MakeStream();
  const Tensor same = x;
  EXPECT_EQ(CopyOf(same, *far[0], *stream), HostsOf(x));
  EXPECT_EQ(CopyOf(x.Reshaped({x.elements()}), *far[0], *stream), HostsOf(x));
  EXPECT_EQ(x.Rows(0, 1).twin(), nullptr);
  EXPECT_EQ(batch.replicas[0].Slice(0, 2)["x"].twin(), nullptr);
}

// A far device, for one that does something otherwise.
class PassingDevice : public Device {
 public:
  explicit PassingDevice(std::shared_ptr<Device> inner) : inner_(std::move(inner)) {}
  const std::string& name() const override { return inner_->name(); }
  MemorySpace memory_space() const override { return inner_->memory_space(); }
  std::unique_ptr<Stream> MakeStream() override { return inner_->MakeStream(); }
  std::unique_ptr<Kernels> MakeKernels(int threads) override {
    return inner_->MakeKernels(threads);
  }
  std::shared_ptr<std::byte> Allocate(std::size_t bytes, std::string_view what) override {
    return inner_->Allocate(bytes, what);
  }
  std::shared_ptr<std::byte> AllocateHost(std::size_t bytes, std::string_view what) override {
    return inner_->AllocateHost(bytes, what);
  }
  bool PageLocked(const std::byte* address) const override { return inner_->PageLocked(address); }
  void Copy(Stream& stream, const std::byte* from, std::byte* to, std::size_t bytes) override {
    inner_->Copy(stream, from, to, bytes);
  }
  std::unique_ptr<Graph> Capture(Stream& stream, const std::function<void()>& feed) override {
    return inner_->Capture(stream, feed);
  }

 private:
  const std::shared_ptr<Device> inner_;
};

// That has no memory left for batches.
class FullDevice final : public PassingDevice {
 public:
  using PassingDevice::PassingDevice;
  std::shared_ptr<std::byte> Allocate(std::size_t /*bytes*/, std::string_view what) override {
    throw StatusError(ResourceExhausted("no memory for " + std::string(what)));
  }
};

// Whose copies take the host a while to begin.
class SlowDevice final : public PassingDevice {
 public:
  static constexpr std::chrono::milliseconds kTakes{2};
  using PassingDevice::PassingDevice;
  void Copy(Stream& stream, const std::byte* from, std::byte* to, std::size_t bytes) override {
    std::this_thread::sleep_for(kTakes);
    ++copies;
    PassingDevice::Copy(stream, from, to, bytes);
  }
  int copies = 0;
};

// What a trainer takes to be input, and no wait for other processes.
TEST(InputsAhead, WhatItTakesToBeginIsOfInput) {
  const Devices far = MakeFarDevices(1);
  StrategyOptions options;
  options.devices = far;
  const auto strategy = OrThrow(MakeSynchronousStrategy({}, std::move(options)));
  const auto slow = std::make_shared<SlowDevice>(far[0]);
  const auto data = CopyAhead(OrThrow(strategy->Distribute(IntegerData(40, 10))), {slow}, Log());
  OrThrow(data->BeginEpoch(0));
  while (OrThrow(data->Next()).has_value()) {
  }
  EXPECT_GE(slow->copies, 3);
  EXPECT_GE(data->input_seconds(),
            slow->copies * std::chrono::duration<double>(SlowDevice::kTakes).count());
}

TEST(InputsAhead, WithoutMemoryForItBatchesComeAsTheyAreAndTheLogSaysWhy) {
  const Devices far = MakeFarDevices(1);
  StrategyOptions options;
  options.devices = far;
  const auto strategy = OrThrow(MakeSynchronousStrategy({}, std::move(options)));
  std::vector<std::string> log;
  const auto data = CopyAhead(
      OrThrow(strategy->Distribute(IntegerData(40, 10))), {std::make_shared<FullDevice>(far[0])},
      Log([&](LogLevel, std::string_view text) { log.emplace_back(text); }));
  OrThrow(data->BeginEpoch(0));
  int batches = 0;
  while (const auto batch = OrThrow(data->Next())) {
    EXPECT_EQ(batch->replicas[0]["x"].twin(), nullptr);
    ++batches;
  }
  EXPECT_EQ(batches, 4);
  EXPECT_THAT(log, ElementsAre(::testing::AllOf(HasSubstr("far:0"), HasSubstr("no memory for"))));
}

}  // namespace
}  // namespace cohort
