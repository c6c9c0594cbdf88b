// Sparse tables: after how many occurrences an id gets a row, and when the row goes.

#include "parameter_server/rows/row_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "row_table_test.h"

namespace cohort::ps::row_tables {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

TEST(RowTable, AdmissionByCount) {
  TableSpec spec = SmallSpec();
  spec.admit_after = 5;
  auto table = Make(spec);
  const Floats ones{1, 1, 1};
  const auto apply = [&](std::uint32_t count) {
    OrThrow(
        table->Apply({.ids = Ids{8}, .values = ones, .counts = std::vector<std::uint32_t>{count}}));
  };
  apply(2);
  apply(2);
  EXPECT_THAT(Pull(*table, {8}), Each(0));
  EXPECT_EQ(table->stats().candidates, 1U);
  EXPECT_EQ(table->stats().dropped, 2U);
  EXPECT_EQ(table->stats().rows, 0U);
  apply(1);
  Floats expected(3);
  InitialRow(spec, 8, expected);
  for (float& value : expected) {
    value -= 1;
  }
  EXPECT_EQ(Pull(*table, {8}), expected);
  EXPECT_EQ(table->stats().candidates, 0U);
  EXPECT_EQ(table->stats().rows, 1U);
  // At once, where a call brings enough.
  OrThrow(table->Apply({.ids = Ids{9, 9, 9, 9, 9}, .values = Floats(15, 0.0F)}));
  EXPECT_EQ(table->stats().rows, 2U);
}

TEST(RowTable, AdmissionByProbabilityDependsOnIdAndStepOnly) {
  TableSpec spec = SmallSpec();
  spec.admit_probability = 0.25;
  const Ids ids = ManyIds(4000);
  const auto admitted = [&](int servers, std::uint64_t order, std::uint32_t count) {
    Servers tables(spec, servers);
    const Ids shuffled = Shuffled(ids, order);
    std::uint64_t rows = 0;
    for (int s = 0; s < servers; ++s) {
      Ids mine;
      for (const std::uint64_t id : shuffled) {
        if (ServerOf(BucketOf(id, spec.buckets), servers, spec.buckets) == s) {
          mine.push_back(id);
        }
      }
      OrThrow(tables[s].Apply({.ids = mine,
                               .values = GradientOf(mine, 3, 1),
                               .counts = std::vector<std::uint32_t>(mine.size(), count),
                               .step = 17}));
      rows += tables[s].stats().rows;
    }
    return std::pair(rows, tables.Dump());
  };
  const auto one = admitted(1, 1, 1);
  EXPECT_NEAR(static_cast<double>(one.first), 1000, 120);  // 4 standard deviations
  EXPECT_EQ(admitted(3, 2, 1), one);
  const double twice = 4000 * (1 - 0.75 * 0.75);
  EXPECT_NEAR(static_cast<double>(admitted(1, 1, 2).first), twice, 130);
}

TEST(RowTable, TimeToLiveRemovesWhatWasNotUsed) {
  TableSpec spec = SmallSpec();
  spec.time_to_live = 10;
  spec.admit_after = 2;
  std::vector<std::uint64_t> gone;
  auto table = OrThrow(RowTable::Create(
      spec, {0, spec.buckets},
      [&](std::uint64_t id, std::span<const float> /*weights*/) { gone.push_back(id); }));
  const std::vector<std::uint32_t> twice{2, 2, 2, 1};
  OrThrow(table->Apply({.ids = Ids{1, 2, 3, 4}, .values = Floats(12, 1.0F), .counts = twice}));
  Pull(*table, {2}, 8);
  Pull(*table, {3}, 8, kReading);  // is no use
  EXPECT_EQ(OrThrow(table->EvictExpired(11)), 0U);
  EXPECT_EQ(OrThrow(table->EvictExpired(12)), 2U);
  std::ranges::sort(gone);
  EXPECT_THAT(gone, ElementsAre(1, 3));
  EXPECT_EQ(table->stats().rows, 1U);
  EXPECT_EQ(table->stats().candidates, 0U);
  EXPECT_EQ(table->stats().evicted, 2U);
  EXPECT_EQ(table->EvictExpired(0).status().code(), StatusCode::kInvalidArgument);
  // A row that comes back starts anew.
  OrThrow(table->Apply({.ids = Ids{1, 1}, .values = Floats(6, 0.0F), .step = 13}));
  Floats expected(3);
  InitialRow(spec, 1, expected);
  EXPECT_EQ(Pull(*table, {1}, 13), expected);
}

TEST(RowTable, ExpiredRowsGoAFewAtATime) {
  TableSpec spec = SmallSpec();
  spec.buckets = 16;
  spec.time_to_live = 16;
  auto table = OrThrow(RowTable::Create(spec, {0, spec.buckets}));
  Ids ids(1600);
  std::iota(ids.begin(), ids.end(), 0);
  OrThrow(table->Apply({.ids = ids, .values = Floats(3 * ids.size(), 1.0F)}));
  std::uint64_t evicted = 0;
  for (std::int64_t step = 2; step <= 33; ++step) {
    for (int again = 0; again < 2; ++again) {  // of a push in two frames
      const std::uint64_t now = OrThrow(table->EvictWhenDue(step));
      EXPECT_EQ(now > 0, step >= 18 && again == 0) << step;
      EXPECT_LT(now, 200U) << "about one of 16 buckets, at step " << step;
      evicted += now;
    }
  }
  EXPECT_EQ(evicted, ids.size());
  // Steps may be far from each other: none of the buckets is looked through twice for that.
  OrThrow(table->Apply({.ids = ids, .values = Floats(3 * ids.size(), 1.0F), .step = 34}));
  EXPECT_EQ(OrThrow(table->EvictWhenDue(1'000'000'000)), ids.size());
}

TEST(RowTable, CapacityKeepsTheRecentOrTheFrequent) {
  TableSpec spec = SmallSpec();
  spec.buckets = 1;
  spec.capacity = 16;
  for (const bool frequent : {false, true}) {
    spec.eviction =
        frequent ? TableSpec::Eviction::kLeastFrequent : TableSpec::Eviction::kLeastRecent;
    auto table = Make(spec);
    for (std::uint64_t id = 0; id < 16; ++id) {
      // The higher the id, the more recent; the lower, the more frequent.
      OrThrow(
          table->Apply({.ids = Ids{id},
                        .values = Floats(3, 0.0F),
                        .counts = std::vector<std::uint32_t>{static_cast<std::uint32_t>(100 - id)},
                        .step = 1 + static_cast<std::int64_t>(id)}));
    }
    EXPECT_EQ(table->stats().evicted, 0U);
    Pull(*table, {100}, 50);
    EXPECT_EQ(table->stats().rows, 14U);  // an eighth below the capacity
    const Ids left = IdsIn(*table, 0);
    if (frequent) {
      EXPECT_THAT(left, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 100));
    } else {
      EXPECT_THAT(left, ElementsAre(3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 100));
    }
  }
}

TEST(RowTable, CapacityGivesTheSameRowsOnEveryNumberOfServers) {
  TableSpec spec = SmallSpec();
  spec.capacity = 160;
  const auto run = [&](int count) {
    Servers servers(spec, count);
    for (std::int64_t step = 1; step <= 20; ++step) {
      servers.Train(ManyIds(100, static_cast<std::uint64_t>(step / 2)), step);
    }
    return servers.Dump();
  };
  const auto one = run(1);
  EXPECT_EQ(run(3), one);
  EXPECT_EQ(run(8), one);
}

}  // namespace
}  // namespace cohort::ps::row_tables
