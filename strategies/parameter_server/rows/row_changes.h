// What has changed in a bucket of rows between two snapshots, as bytes, and the bucket made of an
// earlier dump and its changes.
//
//   a dump       number, rows, candidates          3 x uint32, then records ascending by id
//   changes      number | kChangesBit, rows, candidates, then the records that are new or other
//   than
//                they were; removed rows, removed candidates: 2 x uint32, then their ids ascending
//
// A row that went and came back is among the records alone.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <cohort/core/status.h>

#include "parameter_server/rows/row_set.h"

namespace cohort::ps {

// In the first number of changes; a table has at most 2^20 buckets.
inline constexpr std::uint32_t kChangesBit = std::uint32_t{1} << 31;

bool IsChanges(std::string_view dump);

// The end of changes.
void AppendRemoved(std::span<const std::uint64_t> rows, std::span<const std::uint64_t> candidates,
                   std::string& changes);

// The dump at the second snapshot, bit for bit, of the one at the first. `shape`: of rows.
// DataLoss: they are no dump and changes of one bucket of such rows.
Result<std::string> ApplyChanges(std::string_view dump, std::string_view changes,
                                 const RowShape& shape);

}  // namespace cohort::ps
