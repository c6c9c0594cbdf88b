// ClusterSpec and TaskId: who takes part in a job, and who this process is.
//
// Both are values: they copy, compare, and never change after they are made. Source of the terms:
// TF_CONFIG as TensorFlow writes it.

#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <cohort/core/status.h>

namespace cohort {

enum class TaskType : std::uint8_t { kChief = 0, kWorker = 1, kPs = 2, kEvaluator = 3 };

std::string_view TaskTypeName(TaskType type);  // "chief", "worker", "ps", "evaluator"

// One process of the job. Printed and parsed as "worker:2".
struct TaskId {
  TaskType type = TaskType::kWorker;
  int index = 0;

  std::string ToString() const;
  static Result<TaskId> Parse(std::string_view text);
  friend auto operator<=>(const TaskId&, const TaskId&) = default;  // NOLINT(modernize-use-nullptr)
};

// The tasks and their addresses ("10.0.0.3:2222", "[::1]:2222", "host:0" for a port chosen when
// bound). Indices of a type may have gaps (TF_CONFIG's sparse maps).
class ClusterSpec {
 public:
  ClusterSpec() = default;  // no tasks: a job of one process
  explicit ClusterSpec(std::map<TaskId, std::string> addresses)
      : addresses_(std::move(addresses)) {}

  bool empty() const { return addresses_.empty(); }
  int Count(TaskType type) const;
  bool Contains(const TaskId& task) const { return addresses_.contains(task); }
  // ContractError if the task is not in the spec.
  const std::string& Address(const TaskId& task) const;
  // All tasks: chief, workers, ps, each by index. An evaluator is never part of a cluster.
  std::vector<TaskId> Tasks() const;

  // Those that compute gradients, in rank order: chief first, then the workers by index. In a job
  // with parameter servers the chief coordinates and does not train, so only the workers are
  // returned.
  std::vector<TaskId> TrainingTasks() const;
  // chief:0 if there is one, else the worker with the lowest index; worker:0 of an empty spec.
  TaskId Chief() const;

  // A digest of the tasks and addresses that every process of one job must share.
  std::uint64_t Fingerprint() const;
  // Canonical JSON, {"chief":["h:p"],"worker":{"0":"h:p",...}}: what is compared and shown when two
  // specs differ.
  std::string ToJson() const;

  friend bool operator==(const ClusterSpec&, const ClusterSpec&) = default;

 private:
  std::map<TaskId, std::string> addresses_;
};

// What one process knows at start: the cluster and its own place in it.
struct ClusterConfig {
  ClusterSpec cluster;  // empty: a local job of one process, task worker:0
  TaskId task;
  std::string source = "local";  // which of the sources won: "TF_CONFIG", "Open MPI", "flags", ...
  // Bare-rank sources (mpirun, torchrun, Slurm) give ranks, not always addresses: where they do
  // not, `cluster` holds "host:0"-style placeholders, and this many processes agree on addresses
  // through `rendezvous`.
  std::string rendezvous;  // "host:port" of the process that answers roll-call; empty: the chief's
                           // address in `cluster`
  // Among the processes of this host: what a launcher tells, else counted from equal host names in
  // the cluster.
  int local_rank = 0;
  int local_size = 1;
  bool mpi = false;  // an MPI launcher started this process, so that MPI can exchange addresses

  bool is_chief() const { return cluster.empty() || task == cluster.Chief(); }
};

}  // namespace cohort
