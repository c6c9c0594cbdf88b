// SynchronousStrategy after the loss of a process that the job survives (membership.h): all that
// knew the communicator and the servers of before is made anew, by what Bind does.

#include <algorithm>
#include <utility>

#include "synchronous/synchronous_strategy.h"

namespace cohort {

Result<bool> SynchronousStrategy::BeginTraining() {
  Require(parameters_ != nullptr, "Bind before BeginTraining");
  COHORT_ASSIGN_OR_RETURN(may_recover_, membership_->BeginTraining());
  if (may_recover_ && is_chief()) {
    beginning_.emplace();
    beginning_->fresh = step_ == 0 && !rows_loaded_;
    if (beginning_->fresh) {
      COHORT_RETURN_IF_ERROR(PullState());
      const std::span<const float> values = std::as_const(*parameters_).all();
      beginning_->values.assign(values.begin(), values.end());
    }
  }
  return may_recover_;
}

Status SynchronousStrategy::EndTraining() {
  if (may_recover_) {
    COHORT_RETURN_IF_ERROR(membership_->EndTraining());
    may_recover_ = false;
    beginning_.reset();
  }
  return {};
}

Status SynchronousStrategy::Recover(const Status& error, const WayBack& way) {
  if (!may_recover_ || parameters_ == nullptr) {
    return error;
  }
  COHORT_RETURN_IF_ERROR(membership_->CheckLoss(error));
  if (way.let_go) {
    way.let_go();  // its calls have ended, as all of this term
  }
  if (is_chief() && !beginning_->fresh && !(way.to_save && way.to_save())) {
    Status why = FailedPrecondition(
        error.message() +
        "; training began with rows that had been loaded, or after other steps, and there is no "
        "save to go back to [save while training]");
    membership_->EndJob(why);
    return why;
  }
  broken_ = MeetAgain(*parameters_, *optimizer_);
  return broken_;
}

// After a loss, until nothing is lost while all bind.
Status SynchronousStrategy::MeetAgain(ParameterSet& parameters, const Optimizer& optimizer) {
  Status status;
  do {
    status = membership_->Renew([this] { LetGo(); });
    {
      const std::lock_guard lock(cross_device_mutex_);
      communicator_ = membership_->communicator();
    }
    if (!status.ok()) {
      break;
    }
    rank_ = communicator_->rank();
    num_processes_ = communicator_->size();
    status = BindAgain(parameters, optimizer);
  } while (!status.ok() && membership_->CheckLoss(status).ok());
  return status;
}

// From the last to the first, what uses the communicator and the rows.
void SynchronousStrategy::LetGo() {
  for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
    (void)copy->Drain(options_.communication.timeout);
  }
  agreement_.reset();
  updater_.reset();
  untrained_.reset();
  span_reduction_.reset();
  reducer_.reset();
  copies_ready_.clear();
  if (parameters_ != nullptr) {
    parameters_->SetRows(nullptr);
  }
  parameters_ = nullptr;
  rows_.reset();
  hook_.reset();
  const std::lock_guard lock(cross_device_mutex_);
  cross_device_ = {};
  communicator_ = nullptr;
}

Status SynchronousStrategy::BindAgain(ParameterSet& parameters, const Optimizer& optimizer) {
  if (is_chief() && beginning_->fresh) {
    std::ranges::copy(beginning_->values, parameters.all().begin());
  }
  MakeSpanReduction();
  bindings_ = 0;  // of this generation
  totals_ = StepTotals();
  passes_ = 0;
  step_ = 0;
  rows_loaded_ = false;
  broken_ = Status();
  return BindTo(parameters, optimizer);
}

}  // namespace cohort
