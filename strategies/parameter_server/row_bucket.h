// RowTable::Bucket: the rows under one lock, and what happened to them.

#pragma once

#include <cstdint>
#include <mutex>

#include "parameter_server/row_set.h"
#include "parameter_server/row_table.h"

namespace cohort::ps {

struct alignas(64) RowTable::Bucket {
  mutable std::mutex mutex;
  // Below: under `mutex`.
  RowSet rows;
  RowSet candidates;
  std::uint64_t created = 0;
  std::uint64_t evicted = 0;
  std::uint64_t updates = 0;
  std::uint64_t dropped = 0;
  std::uint64_t skipped = 0;
};

}  // namespace cohort::ps
