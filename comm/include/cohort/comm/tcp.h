// Ranks as processes that reach each other over TCP.
//
// Thread rules: MakeTcpCommunicator from any thread, several at once where their prefixes or
// generations differ; what it makes has the rules of Communicator. TcpOptions: plain values.

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
  // For all ranks to meet; then MakeTcpCommunicator is DeadlineExceeded.
  std::chrono::milliseconds connect_timeout{300'000};
  // Connections for data between two ranks, equal on all. More than one where the network gives
  // each connection no more than a share of the link, as many clouds do: `stripe_bytes` go over
  // each in turns.
  int rails = 1;
  std::int64_t stripe_bytes = std::int64_t{256} << 10;
  // Large sends leave the bytes where they are for the network to fetch, where the kernel can do
  // that (MSG_ZEROCOPY) and it saves a copy.
  bool zero_copy = true;
};

// Blocks until all `size` ranks have met: each binds, publishes its address in `store` as
// `prefix/GENERATION/rank/N`, and connects to the others. Ranks may start in any order; the log has
// a roll-call line every 10 s. AlreadyExists where two processes claim one rank names the first;
// DeadlineExceeded names the absent and what was tried; FailedPrecondition where two have other
// rails. InvalidArgument for rails or stripes below 1.
Result<std::unique_ptr<Communicator>> MakeTcpCommunicator(int rank, int size, KeyValueStore& store,
                                                          const std::string& prefix,
                                                          const TcpOptions& tcp,
                                                          const CommunicatorOptions& options = {});

}  // namespace cohort
