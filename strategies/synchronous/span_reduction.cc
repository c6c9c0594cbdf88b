#include "synchronous/span_reduction.h"

#include <algorithm>
#include <memory>
#include <string>

#include "synchronous/agreement.h"
#include "synchronous/bucket_plan.h"

namespace cohort {
namespace {

// A place in spans laid end to end.
class Cursor {
 public:
  explicit Cursor(std::span<const std::span<float>> spans) : spans_(spans) {}

  // Calls fn(run) for the runs that make up the next `elements` elements.
  template <typename Fn>
  void Take(std::size_t elements, const Fn& fn) {
    while (elements > 0) {
      const std::span<float> rest = spans_[span_].subspan(offset_);
      const std::size_t run = std::min(elements, rest.size());
      fn(rest.first(run));
      elements -= run;
      offset_ += run;
      if (offset_ == spans_[span_].size()) {
        ++span_;
        offset_ = 0;
      }
    }
  }

 private:
  std::span<const std::span<float>> spans_;
  std::size_t span_ = 0;
  std::size_t offset_ = 0;
};

}  // namespace

SpanReduction::SpanReduction(Communicator& communicator, std::int64_t bucket_bytes,
                             std::chrono::milliseconds timeout)
    : communicator_(communicator),
      bucket_elements_(
          std::max<std::size_t>(1, static_cast<std::size_t>(bucket_bytes) / sizeof(float))),
      timeout_(timeout) {}

Status SpanReduction::Run(std::span<const std::span<float>> spans, double weight) {
  std::vector<std::int64_t> sizes;
  std::vector<std::string> lines;
  std::size_t total = 0;
  for (const std::span<float> span : spans) {
    sizes.push_back(static_cast<std::int64_t>(span.size()));
    lines.push_back(std::to_string(span.size()) + " elements");
    total += span.size();
  }
  if (agreed_.empty() || sizes != agreed_) {
    COHORT_RETURN_IF_ERROR(Agree(communicator_, "gradient spans", lines,
                                 "give ReduceGradients the same gradients on every process"));
    agreed_ = sizes;
  }

  constexpr std::size_t kHeader = 2;  // the weight, before the first bucket
  const std::size_t buckets =
      std::max<std::size_t>(1, (total + bucket_elements_ - 1) / bucket_elements_);
  const auto elements_of = [&](std::size_t bucket) {
    return std::min(bucket_elements_, total - bucket * bucket_elements_);
  };
  for (std::vector<float>& staging : staging_) {
    staging.resize(kHeader + std::min(bucket_elements_, total));
  }

  Cursor packing(spans);
  Cursor unpacking(spans);
  std::unique_ptr<Work> works[2];
  Status status;
  float scale = 0;

  const auto launch = [&](std::size_t bucket) -> Status {
    const std::span<float> staging = staging_[bucket % 2];
    const auto factor = static_cast<float>(weight);
    float* to = staging.data() + kHeader;
    packing.Take(elements_of(bucket), [&](std::span<float> run) {
      for (const float gradient : run) {
        *to++ = factor == 0 ? 0.0F : gradient * factor;
      }
    });
    PackWeight(weight, staging);
    const std::size_t header = bucket == 0 ? 0 : kHeader;
    CollectiveOptions options;
    options.name = "own gradients, bucket " + std::to_string(bucket);
    options.timeout = timeout_;
    auto pending = communicator_.AllReduce(
        staging.subspan(header, kHeader - header + elements_of(bucket)), ReduceOp::kSum, options);
    COHORT_RETURN_IF_ERROR(pending.status());
    works[bucket % 2] = std::move(pending).value();
    return {};
  };
  const auto land = [&](std::size_t bucket) -> Status {
    COHORT_RETURN_IF_ERROR(works[bucket % 2]->Wait());
    const std::span<const float> staging = staging_[bucket % 2];
    if (bucket == 0) {
      const double sum = UnpackWeight(staging);
      scale = sum > 0 ? static_cast<float>(1.0 / sum) : 0.0F;
    }
    const float* from = staging.data() + kHeader;
    unpacking.Take(elements_of(bucket), [&](std::span<float> run) {
      for (float& gradient : run) {
        gradient = *from++ * scale;
      }
    });
    return {};
  };

  for (std::size_t bucket = 0; bucket < buckets && status.ok(); ++bucket) {
    status = launch(bucket);
    if (status.ok() && bucket > 0) {
      status = land(bucket - 1);
    }
  }
  if (status.ok()) {
    status = land(buckets - 1);
  }
  if (!status.ok()) {
    // The staging memory is an operation's until the operation has failed as well.
    for (const std::unique_ptr<Work>& work : works) {
      if (work != nullptr) {
        (void)work->Wait();
      }
    }
  }
  return status;
}

}  // namespace cohort
