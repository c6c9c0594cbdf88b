// UntrainedValues: the parameters that no update changes but a step function may write to, such as
// the running averages of batch norm. Frozen ones are not among them: nobody writes to these.
//
// After every step those of rank 0's replica 0 hold on all processes and devices; after a step that
// is skipped those of before it do.
//
// Values of devices pass through the host: Gather waits for the first device's stream, Take, Keep
// and PutBack only put work on the devices' streams.
//
// Cost: their elements on the host, and as many again, where the values are, from the first Keep
// on.
//
// Thread rules: the strategy's thread, while no replica is in a pass.

#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include <cohort/comm/communicator.h>
#include <cohort/core/status.h>
#include <cohort/optim/parameter_set.h>

#include "synchronous/device_copy.h"

namespace cohort {

class UntrainedValues {
 public:
  // All outlive this. `copies`: the model on each device, `first` that of replica 0; without
  // devices none, and nullptr. `timeout`: of a stream that is waited for.
  UntrainedValues(ParameterSet& parameters, std::span<const std::unique_ptr<DeviceCopy>> copies,
                  DeviceCopy* first, std::chrono::milliseconds timeout);

  bool empty() const { return values_.empty(); }

  // Reads them from where replica 0 wrote them; and writes what was read or sent everywhere.
  Status Gather();
  void Take();
  // Sends rank 0's to all processes, which may Take them when the work has ended. All call.
  Communicator::Pending Send(Communicator& communicator);
  // Keeps them as they are before a step, which may be skipped; and puts those of the last Keep
  // back. Keep throws StatusError: a device has no memory for it.
  void Keep();
  void PutBack();

 private:
  void CopyTo(std::span<float> to) const;
  void CopyFrom(std::span<const float> from);

  ParameterSet& parameters_;
  const std::span<const std::unique_ptr<DeviceCopy>> copies_;
  DeviceCopy* const first_;
  const std::chrono::milliseconds timeout_;
  std::vector<int> untrained_;  // the parameters
  std::vector<float> values_;   // theirs, one after the other
  std::vector<float> kept_;     // likewise, on the host
};

}  // namespace cohort
