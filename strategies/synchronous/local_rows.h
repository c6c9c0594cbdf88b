// LocalRows: a process's own sparse tables, all buckets of them, and the gradients of a step that
// its replicas have for them.
//
// A row's gradients are added up replica after replica, in the order in which each gave them: the
// same bits for any number of threads that share the replicas.
//
// Thread rules: Lookup from any thread; Add from each replica's own; the others while no replica is
// in a pass.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/optim/row_source.h>
#include <cohort/optim/table_spec.h>

#include "parameter_server/row_table.h"

namespace cohort {

class LocalRows final : public RowSource {
 public:
  // `optimizer`: of tables that name none. `threads`: that give gradients.
  static Result<std::unique_ptr<LocalRows>> Make(std::vector<TableSpec> tables,
                                                 const std::string& optimizer, int threads);

  // The step that lookups are for; from 1.
  void StartStep(std::int64_t step) { step_ = step; }
  Status Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                std::span<float> rows) override;

  void Add(int thread, int table, std::span<const std::uint64_t> ids,
           std::span<const float> values);
  // Updates the rows with the gradients times `scale`, which are gone then. An error of a gradient
  // (NaN) has changed no table.
  Status Apply(std::int64_t step, float scale);
  void Drop();  // the gradients
  // Those of a thread since Mark: a part that turned out to weigh nothing.
  void Mark(int thread);
  void DropSinceMark(int thread);

  Status Save(int table, FileSystem& files, const std::string& path) const;
  Status Load(int table, FileSystem& files, const std::string& path);

 private:
  struct Pending {
    std::vector<std::uint64_t> ids;
    std::vector<float> values;
    std::size_t marked_ids = 0;
  };

  LocalRows(std::vector<std::unique_ptr<ps::RowTable>> tables, int threads);
  ps::RowTable& TableAt(int table) const;
  Pending& PendingOf(int thread, std::size_t table) {
    return pending_[static_cast<std::size_t>(thread) * tables_.size() + table];
  }

  const std::vector<std::unique_ptr<ps::RowTable>> tables_;
  const int threads_;
  std::vector<Pending> pending_;  // by thread and table
  std::int64_t step_ = 1;
};

}  // namespace cohort
