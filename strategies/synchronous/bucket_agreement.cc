#include "synchronous/bucket_agreement.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

#include "synchronous/agreement.h"

namespace cohort {
namespace {

// Buckets are watched for so many steps, again after so many, and then cut anew if that is worth
// it.
constexpr std::int64_t kWatchedSteps = 10;
constexpr std::int64_t kTuningPeriod = 100;

}  // namespace

BucketAgreement::BucketAgreement(const ParameterSet& parameters, Reducer& reducer,
                                 const Options& options)
    : parameters_(parameters),
      reducer_(reducer),
      communicator_(options.communicator),
      adapts_(options.adapts),
      order_(BucketOrder::Declared(parameters)),
      limits_(options.limits) {}

// Of the step whose pass had this number, from 1.
bool BucketAgreement::Watched(std::int64_t pass) {
  return pass > 1 && (pass - 2) % kTuningPeriod < kWatchedSteps;
}

Status BucketAgreement::AfterStep() {
  if (!ordered_) {
    return AgreeOnOrder();
  }
  if (adapts_ && Watched(passes_) && !Watched(passes_ + 1)) {
    return AgreeOnLimits();
  }
  return {};
}

// Rows only: on all replicas of the job.
Status BucketAgreement::AgreeOnOrder() {
  const Reducer::Use& use = reducer_.use();
  const auto parameters = static_cast<std::size_t>(parameters_.size());
  std::vector<std::int32_t> order(parameters, -1);
  std::ranges::copy(use.ready, order.begin());
  std::vector<std::int32_t> uses = use.as_rows;
  uses.insert(uses.end(), use.dense.begin(), use.dense.end());
  if (communicator_ != nullptr) {
    CollectiveOptions options;
    options.name = "order of gradients";
    COHORT_RETURN_IF_ERROR(
        Await(communicator_->Broadcast(std::span<std::int32_t>(order), 0, options)));
    options.name = "gradients that are rows";
    COHORT_RETURN_IF_ERROR(
        Await(communicator_->AllReduce(std::span<std::int32_t>(uses), ReduceOp::kMax, options)));
  }
  BucketOrder seen;
  std::ranges::copy_if(order, std::back_inserter(seen.parameters), [](int p) { return p >= 0; });
  if (seen.parameters.empty()) {
    return {};  // rank 0 had no examples
  }
  for (std::size_t p = 0; p < parameters; ++p) {
    seen.rows.push_back(uses[p] != 0 && uses[parameters + p] == 0);
  }
  ordered_ = true;
  return UsePlan(seen, limits_);
}

// Rank 0 has measured, and all processes take its word.
Status BucketAgreement::AgreeOnLimits() {
  const auto gradient_bytes = reducer_.plan().elements * static_cast<std::int64_t>(sizeof(float));
  const BucketLimits mine = tuner_.Propose(limits_, gradient_bytes).value_or(limits_);
  std::array<std::int64_t, 2> limits{mine.first_bytes, mine.bytes};
  CollectiveOptions options;
  options.name = "bucket size";
  COHORT_RETURN_IF_ERROR(
      Await(communicator_->Broadcast(std::span<std::int64_t>(limits), 0, options)));
  const BucketLimits agreed{.first_bytes = limits[0], .bytes = limits[1]};
  return agreed == limits_ ? OkStatus() : UsePlan(order_, agreed);
}

Status BucketAgreement::UsePlan(const BucketOrder& order, const BucketLimits& limits) {
  order_ = order;
  limits_ = limits;
  reducer_.Rebuild(order_, limits_);
  if (communicator_ == nullptr) {
    return {};
  }
  return Agree(*communicator_, "gradient buckets", reducer_.plan().Lines(),
               "this is a defect: report it");
}

}  // namespace cohort
