#include "synchronous/untrained_values.h"

#include <algorithm>

namespace cohort {

UntrainedValues::UntrainedValues(ParameterSet& parameters,
                                 std::span<const std::unique_ptr<DeviceCopy>> copies,
                                 DeviceCopy* first, std::chrono::milliseconds timeout)
    : parameters_(parameters), copies_(copies), first_(first), timeout_(timeout) {
  std::size_t elements = 0;
  for (int p = 0; p < parameters.size(); ++p) {
    if (!parameters[p].trainable && !parameters[p].frozen) {
      untrained_.push_back(p);
      elements += parameters.value(p).size();
    }
  }
  values_.resize(elements);
}

Status UntrainedValues::Gather() {
  if (first_ != nullptr) {
    // A copy to the host's own memory blocks, without a deadline, until the stream has come there.
    COHORT_RETURN_IF_ERROR(first_->Drain(timeout_));
    first_->PullValues(untrained_, values_);
    return first_->Drain(timeout_);
  }
  CopyTo(values_);
  return {};
}

void UntrainedValues::Take() {
  for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
    copy->PushValues(untrained_, values_);
  }
  if (copies_.empty()) {
    CopyFrom(values_);
  }
}

Communicator::Pending UntrainedValues::Send(Communicator& communicator) {
  if (communicator.rank() == 0) {
    COHORT_RETURN_IF_ERROR(Gather());
  }
  CollectiveOptions options;
  options.name = "values that are not trainable";
  return communicator.Broadcast(std::span<float>(values_), 0, options);
}

void UntrainedValues::Keep() {
  for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
    copy->KeepValues(untrained_);
  }
  if (copies_.empty()) {
    kept_.resize(values_.size());
    CopyTo(kept_);
  }
}

void UntrainedValues::PutBack() {
  for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
    copy->PutBackValues(untrained_);
  }
  if (copies_.empty()) {
    CopyFrom(kept_);
  }
}

void UntrainedValues::CopyTo(std::span<float> to) const {
  auto at = to.begin();
  for (const int parameter : untrained_) {
    at = std::ranges::copy(parameters_.value(parameter), at).out;
  }
}

void UntrainedValues::CopyFrom(std::span<const float> from) {
  auto at = from.begin();
  for (const int parameter : untrained_) {
    const std::span<float> value = parameters_.value(parameter);
    std::copy_n(at, value.size(), value.begin());
    at += static_cast<std::ptrdiff_t>(value.size());
  }
}

}  // namespace cohort
