#include "parameter_server/rows/pulled_rows.h"

#include <algorithm>
#include <cmath>

namespace cohort::ps {

PulledRows::PulledRows(const ModelSpec& model, bool comes_again)
    : copies_(model.copies || comes_again) {
  for (const TableSpec& table : model.tables) {
    tables_.emplace_back();
    tables_.back().parts = LateParts::Of(table);
    tables_.back().dim = static_cast<std::size_t>(table.dim);
    any_ = any_ || tables_.back().parts.updates;
  }
}

void PulledRows::Pulled(int table, std::span<const std::uint64_t> ids,
                        std::span<const std::uint32_t> updates, std::span<const float> rows) {
  Table& of_table = tables_[static_cast<std::size_t>(table)];
  if (!of_table.parts.updates) {
    return;
  }
  if (of_table.pushed) {
    of_table.by_id.clear();
    of_table.rows.clear();
    of_table.pushed = false;
  }
  const std::size_t dim = of_table.dim;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto [found, fresh] = of_table.by_id.try_emplace(ids[i]);
    Row& row = found->second;
    row.updates = updates[i];
    if (!of_table.parts.pulled) {
      continue;
    }
    if (fresh) {
      row.place = of_table.rows.size();
      of_table.rows.resize(of_table.rows.size() + dim);
    }
    std::ranges::copy(rows.subspan(i * dim, dim),
                      std::span(of_table.rows).subspan(row.place, dim).begin());
  }
}

void PulledRows::Begin(std::span<const std::uint64_t> numbers) {
  if (!any_) {
    return;
  }
  again_ = copies_ && !numbers_.empty() && std::ranges::equal(numbers, numbers_);
  next_ = 0;
  if (again_) {
    return;
  }
  counted_ = false;
  numbers_.assign(numbers.begin(), numbers.end());
  sent_.clear();
  for (Table& table : tables_) {
    table.pushed = true;
    for (auto& [id, row] : table.by_id) {
      row.own = 0;  // of one that an exception broke off
    }
  }
}

LateRows PulledRows::Fill(int table, std::span<const std::uint64_t> ids,
                          std::span<const float> sums) {
  Table& of_table = tables_[static_cast<std::size_t>(table)];
  if (!of_table.parts.updates) {
    return {};
  }
  const std::size_t dim = of_table.dim;
  const Sent* sent = nullptr;
  if (again_ && next_ < sent_.size() && sent_[next_].table == table &&
      std::ranges::equal(sent_[next_].ids, ids)) {
    sent = &sent_[next_++];
  }
  LateRows late(of_table.parts, ids.size(), dim);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto found = of_table.by_id.find(ids[i]);
    if (found == of_table.by_id.end() || found->second.updates == kNoRow) {
      continue;
    }
    Row& row = found->second;
    late.updates[i] = row.updates < kNoRow - row.own ? row.updates + row.own : kNoRow;
    if (late.parts.pulled) {
      std::ranges::copy(std::span(of_table.rows).subspan(row.place, dim),
                        std::span(late.pulled).subspan(i * dim, dim).begin());
    }
    const auto gradient = sums.subspan(i * dim, dim);
    if (!counted_ && std::ranges::all_of(gradient, [](float g) { return std::isfinite(g); })) {
      ++row.own;
    }
  }
  if (copies_ && !again_) {
    sent_.push_back({.table = table, .ids = {ids.begin(), ids.end()}, .late = late});
  }
  return sent == nullptr ? late : sent->late;
}

void PulledRows::End(bool ok, std::span<const std::uint64_t> numbers) {
  if (!any_) {
    return;
  }
  for (Table& table : tables_) {
    for (auto& [id, row] : table.by_id) {
      // `pushed`: not pulled anew since the push that is sent again.
      if (ok && table.pushed && row.updates != kNoRow) {
        row.updates = row.updates < kNoRow - row.own ? row.updates + row.own : kNoRow;
      }
      row.own = 0;
    }
  }
  counted_ = counted_ || ok;
  if (std::ranges::equal(numbers, numbers_)) {
    numbers_.clear();
  }
}

}  // namespace cohort::ps
