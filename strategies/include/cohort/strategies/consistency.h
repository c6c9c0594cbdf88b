// Consistency: which updates a worker of a parameter-server job has seen when it computes.
// strategies/parameter_server/README.md says what each guarantees.

#pragma once

#include <string>
#include <string_view>

#include <cohort/core/status.h>

namespace cohort {

struct Consistency {
  enum class Mode {
    kAsynchronous,      // every update counts on its arrival; nobody waits
    kBoundedStaleness,  // the same, but no worker reads when another is too far behind it
    kSynchronous,       // a batch is cut among the workers and is one update
    // Dense variables are mirrored by workers that train in step, by all-reduce; servers hold the
    // rows of sparse tables only. Strategy::FromEnv makes it multi_worker_mirrored, led by
    // worker:0.
    kHybrid,
    // kHybrid or kAsynchronous, as Strategy::FromEnv finds the model and the cluster.
    kAuto,
  };
  Mode mode = Mode::kAsynchronous;
  int staleness = 0;       // kBoundedStaleness: steps that a read may miss of another worker
  int backup_workers = 0;  // kSynchronous: so many parts of a batch, the last to come, are dropped

  bool synchronous() const { return mode == Mode::kSynchronous; }
  bool bounded() const { return mode == Mode::kBoundedStaleness; }

  // "async", "ssp:3", "sync", "sync:1" (with one backup worker), "hybrid", "auto". InvalidArgument
  // for others.
  static Result<Consistency> Parse(std::string_view text);
  std::string ToString() const;
  friend bool operator==(const Consistency&, const Consistency&) = default;
};

}  // namespace cohort
