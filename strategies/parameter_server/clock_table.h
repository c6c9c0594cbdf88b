// ClockTable: how many steps of each worker a server has applied, and who may read.
//
// A worker's clock counts its steps here. A read of a worker at clock c is fresh when no live
// worker's clock is less than c - staleness: it then includes every update of every live worker
// with a clock below that. The slowest worker never waits, so somebody always goes on.
//
// Live are those in the middle of their work: a worker that pauses (between two pieces of work) or
// is retired (done, or lost) is not waited for; all it has done is applied. Who enters, or is back,
// starts at the least clock of the live ones (a newcomer, where all pause: of those), if that is
// more than its own.
//
// Thread rules: all methods from any thread.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include <cohort/core/clock.h>

#include "parameter_server/retired_clients.h"

namespace cohort::ps {

class ClockTable {
 public:
  explicit ClockTable(std::uint64_t staleness) : staleness_(staleness) {}

  // `name`: for Slowest.
  void Advance(std::uint64_t worker, const std::string& name = {});
  void Pause(std::uint64_t worker);
  void Retire(std::uint64_t first, std::uint64_t last);  // all from the one to the other
  void Retire(std::uint64_t worker) { Retire(worker, worker); }
  // Nobody has made a step; those that were retired stay so.
  void Reset();
  // Until a read of `worker` is fresh; false at the deadline.
  bool Await(std::uint64_t worker, Deadline deadline, const std::string& name = {});
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
  };
  Worker& Enter(std::uint64_t worker, const std::string& name);
  std::uint64_t Least(bool paused = false) const;  // UINT64_MAX: nobody is live, or `paused`

  const std::uint64_t staleness_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, Worker> workers_;
  RetiredClients retired_;  // never enter again
  Stats stats_;
};

}  // namespace cohort::ps
