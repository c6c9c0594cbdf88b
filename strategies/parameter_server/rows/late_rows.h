// What travels beside the rows of a table whose optimizer asks how old a gradient is
// (delay_compensation and staleness_scaling of server_side.h):
//   reply of a pull  behind the rows, of each the updates that it has had: 4 bytes; kNoRow where
//                    there is no row
//   push             behind the gradients, of each the updates that its row had had when it was
//                    pulled, and the sender's own since: 4 bytes, kNoRow where that is not known.
//                    With delay_compensation then the rows as they were pulled, in the table's
//                    format, up to a multiple of 4 bytes: they came in it, so nothing is lost
// Of other tables nothing.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <cohort/optim/row_optimizer.h>

#include "parameter_server/frames/frame_stream.h"
#include "parameter_server/model/table_spec.h"
#include "parameter_server/rows/row_table.h"

namespace cohort::ps {

// Which of these a table has.
struct LateParts {
  bool updates = false;
  bool pulled = false;  // and then `updates` too

  static LateParts Of(const RowOptimizer& rule);
  static LateParts Of(const TableSpec& spec);  // none, where its optimizer is none

  std::uint64_t PullBytes(std::uint64_t rows) const { return updates ? 4 * rows : 0; }
  std::uint64_t PushBytes(TableSpec::Wire wire, std::size_t dim, std::uint64_t rows) const;
  // Of a row's floats, the most of which a frame holds one, where it holds `most` without these.
  std::int64_t LongestRow(std::int64_t most) const {
    return pulled ? (most - 1) / 2 : updates ? most - 1 : most;
  }
};

// That of a push.
struct LateRows {
  LateParts parts;
  std::vector<std::uint32_t> updates;  // by id
  std::vector<float> pulled;           // [ids, dim]

  LateRows() = default;
  LateRows(LateParts of, std::size_t ids, std::size_t dim)
      : parts(of), updates(of.updates ? ids : 0, kNoRow), pulled(of.pulled ? ids * dim : 0) {}

  // The row at `to` is that of another at `from`.
  void Take(std::size_t to, const LateRows& other, std::size_t from, std::size_t dim);
  // Rows `begin` to `end` as they travel, behind what is in `payload`. Borrows `encoded` and this.
  void AddTo(std::size_t begin, std::size_t end, TableSpec::Wire wire, std::size_t dim,
             FloatBuffer& encoded, std::vector<std::span<const float>>* payload) const;
};

}  // namespace cohort::ps
