// Sparse tables under every optimizer: as a dense table, and going on from files as before.

#include "parameter_server/rows/row_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/server_side.h>

#include "row_table_test.h"
#include "testing/temp_dir.h"

namespace cohort::ps::row_tables {
namespace {

class EveryOptimizer : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryOptimizer, EqualsTheLocalOptimizerOnADenseTable) {
  for (const auto scope : {TableSpec::BiasScope::kRow, TableSpec::BiasScope::kTable}) {
    constexpr std::size_t kDim = 13;
    TableSpec spec = SmallSpec(GetParam());
    spec.dim = kDim;
    spec.bias_scope = scope;
    auto table = Make(spec);
    const Ids ids = ManyIds(100);
    Floats dense = Pull(*table, ids);
    const auto rule = OrThrow(MakeOptimizer(GetParam()));
    std::vector<Floats> slots;
    std::vector<std::span<float>> spans;
    for (int s = 0; s < rule->num_slots(); ++s) {
      slots.emplace_back(dense.size(), rule->slot_initial_value(s));
    }
    for (Floats& slot : slots) {
      spans.emplace_back(slot);
    }
    for (int step = 1; step <= 6; ++step) {
      const Floats gradient = GradientOf(ids, kDim, step);
      rule->Apply({dense, gradient, spans, 0.25F, step});
      OrThrow(table->Apply({.ids = ids, .values = gradient, .scale = 0.25F, .step = step}));
      ASSERT_EQ(Pull(*table, ids, step), dense) << "step " << step;
    }
  }
}

// Those that know where a row ends, too.
class EveryRowOptimizer : public ::testing::TestWithParam<std::string> {};

// Of 150 ids about 45, by the step.
Ids SomeIds(std::int64_t step) {
  const Ids ids = ManyIds(150);
  const Philox random(11, "which ids");
  Ids batch;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (random.Below(10, static_cast<std::uint64_t>(step), i) < 3) {
      batch.push_back(ids[i]);
    }
  }
  return Shuffled(batch, static_cast<std::uint64_t>(step));
}

// Some ids were seen once by then and wait for their row; where there is no room for all, what was
// used, when and how often, before the save tells which rows go after it.
void ExpectThatASaveChangesNothing(const TableSpec& spec) {
  constexpr std::int64_t kSaved = 8;
  constexpr std::int64_t kSteps = 16;
  const auto train = [&](Servers& servers, std::int64_t from, std::int64_t to) {
    for (std::int64_t step = from; step <= to; ++step) {
      servers.Train(SomeIds(step), step);
    }
  };
  Servers straight(spec, 2);
  train(straight, 1, kSteps);
  Servers first(spec, 3);
  train(first, 1, kSaved);
  const testing::TempDir folder;
  const auto paths = first.Save(folder.path());
  for (const int count : {1, 2, 5}) {
    Servers second(spec, count);
    second.Load(paths);
    ASSERT_EQ(second.Dump(), first.Dump());
    const std::uint64_t evicted = second.Evicted();
    train(second, kSaved + 1, kSteps);
    EXPECT_EQ(second.Dump(), straight.Dump()) << count << " servers";
    if (spec.capacity == 0) {
      EXPECT_EQ(second.Evicted(), evicted);
    } else {
      EXPECT_GT(second.Evicted(), evicted + 16) << "in each bucket one, and more";
    }
  }
}

TEST_P(EveryRowOptimizer, SavedAndLoadedOnOtherServersTrainingGoesOnBitForBit) {
  struct Room {
    std::uint64_t capacity;
    TableSpec::Eviction eviction;
  };
  for (const auto scope : {TableSpec::BiasScope::kRow, TableSpec::BiasScope::kTable}) {
    for (const Room room :
         {Room{0, TableSpec::Eviction::kLeastRecent}, Room{64, TableSpec::Eviction::kLeastRecent},
          Room{64, TableSpec::Eviction::kLeastFrequent}}) {
      TableSpec spec = SmallSpec(GetParam());
      spec.admit_after = 2;
      spec.bias_scope = scope;
      spec.capacity = room.capacity;
      spec.eviction = room.eviction;
      SCOPED_TRACE("capacity " + std::to_string(room.capacity) + ", eviction " +
                   std::to_string(static_cast<int>(room.eviction)) + ", bias scope " +
                   std::to_string(static_cast<int>(scope)));
      ASSERT_NO_FATAL_FAILURE(ExpectThatASaveChangesNothing(spec));
    }
  }
}

const auto kEveryOptimizer = ::testing::Values(
    Sgd({.learning_rate = 0.1, .l2 = 0.01})->config(), Sgd({.momentum = 0.9})->config(),
    Sgd({.momentum = 0.9, .nesterov = true})->config(), Adagrad()->config(), RmsProp()->config(),
    RmsProp({.momentum = 0.5})->config(),
    Adam({.learning_rate = Schedule::Step(0.1, 2, 0.5)})->config(),
    AdamW({.weight_decay = 0.1})->config(), Ftrl({.lambda1 = 0.1})->config(),
    ServerSide(Adam()->config(), {.weight_decay = 0.5}));
INSTANTIATE_TEST_SUITE_P(Rules, EveryOptimizer, kEveryOptimizer);
INSTANTIATE_TEST_SUITE_P(Rules, EveryRowOptimizer, kEveryOptimizer);
INSTANTIATE_TEST_SUITE_P(
    RowRules, EveryRowOptimizer,
    ::testing::Values(RowWiseAdagradConfig(),
                      RowWiseAdagradConfig({.learning_rate = 0.5, .l2 = 0.25}),
                      ServerSide(RowWiseAdagradConfig(), {.clip_value = 0.5, .clip_norm = 1}),
                      ServerSide(RowWiseAdagradConfig(), {.weight_decay = 0.5})));

// Only rows that are pushed decay.
TEST(RowTable, WhatIsNotPushedDoesNotDecay) {
  TableSpec spec =
      SmallSpec(ServerSide(Sgd({.learning_rate = 0.5})->config(), {.weight_decay = 0.5}));
  spec.initializer = {};
  auto table = Make(spec);
  OrThrow(table->Apply({.ids = Ids{1, 2}, .values = Floats{-8, -8, -8, -8, -8, -8}}));
  EXPECT_EQ(Pull(*table, {1}), (Floats{4, 4, 4}));
  OrThrow(table->Apply({.ids = Ids{1}, .values = Floats{0, 2, 4}, .step = 2}));
  EXPECT_EQ(Pull(*table, {1}), (Floats{3, 2, 1})) << "a quarter of 4, and half the gradient";
  EXPECT_EQ(Pull(*table, {2}), (Floats{4, 4, 4}));
}

TEST(RowTable, RowWiseAdagradHasOneFloatBesideTheRow) {
  TableSpec spec = SmallSpec(RowWiseAdagradConfig({.learning_rate = 1, .initial_accumulator = 0}));
  spec.initializer = {};
  spec.buckets = 1;
  auto table = Make(spec);
  OrThrow(table->Apply({.ids = Ids{1}, .values = Floats{3, 0, 3}}));
  // The mean of the squares is 6.
  EXPECT_NEAR(Pull(*table, {1})[0], -3 / std::sqrt(6.0), 1e-6);
  EXPECT_EQ(table->DumpBucket(0).size(), 12 + 20 + 4 * (3 + 1));
}

TEST(RowTable, AdamLeavesOtherRowsAloneAndCountsAsItIsTold) {
  TableSpec spec = SmallSpec(Adam({.learning_rate = 1})->config());
  spec.initializer = {};
  for (const bool by_row : {true, false}) {
    spec.bias_scope = by_row ? TableSpec::BiasScope::kRow : TableSpec::BiasScope::kTable;
    auto table = Make(spec);
    for (int step = 1; step <= 9; ++step) {
      OrThrow(table->Apply({.ids = Ids{1}, .values = Floats{1, 1, 1}, .step = step}));
    }
    const Floats before = Pull(*table, {1});
    OrThrow(table->Apply({.ids = Ids{2}, .values = Floats{1, 1, 1}, .step = 10}));
    EXPECT_EQ(Pull(*table, {1}), before);
    // The first update of a row: without bias exactly the rate; by the table's step 10, m is
    // (1 - b1) / (1 - b1^10) of the gradient and v (1 - b2) / (1 - b2^10) of its square.
    const double m = 0.1 / (1 - std::pow(0.9, 10));
    const double v = 0.001 / (1 - std::pow(0.999, 10));
    EXPECT_NEAR(Pull(*table, {2})[0], by_row ? -1 : -m / std::sqrt(v), 1e-5);
  }
}

}  // namespace
}  // namespace cohort::ps::row_tables
