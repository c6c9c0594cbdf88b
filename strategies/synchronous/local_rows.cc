#include "synchronous/local_rows.h"

#include <algorithm>
#include <utility>

#include "parameter_server/rows/row_file.h"

namespace cohort {

Result<std::unique_ptr<LocalRows>> LocalRows::Make(std::vector<TableSpec> specs,
                                                   const std::string& optimizer, int threads) {
  std::vector<std::unique_ptr<ps::RowTable>> tables;
  for (TableSpec& spec : specs) {
    if (spec.optimizer.empty()) {
      spec.optimizer = optimizer;
    }
    COHORT_ASSIGN_OR_RETURN(auto table, ps::RowTable::Create(spec, {0, spec.buckets}));
    tables.push_back(std::move(table));
  }
  return std::unique_ptr<LocalRows>(new LocalRows(std::move(specs), std::move(tables), threads));
}

ps::RowTable& LocalRows::TableAt(int table) const {
  Require(table >= 0 && static_cast<std::size_t>(table) < tables_.size(), "a table of the model");
  return *tables_[static_cast<std::size_t>(table)];
}

Status LocalRows::Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                         std::span<float> rows) {
  ps::RowTable& from = TableAt(table);
  if (!training) {
    return from.Pull(ids, step(), ps::RowTable::Purpose::kReading, rows);
  }
  Last& last = last_[static_cast<std::size_t>(table)];
  // Of several threads that look up, one is enough to find it.
  const std::unique_lock lock(last.mutex, std::try_to_lock);
  return from.Pull(ids, step(), ps::RowTable::Purpose::kTraining, rows, {},
                   lock.owns_lock() ? &last.found : nullptr);
}

Status LocalRows::Apply(std::int64_t step, double divisor, const DistributedBatch* /*next*/) {
  const float scale = divisor > 0 ? static_cast<float>(1.0 / divisor) : 0.0F;
  std::vector<ps::RowTable::Gradients> gradients;
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    const ps::RowGradientBuffer& all = Gather(t);
    gradients.push_back({.ids = all.ids,
                         .values = all.values,
                         .counts = all.counts,
                         .scale = scale,
                         .step = step,
                         .bias_step = std::max<std::int64_t>(1, step - skipped())});
  }
  Status status;
  for (std::size_t t = 0; status.ok() && t < tables_.size(); ++t) {
    status = tables_[t]->Check(gradients[t]);
  }
  for (std::size_t t = 0; status.ok() && t < tables_.size(); ++t) {
    const std::lock_guard lock(last_[t].mutex);
    gradients[t].found = &last_[t].found;
    status = tables_[t]->Apply(gradients[t]);
    if (status.ok()) {
      status = tables_[t]->EvictWhenDue(step).status();
    }
  }
  Drop();
  return status;
}

Status LocalRows::Save(int table, FileSystem& files, const std::string& path) {
  return ps::SaveRows(TableAt(table), files, path);
}

Status LocalRows::Load(int table, FileSystem& files, const std::vector<std::string>& chain) {
  ps::RowTable& to = TableAt(table);
  to.Clear();
  return ps::LoadChain(to, files, chain);
}

}  // namespace cohort
