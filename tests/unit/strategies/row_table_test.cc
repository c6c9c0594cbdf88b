// Sparse tables: what a row is at first, what updates it, when it goes, how it is saved; and all
// that a caller may get wrong.

#include "parameter_server/rows/row_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/io/record_file.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/server_side.h>

#include <cohort/parameter_server.pb.h>
#include "parameter_server/rows/row_file.h"
#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Ids = std::vector<std::uint64_t>;
using Floats = std::vector<float>;
constexpr auto kTraining = RowTable::Purpose::kTraining;
constexpr auto kReading = RowTable::Purpose::kReading;

TableSpec SmallSpec(const std::string& optimizer = Sgd({.learning_rate = 1})->config()) {
  TableSpec spec;
  spec.name = "users";
  spec.dim = 3;
  spec.seed = 7;
  spec.optimizer = optimizer;
  spec.initializer = {RowInitializer::Kind::kUniform, 0.5};
  spec.buckets = 16;
  return spec;
}

std::unique_ptr<RowTable> Make(const TableSpec& spec) {
  return OrThrow(RowTable::Create(spec, {0, spec.buckets}));
}

Floats Pull(RowTable& table, const Ids& ids, std::int64_t step = 1,
            RowTable::Purpose purpose = kTraining) {
  Floats rows(ids.size() * static_cast<std::size_t>(table.spec().dim));
  OrThrow(table.Pull(ids, step, purpose, rows));
  return rows;
}

std::vector<std::string> Dump(const RowTable& table) {
  std::vector<std::string> buckets;
  for (std::uint32_t b = table.range().begin; b < table.range().end; ++b) {
    buckets.push_back(table.DumpBucket(b));
  }
  return buckets;
}

// Of the rows in a bucket, ascending.
Ids IdsIn(const RowTable& table, std::uint32_t bucket) {
  const std::string bytes = table.DumpBucket(bucket);
  std::uint32_t rows = 0;
  std::memcpy(&rows, bytes.data() + 4, sizeof(rows));
  const std::size_t record = (bytes.size() - 12) / std::max(1U, rows);
  Ids ids(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    std::memcpy(&ids[i], bytes.data() + 12 + i * record, sizeof(ids[i]));
  }
  return ids;
}

Ids ManyIds(std::size_t count, std::uint64_t seed = 1) {
  Ids ids(count);
  for (std::size_t i = 0; i < count; ++i) {
    const Philox::Block block = Philox(seed).At(i);
    ids[i] = (std::uint64_t{block[0]} << 32) | block[1];
  }
  return ids;
}

Ids Shuffled(Ids ids, std::uint64_t seed) {
  const Permutation order(ids.size(), seed);
  Ids out(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    out[i] = ids[order(i)];
  }
  return out;
}

// A deterministic gradient of small multiples of 1/8.
Floats GradientOf(const Ids& ids, std::size_t dim, std::int64_t step) {
  Floats values;
  for (const std::uint64_t id : ids) {
    for (std::size_t k = 0; k < dim; ++k) {
      values.push_back(
          static_cast<float>((HashId(id) + 5 * k + static_cast<std::uint64_t>(step)) % 11) *
              0.125F -
          0.5F);
    }
  }
  return values;
}

// A table in several servers' parts; calls go to where each id is.
class Servers {
 public:
  Servers(const TableSpec& spec, int count) : spec_(spec) {
    for (int s = 0; s < count; ++s) {
      tables_.push_back(OrThrow(RowTable::Create(spec, BucketsOf(s, count, spec.buckets))));
    }
  }
  RowTable& operator[](int server) { return *tables_[static_cast<std::size_t>(server)]; }
  int size() const { return static_cast<int>(tables_.size()); }

  void Pull(const Ids& ids, std::int64_t step) {
    for (int s = 0; s < size(); ++s) {
      const Ids mine = Of(s, ids);
      Floats rows(mine.size() * dim());
      OrThrow((*this)[s].Pull(mine, step, kTraining, rows));
    }
  }
  void Train(const Ids& ids, std::int64_t step) {
    Pull(ids, step);
    for (int s = 0; s < size(); ++s) {
      const Ids mine = Of(s, ids);
      OrThrow((*this)[s].Apply(
          {.ids = mine, .values = GradientOf(mine, dim(), step), .scale = 0.5F, .step = step}));
    }
  }
  std::vector<std::string> Dump() {
    std::vector<std::string> all;
    for (int s = 0; s < size(); ++s) {
      const auto part = ps::Dump((*this)[s]);
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
  std::uint64_t Evicted() {
    std::uint64_t evicted = 0;
    for (int s = 0; s < size(); ++s) {
      evicted += (*this)[s].stats().evicted;
    }
    return evicted;
  }
  std::vector<std::string> Save(const std::string& folder) {
    std::vector<std::string> paths;
    for (int s = 0; s < size(); ++s) {
      paths.push_back(folder + "/rows-" + std::to_string(s) + "-of-" + std::to_string(size()));
      OrThrow(SaveRows((*this)[s], FileSystem::Local(), paths.back()));
    }
    return paths;
  }
  void Load(const std::vector<std::string>& paths) {
    for (int s = 0; s < size(); ++s) {
      OrThrow(LoadRows((*this)[s], FileSystem::Local(), paths));
    }
  }

 private:
  std::size_t dim() const { return static_cast<std::size_t>(spec_.dim); }
  Ids Of(int server, const Ids& ids) const {
    Ids mine;
    std::ranges::copy_if(ids, std::back_inserter(mine), [&](std::uint64_t id) {
      return ServerOf(BucketOf(id, spec_.buckets), size(), spec_.buckets) == server;
    });
    return mine;
  }
  TableSpec spec_;
  std::vector<std::unique_ptr<RowTable>> tables_;
};

TEST(TableSpec, BucketsAreDealtInEqualRanges) {
  for (const std::uint32_t buckets : {1U, 16U, 4096U}) {
    for (const int servers : {1, 2, 3, 7, 16, 33}) {
      std::uint32_t next = 0;
      for (int s = 0; s < servers; ++s) {
        const BucketRange range = BucketsOf(s, servers, buckets);
        EXPECT_EQ(range.begin, next);
        EXPECT_LE(range.end - range.begin, buckets / static_cast<std::uint32_t>(servers) + 1);
        for (std::uint32_t b = range.begin; b < range.end; ++b) {
          EXPECT_EQ(ServerOf(b, servers, buckets), s);
        }
        next = range.end;
      }
      EXPECT_EQ(next, buckets);
    }
  }
}

// What protobuf makes of the .proto is what is written and read here without it.
TEST(TableSpec, BytesAreThoseOfTheMessage) {
  TableSpec spec;
  spec.name = "users";
  spec.dim = std::int64_t{1} << 33;
  spec.seed = 0xFEDCBA9876543210;
  spec.optimizer = R"({"name":"adam"})";
  spec.initializer = {RowInitializer::Kind::kNormal, -0.0};
  spec.missing = TableSpec::Missing::kError;
  spec.bias_scope = TableSpec::BiasScope::kTable;
  spec.not_finite = TableSpec::NotFinite::kSkipRow;
  spec.mean_of_occurrences = true;
  spec.admit_after = 300;
  spec.admit_probability = 0.25;
  spec.time_to_live = 0xFFFFFFFF;
  spec.capacity = std::uint64_t{1} << 40;
  spec.eviction = TableSpec::Eviction::kLeastFrequent;
  spec.buckets = 16;
  spec.wire = TableSpec::Wire::kInt8;
  TableMessage message;
  message.set_name("users");
  message.set_dim(std::int64_t{1} << 33);
  message.set_seed(0xFEDCBA9876543210);
  message.set_optimizer(R"({"name":"adam"})");
  message.set_initializer(2);
  message.set_initializer_scale(-0.0);
  message.set_missing(2);
  message.set_bias_scope(1);
  message.set_not_finite(1);
  message.set_mean_of_occurrences(true);
  message.set_admit_after(300);
  message.set_admit_probability(0.25);
  message.set_time_to_live(0xFFFFFFFF);
  message.set_capacity(std::uint64_t{1} << 40);
  message.set_eviction(1);
  message.set_buckets(16);
  message.set_wire(2);
  EXPECT_EQ(ToMessage(spec), message.SerializeAsString());

  TableSpec nothing;
  nothing.admit_after = 0;
  nothing.admit_probability = 0;
  nothing.buckets = 0;
  EXPECT_EQ(ToMessage(nothing), "");
}

TEST(TableSpec, TravelsAndIsChecked) {
  TableSpec spec = SmallSpec();
  spec.capacity = 1000;
  spec.admit_after = 3;
  spec.eviction = TableSpec::Eviction::kLeastFrequent;
  spec.bias_scope = TableSpec::BiasScope::kTable;
  spec.not_finite = TableSpec::NotFinite::kSkipRow;
  spec.time_to_live = 9;
  spec.mean_of_occurrences = true;
  const std::string bytes = ToMessage(spec);
  EXPECT_EQ(OrThrow(SpecOf(bytes)), spec);
  TableSpec with_feedback = spec;  // a worker's own affair
  with_feedback.wire_feedback = 5;
  EXPECT_EQ(ToMessage(with_feedback), bytes);
  EXPECT_EQ(with_feedback.Compare(spec, "ps:0"), OkStatus());
  EXPECT_EQ(with_feedback.Fingerprint(), spec.Fingerprint());
  EXPECT_EQ(SpecOf(bytes.substr(0, 5)).status().code(), StatusCode::kDataLoss);
  TableMessage message;
  ASSERT_TRUE(message.ParseFromString(bytes));
  message.set_missing(9);
  EXPECT_EQ(SpecOf(message.SerializeAsString()).status().code(), StatusCode::kUnimplemented);

  TableSpec bad = SmallSpec(R"({"name":"magic"})");
  bad.dim = 0;
  bad.buckets = 12;
  bad.admit_probability = 0;
  const Status status = bad.Check();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("\"users\""), HasSubstr("dim is 0"), HasSubstr("buckets is 12"),
                    HasSubstr("admit_probability"), HasSubstr("magic")));
  bad = SmallSpec();
  bad.missing = TableSpec::Missing::kError;
  bad.capacity = 100;
  EXPECT_THAT(bad.Check().message(), HasSubstr("no eviction"));
  bad = SmallSpec();
  bad.wire_feedback = (std::uint64_t{1} << 31) + 1;
  EXPECT_THAT(bad.Check().message(), HasSubstr("wire_feedback is 2147483649 rows"));
  bad = SmallSpec();
  bad.missing = TableSpec::Missing::kZeros;
  EXPECT_THAT(bad.Check().message(), HasSubstr("initializer zeros"));
  bad = SmallSpec(Sgd({.global_clip_norm = 1})->config());
  EXPECT_THAT(bad.Check().message(), HasSubstr("global_clip_norm"));
  EXPECT_THAT(RowTable::Create(SmallSpec(), {3, 17}).status().message(), HasSubstr("3 to 17"));
}

// Whatever is inserted and removed, a set holds what a map holds.
TEST(RowSet, EqualsAMap) {
  for (const std::size_t floats : {std::size_t{1}, std::size_t{700}, std::size_t{20000}}) {
    const RowShape shape(floats);
    RowMemory memory;
    RowSet set;
    std::map<std::uint64_t, float> expected;
    const Philox random(floats);
    const std::uint64_t span = floats > 1000 ? 60 : 3000;
    for (std::uint64_t i = 0; i < (floats > 1000 ? 1500U : 30000U); ++i) {
      const std::uint64_t id = random.Below(span, i) << 40;
      // Grows in the first half, and shrinks in the second.
      const bool insert = random.Uniform(i, 1) < (i % 20000 < 10000 ? 0.7F : 0.3F);
      const std::uint32_t row = set.Find(HashId(id), id, shape);
      ASSERT_EQ(row != RowSet::kNone, expected.contains(id));
      if (insert && row == RowSet::kNone) {
        std::byte* const record = set.Insert(HashId(id), id, shape, memory);
        const auto value = static_cast<float>(i);
        std::memcpy(record + shape.stride - sizeof(float), &value, sizeof(value));
        expected[id] = value;
      } else if (!insert && row != RowSet::kNone) {
        set.Remove(row, shape, memory);
        expected.erase(id);
      }
      ASSERT_EQ(set.size(), expected.size());
    }
    for (const auto& [id, value] : expected) {
      const std::uint32_t row = set.Find(HashId(id), id, shape);
      ASSERT_NE(row, RowSet::kNone);
      float found = 0;
      std::memcpy(&found, set.At(row, shape) + shape.stride - sizeof(float), sizeof(found));
      EXPECT_EQ(found, value);
    }
    EXPECT_LE(memory.allocated_bytes(), (2 * expected.size() + 64) * (shape.stride + 64));
    set.Clear(shape, memory);
    EXPECT_EQ(memory.allocated_bytes(), 0U);
    EXPECT_EQ(set.Find(HashId(0), 0, shape), RowSet::kNone);
  }
}

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

TEST(RowFile, ItsHeaderIsTheMessage) {
  const testing::TempDir folder;
  const auto table = OrThrow(RowTable::Create(SmallSpec(), {4, 12}));
  OrThrow(SaveRows(*table, FileSystem::Local(), folder / "rows"));
  const auto file = OrThrow(io::RecordFile::Open(FileSystem::Local(), folder / "rows"));
  std::string record;
  OrThrow(file->Read(0, record));
  RowFileHeader header;
  header.set_version(1);
  ASSERT_TRUE(header.mutable_table()->ParseFromString(ToMessage(SmallSpec())));
  header.set_bucket_begin(4);
  header.set_bucket_end(12);
  EXPECT_EQ(record, header.SerializeAsString());
}

TEST(RowFile, IsRefusedWhereItDoesNotFit) {
  const TableSpec spec = SmallSpec(Adagrad()->config());
  Servers servers(spec, 2);
  servers.Train(ManyIds(300), 1);
  const testing::TempDir folder;
  const auto paths = servers.Save(folder.path());
  FileSystem& files = FileSystem::Local();
  const auto refused = [&](TableSpec other, const std::vector<std::string>& from, StatusCode code,
                           const std::string& what) {
    auto table = Make(other);
    const Status status = LoadRows(*table, files, from);
    EXPECT_EQ(status.code(), code) << status.ToString();
    EXPECT_THAT(status.message(), AllOf(HasSubstr(other.name), HasSubstr(what)));
    EXPECT_EQ(table->stats().rows, 0U);
    EXPECT_EQ(table->stats().row_bytes, 0U);
  };
  refused(spec, {paths[1]}, StatusCode::kNotFound, "bucket 0 is in none");
  refused(spec, {paths[0], paths[1], paths[0]}, StatusCode::kInvalidArgument, "bucket 0 is both");
  refused(spec, {paths[0], folder / "nothing"}, StatusCode::kNotFound, "nothing");
  TableSpec other = spec;
  other.name = "items";
  refused(other, paths, StatusCode::kFailedPrecondition, "name");
  other = spec;
  other.dim = 4;
  refused(other, paths, StatusCode::kFailedPrecondition, "dim is 3");
  other = spec;
  other.buckets = 32;
  refused(other, paths, StatusCode::kFailedPrecondition, "buckets");
  other = spec;
  other.seed = 8;
  refused(other, paths, StatusCode::kFailedPrecondition, "seed");
  other = spec;
  other.optimizer = RowWiseAdagradConfig();
  refused(other, paths, StatusCode::kFailedPrecondition, "slots");
  // Another rate is no other table.
  other = spec;
  other.optimizer = Adagrad({.learning_rate = 0.5})->config();
  auto table = Make(other);
  OrThrow(LoadRows(*table, files, paths));
  EXPECT_EQ(Dump(*table), servers.Dump());
  EXPECT_EQ(LoadRows(*table, files, paths).code(), StatusCode::kFailedPrecondition)
      << "the table has rows";

  // Every flipped byte and every cut is found.
  const std::string good = OrThrow(ReadFile(files, paths[0]));
  for (std::size_t at = 0; at < good.size(); at += 1 + good.size() / 97) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x40);
    OrThrow(WriteFileAtomically(files, folder / "bad", bad));
    refused(spec, {folder / "bad", paths[1]}, StatusCode::kDataLoss, "bad");
    OrThrow(WriteFileAtomically(files, folder / "bad", good.substr(0, at)));
    refused(spec, {folder / "bad", paths[1]}, StatusCode::kDataLoss, "bad");
  }
}

TEST(RowFile, AFailedSaveLeavesTheOldFile) {
  const TableSpec spec = SmallSpec();
  auto table = Make(spec);
  Pull(*table, ManyIds(200));
  const testing::TempDir folder;
  const std::string path = folder / "rows";
  OrThrow(SaveRows(*table, FileSystem::Local(), path));
  const std::string old = OrThrow(ReadFile(FileSystem::Local(), path));
  Pull(*table, ManyIds(300, 2));
  int operations = 0;
  testing::FaultyFileSystem counting([&](std::string_view, const std::string&) {
    ++operations;
    return OkStatus();
  });
  OrThrow(SaveRows(*table, counting, folder / "elsewhere"));
  ASSERT_GT(operations, 4);
  const std::string fresh = OrThrow(ReadFile(FileSystem::Local(), folder / "elsewhere"));
  ASSERT_NE(fresh, old);
  for (int fatal = 0; fatal < operations; ++fatal) {
    int operation = 0;
    bool renamed = false;
    testing::FaultyFileSystem faulty([&](std::string_view what, const std::string&) {
      if (operation++ == fatal) {
        return ResourceExhausted("disk full");
      }
      renamed = renamed || what == "rename";
      return OkStatus();
    });
    const Status status = SaveRows(*table, faulty, path);
    EXPECT_THAT(status.message(), HasSubstr("disk full")) << "operation " << fatal;
    EXPECT_EQ(OrThrow(ReadFile(FileSystem::Local(), path)), renamed ? fresh : old);
  }
  OrThrow(SaveRows(*table, FileSystem::Local(), path));
  EXPECT_EQ(OrThrow(ReadFile(FileSystem::Local(), path)), fresh);
}

// ---- Late gradients ----------------------------------------------------------------------------

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
}  // namespace cohort::ps
