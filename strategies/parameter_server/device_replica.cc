#include "parameter_server/device_replica.h"

#include <algorithm>

namespace cohort::ps {
namespace {

constexpr std::size_t kLandedElements = DeviceReplica::kLandedBytes / sizeof(float);

constexpr std::chrono::seconds kSettleTimeout{30};

}  // namespace

DeviceReplica::DeviceReplica(const std::shared_ptr<Device>& device, ParameterSet& parameters,
                             Stream& compute, int threads, bool trains)
    : host_(parameters),
      elements_(parameters.all().size()),
      compute_(compute),
      copy_(device, parameters, {}, threads) {
  const std::size_t bytes = std::max<std::size_t>(1, elements_) * sizeof(float);
  values_ = device->AllocateHost(bytes, "values on their way from parameter servers");
  std::ranges::copy(parameters.all(), values().begin());
  if (trains) {
    gradients_ = device->AllocateHost(bytes, "gradients on their way to parameter servers");
    std::ranges::fill(gradients(), 0.0F);
    gradients_on_device_ = device->Allocate(bytes, "gradients");
  }
}

DeviceReplica::~DeviceReplica() {
  (void)compute_.Synchronize(DeadlineAfter(kSettleTimeout));
  (void)Drain(kSettleTimeout);
}

std::span<float> DeviceReplica::PlaceIn(std::span<float> arena, int parameter) const {
  return arena.subspan(static_cast<std::size_t>(host_[parameter].offset),
                       static_cast<std::size_t>(host_[parameter].shape.elements()));
}

std::span<float> DeviceReplica::gradient(int parameter) const {
  return PlaceIn(FloatsOf(gradients_on_device_), parameter);
}

void DeviceReplica::Upload() {
  if (!changed_) {
    return;
  }
  changed_ = false;
  copy_.Send(values(), copy_.parameters().all());
  compute_.WaitFor(copy_.stream().Record());
}

void DeviceReplica::BeginPass() {
  ready_.clear();
  ready_elements_ = 0;
  copy_.kernels().Fill(copy_.stream(), FloatsOf(gradients_on_device_), 0.0F);
  compute_.WaitFor(copy_.stream().Record());
}

void DeviceReplica::Ready(int parameter) {
  ready_.push_back(parameter);
  ready_elements_ += gradient(parameter).size();
  if (ready_elements_ >= kLandedElements) {
    Land();
  }
}

// Neighbours as one.
void DeviceReplica::Land() {
  copy_.stream().WaitFor(compute_.Record());
  std::ranges::sort(ready_);
  for (std::size_t i = 0; i < ready_.size();) {
    std::size_t last = i;
    while (last + 1 < ready_.size() && ready_[last + 1] == ready_[last] + 1) {
      ++last;
    }
    const auto begin = static_cast<std::size_t>(host_[ready_[i]].offset);
    const ParameterSet::Parameter& end = host_[ready_[last]];
    const std::size_t size = static_cast<std::size_t>(end.offset + end.shape.elements()) - begin;
    copy_.Send(FloatsOf(gradients_on_device_).subspan(begin, size),
               gradients().subspan(begin, size));
    i = last + 1;
  }
  ready_.clear();
  ready_elements_ = 0;
}

void DeviceReplica::EndPass() {
  Land();
  for (int p = 0; p < host_.size(); ++p) {
    if (!host_[p].trainable && !host_[p].frozen) {
      copy_.Send(copy_.parameters().value(p), PlaceIn(values(), p));
    }
  }
}

Status DeviceReplica::Drain(std::chrono::milliseconds timeout) { return copy_.Drain(timeout); }

}  // namespace cohort::ps
