#include "parameter_server/row_lookahead.h"

#include <algorithm>

namespace cohort::ps {
namespace {

// The ids that a feature of a part of a batch holds; none where it cannot be ids.
std::span<const std::uint64_t> IdsOf(const data::Batch& part, const std::string& feature) {
  const auto found = part.features.find(feature);
  if (found == part.features.end() || found->second.dtype() != DType::kInt64) {
    return {};
  }
  const auto values = found->second.data<std::int64_t>();
  return {reinterpret_cast<const std::uint64_t*>(values.data()), values.size()};
}

}  // namespace

RowLookahead::RowLookahead(const std::vector<TableSpec>& tables) {
  for (const TableSpec& table : tables) {
    dims_.push_back(static_cast<std::size_t>(table.dim));
  }
}

void RowLookahead::Learn(int table, std::span<const std::uint64_t> ids) {
  for (const data::Batch& part : batch_) {
    for (const auto& [feature, values] : part.features) {
      if (!ids.empty() && std::ranges::equal(IdsOf(part, feature), ids)) {
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
  for (const auto& [table, ids] : lookups) {
    if (rows_.size() == size_) {
      rows_.emplace_back();
    }
    Rows& rows = rows_[size_];
    rows.table = table;
    rows.ids.assign(ids.begin(), ids.end());
    const std::span<float> values =
        rows.values.Resize(ids.size() * dims_[static_cast<std::size_t>(table)]);
    if (client.Pull(table, ids, step, /*training=*/false, values).ok()) {
      ++size_;
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
