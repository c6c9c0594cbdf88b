#include "synchronous/step_rows.h"

#include <cmath>
#include <limits>
#include <utility>

namespace cohort {

StepRows::StepRows(std::vector<TableSpec> tables, int threads)
    : tables_(std::move(tables)),
      threads_(threads),
      pending_(static_cast<std::size_t>(threads) * tables_.size()) {}

const TableSpec& StepRows::SpecOf(int table) const {
  Require(table >= 0 && static_cast<std::size_t>(table) < tables_.size(), "a table of the model");
  return tables_[static_cast<std::size_t>(table)];
}

Status StepRows::SaveChanges(int table, FileSystem& /*files*/, const std::string& /*path*/) {
  return Unimplemented("table \"" + SpecOf(table).name + "\": changes since a save");
}

void StepRows::Add(int thread, int table, std::span<const std::uint64_t> ids,
                   std::span<const float> values) {
  const TableSpec& to = SpecOf(table);
  Require(values.size() == ids.size() * static_cast<std::size_t>(to.dim),
          "as many rows as ids: " + to.name);
  Pending& pending = PendingOf(thread, static_cast<std::size_t>(table));
  pending.ids.insert(pending.ids.end(), ids.begin(), ids.end());
  pending.values.insert(pending.values.end(), values.begin(), values.end());
}

void StepRows::Mark(int thread) {
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    Pending& pending = PendingOf(thread, t);
    pending.marked_ids = pending.ids.size();
  }
}

void StepRows::DropSinceMark(int thread) {
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    Pending& pending = PendingOf(thread, t);
    pending.ids.resize(pending.marked_ids);
    pending.values.resize(pending.marked_ids * static_cast<std::size_t>(tables_[t].dim));
  }
}

void StepRows::Drop() {
  for (Pending& pending : pending_) {
    pending.ids.clear();
    pending.values.clear();
  }
}

// No sum of some of them is greater than that of all magnitudes. Where this one is near the end of
// float32, so is the scale.
bool StepRows::Finite() const {
  constexpr double kMost = std::numeric_limits<float>::max() / 2;  // room for the sums' rounding
  double sum = 0;
  for (const Pending& pending : pending_) {
    for (const float value : pending.values) {
      sum += std::abs(static_cast<double>(value));
    }
  }
  return sum <= kMost;  // NaN is not
}

StepRows::Pending& StepRows::Gather(std::size_t table) {
  Pending& all = PendingOf(0, table);
  for (int thread = 1; thread < threads_; ++thread) {
    Pending& more = PendingOf(thread, table);
    all.ids.insert(all.ids.end(), more.ids.begin(), more.ids.end());
    all.values.insert(all.values.end(), more.values.begin(), more.values.end());
    more.ids.clear();
    more.values.clear();
  }
  return all;
}

}  // namespace cohort
