// Ranks as processes that reach each other over TCP.

#pragma once

#include <memory>
#include <string>

#include <cohort/cluster/key_value_store.h>
#include <cohort/comm/communicator.h>

namespace cohort {

struct TcpOptions {
  // Host or address that peers can reach, port 0 for any: "10.0.0.3:0", "[::1]:0". Empty host: the
  // interface that routes to the rendezvous, or loopback where that is loopback.
  std::string bind_address = ":0";
  // The host of the rendezvous, for an empty host above. Empty: this machine.
  std::string rendezvous_host;
  std::chrono::milliseconds connect_timeout{300'000};
};

// Blocks until all `size` ranks have met: each binds, publishes its address in `store` as
// `prefix/GENERATION/rank/N`, and connects to the others. Ranks may start in any order; the log has
// a roll-call line every 10 s. AlreadyExists where two processes claim one rank; DeadlineExceeded
// names the absent and what was tried.
Result<std::unique_ptr<Communicator>> MakeTcpCommunicator(int rank, int size, KeyValueStore& store,
                                                          const std::string& prefix,
                                                          const TcpOptions& tcp,
                                                          const CommunicatorOptions& options = {});

}  // namespace cohort
