// LocalRows: a process's own sparse tables, all buckets of them.

#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "parameter_server/rows/row_table.h"
#include "synchronous/step_rows.h"

namespace cohort {

class LocalRows final : public StepRows {
 public:
  // `optimizer`: of tables that name none. `threads`: that give gradients.
  static Result<std::unique_ptr<LocalRows>> Make(std::vector<TableSpec> tables,
                                                 const std::string& optimizer, int threads);

  Status Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                std::span<float> rows) override;
  Status Apply(std::int64_t step, double divisor, const DistributedBatch* next) override;
  Status Save(int table, FileSystem& files, const std::string& path) override;
  Status Load(int table, FileSystem& files, const std::vector<std::string>& chain) override;

 private:
  LocalRows(std::vector<TableSpec> specs, std::vector<std::unique_ptr<ps::RowTable>> tables,
            int threads)
      : StepRows(std::move(specs), threads),
        tables_(std::move(tables)),
        last_(std::make_unique<Last[]>(tables_.size())) {}
  ps::RowTable& TableAt(int table) const;

  const std::vector<std::unique_ptr<ps::RowTable>> tables_;
  // Of the last lookups, by table: the gradients' ids are the same where one lookup is all of a
  // step. Held by the thread that uses it.
  struct Last {
    std::mutex mutex;
    ps::RowTable::Found found;
  };
  const std::unique_ptr<Last[]> last_;
};

}  // namespace cohort
