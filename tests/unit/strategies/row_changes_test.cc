// What changes between snapshots, put together, is the table: bit by bit, whatever happened.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>

#include "parameter_server/rows/row_changes.h"
#include "parameter_server/rows/row_file.h"
#include "parameter_server/rows/row_table.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using ::testing::HasSubstr;

constexpr std::uint32_t kBuckets = 8;
constexpr std::size_t kDim = 3;

RowShape ShapeOf(const TableSpec& spec) {
  const auto rule = OrThrow(RowOptimizer::Make(spec.optimizer));
  return RowShape(kDim + rule->slot_floats(kDim));
}

// First touches, updates, capacity, time to live, admission, each with slots of its own.
std::vector<TableSpec> Specs() {
  TableSpec spec;
  spec.name = "items";
  spec.dim = kDim;
  spec.buckets = kBuckets;
  spec.initializer = {RowInitializer::Kind::kNormal, 0.1};
  spec.optimizer = Adam({.learning_rate = 0.01})->config();
  std::vector<TableSpec> specs(4, spec);
  specs[1].capacity = 256;
  specs[1].optimizer = Sgd({.learning_rate = 1})->config();
  specs[2].time_to_live = 6;
  specs[2].optimizer = Ftrl({.learning_rate = 0.1})->config();
  specs[3].admit_after = 3;
  specs[3].time_to_live = 9;
  return specs;
}

// `calls` pushes of random ids, and pulls of others.
void Train(RowTable& table, std::uint64_t seed, int calls, std::uint64_t span) {
  const Philox random(seed, "calls");
  for (int call = 0; call < calls; ++call) {
    std::vector<std::uint64_t> ids(31);
    std::vector<float> values(ids.size() * kDim);
    const std::int64_t step = static_cast<std::int64_t>(seed) * 5 + call + 1;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = random.Below(span, static_cast<std::uint64_t>(call), i);
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = random.Normal(static_cast<std::uint64_t>(call) * 1000 + i, 1);
    }
    OrThrow(table.Pull(ids, step, RowTable::Purpose::kTraining, values));
    OrThrow(table.Apply({.ids = ids, .values = values, .step = step}));
    OrThrow(table.EvictWhenDue(step).status());
  }
}

TEST(RowChangesTest, AChainOfChangesIsTheTableAtEachSnapshot) {
  for (const TableSpec& spec : Specs()) {
    const RowShape shape = ShapeOf(spec);
    auto table = OrThrow(RowTable::Create(spec, {0, kBuckets}));
    std::vector<std::string> chain(kBuckets);  // what the changes add up to
    std::size_t lists = 0;
    std::size_t smaller = 0;
    for (std::uint32_t snapshot = 1; snapshot <= 12; ++snapshot) {
      // Few calls, many, and none.
      Train(*table, snapshot, snapshot % 4 == 0 ? 0 : snapshot % 3 == 0 ? 60 : 3, 900);
      table->Freeze();
      ASSERT_EQ(table->snapshots(), snapshot);
      // Others go on, as they do while the changes are written.
      std::thread others([&] { Train(*table, 1000 + snapshot, 10, 900); });
      for (std::uint32_t b = 0; b < kBuckets; ++b) {
        const std::string whole = OrThrow(table->DumpFrozen(b));
        if (snapshot == 1) {
          chain[b] = whole;
          continue;
        }
        const std::string changes = OrThrow(table->DumpFrozenSince(b, snapshot - 1));
        lists += IsChanges(changes) ? 1 : 0;
        smaller += changes.size() < whole.size() ? 1 : 0;
        chain[b] = IsChanges(changes) ? OrThrow(ApplyChanges(chain[b], changes, shape)) : changes;
        ASSERT_EQ(chain[b], whole) << "bucket " << b << " at snapshot " << snapshot;
        ASSERT_EQ(OrThrow(table->DumpFrozen(b)), whole);
      }
      others.join();
      table->Thaw();
    }
    EXPECT_GT(lists, 30U) << spec.optimizer;
    EXPECT_GT(smaller, 5U) << spec.optimizer;
  }
}

TEST(RowChangesTest, ChangesAreKnownSinceTheLastSnapshotsOnly) {
  const TableSpec spec = Specs()[0];
  const RowShape shape = ShapeOf(spec);
  auto table = OrThrow(RowTable::Create(spec, {0, kBuckets}));
  std::vector<std::string> at(1);  // bucket 3 at each snapshot
  for (std::uint32_t snapshot = 1; snapshot <= 6; ++snapshot) {
    Train(*table, snapshot, 3, 300);
    table->Freeze();
    at.push_back(OrThrow(table->DumpFrozen(3)));
    for (std::uint32_t since = 1; since < snapshot; ++since) {
      const std::string changes = OrThrow(table->DumpFrozenSince(3, since));
      EXPECT_EQ(IsChanges(changes), snapshot - since < RowTable::kRemembered) << since;
      EXPECT_EQ(IsChanges(changes) ? OrThrow(ApplyChanges(at[since], changes, shape)) : changes,
                at[snapshot]);
    }
    table->Thaw();
  }
  // What was filled anew is not known as changes; its neighbours are.
  OrThrow(table->RestoreBucket(3, at[2]));
  table->Freeze();
  EXPECT_EQ(OrThrow(table->DumpFrozenSince(3, 6)), at[2]);
  EXPECT_TRUE(IsChanges(OrThrow(table->DumpFrozenSince(4, 6))));
  table->Freeze();
  const std::string changes = OrThrow(table->DumpFrozenSince(3, 7));
  EXPECT_TRUE(IsChanges(changes));
  EXPECT_EQ(OrThrow(ApplyChanges(at[2], changes, shape)), at[2]);
}

TEST(RowChangesTest, MoreRemovalsThanRowsAreTheWholeBucket) {
  TableSpec spec = Specs()[0];
  spec.time_to_live = 1;
  spec.buckets = 1;
  auto table = OrThrow(RowTable::Create(spec, {0, 1}));
  table->Freeze();
  const std::uint64_t before = table->stats().overhead_bytes;
  for (std::int64_t step = 1; step <= 200; ++step) {
    std::vector<std::uint64_t> ids(50);
    std::iota(ids.begin(), ids.end(), static_cast<std::uint64_t>(step) * 50);
    std::vector<float> rows(ids.size() * kDim);
    OrThrow(table->Pull(ids, 2 * step, RowTable::Purpose::kTraining, rows));
    OrThrow(table->EvictExpired(2 * step));
  }
  EXPECT_EQ(table->stats().rows, 50U);
  EXPECT_LT(table->stats().overhead_bytes, before + 64 * 1024) << "10,000 went";
  table->Freeze();
  EXPECT_FALSE(IsChanges(OrThrow(table->DumpFrozenSince(0, 1))));
}

TEST(RowChangesTest, DamageIsSaid) {
  const TableSpec spec = Specs()[1];
  const RowShape shape = ShapeOf(spec);
  auto table = OrThrow(RowTable::Create(spec, {0, kBuckets}));
  Train(*table, 1, 5, 400);
  table->Freeze();
  const std::string dump = OrThrow(table->DumpFrozen(2));
  const std::string other = OrThrow(table->DumpFrozen(3));
  Train(*table, 2, 5, 400);
  table->Freeze();
  const std::string changes = OrThrow(table->DumpFrozenSince(2, 1));
  ASSERT_TRUE(IsChanges(changes));
  OrThrow(ApplyChanges(dump, changes, shape));
  for (std::size_t bytes = 0; bytes < changes.size(); ++bytes) {
    EXPECT_EQ(ApplyChanges(dump, changes.substr(0, bytes), shape).status().code(),
              StatusCode::kDataLoss);
  }
  for (std::size_t bytes = 0; bytes < dump.size(); ++bytes) {
    EXPECT_EQ(ApplyChanges(dump.substr(0, bytes), changes, shape).status().code(),
              StatusCode::kDataLoss);
  }
  EXPECT_EQ(ApplyChanges(dump, changes + "x", shape).status().code(), StatusCode::kDataLoss);
  EXPECT_THAT(ApplyChanges(other, changes, shape).status().message(), HasSubstr("bucket 2"));
  EXPECT_EQ(ApplyChanges(dump, dump, shape).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(ApplyChanges(changes, changes, shape).status().code(), StatusCode::kDataLoss);
}

TEST(RowChangesTest, AChainOfFilesIsRead) {
  const testing::TempDir dir;
  FileSystem& files = FileSystem::Local();
  const TableSpec spec = Specs()[2];
  auto table = OrThrow(RowTable::Create(spec, {0, kBuckets}));
  std::vector<std::string> paths;
  for (std::uint32_t snapshot = 1; snapshot <= 3; ++snapshot) {
    Train(*table, snapshot, 10, 400);
    table->Freeze();
    paths.push_back(dir / std::to_string(snapshot));
    const auto writer =
        OrThrow(RowFileWriter::Create(files, paths.back(), spec, {0, kBuckets},
                                      snapshot == 1 ? RowFileKind::kRows : RowFileKind::kChanges));
    for (std::uint32_t b = 0; b < kBuckets; ++b) {
      OrThrow(writer->Write(
          OrThrow(snapshot == 1 ? table->DumpFrozen(b) : table->DumpFrozenSince(b, snapshot - 1))));
    }
    OrThrow(writer->Close());
  }
  const auto loaded = OrThrow(RowTable::Create(spec, {0, kBuckets}));
  OrThrow(LoadChain(*loaded, files, paths));
  for (std::uint32_t b = 0; b < kBuckets; ++b) {
    EXPECT_EQ(loaded->DumpBucket(b), OrThrow(table->DumpFrozen(b)));
  }
  loaded->Clear();
  // Each file alone, or in another order, says what is wrong with it.
  const auto expect = [&](std::vector<std::string> chain, const std::string& naming) {
    const Status status = LoadChain(*loaded, files, chain);
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.message();
    EXPECT_THAT(status.message(), HasSubstr(naming));
    EXPECT_EQ(loaded->stats().rows, 0U);
  };
  expect({paths[1]}, paths[1] + " has the changes since an earlier file");
  expect({paths[1], paths[0]}, paths[1]);
  expect({paths[0], paths[0]}, paths[0] + " has all rows");
}

}  // namespace
}  // namespace cohort::ps
