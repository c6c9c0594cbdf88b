// A job that goes on for long: workers that come and go, connections of which one in a hundred
// pieces is lost, buckets that move, snapshots. What was sent is there, and memory does not grow.
//
// As long as COHORT_SOAK_SECONDS says; 6 seconds otherwise. A binary of its own: it measures the
// process's memory. F29.

#include <gtest/gtest.h>
#include <malloc.h>

#include <chrono>
#include <cstdlib>
#include <numeric>
#include <string>
#include <thread>

#include "row_cluster.h"
#include "testing/resident_bytes.h"
#include "testing/sanitized.h"

namespace cohort::ps {
namespace {

// Without what malloc keeps for later.
std::int64_t BytesInUse() {
  ::malloc_trim(0);
  return testing::ResidentBytes();
}

// One worker's life; what it has sent in all.
double Live(const Cluster& cluster, std::uint64_t number) {
  const auto client = cluster.NewClient(number);
  const Philox random(number, "soak");
  std::vector<std::uint64_t> ids(50);
  std::vector<float> gradients(ids.size() * kDim);
  double sent = 0;
  for (std::int64_t step = 1; step <= 20; ++step) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = random.Below(2000, static_cast<std::uint64_t>(step), i);
    }
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      gradients[i] =
          static_cast<float>(random.Below(9, static_cast<std::uint64_t>(step), 99 + i)) - 4;
      sent += gradients[i];
    }
    std::vector<float> rows(gradients.size());
    OrThrow(client->Pull(0, ids, step, /*training=*/true, rows));
    const RowClient::Gradients push{.table = 0, .ids = ids, .values = gradients};
    OrThrow(client->Push(std::span(&push, 1), step, 1));
  }
  return sent;
}

TEST(RowSoakTest, NothingIsLostAndNothingGrows) {
  const char* const asked = std::getenv("COHORT_SOAK_SECONDS");
  const std::chrono::duration<double> length(asked == nullptr ? 6 : std::stod(asked));
  const Cluster cluster(3, 0.01);
  const auto chief = cluster.NewChief();
  const auto dense = Client::Make(cluster.spec_, cluster.addresses_, {.client = 1000});
  const Philox random(1, "moves");
  std::uint64_t moves = 0;
  std::uint64_t rounds = 0;
  double sent = 0;
  std::int64_t warm = 0;
  const auto begun = std::chrono::steady_clock::now();
  for (;;) {
    const auto now = std::chrono::steady_clock::now() - begun;
    if (warm == 0 && now > length / 3) {
      warm = BytesInUse();
    }
    if (now > length) {
      break;
    }
    ++rounds;
    const std::uint64_t number = 2000 + 2 * rounds;
    double one = 0;
    double other = 0;
    std::thread first([&] { one = Live(cluster, number); });
    std::thread second([&] { other = Live(cluster, number + 1); });
    OrThrow(dense->Freeze(rounds).status());
    chief->ReadSnapshot(rounds, rounds - 1);
    std::size_t bytes = 0;
    OrThrow(chief->Dump(0, [&](std::uint32_t, std::string_view dump) {
      bytes += dump.size();
      return OkStatus();
    }));
    chief->ReadSnapshot(0);
    OrThrow(dense->Thaw().status());
    for (int i = 0; i < 5; ++i, ++moves) {
      OrThrow(chief->Move(0, static_cast<std::uint32_t>(random.Below(kBuckets, moves)),
                          static_cast<int>(random.Below(3, moves, 1))));
    }
    first.join();
    second.join();
    sent += one + other;
    OrThrow(dense->Retire(number));
    OrThrow(dense->Retire(number + 1));
  }
  const std::int64_t end = BytesInUse();
  double there = 0;
  for (const auto& [id, row] : RowsOf(*chief)) {
    there += std::accumulate(row.weights.begin(), row.weights.end(), 0.0);
  }
  EXPECT_EQ(there, -sent);
  ExpectEachBucketOnce(*chief);
  EXPECT_GT(rounds, 3U);
  EXPECT_GT(cluster.lost(), 0);
  if (!testing::kSanitized) {
    EXPECT_LT(end, warm + (std::int64_t{8} << 20)) << "after " << rounds << " rounds";
  }
  RecordProperty("rounds", std::to_string(rounds));
  RecordProperty("grown_bytes", std::to_string(end - warm));
  std::printf("%llu rounds, %llu moves, %lld pieces lost, grown by %lld KiB\n",
              static_cast<unsigned long long>(rounds), static_cast<unsigned long long>(moves),
              static_cast<long long>(cluster.lost()), static_cast<long long>((end - warm) >> 10));
}

}  // namespace
}  // namespace cohort::ps
