// BatchBuilder: reads examples, maps them and lays them out as a Batch.

#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <cohort/data/batch.h>
#include <cohort/data/bulk_source.h>

#include "shard.h"

namespace cohort::data {

using MapFn = std::function<Status(Example&)>;

// What is done to an example on the way from the source to the batch.
struct Recipe {
  std::vector<MapFn> maps;
  std::set<std::string> ragged;            // besides those of the source
  std::map<std::string, PadOptions> pads;  // by feature
  std::string weights = {};  // a feature that says what stands behind the order's end; empty: none
};

// Runs the maps; errors name them and the example.
Status ApplyMaps(const std::vector<MapFn>& maps, const Source& source, std::int64_t index,
                 Example& example);

// Thread rules: Build from many threads at once.
class BatchBuilder {
 public:
  // Batches lie in memory of `allocate`; empty: in the host's.
  BatchBuilder(std::shared_ptr<const Source> source, Recipe recipe, AllocateBytes allocate = {});

  // Cancelled soon after `stop` is set.
  Result<Batch> Build(const BatchExamples& examples, const std::atomic<bool>& stop) const;
  // How large a batch of so many examples is; nullopt: only building it tells.
  std::optional<std::int64_t> BytesOf(std::int64_t examples) const;

 private:
  // As the source stores them: every record decoded straight into its row, in memory of `allocate`.
  Result<Batch> ReadRows(std::span<const std::int64_t> indexes, const std::atomic<bool>& stop,
                         const AllocateBytes& allocate) const;
  Result<Batch> BuildMapped(std::span<const std::int64_t> indexes,
                            const std::atomic<bool>& stop) const;
  // A batch without rows that has the features a mapped one would have.
  Result<Batch> BuildEmptyMapped(std::int64_t sample) const;

  std::shared_ptr<const Source> source_;  // owners: the datasets made from it, and this
  const BulkSource* bulk_;                // source_, if it is one
  Recipe recipe_;
  AllocateBytes allocate_;  // never empty
};

}  // namespace cohort::data
