// A table under several threads: nothing that is sent is lost or counted twice, whatever pulls,
// evictions, first touches and saves run beside it.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>

#include "parameter_server/rows/row_table.h"

namespace cohort::ps {
namespace {

constexpr std::size_t kDim = 4;
constexpr int kThreads = 4;
constexpr int kCalls = 150;
constexpr std::size_t kIds = 97;  // of a call

TableSpec Spec() {
  TableSpec spec;
  spec.name = "items";
  spec.dim = kDim;
  spec.optimizer = Sgd({.learning_rate = 1})->config();
  spec.buckets = 8;
  return spec;
}

// Each thread pushes whole numbers: sums are exact, so that one lost update shows.
struct Sent {
  std::map<std::uint64_t, double> by_id;
  double total = 0;
};

Sent PushFrom(RowTable& table, int thread, std::uint64_t span) {
  Sent sent;
  const Philox random(static_cast<std::uint64_t>(thread) + 100);
  std::vector<std::uint64_t> ids(kIds);
  std::vector<float> values(kIds * kDim);
  for (int call = 0; call < kCalls; ++call) {
    for (std::size_t i = 0; i < kIds; ++i) {
      const std::uint64_t draw = static_cast<std::uint64_t>(call) * kIds + i;
      ids[i] = random.Below(span, draw);
      for (std::size_t k = 0; k < kDim; ++k) {
        values[i * kDim + k] = static_cast<float>(random.Below(5, draw, k + 1));
        sent.by_id[ids[i]] += values[i * kDim + k];
        sent.total += values[i * kDim + k];
      }
    }
    OrThrow(table.Apply({.ids = ids, .values = values, .step = call + 1}));
  }
  return sent;
}

// Runs `work(0)`... on threads of their own, and `beside` until they are done.
template <typename Work, typename Beside>
void RunBeside(const Work& work, const Beside& beside) {
  std::atomic<int> running{kThreads};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      work(t);
      running.fetch_sub(1);
    });
  }
  std::thread other([&] {
    do {
      beside();
    } while (running.load() > 0);
  });
  for (std::thread& thread : threads) {
    thread.join();
  }
  other.join();
}

double SumOf(std::span<const float> values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

TEST(RowTableThreads, EverythingSentIsAppliedOnce) {
  auto table = OrThrow(RowTable::Create(Spec(), {0, 8}));
  std::vector<Sent> sent(kThreads);
  std::atomic<int> dumps{0};
  RunBeside(
      [&](int t) { sent[static_cast<std::size_t>(t)] = PushFrom(*table, t, 500); },
      [&] {
        std::vector<std::uint64_t> ids(64);
        std::iota(ids.begin(), ids.end(), std::uint64_t{0});
        std::vector<float> rows(64 * kDim);
        OrThrow(table->Pull(ids, 1, RowTable::Purpose::kTraining, rows));
        static_cast<void>(table->DumpBucket(static_cast<std::uint32_t>(dumps.fetch_add(1) % 8)));
        static_cast<void>(table->stats());
      });
  std::map<std::uint64_t, double> expected;
  for (const Sent& part : sent) {
    for (const auto& [id, sum] : part.by_id) {
      expected[id] += sum;
    }
  }
  EXPECT_GT(expected.size(), 490U);
  for (const auto& [id, sum] : expected) {
    std::vector<float> row(kDim);
    OrThrow(table->Pull(std::span(&id, 1), 1, RowTable::Purpose::kReading, row));
    ASSERT_EQ(SumOf(row), -sum) << "id " << id;
  }
  EXPECT_EQ(table->stats().rows, expected.size());
}

// A record is one thing: its elements are never of two updates.
TEST(RowTableThreads, ARowIsNeverReadHalfUpdated) {
  auto table = OrThrow(RowTable::Create(Spec(), {0, 8}));
  const std::vector<std::uint64_t> ids{1, 2, 3, 4, 5, 6, 7, 8};
  std::atomic<std::uint64_t> torn{0};
  RunBeside(
      [&](int) {
        const std::vector<float> ones(ids.size() * kDim, 1.0F);
        for (int call = 0; call < kCalls; ++call) {
          OrThrow(table->Apply({.ids = ids, .values = ones}));
        }
      },
      [&] {
        std::vector<float> rows(ids.size() * kDim);
        OrThrow(table->Pull(ids, 1, RowTable::Purpose::kTraining, rows));
        for (std::size_t i = 0; i < rows.size(); ++i) {
          torn += rows[i] == rows[i / kDim * kDim] ? 0U : 1U;
        }
      });
  EXPECT_EQ(torn.load(), 0U);
  std::vector<float> row(kDim);
  OrThrow(table->Pull(std::span(ids).first(1), 1, RowTable::Purpose::kReading, row));
  EXPECT_EQ(row[0], -static_cast<float>(kThreads * kCalls));
}

TEST(RowTableThreads, WhatIsEvictedAndWhatIsLeftIsWhatWasSent) {
  TableSpec spec = Spec();
  spec.capacity = 64;
  spec.time_to_live = 3;
  std::mutex mutex;
  double evicted = 0;
  auto table = OrThrow(
      RowTable::Create(spec, {0, 8}, [&](std::uint64_t /*id*/, std::span<const float> weights) {
        const std::lock_guard lock(mutex);
        evicted += SumOf(weights);
      }));
  std::vector<Sent> sent(kThreads);
  std::atomic<std::int64_t> now{1};
  RunBeside(
      [&](int t) { sent[static_cast<std::size_t>(t)] = PushFrom(*table, t, 2000); },
      [&] {
        OrThrow(table->EvictExpired(now.fetch_add(1) % kCalls + 1));
        const std::uint64_t id = static_cast<std::uint64_t>(now.load()) * 7 % 2000;
        std::vector<float> row(kDim);
        OrThrow(table->Pull(std::span(&id, 1), now.load(), RowTable::Purpose::kTraining, row));
      });
  double total = 0;
  for (const Sent& part : sent) {
    total += part.total;
  }
  double left = 0;
  for (std::uint64_t id = 0; id < 2000; ++id) {
    std::vector<float> row(kDim);
    OrThrow(table->Pull(std::span(&id, 1), 1, RowTable::Purpose::kReading, row));
    left += SumOf(row);
  }
  EXPECT_EQ(left + evicted, -total);
  const TableStats stats = table->stats();
  EXPECT_GT(stats.evicted, 1000U);
  EXPECT_LE(stats.rows, 64U);
  EXPECT_EQ(stats.created, stats.rows + stats.evicted);
}

// A row that is evicted and made again while its bucket is saved has the slots of its new life. All
// gradients are 1, so that how often a row was updated tells its weights and its momentum.
TEST(RowTableThreads, ADumpBesideEvictionHasWholeRows) {
  TableSpec spec = Spec();
  const auto rule = Sgd({.learning_rate = 0.0625, .momentum = 0.5});
  spec.optimizer = rule->config();
  spec.capacity = 64;
  spec.time_to_live = 3;
  auto table = OrThrow(RowTable::Create(spec, {0, 8}));
  struct Saved {
    std::uint32_t bucket;
    std::string bytes;
  };
  std::vector<Saved> dumps;
  std::int64_t now = 1;
  RunBeside(
      [&](int t) {
        const Philox random(static_cast<std::uint64_t>(t));
        std::vector<std::uint64_t> ids(20);
        for (int call = 0; call < kCalls; ++call) {
          for (std::uint64_t i = 0; i < ids.size(); ++i) {
            ids[i] = random.Below(100, static_cast<std::uint64_t>(call) * ids.size() + i);
          }
          std::sort(ids.begin(), ids.end());
          const auto end = std::unique(ids.begin(), ids.end());
          const std::span once(ids.begin(), end);
          OrThrow(table->Apply({.ids = once,
                                .values = std::vector<float>(once.size() * kDim, 1.0F),
                                .step = call + 1}));
        }
      },
      [&] {
        OrThrow(table->EvictExpired(now++ % kCalls + 1));
        const auto bucket = static_cast<std::uint32_t>(now % 8);
        dumps.push_back({bucket, table->DumpBucket(bucket)});
        if (dumps.size() > 200) {
          dumps.erase(dumps.begin());
        }
      });
  EXPECT_GT(table->stats().evicted, 500U);
  dumps.push_back({0, table->DumpBucket(0)});
  // After each number of updates.
  std::vector<float> weights{0};
  {
    float value = 0;
    float momentum = 0;
    const float one = 1;
    const std::span<float> slot(&momentum, 1);
    for (int n = 1; n <= kThreads * kCalls + 1; ++n) {
      rule->Apply({.value = std::span(&value, 1),
                   .gradient = std::span(&one, 1),
                   .slots = std::span(&slot, 1),
                   .step = n});
      weights.push_back(value);
    }
  }
  std::size_t rows = 0;
  for (const Saved& dump : dumps) {
    auto restored = OrThrow(RowTable::Create(spec, {0, 8}));
    OrThrow(restored->RestoreBucket(dump.bucket, dump.bytes));
    for (std::uint64_t id = 0; id < 100; ++id) {
      std::vector<float> row(kDim);
      OrThrow(restored->Pull(std::span(&id, 1), 1, RowTable::Purpose::kReading, row));
      const auto n = std::find(weights.begin(), weights.end(), row[0]);
      ASSERT_NE(n, weights.end()) << row[0];
      ASSERT_EQ(row, std::vector<float>(kDim, row[0]));
      if (n == weights.begin()) {
        continue;  // it is in another bucket, or evicted
      }
      ++rows;
      const std::vector<float> ones(kDim, 1.0F);
      OrThrow(restored->Apply({.ids = std::span(&id, 1), .values = ones, .step = kCalls}));
      OrThrow(restored->Pull(std::span(&id, 1), 1, RowTable::Purpose::kReading, row));
      ASSERT_EQ(row[0], *(n + 1)) << "weights and momentum are of different lives";
    }
  }
  EXPECT_GT(rows, 0U);
}

TEST(RowTableThreads, GradientsOfIdsThatAreNotAdmittedAreCounted) {
  TableSpec spec = Spec();
  spec.admit_after = 40;
  auto table = OrThrow(RowTable::Create(spec, {0, 8}));
  std::atomic<std::uint64_t> merged{0};
  RunBeside(
      [&](int t) {
        const Philox random(static_cast<std::uint64_t>(t));
        for (int call = 0; call < kCalls; ++call) {
          std::vector<std::uint64_t> ids;
          for (std::uint64_t i = 0; i < 50; ++i) {
            ids.push_back(random.Below(300, static_cast<std::uint64_t>(call) * 50 + i));
          }
          merged += std::set<std::uint64_t>(ids.begin(), ids.end()).size();
          OrThrow(table->Apply({.ids = ids, .values = std::vector<float>(50 * kDim, 1.0F)}));
        }
      },
      [&] { static_cast<void>(table->stats()); });
  const TableStats stats = table->stats();
  EXPECT_EQ(stats.updates + stats.dropped, merged.load());
  EXPECT_EQ(stats.rows + stats.candidates, 300U);
  EXPECT_GT(stats.rows, 100U);
}

// What may happen to rows: first touches, updates, capacity, time to live, admission.
std::vector<TableSpec> SpecsThatMoveRows() {
  std::vector<TableSpec> specs(4, Spec());
  specs[1].capacity = 256;
  specs[2].time_to_live = 3;
  specs[3].admit_after = 4;
  specs[3].optimizer = Adagrad({.learning_rate = 1})->config();
  return specs;
}

std::vector<std::string> DumpsOf(const RowTable& table) {
  std::vector<std::string> dumps;
  for (std::uint32_t b = table.range().begin; b < table.range().end; ++b) {
    dumps.push_back(table.DumpBucket(b));
  }
  return dumps;
}

TEST(RowTableThreads, ASnapshotIsTheTableAsItWasWhateverIsWrittenMeanwhile) {
  for (const TableSpec& spec : SpecsThatMoveRows()) {
    auto table = OrThrow(RowTable::Create(spec, {0, 8}));
    for (std::uint64_t span : {400U, 700U}) {  // some rows of the second are new
      PushFrom(*table, static_cast<int>(span), span);
      const std::vector<std::string> before = DumpsOf(*table);
      std::uint64_t bytes = 0;
      for (const std::string& dump : before) {
        bytes += dump.size();
      }
      const TableStats there = table->stats();
      bytes += 4 * (there.rows + there.candidates);  // the marks of changes, which no dump has
      table->Freeze();
      std::atomic<std::uint64_t> most{0};
      std::atomic<std::uint32_t> others{0};
      std::atomic<std::uint32_t> dumps{0};
      RunBeside([&](int t) { PushFrom(*table, t, 2 * span); },
                [&] {
                  const std::uint32_t b = dumps.fetch_add(1) % 8;
                  others += OrThrow(table->DumpFrozen(b)) == before[b] ? 0U : 1U;
                  OrThrow(table->EvictExpired(dumps.load() % kCalls + 1));
                  std::vector<std::uint64_t> ids(64);
                  std::iota(ids.begin(), ids.end(), std::uint64_t{dumps.load()});
                  std::vector<float> rows(64 * kDim);
                  OrThrow(table->Pull(ids, 7, RowTable::Purpose::kTraining, rows));
                  most = std::max(most.load(), table->kept_bytes());
                });
      most = std::max(most.load(), table->kept_bytes());
      EXPECT_EQ(others.load(), 0U);
      EXPECT_GT(most.load(), 0U);
      EXPECT_LE(most.load(), bytes) << "at most one copy of what was there";
      for (std::uint32_t b = 0; b < 8; ++b) {
        EXPECT_EQ(OrThrow(table->DumpFrozen(b)), before[b]);
        EXPECT_NE(table->DumpBucket(b), before[b]) << "nothing was written";
        table->Thaw(b + 1);
        EXPECT_EQ(table->DumpFrozen(b).status().code(), StatusCode::kFailedPrecondition);
      }
      EXPECT_EQ(table->kept_bytes(), 0U);
      table->Thaw();
    }
  }
}

TEST(RowTableThreads, ASnapshotLeavesNoTraceInTheTable) {
  for (const TableSpec& spec : SpecsThatMoveRows()) {
    auto one = OrThrow(RowTable::Create(spec, {0, 8}));
    auto other = OrThrow(RowTable::Create(spec, {0, 8}));
    for (int part = 0; part < 6; ++part) {
      if (part % 3 != 0) {
        one->Freeze();  // also before the last one is thawed
      }
      for (RowTable* const table : {one.get(), other.get()}) {
        PushFrom(*table, part, 500);
        OrThrow(table->EvictExpired(10 * part + 1));
      }
      if (part % 3 == 1) {
        one->Thaw(5);
        EXPECT_GT(one->kept_bytes(), 0U);
        one->Thaw();
        EXPECT_EQ(one->kept_bytes(), 0U);
        EXPECT_FALSE(one->DumpFrozen(7).ok());
      }
      EXPECT_EQ(DumpsOf(*one), DumpsOf(*other)) << part;
    }
    const std::vector<std::string> before = DumpsOf(*one);
    one->Freeze();
    OrThrow(one->RestoreBucket(3, other->DumpBucket(3)));
    one->Clear();
    for (std::uint32_t b = 0; b < 8; ++b) {
      EXPECT_EQ(OrThrow(one->DumpFrozen(b)), before[b]) << "also when all goes";
    }
  }
}

}  // namespace
}  // namespace cohort::ps
