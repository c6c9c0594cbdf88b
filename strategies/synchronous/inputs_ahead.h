// Batches whose copies on the devices are begun while the step before them computes.

#pragma once

#include <memory>
#include <vector>

#include <cohort/core/log.h>
#include <cohort/device/device.h>
#include <cohort/strategies/distributed_dataset.h>

namespace cohort {

// The same batches. With each that is handed out the next one is read, and its tensors' copies on
// the device of their replica (`devices`, by replica) begin, on a stream of the device's own; they
// go along with the tensors (AheadCopy). What a step does not ask for there is copied no more in
// that epoch; what is outside of page-locked memory, and all of an epoch's first batch, is copied
// by its step. Where a device has no memory for it, the log says so once, and no more is copied
// ahead there.
std::unique_ptr<DistributedDataset> CopyAhead(std::unique_ptr<DistributedDataset> batches,
                                              const std::vector<std::shared_ptr<Device>>& devices,
                                              const Log& log);

}  // namespace cohort
