// What a sparse table on parameter servers has lost, and why.

#pragma once

#include <cstdint>
#include <string>

namespace cohort {

// Over all servers as they are now: one that took another's place counts from 0. What was done
// since the save that a job went back to is counted, too.
struct TableCounts {
  std::string name;
  std::uint64_t evicted = 0;  // rows, by capacity and by time to live
  std::uint64_t dropped = 0;  // gradients of ids that were not admitted (yet)
  // Gradients that held NaN or infinity (TableSpec::NotFinite::kSkipRow), or came to it with those
  // of other workers: the rows are as before. The first of a table is in the server's log.
  std::uint64_t skipped = 0;
  std::uint64_t refused = 0;  // messages with gradients for it, of which none had an effect
};

}  // namespace cohort
