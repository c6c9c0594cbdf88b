#include "synchronous/arena.h"

#include <algorithm>
#include <iterator>

#include "synchronous/bucket_plan.h"

namespace cohort {
namespace {

std::span<float> FloatsAt(std::byte* address, std::int64_t elements) {
  return {reinterpret_cast<float*>(address), static_cast<std::size_t>(elements)};
}

}  // namespace

Result<Arena> Arena::Make(Communicator* communicator, std::int64_t elements) {
  const std::size_t bytes = static_cast<std::size_t>(elements) * sizeof(float);
  Arena arena;
  COHORT_ASSIGN_OR_RETURN(arena.memory_, communicator == nullptr ? AllocateMemory(bytes)
                                                                 : communicator->Allocate(bytes));
  arena.values_ = FloatsAt(arena.memory_->bytes().data(), elements);
  arena.header_ = arena.values_.first(BucketPlan::kHeaderElements);
  std::ranges::fill(arena.values_, 0.0F);
  return arena;
}

Arena Arena::MakeOn(Device& device, std::int64_t elements) {
  Arena arena;
  arena.device_memory_ =
      device.Allocate(static_cast<std::size_t>(elements) * sizeof(float), "gradients");
  arena.values_ = FloatsAt(arena.device_memory_.get(), elements);
  arena.host_header_ = std::make_unique<float[]>(BucketPlan::kHeaderElements);
  arena.header_ = {arena.host_header_.get(), BucketPlan::kHeaderElements};
  return arena;
}

Arena Arena::MakeFor(Device& device, std::int64_t elements) {
  Arena arena;
  arena.device_memory_ = device.AllocateHost(static_cast<std::size_t>(elements) * sizeof(float),
                                             "gradients on their way to other processes");
  arena.values_ = FloatsAt(arena.device_memory_.get(), elements);
  arena.header_ = arena.values_.first(BucketPlan::kHeaderElements);
  std::ranges::fill(arena.values_, 0.0F);
  return arena;
}

void AddTo(std::span<float> to, std::span<const float> from) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    to[i] += from[i];
  }
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
