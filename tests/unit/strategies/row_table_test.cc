// Sparse tables: what a row is at first, what an update makes of it, what tables take of memory;
// and all that a caller may get wrong.

#include "parameter_server/rows/row_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <cohort/optim/optimizers.h>

#include "row_table_test.h"

namespace cohort::ps::row_tables {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(RowTable, NewRowsAreTheSameInEveryOrderOnEveryNumberOfServers) {
  for (const auto kind : {RowInitializer::Kind::kUniform, RowInitializer::Kind::kNormal}) {
    TableSpec spec = SmallSpec(Adagrad()->config());
    spec.dim = 5;
    spec.initializer.kind = kind;
    Ids ids = ManyIds(500);
    ids.push_back(0);
    ids.push_back(~std::uint64_t{0});
    Servers one(spec, 1);
    one.Pull(ids, 4);
    for (const int count : {2, 3, 7}) {
      Servers servers(spec, count);
      const Ids shuffled = Shuffled(ids, static_cast<std::uint64_t>(count));
      for (const std::uint64_t id : shuffled) {
        servers.Pull({id, id}, 4);
      }
      EXPECT_EQ(servers.Dump(), one.Dump()) << count << " servers";
    }
    const Floats row = Pull(one[0], {ids[3]});
    Floats expected(5);
    InitialRow(spec, ids[3], expected);
    EXPECT_EQ(row, expected);
  }
}

TEST(RowTable, InitialValuesAreSpread) {
  TableSpec spec = SmallSpec();
  spec.dim = 64;
  auto table = Make(spec);
  const Floats uniform = Pull(*table, ManyIds(200));
  EXPECT_GE(*std::ranges::min_element(uniform), -0.5F);
  EXPECT_LT(*std::ranges::max_element(uniform), 0.5F);
  EXPECT_NEAR(std::accumulate(uniform.begin(), uniform.end(), 0.0) / 12800, 0, 0.02);
  EXPECT_NEAR(std::inner_product(uniform.begin(), uniform.end(), uniform.begin(), 0.0) / 12800,
              1.0 / 12, 0.005);
  spec.initializer = {RowInitializer::Kind::kNormal, 0.1};
  table = Make(spec);
  const Floats normal = Pull(*table, ManyIds(200));
  EXPECT_NEAR(std::inner_product(normal.begin(), normal.end(), normal.begin(), 0.0) / 12800, 0.01,
              0.0006);
  // Another table of the same seed has other rows.
  TableSpec other = spec;
  other.name = "items";
  EXPECT_NE(Pull(*Make(other), {1}), Pull(*table, {1}));
}

TEST(RowTable, RepeatedIdsAreOneUpdateAddedUpInOrder) {
  TableSpec spec = SmallSpec(Adagrad({.learning_rate = 1})->config());
  spec.dim = 1;
  auto table = Make(spec);
  auto merged = Make(spec);
  // In this order, and in no other, the float sum is 1: 1e8 swallows what comes in between.
  const Ids ids{9, 5, 5, 9, 5};
  const Floats values{2, 1e8F, -1e8F, 3, 1};
  OrThrow(table->Apply({.ids = ids, .values = values}));
  const std::vector<std::uint32_t> counts{3, 2};
  OrThrow(merged->Apply({.ids = Ids{5, 9}, .values = Floats{1, 5}, .counts = counts}));
  EXPECT_EQ(Dump(*table), Dump(*merged));
  EXPECT_EQ(table->stats().updates, 2U);
  const Ids reversed{5, 9, 5, 5, 9};
  const Floats backwards{1, 3, -1e8F, 1e8F, 2};
  auto other = Make(spec);
  OrThrow(other->Apply({.ids = reversed, .values = backwards}));
  EXPECT_NE(Dump(*table), Dump(*other)) << "1 - 1e8 + 1e8 is 0 in float32";
}

TEST(RowTable, MeanOfOccurrencesDividesByTheCount) {
  TableSpec spec = SmallSpec();
  spec.dim = 1;
  spec.initializer = {};
  spec.mean_of_occurrences = true;
  auto table = Make(spec);
  const std::vector<std::uint32_t> counts{3, 1, 2};
  OrThrow(table->Apply(
      {.ids = Ids{4, 4, 6}, .values = Floats{6, 2, 8}, .counts = counts, .scale = 0.5F}));
  EXPECT_THAT(Pull(*table, {4, 6}), ElementsAre(-1, -2));
}

// Large calls (sorted by counting) and single ids give the same table.
TEST(RowTable, OneCallEqualsManyCalls) {
  const TableSpec spec = SmallSpec(Adagrad()->config());
  const Ids ids = Shuffled(ManyIds(3000), 3);
  auto whole = Make(spec);
  auto single = Make(spec);
  const Floats gradients = GradientOf(ids, 3, 1);
  OrThrow(whole->Apply({.ids = ids, .values = gradients}));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    OrThrow(single->Apply(
        {.ids = std::span(ids).subspan(i, 1), .values = std::span(gradients).subspan(i * 3, 3)}));
  }
  EXPECT_EQ(Dump(*whole), Dump(*single));
  EXPECT_EQ(Pull(*whole, ids), Pull(*single, ids));
}

TEST(RowTable, MissingRowsUnderEachPolicy) {
  TableSpec spec = SmallSpec();
  auto table = Make(spec);
  const Floats first = Pull(*table, {5}, 1, kReading);
  EXPECT_EQ(table->stats().rows, 0U) << "reading changes nothing";
  EXPECT_EQ(Pull(*table, {5}), first);
  EXPECT_EQ(table->stats().rows, 1U);

  spec.missing = TableSpec::Missing::kZeros;
  spec.initializer = {};
  table = Make(spec);
  EXPECT_THAT(Pull(*table, {5}), Each(0));
  EXPECT_EQ(table->stats().rows, 0U);
  OrThrow(table->Apply({.ids = Ids{5}, .values = Floats{1, 2, 3}}));
  EXPECT_THAT(Pull(*table, {5, 6}), ElementsAre(-1, -2, -3, 0, 0, 0));
  EXPECT_EQ(table->stats().rows, 1U);

  spec.missing = TableSpec::Missing::kError;
  table = Make(spec);
  OrThrow(table->Assign(Ids{1, 2}, 1, Floats{1, 1, 1, 2, 2, 2}));
  const auto before = Dump(*table);
  Floats rows(9);
  for (const auto purpose : {kTraining, kReading}) {
    const Status status = table->Pull(Ids{1, 77, 66}, 5, purpose, rows);
    EXPECT_EQ(status.code(), StatusCode::kNotFound);
    EXPECT_THAT(status.message(), AllOf(HasSubstr("\"users\""), HasSubstr("id 77")));
  }
  EXPECT_EQ(table->Apply({.ids = Ids{2, 3}, .values = Floats(6, 1.0F)}).code(),
            StatusCode::kNotFound);
  EXPECT_EQ(Dump(*table), before);
  OrThrow(table->Apply({.ids = Ids{2}, .values = Floats(3, 1.0F)}));
  EXPECT_THAT(Pull(*table, {2, 1}), ElementsAre(1, 1, 1, 1, 1, 1));
}

TEST(RowTable, AnyDimensionAndNoRoomForMoreThanIsAskedFor) {
  for (const std::int64_t dim : {1, 2, 16, 1000, 20000}) {
    TableSpec spec = SmallSpec(Adagrad({.learning_rate = 1, .initial_accumulator = 1})->config());
    spec.dim = dim;
    spec.initializer = {};
    spec.buckets = 4;
    auto table = Make(spec);
    const Ids ids = ManyIds(dim > 1000 ? 20 : 3000);
    const Floats gradients = GradientOf(ids, static_cast<std::size_t>(dim), 1);
    OrThrow(table->Apply({.ids = ids, .values = gradients}));
    const Floats rows = Pull(*table, ids);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const float g = gradients[i];
      ASSERT_NEAR(rows[i], -g / std::sqrt(1 + g * g), 1e-5);
    }
    const TableStats stats = table->stats();
    const std::uint64_t record = 24 + 8 * static_cast<std::uint64_t>(dim);
    // At most a block of 64 rows or 32 KiB in each bucket is not full yet.
    const std::uint64_t block = std::min(64 * record, std::max<std::uint64_t>(record, 32 << 10));
    EXPECT_LE(stats.row_bytes, ids.size() * record + 4 * (block + 512));
  }
}

// What a row costs beside its record.
TEST(RowTable, OverheadOfARowIsBounded) {
  TableSpec spec = SmallSpec();
  spec.dim = 1;
  spec.buckets = 64;
  auto table = Make(spec);
  constexpr std::size_t kRows = 400000;
  Ids ids(kRows);
  std::iota(ids.begin(), ids.end(), std::uint64_t{1} << 40);
  Floats rows(kRows);
  const auto check = [&](std::size_t count) {
    OrThrow(table->Pull(std::span(ids).first(count), 1, kTraining, std::span(rows).first(count)));
    const TableStats stats = table->stats();
    EXPECT_EQ(stats.rows, count);
    EXPECT_LE(stats.row_bytes, count * 28 + 64 * 64 * 28 + 64 * 512) << count;
    EXPECT_LE(stats.overhead_bytes, count * 9 + 64 * (256 + 128)) << count;
  };
  for (const std::size_t count : {kRows / 100, kRows / 7, kRows / 3, kRows}) {
    check(count);
  }
}

TEST(RowTable, WrongCallsAreRefusedAndChangeNothing) {
  auto table = Make(SmallSpec());
  Pull(*table, {1, 2});
  const auto before = Dump(*table);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto refused = [&](const Status& status, const std::string& what) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << what;
    EXPECT_THAT(status.message(), AllOf(HasSubstr("table \"users\""), HasSubstr(what)));
    EXPECT_EQ(Dump(*table), before) << what;
  };
  Floats rows(6);
  refused(table->Pull(Ids{1}, 1, kTraining, rows), "1 ids with 6 floats of room");
  refused(table->Pull(Ids{1, 2}, 0, kTraining, rows), "step 0");
  refused(table->Pull(Ids{1, 2}, std::int64_t{1} << 32, kTraining, rows), "step 4294967296");
  refused(table->Apply({.ids = Ids{1, 2}, .values = Floats(5, 1.0F)}), "dim is 3");
  refused(table->Apply({.ids = Ids{1, 2}, .values = Floats(6, 1.0F), .step = -1}), "step -1");
  refused(
      table->Apply(
          {.ids = Ids{1, 2}, .values = Floats(6, 1.0F), .counts = std::vector<std::uint32_t>{1}}),
      "1 counts");
  refused(table->Apply({.ids = Ids{1, 2},
                        .values = Floats(6, 1.0F),
                        .counts = std::vector<std::uint32_t>{1, 0}}),
          "count of 0 for id 2");
  refused(table->Apply({.ids = Ids{1, 2}, .values = Floats{1, 2, 3, 4, nan, 6}}),
          "gradient of id 2");
  refused(table->Apply({.ids = Ids{1}, .values = Floats(3, 1.0F), .scale = nan}), "scale");
  refused(table->Assign(Ids{3, 3}, 1, rows), "id 3 stands twice");
  refused(table->Assign(Ids{3}, 1, Floats{1, nan, 1}), "NaN");
  OrThrow(table->Pull({}, 1, kTraining, {}));
  OrThrow(table->Apply({}));
  EXPECT_EQ(Dump(*table), before);

  auto part = OrThrow(RowTable::Create(SmallSpec(), BucketsOf(0, 2, 16)));
  std::uint64_t stranger = 0;
  while (BucketOf(stranger, 16) < 8) {
    ++stranger;
  }
  Floats row(3);
  const Status status = part->Pull(Ids{stranger}, 1, kTraining, row);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("this server has 0 to 8"));
  EXPECT_EQ(part->stats().rows, 0U);
}

TEST(RowTable, GradientsThatAreNotFiniteMaySkipTheirRow) {
  TableSpec spec = SmallSpec();
  spec.initializer = {};
  spec.not_finite = TableSpec::NotFinite::kSkipRow;
  auto table = Make(spec);
  const float inf = std::numeric_limits<float>::infinity();
  const float most = std::numeric_limits<float>::max();
  OrThrow(table->Apply(
      {.ids = Ids{1, 2, 3, 3}, .values = Floats{1, 1, 1, 1, inf, 1, most, 0, 0, most, 0, 0}}));
  EXPECT_THAT(Pull(*table, {1, 2, 3}), ElementsAre(-1, -1, -1, 0, 0, 0, 0, 0, 0));
  EXPECT_EQ(table->stats().skipped, 2U);
  EXPECT_EQ(table->stats().updates, 1U);
}

}  // namespace
}  // namespace cohort::ps::row_tables
