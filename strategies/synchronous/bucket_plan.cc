#include "synchronous/bucket_plan.h"

#include <algorithm>
#include <cmath>

namespace cohort {
namespace {

constexpr std::int64_t kAlignElements = 16;  // 64 bytes
constexpr std::int64_t kChunkElements = std::int64_t{16} * 1024;
constexpr double kHighUnit = 4096.0;

std::int64_t Padded(std::int64_t elements) {
  return (elements + kAlignElements - 1) / kAlignElements * kAlignElements;
}

std::string NameOf(const ParameterSet& parameters, const BucketPlan::Bucket& bucket,
                   std::size_t index) {
  std::string name = "gradients, bucket " + std::to_string(index);
  if (!bucket.parameters.empty()) {
    name += " (" + parameters[bucket.parameters.front()].name;
    if (bucket.parameters.size() > 1) {
      name += " .. " + parameters[bucket.parameters.back()].name;
    }
    name += ")";
  }
  return name;
}

// By parameter: how many chunks the trainable parameters before it have.
std::vector<std::size_t> FirstOrdinals(const ParameterSet& parameters) {
  std::vector<std::size_t> ordinals;
  std::size_t next = 0;
  for (int p = 0; p < parameters.size(); ++p) {
    ordinals.push_back(next);
    if (parameters[p].trainable) {
      next += static_cast<std::size_t>((parameters[p].shape.elements() + kChunkElements - 1) /
                                       kChunkElements);
    }
  }
  return ordinals;
}

}  // namespace

BucketOrder BucketOrder::Declared(const ParameterSet& parameters) {
  BucketOrder order;
  for (int p = parameters.size() - 1; p >= 0; --p) {
    if (parameters[p].trainable) {
      order.parameters.push_back(p);
    }
  }
  return order;
}

BucketPlan BucketPlan::Make(const ParameterSet& parameters, const BucketOrder& order,
                            const BucketLimits& limits) {
  BucketPlan plan;
  plan.places.resize(static_cast<std::size_t>(parameters.size()));
  plan.elements = kHeaderElements;
  plan.buckets.push_back({.begin = 0, .end = kHeaderElements});
  const auto is_rows = [&](int p) {
    return !order.rows.empty() && order.rows[static_cast<std::size_t>(p)];
  };
  std::vector<int> taken = order.parameters;
  std::stable_partition(taken.begin(), taken.end(), [&](int p) { return !is_rows(p); });
  const std::vector<std::size_t> ordinals = FirstOrdinals(parameters);
  for (const int p : taken) {
    const ParameterSet::Parameter& parameter = parameters[p];
    const std::int64_t elements = parameter.shape.elements();
    const std::int64_t limit = plan.buckets.size() == 1 ? limits.first_bytes : limits.bytes;
    Bucket* bucket = &plan.buckets.back();
    const std::int64_t bytes = (plan.elements - bucket->begin + Padded(elements)) *
                               static_cast<std::int64_t>(sizeof(float));
    if (is_rows(p) || (!bucket->parameters.empty() && bytes > limit)) {
      plan.buckets.push_back({.begin = plan.elements,
                              .end = plan.elements,
                              .rows = is_rows(p),
                              .first_chunk = plan.chunks.size(),
                              .last_chunk = plan.chunks.size()});
      bucket = &plan.buckets.back();
    }
    bucket->parameters.push_back(p);
    plan.places[static_cast<std::size_t>(p)] = {.bucket = static_cast<int>(plan.buckets.size()) - 1,
                                                .offset = plan.elements,
                                                .elements = elements};
    std::size_t ordinal = ordinals[static_cast<std::size_t>(p)];
    for (std::int64_t begin = 0; begin < elements; begin += kChunkElements) {
      plan.chunks.push_back({.gradient = plan.elements + begin,
                             .value = parameter.offset + begin,
                             .elements = std::min(kChunkElements, elements - begin),
                             .ordinal = ordinal++});
    }
    plan.elements += Padded(elements);
    bucket->end = plan.elements;
    bucket->last_chunk = plan.chunks.size();
  }
  for (std::size_t b = 0; b < plan.buckets.size(); ++b) {
    Bucket& bucket = plan.buckets[b];
    bucket.name = NameOf(parameters, bucket, b);
    const std::int64_t begin = bucket.begin + (b == 0 ? kHeaderElements : 0);
    for (const int p : bucket.parameters) {
      bucket.parts.push_back({.parameter = p,
                              .begin = plan.places[static_cast<std::size_t>(p)].offset - begin,
                              .shape = parameters[p].shape,
                              .offset = parameters[p].offset});
    }
  }
  return plan;
}

std::vector<std::string> BucketPlan::Lines() const {
  std::vector<std::string> lines;
  for (const Bucket& bucket : buckets) {
    std::string line = bucket.name + ", elements " + std::to_string(bucket.begin) + " to " +
                       std::to_string(bucket.end) + (bucket.rows ? ", rows:" : ":");
    for (const int p : bucket.parameters) {
      line += " " + std::to_string(p);
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

void PackWeight(double weight, std::span<float> header) {
  const double high = std::floor(weight / kHighUnit);
  header[0] = static_cast<float>(high);
  header[1] = static_cast<float>(weight - high * kHighUnit);
}

double UnpackWeight(std::span<const float> header) {
  return static_cast<double>(header[0]) * kHighUnit + static_cast<double>(header[1]);
}

}  // namespace cohort
