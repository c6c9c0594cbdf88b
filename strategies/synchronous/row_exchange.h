// Row exchange: how gradients that are rows of a large table become one among the processes.
//
// A process's gradient is a table that is zero but for the rows it TOUCHED: repeated rows are added
// where they lie, so the touched rows are already without duplicates, and sorted. Processes first
// tell how many rows each has touched. Then they send either the rows (all-gather of index and
// values) or the table (all-reduce), whichever is fewer bytes:
//
//   rows:  (n-1)/n * sum of touched * (8 + 4 * row)      table: 2 (n-1)/n * rows * row * 4
//
// So what is gathered is never more than two tables. The rows of several processes are added in the
// canonical order of ranks (pairs, then pairs of pairs), the same bits as the all-reduce's.
//
// Thread rules: the table is the exchange's until its Work's Wait() has returned, which sends the
// second part, so all ranks must call it in the same order.

#pragma once

#include <cstdint>
#include <span>

#include <cohort/comm/communicator.h>
#include <cohort/optim/parameter_set.h>

#include "synchronous/arena.h"
#include "synchronous/bucket_plan.h"

namespace cohort {

struct RowTable {
  std::span<float> values;  // rows * row
  std::int64_t rows = 0;
  std::int64_t row = 0;  // elements of each
  TouchedRows* touched = nullptr;
};

// The place of a parameter's gradient in an arena, which has its touched rows.
RowTable TableOf(const ParameterSet& parameters, const BucketPlan& plan, int parameter,
                 Arena& arena);

// Makes it zero again, with no row touched.
void ZeroTouched(const RowTable& table);
// Adds what `from` touched.
void AddTouched(const RowTable& to, const RowTable& from);

// Makes `table` the sum over all ranks, behind options.stream; touched is then the union.
Communicator::Pending ExchangeRows(Communicator& communicator, RowTable table,
                                   const CollectiveOptions& options);

}  // namespace cohort
