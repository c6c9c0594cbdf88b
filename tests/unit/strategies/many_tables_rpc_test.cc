// Pulls and pushes of many sparse tables in one call, over real connections: tables of servers have
// the bits of tables of this process.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <numeric>

#include <cohort/optim/optimizers.h>

#include "parameter_server/frames/row_codec.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_table.h"
#include "parameter_server/variables/client.h"
#include "two_tables.h"

namespace cohort::ps {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// 26 small tables: of all dims from 1 to 9, formats and rules for missing rows.
std::vector<TableSpec> ManyTables(const TableSpec& like) {
  using Wire = TableSpec::Wire;
  std::vector<TableSpec> tables;
  for (int t = 0; t < 26; ++t) {
    TableSpec& table = tables.emplace_back(like);
    table.name = "table " + std::to_string(t);
    table.dim = 1 + t % 9;
    table.wire = std::array{Wire::kFloat32, Wire::kFloat16, Wire::kInt8,
                            Wire::kBFloat16}[static_cast<std::size_t>(t) % 4];
    table.missing = std::array{TableSpec::Missing::kCreate, TableSpec::Missing::kZeros,
                               TableSpec::Missing::kError}[static_cast<std::size_t>(t) % 3];
    if (table.missing == TableSpec::Missing::kZeros) {
      table.initializer = {};
    }
    table.optimizer = (t % 2 == 0 ? Adam({.learning_rate = 0.01}) : Sgd())->config();
  }
  return tables;
}

// Tables of this process that are to have the bits of those on servers.
class ManyTablesTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kTables = 26;

  void Start(int servers) {
    cluster_ = std::make_unique<TwoTables>(servers);
    cluster_->spec_.tables = ManyTables(cluster_->spec_.tables[0]);
    cluster_->Initialise();
    client_ = cluster_->NewClient();
    std::iota(ids_.begin(), ids_.end(), 7);
    for (std::size_t t = 0; t < kTables; ++t) {
      const TableSpec& spec = cluster_->spec_.tables[t];
      const auto dim = static_cast<std::size_t>(spec.dim);
      local_.push_back(OrThrow(RowTable::Create(spec, {0, spec.buckets})));
      rows_.emplace_back(ids_.size() * dim);
      if (spec.missing != TableSpec::Missing::kCreate) {
        OrThrow(local_[t]->Assign(ids_, 1, std::vector<float>(ids_.size() * dim, 0.5F)));
        OrThrow(client_->Restore(
            static_cast<int>(t),
            [&](std::uint32_t bucket) -> Result<std::string> {
              return local_[t]->DumpBucket(bucket);
            },
            nullptr));
      }
    }
  }
  std::vector<RowClient::Lookup> Lookups() {
    std::vector<RowClient::Lookup> lookups;
    for (std::size_t t = 0; t < kTables; ++t) {
      lookups.push_back({.table = static_cast<int>(t), .ids = ids_, .rows = rows_[t]});
    }
    return lookups;
  }
  std::vector<float> Rounded(std::size_t t, const std::vector<float>& rows) const {
    const TableSpec& spec = cluster_->spec_.tables[t];
    const auto dim = static_cast<std::size_t>(spec.dim);
    std::vector<std::byte> bytes(EncodedBytes(spec.wire, dim, rows.size() / dim));
    EXPECT_FALSE(EncodeRows(spec.wire, dim, rows, bytes).has_value());
    std::vector<float> back(rows.size());
    DecodeRows(spec.wire, dim, bytes, back);
    return back;
  }
  void ExpectPulled(std::int64_t step) {
    for (std::size_t t = 0; t < kTables; ++t) {
      std::vector<float> here(rows_[t].size());
      OrThrow(local_[t]->Pull(ids_, step, RowTable::Purpose::kTraining, here));
      EXPECT_EQ(rows_[t], Rounded(t, here)) << t << ", step " << step;
    }
  }
  // Of a step; applied to the local tables as well.
  std::vector<RowClient::Gradients> Gradients(std::int64_t step) {
    std::vector<RowClient::Gradients> gradients;
    for (std::size_t t = 0; t < kTables; ++t) {
      const auto dim = static_cast<std::size_t>(cluster_->spec_.tables[t].dim);
      values_[t] =
          RandomCall(ids_.size(), dim, static_cast<std::uint64_t>(step) * 100 + t).gradients;
      gradients.push_back({.table = static_cast<int>(t), .ids = ids_, .values = values_[t]});
      OrThrow(local_[t]->Apply({.ids = ids_, .values = Rounded(t, values_[t]), .step = step}));
    }
    return gradients;
  }
  void ExpectSame() {
    for (std::size_t t = 0; t < kTables; ++t) {
      for (const auto& [bucket, dump] : DumpOf(*client_, static_cast<int>(t))) {
        ASSERT_EQ(dump, local_[t]->DumpBucket(bucket)) << t << ", bucket " << bucket;
      }
    }
  }
  RowStoreStats StatsOf(std::size_t server) const {
    return cluster_->servers_[server]->rows().stats();
  }

  std::unique_ptr<TwoTables> cluster_;
  std::unique_ptr<RowClient> client_;
  std::vector<std::uint64_t> ids_ = std::vector<std::uint64_t>(100);
  std::vector<std::unique_ptr<RowTable>> local_;
  std::vector<std::vector<float>> rows_;
  std::array<std::vector<float>, kTables> values_;
};

TEST_F(ManyTablesTest, AStepIsOneFrameOfEachKindForEachServer) {
  Start(2);
  constexpr std::uint64_t kSteps = 3;
  for (std::int64_t step = 1; step <= static_cast<std::int64_t>(kSteps); ++step) {
    OrThrow(client_->Pull(Lookups(), step));
    ExpectPulled(step);
    OrThrow(client_->Push(Gradients(step), step, 1));
  }
  for (const std::size_t server : {0U, 1U}) {
    EXPECT_EQ(StatsOf(server).pulls, kSteps) << server;
    EXPECT_EQ(StatsOf(server).pushes, kSteps) << server;
  }
  ExpectSame();
}

// The end of a part is said by its last frame; by one of its own where there is none.
TEST_F(ManyTablesTest, APartOfARoundIsOneFrameForEachServer) {
  Start(2);
  for (std::int64_t step = 1; step <= 3; ++step) {
    const auto gradients = step == 2 ? std::vector<RowClient::Gradients>() : Gradients(step);
    OrThrow(client_->PushPart(gradients, step, 1, {.round = static_cast<std::uint64_t>(step)}));
    client_->ReadAfter(static_cast<std::uint64_t>(step));
    OrThrow(client_->Pull(Lookups(), step));
    ExpectPulled(step);
  }
  for (const std::size_t server : {0U, 1U}) {
    EXPECT_EQ(StatsOf(server).pulls, 3U) << server;
    EXPECT_EQ(StatsOf(server).pushes, 3U) << server;
  }
  ExpectSame();
}

TEST_F(ManyTablesTest, AnErrorOfOneTableNamesItAndLeavesTheOthersAsTheyWere) {
  Start(1);
  const std::vector<std::uint64_t> stranger = {5};
  const std::size_t strict = 23;
  ASSERT_EQ(cluster_->spec_.tables[strict].missing, TableSpec::Missing::kError);
  const std::uint64_t rows = StatsOf(0).rows;
  std::vector<RowClient::Lookup> lookups = Lookups();
  lookups[strict].ids = stranger;
  lookups[strict].rows =
      lookups[strict].rows.first(static_cast<std::size_t>(cluster_->spec_.tables[strict].dim));
  Status status = client_->Pull(lookups, 1);
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("ps:0"), HasSubstr("\"table 23\""), HasSubstr("no row for id 5")));
  EXPECT_EQ(StatsOf(0).rows, rows);

  OrThrow(client_->Push(Gradients(1), 1, 1));
  std::vector<float> nan(ids_.size() * static_cast<std::size_t>(cluster_->spec_.tables[24].dim));
  nan[3] = std::numeric_limits<float>::quiet_NaN();
  std::vector<RowClient::Gradients> gradients;
  for (std::size_t t = 0; t < kTables; ++t) {
    gradients.push_back({.table = static_cast<int>(t), .ids = ids_, .values = values_[t]});
  }
  gradients[24].values = nan;
  status = client_->Push(gradients, 2, 1);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("\"table 24\""), HasSubstr("NaN")));
  gradients[24].values = values_[24];
  gradients[strict].ids = stranger;
  gradients[strict].values = gradients[strict].values.first(lookups[strict].rows.size());
  status = client_->Push(gradients, 2, 1);
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("\"table 23\""));
  ExpectSame();
}

// Buckets that have moved where the client has not been told, of some tables of a frame.
TEST_F(ManyTablesTest, AFrameGoesWhereItsBucketsWent) {
  Start(2);
  OrThrow(client_->Pull(Lookups(), 1));
  ExpectPulled(1);
  const auto chief = cluster_->NewClient(1000);
  for (const int table : {0, 7, 25}) {
    for (std::uint32_t bucket = 0; bucket < 64; bucket += 3) {
      OrThrow(chief->Move(table, bucket, bucket < 32 ? 1 : 0));
    }
  }
  OrThrow(client_->Push(Gradients(2), 2, 1));
  for (const int table : {3, 25}) {
    OrThrow(chief->Move(table, 1, 1));
  }
  OrThrow(client_->Pull(Lookups(), 2));
  ExpectPulled(2);
  ExpectSame();
}

TEST(RowClientTest, TablesLargerThanAFrameAreCutAndSmallOnesShareTheRest) {
  TwoTables cluster(1);
  cluster.spec_.tables.push_back(cluster.spec_.tables[1]);
  cluster.spec_.tables[2].name = "others";
  cluster.Initialise();
  const auto client = cluster.NewClient();
  std::vector<std::uint64_t> ids(120'000);  // of 20 bytes: 2.4 MB; of 8: 0.96 MB
  std::iota(ids.begin(), ids.end(), 0);
  std::array<std::vector<float>, 3> rows;
  std::vector<RowClient::Lookup> lookups;
  for (const std::size_t t : {0U, 1U, 2U}) {
    const std::size_t count = t == 2 ? 10 : ids.size();
    rows[t].resize(count * static_cast<std::size_t>(cluster.spec_.tables[t].dim));
    lookups.push_back(
        {.table = static_cast<int>(t), .ids = std::span(ids).first(count), .rows = rows[t]});
  }
  OrThrow(client->Pull(lookups, 1));
  EXPECT_EQ(cluster.servers_[0]->rows().stats().pulls, 4U) << "the last with two tables";
  for (const std::size_t t : {0U, 1U, 2U}) {
    std::vector<float> first(static_cast<std::size_t>(cluster.spec_.tables[t].dim));
    for (const std::uint64_t id : {lookups[t].ids.front(), lookups[t].ids.back()}) {
      InitialRow(cluster.spec_.tables[t], id, first);
      const auto got = lookups[t].rows.subspan(id * first.size(), first.size());
      EXPECT_TRUE(std::ranges::equal(got, first)) << t << ", id " << id;
    }
  }
}

}  // namespace
}  // namespace cohort::ps
