#include "synchronous/span_reduction.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

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

// One reduction of all spans. Bucket b lies in staging memory b % 2, behind a header; the header
// travels with bucket 0 only.
class SpanReduction::Pass {
 public:
  Pass(SpanReduction& owner, std::span<const std::span<float>> spans, std::size_t total,
       double weight)
      : owner_(owner), packing_(spans), unpacking_(spans), total_(total), weight_(weight) {
    for (std::vector<float>& staging : owner_.staging_) {
      staging.resize(kHeader + std::min(owner_.bucket_elements_, total_));
    }
  }
  // The staging memory is an operation's until the operation is over.
  ~Pass() {
    for (const std::unique_ptr<Work>& work : works_) {
      if (work != nullptr) {
        (void)work->Wait();
      }
    }
  }
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;

  std::size_t buckets() const {
    return std::max<std::size_t>(1,
                                 (total_ + owner_.bucket_elements_ - 1) / owner_.bucket_elements_);
  }

  Status Launch(std::size_t bucket) {
    const std::span<float> staging = owner_.staging_[bucket % 2];
    const auto factor = static_cast<float>(weight_);
    float* to = staging.data() + kHeader;
    packing_.Take(ElementsOf(bucket), [&](std::span<float> run) {
      for (const float gradient : run) {
        *to++ = factor == 0 ? 0.0F : gradient * factor;
      }
    });
    PackWeight(weight_, staging);
    const std::size_t begin = bucket == 0 ? 0 : kHeader;
    CollectiveOptions options;
    options.name = "own gradients, bucket " + std::to_string(bucket);
    options.timeout = owner_.timeout_;
    auto pending = owner_.communicator_.AllReduce(
        staging.subspan(begin, kHeader - begin + ElementsOf(bucket)), ReduceOp::kSum, options);
    COHORT_RETURN_IF_ERROR(pending.status());
    works_[bucket % 2] = std::move(pending).value();
    return {};
  }

  Status Land(std::size_t bucket) {
    COHORT_RETURN_IF_ERROR(works_[bucket % 2]->Wait());
    const std::span<const float> staging = owner_.staging_[bucket % 2];
    if (bucket == 0) {
      const double sum = UnpackWeight(staging);
      scale_ = sum > 0 ? static_cast<float>(1.0 / sum) : 0.0F;
    }
    const float* from = staging.data() + kHeader;
    unpacking_.Take(ElementsOf(bucket), [&](std::span<float> run) {
      for (float& gradient : run) {
        gradient = *from++ * scale_;
      }
    });
    return {};
  }

 private:
  static constexpr std::size_t kHeader = 2;  // the weight

  std::size_t ElementsOf(std::size_t bucket) const {
    return std::min(owner_.bucket_elements_, total_ - bucket * owner_.bucket_elements_);
  }

  SpanReduction& owner_;
  Cursor packing_;
  Cursor unpacking_;
  const std::size_t total_;
  const double weight_;
  float scale_ = 0;
  std::unique_ptr<Work> works_[2];
};

SpanReduction::SpanReduction(Communicator& communicator, std::int64_t bucket_bytes,
                             std::chrono::milliseconds timeout)
    : communicator_(communicator),
      bucket_elements_(
          std::max<std::size_t>(1, static_cast<std::size_t>(bucket_bytes) / sizeof(float))),
      timeout_(timeout) {}

Status SpanReduction::AgreeOnSizes(std::span<const std::span<float>> spans) {
  std::vector<std::int64_t> sizes;
  std::vector<std::string> lines;
  sizes.reserve(spans.size());
  for (const std::span<float> span : spans) {
    sizes.push_back(static_cast<std::int64_t>(span.size()));
  }
  if (!sizes.empty() && sizes == agreed_) {
    return {};
  }
  lines.reserve(sizes.size());
  for (const std::int64_t size : sizes) {
    lines.push_back(std::to_string(size) + " elements");
  }
  COHORT_RETURN_IF_ERROR(Agree(communicator_, "gradient spans", lines,
                               "give ReduceGradients the same gradients on every process"));
  agreed_ = std::move(sizes);
  return {};
}

Status SpanReduction::Run(std::span<const std::span<float>> spans, double weight) {
  COHORT_RETURN_IF_ERROR(AgreeOnSizes(spans));
  std::size_t total = 0;
  for (const std::span<float> span : spans) {
    total += span.size();
  }
  Pass pass(*this, spans, total, weight);
  for (std::size_t bucket = 0; bucket < pass.buckets(); ++bucket) {
    COHORT_RETURN_IF_ERROR(pass.Launch(bucket));
    if (bucket > 0) {
      COHORT_RETURN_IF_ERROR(pass.Land(bucket - 1));
    }
  }
  return pass.Land(pass.buckets() - 1);
}

}  // namespace cohort
