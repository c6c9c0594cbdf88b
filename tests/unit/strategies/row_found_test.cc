// What a pull found, given to the update of the same ids: whatever happened to the table between
// them, the effect is that of an update that sorts and searches by itself.

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/core/zipf.h>
#include <cohort/optim/optimizers.h>

#include "parameter_server/rows/row_table.h"

namespace cohort::ps {
namespace {

using Ids = std::vector<std::uint64_t>;
using Floats = std::vector<float>;
constexpr std::size_t kDim = 5;

TableSpec Spec() {
  TableSpec spec;
  spec.name = "users";
  spec.dim = kDim;
  spec.seed = 7;
  spec.optimizer = Adagrad({.learning_rate = 0.5})->config();
  spec.initializer = {RowInitializer::Kind::kUniform, 0.5};
  spec.buckets = 16;
  return spec;
}

// Two tables that are told the same, of which one is given what its pulls found.
class Pair {
 public:
  explicit Pair(const TableSpec& spec)
      : plain_(OrThrow(RowTable::Create(spec, {0, spec.buckets}))),
        hinted_(OrThrow(RowTable::Create(spec, {0, spec.buckets}))) {}

  RowTable& hinted() { return *hinted_; }

  void Pull(const Ids& ids, std::int64_t step) {
    Floats expected(ids.size() * kDim);
    Floats rows(expected.size());
    OrThrow(plain_->Pull(ids, step, RowTable::Purpose::kTraining, expected));
    OrThrow(hinted_->Pull(ids, step, RowTable::Purpose::kTraining, rows, {}, &found_));
    EXPECT_EQ(rows, expected) << "step " << step;
  }
  void Apply(const Ids& ids, std::int64_t step) {
    Floats values;
    for (std::size_t i = 0; i < ids.size() * kDim; ++i) {
      values.push_back(Philox(static_cast<std::uint64_t>(step)).Uniform(i) - 0.5F);
    }
    OrThrow(plain_->Apply({.ids = ids, .values = values, .step = step}));
    OrThrow(hinted_->Apply({.ids = ids, .values = values, .step = step, .found = &found_}));
  }
  std::uint64_t uses() const { return found_.uses(); }
  void OnBoth(const std::function<void(RowTable&)>& change) {
    change(*plain_);
    change(*hinted_);
  }
  void ExpectSame(const std::string& when) const {
    for (std::uint32_t b = 0; b < plain_->spec().buckets; ++b) {
      EXPECT_EQ(hinted_->DumpBucket(b), plain_->DumpBucket(b)) << when << ", bucket " << b;
    }
    EXPECT_EQ(hinted_->stats().updates, plain_->stats().updates) << when;
    EXPECT_EQ(hinted_->stats().rows, plain_->stats().rows) << when;
  }

 private:
  std::unique_ptr<RowTable> plain_;
  std::unique_ptr<RowTable> hinted_;
  RowTable::Found found_;
};

// Popular ones many times.
Ids Drawn(std::size_t count, std::uint64_t seed) {
  const Philox philox(seed);
  const Zipf zipf(2000, 0.8);
  std::uint64_t next = 0;
  const auto uniform = [&] { return double{philox.Uniform(next++)}; };
  Ids ids;
  while (ids.size() < count) {
    ids.push_back(zipf(uniform) * 0x9E3779B97F4A7C15ULL);
  }
  return ids;
}

TEST(RowFound, HasTheEffectOfASearch) {
  Pair tables(Spec());
  for (std::int64_t step = 1; step <= 20; ++step) {
    const Ids ids = Drawn(step % 5 == 0 ? 7 : 700, static_cast<std::uint64_t>(step));
    tables.Pull(ids, step);
    tables.Apply(ids, step);
    tables.ExpectSame("step " + std::to_string(step));
  }
  EXPECT_EQ(tables.uses(), 20U);
}

TEST(RowFound, IsLeftAloneByOtherIds) {
  Pair tables(Spec());
  const Ids ids = Drawn(300, 1);
  Ids others = Drawn(300, 2);
  tables.Pull(ids, 1);
  tables.Apply(others, 1);
  others = ids;
  others.back() += 1;  // the last one only
  tables.Apply(others, 2);
  others.pop_back();
  tables.Apply(others, 3);
  tables.Apply({}, 4);
  EXPECT_EQ(tables.uses(), 0U);
  tables.Apply(ids, 5);  // those that were pulled, at last
  EXPECT_EQ(tables.uses(), 1U);
  tables.ExpectSame("other ids");
}

TEST(RowFound, IsAHintWhereRowsMovedOrWent) {
  TableSpec spec = Spec();
  spec.time_to_live = 3;
  Pair tables(spec);
  const Ids old = Drawn(600, 1);
  tables.Pull(old, 1);
  const Ids ids = Drawn(600, 2);
  tables.Pull(ids, 5);
  std::uint64_t evicted = 0;
  tables.OnBoth([&](RowTable& table) { evicted = OrThrow(table.EvictExpired(6)); });
  ASSERT_GT(evicted, 0u) << "no row has another number now";
  tables.Apply(ids, 6);
  tables.ExpectSame("after an eviction");

  tables.Pull(ids, 7);
  const std::string bucket = tables.hinted().DumpBucket(3);
  tables.OnBoth([&](RowTable& table) { table.Clear(); });
  tables.Apply(ids, 7);
  tables.ExpectSame("after Clear");

  tables.Pull(ids, 8);
  tables.OnBoth([&](RowTable& table) { OrThrow(table.RestoreBucket(3, bucket)); });
  tables.Apply(ids, 8);
  tables.ExpectSame("after RestoreBucket");
}

TEST(RowFound, KeepsWhatASnapshotNeeds) {
  Pair tables(Spec());
  const Ids ids = Drawn(500, 1);
  tables.Pull(ids, 1);
  std::vector<std::string> before;
  for (std::uint32_t b = 0; b < 16; ++b) {
    before.push_back(tables.hinted().DumpBucket(b));
  }
  tables.OnBoth([](RowTable& table) { table.Freeze(); });
  tables.Apply(ids, 1);
  for (std::uint32_t b = 0; b < 16; ++b) {
    EXPECT_EQ(OrThrow(tables.hinted().DumpFrozen(b)), before[b]) << "bucket " << b;
  }
  tables.OnBoth([](RowTable& table) { table.Thaw(); });
  tables.ExpectSame("after Thaw");
}

TEST(RowFound, OfACapacityThatIsReachedMeanwhile) {
  TableSpec spec = Spec();
  spec.capacity = 160;  // 10 rows in each bucket, of about 100
  Pair tables(spec);
  for (std::int64_t step = 1; step <= 10; ++step) {
    const Ids ids = Drawn(400, static_cast<std::uint64_t>(step));
    tables.Pull(ids, step);
    tables.Apply(ids, step);
    tables.ExpectSame("step " + std::to_string(step));
  }
}

TEST(HashId, IsUndoneByIdOfHash) {
  for (const std::uint64_t id : {0ULL, 1ULL, 2ULL, 0xFFFFFFFFFFFFFFFFULL, 0x8000000000000000ULL}) {
    EXPECT_EQ(IdOfHash(HashId(id)), id);
  }
  for (const std::uint64_t id : Drawn(1000, 3)) {
    EXPECT_EQ(IdOfHash(HashId(id)), id);
    EXPECT_EQ(HashId(IdOfHash(id)), id);
  }
}

}  // namespace
}  // namespace cohort::ps
