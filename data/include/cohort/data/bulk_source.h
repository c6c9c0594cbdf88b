// BulkSource: a Source that reads many examples at once for less than one by one, as behind a
// network. A batch of a Dataset is then one call.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <cohort/data/source.h>

namespace cohort::data {

class BulkSource : public Source {
 public:
  // As ReadRagged for each of `indexes` in turn: feature i of the k-th goes to rows[i] + k *
  // features()[i].bytes(); the values of ragged()[i] are appended to values[i], and ends[i] gets
  // the size of values[i] behind each. Cancelled soon after the thread's StopScope says so.
  virtual Status ReadMany(std::span<const std::int64_t> indexes, std::span<std::byte* const> rows,
                          std::span<std::vector<std::byte>> values,
                          std::span<std::vector<std::int64_t>> ends) const = 0;

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    std::vector<std::vector<std::byte>> values(ragged().size());
    return ReadRagged(index, rows, values);
  }
  Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                    std::span<std::vector<std::byte>> values) const override {
    std::vector<std::vector<std::int64_t>> ends(ragged().size());
    return ReadMany({&index, 1}, rows, values, ends);
  }
};

}  // namespace cohort::data
