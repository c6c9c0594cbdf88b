#include "parameter_server/rows/row_lookahead.h"

#include <algorithm>
#include <string>

#include <cohort/strategies/strategy_options.h>

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

Status CheckLookahead(int batches) {
  if (batches < 0 || batches > StrategyOptions::kMaxLookahead) {
    return InvalidArgument("lookahead of " + std::to_string(batches) + " batches [0 to " +
                           std::to_string(StrategyOptions::kMaxLookahead) + "]");
  }
  return {};
}

RowLookahead::RowLookahead(const std::vector<TableSpec>& tables) {
  for (const TableSpec& table : tables) {
    evicts_.push_back(Evicts(table));
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

RowLookahead::Lookups RowLookahead::Foresee(std::span<const data::Batch> parts, bool next) const {
  Lookups lookups;
  for (const auto& [table, feature] : sources_) {
    if (!next && evicts_[static_cast<std::size_t>(table)]) {
      continue;
    }
    for (const data::Batch& part : parts) {
      if (const auto ids = IdsOf(part, feature); !ids.empty()) {
        lookups.emplace_back(table, ids);
      }
    }
  }
  return lookups;
}

}  // namespace cohort::ps
