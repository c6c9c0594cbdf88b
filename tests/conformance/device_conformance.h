// What every Device must do: memory, copies, streams, graphs, and each kernel as the CPU's table
// computes it. A device instantiates the suite with a few lines: see device_conformance_test.cc.
#pragma once

#include <cohort/device/device.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

namespace cohort::testing {

struct DeviceCase {
  std::string name;
  std::function<std::shared_ptr<Device>()> make;
  int threads = 1;              // of its kernels
  bool inline_streams = false;  // work runs as it is put on a stream
  bool large = false;           // sizes that fill an accelerator, too
  bool tf32 = false;            // operands of products may have 10 bits of mantissa

  friend std::ostream& operator<<(std::ostream& out, const DeviceCase& device) {
    return out << device.name;
  }
};

// The memory of one call of a kernel, on a device or (for the oracle) the host. Every buffer lies
// among guards that a kernel must leave alone, as it must its inputs; outputs hold NaNs before.
class CallMemory {
 public:
  // Each buffer begins `offset` elements behind where memory is aligned.
  CallMemory(Device& device, Stream& stream, std::int64_t offset);

  FloatSpan In(std::vector<float> values);
  FloatSpan In(std::int64_t size, std::uint64_t seed);  // uniform in [-1, 1)
  FloatSpan Out(std::int64_t size);
  FloatSpan InOut(std::vector<float> values);
  FloatSpan InOut(std::int64_t size, std::uint64_t seed);
  std::span<double> OutDoubles(std::int64_t size);
  // The same of `type`, which the values are rounded to. Results are what they hold.
  Elements In(std::vector<float> values, DType type);
  Elements Out(std::int64_t size, DType type);
  Elements InOut(std::vector<float> values, DType type);
  Indices Ids(const std::vector<std::int64_t>& ids, bool wide);
  std::byte* Workspace(std::int64_t bytes);  // written by one call for another

  // After the call has run: what the outputs hold, in the order in which they were made. Failures
  // where anything else changed.
  std::vector<std::vector<double>> Results();
  // Makes outputs NaN again, and inputs that are outputs what they were.
  void Reset();

 private:
  enum class Use { kIn, kOut, kWorkspace };
  struct Buffer {
    std::shared_ptr<std::byte> memory;
    std::vector<std::byte> before;
    std::size_t begin = 0;  // of what the call is given
    std::size_t bytes = 0;
    Use use = Use::kIn;
    DType type = DType::kFloat32;
  };

  std::byte* Add(const void* values, std::size_t bytes, Use use, DType type = DType::kFloat32);
  Elements AddElements(const std::vector<float>& values, Use use, DType type);

  Device& device_;
  Stream& stream_;
  const std::int64_t offset_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

struct Call {
  Kernels& kernels;
  Stream& stream;
  CallMemory& memory;
};

std::vector<float> RandomFloats(std::int64_t size, std::uint64_t seed);
// What they are in `type`.
std::vector<float> RoundedTo(DType type, std::vector<float> values);
inline constexpr DType kHalves[] = {DType::kBFloat16, DType::kFloat16};
// What rounding to such a type changes, as a share.
double RoundingOf(DType half);

class DeviceConformance : public ::testing::TestWithParam<DeviceCase> {
 protected:
  DeviceConformance();
  ~DeviceConformance() override;

  Device& device() { return *device_; }
  Stream& stream() { return *stream_; }
  Kernels& kernels() { return *kernels_; }
  bool large() const { return GetParam().large; }
  Status Synchronize();

  // `call` puts kernels on the stream. It runs on the device with aligned buffers, twice, and with
  // others; all of that must come to the same bits where buffers are equally aligned, and to the
  // oracle's results: |difference| <= tolerance * max(1, |expected|); 0: equal bits, but for NaNs'.
  void Check(double tolerance, const std::function<void(const Call&)>& call);
  // The same against `expected`, a plain loop: by output.
  void Check(double tolerance, const std::function<void(const Call&)>& call,
             const std::vector<std::vector<double>>& expected);
  // The call fails the stream, with the status that the oracle gives.
  void CheckFails(const std::function<void(const Call&)>& call);

  // The outputs of one run.
  std::vector<std::vector<double>> RunOnDevice(std::int64_t offset,
                                               const std::function<void(const Call&)>& call);
  // And of the oracle's.
  std::vector<std::vector<double>> RunOnOracle(const std::function<void(const Call&)>& call);

 private:
  std::shared_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<Stream> host_stream_;
  std::unique_ptr<Kernels> oracle_;
};

// Kernels of the table.
class DeviceKernels : public DeviceConformance {
 protected:
  std::vector<std::int64_t> sizes() const;
  // Rows and columns: nothing, one, odd, wide, many.
  std::vector<RowsOf> shapes() const;
};

// Its plans.
class DevicePlans : public DeviceConformance {
 protected:
  // What the sum of `count` products of numbers in [-1, 1) may be off by.
  double ProductRounding(std::int64_t count) const;
};

// Makes operands whose values are those of a type of 16 bits, in that type or in float32.
class Maker {
 public:
  Maker(const Call& call, DType values, DType type) : call_(call), values_(values), type_(type) {}

  Elements In(std::int64_t size, std::uint64_t seed, float factor = 1) const;
  Elements InOut(std::int64_t size, std::uint64_t seed) const;
  Elements Out(std::int64_t size) const { return call_.memory.Out(size, type_); }
  DType type() const { return type_; }

 private:
  const Call& call_;
  const DType values_;
  const DType type_;
};

// Both, with operands of 16 bits.
class DeviceHalves : public DeviceKernels {
 protected:
  // `call` with operands of each of these types against the oracle in float32: its results, rounded
  // so often where they are of 16 bits, within `tolerance`.
  void CheckHalves(double tolerance, const std::function<void(const Call&, const Maker&)>& call,
                   int roundings = 1);
};

inline std::string DeviceCaseName(const ::testing::TestParamInfo<DeviceCase>& info) {
  return info.param.name;
}

}  // namespace cohort::testing
