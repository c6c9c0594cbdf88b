#include "batch_builder.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <cohort/core/host_blocks.h>

#include "sources/guarded.h"
#include "sources/holds.h"

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

// Memory of the host, large blocks of it used again.
AllocateBytes ReusedBytes() {
  constexpr std::size_t kLarge = std::size_t{1} << 18;  // malloc keeps what is smaller
  return [blocks = std::make_shared<HostBlocks>(HostBytes)](std::size_t bytes) {
    return bytes < kLarge ? HostBytes(bytes) : blocks->Take(bytes);
  };
}

// A tensor to be written.
Tensor Room(const AllocateBytes& allocate, DType dtype, Shape shape) {
  const std::size_t bytes = static_cast<std::size_t>(shape.elements()) * SizeOf(dtype);
  return {dtype, std::move(shape), allocate(std::max<std::size_t>(bytes, 1))};
}

std::string Describe(const Tensor& tensor) {
  return std::string(DTypeName(tensor.dtype())) + tensor.shape().ToString();
}

// Lists one behind another, while they are added.
struct Lists {
  DType dtype = DType::kInt64;
  std::vector<std::byte> values;
  std::vector<std::int64_t> splits = {0};

  void EndList() { splits.push_back(static_cast<std::int64_t>(values.size() / SizeOf(dtype))); }
  Ragged Finish(const AllocateBytes& allocate) const {
    Ragged ragged{Room(allocate, dtype, {splits.back()}),
                  Room(allocate, DType::kInt64, Shape({static_cast<std::int64_t>(splits.size())}))};
    std::copy(splits.begin(), splits.end(), ragged.splits.data<std::int64_t>().begin());
    if (!values.empty()) {
      std::memcpy(ragged.values.raw(), values.data(), values.size());
    }
    return ragged;
  }
};

// A batch while its rows are filled from examples.
class Rows {
 public:
  // Room for `rows` examples like this one.
  Rows(const Example& example, const std::set<std::string>& ragged, std::int64_t rows,
       AllocateBytes allocate)
      : allocate_(std::move(allocate)) {
    batch_.size = rows;
    for (const auto& [name, tensor] : example) {
      if (ragged.contains(name)) {
        lists_[name].dtype = tensor.dtype();
      } else {
        batch_.features.emplace(name,
                                Room(allocate_, tensor.dtype(), WithRows(rows, tensor.shape())));
      }
    }
  }

  // Copies an example to its row; rows come one after another. The Status says how it differs from
  // the examples before it.
  Status Store(const Example& example, std::int64_t row) {
    for (const auto& [name, tensor] : example) {
      const auto list = lists_.find(name);
      if (list != lists_.end()) {
        COHORT_RETURN_IF_ERROR(Append(name, tensor, list->second));
        continue;
      }
      const auto it = batch_.features.find(name);
      if (it == batch_.features.end()) {
        return InvalidArgument("feature '" + name + "' is not in the examples before it");
      }
      const Tensor slot = RowOf(it->second, row);
      if (slot.dtype() != tensor.dtype() || slot.shape() != tensor.shape()) {
        return InvalidArgument("feature '" + name + "' is " + Describe(tensor) +
                               ", in the examples before it " + Describe(slot) +
                               (tensor.shape().rank() == 1 && slot.shape().rank() == 1
                                    ? " [Dataset::Lists takes lists of any length]"
                                    : ""));
      }
      if (slot.bytes() != 0) {
        std::memcpy(slot.raw(), tensor.raw(), slot.bytes());
      }
    }
    for (const auto& [name, tensor] : batch_.features) {
      if (!example.contains(name)) {
        return InvalidArgument("feature '" + name + "' of the examples before it is missing");
      }
    }
    for (const auto& [name, list] : lists_) {
      if (!example.contains(name)) {
        return InvalidArgument("feature '" + name + "' of the examples before it is missing");
      }
    }
    return {};
  }

  Batch Finish() && {
    for (const auto& [name, list] : lists_) {
      batch_.ragged.emplace(name, list.Finish(allocate_));
    }
    return std::move(batch_);
  }

 private:
  static Status Append(const std::string& name, const Tensor& tensor, Lists& list) {
    if (tensor.shape().rank() != 1 || tensor.dtype() != list.dtype) {
      return InvalidArgument("ragged feature '" + name + "' is " + Describe(tensor) + ", " +
                             std::string(DTypeName(list.dtype)) + " of one axis is expected");
    }
    list.values.insert(list.values.end(), tensor.raw(), tensor.raw() + tensor.bytes());
    list.EndList();
    return {};
  }

  const AllocateBytes allocate_;
  Batch batch_;
  std::map<std::string, Lists> lists_;
};

template <typename T>
T PadValue(double value) {
  if constexpr (std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>) {
    return T(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

template <typename T>
void FillWith(double value, const Tensor& tensor) {
  std::fill_n(tensor.data<T>().begin(), tensor.elements(), PadValue<T>(value));
}

void Fill(double value, const Tensor& tensor) {
  switch (tensor.dtype()) {
    case DType::kFloat32:
      return FillWith<float>(value, tensor);
    case DType::kFloat64:
      return FillWith<double>(value, tensor);
    case DType::kInt32:
      return FillWith<std::int32_t>(value, tensor);
    case DType::kInt64:
      return FillWith<std::int64_t>(value, tensor);
    case DType::kFloat16:
      return FillWith<Float16>(value, tensor);
    case DType::kBFloat16:
      return FillWith<BFloat16>(value, tensor);
    case DType::kUInt8:
      return FillWith<std::uint8_t>(value, tensor);
  }
}

// Makes ragged feature `name` of the batch a tensor; `where` of a row is for errors.
Status PadFeature(const std::string& name, const PadOptions& options,
                  const std::function<std::string(std::int64_t row)>& where,
                  const AllocateBytes& allocate, Batch& batch) {
  const auto it = batch.ragged.find(name);
  if (it == batch.ragged.end()) {
    return InvalidArgument("feature '" + name + "' is to be padded, and is not ragged");
  }
  const Ragged lists = it->second;
  if (!Holds(lists.values.dtype(), options.value)) {
    return InvalidArgument("feature '" + name + "' is " +
                           std::string(DTypeName(lists.values.dtype())) + ", which has no " +
                           std::to_string(options.value) + " to pad with");
  }
  const auto splits = lists.splits.data<std::int64_t>();
  Tensor lengths = Room(allocate, DType::kInt64, {batch.size});
  std::int64_t longest = 0;
  for (std::int64_t row = 0; row < batch.size; ++row) {
    const auto at = static_cast<std::size_t>(row);
    std::int64_t length = splits[at + 1] - splits[at];
    if (options.length > 0 && length > options.length) {
      if (!options.cut) {
        return InvalidArgument(where(row) + ": feature '" + name + "' holds " +
                               std::to_string(length) + " values, PadOptions.length is " +
                               std::to_string(options.length) + " [PadOptions.cut cuts]");
      }
      length = options.length;
    }
    lengths.data<std::int64_t>()[at] = length;
    longest = std::max(longest, length);
  }
  std::int64_t width = options.length;
  if (width == 0) {
    width = (longest + options.multiple - 1) / options.multiple * options.multiple;
  }
  const Tensor padded = Room(allocate, lists.values.dtype(), {batch.size, width});
  Fill(options.value, padded);
  const std::size_t bytes = SizeOf(padded.dtype());
  for (std::int64_t row = 0; row < batch.size; ++row) {
    const auto at = static_cast<std::size_t>(row);
    const auto length = static_cast<std::size_t>(lengths.data<std::int64_t>()[at]);
    if (length > 0) {
      std::memcpy(padded.raw() + static_cast<std::size_t>(row * width) * bytes,
                  lists.values.raw() + static_cast<std::size_t>(splits[at]) * bytes,
                  length * bytes);
    }
  }
  batch.ragged.erase(it);
  batch.features[name] = padded;
  if (!options.lengths.empty() &&
      !batch.features.emplace(options.lengths, std::move(lengths)).second) {
    return InvalidArgument("feature '" + options.lengths + "', the lengths of '" + name +
                           "', is there already");
  }
  return {};
}

}  // namespace

Status ApplyMaps(const std::vector<MapFn>& maps, const Source& source, std::int64_t index,
                 Example& example) {
  for (const MapFn& map : maps) {
    if (const Status status = Guarded(map, example); !status.ok()) {
      return status.Annotate("map of " + source.Where(index));
    }
  }
  return {};
}

BatchBuilder::BatchBuilder(std::shared_ptr<const Source> source, Recipe recipe,
                           AllocateBytes allocate)
    : source_(std::move(source)),
      bulk_(dynamic_cast<const BulkSource*>(source_.get())),
      recipe_(std::move(recipe)),
      allocate_(allocate ? std::move(allocate) : ReusedBytes()) {
  for (const RaggedSpec& spec : source_->ragged()) {
    recipe_.ragged.insert(spec.name);
  }
}

Result<Batch> BatchBuilder::Build(const BatchExamples& examples,
                                  const std::atomic<bool>& stop) const {
  const std::vector<std::int64_t>& indexes = examples.indexes;
  Result<Batch> batch = recipe_.maps.empty() ? ReadRows(indexes, stop, allocate_)
                        : indexes.empty()    ? BuildEmptyMapped(examples.sample)
                                             : BuildMapped(indexes, stop);
  if (!batch.ok()) {
    return batch;
  }
  for (const auto& [name, options] : recipe_.pads) {
    COHORT_RETURN_IF_ERROR(PadFeature(
        name, options,
        [&](std::int64_t row) { return source_->Where(indexes[static_cast<std::size_t>(row)]); },
        allocate_, *batch));
  }
  if (!recipe_.weights.empty()) {
    const Tensor weights = Room(allocate_, DType::kFloat32, {examples.size()});
    std::ranges::transform(examples.real, weights.data<float>().begin(),
                           [](bool real) { return real ? 1.0F : 0.0F; });
    if (batch->ragged.contains(recipe_.weights) ||
        !batch->features.emplace(recipe_.weights, weights).second) {
      return InvalidArgument("feature '" + recipe_.weights +
                             "', the weights of a padded batch, is there already [give Batch "
                             "another name for them]");
    }
  }
  return batch;
}

std::optional<std::int64_t> BatchBuilder::BytesOf(std::int64_t examples) const {
  if (!recipe_.maps.empty() || !source_->ragged().empty()) {
    return std::nullopt;
  }
  std::size_t bytes = recipe_.weights.empty() ? 0 : sizeof(float);
  for (const FeatureSpec& feature : source_->features()) {
    bytes += feature.bytes();
  }
  return examples * static_cast<std::int64_t>(bytes);
}

Result<Batch> BatchBuilder::ReadRows(std::span<const std::int64_t> indexes,
                                     const std::atomic<bool>& stop,
                                     const AllocateBytes& allocate) const {
  const std::vector<FeatureSpec>& features = source_->features();
  Batch batch{std::ssize(indexes), {}};
  std::vector<std::byte*> rows;
  std::vector<std::size_t> strides;
  for (const FeatureSpec& feature : features) {
    const Tensor tensor = Room(allocate, feature.dtype, WithRows(batch.size, feature.shape));
    rows.push_back(tensor.raw());
    strides.push_back(feature.bytes());
    batch.features.emplace(feature.name, tensor);
  }
  const std::vector<RaggedSpec>& ragged = source_->ragged();
  std::vector<Lists> lists(ragged.size());
  std::vector<std::vector<std::byte>> values(ragged.size());
  for (std::size_t i = 0; i < ragged.size(); ++i) {
    lists[i].dtype = ragged[i].dtype;
  }
  if (bulk_ != nullptr) {
    std::vector<std::vector<std::int64_t>> ends(ragged.size());
    COHORT_RETURN_IF_ERROR(bulk_->ReadMany(indexes, rows, values, ends));
    for (std::size_t i = 0; i < lists.size(); ++i) {
      for (const std::int64_t end : ends[i]) {
        lists[i].splits.push_back(end / static_cast<std::int64_t>(SizeOf(lists[i].dtype)));
      }
    }
  } else {
    for (const std::int64_t index : indexes) {
      if (stop.load(std::memory_order_relaxed)) {
        return Cancelled("the iterator is being destroyed");
      }
      COHORT_RETURN_IF_ERROR(lists.empty() ? source_->ReadInto(index, rows)
                                           : source_->ReadRagged(index, rows, values));
      for (std::size_t i = 0; i < rows.size(); ++i) {
        rows[i] += strides[i];
      }
      for (std::size_t i = 0; i < lists.size(); ++i) {
        lists[i].splits.push_back(
            static_cast<std::int64_t>(values[i].size() / SizeOf(lists[i].dtype)));
      }
    }
  }
  for (std::size_t i = 0; i < lists.size(); ++i) {
    lists[i].values = std::move(values[i]);
    batch.ragged.emplace(ragged[i].name, lists[i].Finish(allocate));
  }
  return batch;
}

Result<Batch> BatchBuilder::BuildMapped(std::span<const std::int64_t> indexes,
                                        const std::atomic<bool>& stop) const {
  // Memory of this batch's own, not reused: a map may keep the tensors that it is given.
  COHORT_ASSIGN_OR_RETURN(const Batch read, ReadRows(indexes, stop, HostBytes));
  std::optional<Rows> rows;
  for (std::int64_t row = 0; row < read.size; ++row) {
    if (stop.load(std::memory_order_relaxed)) {
      return Cancelled("the iterator is being destroyed");
    }
    const std::int64_t index = indexes[static_cast<std::size_t>(row)];
    Example example;
    for (const auto& [name, tensor] : read.features) {
      example.emplace(name, RowOf(tensor, row));
    }
    for (const auto& [name, lists] : read.ragged) {
      const auto splits = lists.splits.data<std::int64_t>();
      const auto at = static_cast<std::size_t>(row);
      example.emplace(name, lists.values.Rows(splits[at], splits[at + 1]));
    }
    COHORT_RETURN_IF_ERROR(ApplyMaps(recipe_.maps, *source_, index, example));
    if (!rows.has_value()) {
      rows.emplace(example, recipe_.ragged, read.size, allocate_);
    }
    if (Status status = rows->Store(example, row); !status.ok()) {
      return status.Annotate("map of " + source_->Where(index));
    }
  }
  return (*std::move(rows)).Finish();
}

Result<Batch> BatchBuilder::BuildEmptyMapped(std::int64_t sample) const {
  // What a map makes is known only by making it.
  if (source_->size() == 0) {  // of one process, where each has data of its own
    return InvalidArgument(
        "this process has no example, and what a map would make of one is not known [give each "
        "process some, or leave out the map]");
  }
  COHORT_ASSIGN_OR_RETURN(Example example, source_->Read(sample));
  COHORT_RETURN_IF_ERROR(ApplyMaps(recipe_.maps, *source_, sample, example));
  return Rows(example, recipe_.ragged, 0, allocate_).Finish();
}

}  // namespace cohort::data
