// The Communicator over an NcclLink, with the table of NCCL's calls as a parameter.

#pragma once

#include <cohort/comm/nccl.h>

#include <memory>
#include <string>

#include "nccl/nccl_api.h"
#include "nccl/nccl_link.h"

namespace cohort {

// MakeNcclCommunicator on `api`. `store` is owned by the communicator and its groups, or by nobody.
// `quiet`, `patience`: see NcclLinkParts.
Result<std::unique_ptr<Communicator>> MakeNcclCommunicatorOn(
    std::shared_ptr<NcclApi> api, int rank, int size, std::shared_ptr<KeyValueStore> store,
    const std::string& prefix, const NcclOptions& nccl, const CommunicatorOptions& options,
    Duration quiet = NcclLinkParts().quiet, Duration patience = NcclLinkParts().patience);

}  // namespace cohort
