// How the ranks of an NCCL communicator meet: by the store, until NCCL has connected them.

#pragma once

#include <cohort/comm/communicator.h>
#include <cohort/core/clock.h>
#include <cohort/device/device.h>

#include <chrono>
#include <memory>

#include "nccl/board.h"
#include "nccl/nccl_api.h"
#include "nccl/nccl_link.h"

namespace cohort {

// Each rank says which GPU it has; two with one are InvalidArgument before NCCL hears of it, naming
// both. Then rank 0 hands out NCCL's id, all connect, and sum one element. DeadlineExceeded names
// the ranks that have not come so far.
Result<NcclLinkParts> MeetForNccl(std::shared_ptr<NcclApi> api, std::shared_ptr<Device> device,
                                  Board board, int rank, int size,
                                  std::chrono::milliseconds connect_timeout,
                                  const CommunicatorOptions& options);

}  // namespace cohort
