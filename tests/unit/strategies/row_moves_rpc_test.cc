// Buckets that move between servers, and files of changes, over real connections: what is sent is
// applied once, whatever moves, is lost on the way or repeated.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <thread>

#include <cohort/core/metrics.h>
#include <cohort/core/random.h>
#include <cohort/core/zipf.h>

#include "parameter_server/rows/bucket_balance.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_file.h"
#include "parameter_server/variables/client.h"
#include "row_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDir;

// Pushes from three workers, while `beside` runs over and over; then what is there is what was
// sent.
template <typename Beside>
void ExpectConservation(const Cluster& cluster, int steps, const Beside& beside) {
  std::vector<Worker> workers(3);
  TrainBeside(cluster, workers, steps, beside);
  std::map<std::uint64_t, Row> sent;
  for (const Worker& worker : workers) {
    for (const auto& [id, row] : worker.sent) {
      Row& sum = sent.try_emplace(id, Row{.weights = std::vector<float>(kDim)}).first->second;
      sum.updates += row.updates;
      for (std::size_t k = 0; k < kDim; ++k) {
        sum.weights[k] += row.weights[k];
      }
    }
  }
  // Who has never been told where buckets went, and finds them.
  const auto reader = cluster.NewChief();
  const std::map<std::uint64_t, Row> there = RowsOf(*reader);
  ASSERT_EQ(there.size(), sent.size());
  for (const auto& [id, row] : sent) {
    ASSERT_EQ(there.at(id).updates, row.updates) << "id " << id;
    ASSERT_EQ(there.at(id).weights, row.weights) << "id " << id;
  }
  ExpectEachBucketOnce(*reader);
}

// F24.
TEST(RowMovesTest, NothingIsLostOrDoubledWhileBucketsMove) {
  const Cluster cluster(3);
  RandomMoves moves(cluster, 5);
  ExpectConservation(cluster, 300, [&] { moves.Move(); });
  EXPECT_GT(moves.moves(), 100U);
}

TEST(RowMovesTest, NorWhereConnectionsBreakAsWell) {
  const Cluster cluster(3, 0.01);
  RandomMoves moves(cluster, 6);
  ExpectConservation(cluster, 200, [&] { moves.Move(); });
  EXPECT_GT(moves.moves(), 100U);
  EXPECT_GT(cluster.lost(), 10) << "of 1 % of what is read";
}

// Frames of several tables, sent again where connections break: each counts once, of each table.
TEST(RowMovesTest, NothingOfSeveralTablesIsLostOrDoubledWhereConnectionsBreak) {
  constexpr std::size_t kTables = 6;
  std::vector<TableSpec> more;
  for (std::size_t t = 1; t < kTables; ++t) {
    more.push_back(SumsTable());
    more.back().name += std::to_string(t);
  }
  const Cluster cluster(2, 0.02, SumsTable(), /*proxies=*/true, more);
  constexpr std::uint64_t kIds = 50;
  std::array<std::vector<float>, kTables> sent;
  sent.fill(std::vector<float>(kIds * kDim));
  {
    const auto worker = cluster.NewClient(1);
    const auto chief = cluster.NewChief();
    const Philox random(8, "tables");
    std::vector<std::uint64_t> ids(kIds);
    std::iota(ids.begin(), ids.end(), 0);
    std::uint64_t draw = 0;
    for (int step = 1; step <= 150; ++step) {
      std::array<std::vector<float>, kTables> values;
      std::array<std::vector<float>, kTables> rows;
      std::vector<RowClient::Gradients> gradients;
      std::vector<RowClient::Lookup> lookups;
      for (std::size_t t = 0; t < kTables; ++t) {
        for (float& sum : sent[t]) {
          values[t].push_back(static_cast<float>(random.Below(7, draw++)) - 3);
          sum -= values[t].back();
        }
        rows[t].resize(kIds * kDim);
        gradients.push_back({.table = static_cast<int>(t), .ids = ids, .values = values[t]});
        lookups.push_back({.table = static_cast<int>(t), .ids = ids, .rows = rows[t]});
      }
      if (step % 10 == 0) {
        const auto bucket = static_cast<std::uint32_t>(random.Below(kBuckets, draw));
        OrThrow(chief->Move(step % static_cast<int>(kTables), bucket,
                            static_cast<int>(random.Below(2, draw, 1))));
      }
      OrThrow(worker->Push(gradients, step, 1));
      OrThrow(worker->Pull(lookups, step));
      for (std::size_t t = 0; t < kTables; ++t) {
        ASSERT_EQ(rows[t], sent[t]) << "table " << t << ", step " << step;
      }
    }
  }
  EXPECT_GT(cluster.lost(), 5) << "of 2 % of what is read";
}

// The chief gives servers up at once, and its moves break anywhere: the bucket comes to the other
// server, or stays.
TEST(RowMovesTest, AMoveThatBreaksLeavesTheBucketWhole) {
  const Cluster cluster(3, 0.03);
  const auto chief = cluster.NewChief(milliseconds(30));
  const Philox random(8, "moves");
  std::uint64_t moves = 0;
  std::int64_t moved = 0;
  std::int64_t stayed = 0;
  ExpectConservation(cluster, 150, [&] {
    const std::uint32_t bucket = static_cast<std::uint32_t>(random.Below(kBuckets, moves));
    const Status status = chief->Move(0, bucket, static_cast<int>(random.Below(3, moves, 1)));
    ASSERT_TRUE(status.ok() || status.code() == StatusCode::kFailedPrecondition)
        << status.ToString();
    ++(status.ok() ? moved : stayed);
    ++moves;
  });
  EXPECT_GT(moved, 20);
  EXPECT_GT(stayed, 0) << "of " << moves;
}

// Rows that are used for the last time, rows in use at every step, moves and broken connections at
// once: what is left of a row is the sum of its last gradients, and who is in use loses none.
TEST(RowMovesTest, NorWhereRowsExpireToo) {
  TableSpec spec = SumsTable();
  spec.time_to_live = 20;
  const Cluster cluster(3, 0.005, spec);
  constexpr std::uint64_t kShared = 20;
  constexpr int kSteps = 200;
  struct History {
    std::map<std::uint64_t, std::vector<std::array<float, kDim>>> pushed;  // by id
  };
  std::vector<History> histories(3);
  std::atomic<int> running{3};
  std::vector<std::thread> threads;
  for (std::uint64_t w = 0; w < histories.size(); ++w) {
    threads.emplace_back([&, w] {
      const auto client = cluster.NewClient(w + 1);
      const Philox random(w, "expire");
      for (std::uint64_t step = 1; step <= kSteps; ++step) {
        std::map<std::uint64_t, std::array<float, kDim>> batch;
        for (std::uint64_t i = 0; i < kShared + 12; ++i) {
          const std::uint64_t id =
              i < kShared ? i : 1'000'000 * (w + 1) + random.Below(150, step, 10 * i);
          for (std::size_t k = 0; k < kDim; ++k) {
            batch[id][k] = static_cast<float>(random.Below(7, step, 10 * i + k + 1)) - 3;
          }
        }
        std::vector<std::uint64_t> ids;
        std::vector<float> gradients;
        for (const auto& [id, gradient] : batch) {
          ids.push_back(id);
          gradients.insert(gradients.end(), gradient.begin(), gradient.end());
          histories[w].pushed[id].push_back(gradient);
        }
        const RowClient::Gradients push{.table = 0, .ids = ids, .values = gradients};
        OrThrow(client->Push(std::span(&push, 1), static_cast<std::int64_t>(step), 1));
      }
      --running;
    });
  }
  RandomMoves moves(cluster, 7);
  while (running > 0) {
    moves.Move();
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_GT(moves.moves(), 100U);
  EXPECT_GT(cluster.lost(), 0);
  const auto reader = cluster.NewChief();
  const std::map<std::uint64_t, Row> there = RowsOf(*reader);
  for (std::uint64_t id = 0; id < kShared; ++id) {
    std::array<float, kDim> sum{};
    for (const History& history : histories) {
      for (const auto& gradient : history.pushed.at(id)) {
        sum[0] += gradient[0];
        sum[1] += gradient[1];
      }
    }
    ASSERT_TRUE(there.contains(id)) << id;
    EXPECT_EQ(there.at(id).updates, 3U * kSteps) << "id " << id;
    EXPECT_THAT(there.at(id).weights, ElementsAre(-sum[0], -sum[1])) << "id " << id;
  }
  std::size_t expired = 0;
  for (const History& history : histories) {
    for (const auto& [id, pushed] : history.pushed) {
      const auto row = there.find(id);
      if (id < kShared || row == there.end()) {
        expired += id < kShared ? 0 : 1;
        continue;
      }
      const std::size_t updates = row->second.updates;
      ASSERT_LE(updates, pushed.size()) << "id " << id;
      expired += updates < pushed.size() ? 1 : 0;
      std::array<float, kDim> sum{};
      for (std::size_t p = pushed.size() - updates; p < pushed.size(); ++p) {
        sum[0] += pushed[p][0];
        sum[1] += pushed[p][1];
      }
      EXPECT_THAT(row->second.weights, ElementsAre(-sum[0], -sum[1])) << "id " << id;
    }
  }
  EXPECT_GT(expired, 20U);
}

// What tables lose, from the server's counts to the client's, and to Prometheus.
TEST(RowCountsTest, ArriveInStatsAndMetrics) {
  TableSpec spec = SumsTable();
  spec.not_finite = TableSpec::NotFinite::kSkipRow;
  TableSpec rare = SumsTable();
  rare.name = "rare";
  rare.admit_after = 2;
  std::array<Metrics, 2> metrics;  // longer than the servers, which count in them
  const Cluster cluster(2, 0, spec, false, {rare});
  cluster.servers_[0]->CountIn(metrics[0]);
  cluster.servers_[1]->CountIn(metrics[1]);
  std::vector<std::uint64_t> ids(20);
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<float> gradients(ids.size() * kDim, 1);
  const auto client = cluster.NewClient(1);
  for (const float value : {1.0F, std::numeric_limits<float>::infinity()}) {
    gradients[5 * kDim] = value;
    const RowClient::Gradients push{.table = 0, .ids = ids, .values = gradients};
    OrThrow(client->Push(std::span(&push, 1), 1, 1));
  }
  gradients[5 * kDim] = 1;
  const RowClient::Gradients push{.table = 1, .ids = ids, .values = gradients};
  OrThrow(client->Push(std::span(&push, 1), 1, 1));
  const auto chief = Client::Make(cluster.spec_, cluster.addresses_, {.client = 2000});
  const StoreStats stats = OrThrow(chief->Stats());
  ASSERT_EQ(stats.tables.size(), 2U);
  EXPECT_EQ(stats.tables[0].name, "items");
  EXPECT_EQ(stats.tables[0].skipped, 1U);
  EXPECT_EQ(stats.tables[1].name, "rare");
  EXPECT_EQ(stats.tables[1].dropped, ids.size());
  double skipped = 0;
  double dropped = 0;
  for (Metrics& of : metrics) {
    skipped += of.AddCounter("cohort_ps_gradients_skipped_total",
                             "Gradients of rows that were not finite.", {{"table", "items"}})
                   .value();
    dropped += of.AddCounter("cohort_ps_gradients_dropped_total",
                             "Gradients of ids that were not admitted.", {{"table", "rare"}})
                   .value();
  }
  EXPECT_EQ(skipped, 1);
  EXPECT_EQ(dropped, static_cast<double>(ids.size()));
}

// The rows of one process: a worker, which sends nothing to a server that has no id of its batch,
// buckets that move, and servers of another number that go on from a dump in the middle. Whoever
// sweeps late, or with the wrong step, has other rows: ids come back around when they expire.
TEST(RowMovesTest, TimeToLiveOnServersIsThatOfOneProcess) {
  for (const std::uint32_t admit_after : {1U, 2U}) {
    SCOPED_TRACE(admit_after);
    TableSpec spec = SumsTable();
    spec.initializer = {RowInitializer::Kind::kUniform, 1};
    spec.optimizer = Adam()->config();
    spec.bias_scope = TableSpec::BiasScope::kRow;
    spec.time_to_live = 4;
    spec.admit_after = admit_after;
    constexpr std::int64_t kSteps = 240;
    constexpr std::uint64_t kIds = 9;
    const Philox random(admit_after, "ids");
    const auto id_of = [&](std::int64_t step) {
      return random.Below(kIds, static_cast<std::uint64_t>(step));
    };
    const std::vector<float> gradient = {1, -2};
    std::vector<std::uint64_t> all(kIds);
    std::iota(all.begin(), all.end(), 0);

    const auto table = OrThrow(RowTable::Create(spec, {0, kBuckets}));
    std::vector<std::vector<float>> seen;  // by step, before its update
    std::uint64_t evicted = 0;
    for (std::int64_t step = 1; step <= kSteps; ++step) {
      const std::vector<std::uint64_t> ids = {id_of(step)};
      seen.emplace_back(kDim);
      OrThrow(table->Pull(ids, step, RowTable::Purpose::kTraining, seen.back()));
      OrThrow(table->Apply({.ids = ids, .values = gradient, .step = step}));
      evicted += OrThrow(table->EvictWhenDue(step));
    }
    EXPECT_GT(evicted, 20U);

    int servers = 3;
    auto cluster = std::make_unique<Cluster>(servers, 0, spec);
    auto client = cluster->NewClient(1);
    auto chief = cluster->NewChief();
    const auto dumps = [&] {
      std::vector<std::string> all_buckets;
      OrThrow(chief->Dump(0, [&](std::uint32_t /*bucket*/, std::string_view dump) {
        all_buckets.emplace_back(dump);
        return OkStatus();
      }));
      return all_buckets;
    };
    for (std::int64_t step = 1; step <= kSteps; ++step) {
      const std::vector<std::uint64_t> ids = {id_of(step)};
      std::vector<float> row(kDim);
      OrThrow(client->Pull(0, ids, step, /*training=*/true, row));
      ASSERT_EQ(row, seen[static_cast<std::size_t>(step) - 1]) << "step " << step;
      const RowClient::Gradients push{.table = 0, .ids = ids, .values = gradient};
      OrThrow(client->Push(std::span(&push, 1), step, 1));
      if (step % 7 == 0 && servers > 1) {
        const auto draw = static_cast<std::uint64_t>(step);
        OrThrow(chief->Move(0, static_cast<std::uint32_t>(random.Below(kBuckets, draw, 1)),
                            static_cast<int>(random.Below(2, draw, 2))));
      }
      if (step % 60 == 0 && step < kSteps) {
        // With the rows that were to go at the last steps, where no server has heard of them.
        const std::vector<std::string> saved = dumps();
        servers = step == 60 ? 2 : step == 120 ? 1 : 3;
        chief.reset();
        client.reset();
        cluster = std::make_unique<Cluster>(servers, 0, spec);
        client = cluster->NewClient(1);
        chief = cluster->NewChief();
        // Servers that have come further go back to it.
        std::vector<float> rows(kIds * kDim);
        OrThrow(client->Pull(0, all, step + 50, /*training=*/true, rows));
        OrThrow(chief->Restore(
            0, [&](std::uint32_t bucket) -> Result<std::string> { return saved[bucket]; },
            nullptr));
      }
    }
    // Who reads after the last step sees what one process has.
    std::vector<float> rows(kIds * kDim);
    std::vector<float> expected(kIds * kDim);
    OrThrow(client->Pull(0, all, kSteps + 1, /*training=*/false, rows));
    OrThrow(table->Pull(all, kSteps + 1, RowTable::Purpose::kReading, expected));
    EXPECT_EQ(rows, expected);
    const std::vector<std::string> there = dumps();
    ASSERT_EQ(there.size(), kBuckets);
    for (std::uint32_t b = 0; b < kBuckets; ++b) {
      EXPECT_EQ(there[b], table->DumpBucket(b)) << "bucket " << b;
    }
  }
}

// F20. A bucket is on its way for longer than a server may be silent: who asks for it waits, and
// gets it; who asks for other rows of the same servers goes on.
TEST(RowMovesTest, ASlowMoveStopsNobodyButWhoWantsTheBucket) {
  constexpr std::chrono::milliseconds kSilent{1000};
  const Cluster cluster(2);
  const std::uint32_t bucket = BucketOf(7, kBuckets);
  const int from = ServerOf(bucket, 2, kBuckets);
  Mover mover(cluster, bucket);
  const std::vector<float> ones(kDim, 1);
  const auto add = [&](RowClient& client, std::uint64_t id) {
    const RowClient::Gradients push{.table = 0, .ids = std::span(&id, 1), .values = ones};
    std::vector<float> row(kDim);
    OrThrow(client.Push(std::span(&push, 1), 1, 1));
    OrThrow(client.Pull(0, std::span(&id, 1), 1, /*training=*/true, row));
    return row[0];
  };
  mover.Step(from, BucketMove::GIVE, 1 - from);
  auto waits =
      std::async(std::launch::async, [&] { return add(*cluster.NewClient(1, kSilent), 7); });
  const auto client = cluster.NewClient(2, kSilent);
  const auto begun = std::chrono::steady_clock::now();
  std::map<std::uint64_t, float> others;
  for (std::uint64_t id = 0; std::chrono::steady_clock::now() < begun + 4 * kSilent;
       id = (id + 1) % 64) {
    if (BucketOf(id, kBuckets) != bucket) {
      EXPECT_EQ(add(*client, id), --others[id]);
    }
  }
  EXPECT_EQ(waits.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
  mover.Step(from, BucketMove::KEEP);
  EXPECT_EQ(waits.get(), -1);
  EXPECT_GE(others.size(), 40U) << "ids of all other buckets";
}

// F20. The most frequent ids of a Zipf law are in buckets of one server.
TEST(RowMovesTest, MovesRelieveTheServerOfHotBuckets) {
  const Cluster cluster(2);
  const Zipf zipf(1000, 1.2);
  std::vector<std::uint64_t> id_of_rank;
  std::set<std::uint32_t> hot;
  for (std::uint64_t id = 0; hot.size() < 8; ++id) {
    const std::uint32_t bucket = BucketOf(id, kBuckets);
    if (ServerOf(bucket, 2, kBuckets) == 0 && hot.insert(bucket).second) {
      id_of_rank.push_back(id);
    }
  }
  for (std::uint64_t id = 1000; id_of_rank.size() < 1000; ++id) {
    id_of_rank.push_back(id);
  }
  std::atomic<std::int64_t> pushed{0};
  const auto train = [&](RowClient& client, std::uint64_t number) {
    const Philox random(number, "zipf");
    for (std::uint64_t step = 1; step <= 300; ++step) {
      std::set<std::uint64_t> ids;
      for (std::uint64_t i = 0; i < 8; ++i) {
        auto uniform = [&, draw = std::uint64_t{0}]() mutable {
          return static_cast<double>(random.Uniform(step, 100 * i + draw++));
        };
        ids.insert(id_of_rank[zipf(uniform) - 1]);
      }
      const std::vector<std::uint64_t> batch(ids.begin(), ids.end());
      const std::vector<float> ones(batch.size() * kDim, 1);
      const RowClient::Gradients push{.table = 0, .ids = batch, .values = ones};
      OrThrow(client.Push(std::span(&push, 1), static_cast<std::int64_t>(step), 1));
      pushed += static_cast<std::int64_t>(batch.size());
    }
  };
  const auto chief = cluster.NewChief();
  LoadMeter meter;
  meter.Since(OrThrow(chief->Loads(0)));
  // Of what three workers push, the part that goes to the busier server.
  std::uint64_t number = 0;
  const auto busiest = [&](const std::function<void()>& beside) {
    std::vector<std::thread> workers;
    for (int w = 0; w < 3; ++w) {
      workers.emplace_back([&, n = ++number] { train(*cluster.NewClient(n), n); });
    }
    beside();
    for (std::thread& worker : workers) {
      worker.join();
    }
    std::array<std::uint64_t, 2> of_server{};
    for (const BucketLoad& load : meter.Since(OrThrow(chief->Loads(0)))) {
      of_server[static_cast<std::size_t>(load.server)] += load.updates;
    }
    return static_cast<double>(std::ranges::max(of_server)) /
           static_cast<double>(of_server[0] + of_server[1]);
  };
  const double before = busiest([] {});
  EXPECT_GT(before, 0.6);
  LoadMeter other;
  other.Since(OrThrow(chief->Loads(0)));
  std::size_t moves = 0;
  busiest([&] {  // by what comes, a few at a time, while it comes
    const Deadline end = DeadlineAfter(std::chrono::seconds(30));
    while (moves < 2 && std::chrono::steady_clock::now() < end) {
      for (const BucketMoveTo& move : PlanMoves(other.Since(OrThrow(chief->Loads(0))), 2, 8)) {
        OrThrow(chief->Move(0, move.bucket, move.to));
        ++moves;
      }
    }
  });
  for (const BucketMoveTo& move : PlanMoves(other.Since(OrThrow(chief->Loads(0))), 2, 8)) {
    OrThrow(chief->Move(0, move.bucket, move.to));
  }
  meter.Since(OrThrow(chief->Loads(0)));
  EXPECT_LT(busiest([] {}), before - 0.05);
  double sum = 0;
  for (const auto& [id, row] : RowsOf(*chief)) {
    sum += row.weights[0];
  }
  EXPECT_EQ(sum, -static_cast<double>(pushed));
}

// A bucket that all ask for goes round and round, and nobody waits for long, or sees it empty.
TEST(RowMovesTest, AHotBucketMovesUnderLoad) {
  Cluster cluster(2);
  const auto chief = cluster.NewChief();
  const std::vector<std::uint64_t> ids = {7};
  const std::uint32_t bucket = BucketOf(7, kBuckets);
  std::atomic<bool> stop{false};
  std::atomic<std::int64_t> pushes{0};
  std::vector<std::thread> workers;
  for (std::uint64_t w = 0; w < 3; ++w) {
    workers.emplace_back([&, w] {
      const auto client = cluster.NewClient(w + 1);
      const std::vector<float> ones(kDim, 1);
      std::vector<float> row(kDim);
      float least = 0;
      for (std::int64_t step = 1; !stop; ++step) {
        const RowClient::Gradients push{.table = 0, .ids = ids, .values = ones};
        OrThrow(client->Push(std::span(&push, 1), step, 1));
        ++pushes;
        OrThrow(client->Pull(0, ids, step, /*training=*/true, row));
        ASSERT_LT(row[0], least) << "what was pushed is there";
        least = row[0];
      }
    });
  }
  for (int move = 0; move < 200; ++move) {
    OrThrow(chief->Move(0, bucket, move % 2));
  }
  stop = true;
  for (std::thread& worker : workers) {
    worker.join();
  }
  const std::map<std::uint64_t, Row> rows = RowsOf(*chief);
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows.at(7).updates, static_cast<std::uint32_t>(pushes));
  EXPECT_EQ(rows.at(7).weights[0], -static_cast<float>(pushes));
}

TEST(RowMovesTest, ASnapshotHoldsBucketsWhereTheyAre) {
  Cluster cluster(2);
  const auto chief = cluster.NewChief();
  const auto client = Client::Make(cluster.spec_, cluster.addresses_, {.client = 1000});
  OrThrow(chief->Move(0, 3, 1));
  OrThrow(client->Freeze(1).status());
  const Status refused = chief->Move(0, 3, 0);
  EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr("bucket 3 cannot move while a snapshot is saved"));
  chief->ReadSnapshot(1);
  EXPECT_TRUE(RowsOf(*chief).empty());
  OrThrow(client->Thaw().status());
  OrThrow(chief->Move(0, 3, 0));
  ExpectEachBucketOnce(*chief);
}

// Steps of one worker whose gradients are no whole numbers.
void TrainSome(RowClient& client, std::uint64_t seed, int steps) {
  const Philox random(seed, "some");
  for (std::uint64_t step = 1; step <= static_cast<std::uint64_t>(steps); ++step) {
    std::vector<std::uint64_t> ids;
    std::vector<float> gradients;
    for (std::uint64_t i = 0; i < 40; ++i) {
      ids.push_back(random.Below(2000, step, i));
      for (std::uint64_t k = 0; k < kDim; ++k) {
        gradients.push_back(static_cast<float>(random.Uniform(step, 100 + i * kDim + k)) - 0.5F);
      }
    }
    const RowClient::Gradients push{.table = 0, .ids = ids, .values = gradients};
    OrThrow(client.Push(std::span(&push, 1), static_cast<std::int64_t>(step), 1));
  }
}

std::vector<std::string> DumpsOf(RowClient& client) {
  std::vector<std::string> dumps;
  OrThrow(client.Dump(0, [&](std::uint32_t bucket, std::string_view dump) {
    EXPECT_EQ(bucket, dumps.size());
    dumps.emplace_back(dump);
    return OkStatus();
  }));
  return dumps;
}

// Files of changes from some servers, between which buckets moved, are the table bit for bit, with
// what the optimizer keeps, on any number of servers.
class ChainTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ChainTest, FilesOfChangesAreTheTableOnAnyNumberOfServers) {
  TableSpec spec = SumsTable();
  spec.optimizer = GetParam();
  spec.initializer = {RowInitializer::Kind::kNormal, 0.1};
  for (const int saved_by : {1, 2, 3}) {
    const Cluster cluster(saved_by, 0, spec);
    const auto chief = cluster.NewChief();
    const auto client = Client::Make(cluster.spec_, cluster.addresses_, {.client = 1000});
    const TempDir dir;
    FileSystem& files = FileSystem::Local();
    std::vector<std::string> chain;
    std::vector<std::string> saved;
    std::vector<std::uintmax_t> sizes;
    for (std::uint64_t snapshot = 1; snapshot <= 4; ++snapshot) {
      TrainSome(*chief, snapshot, snapshot == 1 ? 40 : 1);
      OrThrow(client->Freeze(snapshot).status());
      chief->ReadSnapshot(snapshot, snapshot - 1);
      chain.push_back(dir / std::to_string(snapshot));
      OrThrow(SaveTable(*chief, 0, spec, files, chain.back(),
                        snapshot == 1 ? RowFileKind::kRows : RowFileKind::kChanges));
      sizes.push_back(OrThrow(files.OpenForRead(chain.back()))->size());
      chief->ReadSnapshot(0);  // a snapshot is read once, and nobody trains
      saved = DumpsOf(*chief);
      OrThrow(client->Thaw().status());
      OrThrow(chief->Move(0, static_cast<std::uint32_t>(snapshot), saved_by - 1));
    }
    EXPECT_LT(sizes[1], sizes[0] / 2);
    for (const int servers : {1, 2, 3}) {
      const Cluster other(servers, 0, spec);
      const auto loader = other.NewChief();
      OrThrow(LoadTable(*loader, 0, spec, files, chain));
      EXPECT_EQ(DumpsOf(*loader), saved) << saved_by << " to " << servers;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, ChainTest,
                         ::testing::Values(Sgd({.learning_rate = 1})->config(),
                                           Adagrad({.learning_rate = 0.1})->config(),
                                           Adam({.learning_rate = 0.01})->config()));

}  // namespace
}  // namespace cohort::ps
