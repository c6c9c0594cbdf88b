// Clients and servers of sparse tables over real connections, as threads of one process: rows on
// servers are the rows of one table, bit by bit.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include <cohort/optim/optimizers.h>

#include "parameter_server/frames/row_codec.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_table.h"
#include "parameter_server/variables/client.h"
#include "two_tables.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(RowClientTest, RowsOnServersHaveTheBitsOfOneTable) {
  for (const int servers : {1, 3}) {
    TwoTables cluster(servers);
    cluster.Initialise();
    const auto client = cluster.NewClient();
    for (int t = 0; t < 2; ++t) {
      const TableSpec& spec = cluster.spec_.tables[static_cast<std::size_t>(t)];
      const auto dim = static_cast<std::size_t>(spec.dim);
      const auto local = OrThrow(RowTable::Create(spec, {0, spec.buckets}));
      for (std::uint64_t step = 1; step <= 4; ++step) {
        const Call call = RandomCall(5000, dim, step);
        const auto now = static_cast<std::int64_t>(step);
        std::vector<float> here(call.gradients.size());
        std::vector<float> there(call.gradients.size());
        OrThrow(local->Pull(call.ids, now, RowTable::Purpose::kTraining, here));
        OrThrow(client->Pull(t, call.ids, now, /*training=*/true, there));
        ASSERT_EQ(here, there);
        OrThrow(local->Apply({.ids = call.ids,
                              .values = call.gradients,
                              .scale = static_cast<float>(1.0 / 3),
                              .step = now}));
        const std::vector<RowClient::Gradients> gradients = {
            {.table = t, .ids = call.ids, .values = call.gradients}};
        OrThrow(client->Push(gradients, now, 3));
      }
      for (const auto& [bucket, dump] : DumpOf(*client, t)) {
        ASSERT_EQ(dump, local->DumpBucket(bucket)) << spec.name << ", bucket " << bucket;
      }
    }
  }
}

// A table whose rows travel in fewer bytes holds what the rounded gradients make of it, and shows
// its rows rounded.
TEST(RowClientTest, RowsTravelInTheFormatOfTheirTable) {
  for (const TableSpec::Wire wire :
       {TableSpec::Wire::kFloat16, TableSpec::Wire::kBFloat16, TableSpec::Wire::kInt8}) {
    TwoTables cluster(2);
    for (TableSpec& table : cluster.spec_.tables) {
      table.wire = wire;
    }
    cluster.Initialise();
    const auto client = cluster.NewClient();
    const auto rounded = [&](const std::vector<float>& rows, std::size_t dim) {
      std::vector<std::byte> bytes(EncodedBytes(wire, dim, rows.size() / dim));
      EXPECT_FALSE(EncodeRows(wire, dim, rows, bytes).has_value());
      std::vector<float> back(rows.size());
      DecodeRows(wire, dim, bytes, back);
      return back;
    };
    for (int t = 0; t < 2; ++t) {
      const TableSpec& spec = cluster.spec_.tables[static_cast<std::size_t>(t)];
      const auto dim = static_cast<std::size_t>(spec.dim);
      const auto local = OrThrow(RowTable::Create(spec, {0, spec.buckets}));
      // Each id once: sums are rounded, not what they are made of.
      std::vector<std::uint64_t> ids(999);
      for (std::size_t i = 0; i < ids.size(); ++i) {
        ids[i] = i * i;
      }
      for (std::int64_t step = 1; step <= 3; ++step) {
        std::vector<float> gradients =
            RandomCall(ids.size(), dim, static_cast<std::uint64_t>(step)).gradients;
        const std::vector<RowClient::Gradients> push = {
            {.table = t, .ids = ids, .values = gradients}};
        OrThrow(client->Push(push, step, 1));
        OrThrow(local->Apply({.ids = ids, .values = rounded(gradients, dim), .step = step}));
      }
      for (const auto& [bucket, dump] : DumpOf(*client, t)) {
        ASSERT_EQ(dump, local->DumpBucket(bucket)) << spec.name << ", bucket " << bucket;
      }
      std::vector<float> there(ids.size() * dim);
      std::vector<float> here(ids.size() * dim);
      OrThrow(client->Pull(t, ids, 4, /*training=*/false, there));
      OrThrow(local->Pull(ids, 4, RowTable::Purpose::kReading, here));
      EXPECT_EQ(there, rounded(here, dim));
    }
    const std::vector<std::uint64_t> id = {7};
    const std::vector<float> large(
        5, wire == TableSpec::Wire::kFloat16 ? 1e6F : std::numeric_limits<float>::max());
    const std::vector<RowClient::Gradients> push = {{.table = 0, .ids = id, .values = large}};
    const Status status = client->Push(push, 1, 1);
    if (wire == TableSpec::Wire::kInt8) {
      EXPECT_EQ(status, OkStatus());
    } else {
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
      EXPECT_THAT(status.message(), AllOf(HasSubstr("table \"users\""), HasSubstr("id 7"),
                                          HasSubstr(WireName(wire))));
    }
  }
}

TEST(RowClientTest, ReadingMakesNoRows) {
  TwoTables cluster(2);
  cluster.Initialise();
  const auto client = cluster.NewClient();
  const Call call = RandomCall(100, 5, 1);
  std::vector<float> rows(500);
  OrThrow(client->Pull(0, call.ids, 1, /*training=*/false, rows));
  std::vector<float> first(5);
  InitialRow(cluster.spec_.tables[0], call.ids[0], first);
  EXPECT_EQ(std::vector<float>(rows.begin(), rows.begin() + 5), first);
  EXPECT_EQ(cluster.servers_[0]->rows().stats().rows + cluster.servers_[1]->rows().stats().rows, 0);
}

TEST(RowClientTest, CallsOfManyFramesAndNoneAtAllAreWhole) {
  TwoTables cluster(2);
  cluster.Initialise();
  const auto client = cluster.NewClient();
  std::vector<std::uint64_t> ids(400'000);  // 8 MB of rows, 12.8 MB of gradients
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = i;
  }
  std::vector<float> rows(ids.size() * 5);
  OrThrow(client->Pull(0, ids, 1, true, rows));
  for (const std::size_t i : {std::size_t{0}, std::size_t{123'456}, ids.size() - 1}) {
    std::vector<float> first(5);
    InitialRow(cluster.spec_.tables[0], i, first);
    EXPECT_EQ(std::vector<float>(rows.begin() + 5 * static_cast<std::ptrdiff_t>(i),
                                 rows.begin() + 5 * static_cast<std::ptrdiff_t>(i) + 5),
              first);
  }
  const std::vector<RowClient::Gradients> gradients = {{.table = 0, .ids = ids, .values = rows}};
  OrThrow(client->Push(gradients, 1, 1));
  OrThrow(client->Pull(0, {}, 1, true, {}));
  OrThrow(client->Push({}, 1, 1));
  const RowStoreStats a = cluster.servers_[0]->rows().stats();
  const RowStoreStats b = cluster.servers_[1]->rows().stats();
  EXPECT_EQ(a.rows + b.rows, ids.size());
  EXPECT_GE(a.pushes, 2) << "frames of at most 4 MiB";
}

TEST(RowClientTest, ErrorsNameServerAndTableAndTheServerGoesOn) {
  TwoTables cluster(1);
  cluster.Initialise();
  const auto client = cluster.NewClient();
  const std::vector<std::uint64_t> ids = {1};
  const std::vector<float> nan = {1, 2, 3, 4, std::numeric_limits<float>::quiet_NaN()};
  const std::vector<RowClient::Gradients> broken = {{.table = 0, .ids = ids, .values = nan}};
  const Status status = client->Push(broken, 1, 1);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("ps:0"), HasSubstr("table \"users\""), HasSubstr("id 1")));

  ModelSpec other = cluster.spec_;
  other.tables[1].dim = 2;
  const auto stranger = Client::Make(other, cluster.addresses_, TwoTables::Options(7));
  const Status differs = stranger->Declare();
  EXPECT_EQ(differs.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(differs.message(), HasSubstr("table \"items\" differs: declared with dim 1"));
  std::vector<float> rows(2);
  const auto strange_rows = RowClient::Make(other, cluster.addresses_, TwoTables::Options(7));
  EXPECT_EQ(strange_rows->Pull(1, ids, 1, true, rows).code(), StatusCode::kFailedPrecondition);

  std::vector<float> row(5);
  EXPECT_EQ(client->Pull(0, ids, 1, true, row), OkStatus());
}

TEST(RowClientTest, AServerThatHoldsNothingYetSaysSo) {
  TwoTables cluster(1);
  const auto client = cluster.NewClient();
  const std::vector<std::uint64_t> ids = {1};
  std::vector<float> row(5);
  EXPECT_EQ(client->Pull(0, ids, 1, true, row).code(), StatusCode::kUnavailable);
}

TEST(RowClientTest, AServerThatIsGoneIsNamedInTime) {
  TwoTables cluster(2);
  cluster.Initialise();
  const auto client = cluster.NewClient(1, milliseconds(300));
  cluster.servers_[1].reset();
  const Call call = RandomCall(100, 5, 1);
  std::vector<float> rows(500);
  const auto start = std::chrono::steady_clock::now();
  const Status status = client->Pull(0, call.ids, 1, true, rows);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("ps:1"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(5'000));
}

TEST(RowClientTest, GradientsOfSeveralClientsAllCount) {
  TwoTables cluster(2);
  TableSpec& table = cluster.spec_.tables[0];
  table.initializer = {};
  table.optimizer = Sgd({.learning_rate = 1})->config();
  cluster.Initialise();
  constexpr int kClients = 4;
  constexpr int kPushes = 25;
  {
    std::vector<std::jthread> workers;
    for (int w = 0; w < kClients; ++w) {
      workers.emplace_back([&, w] {
        const auto client = cluster.NewClient(static_cast<std::uint64_t>(w) + 1);
        const std::vector<std::uint64_t> ids = {1, 2, 2};
        const std::vector<float> ones(15, 1);
        const std::vector<RowClient::Gradients> push = {{.table = 0, .ids = ids, .values = ones}};
        for (int i = 0; i < kPushes; ++i) {
          EXPECT_EQ(client->Push(push, 1, 1), OkStatus());
        }
      });
    }
  }
  const std::vector<std::uint64_t> ids = {2, 1};
  std::vector<float> rows(10);
  OrThrow(cluster.NewClient(9)->Pull(0, ids, 1, false, rows));
  EXPECT_EQ(rows[0], -2.0F * kClients * kPushes);
  EXPECT_EQ(rows[5], -1.0F * kClients * kPushes);
}

}  // namespace
}  // namespace cohort::ps
