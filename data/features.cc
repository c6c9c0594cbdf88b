#include <cohort/data/features.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include <cohort/core/random.h>

#include "sources/text_hash.h"

namespace cohort::data {
namespace {

Result<Tensor> Find(const Example& example, const std::string& feature, DType dtype) {
  const auto it = example.find(feature);
  if (it == example.end()) {
    return NotFound("no feature '" + feature + "'");
  }
  if (it->second.dtype() != dtype) {
    return InvalidArgument("feature '" + feature + "' is " +
                           std::string(DTypeName(it->second.dtype())) + ", " +
                           std::string(DTypeName(dtype)) + " is expected");
  }
  return it->second;
}

}  // namespace

Result<Vocabulary> Vocabulary::Make(std::vector<std::string> texts, std::int64_t buckets) {
  Require(buckets >= 0, "the buckets of a vocabulary are not negative");
  Vocabulary vocabulary;
  vocabulary.texts_ = std::move(texts);
  vocabulary.buckets_ = buckets;
  for (const std::string& text : vocabulary.texts_) {
    const auto position = static_cast<std::int64_t>(vocabulary.positions_.size());
    const auto [it, is_new] = vocabulary.positions_.emplace(text, position);
    if (!is_new) {
      return InvalidArgument("vocabulary: '" + text.substr(0, 80) + "' stands twice, at " +
                             std::to_string(it->second) + " and " + std::to_string(position));
    }
  }
  return vocabulary;
}

Result<Vocabulary> Vocabulary::Load(FileSystem& files, const std::string& path,
                                    std::int64_t buckets) {
  COHORT_ASSIGN_OR_RETURN(const std::string content, ReadFile(files, path));
  std::vector<std::string> texts;
  for (std::string_view rest = content; !rest.empty();) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    texts.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  Result<Vocabulary> vocabulary = Make(std::move(texts), buckets);
  if (!vocabulary.ok()) {
    return vocabulary.status().Annotate(path);
  }
  return vocabulary;
}

Status Vocabulary::Save(FileSystem& files, const std::string& path) const {
  std::string content;
  for (const std::string& text : texts_) {
    if (text.find('\n') != std::string::npos) {
      return InvalidArgument(path + ": a text of the vocabulary holds a line end: '" +
                             text.substr(0, 80) + "'");
    }
    content += text + "\n";
  }
  return WriteFileAtomically(files, path, content);
}

std::int64_t Vocabulary::Find(std::string_view text) const {
  const auto it = positions_.find(std::string(text));
  if (it != positions_.end()) {
    return it->second;
  }
  return buckets_ == 0 ? -1 : static_cast<std::int64_t>(texts_.size()) + TextHash(text, buckets_);
}

std::int64_t Vocabulary::size() const {
  return static_cast<std::int64_t>(texts_.size()) + buckets_;
}

void VocabularyCounts::Add(std::string_view text, std::int64_t times) {
  counts_[std::string(text)] += times;
}

void VocabularyCounts::Merge(const VocabularyCounts& other) {
  for (const auto& [text, times] : other.counts_) {
    counts_[text] += times;
  }
}

std::vector<std::string> VocabularyCounts::Texts(std::int64_t min_count,
                                                 std::int64_t max_size) const {
  std::vector<std::pair<std::int64_t, std::string>> sorted;
  for (const auto& [text, times] : counts_) {
    if (times >= min_count) {
      sorted.emplace_back(-times, text);
    }
  }
  std::sort(sorted.begin(), sorted.end());
  if (max_size > 0 && sorted.size() > static_cast<std::size_t>(max_size)) {
    sorted.resize(static_cast<std::size_t>(max_size));
  }
  std::vector<std::string> texts;
  for (auto& [times, text] : sorted) {
    texts.push_back(std::move(text));
  }
  return texts;
}

std::int64_t Bucket(float value, std::span<const float> boundaries) {
  if (!std::isfinite(value)) {
    return static_cast<std::int64_t>(boundaries.size());
  }
  return std::upper_bound(boundaries.begin(), boundaries.end(), value) - boundaries.begin();
}

std::vector<float> QuantileBoundaries(std::span<const float> values, int buckets) {
  Require(buckets >= 1, "at least 1 bucket");
  std::vector<float> sorted;
  std::copy_if(values.begin(), values.end(), std::back_inserter(sorted),
               [](float value) { return !std::isnan(value); });
  std::sort(sorted.begin(), sorted.end());
  std::vector<float> boundaries;
  for (int b = 1; b < buckets && !sorted.empty(); ++b) {
    const float boundary =
        sorted[sorted.size() * static_cast<std::size_t>(b) / static_cast<std::size_t>(buckets)];
    // A boundary at the least value would leave the first bucket empty.
    if (boundary > (boundaries.empty() ? sorted.front() : boundaries.back())) {
      boundaries.push_back(boundary);
    }
  }
  return boundaries;
}

std::int64_t Cross(std::span<const std::int64_t> values, std::int64_t buckets) {
  Require(buckets >= 1, "a cross has at least 1 bucket");
  const std::uint64_t hash =
      Hash64({reinterpret_cast<const char*>(values.data()), values.size_bytes()}, 0x63726f7373);
  return static_cast<std::int64_t>(hash % static_cast<std::uint64_t>(buckets));
}

void Moments::Add(double value) {
  if (std::isnan(value)) {
    ++missing;
    return;
  }
  least = count == 0 ? value : std::min(least, value);
  most = count == 0 ? value : std::max(most, value);
  ++count;
  const double distance = value - mean;
  mean += distance / static_cast<double>(count);
  squares += distance * (value - mean);
}

void Moments::Merge(const Moments& other) {
  missing += other.missing;
  if (other.count == 0) {
    return;
  }
  if (count == 0) {
    const std::int64_t all_missing = missing;
    *this = other;
    missing = all_missing;
    return;
  }
  const auto n = static_cast<double>(count);
  const auto m = static_cast<double>(other.count);
  const double distance = other.mean - mean;
  mean += distance * m / (n + m);
  squares += other.squares + distance * distance * n * m / (n + m);
  least = std::min(least, other.least);
  most = std::max(most, other.most);
  count += other.count;
}

double Moments::variance() const { return count == 0 ? 0 : squares / static_cast<double>(count); }

double Moments::deviation() const { return std::sqrt(variance()); }

Result<std::map<std::string, Moments>> LoadStatistics(FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, path));
  std::map<std::string, Moments> statistics;
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    for (const auto& [name, field] : json.at("fields").items()) {
      if (!field.contains("numbers")) {
        continue;
      }
      const auto& numbers = field.at("numbers");
      statistics[name] = {.count = numbers.at("count").get<std::int64_t>(),
                          .missing = numbers.at("missing").get<std::int64_t>(),
                          .mean = numbers.at("mean").get<double>(),
                          .squares = numbers.at("squares").get<double>(),
                          .least = numbers.at("least").get<double>(),
                          .most = numbers.at("most").get<double>()};
    }
  } catch (const nlohmann::json::exception& error) {
    return DataLoss(path + ": not what cohort data stats --out writes: " + error.what());
  }
  return statistics;
}

FeatureMap Standardize(const std::string& feature, const Moments& moments) {
  const double deviation = moments.deviation() > 0 ? moments.deviation() : 1;
  return [feature, mean = moments.mean, deviation](Example& example) -> Status {
    COHORT_ASSIGN_OR_RETURN(const Tensor in, Find(example, feature, DType::kFloat32));
    Tensor out(DType::kFloat32, in.shape());
    for (std::size_t i = 0; i < in.data<float>().size(); ++i) {
      const float value = in.data<float>()[i];
      out.data<float>()[i] =
          std::isnan(value) ? 0
                            : static_cast<float>((static_cast<double>(value) - mean) / deviation);
    }
    example[feature] = std::move(out);
    return {};
  };
}

FeatureMap Bucketize(const std::string& name, const std::string& feature,
                     std::vector<float> boundaries) {
  Require(std::is_sorted(boundaries.begin(), boundaries.end()), "boundaries ascend");
  return [name, feature, boundaries = std::move(boundaries)](Example& example) -> Status {
    COHORT_ASSIGN_OR_RETURN(const Tensor in, Find(example, feature, DType::kFloat32));
    Tensor out(DType::kInt64, in.shape());
    std::transform(in.data<float>().begin(), in.data<float>().end(),
                   out.data<std::int64_t>().begin(),
                   [&boundaries](float value) { return Bucket(value, boundaries); });
    example[name] = std::move(out);
    return {};
  };
}

FeatureMap CrossOf(const std::string& name, std::vector<std::string> features,
                   std::int64_t buckets) {
  Require(buckets >= 1 && !features.empty(), "a cross has features and at least 1 bucket");
  return [name, features = std::move(features), buckets](Example& example) -> Status {
    std::vector<std::int64_t> values;
    for (const std::string& feature : features) {
      COHORT_ASSIGN_OR_RETURN(const Tensor in, Find(example, feature, DType::kInt64));
      values.insert(values.end(), in.data<std::int64_t>().begin(), in.data<std::int64_t>().end());
    }
    const std::int64_t cross = Cross(values, buckets);
    example[name] = Tensor::Of<std::int64_t>(Shape(), {&cross, 1});
    return {};
  };
}

}  // namespace cohort::data
