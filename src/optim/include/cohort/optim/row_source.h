// RowSource: where the rows of a ParameterSet's tables are. A strategy gives the set one in Bind:
// the process's own tables, or those of parameter servers. Gradients go to GradientSink::AddRows.
//
// Thread rules: from the streams of all replicas at the same time. May block for the network, with
// the strategy's deadlines.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <cohort/core/status.h>

namespace cohort {

// The rows of a lookup, each once, for who repeats them elsewhere: on a device.
struct RowsOnce {
  // Given: memory for a row of each id that is asked for, and for its place.
  std::span<float> rows;           // [.., dim], of which those of `ids` are written
  std::span<std::int32_t> places;  // in `ids`, of each that is asked for
  // Found: the different ids, in the order in which they are asked for first.
  std::vector<std::uint64_t> ids;

  // Fills in ids and places; where the rows belong. ContractError: no such memory, or 2^31 ids.
  std::span<float> Find(std::span<const std::uint64_t> asked);
};

class RowSource {
 public:
  virtual ~RowSource() = default;

  // The weights of `ids`, repeated ones as well, into `rows`: [ids, dim]. `training`: missing rows
  // are made where the table says so; else nothing changes. Errors name the table.
  virtual Status Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                        std::span<float> rows) = 0;
  // The same without the repetitions. On an error nothing is said about `once`.
  virtual Status LookupOnce(int table, std::span<const std::uint64_t> ids, bool training,
                            RowsOnce& once);
};

}  // namespace cohort
