// Ranks on several hosts: shared memory inside a host, TCP across.

#pragma once

#include <functional>
#include <memory>
#include <string>

#include <cohort/cluster/key_value_store.h>
#include <cohort/comm/communicator.h>
#include <cohort/comm/tcp.h>

namespace cohort {

struct HierarchicalOptions {
  TcpOptions tcp;  // connect_timeout: of all that is connected, together
  // What this process's host calls itself; ranks with equal texts are on one host. Empty: the
  // kernel's boot id and network namespace.
  std::string host;
  // The algorithm of the all-reduces across hosts, which is TCP's: "ring", "halving_doubling", ...
  std::string across = "auto";
  // Makes the communicator of this host's ranks; `prefix` is theirs alone in the store. Empty:
  // shared memory.
  std::function<Result<std::unique_ptr<Communicator>>(int rank, int size, const std::string& prefix,
                                                      const CommunicatorOptions& options)>
      make_host;
};

// Blocks until all `size` ranks have met. Each publishes its host in `store` as
// `prefix/GENERATION/host/N`; who does not is named as by MakeTcpCommunicator. All on one host: the
// host's communicator. Each on its own: TCP. Else a communicator over TCP that has one more
// algorithm of all-reduce, "hierarchical":
//
//   every host has equally many ranks   reduce-scatter inside the host, all-reduce of each slice
//                                       across hosts, driven by the rank that holds it, all-gather
//                                       inside the host; large buffers in blocks, so that one is on
//                                       the wire while the next is summed
//   else                                reduce to the host's first rank, all-reduce among those,
//                                       broadcast
//
// "auto" takes it from 256 KiB on. Between hosts each byte then travels as often as if every host
// were one rank. All other operations, smaller ones, and groups made by Split go over TCP between
// all ranks. Failures are as over TCP. Memory from Allocate is read by the ranks of the host where
// it lies.
//
// Order: where every host has the same power of two of consecutive ranks the results are those of
// the canonical order, as everywhere. Elsewhere they are the same bits in every run, but others
// than those of the other algorithms; with CommunicatorOptions::deterministic the algorithm is then
// refused, and "auto" does not take it. InvalidArgument where `across` names no algorithm, or one
// that `deterministic` refuses.
Result<std::unique_ptr<Communicator>> MakeHierarchicalCommunicator(
    int rank, int size, KeyValueStore& store, const std::string& prefix,
    const HierarchicalOptions& hierarchical = {}, const CommunicatorOptions& options = {});

}  // namespace cohort
