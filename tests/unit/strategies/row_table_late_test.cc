// Sparse tables that make up for late gradients, row by row.

#include "parameter_server/rows/row_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <cohort/optim/optimizers.h>
#include <cohort/optim/server_side.h>

#include "row_table_test.h"

namespace cohort::ps::row_tables {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::uint32_t> UpdatesOf(RowTable& table, const Ids& ids,
                                     RowTable::Purpose purpose = kReading) {
  Floats rows(ids.size() * static_cast<std::size_t>(table.spec().dim));
  std::vector<std::uint32_t> updates(ids.size());
  OrThrow(table.Pull(ids, 1, purpose, rows, updates));
  return updates;
}

TableSpec LateSpec(const ServerSideOptions& options) {
  TableSpec spec = SmallSpec(ServerSide(Sgd({.learning_rate = 1})->config(), options));
  spec.dim = 1;
  spec.initializer = {};
  return spec;
}

void Update(RowTable& table, const Ids& ids, const Floats& values,
            const std::vector<std::uint32_t>& updates = {}, const Floats& pulled = {}) {
  OrThrow(table.Apply({.ids = ids, .values = values, .updates = updates, .pulled = pulled}));
}

TEST(LateRows, APullTellsHowManyUpdatesEachRowHasHad) {
  const auto table = Make(LateSpec({.staleness_scaling = true}));
  Update(*table, {7, 8, 7}, {1, 1, 1});  // repeated ids are one
  Update(*table, {7}, {1});
  EXPECT_THAT(UpdatesOf(*table, {8, 9, 7, 7}), ElementsAre(1, kNoRow, 2, 2));
  EXPECT_THAT(UpdatesOf(*table, {9}, kTraining), ElementsAre(0)) << "it was made";
}

TEST(LateRows, StalenessIsCountedRowByRow) {
  const auto table = Make(LateSpec({.staleness_scaling = true}));
  for (int i = 0; i < 4; ++i) {
    Update(*table, {7}, {0});
  }
  Update(*table, {8}, {0});
  // 7 is 4 old, or 1; 8 is 1 old; 9 there is none of.
  Update(*table, {7, 8, 9}, {12, 12, 12}, {0, 0, kNoRow});
  EXPECT_THAT(Pull(*table, {7, 8, 9}), ElementsAre(-3, -12, -12));
  Update(*table, {7, 8, 9}, {12, 12, 12}, {4, 0, kNoRow});
  EXPECT_THAT(Pull(*table, {7, 8, 9}), ElementsAre(-15, -18, -24));
  // What had more updates than it has was evicted since.
  Update(*table, {7, 8}, {12, 12}, {7, 1000});
  EXPECT_THAT(Pull(*table, {7, 8}), ElementsAre(-27, -30));
}

TEST(LateRows, ARowIsCompensatedForWhatHasMovedSince) {
  TableSpec spec = LateSpec({.delay_compensation = 0.5});
  spec.mean_of_occurrences = true;
  const auto table = Make(spec);
  OrThrow(table->Assign(Ids{7, 8}, 1, Floats{4, 4}));
  Update(*table, {7}, {1});
  Update(*table, {7, 8}, {2, 2}, {0, 0}, {4, 3});
  // 2 + 0.5 * 4 * (3 - 4) = 0; of 8 nobody has moved anything, whatever it was pulled as.
  EXPECT_THAT(Pull(*table, {7, 8}), ElementsAre(3, 2));
  // The mean of the occurrences is what is compensated; once for those that are repeated.
  OrThrow(table->Apply({.ids = Ids{7, 7},
                        .values = Floats{4, 4},
                        .counts = std::vector<std::uint32_t>{1, 3},
                        .updates = std::vector<std::uint32_t>{0, 0},
                        .pulled = Floats{4, 4}}));
  EXPECT_THAT(Pull(*table, {7}), ElementsAre(3));
  const float infinity = std::numeric_limits<float>::infinity();
  Update(*table, {7}, {1}, {0}, {infinity});
  EXPECT_THAT(Pull(*table, {7}), ElementsAre(2)) << "what was broken when it was pulled";
}

TEST(LateRows, AnEvictedRowBeginsAnew) {
  TableSpec spec = LateSpec({.delay_compensation = 1, .staleness_scaling = true});
  spec.time_to_live = 1;
  const auto table = Make(spec);
  for (int i = 0; i < 5; ++i) {
    Update(*table, {7}, {1});
  }
  OrThrow(table->EvictExpired(10));
  Update(*table, {7}, {1}, {5}, {-5});
  EXPECT_THAT(Pull(*table, {7}), ElementsAre(-1));
  Update(*table, {7}, {1}, {5}, {-5});
  EXPECT_THAT(Pull(*table, {7}), ElementsAre(-2));
}

TEST(LateRows, ARowThatIsSkippedOrNotAdmittedIsNoUpdate) {
  TableSpec spec = LateSpec({.staleness_scaling = true});
  spec.not_finite = TableSpec::NotFinite::kSkipRow;
  spec.admit_after = 3;
  const auto table = Make(spec);
  Update(*table, {7}, {1}, {kNoRow});
  EXPECT_THAT(UpdatesOf(*table, {7}), ElementsAre(kNoRow));
  Update(*table, {7}, {1}, {kNoRow});
  Update(*table, {7}, {1}, {kNoRow});
  EXPECT_THAT(UpdatesOf(*table, {7}), ElementsAre(1));
  Update(*table, {7}, {std::numeric_limits<float>::quiet_NaN()}, {0});
  EXPECT_THAT(UpdatesOf(*table, {7}), ElementsAre(1));
  Update(*table, {7}, {1}, {0});
  EXPECT_THAT(Pull(*table, {7}), ElementsAre(-2)) << "one update is not late";
}

TEST(LateRows, LengthsThatDoNotFitAreRefused) {
  const auto table = Make(LateSpec({.delay_compensation = 1}));
  const Ids ids = {7, 8};
  const Floats values = {1, 1};
  const std::vector<std::uint32_t> one = {0};
  const Floats row = {1};
  for (const RowTable::Gradients& gradients :
       {RowTable::Gradients{.ids = ids, .values = values, .updates = one},
        RowTable::Gradients{.ids = ids, .values = values, .pulled = row}}) {
    const Status status = table->Apply(gradients);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), AllOf(HasSubstr("users"), HasSubstr("counts of updates")));
  }
  EXPECT_EQ(table->stats().rows, 0);
}

}  // namespace
}  // namespace cohort::ps::row_tables
