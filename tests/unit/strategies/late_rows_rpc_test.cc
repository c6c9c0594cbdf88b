// Late gradients of rows, over real connections: how late each row's is, whoever pushes, moves
// buckets or loses frames.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <utility>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/optim/server_side.h>
#include <cohort/optim/table_spec.h>

#include "parameter_server/rows/row_client.h"
#include "row_cluster.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using Wire = TableSpec::Wire;

TableSpec LateTable(const ServerSideOptions& options) {
  TableSpec spec = SumsTable();
  spec.optimizer = ServerSide(spec.optimizer, options);
  return spec;
}

void Push(RowClient& client, const std::vector<std::uint64_t>& ids, float gradient) {
  const std::vector<float> gradients(ids.size() * kDim, gradient);
  const RowClient::Gradients one{.table = 0, .ids = ids, .values = gradients};
  OrThrow(client.Push({&one, 1}, 1, 1));
}
void Pull(RowClient& client, const std::vector<std::uint64_t>& ids, bool training = true) {
  std::vector<float> rows(ids.size() * kDim);
  OrThrow(client.Pull(0, ids, 1, training, rows));
}
// Rows that were pulled ahead.
struct Ahead {
  std::vector<std::uint64_t> ids;
  std::vector<std::uint32_t> updates = std::vector<std::uint32_t>(ids.size());
  std::vector<float> rows = std::vector<float>(ids.size() * kDim);

  void UseIn(RowClient& client) const { client.Use(0, ids, updates, rows); }
};
Ahead PullAhead(RowClient& client, std::vector<std::uint64_t> ids) {
  Ahead ahead{.ids = std::move(ids)};
  const RowClient::Lookup lookup{.table = 0,
                                 .ids = ahead.ids,
                                 .training = false,
                                 .rows = ahead.rows,
                                 .updates = ahead.updates};
  OrThrow(client.Pull(std::span(&lookup, 1), 1));
  return ahead;
}
float ValueOf(const Cluster& cluster, std::uint64_t id) {
  const std::map<std::uint64_t, Row> rows = RowsOf(*cluster.NewChief());
  const Row& row = rows.at(id);
  EXPECT_EQ(row.weights[0], row.weights[1]);
  return row.weights[0];
}

TEST(LateRowsRpc, StalenessIsOthersUpdatesSinceTheRowWasPulled) {
  const Cluster cluster(2, 0, LateTable({.staleness_scaling = true}));
  const auto a = cluster.NewClient(1);
  const auto b = cluster.NewClient(2);
  Pull(*a, {1, 2});
  Pull(*b, {1});
  for (int i = 0; i < 3; ++i) {
    Push(*b, {1}, 12);  // its own updates are not late
  }
  EXPECT_EQ(ValueOf(cluster, 1), -36);
  Push(*a, {1, 2}, 12);  // 3 updates, and none
  EXPECT_EQ(ValueOf(cluster, 1), -40);
  EXPECT_EQ(ValueOf(cluster, 2), -12);
  Push(*a, {2, 1, 1}, 6);  // the same 3, and its own; repeated ids are one update
  EXPECT_EQ(ValueOf(cluster, 1), -44);
  EXPECT_EQ(ValueOf(cluster, 2), -18);
  Pull(*a, {1}, /*training=*/false);  // no gradient will be computed from that
  Push(*a, {1}, 12);
  EXPECT_EQ(ValueOf(cluster, 1), -48);
  Pull(*a, {1});
  Push(*a, {1}, 12);
  EXPECT_EQ(ValueOf(cluster, 1), -60);
  // Since b's pull there were four of a's; id 2 it has never pulled.
  Push(*b, {1}, 12);
  EXPECT_EQ(ValueOf(cluster, 1), -63);
  Push(*b, {2}, 12);
  EXPECT_EQ(ValueOf(cluster, 2), -30);
}

TEST(LateRowsRpc, RowsThatAreLookedUpAheadCountFromThen) {
  const Cluster cluster(2, 0, LateTable({.staleness_scaling = true}));
  const auto a = cluster.NewClient(1);
  const auto b = cluster.NewClient(2);
  Push(*b, {1, 2}, 0);
  const Ahead ahead = PullAhead(*a, {1});
  for (int i = 0; i < 4; ++i) {
    Push(*b, {1, 2}, 0);
  }
  Pull(*a, {2});
  ahead.UseIn(*a);
  Push(*a, {1, 2}, 12);
  EXPECT_EQ(ValueOf(cluster, 1), -3);
  EXPECT_EQ(ValueOf(cluster, 2), -12);
}

// Of several batches ahead: a step's gradients are as late as the rows that it used, whatever was
// pulled since for others, and pushed.
TEST(LateRowsRpc, RowsOfLaterBatchesLeaveThoseOfThisOneAsTheyAre) {
  const Cluster cluster(2, 0, LateTable({.staleness_scaling = true}));
  const auto a = cluster.NewClient(1);
  const auto b = cluster.NewClient(2);
  Push(*b, {1, 2, 3}, 0);
  const Ahead first = PullAhead(*a, {1, 2});
  for (int i = 0; i < 4; ++i) {
    Push(*b, {1, 2, 3}, 0);
  }
  first.UseIn(*a);
  const Ahead second = PullAhead(*a, {1, 3, 3});
  Push(*a, {1, 2}, 12);  // 4 updates since
  EXPECT_EQ(ValueOf(cluster, 1), -3);
  EXPECT_EQ(ValueOf(cluster, 2), -3);
  Push(*b, {3}, 0);
  Push(*b, {3}, 0);
  Pull(*a, {2});
  second.UseIn(*a);
  Push(*a, {2, 3}, 12);  // none, and 2
  EXPECT_EQ(ValueOf(cluster, 2), -15);
  EXPECT_EQ(ValueOf(cluster, 3), -6);
}

TEST(LateRowsRpc, RowsAreCompensatedInEveryFormat) {
  for (const Wire wire : {Wire::kFloat32, Wire::kFloat16, Wire::kBFloat16, Wire::kInt8}) {
    for (const std::uint64_t feedback : {0U, 100U}) {
      TableSpec spec = LateTable({.delay_compensation = 0.5});
      spec.wire = wire;
      spec.wire_feedback = feedback;
      const Cluster cluster(2, 0, spec);
      const auto a = cluster.NewClient(1);
      const auto b = cluster.NewClient(2);
      Push(*b, {1, 2, 3}, -4);
      Pull(*a, {1, 2, 3});
      Push(*b, {1, 2}, 1);
      Push(*a, {1, 2, 3}, 2);  // 2 + 0.5 * 4 * (3 - 4) = 0
      EXPECT_EQ(ValueOf(cluster, 1), 3) << static_cast<int>(wire);
      EXPECT_EQ(ValueOf(cluster, 2), 3) << static_cast<int>(wire);
      EXPECT_EQ(ValueOf(cluster, 3), 2) << static_cast<int>(wire);
    }
  }
}

TEST(LateRowsRpc, ARowsAgeMovesWithItsBucket) {
  for (const Wire wire : {Wire::kFloat32, Wire::kBFloat16}) {
    TableSpec spec = LateTable({.delay_compensation = 0.125, .staleness_scaling = true});
    spec.wire = wire;
    const Cluster cluster(2, 0, spec);
    const auto chief = cluster.NewChief();
    const auto a = cluster.NewClient(1);
    const auto b = cluster.NewClient(2);
    std::vector<std::uint64_t> ids;
    for (std::uint64_t id = 0; id < 60; ++id) {
      ids.push_back(id);
    }
    Pull(*a, ids);
    Push(*b, ids, -1);
    for (std::uint32_t bucket = 0; bucket < kBuckets; bucket += 3) {
      OrThrow(chief->Move(0, bucket, bucket < kBuckets / 2 ? 1 : 0));
    }
    Push(*b, ids, -1);
    Push(*a, ids, -4);  // who has not heard of it; (-4 + 0.125 * 16 * 2) / 2 = 0
    for (const auto& [id, row] : RowsOf(*chief)) {
      EXPECT_THAT(row.weights, ElementsAre(2, 2)) << id;
      EXPECT_EQ(row.updates, 3U) << id;
    }
    for (std::uint32_t bucket = 0; bucket < kBuckets; bucket += 3) {
      OrThrow(chief->Move(0, bucket, bucket < kBuckets / 2 ? 0 : 1));
    }
    Pull(*a, ids);  // half of it elsewhere, again
    Push(*b, ids, 0);
    Push(*b, ids, 0);
    Push(*a, ids, -4);  // of rows that have not moved
    for (const auto& [id, row] : RowsOf(*chief)) {
      EXPECT_THAT(row.weights, ElementsAre(4, 4)) << id;
    }
  }
}

// Whatever is lost or moves, of what is nobody else's no gradient is late; Worker reads that back,
// to the bit.
TEST(LateRowsRpc, NobodysOwnUpdatesMakeItsGradientsLate) {
  const Cluster cluster(3, 0.01,
                        LateTable({.delay_compensation = 0.001, .staleness_scaling = true}));
  RandomMoves moves(cluster, 5);
  std::vector<Worker> workers(3);
  TrainBeside(cluster, workers, 100, [&] { moves.Move(); });
  EXPECT_GT(cluster.lost(), 0);
  std::map<std::uint64_t, std::uint32_t> updates;
  for (const Worker& worker : workers) {
    for (const auto& [id, row] : worker.sent) {
      updates[id] += row.updates;
    }
  }
  for (const auto& [id, row] : RowsOf(*cluster.NewChief())) {
    EXPECT_EQ(row.updates, updates.at(id)) << id;
  }
}

// Gradients that are not late have the same effect with the options as without, to the bit.
TEST(LateRowsRpc, OneWorkerHasTheBitsOfATableWithoutTheOptions) {
  for (const Wire wire : {Wire::kFloat32, Wire::kFloat16, Wire::kInt8}) {
    std::vector<std::map<std::uint64_t, Row>> results;
    for (const bool late : {false, true}) {
      TableSpec spec =
          late ? LateTable({.delay_compensation = 1, .staleness_scaling = true}) : SumsTable();
      spec.initializer = {RowInitializer::Kind::kNormal, 1};
      spec.wire = wire;
      spec.wire_feedback = wire == Wire::kInt8 ? 50 : 0;
      spec.not_finite = TableSpec::NotFinite::kSkipRow;
      const Cluster cluster(2, 0, spec);
      const auto client = cluster.NewClient(1);
      const Philox random(3, "gradients");
      for (std::uint64_t step = 1; step <= 20; ++step) {
        std::vector<std::uint64_t> ids;
        std::vector<float> gradients;
        for (std::uint64_t i = 0; i < 50; ++i) {
          const std::uint64_t draw = step * 50 + i;
          ids.push_back(random.Below(60, draw));
          const bool broken = random.Below(30, draw, 1) == 0;
          gradients.push_back(broken ? std::numeric_limits<float>::quiet_NaN()
                                     : random.Normal(draw, 2));
          gradients.push_back(random.Normal(draw, 3));
        }
        if (step % 3 != 0) {  // else it goes on from what it pulled before
          Pull(*client, ids);
        }
        const RowClient::Gradients one{.table = 0, .ids = ids, .values = gradients};
        OrThrow(client->Push({&one, 1}, static_cast<std::int64_t>(step), 1));
      }
      results.push_back(RowsOf(*client));
    }
    ASSERT_EQ(results[0].size(), results[1].size());
    for (const auto& [id, row] : results[0]) {
      EXPECT_EQ(row.updates, results[1].at(id).updates) << id;
      EXPECT_EQ(row.weights, results[1].at(id).weights) << id;
    }
  }
}

}  // namespace
}  // namespace cohort::ps
