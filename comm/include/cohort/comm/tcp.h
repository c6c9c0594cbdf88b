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
  std::chrono::milliseconds connect_timeout{300'000};
};

// Blocks until all `size` ranks have met: each binds, publishes `prefix/rank/N` in `store`, and
// connects to the others. Ranks may start in any order. DeadlineExceeded names the absent and what
// was tried.
Result<std::unique_ptr<Communicator>> MakeTcpCommunicator(int rank, int size, KeyValueStore& store,
                                                          const std::string& prefix,
                                                          const TcpOptions& tcp,
                                                          const CommunicatorOptions& options = {});

}  // namespace cohort
