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

}  // namespace

BucketPlan BucketPlan::Make(const ParameterSet& parameters, std::int64_t first_bucket_bytes,
                            std::int64_t bucket_bytes) {
  BucketPlan plan;
  plan.places.resize(static_cast<std::size_t>(parameters.size()));
  plan.elements = kHeaderElements;
  plan.buckets.push_back({.begin = 0, .end = kHeaderElements});
  for (int p = parameters.size() - 1; p >= 0; --p) {
    const ParameterSet::Parameter& parameter = parameters[p];
    if (!parameter.trainable) {
      continue;
    }
    const std::int64_t elements = parameter.shape.elements();
    const std::int64_t limit = plan.buckets.size() == 1 ? first_bucket_bytes : bucket_bytes;
    Bucket* bucket = &plan.buckets.back();
    const std::int64_t bytes = (plan.elements - bucket->begin + Padded(elements)) *
                               static_cast<std::int64_t>(sizeof(float));
    if (!bucket->parameters.empty() && bytes > limit) {
      plan.buckets.push_back({.begin = plan.elements,
                              .end = plan.elements,
                              .first_chunk = plan.chunks.size(),
                              .last_chunk = plan.chunks.size()});
      bucket = &plan.buckets.back();
    }
    bucket->parameters.push_back(p);
    plan.places[static_cast<std::size_t>(p)] = {.bucket = static_cast<int>(plan.buckets.size()) - 1,
                                                .offset = plan.elements,
                                                .elements = elements};
    for (std::int64_t begin = 0; begin < elements; begin += kChunkElements) {
      plan.chunks.push_back({.gradient = plan.elements + begin,
                             .value = parameter.offset + begin,
                             .elements = std::min(kChunkElements, elements - begin)});
    }
    plan.elements += Padded(elements);
    bucket->end = plan.elements;
    bucket->last_chunk = plan.chunks.size();
  }
  for (std::size_t b = 0; b < plan.buckets.size(); ++b) {
    plan.buckets[b].name = NameOf(parameters, plan.buckets[b], b);
  }
  return plan;
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
