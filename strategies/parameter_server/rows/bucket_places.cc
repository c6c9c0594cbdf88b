#include "parameter_server/rows/bucket_places.h"

#include <thread>

#include "parameter_server/model/table_spec.h"

namespace cohort::ps {

BucketPlaces::BucketPlaces(int self, int servers, std::uint32_t buckets)
    : self_(self),
      buckets_(buckets),
      places_(std::make_unique<std::atomic<std::uint32_t>[]>(buckets)) {
  for (std::uint32_t b = 0; b < buckets; ++b) {
    const int server = ServerOf(b, servers, buckets);
    places_[b] = static_cast<std::uint32_t>(server);
    elsewhere_ += server == self ? 0 : 1;
  }
}

BucketPlaces::Visit BucketPlaces::Enter() const {
  for (;;) {
    const std::uint32_t phase = phase_.load();
    std::atomic<int>& count = visits_[phase % 2];
    count.fetch_add(1);
    // If Give has raised it meanwhile it may not wait for this one any more.
    if (phase_.load() == phase) {
      return Visit(count);
    }
    count.fetch_sub(1);
  }
}

void BucketPlaces::Give(std::uint32_t bucket, int server) {
  if (!here(bucket)) {
    return;
  }
  places_[bucket].store(static_cast<std::uint32_t>(server));
  ++elsewhere_;
  // Who enters from here on finds the bucket gone; those before are short, and none joins them.
  const std::atomic<int>& before = visits_[phase_.fetch_add(1) % 2];
  while (before.load() != 0) {
    std::this_thread::yield();
  }
}

void BucketPlaces::Take(std::uint32_t bucket) {
  if (!here(bucket)) {
    places_[bucket].store(static_cast<std::uint32_t>(self_), std::memory_order_release);
    --elsewhere_;
  }
}

}  // namespace cohort::ps
