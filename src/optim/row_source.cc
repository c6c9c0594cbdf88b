#include <cohort/optim/id_index.h>
#include <cohort/optim/row_source.h>

#include <limits>
#include <utility>

namespace cohort {

std::span<float> RowsOnce::Find(std::span<const std::uint64_t> asked) {
  Require(places.size() == asked.size() &&
              asked.size() <= std::size_t{std::numeric_limits<std::int32_t>::max()} &&
              (asked.empty() ? rows.empty() : rows.size() % asked.size() == 0),
          "a lookup with room for a row and a place of each id, of fewer than 2^31");
  IdIndex index(asked.size());
  for (std::size_t i = 0; i < asked.size(); ++i) {
    places[i] = static_cast<std::int32_t>(index.Add(asked[i]));
  }
  ids = std::move(index).TakeIds();
  return asked.empty() ? rows : rows.first(rows.size() / asked.size() * ids.size());
}

Status RowSource::LookupOnce(int table, std::span<const std::uint64_t> ids, bool training,
                             RowsOnce& once) {
  const std::span<float> rows = once.Find(ids);
  return Lookup(table, once.ids, training, rows);
}

}  // namespace cohort
