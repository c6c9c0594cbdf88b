// DeviceSums: how gradients in the memory of several devices become one sum, and how that gets to
// the host and to all of the devices.
//
// The replicas of a device are added by its kernels, where they lie, in a tree: pairs, and then
// pairs of pairs. Where a device adds what another has, its kernels read it there if they reach it
// (Device::Reaches); else it is fetched first, piece by piece, into scratch memory of the device
// that adds. All is put on the streams of the devices' copies of the model, and happens behind what
// these hold.
//
// Thread rules: one thread at a time, the one that may feed the streams of the copies.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "synchronous/arena.h"
#include "synchronous/device_copy.h"

namespace cohort {

class DeviceSums {
 public:
  // Arenas of the replicas, in their order.
  using Arenas = std::vector<std::span<float>>;

  enum class Way {
    kTree,       // one tree over all replicas, wherever they are, and back along it
    kOneDevice,  // devices one after the other into replica 0's, and from there to each
    kEach,       // of each device apart: what becomes of these sums is another's to do
  };

  // `copies` by replica; arenas have `elements`. `lands`: sums also travel among processes, from
  // memory of the host. Throws StatusError.
  DeviceSums(std::vector<DeviceCopy*> copies, std::int64_t elements, Way way, bool lands);

  DeviceCopy& copy(int replica) const { return *copies_[static_cast<std::size_t>(replica)]; }
  // The replica in whose arena sums land on the device of `copy`: its first one.
  int FirstOn(const DeviceCopy& copy) const;
  const std::vector<int>& firsts() const { return firsts_; }

  // Makes elements [begin, end) of replica 0's arena the sum over all; with kEach, of each device's
  // first one the sum over the device.
  void Sum(const Arenas& arenas, std::int64_t begin, std::int64_t end);
  // Copies them from there to the first arena on every other device.
  void Spread(const Arenas& arenas, std::int64_t begin, std::int64_t end);

  // The host's memory from which sums travel: an arena of its own, or, where replica 0 is on the
  // host, that replica's.
  Arena& Landing(Arena& of_replica_0) { return landing_.has_value() ? *landing_ : of_replica_0; }
  const Arena& Landing(const Arena& of_replica_0) const {
    return landing_.has_value() ? *landing_ : of_replica_0;
  }
  // Copies [begin, end) of replica 0's arena there, on its copy's stream; and from there to the
  // first arena on every device.
  void Land(const Arenas& arenas, std::int64_t begin, std::int64_t end);
  void TakeOff(const Arenas& arenas, const Arena& landing, std::int64_t begin, std::int64_t end);

 private:
  struct Edge {
    int to;
    int from;
  };

  void PlanSums(Way way);
  void PlanSpread();
  bool Fetches(const Edge& edge) const;
  void Add(const Edge& edge, const Arenas& arenas, std::int64_t begin, std::int64_t end);

  const std::vector<DeviceCopy*> copies_;
  std::vector<int> firsts_;    // one replica of each device
  std::vector<Edge> sums_;     // of replicas' arenas, in order
  std::vector<Edge> spreads_;  // from one device's first arena to another's, in order
  std::vector<std::shared_ptr<std::byte>> scratch_;  // by replica, of those that fetch
  std::optional<Arena> landing_;
};

}  // namespace cohort
