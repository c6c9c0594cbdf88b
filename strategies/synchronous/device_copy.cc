#include "synchronous/device_copy.h"

#include <algorithm>
#include <utility>

namespace cohort {
namespace {

const std::byte* Bytes(std::span<const float> span) {
  return reinterpret_cast<const std::byte*>(span.data());
}
std::byte* Bytes(std::span<float> span) { return reinterpret_cast<std::byte*>(span.data()); }

}  // namespace

DeviceCopy::DeviceCopy(std::shared_ptr<Device> device, ParameterSet& parameters,
                       std::span<const std::span<float>> slots, int threads)
    : device_(std::move(device)),
      parameters_(parameters),
      slots_(slots),
      kernels_(device_->MakeKernels(threads)),
      stream_(device_->MakeStream()) {
  if (!apart()) {
    device_slots_.assign(slots.begin(), slots.end());
    return;
  }
  copy_ = parameters_.CopyOn(*device_, *stream_);
  for (const std::span<float> slot : slots_) {
    slot_memory_.push_back(device_->Allocate(slot.size_bytes(), "optimizer state"));
    device_slots_.emplace_back(reinterpret_cast<float*>(slot_memory_.back().get()), slot.size());
    Send(slot, device_slots_.back());
  }
}

void DeviceCopy::Send(std::span<const float> from, std::span<float> to) {
  device_->Copy(*stream_, Bytes(from), Bytes(to), from.size_bytes());
}

void DeviceCopy::Push() {
  if (!apart()) {
    return;
  }
  Send(parameters_.all(), copy_.all());
  for (std::size_t s = 0; s < slots_.size(); ++s) {
    Send(slots_[s], device_slots_[s]);
  }
}

void DeviceCopy::Pull() {
  if (!apart()) {
    return;
  }
  Send(copy_.all(), parameters_.all());
  for (std::size_t s = 0; s < slots_.size(); ++s) {
    Send(device_slots_[s], slots_[s]);
  }
}

void DeviceCopy::PullValues(std::span<const int> parameters, std::span<float> to) {
  std::size_t at = 0;
  for (const int p : parameters) {
    const std::span<float> value = this->parameters().value(p);
    Send(value, to.subspan(at, value.size()));
    at += value.size();
  }
}

void DeviceCopy::PushValues(std::span<const int> parameters, std::span<const float> from) {
  std::size_t at = 0;
  for (const int p : parameters) {
    const std::span<float> value = this->parameters().value(p);
    Send(from.subspan(at, value.size()), value);
    at += value.size();
  }
}

void DeviceCopy::KeepValues(std::span<const int> parameters) {
  if (kept_ == nullptr) {
    kept_ = device_->Allocate(std::max<std::size_t>(KeptOf(parameters).size_bytes(), 1),
                              "values from before a step");
  }
  PullValues(parameters, KeptOf(parameters));
}

void DeviceCopy::PutBackValues(std::span<const int> parameters) {
  PushValues(parameters, KeptOf(parameters));
}

// Where they are kept, one after the other.
std::span<float> DeviceCopy::KeptOf(std::span<const int> parameters) const {
  std::size_t elements = 0;
  for (const int p : parameters) {
    elements += parameters_.value(p).size();
  }
  return {reinterpret_cast<float*>(kept_.get()), elements};
}

void DeviceCopy::Update(const UpdateRule& rule, const BucketPlan& plan,
                        const BucketPlan::Bucket& bucket, std::span<const float> gradients,
                        float scale) {
  std::vector<UpdatePart> parts;
  parts.reserve(bucket.parameters.size());
  for (const int p : bucket.parameters) {
    const BucketPlan::Place& place = plan.places[static_cast<std::size_t>(p)];
    const auto elements = static_cast<std::size_t>(place.elements);
    if (elements == 0) {
      continue;
    }
    UpdatePart part{.value = parameters().value(p),
                    .gradient = gradients.subspan(static_cast<std::size_t>(place.offset), elements),
                    .slots = {},
                    .gradient_scale = scale};
    const auto offset = static_cast<std::size_t>(parameters_[p].offset);
    for (std::size_t s = 0; s < device_slots_.size(); ++s) {
      part.slots.at(s) = device_slots_[s].subspan(offset, elements);
    }
    parts.push_back(part);
  }
  if (!parts.empty()) {
    kernels_->Update(*stream_, rule, parts);
  }
}

Result<double> DeviceCopy::Squares(const BucketPlan& plan, std::span<const float> gradients,
                                   std::chrono::milliseconds timeout) {
  const auto count = plan.places.size();
  if (squares_ == nullptr) {
    const std::size_t bytes = std::max<std::size_t>(1, count) * sizeof(double);
    auto landing = device_->AllocateHost(bytes, "sums of squares of gradients");
    squares_ = device_->Allocate(bytes, "sums of squares of gradients");
    squares_on_host_ = std::move(landing);
  }
  const std::span<double> sums(reinterpret_cast<double*>(squares_.get()), count);
  const std::span<const double> squares(reinterpret_cast<double*>(squares_on_host_.get()), count);
  for (std::size_t p = 0; p < count; ++p) {
    const BucketPlan::Place& place = plan.places[p];
    if (place.elements > 0 && place.bucket >= 0) {
      kernels_->SumSquares(*stream_,
                           gradients.subspan(static_cast<std::size_t>(place.offset),
                                             static_cast<std::size_t>(place.elements)),
                           sums.subspan(p, 1));
    }
  }
  device_->Copy(*stream_, squares_.get(), squares_on_host_.get(), sums.size_bytes());
  COHORT_RETURN_IF_ERROR(Drain(timeout));
  double total = 0;
  for (std::size_t p = 0; p < count; ++p) {
    if (plan.places[p].elements > 0 && plan.places[p].bucket >= 0) {
      total += squares[p];
    }
  }
  return total;
}

void DeviceCopy::Add(std::span<const float> x, std::span<float> y) {
  kernels_->Add(*stream_, y, x, y);
}

void DeviceCopy::Follow(DeviceCopy& from) { stream_->WaitFor(from.stream_->Record()); }

void DeviceCopy::Fetch(DeviceCopy& from, std::span<const float> x, std::span<float> y) {
  if (apart()) {
    Follow(from);
    Send(x, y);
    return;
  }
  // The host's side does not copy from a device: that one copies to it, when this stream's work is
  // done with y.
  from.Follow(*this);
  from.Send(x, y);
  Follow(from);
}

Status DeviceCopy::Drain(std::chrono::milliseconds timeout) {
  return stream_->Synchronize(DeadlineAfter(timeout));
}

}  // namespace cohort
