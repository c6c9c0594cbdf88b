// The iterators behind Dataset::Iterate.

#pragma once

#include <memory>

#include "batch_builder.h"
#include "shard.h"

namespace cohort::data {

struct IteratorPlan {
  BatchBuilder builder;
  Shard shard;
  std::int64_t first_batch = 0;
  bool in_order = true;
};

// Builds each batch in Next, on the caller's thread.
std::unique_ptr<BatchIterator> MakeDirectIterator(IteratorPlan plan);

// Up to `ahead` batches, and max_bytes of them (0: as Dataset::Prefetch says), are ready or being
// built; each is built whole by one of `threads` threads. Either may be kAutotune.
struct PrefetchSize {
  int ahead = 1;
  int threads = 1;
  std::int64_t max_bytes = 0;
};
// What max_bytes stands for.
std::int64_t BytesBound(const PrefetchSize& size);
// ResourceExhausted if the threads cannot be started.
Result<std::unique_ptr<BatchIterator>> MakePrefetchIterator(IteratorPlan plan,
                                                            const PrefetchSize& size);

}  // namespace cohort::data
