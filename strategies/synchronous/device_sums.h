// DeviceSums: how gradients in the memory of several devices become one sum, and how that gets to
// the host and to all of the devices.
//
// Replicas are added in one tree, pairs and then pairs of pairs, wherever they are: those of one
// device by its kernels, where they lie; from another device what is to be added is fetched first,
// piece by piece, into scratch memory of the device that adds. All is put on the streams of the
// devices' copies of the model, and happens behind what these hold.
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

  // `copies` by replica; arenas have `elements`. `lands`: sums also travel among processes, from
  // memory of the host. Throws StatusError.
  DeviceSums(std::vector<DeviceCopy*> copies, std::int64_t elements, bool lands);

  DeviceCopy& copy(int replica) const { return *copies_[static_cast<std::size_t>(replica)]; }
  // The replica in whose arena sums land on the device of `copy`: its first one.
  int FirstOn(const DeviceCopy& copy) const;

  // Makes elements [begin, end) of replica 0's arena the sum over all.
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
  void AddFrom(int to, int from, const Arenas& arenas, std::int64_t begin, std::int64_t end);

  const std::vector<DeviceCopy*> copies_;
  std::vector<int> firsts_;                          // one replica of each device
  std::vector<std::shared_ptr<std::byte>> scratch_;  // by replica, of those that fetch
  std::optional<Arena> landing_;
};

}  // namespace cohort
