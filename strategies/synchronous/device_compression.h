// DeviceCompression: gradients of devices as 16-bit floats on their way through NCCL, by the
// devices' own kernels: what MakeCompressionHook does with those in the host's memory.
//
// Each device rounds the sum over its replicas to memory of its own, from which NCCL adds in that
// type; what comes back is widened into the arena. What the rounding lost is kept on the device, by
// parameter, for its next gradient.
//
// Thread rules: as DeviceSums: one thread at a time, the one that may feed the streams of the
// copies.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <cohort/comm/communicator.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/bucket_hook.h>

#include "synchronous/bucket_plan.h"
#include "synchronous/device_copy.h"

namespace cohort {

class DeviceCompression {
 public:
  // Arenas have `elements`. Throws StatusError.
  DeviceCompression(std::vector<DeviceCopy*> copies, const ParameterSet& parameters,
                    std::int64_t elements, const CompressionOptions& options);

  // Buckets lie elsewhere from now on.
  void Rebuild();
  // Puts on the stream of the copy what rounds a bucket's gradients, which are elements [begin,
  // begin + values.size()) of its arena: to what is to be summed, in place. `weight`: what they
  // were scaled by; 0: they are zeros.
  Buffer Compress(std::size_t copy, std::span<const float> values, std::int64_t begin,
                  std::span<const BucketPart> parts, double weight);
  // And what widens the sums, back there.
  void Expand(std::size_t copy, std::span<float> values, std::int64_t begin);

 private:
  struct OfDevice {
    DeviceCopy* copy = nullptr;
    std::shared_ptr<std::byte> wire;       // as an arena; between parameters lie zeros
    std::shared_ptr<std::byte> residuals;  // as ParameterSet::all(); nullptr: no feedback
  };

  Elements Wire(const OfDevice& device, std::int64_t begin, std::size_t elements) const;

  const DType dtype_;
  const std::int64_t elements_;
  const std::size_t parameters_;  // elements of all
  std::vector<OfDevice> devices_;
};

}  // namespace cohort
