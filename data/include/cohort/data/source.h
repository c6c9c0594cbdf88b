// Source: random access to examples by index. What Dataset reads from, and what a format of your
// own implements.
//
// Every example of a source has the same features, with the same element types and shapes: that is
// what lets a record be decoded straight into its row of a batch. Data whose shape varies is given
// a fixed one by the source (padded, hashed, cropped), or one record at a time by Dataset::Map;
// lists of any length are ragged features.
//
// Thread rules: immutable after construction; every method from many threads at once.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/dtype.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>

namespace cohort::data {

// One example: named tensors without the example axis.
using Example = std::map<std::string, Tensor>;

struct FeatureSpec {
  std::string name;
  DType dtype = DType::kFloat32;
  Shape shape;  // of one example

  std::size_t bytes() const { return static_cast<std::size_t>(shape.elements()) * SizeOf(dtype); }
  friend bool operator==(const FeatureSpec&, const FeatureSpec&) = default;
};

// A feature of any number of values: a tensor of one axis in an example, a Ragged in a batch.
struct RaggedSpec {
  std::string name;
  DType dtype = DType::kInt64;

  friend bool operator==(const RaggedSpec&, const RaggedSpec&) = default;
};

// Examples [begin, end) of a source stand in this file.
struct FileRange {
  std::string name;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t bytes = 0;  // of the file; 0: not known, or none
};

class Source {
 public:
  virtual ~Source() = default;

  virtual std::int64_t size() const = 0;  // examples
  // What an example consists of; names are unique.
  virtual const std::vector<FeatureSpec>& features() const = 0;

  // Decodes example `index`: feature i of features() into the features()[i].bytes() bytes at
  // rows[i], which need not be zero before. 0 <= index < size(). Errors name the file and the
  // ordinal of the record in it.
  virtual Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const = 0;
  // The features of any length, if there are any; names differ also from those of features().
  virtual const std::vector<RaggedSpec>& ragged() const;
  // As ReadInto, and appends the bytes of the values of ragged()[i] to values[i].
  virtual Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                            std::span<std::vector<std::byte>> values) const;
  // All features as tensors of its own.
  Result<Example> Read(std::int64_t index) const;

  // How this source reads in an epoch, where that depends on it (data sets put together that are
  // shuffled); null: as in every other. As many examples with the same features.
  virtual std::shared_ptr<const Source> AtEpoch(std::int64_t epoch) const;

  // Where example `index` comes from, for error messages: "train.csv, line 17".
  virtual std::string Where(std::int64_t index) const = 0;
  // The files in the order of their examples, without gaps, those without examples included; empty
  // if the data does not come from files. What ShardPolicy::kFile divides.
  virtual std::vector<FileRange> files() const { return {}; }
  // A digest of the content: equal where two processes read equal data, whatever its path. May take
  // as long as a pass over the data.
  virtual std::uint64_t Fingerprint() const = 0;
};

}  // namespace cohort::data
