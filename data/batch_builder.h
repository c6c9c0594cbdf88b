// BatchBuilder: reads a run of an epoch's order, maps it and lays it out as a Batch.

#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include <cohort/data/batch.h>

#include "shard.h"

namespace cohort::data {

using MapFn = std::function<Status(Example&)>;

// Thread rules: Build from many threads at once.
class BatchBuilder {
 public:
  BatchBuilder(std::shared_ptr<const Source> source, std::vector<MapFn> maps)
      : source_(std::move(source)), maps_(std::move(maps)) {}

  // The examples at `positions` of `order`; Cancelled soon after `stop` is set.
  Result<Batch> Build(const EpochOrder& order, Range positions,
                      const std::atomic<bool>& stop) const;

 private:
  // As the source stores them: every record decoded straight into its row.
  Result<Batch> ReadRows(const EpochOrder& order, Range positions,
                         const std::atomic<bool>& stop) const;
  Status ApplyMaps(std::int64_t index, Example& example) const;
  Result<Batch> BuildMapped(const EpochOrder& order, Range positions,
                            const std::atomic<bool>& stop) const;
  // A batch without rows that has the features a mapped one would have.
  Result<Batch> BuildEmptyMapped(const EpochOrder& order) const;

  std::shared_ptr<const Source> source_;  // owners: the datasets made from it, and this
  std::vector<MapFn> maps_;
};

}  // namespace cohort::data
