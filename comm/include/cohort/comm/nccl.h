// Ranks on GPUs, through NVIDIA's NCCL.

#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <cohort/cluster/key_value_store.h>
#include <cohort/comm/communicator.h>
#include <cohort/device/device.h>

namespace cohort {

class NcclApi;  // nccl/nccl_api.h

struct NcclOptions {
  std::shared_ptr<Device> device;                      // of this rank: "cuda:N"
  std::chrono::milliseconds connect_timeout{300'000};  // for all ranks to have met and connected
  std::shared_ptr<NcclApi> api = nullptr;              // NCCL itself. Tests have another
};

// Blocks until all `size` ranks have met in `store`, which outlives the communicator, under
// `prefix/GENERATION/nccl`. FailedPrecondition names two ranks that have one GPU, or says that NCCL
// was not built in or its library is missing; DeadlineExceeded names who did not come.
//
// Buffers are memory of the device. An operation runs on a stream of the communicator's own, after
// what CollectiveOptions::stream holds; the host does not wait for it. A call that puts work on it
// waits for NCCL, which connects to peers at the first operation of its kind. After a
// failure the streams that wait for the communicator's fail with it.
//
// Every failure is final, a mismatch too. A new communicator of a higher generation can be made in
// the same processes. Reductions are NCCL's: not in the canonical order, so that `deterministic` is
// refused for more than one rank; mean is taken by multiplying before adding; min and max may drop
// NaN. No Join (Unimplemented). README.md says what costs what.
Result<std::unique_ptr<Communicator>> MakeNcclCommunicator(int rank, int size, KeyValueStore& store,
                                                           const std::string& prefix,
                                                           const NcclOptions& nccl,
                                                           const CommunicatorOptions& options = {});

// The communicators of several ranks of this process, `first` and those behind it, which connect
// at the same time. `store` nullptr: all ranks are here. Each is called by a thread of its own,
// since a call may wait for the other ranks'.
Result<std::vector<std::unique_ptr<Communicator>>> MakeNcclCommunicators(
    std::span<const NcclOptions> ranks, int first, int size, KeyValueStore* store,
    const std::string& prefix, const CommunicatorOptions& options = {});

// For ranks that are threads of this process: rank r is on devices[r].
Result<std::vector<std::unique_ptr<Communicator>>> MakeLocalNcclCommunicators(
    std::span<const std::shared_ptr<Device>> devices,
    std::chrono::milliseconds connect_timeout = std::chrono::milliseconds(300'000),
    const CommunicatorOptions& options = {});

// What tells the GPU of a rank from all others: "GPU-8f0c...". FailedPrecondition says what is
// missing: NCCL, or a GPU.
Result<std::string> NcclGpu(const NcclOptions& nccl);

// "2.28.9", of the library that is loaded at run time. FailedPrecondition says what is missing.
Result<std::string> NcclVersion();

}  // namespace cohort
