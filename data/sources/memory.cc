#include <cohort/data/memory.h>

#include <cstring>

#include <cohort/core/random.h>
#include <cohort/io/crc32c.h>

#include "sources/memory_source.h"

namespace cohort::data {

MemorySource::MemorySource(const Example& tensors, std::int64_t size) : size_(size) {
  for (const auto& [name, tensor] : tensors) {
    std::vector<std::int64_t> dims = tensor.shape().dims();
    dims.erase(dims.begin());
    features_.push_back({name, tensor.dtype(), Shape(std::move(dims))});
    tensors_.push_back(tensor);
  }
}

Status MemorySource::ReadInto(std::int64_t index, std::span<std::byte* const> rows) const {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const std::size_t bytes = features_[i].bytes();
    if (bytes != 0) {
      std::memcpy(rows[i], tensors_[i].raw() + static_cast<std::size_t>(index) * bytes, bytes);
    }
  }
  return {};
}

std::string MemorySource::Where(std::int64_t index) const {
  return "example " + std::to_string(index);
}

std::uint64_t MemorySource::Fingerprint() const {
  std::uint64_t digest = Hash64("memory");
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const Tensor& tensor = tensors_[i];
    digest = Hash64(
        features_[i].name + std::string(DTypeName(tensor.dtype())) + tensor.shape().ToString(),
        digest);
    digest = Hash64(std::to_string(io::Crc32c({tensor.raw(), tensor.bytes()})), digest);
  }
  return digest;
}

Result<Dataset> FromTensors(const Example& tensors) {
  if (tensors.empty()) {
    return InvalidArgument("a data set in memory needs at least one tensor");
  }
  std::int64_t size = -1;
  std::string first;
  for (const auto& [name, tensor] : tensors) {
    if (tensor.shape().rank() == 0) {
      return InvalidArgument("tensor '" + name + "' is a scalar [its first axis is the example]");
    }
    if (size >= 0 && tensor.shape()[0] != size) {
      return InvalidArgument("tensor '" + name + "' has " + std::to_string(tensor.shape()[0]) +
                             " examples, tensor '" + first + "' has " + std::to_string(size));
    }
    size = tensor.shape()[0];
    first = name;
  }
  return Dataset(std::make_shared<MemorySource>(tensors, size));
}

}  // namespace cohort::data
