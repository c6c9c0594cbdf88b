// Columns to what models take: vocabularies, buckets, crosses, normalisation.
//
// Thread rules: values and pure functions, any thread; the functions for Map from several threads
// at once.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/data/source.h>

namespace cohort::data {

// Text to its position in a list, and what is not in the list to one of the buckets behind it.
class Vocabulary {
 public:
  // InvalidArgument: a text that stands twice.
  static Result<Vocabulary> Make(std::vector<std::string> texts, std::int64_t buckets = 0);
  // A file with a text in each line, as Save writes it.
  static Result<Vocabulary> Load(FileSystem& files, const std::string& path,
                                 std::int64_t buckets = 0);
  // InvalidArgument: a text with a line end in it.
  Status Save(FileSystem& files, const std::string& path) const;

  // Position of the text; texts().size() + hash modulo the buckets where it is not in the list; -1
  // where there are no buckets.
  std::int64_t Find(std::string_view text) const;
  std::int64_t size() const;  // of the list, and buckets
  const std::vector<std::string>& texts() const { return texts_; }

 private:
  std::vector<std::string> texts_;
  std::unordered_map<std::string, std::int64_t> positions_;
  std::int64_t buckets_ = 0;
};

// Texts of the data, counted.
class VocabularyCounts {
 public:
  void Add(std::string_view text, std::int64_t times = 1);
  void Merge(const VocabularyCounts& other);  // what another part of the data holds
  // The most frequent first, equal ones in bytewise order: the same whatever order they came in.
  // Those below min_count are left out; at most max_size (0: all).
  std::vector<std::string> Texts(std::int64_t min_count = 1, std::int64_t max_size = 0) const;
  const std::unordered_map<std::string, std::int64_t>& counts() const { return counts_; }
  std::int64_t distinct() const { return static_cast<std::int64_t>(counts_.size()); }

 private:
  std::unordered_map<std::string, std::int64_t> counts_;
};

// How many boundaries are at most `value`: bucket b is [boundaries[b - 1], boundaries[b]), so there
// is one bucket more than boundaries. NaN is in the last. Boundaries ascend.
std::int64_t Bucket(float value, std::span<const float> boundaries);
// Boundaries between `buckets` parts of as many values each (NaN left out); fewer where values
// repeat. At least 1 bucket.
std::vector<float> QuantileBoundaries(std::span<const float> values, int buckets);

// A number for a combination of numbers, in [0, buckets): equal on every machine, another where any
// of them, or their order, differs.
std::int64_t Cross(std::span<const std::int64_t> values, std::int64_t buckets);

// Count, mean and variance of numbers, of parts that are merged in any order. NaN counts as
// missing.
struct Moments {
  std::int64_t count = 0;
  std::int64_t missing = 0;
  double mean = 0;
  double squares = 0;  // sum of squared distances from the mean
  double least = 0;    // of `count` numbers
  double most = 0;

  void Add(double value);
  void Merge(const Moments& other);
  double variance() const;   // of the numbers themselves, not of a population behind them
  double deviation() const;  // its root
};

// Statistics of features, as `cohort data stats --out` writes them.
Result<std::map<std::string, Moments>> LoadStatistics(FileSystem& files, const std::string& path);

// Functions for Dataset::Map. Their errors name the feature that is not there or of another type.
using FeatureMap = std::function<Status(Example&)>;

// Each number of a float32 feature less the mean, over the deviation (where that is 0: over 1); NaN
// becomes 0, the mean.
FeatureMap Standardize(const std::string& feature, const Moments& moments);
// int64 `name`: the bucket of each number of a float32 feature.
FeatureMap Bucketize(const std::string& name, const std::string& feature,
                     std::vector<float> boundaries);
// int64 scalar `name`: the cross of int64 features, all of their elements.
FeatureMap CrossOf(const std::string& name, std::vector<std::string> features,
                   std::int64_t buckets);

}  // namespace cohort::data
