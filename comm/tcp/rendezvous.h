// How the ranks of a group come to have two connections for each pair, or more: one or several for
// data, one for control frames, which must get through when data is stuck.
//
// Rank r connects to every lower rank and accepts every higher one. Both sides of a connection say
// who they are: the group, its size and generation, the rank, and its cores; whatever does not
// belong here (another job, an old generation, a port scanner) is refused and does not disturb.

#pragma once

#include <cohort/cluster/key_value_store.h>
#include <cohort/comm/communicator.h>
#include <cohort/core/clock.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>

#include <sched.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tcp/socket.h"

namespace cohort {

inline constexpr int kDataChannel = 0;
inline constexpr int kControlChannel = 1;  // those behind it are more rails for data
inline constexpr int kChannels = 2;

struct GroupIdentity {
  std::string name;  // equal on all ranks: the key prefix, the split
  int rank = 0;
  int size = 1;
  std::uint64_t generation = 1;
  int channels = kChannels;        // connections of a pair
  std::uint64_t stripe_bytes = 0;  // what else both ends must have equal
};

// What ranks publish: their addresses, or something else.
struct Directory {
  // Blocks until `rank` has published it.
  std::function<Result<std::string>(int rank, Deadline deadline)> wait;
  // What it is if that is known now; empty if not.
  std::function<std::string(int rank)> look;
  std::function<std::string(int rank)> name;  // what errors call a rank
  std::string what = "an address";
};

struct Connections {
  std::vector<Socket> sockets;   // at rank * channels + channel; the own places stay closed
  std::vector<cpu_set_t> cores;  // by rank: on which of its host's it may run
};
// Whether so many ranks of one host have less than a core each, so that who spins keeps another
// from what it waits for.
bool AreCrowded(const std::vector<cpu_set_t>& cores);

// DeadlineExceeded names who is missing and what was tried; FailedPrecondition says what a peer
// refused.
Result<Connections> ConnectGroup(const GroupIdentity& group, const Listener& listener,
                                 const Directory& directory, const Log& log, Deadline deadline);

// ConnectGroup for ranks that find each other in `store`: each publishes its listener's address as
// `folder`/RANK, and below it which process it is. AlreadyExists names the process that has claimed
// this rank before.
Result<Connections> MeetInStore(const GroupIdentity& group, const Listener& listener,
                                KeyValueStore& store, const std::string& folder,
                                const CommunicatorOptions& options, Deadline deadline);

// What each rank publishes as `folder`/RANK, by rank; this one `word`, a line. `what` it is, for
// errors, which are those of MeetInStore.
Result<std::vector<std::string>> WordsOfAll(int rank, int size, const std::string& word,
                                            KeyValueStore& store, const std::string& folder,
                                            const std::string& what,
                                            const CommunicatorOptions& options, Deadline deadline);

}  // namespace cohort
