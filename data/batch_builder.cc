#include "batch_builder.h"

#include <cstring>
#include <exception>

namespace cohort::data {
namespace {

Shape WithRows(std::int64_t rows, const Shape& shape) {
  std::vector<std::int64_t> dims = {rows};
  dims.insert(dims.end(), shape.dims().begin(), shape.dims().end());
  return Shape(std::move(dims));
}

Shape WithoutRows(const Shape& shape) {
  return Shape(std::vector<std::int64_t>(shape.dims().begin() + 1, shape.dims().end()));
}

Tensor RowOf(const Tensor& tensor, std::int64_t row) {
  return tensor.Rows(row, row + 1).Reshaped(WithoutRows(tensor.shape()));
}

std::string Describe(const Tensor& tensor) {
  return std::string(DTypeName(tensor.dtype())) + tensor.shape().ToString();
}

// Room for `rows` examples like this one.
Batch BatchLike(const Example& example, std::int64_t rows) {
  Batch batch{rows, {}};
  for (const auto& [name, tensor] : example) {
    batch.features.emplace(name, Tensor(tensor.dtype(), WithRows(rows, tensor.shape())));
  }
  return batch;
}

// Copies an example to its row; the Status says how it differs from the row's shape.
Status Store(const Example& example, std::int64_t row, Batch& batch) {
  for (const auto& [name, tensor] : example) {
    const auto it = batch.features.find(name);
    if (it == batch.features.end()) {
      return InvalidArgument("feature '" + name + "' is not in the examples before it");
    }
    const Tensor slot = RowOf(it->second, row);
    if (slot.dtype() != tensor.dtype() || slot.shape() != tensor.shape()) {
      return InvalidArgument("feature '" + name + "' is " + Describe(tensor) +
                             ", in the examples before it " + Describe(slot));
    }
    if (slot.bytes() != 0) {
      std::memcpy(slot.raw(), tensor.raw(), slot.bytes());
    }
  }
  if (example.size() != batch.features.size()) {
    for (const auto& [name, tensor] : batch.features) {
      if (!example.contains(name)) {
        return InvalidArgument("feature '" + name + "' of the examples before it is missing");
      }
    }
  }
  return {};
}

}  // namespace

Result<Batch> BatchBuilder::Build(const EpochOrder& order, Range positions,
                                  const std::atomic<bool>& stop) const {
  if (maps_.empty()) {
    return ReadRows(order, positions, stop);
  }
  return positions.size() == 0 ? BuildEmptyMapped(order) : BuildMapped(order, positions, stop);
}

Result<Batch> BatchBuilder::ReadRows(const EpochOrder& order, Range positions,
                                     const std::atomic<bool>& stop) const {
  const std::vector<FeatureSpec>& features = source_->features();
  Batch batch{positions.size(), {}};
  std::vector<std::byte*> rows;
  std::vector<std::size_t> strides;
  for (const FeatureSpec& feature : features) {
    const Tensor tensor(feature.dtype, WithRows(positions.size(), feature.shape));
    rows.push_back(tensor.raw());
    strides.push_back(feature.bytes());
    batch.features.emplace(feature.name, tensor);
  }
  for (std::int64_t p = positions.begin; p < positions.end; ++p) {
    if (stop.load(std::memory_order_relaxed)) {
      return Cancelled("the iterator is being destroyed");
    }
    COHORT_RETURN_IF_ERROR(source_->ReadInto(order.At(p), rows));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i] += strides[i];
    }
  }
  return batch;
}

Status BatchBuilder::ApplyMaps(std::int64_t index, Example& example) const {
  for (const MapFn& map : maps_) {
    Status status;
    try {
      status = map(example);
    } catch (const std::exception& error) {
      status = Internal(std::string("exception: ") + error.what());
    }
    if (!status.ok()) {
      return status.Annotate("map of " + source_->Where(index));
    }
  }
  return {};
}

Result<Batch> BatchBuilder::BuildMapped(const EpochOrder& order, Range positions,
                                        const std::atomic<bool>& stop) const {
  // Memory of this batch's own, not reused: a map may keep the tensors that it is given.
  COHORT_ASSIGN_OR_RETURN(const Batch read, ReadRows(order, positions, stop));
  Batch batch;
  for (std::int64_t row = 0; row < positions.size(); ++row) {
    if (stop.load(std::memory_order_relaxed)) {
      return Cancelled("the iterator is being destroyed");
    }
    const std::int64_t index = order.At(positions.begin + row);
    Example example;
    for (const auto& [name, tensor] : read.features) {
      example.emplace(name, RowOf(tensor, row));
    }
    COHORT_RETURN_IF_ERROR(ApplyMaps(index, example));
    if (row == 0) {
      batch = BatchLike(example, positions.size());
    }
    if (Status status = Store(example, row, batch); !status.ok()) {
      return status.Annotate("map of " + source_->Where(index));
    }
  }
  return batch;
}

Result<Batch> BatchBuilder::BuildEmptyMapped(const EpochOrder& order) const {
  // What a map makes is known only by making it. There is an example: an epoch has no batches
  // otherwise.
  const std::int64_t index = order.size() > 0 ? order.At(0) : 0;
  COHORT_ASSIGN_OR_RETURN(Example example, source_->Read(index));
  COHORT_RETURN_IF_ERROR(ApplyMaps(index, example));
  return BatchLike(example, 0);
}

}  // namespace cohort::data
