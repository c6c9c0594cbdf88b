// StepRows: the sparse tables of a model to a synchronous strategy, wherever their rows are, and
// the gradients of a step that this process's replicas have for them.
//
// A row's gradients are added up replica after replica, in the order in which each gave them: the
// same bits for any number of threads that share the replicas. A replica on a device gives, for
// each of its passes, the sum of a row's.
//
// Thread rules: Lookup from any thread; Add from each replica's own; the others while no replica is
// in a pass, but what Freeze says.

#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/optim/gradient_sink.h>
#include <cohort/optim/row_source.h>
#include <cohort/optim/table_spec.h>
#include <cohort/strategies/distributed_dataset.h>

#include "parameter_server/rows/row_gradient_buffer.h"

namespace cohort {

class StepRows : public RowSource {
 public:
  // `threads`: that give gradients.
  StepRows(std::vector<TableSpec> tables, int threads);

  // The step that lookups are for, from 1; and a batch of it. `skipped`: steps before it that
  // updated nothing, which a bias correction does not count.
  void StartStep(std::int64_t step, const DistributedBatch& batch, std::int64_t skipped = 0) {
    step_ = step;
    skipped_ = skipped;
    StartBatch(batch);
  }

  void Add(int thread, const RowGradients& gradients);
  void Drop();  // the gradients
  // Are these finite, and small enough for every sum of them to be?
  bool Finite() const;
  // Those of a thread since Mark: a part that turned out to weigh nothing.
  void Mark(int thread);
  void DropSinceMark(int thread);

  // Updates the rows with the gradients, which are gone then, divided by `divisor`: of the step,
  // or, where several processes add to the same rows, of this one's part. An error of a gradient
  // (NaN) has changed no table. `next`: the batch of the next step, where that is known. Finish
  // waits for the end, and returns what went wrong after Apply.
  virtual Status Apply(std::int64_t step, double divisor, const DistributedBatch* next) = 0;
  virtual Status Finish() { return {}; }
  // What was looked up ahead is no more: rows were loaded.
  virtual void Forget() {}

  // Whether a lookup has come to an error that the end of a server leads to. From any thread.
  virtual bool server_failed() const { return false; }

  // Where others hold the rows, between two steps, of which `step` is the last: these keep what
  // there is now, which is what Save and SaveChanges have until Thaw; the three on one other thread
  // meanwhile. False: it is this process that holds them.
  virtual Result<bool> Freeze(std::int64_t /*step*/) { return false; }
  virtual Status Thaw(bool /*saved*/) { return {}; }
  virtual bool frozen() const { return false; }
  // While they are kept: the step of the save since which SaveChanges writes the changes.
  virtual std::optional<std::int64_t> saved_at() const { return std::nullopt; }
  virtual Status SaveChanges(int table, FileSystem& files, const std::string& path);

  virtual Status Save(int table, FileSystem& files, const std::string& path) = 0;
  virtual Status Load(int table, FileSystem& files, const std::vector<std::string>& chain) = 0;

 protected:
  virtual void StartBatch(const DistributedBatch& /*batch*/) {}
  const TableSpec& SpecOf(int table) const;
  std::size_t num_tables() const { return tables_.size(); }
  std::int64_t step() const { return step_; }
  std::int64_t skipped() const { return skipped_; }
  // Of all threads, for a table.
  ps::RowGradientBuffer& Gather(std::size_t table);

 private:
  struct Pending {
    ps::RowGradientBuffer gradients;
    std::size_t marked_ids = 0;
  };
  Pending& PendingOf(int thread, std::size_t table) {
    return pending_[static_cast<std::size_t>(thread) * tables_.size() + table];
  }

  const std::vector<TableSpec> tables_;
  const int threads_;
  std::vector<Pending> pending_;  // by thread and table
  std::int64_t step_ = 1;
  std::int64_t skipped_ = 0;
};

}  // namespace cohort
