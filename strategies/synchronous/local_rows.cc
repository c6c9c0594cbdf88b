#include "synchronous/local_rows.h"

#include <utility>

#include "parameter_server/row_file.h"

namespace cohort {

Result<std::unique_ptr<LocalRows>> LocalRows::Make(std::vector<TableSpec> specs,
                                                   const std::string& optimizer, int threads) {
  std::vector<std::unique_ptr<ps::RowTable>> tables;
  for (TableSpec& spec : specs) {
    if (spec.optimizer.empty()) {
      spec.optimizer = optimizer;
    }
    const std::uint32_t buckets = spec.buckets;
    COHORT_ASSIGN_OR_RETURN(auto table, ps::RowTable::Create(std::move(spec), {0, buckets}));
    tables.push_back(std::move(table));
  }
  return std::unique_ptr<LocalRows>(new LocalRows(std::move(tables), threads));
}

LocalRows::LocalRows(std::vector<std::unique_ptr<ps::RowTable>> tables, int threads)
    : tables_(std::move(tables)),
      threads_(threads),
      pending_(static_cast<std::size_t>(threads) * tables_.size()) {}

ps::RowTable& LocalRows::TableAt(int table) const {
  Require(table >= 0 && static_cast<std::size_t>(table) < tables_.size(), "a table of the model");
  return *tables_[static_cast<std::size_t>(table)];
}

Status LocalRows::Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                         std::span<float> rows) {
  return TableAt(table).Pull(
      ids, step_, training ? ps::RowTable::Purpose::kTraining : ps::RowTable::Purpose::kReading,
      rows);
}

void LocalRows::Add(int thread, int table, std::span<const std::uint64_t> ids,
                    std::span<const float> values) {
  const ps::RowTable& to = TableAt(table);
  Require(values.size() == ids.size() * static_cast<std::size_t>(to.spec().dim),
          "as many rows as ids: " + to.spec().name);
  Pending& pending = PendingOf(thread, static_cast<std::size_t>(table));
  pending.ids.insert(pending.ids.end(), ids.begin(), ids.end());
  pending.values.insert(pending.values.end(), values.begin(), values.end());
}

void LocalRows::Mark(int thread) {
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    Pending& pending = PendingOf(thread, t);
    pending.marked_ids = pending.ids.size();
  }
}

void LocalRows::DropSinceMark(int thread) {
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    Pending& pending = PendingOf(thread, t);
    pending.ids.resize(pending.marked_ids);
    pending.values.resize(pending.marked_ids * static_cast<std::size_t>(tables_[t]->spec().dim));
  }
}

void LocalRows::Drop() {
  for (Pending& pending : pending_) {
    pending.ids.clear();
    pending.values.clear();
  }
}

Status LocalRows::Apply(std::int64_t step, float scale) {
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    Pending& all = PendingOf(0, t);
    for (int thread = 1; thread < threads_; ++thread) {
      const Pending& more = PendingOf(thread, t);
      all.ids.insert(all.ids.end(), more.ids.begin(), more.ids.end());
      all.values.insert(all.values.end(), more.values.begin(), more.values.end());
    }
  }
  const auto gradients = [&](std::size_t t) {
    const Pending& all = PendingOf(0, t);
    return ps::RowTable::Gradients{
        .ids = all.ids, .values = all.values, .scale = scale, .step = step};
  };
  Status status;
  for (std::size_t t = 0; status.ok() && t < tables_.size(); ++t) {
    status = tables_[t]->Check(gradients(t));
  }
  for (std::size_t t = 0; status.ok() && t < tables_.size(); ++t) {
    status = tables_[t]->Apply(gradients(t));
    if (status.ok()) {
      status = tables_[t]->EvictWhenDue(step).status();
    }
  }
  Drop();
  return status;
}

Status LocalRows::Save(int table, FileSystem& files, const std::string& path) const {
  return ps::SaveRows(TableAt(table), files, path);
}

Status LocalRows::Load(int table, FileSystem& files, const std::string& path) {
  ps::RowTable& to = TableAt(table);
  to.Clear();
  return ps::LoadRows(to, files, std::span(&path, 1));
}

}  // namespace cohort
