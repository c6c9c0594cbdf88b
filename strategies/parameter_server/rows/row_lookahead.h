// RowLookahead: rows of the next batch, pulled before they are asked for.
//
// Which these are is learnt: where the ids of a lookup are those of a feature (int64, lists too) of
// the batch, the same feature of the next batch has the next ids. A lookup that was not foreseen is
// the caller's to ask for.
//
// Not synchronised.

#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cohort/data/dataset.h>
#include <cohort/optim/table_spec.h>

#include "parameter_server/frames/frame_stream.h"
#include "parameter_server/rows/row_client.h"

namespace cohort::ps {

class RowLookahead {
 public:
  explicit RowLookahead(const std::vector<TableSpec>& tables);

  // The parts that are being trained on, for Learn; none between two batches.
  void SetBatch(std::vector<data::Batch> parts) { batch_ = std::move(parts); }
  // A lookup that was not foreseen.
  void Learn(int table, std::span<const std::uint64_t> ids);

  // Lookups of a batch: table, and ids that lie in it.
  using Lookups = std::vector<std::pair<int, std::span<const std::uint64_t>>>;
  Lookups Foresee(std::span<const data::Batch> parts) const;
  // Pulls their rows, all in one call, in place of those that were there. Of a table that evicts,
  // it marks them as used at `step`, and makes missing ones, as the lookup would: until their
  // gradient comes they are the last to go. Of others a batch that is never trained on leaves no
  // trace. An error is that of the lookup, if it comes to that.
  void Fetch(RowClient& client, const Lookups& lookups, std::int64_t step);
  // The rows of a lookup that was foreseen.
  bool Take(int table, std::span<const std::uint64_t> ids, std::span<float> rows);
  void Forget() { size_ = 0; }

  std::int64_t foreseen() const { return foreseen_; }  // lookups

 private:
  struct Rows {
    int table = 0;
    std::vector<std::uint64_t> ids;
    FloatBuffer values;
  };

  std::vector<std::size_t> dims_;                  // of the tables
  std::vector<bool> evicts_;                       // likewise
  std::vector<data::Batch> batch_;                 // that is being trained on
  std::set<std::pair<int, std::string>> sources_;  // table, feature
  std::vector<Rows> rows_;                         // memory that is kept; `size_` are there
  std::size_t size_ = 0;
  std::int64_t foreseen_ = 0;
};

}  // namespace cohort::ps
