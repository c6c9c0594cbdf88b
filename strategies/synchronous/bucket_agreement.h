// BucketAgreement: what is learnt from steps about how gradients are best cut into buckets, and how
// all processes come to the same plan.
//
// From the first step that rank 0 had examples in, all take the order in which its first replica
// finished the parameters, and know which of them came as rows only. Where sizes are adapted, some
// steps are WATCHED: the strategy times their buckets for the tuner. After the last of them rank 0
// proposes limits, and all take its word. Whatever changes, the plans are compared.
//
// Cost: two small collectives after the first step, and one each time that watching ends; nothing
// after other steps.
//
// Thread rules: the strategy's thread, while no replica is in a pass.

#pragma once

#include <cstdint>

#include <cohort/comm/communicator.h>
#include <cohort/core/status.h>
#include <cohort/optim/parameter_set.h>

#include "synchronous/bucket_plan.h"
#include "synchronous/bucket_tuner.h"
#include "synchronous/reducer.h"

namespace cohort {

class BucketAgreement {
 public:
  struct Options {
    Communicator* communicator = nullptr;  // among the processes; nullptr: alone
    BucketLimits limits;                   // that the reducer was made with
    bool adapts = false;                   // sizes are, with several processes only
  };

  // All outlive this.
  BucketAgreement(const ParameterSet& parameters, Reducer& reducer, const Options& options);

  // The replicas of a step have returned. All processes call after the same passes.
  void CountPass() { ++passes_; }
  // Is the step one whose buckets are timed?
  bool watches() const { return Watched(passes_); }
  BucketTuner& tuner() { return tuner_; }
  // All processes come here after the same steps. An error ends the strategy.
  Status AfterStep();

 private:
  static bool Watched(std::int64_t pass);
  Status AgreeOnOrder();
  Status AgreeOnLimits();
  Status UsePlan(const BucketOrder& order, const BucketLimits& limits);

  const ParameterSet& parameters_;
  Reducer& reducer_;
  Communicator* const communicator_;
  const bool adapts_;
  BucketOrder order_;
  BucketLimits limits_;
  BucketTuner tuner_;
  bool ordered_ = false;  // by what was seen
  std::int64_t passes_ = 0;
};

}  // namespace cohort
