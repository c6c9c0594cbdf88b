// RowTable::Bucket: the rows under one lock, and what happened to them; RowTable::Kept: what a
// snapshot needs of a bucket that was written to since.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "parameter_server/rows/row_set.h"
#include "parameter_server/rows/row_table.h"

namespace cohort::ps {

// Rows are numbered without gaps, and no number changes until one is removed; so those of the
// snapshot are the first ones, as they are now but for the images.
struct RowTable::Kept {
  struct Part {
    std::uint32_t rows = 0;             // that the snapshot has
    std::uint32_t left = 0;             // of which there is no image
    std::vector<std::uint64_t> copied;  // by row: is there an image? Empty: of none
    std::vector<std::byte> images;      // records as they were, in the order of their first change
    bool has(std::uint32_t row) const {
      return !copied.empty() && (copied[row / 64] >> row % 64 & 1) != 0;
    }
  };
  Part rows;
  Part candidates;
};

struct alignas(64) RowTable::Bucket {
  mutable std::mutex mutex;
  // Below: under `mutex`.
  // What every call needs comes first: it is in two cache lines, with the mutex.
  RowSet rows;
  std::unique_ptr<Kept> kept;
  std::uint32_t snapshot = 0;    // the one that `kept` is of; null: it needs nothing more
  std::uint32_t generation = 0;  // how many snapshots there have been; the mark of what changes
  std::uint64_t updates = 0;
  std::uint64_t created = 0;
  RowSet candidates;
  // Of changes before this one not all is known: they are in no list of changes.
  std::uint32_t known_from = 0;
  struct Removed {
    std::uint64_t id;
    std::uint32_t generation;
  };
  std::vector<Removed> removed_rows;
  std::vector<Removed> removed_candidates;
};

}  // namespace cohort::ps
