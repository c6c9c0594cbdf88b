// Ranks as processes of one host, through shared memory.
//
// Thread rules: MakeShmCommunicator from any thread, several at once where their prefixes or
// generations differ; what it makes has the rules of Communicator. ShmOptions: plain values.

#pragma once

#include <chrono>
#include <memory>
#include <string>

#include <cohort/cluster/key_value_store.h>
#include <cohort/comm/communicator.h>

namespace cohort {

struct ShmOptions {
  // For all ranks to meet; then MakeShmCommunicator is DeadlineExceeded.
  std::chrono::milliseconds connect_timeout{300'000};
};

// What ranks must have in common to share memory: the host since it was booted, and the network
// namespace, in which their sockets have names. Equal texts: MakeShmCommunicator can connect them.
std::string HostIdentity();

// Blocks until all `size` ranks have met, by addresses that they publish in `store` as
// `prefix/GENERATION/shm/N`; any part of a larger job may, under a prefix of its own. Fails as
// MakeTcpCommunicator does. Memory from Allocate is read by the peers where it lies. All memory
// goes with its processes, however they end; descriptors travel over unix sockets, which also tell
// of a peer's end.
Result<std::unique_ptr<Communicator>> MakeShmCommunicator(int rank, int size, KeyValueStore& store,
                                                          const std::string& prefix,
                                                          const ShmOptions& shm = {},
                                                          const CommunicatorOptions& options = {});

}  // namespace cohort
