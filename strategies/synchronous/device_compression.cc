#include "synchronous/device_compression.h"

#include <algorithm>
#include <utility>

namespace cohort {
namespace {

std::span<float> FloatsAt(const std::shared_ptr<std::byte>& memory, std::size_t count) {
  return {reinterpret_cast<float*>(memory.get()), count};
}

// What holds so many elements of 16 bits.
std::size_t FloatsFor(std::int64_t halves) { return (static_cast<std::size_t>(halves) + 1) / 2; }

}  // namespace

DeviceCompression::DeviceCompression(std::vector<DeviceCopy*> copies,
                                     const ParameterSet& parameters, std::int64_t elements,
                                     const CompressionOptions& options)
    : dtype_(options.dtype), elements_(elements), parameters_(parameters.all().size()) {
  for (DeviceCopy* const copy : copies) {
    OfDevice device{.copy = copy, .wire = nullptr, .residuals = nullptr};
    device.wire = copy->device()->Allocate(FloatsFor(elements) * sizeof(float),
                                           "gradients of 16 bits on their way");
    if (options.error_feedback) {
      device.residuals = copy->device()->Allocate(
          std::max<std::size_t>(1, parameters_) * sizeof(float), "what gradients of 16 bits lost");
    }
    devices_.push_back(std::move(device));
  }
  // All memory is there: from here on nothing throws, and what is filled stays.
  for (const OfDevice& device : devices_) {
    if (device.residuals != nullptr) {
      device.copy->kernels().Fill(device.copy->stream(), FloatsAt(device.residuals, parameters_),
                                  0.0F);
    }
  }
  Rebuild();
}

void DeviceCompression::Rebuild() {
  for (const OfDevice& device : devices_) {
    device.copy->kernels().Fill(device.copy->stream(), FloatsAt(device.wire, FloatsFor(elements_)),
                                0.0F);
  }
}

Elements DeviceCompression::Wire(const OfDevice& device, std::int64_t begin,
                                 std::size_t elements) const {
  return {device.wire.get() + static_cast<std::size_t>(begin) * SizeOf(dtype_), elements, dtype_};
}

Buffer DeviceCompression::Compress(std::size_t copy, std::span<const float> values,
                                   std::int64_t begin, std::span<const BucketPart> parts,
                                   double weight) {
  const OfDevice& device = devices_.at(copy);
  for (const BucketPart& part : parts) {
    const auto elements = static_cast<std::size_t>(part.shape.elements());
    if (elements == 0) {
      continue;
    }
    const std::span<float> residual =
        device.residuals == nullptr ? std::span<float>()
                                    : FloatsAt(device.residuals, parameters_)
                                          .subspan(static_cast<std::size_t>(part.offset), elements);
    device.copy->kernels().Compress(device.copy->stream(),
                                    values.subspan(static_cast<std::size_t>(part.begin), elements),
                                    weight, residual, Wire(device, begin + part.begin, elements));
  }
  const Elements wire = Wire(device, begin, values.size());
  return {wire.raw(), static_cast<std::int64_t>(wire.size()), dtype_};
}

void DeviceCompression::Expand(std::size_t copy, std::span<float> values, std::int64_t begin) {
  const OfDevice& device = devices_.at(copy);
  if (!values.empty()) {
    device.copy->kernels().Copy(device.copy->stream(), Wire(device, begin, values.size()), values);
  }
}

}  // namespace cohort
