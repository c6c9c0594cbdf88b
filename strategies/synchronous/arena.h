// Arena: the memory of one set of gradients.
//
// Where a parameter is exchanged as rows, only the rows that a pass touched are other than zero;
// the arena knows which, so that neither zeroing nor sending it costs the whole table.
//
// Thread rules: the thread of the replica that writes here, and work on its stream.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <cohort/comm/communicator.h>
#include <cohort/comm/memory.h>
#include <cohort/core/status.h>

namespace cohort {

// Rows of a table that were written to: each once and ascending, unless all are meant.
struct TouchedRows {
  bool all = false;
  std::vector<std::int64_t> indices;
};

class Arena {
 public:
  // Zeroed floats from `communicator`'s own kind of memory; nullptr: from this process's.
  static Result<Arena> Make(Communicator* communicator, std::int64_t elements);

  std::span<float> values() const { return values_; }
  std::span<float> values(std::int64_t begin, std::int64_t elements) const {
    return values_.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(elements));
  }
  // By parameter, for those exchanged as rows; the others' stay empty.
  std::vector<TouchedRows>& touched() { return touched_; }

 private:
  std::unique_ptr<Memory> memory_;
  std::span<float> values_;
  std::vector<TouchedRows> touched_;
};

// The union, ascending.
TouchedRows UnionOf(const TouchedRows& a, const TouchedRows& b);

}  // namespace cohort
