#include <cohort/data/arrays.h>

#include <map>
#include <memory>
#include <set>

#include <cohort/core/random.h>
#include <cohort/io/safetensors.h>

#include "sources/content.h"
#include "sources/npy.h"
#include "sources/sizes.h"

namespace cohort::data {
namespace {

// An array in a file.
struct StoredArray {
  DType dtype = DType::kFloat32;
  Shape shape;
  std::uint64_t begin = 0;        // byte of the file
  std::size_t stored_bytes = 0;   // of an element
  const NpyType* type = nullptr;  // .npy; null: stored as dtype
};

// Rows of an array.
struct Column {
  std::string path;
  std::shared_ptr<const RandomAccessFile> file;  // owners: the columns of this file
  StoredArray array;
  std::size_t elements = 0;  // of a row

  std::size_t row_bytes() const { return elements * array.stored_bytes; }

  Status ReadRow(std::int64_t index, std::byte* out) const {
    const std::uint64_t at = array.begin + static_cast<std::uint64_t>(index) * row_bytes();
    if (array.type == nullptr || array.type->widen == nullptr) {
      return ReadExactly(*file, path, at, {out, row_bytes()});
    }
    std::vector<std::byte> stored(row_bytes());
    COHORT_RETURN_IF_ERROR(ReadExactly(*file, path, at, stored));
    array.type->widen(stored.data(), elements, out);
    return {};
  }
};

class ArraySource final : public Source {
 public:
  // At least one column; as many examples in all.
  ArraySource(const std::vector<ArrayFeature>& features, std::vector<Column> columns)
      : columns_(std::move(columns)), size_(columns_.front().array.shape[0]) {
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      std::vector<std::int64_t> dims = columns_[i].array.shape.dims();
      dims.erase(dims.begin());
      features_.push_back({features[i].name, columns_[i].array.dtype, Shape(std::move(dims))});
      columns_[i].elements = static_cast<std::size_t>(features_.back().shape.elements());
    }
  }

  std::int64_t size() const override { return size_; }
  const std::vector<FeatureSpec>& features() const override { return features_; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const Status status = columns_[i].ReadRow(index, rows[i]);
      if (!status.ok()) {
        return status.Annotate("feature '" + features_[i].name + "', row " + std::to_string(index));
      }
    }
    return {};
  }

  std::string Where(std::int64_t index) const override {
    return columns_.front().path + ", row " + std::to_string(index);
  }
  // All columns as one, whose rows are read together.
  std::vector<FileRange> files() const override {
    std::int64_t bytes = 0;
    for (const Column& column : columns_) {
      bytes += size_ * static_cast<std::int64_t>(column.row_bytes());
    }
    return {{columns_.front().path, 0, size_, bytes}};
  }

  std::uint64_t Fingerprint() const override {
    std::uint64_t digest = Hash64("arrays");
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const StoredArray& array = columns_[i].array;
      digest = Hash64(
          features_[i].name + "/" + std::string(DTypeName(array.dtype)) + array.shape.ToString(),
          digest);
      const std::uint64_t bytes = static_cast<std::uint64_t>(size_) * columns_[i].row_bytes();
      digest =
          Hash64(std::to_string(ContentDigest(*columns_[i].file, array.begin, array.begin + bytes,
                                              kDigestBytes / columns_.size())),
                 digest);
    }
    return digest;
  }

 private:
  std::vector<Column> columns_;
  std::int64_t size_;
  std::vector<FeatureSpec> features_;
};

// A file of arrays, its header read.
struct ArrayFile {
  std::shared_ptr<const RandomAccessFile> file;  // owners: the columns made from it
  bool is_npy = false;
  std::map<std::string, StoredArray> arrays;  // .npy: one, without a name

  static Result<ArrayFile> Open(FileSystem& files, const std::string& path);
};

Status NotArrays(const std::string& path, std::string_view start) {
  std::string hint = "a file written by numpy.save or safetensors is expected";
  if (start.starts_with("PK")) {
    hint = "a zip archive, .npz? unzip it: every member is a .npy file";
  } else if (start.starts_with("\x1f\x8b")) {
    hint = "a gzip file: unpack it, rows are read where they lie";
  }
  return DataLoss(path + ": neither .npy nor safetensors [" + hint + "]");
}

Result<ArrayFile> ArrayFile::Open(FileSystem& files, const std::string& path) {
  ArrayFile result;
  COHORT_ASSIGN_OR_RETURN(result.file, OpenRaw(files, path));
  std::string start(9, '\0');
  COHORT_ASSIGN_OR_RETURN(const std::size_t n,
                          result.file->Read(0, std::as_writable_bytes(std::span(start))));
  start.resize(n);
  if (start.starts_with(kNpyMagic)) {
    result.is_npy = true;
    COHORT_ASSIGN_OR_RETURN(NpyHeader header, ReadNpyHeader(*result.file, path));
    result.arrays[""] = {header.type->dtype, std::move(header.shape), header.data_begin,
                         header.type->stored_bytes, header.type};
    return result;
  }
  if (start.size() < 9 || start[8] != '{') {
    return NotArrays(path, start);
  }
  COHORT_ASSIGN_OR_RETURN(const auto entries, io::ReadSafetensorsHeader(*result.file, path));
  for (const io::SafetensorsEntry& entry : entries) {
    result.arrays[entry.name] = {entry.dtype, entry.shape, entry.begin, SizeOf(entry.dtype)};
  }
  return result;
}

Result<Column> MakeColumn(const ArrayFile& file, const ArrayFeature& feature) {
  const std::string& wanted = feature.tensor.empty() ? feature.name : feature.tensor;
  if (file.is_npy && !feature.tensor.empty()) {
    return InvalidArgument(feature.path + ": a .npy file has no tensor '" + feature.tensor +
                           "', its array has no name [leave ArrayFeature.tensor empty]");
  }
  const auto it = file.arrays.find(file.is_npy ? "" : wanted);
  if (it == file.arrays.end()) {
    constexpr std::size_t kListed = 20;
    std::string listed;
    std::size_t count = 0;
    for (const auto& [name, array] : file.arrays) {
      listed += count == 0 ? "" : ", ";
      if (++count > kListed) {
        listed += "... (" + std::to_string(file.arrays.size()) + ")";
        break;
      }
      listed += name;
    }
    return NotFound(feature.path + ": no tensor '" + wanted + "'; there are: " + listed);
  }
  if (it->second.shape.rank() == 0) {
    return InvalidArgument(feature.path + ": feature '" + feature.name +
                           "' is a scalar [its first axis is the example]");
  }
  if (!CheckedBytes(it->second.shape.dims(), it->second.stored_bytes).has_value()) {
    return DataLoss(feature.path + ": feature '" + feature.name + "' has shape " +
                    it->second.shape.ToString() + ", larger than any file");
  }
  return Column{feature.path, file.file, it->second};
}

}  // namespace

Result<Dataset> Arrays(const std::vector<ArrayFeature>& features, const ArrayOptions& options) {
  if (features.empty()) {
    return InvalidArgument("arrays: no features to read");
  }
  std::map<std::string, ArrayFile> open;
  std::set<std::string> names;
  std::vector<Column> columns;
  for (const ArrayFeature& feature : features) {
    if (!names.insert(feature.name).second) {
      return InvalidArgument("arrays: feature '" + feature.name + "' is asked for twice");
    }
    auto it = open.find(feature.path);
    if (it == open.end()) {
      COHORT_ASSIGN_OR_RETURN(ArrayFile file, ArrayFile::Open(*options.files, feature.path));
      it = open.emplace(feature.path, std::move(file)).first;
    }
    COHORT_ASSIGN_OR_RETURN(Column column, MakeColumn(it->second, feature));
    columns.push_back(std::move(column));
    if (columns.back().array.shape[0] != columns.front().array.shape[0]) {
      return InvalidArgument(feature.path + ": feature '" + feature.name + "' has " +
                             std::to_string(columns.back().array.shape[0]) +
                             " examples, feature '" + features.front().name + "' of " +
                             features.front().path + " has " +
                             std::to_string(columns.front().array.shape[0]));
    }
  }
  return Dataset(std::make_shared<ArraySource>(features, std::move(columns)));
}

Result<Dataset> Safetensors(const std::string& path, const ArrayOptions& options) {
  COHORT_ASSIGN_OR_RETURN(const ArrayFile file, ArrayFile::Open(*options.files, path));
  if (file.is_npy) {
    return InvalidArgument(path + ": a .npy file, not safetensors [name its feature in Arrays]");
  }
  std::vector<ArrayFeature> features;
  for (const auto& [name, array] : file.arrays) {
    features.push_back({.name = name, .path = path});
  }
  if (features.empty()) {
    return InvalidArgument(path + ": holds no tensors");
  }
  return Arrays(features, options);
}

Result<Tensor> ReadNpy(FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const auto file, OpenRaw(files, path));
  COHORT_ASSIGN_OR_RETURN(const NpyHeader header, ReadNpyHeader(*file, path));
  Tensor tensor(header.type->dtype, header.shape);
  const auto elements = static_cast<std::size_t>(tensor.elements());
  if (header.type->widen == nullptr) {
    COHORT_RETURN_IF_ERROR(
        ReadExactly(*file, path, header.data_begin, {tensor.raw(), tensor.bytes()}));
    return tensor;
  }
  std::vector<std::byte> stored(elements * header.type->stored_bytes);
  COHORT_RETURN_IF_ERROR(ReadExactly(*file, path, header.data_begin, stored));
  header.type->widen(stored.data(), elements, tensor.raw());
  return tensor;
}

Status WriteNpy(FileSystem& files, const std::string& path, const Tensor& tensor) {
  std::string bytes = EncodeNpyHeader(tensor.dtype(), tensor.shape());
  bytes.append(reinterpret_cast<const char*>(tensor.raw()), tensor.bytes());
  return WriteFileAtomically(files, path, bytes);
}

}  // namespace cohort::data
