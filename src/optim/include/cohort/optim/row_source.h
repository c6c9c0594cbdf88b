// RowSource: where the rows of a ParameterSet's tables are. A strategy gives the set one in Bind:
// the process's own tables, or those of parameter servers. Gradients go to GradientSink::AddRows.
//
// Thread rules: from the streams of all replicas at the same time. May block for the network, with
// the strategy's deadlines.

#pragma once

#include <cstdint>
#include <span>

#include <cohort/core/status.h>

namespace cohort {

class RowSource {
 public:
  virtual ~RowSource() = default;

  // The weights of `ids`, repeated ones as well, into `rows`: [ids, dim]. `training`: missing rows
  // are made where the table says so; else nothing changes. Errors name the table.
  virtual Status Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                        std::span<float> rows) = 0;
};

}  // namespace cohort
