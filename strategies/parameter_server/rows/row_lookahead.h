// RowLookahead: which rows batches to come will ask for.
//
// That is learnt: where the ids of a lookup are those of a feature (int64, lists too) of the batch,
// the same feature of the next ones has their ids. A lookup that was not foreseen is the caller's
// to ask for. What is pulled then is held by RowsAhead.
//
// Not synchronised.

#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/data/dataset.h>
#include <cohort/optim/table_spec.h>

namespace cohort::ps {

// Do lookups say which rows are in use?
inline bool Evicts(const TableSpec& table) { return table.capacity > 0 || table.time_to_live > 0; }

// StrategyOptions::lookahead; InvalidArgument where it is out of range.
Status CheckLookahead(int batches);

class RowLookahead {
 public:
  explicit RowLookahead(const std::vector<TableSpec>& tables);

  // The parts that are being trained on, for Learn; none between two batches.
  void SetBatch(std::vector<data::Batch> parts) { batch_ = std::move(parts); }
  // A lookup that was not foreseen.
  void Learn(int table, std::span<const std::uint64_t> ids);

  // Lookups of a batch: table, and ids that lie in it.
  using Lookups = std::vector<std::pair<int, std::span<const std::uint64_t>>>;
  // `next`: nothing is trained on before that batch. Of others there are no lookups of tables that
  // evict: rows that were made, or marked as used, a step early would have others go.
  Lookups Foresee(std::span<const data::Batch> parts, bool next = true) const;

 private:
  std::vector<bool> evicts_;                       // by table
  std::vector<data::Batch> batch_;                 // that is being trained on
  std::set<std::pair<int, std::string>> sources_;  // table, feature
};

}  // namespace cohort::ps
