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

void StepRows::Add(int thread, const RowGradients& gradients) {
  const TableSpec& to = SpecOf(gradients.table);
  Require(gradients.values.size() == gradients.ids.size() * static_cast<std::size_t>(to.dim),
          "as many rows as ids: " + to.name);
  Require(gradients.counts.empty() || gradients.counts.size() == gradients.ids.size(),
          "as many counts as ids, or none: " + to.name);
  PendingOf(thread, static_cast<std::size_t>(gradients.table))
      .gradients.Add(gradients.ids, gradients.values, gradients.counts);
}

void StepRows::Mark(int thread) {
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    Pending& pending = PendingOf(thread, t);
    pending.marked_ids = pending.gradients.ids.size();
  }
}

void StepRows::DropSinceMark(int thread) {
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    Pending& pending = PendingOf(thread, t);
    pending.gradients.Cut(pending.marked_ids, static_cast<std::size_t>(tables_[t].dim));
  }
}

void StepRows::Drop() {
  for (Pending& pending : pending_) {
    pending.gradients.Clear();
  }
}

// No sum of some of them is greater than that of all magnitudes. Where this one is near the end of
// float32, so is the scale.
bool StepRows::Finite() const {
  constexpr double kMost = std::numeric_limits<float>::max() / 2;  // room for the sums' rounding
  double sum = 0;
  for (const Pending& pending : pending_) {
    for (const float value : pending.gradients.values) {
      sum += std::abs(static_cast<double>(value));
    }
  }
  return sum <= kMost;  // NaN is not
}

ps::RowGradientBuffer& StepRows::Gather(std::size_t table) {
  ps::RowGradientBuffer& all = PendingOf(0, table).gradients;
  for (int thread = 1; thread < threads_; ++thread) {
    ps::RowGradientBuffer& more = PendingOf(thread, table).gradients;
    all.Add(more.ids, more.values, more.counts);
    more.Clear();
  }
  return all;
}

}  // namespace cohort
