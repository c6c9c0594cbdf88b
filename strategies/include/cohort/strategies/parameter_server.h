// ParameterServerStrategy: workers compute, servers hold the variables and run the optimizer, the
// chief hands out data.
//
// Every process runs the same program. `ps` tasks and, where there is one, the chief do not train:
// they call Serve. Without a chief task worker:0 trains and coordinates. What is exact when, and
// what happens when a process dies, is in strategies/parameter_server/README.md.
//
// Batches: a step takes one batch of the data set's size on one worker and is one update
// (asynchronous, bounded staleness), or one batch cut among the workers of the moment
// (synchronous). StrategyOptions::consistency chooses.
//
// Failure: a worker that dies is missed by nobody, its data is handed out again, and it may come
// back. When a server dies, the job waits for another process in its place (rejoin_grace).
// StrategyOptions::server_loss says what goes back to the last save then: all of it, that server's
// part alone (kPartial), or nothing, since another server has a copy (kReplica). So it waits for
// another chief task, where StrategyOptions::journal_folder is set. When the chief dies otherwise,
// or nobody comes in time, every other process gets Unavailable with its name.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/status.h>
#include <cohort/strategies/strategy.h>
#include <cohort/strategies/table_counts.h>

namespace cohort {

class Coordinator;
class Functions;
class Metrics;  // cohort/core/metrics.h
struct ScheduleOptions;

// Over all servers.
struct ParameterServerStats {
  std::uint64_t pushes = 0;      // messages that were applied
  std::uint64_t duplicates = 0;  // repeated messages that were not applied again
  std::uint64_t rejected = 0;
  double mean_staleness = 0;  // updates by others between a gradient's pull and its push
  std::uint64_t max_staleness = 0;
  std::uint64_t late = 0;      // parts of rounds, by chunk, that came too late (backup workers)
  std::uint64_t parked = 0;    // reads that waited for a slower worker (bounded staleness)
  std::uint64_t max_lead = 0;  // steps that a worker was ahead of the slowest when it read
  // ServerLoss::kPartial: updates, since the save that their successors got, of the servers that
  // were lost. On the chief.
  std::int64_t lost_updates = 0;
  // Lookups of this process in training, whose rows were there before they were asked for.
  std::int64_t foreseen = 0;
  // StrategyOptions::lookahead of 2 or more: rows that were pulled again before they were used, as
  // this process had pushed gradients of them.
  std::int64_t refreshed_rows = 0;
  std::uint64_t failed_saves = 0;  // SaveBetweenUpdates's, without which training went on
  // SaveBetweenUpdates's: so often, for so long altogether, and for so long at most, nothing was
  // handed out because of a save. Workers waited for as long, or less. On the chief.
  std::int64_t save_pauses = 0;
  double save_pause_seconds = 0;
  double longest_save_pause_seconds = 0;
  std::int64_t moved_buckets = 0;  // to less busy servers (balance_interval), by the chief
  // Rows of which this process had kept what was rounded off their gradients (TableSpec's
  // wire_feedback), and lost it: for want of room, or in a roll-back.
  std::uint64_t dropped_residuals = 0;
  std::vector<TableCounts> tables;  // sparse ones, in the order of the model
};

class ParameterServerStrategy : public Strategy {
 public:
  // Joins the job: blocks until the processes have met that options.start waits for.
  // InvalidArgument if the cluster has no workers or no servers, or for a partitioner that is none.
  static Result<std::unique_ptr<ParameterServerStrategy>> Make(const ClusterConfig& config,
                                                               const StrategyOptions& options);

  // Calls of functions instead of data; see Coordinator::Create and ServeFunctions.
  virtual Result<std::unique_ptr<Coordinator>> MakeCoordinator(const ScheduleOptions& options) = 0;
  virtual Status ServeFunctions(const Functions& functions) = 0;

  virtual const Consistency& consistency() const = 0;
  // After Bind.
  virtual Result<ParameterServerStats> stats() = 0;
  // On a server, from now on: requests and staleness are counted there, see src/obs/README.md. Once
  // at most, and before Serve; `metrics` must outlive the strategy. Elsewhere nothing.
  virtual void CountIn(Metrics& metrics) = 0;
};

}  // namespace cohort
