// How the ranks of an NCCL communicator, or of a group of one, meet: by the store, until NCCL has
// connected them.

#pragma once

#include <cohort/comm/communicator.h>
#include <cohort/core/clock.h>
#include <cohort/device/device.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "nccl/board.h"
#include "nccl/nccl_api.h"
#include "nccl/nccl_link.h"

namespace cohort {

// Each rank says which GPU it has; two with one are InvalidArgument before NCCL hears of it, naming
// both. Then they connect. DeadlineExceeded names the ranks that have not come so far.
Result<NcclLinkParts> MeetForNccl(std::shared_ptr<NcclApi> api, std::shared_ptr<Device> device,
                                  Board board, int rank, int size,
                                  std::chrono::milliseconds connect_timeout,
                                  const CommunicatorOptions& options);

// Among ranks that are known to each other: rank 0 hands out NCCL's id on the board, all connect,
// and sum one element on their streams. Sets parts.handle, or leaves nothing to NCCL. `go_on` is
// asked all the while: what it returns ends this. Other errors begin with `what`.
Status ConnectThroughNccl(NcclLinkParts& parts, const std::string& what,
                          const std::function<Status()>& go_on);

}  // namespace cohort
