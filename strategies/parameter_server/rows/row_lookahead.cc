#include "parameter_server/rows/row_lookahead.h"

#include <algorithm>

namespace cohort::ps {
namespace {

// The ids that a tensor holds; none where it cannot be ids.
std::span<const std::uint64_t> IdsIn(const Tensor& tensor) {
  if (tensor.dtype() != DType::kInt64) {
    return {};
  }
  const auto values = tensor.data<std::int64_t>();
  return {reinterpret_cast<const std::uint64_t*>(values.data()), values.size()};
}

// Those of a feature, or of all lists of one, of a part of a batch.
std::span<const std::uint64_t> IdsOf(const data::Batch& part, const std::string& feature) {
  if (const auto found = part.features.find(feature); found != part.features.end()) {
    return IdsIn(found->second);
  }
  const auto lists = part.ragged.find(feature);
  return lists == part.ragged.end() ? std::span<const std::uint64_t>()
                                    : IdsIn(lists->second.values);
}

}  // namespace

RowLookahead::RowLookahead(const std::vector<TableSpec>& tables) {
  for (const TableSpec& table : tables) {
    dims_.push_back(static_cast<std::size_t>(table.dim));
    evicts_.push_back(table.capacity > 0 || table.time_to_live > 0);
  }
}

void RowLookahead::Learn(int table, std::span<const std::uint64_t> ids) {
  if (ids.empty()) {
    return;
  }
  for (const data::Batch& part : batch_) {
    for (const auto& [feature, values] : part.features) {
      if (std::ranges::equal(IdsIn(values), ids)) {
        sources_.emplace(table, feature);
        return;
      }
    }
    for (const auto& [feature, lists] : part.ragged) {
      if (std::ranges::equal(IdsIn(lists.values), ids)) {
        sources_.emplace(table, feature);
        return;
      }
    }
  }
}

RowLookahead::Lookups RowLookahead::Foresee(std::span<const data::Batch> parts) const {
  Lookups lookups;
  for (const auto& [table, feature] : sources_) {
    for (const data::Batch& part : parts) {
      if (const auto ids = IdsOf(part, feature); !ids.empty()) {
        lookups.emplace_back(table, ids);
      }
    }
  }
  return lookups;
}

void RowLookahead::Fetch(RowClient& client, const Lookups& lookups, std::int64_t step) {
  size_ = 0;
  if (rows_.size() < lookups.size()) {
    rows_.resize(lookups.size());
  }
  std::vector<RowClient::Lookup> pull;
  for (std::size_t i = 0; i < lookups.size(); ++i) {
    const auto& [table, ids] = lookups[i];
    Rows& rows = rows_[i];
    rows.table = table;
    rows.ids.assign(ids.begin(), ids.end());
    pull.push_back({.table = table,
                    .ids = rows.ids,
                    .training = evicts_[static_cast<std::size_t>(table)],
                    .rows = rows.values.Resize(ids.size() * dims_[static_cast<std::size_t>(table)]),
                    .ahead = true});
  }
  const Status status = client.Pull(pull, step);
  if (status.ok()) {
    size_ = pull.size();
    return;
  }
  // An id that a table refuses, where a feature was taken for its ids that is not: the others' are
  // wanted nevertheless.
  if (status.code() == StatusCode::kNotFound || status.code() == StatusCode::kInvalidArgument) {
    for (std::size_t i = 0; i < pull.size(); ++i) {
      if (client.Pull(std::span(&pull[i], 1), step).ok()) {
        if (size_ != i) {
          std::swap(rows_[size_], rows_[i]);
        }
        ++size_;
      }
    }
  }
}

bool RowLookahead::Take(int table, std::span<const std::uint64_t> ids, std::span<float> rows) {
  for (Rows& known : std::span(rows_).first(size_)) {
    if (known.table == table && std::ranges::equal(known.ids, ids)) {
      std::ranges::copy(known.values.values(), rows.begin());
      ++foreseen_;
      return true;
    }
  }
  return false;
}

}  // namespace cohort::ps
