// PulledRows: what rows were when this process pulled them, of tables whose optimizers ask for that
// (late_rows.h), from the pull to the push.
//
// Rows that are pulled ahead count as pulled when a step uses them (RowClient::Use), and are then
// what they were when they came. An id has what its last pull gave, until rows of its table are
// pulled for the first time after a push: then all that was known of the table is forgotten. So
// memory is for the ids that are pulled between two pushes: of each about 50 bytes, and with
// delay_compensation 4 dim; twice that of a push's ids where servers have copies. Of other tables
// nothing is kept or looked at.
//
// Thread rules: one thread at a time.

#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "parameter_server/model/layout.h"
#include "parameter_server/rows/late_rows.h"

namespace cohort::ps {

class PulledRows {
 public:
  // `comes_again`: pushes may, as where there are copies (ClientOptions).
  PulledRows(const ModelSpec& model, bool comes_again);

  LateParts PartsOf(int table) const { return tables_[static_cast<std::size_t>(table)].parts; }

  // Gradients will be computed from `rows`, [ids, dim], as they arrived. What comes again in one
  // call is the same.
  void Pulled(int table, std::span<const std::uint64_t> ids, std::span<const std::uint32_t> updates,
              std::span<const float> rows);

  // A push begins. `numbers`: of the pushes before it, by server; where there are copies, one after
  // the same numbers is that of before, sent again.
  void Begin(std::span<const std::uint64_t> numbers);
  // What it says of `ids`, each once, whose gradients are `sums`: [ids, dim]. Once for each table,
  // or more often: what comes later has what comes before as an update of this worker's.
  LateRows Fill(int table, std::span<const std::uint64_t> ids, std::span<const float> sums);
  // It has ended. Where it succeeded its rows have an update more, which is this worker's own; of a
  // gradient that is not finite they have none (TableSpec::NotFinite::kSkipRow).
  // `numbers`: of the pushes up to it; where none was added nothing of it was sent.
  void End(bool ok, std::span<const std::uint64_t> numbers);

 private:
  struct Row {
    std::uint32_t updates = kNoRow;
    std::uint32_t own = 0;  // by the push that is under way
    std::size_t place = 0;  // in `rows`
  };
  struct Table {
    LateParts parts;
    std::size_t dim = 0;
    bool pushed = false;  // since rows were pulled
    std::unordered_map<std::uint64_t, Row> by_id;
    std::vector<float> rows;  // [by_id, dim], with delay_compensation
  };
  struct Sent {
    int table = 0;
    std::vector<std::uint64_t> ids;
    LateRows late;
  };

  bool any_ = false;
  bool copies_;
  std::vector<Table> tables_;
  std::vector<std::uint64_t> numbers_;
  std::vector<Sent> sent_;  // of the last push, with copies
  bool again_ = false;
  bool counted_ = false;  // it has succeeded, as far as it was sent
  std::size_t next_ = 0;  // of `sent_`, that is to be sent again
};

}  // namespace cohort::ps
