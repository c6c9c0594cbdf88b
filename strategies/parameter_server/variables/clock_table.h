// ClockTable: how many steps of each worker a server has applied, and who may read.
//
// A worker's clock counts its steps. It is the worker's own, and says so with each frame, so that
// all servers have the same: were it counted at each of them, two workers could wait for each other
// at two servers. A read of a worker at clock c is fresh when no live worker's clock is less than
// c - staleness: it then includes every update of every live worker with a clock below that. The
// slowest worker never waits, so somebody always goes on.
//
// Live are those in the middle of their work: a worker that pauses (between two pieces of work) or
// is retired (done, or lost) is not waited for; all it has done is applied. Who enters, or is back,
// asks one server, for all of them, where it starts: at the least clock of the live ones (where all
// pause: a newcomer at that of those), if that is more than its own.
//
// Thread rules: all methods from any thread.

#pragma once

#include <compare>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include <cohort/core/clock.h>

#include <cohort/parameter_server.pb.h>
#include "parameter_server/variables/retired_clients.h"

namespace cohort::ps {

// A worker's enterings and pauses have numbers, in each epoch of the servers from 1: one that comes
// when a later one has been has no effect. 0: it always has.
struct ClockTurn {
  std::uint64_t epoch = 0;
  std::uint64_t number = 0;
  auto operator<=>(const ClockTurn&) const = default;
};

class ClockTable {
 public:
  explicit ClockTable(std::uint64_t staleness) : staleness_(staleness) {}

  // The clock at which a worker that had `clock` goes on. `name`: for Slowest.
  std::uint64_t Enter(std::uint64_t worker, std::uint64_t clock, const std::string& name = {},
                      const ClockTurn& turn = {});
  // It has made the step after which its clock is this.
  void Advance(std::uint64_t worker, std::uint64_t clock, const std::string& name = {},
               const ClockTurn& turn = {});
  void Pause(std::uint64_t worker, const ClockTurn& turn = {});
  void Retire(std::uint64_t first, std::uint64_t last);  // all from the one to the other
  void Retire(std::uint64_t worker) { Retire(worker, worker); }
  // Nobody has made a step; those that were retired stay so.
  void Reset();
  // What is known of workers, and that it is what another table knew; those that were retired stay
  // so.
  using Clocks = google::protobuf::RepeatedPtrField<WorkerClock>;
  void Tell(Clocks* clocks) const;
  void Learn(const Clocks& clocks);
  // Until a read of `worker` at this clock is fresh; false at the deadline.
  bool Await(std::uint64_t worker, std::uint64_t clock, Deadline deadline,
             const std::string& name = {});
  // Whom the reads of `worker` wait for: "worker:1 is 3 steps behind".
  std::string Slowest(std::uint64_t worker) const;

  struct Stats {
    std::uint64_t parked = 0;    // reads that had to wait
    std::uint64_t max_lead = 0;  // steps that a worker was ahead of the slowest when it read
  };
  Stats stats() const;

 private:
  struct Worker {
    std::uint64_t clock = 0;
    bool live = false;
    std::string name;
    ClockTurn turn;  // the last one
  };
  // With the lock: it comes too late, or again.
  bool Overtaken(std::uint64_t worker, const ClockTurn& turn) const;
  Worker& Live(std::uint64_t worker, std::uint64_t clock, const std::string& name);
  static constexpr std::uint64_t kNobody = UINT64_MAX;
  std::uint64_t Least(bool paused = false) const;  // kNobody: is live, or `paused`

  const std::uint64_t staleness_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, Worker> workers_;
  RetiredClients retired_;  // never enter again
  Stats stats_;
};

}  // namespace cohort::ps
