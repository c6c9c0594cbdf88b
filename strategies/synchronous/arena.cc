#include "synchronous/arena.h"

#include <algorithm>
#include <iterator>

namespace cohort {

Result<Arena> Arena::Make(Communicator* communicator, std::int64_t elements) {
  const std::size_t bytes = static_cast<std::size_t>(elements) * sizeof(float);
  Arena arena;
  COHORT_ASSIGN_OR_RETURN(arena.memory_, communicator == nullptr ? AllocateMemory(bytes)
                                                                 : communicator->Allocate(bytes));
  auto* const first = reinterpret_cast<float*>(arena.memory_->bytes().data());
  arena.values_ = {first, static_cast<std::size_t>(elements)};
  std::ranges::fill(arena.values_, 0.0F);
  return arena;
}

TouchedRows UnionOf(const TouchedRows& a, const TouchedRows& b) {
  TouchedRows all{.all = a.all || b.all, .indices = {}};
  if (!all.all) {
    all.indices.reserve(a.indices.size() + b.indices.size());
    std::set_union(a.indices.begin(), a.indices.end(), b.indices.begin(), b.indices.end(),
                   std::back_inserter(all.indices));
  }
  return all;
}

}  // namespace cohort
