// What tests of sparse tables begin with. A namespace of its own: the wire has Servers, too.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>

#include "parameter_server/rows/row_file.h"
#include "parameter_server/rows/row_table.h"

namespace cohort::ps::row_tables {

using Ids = std::vector<std::uint64_t>;
using Floats = std::vector<float>;
inline constexpr auto kTraining = RowTable::Purpose::kTraining;
inline constexpr auto kReading = RowTable::Purpose::kReading;

inline TableSpec SmallSpec(const std::string& optimizer = Sgd({.learning_rate = 1})->config()) {
  TableSpec spec;
  spec.name = "users";
  spec.dim = 3;
  spec.seed = 7;
  spec.optimizer = optimizer;
  spec.initializer = {RowInitializer::Kind::kUniform, 0.5};
  spec.buckets = 16;
  return spec;
}

inline std::unique_ptr<RowTable> Make(const TableSpec& spec) {
  return OrThrow(RowTable::Create(spec, {0, spec.buckets}));
}

inline Floats Pull(RowTable& table, const Ids& ids, std::int64_t step = 1,
                   RowTable::Purpose purpose = kTraining) {
  Floats rows(ids.size() * static_cast<std::size_t>(table.spec().dim));
  OrThrow(table.Pull(ids, step, purpose, rows));
  return rows;
}

inline std::vector<std::string> Dump(const RowTable& table) {
  std::vector<std::string> buckets;
  for (std::uint32_t b = table.range().begin; b < table.range().end; ++b) {
    buckets.push_back(table.DumpBucket(b));
  }
  return buckets;
}

// Of the rows in a bucket, ascending.
inline Ids IdsIn(const RowTable& table, std::uint32_t bucket) {
  const std::string bytes = table.DumpBucket(bucket);
  std::uint32_t rows = 0;
  std::memcpy(&rows, bytes.data() + 4, sizeof(rows));
  const std::size_t record = (bytes.size() - 12) / std::max(1U, rows);
  Ids ids(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    std::memcpy(&ids[i], bytes.data() + 12 + i * record, sizeof(ids[i]));
  }
  return ids;
}

inline Ids ManyIds(std::size_t count, std::uint64_t seed = 1) {
  Ids ids(count);
  for (std::size_t i = 0; i < count; ++i) {
    const Philox::Block block = Philox(seed).At(i);
    ids[i] = (std::uint64_t{block[0]} << 32) | block[1];
  }
  return ids;
}

inline Ids Shuffled(Ids ids, std::uint64_t seed) {
  const Permutation order(ids.size(), seed);
  Ids out(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    out[i] = ids[order(i)];
  }
  return out;
}

// A deterministic gradient of small multiples of 1/8.
inline Floats GradientOf(const Ids& ids, std::size_t dim, std::int64_t step) {
  Floats values;
  for (const std::uint64_t id : ids) {
    for (std::size_t k = 0; k < dim; ++k) {
      values.push_back(
          static_cast<float>((HashId(id) + 5 * k + static_cast<std::uint64_t>(step)) % 11) *
              0.125F -
          0.5F);
    }
  }
  return values;
}

// A table in several servers' parts; calls go to where each id is.
class Servers {
 public:
  Servers(const TableSpec& spec, int count) : spec_(spec) {
    for (int s = 0; s < count; ++s) {
      tables_.push_back(OrThrow(RowTable::Create(spec, BucketsOf(s, count, spec.buckets))));
    }
  }
  RowTable& operator[](int server) { return *tables_[static_cast<std::size_t>(server)]; }
  int size() const { return static_cast<int>(tables_.size()); }

  void Pull(const Ids& ids, std::int64_t step) {
    for (int s = 0; s < size(); ++s) {
      const Ids mine = Of(s, ids);
      Floats rows(mine.size() * dim());
      OrThrow((*this)[s].Pull(mine, step, kTraining, rows));
    }
  }
  void Train(const Ids& ids, std::int64_t step) {
    Pull(ids, step);
    for (int s = 0; s < size(); ++s) {
      const Ids mine = Of(s, ids);
      OrThrow((*this)[s].Apply(
          {.ids = mine, .values = GradientOf(mine, dim(), step), .scale = 0.5F, .step = step}));
    }
  }
  std::vector<std::string> Dump() {
    std::vector<std::string> all;
    for (int s = 0; s < size(); ++s) {
      const auto part = row_tables::Dump((*this)[s]);
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
  std::uint64_t Evicted() {
    std::uint64_t evicted = 0;
    for (int s = 0; s < size(); ++s) {
      evicted += (*this)[s].stats().evicted;
    }
    return evicted;
  }
  std::vector<std::string> Save(const std::string& folder) {
    std::vector<std::string> paths;
    for (int s = 0; s < size(); ++s) {
      paths.push_back(folder + "/rows-" + std::to_string(s) + "-of-" + std::to_string(size()));
      OrThrow(SaveRows((*this)[s], FileSystem::Local(), paths.back()));
    }
    return paths;
  }
  void Load(const std::vector<std::string>& paths) {
    for (int s = 0; s < size(); ++s) {
      OrThrow(LoadRows((*this)[s], FileSystem::Local(), paths));
    }
  }

 private:
  std::size_t dim() const { return static_cast<std::size_t>(spec_.dim); }
  Ids Of(int server, const Ids& ids) const {
    Ids mine;
    std::ranges::copy_if(ids, std::back_inserter(mine), [&](std::uint64_t id) {
      return ServerOf(BucketOf(id, spec_.buckets), size(), spec_.buckets) == server;
    });
    return mine;
  }
  TableSpec spec_;
  std::vector<std::unique_ptr<RowTable>> tables_;
};

}  // namespace cohort::ps::row_tables
