#include "parameter_server/rows/rows_ahead.h"

#include <algorithm>
#include <utility>

#include <cohort/optim/id_index.h>

#include "parameter_server/rows/late_rows.h"

namespace cohort::ps {

RowsAhead::RowsAhead(const std::vector<TableSpec>& tables) {
  for (const TableSpec& spec : tables) {
    Table& table = tables_.emplace_back();
    table.dim = static_cast<std::size_t>(spec.dim);
    table.evicts = Evicts(spec);
    table.late = LateParts::Of(spec).updates;
  }
}

std::vector<RowsAhead::Exchange> RowsAhead::Plan(std::span<const Batch> batches,
                                                 const Pushed& pushed) {
  const auto over = std::partition(held_.begin(), held_.end(), [&](const Held& held) {
    return std::ranges::any_of(batches, [&](const Batch& b) { return b.number == held.number; });
  });
  for (auto held = over; held != held_.end(); ++held) {
    std::ranges::for_each(held->rows, [this](Rows& rows) { Spare(std::move(rows)); });
  }
  held_.erase(over, held_.end());
  std::vector<Exchange> exchanges;
  for (const Batch& batch : batches) {
    const bool first = exchanges.empty();
    Exchange exchange;
    exchange.batch_ = batch.number;
    for (std::size_t t = 0; first && t < pushed.size(); ++t) {
      AddRefresh(static_cast<int>(t), pushed[t], &exchange);
    }
    for (const auto& [table, ids] : batch.lookups) {
      if (Find(batch.number, table, ids) == nullptr) {
        exchange.rows_.push_back(NewLookup(table, ids));
      }
    }
    if (first || !exchange.rows_.empty()) {
      exchanges.push_back(std::move(exchange));
    }
  }
  return exchanges;
}

// Of the rows of a table that were pushed those that are held.
void RowsAhead::AddRefresh(int table, std::span<const std::uint64_t> pushed, Exchange* exchange) {
  std::vector<Rows*> held;
  for (Held& batch : held_) {
    for (Rows& rows : batch.rows) {
      if (rows.table == table) {
        held.push_back(&rows);
      }
    }
  }
  if (held.empty() || pushed.empty()) {
    return;
  }
  IdIndex updated(pushed.size());
  std::ranges::for_each(pushed, [&](std::uint64_t id) { updated.Add(id); });
  std::vector<std::uint32_t> from(updated.ids().size(), IdIndex::kNone);  // in `again`
  std::vector<std::uint64_t> again;
  Refresh refresh;
  for (Rows* const rows : held) {
    for (std::size_t place = 0; place < rows->ids.size(); ++place) {
      const std::uint32_t found = updated.Find(rows->ids[place]);
      if (found == IdIndex::kNone) {
        continue;
      }
      if (from[found] == IdIndex::kNone) {
        from[found] = static_cast<std::uint32_t>(again.size());
        again.push_back(rows->ids[place]);
      }
      refresh.copies.push_back({.to = rows, .place = place, .from = from[found]});
    }
  }
  if (!again.empty()) {
    refresh.rows = NewRows(table, std::move(again));
    exchange->again_.push_back(std::move(refresh));
  }
}

void RowsAhead::Exchange::Run(RowClient& client, std::int64_t step) {
  std::vector<Rows*> all;
  for (Refresh& refresh : again_) {
    all.push_back(&refresh.rows);
  }
  for (Rows& rows : rows_) {
    all.push_back(&rows);
  }
  if (all.empty()) {
    return;
  }
  std::vector<RowClient::Lookup> lookups;
  for (Rows* const rows : all) {
    lookups.push_back({.table = rows->table,
                       .ids = rows->ids,
                       .training = rows->training,
                       .rows = rows->values.values(),
                       .updates = rows->updates});
  }
  const Status status = client.Pull(lookups, step);
  // An id that a table refuses, where a feature was taken for its ids that is not: the others' are
  // wanted nevertheless.
  const bool each =
      status.code() == StatusCode::kNotFound || status.code() == StatusCode::kInvalidArgument;
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i]->there = status.ok() || (each && client.Pull(std::span(&lookups[i], 1), step).ok());
  }
}

void RowsAhead::Keep(Exchange exchange) {
  // First copies, then what moves rows from where copies go.
  for (const Refresh& refresh : exchange.again_) {
    if (refresh.rows.there) {
      CopyTo(refresh);
      refreshed_ += static_cast<std::int64_t>(refresh.rows.ids.size());
    }
  }
  for (Refresh& refresh : exchange.again_) {
    if (!refresh.rows.there) {
      Drop(refresh.rows.table);
    }
    Spare(std::move(refresh.rows));
  }
  for (Rows& rows : exchange.rows_) {
    if (!rows.there) {
      Spare(std::move(rows));
      continue;
    }
    Held* held = Find(exchange.batch_);
    if (held == nullptr) {
      held = &held_.emplace_back();
      held->number = exchange.batch_;
    }
    held->rows.push_back(std::move(rows));
  }
}

void RowsAhead::Fetch(RowClient& client, std::span<const Batch> batches, const Pushed& pushed,
                      std::int64_t step) {
  for (Exchange& exchange : Plan(batches, pushed)) {
    exchange.Run(client, step);
    Keep(std::move(exchange));
  }
}

void RowsAhead::CopyTo(const Refresh& again) {
  const std::size_t dim = tables_[static_cast<std::size_t>(again.rows.table)].dim;
  const std::span<const float> values = again.rows.values.values();
  for (const Copy& copy : again.copies) {
    std::ranges::copy(values.subspan(copy.from * dim, dim),
                      copy.to->values.values().subspan(copy.place * dim, dim).begin());
    if (!again.rows.updates.empty()) {
      copy.to->updates[copy.place] = again.rows.updates[copy.from];
    }
  }
}

// What is held of a table: it is not known what of its rows is now.
void RowsAhead::Drop(int table) {
  for (Held& held : held_) {
    std::erase_if(held.rows, [table](const Rows& rows) { return rows.table == table; });
  }
}

bool RowsAhead::Take(RowClient& client, std::uint64_t number, int table,
                     std::span<const std::uint64_t> ids, std::span<float> rows) {
  const Rows* const found = Find(number, table, ids);
  if (found == nullptr) {
    return false;
  }
  const std::span<const float> values = found->values.values();
  if (found->places.empty()) {
    std::ranges::copy(values, rows.begin());
  } else {
    const std::size_t dim = tables_[static_cast<std::size_t>(table)].dim;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto place = static_cast<std::size_t>(found->places[i]);
      std::ranges::copy(values.subspan(place * dim, dim), rows.subspan(i * dim).begin());
    }
  }
  Used(client, *found);
  return true;
}

bool RowsAhead::TakeOnce(RowClient& client, std::uint64_t number, int table,
                         std::span<const std::uint64_t> ids, RowsOnce& once) {
  tables_[static_cast<std::size_t>(table)].once = true;
  const Rows* const found = Find(number, table, ids);
  if (found == nullptr || found->places.empty()) {
    return false;
  }
  std::ranges::copy(found->values.values(), once.rows.begin());
  std::ranges::copy(found->places, once.places.begin());
  once.ids = found->ids;
  Used(client, *found);
  return true;
}

// Gradients will be computed from these.
void RowsAhead::Used(RowClient& client, const Rows& rows) {
  if (!rows.updates.empty()) {
    client.Use(rows.table, rows.ids, rows.updates, rows.values.values());
  }
  ++taken_;
}

void RowsAhead::Forget() {
  for (Held& held : held_) {
    std::ranges::for_each(held.rows, [this](Rows& rows) { Spare(std::move(rows)); });
  }
  held_.clear();
}

bool RowsAhead::Holds(std::uint64_t number) const {
  return std::ranges::any_of(held_, [&](const Held& held) { return held.number == number; });
}

RowsAhead::Held* RowsAhead::Find(std::uint64_t number) {
  const auto found = std::ranges::find(held_, number, &Held::number);
  return found == held_.end() ? nullptr : &*found;
}

const RowsAhead::Rows* RowsAhead::Find(std::uint64_t number, int table,
                                       std::span<const std::uint64_t> ids) const {
  const auto held = std::ranges::find(held_, number, &Held::number);
  if (held == held_.end()) {
    return nullptr;
  }
  const auto found = std::ranges::find_if(held->rows, [&](const Rows& rows) {
    if (rows.places.empty()) {
      return rows.table == table && std::ranges::equal(rows.ids, ids);
    }
    return rows.table == table &&
           std::ranges::equal(rows.places, ids, {}, [&rows](std::int32_t place) {
             return rows.ids[static_cast<std::size_t>(place)];
           });
  });
  return found == held->rows.end() ? nullptr : &*found;
}

RowsAhead::Rows RowsAhead::NewRows(int table, std::vector<std::uint64_t> ids) {
  Table& of = tables_[static_cast<std::size_t>(table)];
  Rows rows;
  if (!of.spare.empty()) {
    rows = std::move(of.spare.back());
    of.spare.pop_back();
  }
  rows.table = table;
  rows.training = of.evicts;
  rows.there = false;
  rows.ids = std::move(ids);
  rows.places.clear();
  rows.updates.assign(of.late ? rows.ids.size() : 0, kNoRow);
  rows.values.Resize(rows.ids.size() * of.dim);
  return rows;
}

RowsAhead::Rows RowsAhead::NewLookup(int table, std::span<const std::uint64_t> ids) {
  const Table& of = tables_[static_cast<std::size_t>(table)];
  if (!of.once) {
    return NewRows(table, {ids.begin(), ids.end()});
  }
  IdIndex index(ids.size());
  std::vector<std::int32_t> places(ids.size());
  std::ranges::transform(ids, places.begin(), [&index](std::uint64_t id) {
    return static_cast<std::int32_t>(index.Add(id));
  });
  Rows rows = NewRows(table, std::move(index).TakeIds());
  rows.places = std::move(places);
  return rows;
}

void RowsAhead::Spare(Rows rows) {
  tables_[static_cast<std::size_t>(rows.table)].spare.push_back(std::move(rows));
}

}  // namespace cohort::ps
