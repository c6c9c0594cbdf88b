#include "device_conformance.h"

#include <cohort/core/random.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>

namespace cohort::testing {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kGuard = 64;       // bytes before and behind a buffer
constexpr unsigned char kFiller = 0xFF;  // four or eight of them are a NaN

std::vector<std::byte> Fetch(Device& device, Stream& stream, const std::byte* from,
                             std::size_t bytes) {
  std::vector<std::byte> host(bytes);
  device.Copy(stream, from, host.data(), bytes);
  EXPECT_EQ(stream.Synchronize(DeadlineAfter(60s)), OkStatus());
  return host;
}

// Where two results differ, or "".
std::string Difference(const std::vector<std::vector<double>>& got,
                       const std::vector<std::vector<double>>& expected, double tolerance) {
  if (got.size() != expected.size()) {
    return std::to_string(got.size()) + " outputs instead of " + std::to_string(expected.size());
  }
  for (std::size_t o = 0; o < got.size(); ++o) {
    if (got[o].size() != expected[o].size()) {
      return "output " + std::to_string(o) + " has " + std::to_string(got[o].size()) +
             " elements instead of " + std::to_string(expected[o].size());
    }
    std::size_t wrong = 0;
    std::string first;
    for (std::size_t i = 0; i < got[o].size(); ++i) {
      const double a = got[o][i];
      const double b = expected[o][i];
      const bool equal = a == b || (std::isnan(a) && std::isnan(b)) ||
                         std::fabs(a - b) <= tolerance * std::max(1.0, std::fabs(b));
      if (!equal && wrong++ == 0) {
        first = "output " + std::to_string(o) + ", element " + std::to_string(i) + ": " +
                ::testing::PrintToString(a) + " instead of " + ::testing::PrintToString(b);
      }
    }
    if (wrong > 0) {
      return first + "; " + std::to_string(wrong) + " of " + std::to_string(got[o].size()) +
             " are wrong";
    }
  }
  return "";
}

template <typename T>
T ReadAs(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

double ValueAt(const std::byte* from, DType type) {
  switch (type) {
    case DType::kFloat64:
      return ReadAs<double>(from);
    case DType::kBFloat16:
      return static_cast<float>(ReadAs<BFloat16>(from));
    case DType::kFloat16:
      return static_cast<float>(ReadAs<Float16>(from));
    default:
      return ReadAs<float>(from);
  }
}

}  // namespace

std::vector<float> RandomFloats(std::int64_t size, std::uint64_t seed) {
  const Philox philox(seed, "device conformance");
  std::vector<float> values(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < values.size(); i += 4) {
    const Philox::Block block = philox.At(i);
    for (std::size_t k = 0; k < 4 && i + k < values.size(); ++k) {
      values[i + k] = static_cast<float>(block[k] >> 8) * 0x1p-23F - 1.0F;
    }
  }
  return values;
}

CallMemory::CallMemory(Device& device, Stream& stream, std::int64_t offset)
    : device_(device), stream_(stream), offset_(offset) {}

std::vector<float> RoundedTo(DType type, std::vector<float> values) {
  for (float& value : values) {
    value = type == DType::kBFloat16  ? static_cast<float>(BFloat16(value))
            : type == DType::kFloat16 ? static_cast<float>(Float16(value))
                                      : value;
  }
  return values;
}

double RoundingOf(DType half) { return half == DType::kBFloat16 ? 0x1p-8 : 0x1p-11; }

std::byte* CallMemory::Add(const void* values, std::size_t bytes, Use use, DType type) {
  auto buffer = std::make_unique<Buffer>();
  const std::size_t element = SizeOf(type);
  buffer->begin = kGuard + static_cast<std::size_t>(offset_) * element;
  buffer->bytes = bytes;
  buffer->use = use;
  buffer->type = type;
  buffer->before.assign(buffer->begin + bytes + kGuard, std::byte{kFiller});
  if (values != nullptr && bytes > 0) {
    std::memcpy(buffer->before.data() + buffer->begin, values, bytes);
  }
  buffer->memory = device_.Allocate(buffer->before.size(), "a buffer of the conformance suite");
  device_.Copy(stream_, buffer->before.data(), buffer->memory.get(), buffer->before.size());
  buffers_.push_back(std::move(buffer));
  return buffers_.back()->memory.get() + buffers_.back()->begin;
}

FloatSpan CallMemory::In(std::vector<float> values) {
  auto* const data = Add(values.data(), values.size() * sizeof(float), Use::kIn);
  return {reinterpret_cast<float*>(data), values.size()};
}

FloatSpan CallMemory::In(std::int64_t size, std::uint64_t seed) {
  return In(RandomFloats(size, seed));
}

FloatSpan CallMemory::Out(std::int64_t size) {
  const auto count = static_cast<std::size_t>(size);
  return {reinterpret_cast<float*>(Add(nullptr, count * sizeof(float), Use::kOut)), count};
}

FloatSpan CallMemory::InOut(std::vector<float> values) {
  auto* const data = Add(values.data(), values.size() * sizeof(float), Use::kOut);
  return {reinterpret_cast<float*>(data), values.size()};
}

FloatSpan CallMemory::InOut(std::int64_t size, std::uint64_t seed) {
  return InOut(RandomFloats(size, seed));
}

std::span<double> CallMemory::OutDoubles(std::int64_t size) {
  const auto count = static_cast<std::size_t>(size);
  return {
      reinterpret_cast<double*>(Add(nullptr, count * sizeof(double), Use::kOut, DType::kFloat64)),
      count};
}

Elements CallMemory::AddElements(const std::vector<float>& values, Use use, DType type) {
  std::vector<std::byte> bytes(values.size() * SizeOf(type));
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::byte* const to = bytes.data() + i * SizeOf(type);
    if (type == DType::kBFloat16) {
      const BFloat16 half(values[i]);
      std::memcpy(to, &half, sizeof(half));
    } else if (type == DType::kFloat16) {
      const Float16 half(values[i]);
      std::memcpy(to, &half, sizeof(half));
    } else {
      std::memcpy(to, &values[i], sizeof(float));
    }
  }
  return {Add(bytes.data(), bytes.size(), use, type), values.size(), type};
}

Elements CallMemory::In(std::vector<float> values, DType type) {
  return AddElements(values, Use::kIn, type);
}

Elements CallMemory::Out(std::int64_t size, DType type) {
  const auto count = static_cast<std::size_t>(size);
  return {Add(nullptr, count * SizeOf(type), Use::kOut, type), count, type};
}

Elements CallMemory::InOut(std::vector<float> values, DType type) {
  return AddElements(values, Use::kOut, type);
}

Indices CallMemory::Ids(const std::vector<std::int64_t>& ids, bool wide) {
  const auto size = static_cast<std::int64_t>(ids.size());
  if (wide) {
    // Aligned as int64 at every offset: the offset counts in them.
    return {Add(ids.data(), ids.size() * sizeof(std::int64_t), Use::kIn, DType::kInt64), size,
            true};
  }
  const std::vector<std::int32_t> narrow(ids.begin(), ids.end());
  return {Add(narrow.data(), narrow.size() * sizeof(std::int32_t), Use::kIn), size, false};
}

std::byte* CallMemory::Workspace(std::int64_t bytes) {
  return Add(nullptr, static_cast<std::size_t>(bytes), Use::kWorkspace);
}

std::vector<std::vector<double>> CallMemory::Results() {
  std::vector<std::vector<double>> results;
  for (const auto& buffer : buffers_) {
    std::vector<std::byte> after =
        Fetch(device_, stream_, buffer->memory.get(), buffer->before.size());
    if (buffer->use == Use::kOut) {
      std::vector<double>& values = results.emplace_back();
      const std::byte* const data = after.data() + buffer->begin;
      values.resize(buffer->bytes / SizeOf(buffer->type));
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = ValueAt(data + i * SizeOf(buffer->type), buffer->type);
      }
    }
    if (buffer->use != Use::kIn) {
      std::copy_n(buffer->before.begin() + static_cast<std::ptrdiff_t>(buffer->begin),
                  buffer->bytes, after.begin() + static_cast<std::ptrdiff_t>(buffer->begin));
    }
    EXPECT_TRUE(after == buffer->before)
        << (buffer->use == Use::kIn ? "an input, or memory beside one, changed"
                                    : "memory beside an output changed");
  }
  return results;
}

void CallMemory::Reset() {
  for (const auto& buffer : buffers_) {
    device_.Copy(stream_, buffer->before.data(), buffer->memory.get(), buffer->before.size());
  }
}

DeviceConformance::DeviceConformance()
    : device_(GetParam().make()),
      stream_(device_->MakeStream()),
      kernels_(device_->MakeKernels(GetParam().threads)),
      host_stream_(MakeInlineStream()),
      oracle_(MakeCpuKernels(1)) {}

DeviceConformance::~DeviceConformance() { EXPECT_EQ(Synchronize(), OkStatus()); }

Status DeviceConformance::Synchronize() { return stream_->Synchronize(DeadlineAfter(60s)); }

std::vector<std::vector<double>> DeviceConformance::RunOnDevice(
    std::int64_t offset, const std::function<void(const Call&)>& call) {
  CallMemory memory(*device_, *stream_, offset);
  call({*kernels_, *stream_, memory});
  EXPECT_EQ(Synchronize(), OkStatus());
  return memory.Results();
}

void DeviceConformance::Check(double tolerance, const std::function<void(const Call&)>& call,
                              const std::vector<std::vector<double>>& expected) {
  const auto first = RunOnDevice(0, call);
  EXPECT_EQ(Difference(first, expected, tolerance), "");
  EXPECT_EQ(Difference(RunOnDevice(0, call), first, 0), "") << "in a second run";
  EXPECT_EQ(Difference(RunOnDevice(1, call), expected, tolerance), "") << "of unaligned buffers";
}

std::vector<std::vector<double>> DeviceConformance::RunOnOracle(
    const std::function<void(const Call&)>& call) {
  CallMemory memory(*CpuDevice(), *host_stream_, 0);
  call({*oracle_, *host_stream_, memory});
  EXPECT_EQ(host_stream_->Synchronize(DeadlineAfter(60s)), OkStatus());
  return memory.Results();
}

void DeviceConformance::Check(double tolerance, const std::function<void(const Call&)>& call) {
  Check(tolerance, call, RunOnOracle(call));
}

Elements Maker::In(std::int64_t size, std::uint64_t seed, float factor) const {
  std::vector<float> values = RandomFloats(size, seed);
  for (float& value : values) {
    value *= factor;
  }
  return call_.memory.In(RoundedTo(values_, std::move(values)), type_);
}

Elements Maker::InOut(std::int64_t size, std::uint64_t seed) const {
  return call_.memory.InOut(RoundedTo(values_, RandomFloats(size, seed)), type_);
}

void DeviceHalves::CheckHalves(double tolerance,
                               const std::function<void(const Call&, const Maker&)>& call,
                               int roundings) {
  for (const DType half : kHalves) {
    SCOPED_TRACE(std::string(DTypeName(half)));
    const auto expected =
        RunOnOracle([&](const Call& c) { call(c, Maker(c, half, DType::kFloat32)); });
    Check(
        tolerance + roundings * RoundingOf(half),
        [&](const Call& c) { call(c, Maker(c, half, half)); }, expected);
  }
}

void DeviceConformance::CheckFails(const std::function<void(const Call&)>& call) {
  CallMemory on_host(*CpuDevice(), *host_stream_, 0);
  call({*oracle_, *host_stream_, on_host});
  const Status expected = host_stream_->Synchronize(DeadlineAfter(60s));
  ASSERT_FALSE(expected.ok());
  CallMemory on_device(*device_, *stream_, 0);
  call({*kernels_, *stream_, on_device});
  EXPECT_EQ(Synchronize(), expected);
  // Told once.
  EXPECT_EQ(Synchronize(), OkStatus());
}

std::vector<std::int64_t> DeviceKernels::sizes() const {
  std::vector<std::int64_t> all = {0, 1, 3, 4, 5, 91, 1024, 8195};
  if (large()) {
    all.push_back((std::int64_t{1} << 22) + 3);
  }
  return all;
}

std::vector<RowsOf> DeviceKernels::shapes() const {
  std::vector<RowsOf> all = {{0, 5},   {1, 1},    {7, 13},   {13, 7},   {5, 1},
                             {1, 260}, {3, 1024}, {5, 1028}, {300, 40}, {2, 8196}};
  if (large()) {
    all.insert(all.end(), {{65, 50257}, {9, 60004}, {200000, 3}, {4099, 768}, {1 << 20, 1}});
  }
  return all;
}

namespace {

std::vector<std::byte> Bytes(std::size_t count, std::uint64_t seed) {
  std::vector<std::byte> bytes(count);
  const Philox philox(seed, "bytes");
  for (std::size_t i = 0; i < count; ++i) {
    bytes[i] = static_cast<std::byte>(philox.At(i / 4)[i % 4]);
  }
  return bytes;
}

TEST_P(DeviceConformance, MemoryIsAlignedNeverNullAndLimited) {
  for (const std::size_t bytes : {0UL, 1UL, 255UL, 4097UL}) {
    const auto memory = device().Allocate(bytes, "a test");
    ASSERT_NE(memory, nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory.get()) % 256, 0U) << bytes;
    EXPECT_NE(device().AllocateHost(bytes, "a test"), nullptr);
  }
  try {
    device().Allocate(std::size_t{1} << 60, "the moon");
    FAIL() << "2^60 bytes";
  } catch (const StatusError& error) {
    EXPECT_EQ(error.status().code(), StatusCode::kResourceExhausted);
    EXPECT_THAT(error.status().message(),
                ::testing::AllOf(::testing::HasSubstr("the moon"),
                                 ::testing::AnyOf(::testing::HasSubstr("1152921504606846976"),
                                                  ::testing::HasSubstr("1.0 EiB"))));
  }
}

TEST_P(DeviceConformance, MemoryKeepsTheDeviceAlive) {
  auto device = GetParam().make();
  const auto memory = device->Allocate(16, "a test");
  device.reset();
  const std::vector<std::byte> bytes = Bytes(16, 1);
  const auto again = GetParam().make();
  const auto stream = again->MakeStream();
  again->Copy(*stream, bytes.data(), memory.get(), bytes.size());
  EXPECT_EQ(Fetch(*again, *stream, memory.get(), bytes.size()), bytes);
}

TEST_P(DeviceConformance, CopiesToAndFromAndWithinTheDevice) {
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{1001},
                                  std::size_t{large() ? 64U << 20 : 1U << 16}}) {
    const std::vector<std::byte> bytes = Bytes(count, count);
    const auto pinned = device().AllocateHost(count, "a test");
    const auto a = device().Allocate(count, "a test");
    const auto b = device().Allocate(count, "a test");
    std::copy(bytes.begin(), bytes.end(), pinned.get());
    device().Copy(stream(), pinned.get(), a.get(), count);
    device().Copy(stream(), a.get(), b.get(), count);
    EXPECT_TRUE(Fetch(device(), stream(), b.get(), count) == bytes) << count;
    const auto back = device().AllocateHost(count, "a test");
    device().Copy(stream(), b.get(), back.get(), count);
    ASSERT_EQ(Synchronize(), OkStatus());
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), back.get())) << count;
  }
}

TEST_P(DeviceConformance, AStreamWaitsForWhatAnotherWasGivenBefore) {
  const std::int64_t n = large() ? 1 << 24 : 1 << 16;
  const auto other = device().MakeStream();
  const auto other_kernels = device().MakeKernels(1);
  CallMemory memory(device(), stream(), 0);
  const FloatSpan x = memory.In(std::vector<float>(static_cast<std::size_t>(n), 1.0F));
  const FloatSpan sum = memory.InOut(std::vector<float>(static_cast<std::size_t>(n), 0.0F));
  const FloatSpan copy = memory.Out(n);
  constexpr int kTimes = 50;
  for (int i = 0; i < kTimes; ++i) {
    kernels().Add(stream(), sum, x, sum);
  }
  other->WaitFor(stream().Record());
  other_kernels->Copy(*other, sum, copy);
  stream().WaitFor(other->Record());
  kernels().Fill(stream(), sum, -1.0F);
  ASSERT_EQ(Synchronize(), OkStatus());
  ASSERT_EQ(other->Synchronize(DeadlineAfter(60s)), OkStatus());
  const auto results = memory.Results();
  EXPECT_EQ(std::count(results[1].begin(), results[1].end(), kTimes), n);
  EXPECT_EQ(std::count(results[0].begin(), results[0].end(), -1), n);
}

TEST_P(DeviceConformance, AnEventIsDoneOnceItsWorkIs) {
  const auto event = stream().Record();
  EXPECT_EQ(event->Wait(DeadlineAfter(60s)), OkStatus());
  EXPECT_TRUE(event->done());
}

TEST_P(DeviceConformance, WaitsEndAtTheirDeadlines) {
  std::atomic<bool> go = GetParam().inline_streams;
  stream().Enqueue([&]() -> Status {
    while (!go) {
      std::this_thread::yield();
    }
    return {};
  });
  const auto event = stream().Record();
  if (!GetParam().inline_streams) {
    EXPECT_EQ(event->Wait(DeadlineAfter(20ms)).code(), StatusCode::kDeadlineExceeded);
    EXPECT_FALSE(event->done());
    EXPECT_EQ(stream().Synchronize(DeadlineAfter(20ms)).code(), StatusCode::kDeadlineExceeded);
  }
  go = true;
  EXPECT_EQ(event->Wait(DeadlineAfter(60s)), OkStatus());
  EXPECT_EQ(Synchronize(), OkStatus());
}

TEST_P(DeviceConformance, AFailureDropsLaterWorkAndIsToldOnce) {
  std::atomic<int> ran = 0;
  stream().Enqueue([] { return DataLoss("first"); });
  stream().Enqueue([&] {
    ++ran;
    return DataLoss("second");
  });
  EXPECT_EQ(Synchronize(), DataLoss("first"));
  EXPECT_EQ(ran, 0);
  stream().Enqueue([&] {
    ++ran;
    return OkStatus();
  });
  EXPECT_EQ(Synchronize(), OkStatus());
  EXPECT_EQ(ran, 1);
}

// A few kernels of each kind, those with scratch memory among them. Memory is made before they are
// fed: a graph may not.
class SomeKernels {
 public:
  explicit SomeKernels(CallMemory& memory)
      : x_(memory.In(kRows * kColumns, 1)),
        scale_(memory.In(kColumns, 2)),
        offset_(memory.In(kColumns, 3)),
        y_(memory.Out(kRows * kColumns)),
        mean_(memory.Out(kRows)),
        inverse_(memory.Out(kRows)),
        sums_(memory.Out(kColumns)),
        z_(memory.Out(kRows * kRows)),
        total_(memory.InOut(std::vector<float>(kRows * kRows, 0.0F))),
        squares_(memory.OutDoubles(1)) {}

  void Feed(Kernels& kernels, Stream& stream) {
    kernels.LayerNorm(stream, {.rows = kRows,
                               .columns = kColumns,
                               .epsilon = 1e-5F,
                               .x = x_,
                               .scale = scale_,
                               .offset = offset_,
                               .mean = mean_,
                               .inverse_deviation = inverse_,
                               .y = y_});
    kernels.SumRows(stream, {kRows, kColumns}, y_, sums_);
    kernels.MatMul({.m = kRows, .n = kRows, .k = kColumns, .transpose_b = true})
        .Run(stream, x_.data(), y_.data(), nullptr, z_.data());
    kernels.Add(stream, total_, z_, total_);
    kernels.SumSquares(stream, total_, squares_);
  }

 private:
  static constexpr std::int64_t kRows = 300;
  static constexpr std::int64_t kColumns = 96;
  const FloatSpan x_, scale_, offset_, y_, mean_, inverse_, sums_, z_, total_;
  const std::span<double> squares_;
};

TEST_P(DeviceConformance, AGraphDoesAgainWhatItsStreamWasFed) {
  CallMemory memory(device(), stream(), 0);
  SomeKernels some(memory);
  constexpr int kTimes = 3;
  for (int i = 0; i < kTimes; ++i) {
    some.Feed(kernels(), stream());
  }
  ASSERT_EQ(Synchronize(), OkStatus());
  const auto expected = memory.Results();
  memory.Reset();
  ASSERT_EQ(Synchronize(), OkStatus());
  const auto before = memory.Results();
  int fed = 0;
  const auto graph = device().Capture(stream(), [&] {
    ++fed;
    some.Feed(kernels(), stream());
  });
  if (graph == nullptr) {
    EXPECT_EQ(fed, 0);
    return;
  }
  EXPECT_EQ(fed, 1);
  ASSERT_EQ(Synchronize(), OkStatus());
  EXPECT_EQ(Difference(memory.Results(), before, 0), "") << "it ran while it was captured";
  for (int i = 0; i < kTimes; ++i) {
    graph->Replay(stream());
  }
  ASSERT_EQ(Synchronize(), OkStatus());
  EXPECT_EQ(Difference(memory.Results(), expected, 0), "");
}

TEST_P(DeviceConformance, AGraphInPartsLetsOtherWorkInBetween) {
  CallMemory memory(device(), stream(), 0);
  const FloatSpan one = memory.In({1.0F, 1.0F, 1.0F});
  const FloatSpan x = memory.InOut({1.0F, 2.0F, 3.0F});
  const FloatSpan y = memory.Out(3);
  const auto parts = device().CaptureParts(stream(), [&](const Device::Cut& cut) {
    kernels().Add(stream(), x, x, x);
    cut();
    kernels().Add(stream(), x, x, y);
  });
  if (parts.empty()) {
    return;  // it captures nothing
  }
  ASSERT_EQ(parts.size(), 2U);
  for (int i = 0; i < 2; ++i) {
    parts[0]->Replay(stream());
    kernels().Add(stream(), x, one, x);
    parts[1]->Replay(stream());
  }
  // What fails behind a cut leaves nothing behind.
  EXPECT_THROW((void)device().CaptureParts(stream(),
                                           [&](const Device::Cut& cut) {
                                             kernels().Add(stream(), x, one, x);
                                             cut();
                                             throw StatusError(DataLoss("in the second part"));
                                           }),
               StatusError);
  ASSERT_EQ(Synchronize(), OkStatus());
  const std::vector<std::vector<double>> expected = {{7, 11, 15}, {14, 22, 30}};
  EXPECT_EQ(Difference(memory.Results(), expected, 0), "");
}

}  // namespace
}  // namespace cohort::testing
