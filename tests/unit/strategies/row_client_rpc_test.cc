// Clients and servers of sparse tables over real connections, as threads of one process: rows on
// servers are the rows of one table, bit by bit.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <limits>
#include <map>
#include <numeric>
#include <thread>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "multi_worker/server_rows.h"
#include "parameter_server/frames/row_codec.h"
#include "parameter_server/frames/wire.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_file.h"
#include "parameter_server/rows/row_lookahead.h"
#include "parameter_server/rows/row_table.h"
#include "parameter_server/rows/rows_ahead.h"
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"
#include "synchronous/distributed_dataset.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using cohort::testing::TempDir;
using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Servers of a model with two tables.
class Cluster {
 public:
  explicit Cluster(int servers, std::uint32_t buckets = 64) {
    spec_.parameters = {{"bias", {3}, true, 0}};
    spec_.optimizer = Sgd({.learning_rate = 1})->config();
    spec_.servers = servers;
    TableSpec users;
    users.name = "users";
    users.dim = 5;
    users.seed = 3;
    users.buckets = buckets;
    users.initializer = {RowInitializer::Kind::kNormal, 0.1};
    users.optimizer = Adam({.learning_rate = 0.01})->config();
    TableSpec items = users;
    items.name = "items";
    items.dim = 1;
    items.optimizer = Ftrl({.learning_rate = 0.1})->config();
    spec_.tables = {users, items};
    for (int s = 0; s < servers; ++s) {
      servers_.push_back(OrThrow(Server::Start("127.0.0.1:0", s, Log())));
      addresses_.push_back("127.0.0.1:" + std::to_string(servers_.back()->port()));
    }
  }
  void Initialise() {
    const auto chief = Client::Make(spec_, addresses_, Options(1000));
    OrThrow(chief->Declare());
    OrThrow(chief->Assign(std::vector<float>(16), {}, 0));
  }
  static ClientOptions Options(std::uint64_t number, milliseconds patience = milliseconds(20'000)) {
    return {.client = number, .task = "worker:0", .peer_timeout = patience};
  }
  std::unique_ptr<RowClient> NewClient(std::uint64_t number = 1,
                                       milliseconds patience = milliseconds(20'000)) const {
    return RowClient::Make(spec_, addresses_, Options(number, patience));
  }

  ModelSpec spec_;
  std::vector<std::unique_ptr<Server>> servers_;
  std::vector<std::string> addresses_;
};

struct Call {
  std::vector<std::uint64_t> ids;
  std::vector<float> gradients;
};
// Ids that repeat, and gradients whose sums depend on the order.
Call RandomCall(std::size_t count, std::size_t dim, std::uint64_t step) {
  const Philox random(step, "calls");
  Call call;
  for (std::size_t i = 0; i < count; ++i) {
    const double u = random.Uniform(i);
    call.ids.push_back(static_cast<std::uint64_t>(u * u * 3000) * 0x9E3779B97F4A7C15ULL);
  }
  for (std::size_t i = 0; i < count * dim; ++i) {
    call.gradients.push_back(random.Normal(i, 1));
  }
  return call;
}

std::map<std::uint32_t, std::string> DumpOf(RowClient& client, int table) {
  std::map<std::uint32_t, std::string> dumps;
  OrThrow(client.Dump(table, [&](std::uint32_t bucket, std::string_view dump) {
    dumps[bucket] = dump;
    return OkStatus();
  }));
  return dumps;
}

// What a chief saves is one state of all servers, rows and values, whatever workers do meanwhile;
// buckets of 64 KiB and of several frames.
TEST(RowClientTest, ASnapshotIsOneStateOfAllServersWhileWorkersTrain) {
  for (const std::uint32_t buckets : {64U, 2U}) {
    Cluster cluster(2, buckets);
    cluster.spec_.tables[0].dim = buckets == 2 ? 400 : 5;  // times 3, and 3000 rows: 14 MB
    cluster.Initialise();
    const auto dim = static_cast<std::size_t>(cluster.spec_.tables[0].dim);
    const auto train = [&](RowClient& client, std::uint64_t first, std::uint64_t steps) {
      for (std::uint64_t step = first; step < first + steps; ++step) {
        const Call call = RandomCall(600, dim, step);
        std::vector<float> rows(call.gradients.size());
        OrThrow(client.Pull(0, call.ids, static_cast<std::int64_t>(step), true, rows));
        const RowClient::Gradients gradients{.table = 0, .ids = call.ids, .values = call.gradients};
        OrThrow(client.Push(std::span(&gradients, 1), static_cast<std::int64_t>(step), 1));
      }
    };
    const auto rows = cluster.NewClient(1);
    const auto client = Client::Make(cluster.spec_, cluster.addresses_, Cluster::Options(1));
    train(*rows, 1, 6);
    const auto before = DumpOf(*rows, 0);
    EXPECT_EQ(OrThrow(client->Freeze(1)), 0U);
    rows->ReadSnapshot(1);
    std::atomic<bool> stop{false};
    std::thread worker([&] {
      const auto its = cluster.NewClient(2);
      const auto dense = Client::Make(cluster.spec_, cluster.addresses_, Cluster::Options(2));
      std::vector<float> values(16);
      std::uint64_t step = 100;
      do {
        train(*its, step++, 1);
        OrThrow(dense->Push({.arena = std::vector<float>(16, 1.0F)}, values));
      } while (!stop && step < 1000);
    });
    EXPECT_TRUE(DumpOf(*rows, 0) == before);
    stop = true;
    worker.join();
    std::vector<float> values(16, 1.0F);
    OrThrow(client->PullState(values, {}));
    EXPECT_EQ(values[0], 0.0F);
    EXPECT_EQ(client->version(), 0U);
    EXPECT_GT(OrThrow(client->Thaw()), 0U) << "something was copied";
    EXPECT_EQ(OrThrow(client->Thaw()), 0U);
    EXPECT_FALSE(rows->Dump(0, [](std::uint32_t, std::string_view) { return OkStatus(); }).ok())
        << "it is gone";
    rows->ReadSnapshot(0);
    EXPECT_FALSE(DumpOf(*rows, 0) == before) << "nothing was trained";
    OrThrow(client->PullState(values, {}));
    EXPECT_LT(values[0], 0.0F);
  }
}

TEST(RowClientTest, RowsOnServersHaveTheBitsOfOneTable) {
  for (const int servers : {1, 3}) {
    Cluster cluster(servers);
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

// Three workers, two servers, both tables, of which one has no rows in some parts.
TEST(RowClientTest, RoundsAreOneUpdateAndWhatIsReadAfterThemHasThem) {
  Cluster cluster(2);
  cluster.Initialise();
  constexpr int kWorkers = 3;
  const TableSpec& spec = cluster.spec_.tables[0];
  const auto local = OrThrow(RowTable::Create(spec, {0, spec.buckets}));
  std::vector<float> expected(500 * 5);
  const Call looked_up = RandomCall(500, 5, 99);
  for (std::uint64_t round = 1; round <= 4; ++round) {
    std::vector<std::uint64_t> ids;
    std::vector<float> values;
    for (std::uint64_t w = 0; w < kWorkers; ++w) {
      if (w != round % 4) {
        const Call call = RandomCall(1, 5, 10 * round + w);
        ids.insert(ids.end(), call.ids.begin(), call.ids.end());
        values.insert(values.end(), call.gradients.begin(), call.gradients.end());
      }
    }
    OrThrow(local->Apply({.ids = ids,
                          .values = values,
                          .scale = static_cast<float>(1.0 / (kWorkers * 2)),
                          .step = static_cast<std::int64_t>(round)}));
  }
  OrThrow(local->Pull(looked_up.ids, 5, RowTable::Purpose::kReading, expected));
  std::vector<std::jthread> workers;
  for (int w = 0; w < kWorkers; ++w) {
    workers.emplace_back([&, w] {
      const auto client = cluster.NewClient(static_cast<std::uint64_t>(w) + 1);
      for (std::uint64_t round = 1; round <= 4; ++round) {
        const Call call = RandomCall(1, 5, 10 * round + static_cast<std::uint64_t>(w));
        std::vector<RowClient::Gradients> gradients;
        if (static_cast<std::uint64_t>(w) != round % 4) {
          gradients.push_back({.table = 0, .ids = call.ids, .values = call.gradients});
        }
        OrThrow(client->PushPart(gradients, static_cast<std::int64_t>(round), 2,
                                 {.round = round, .part = w, .parts = kWorkers}));
        client->ReadAfter(round);
        std::vector<float> rows(500 * 5);
        OrThrow(client->Pull(0, looked_up.ids, 1, /*training=*/false, rows));
        if (round == 4) {
          EXPECT_EQ(rows, expected);
        }
      }
    });
  }
}

TEST(RowClientTest, ARoundIsAppliedBeforeItsRowsAreReplaced) {
  Cluster cluster(2);
  cluster.Initialise();
  const auto client = cluster.NewClient();
  const auto saved = DumpOf(*client, 0);  // no rows
  const Call call = RandomCall(50, 5, 1);
  const std::vector<RowClient::Gradients> gradients = {
      {.table = 0, .ids = call.ids, .values = call.gradients}};
  OrThrow(client->PushPart(gradients, 1, 1, {.round = 1}));
  client->ReadAfter(1);
  OrThrow(client->Restore(
      0, [&](std::uint32_t bucket) -> Result<std::string> { return saved.at(bucket); }, nullptr));
  EXPECT_EQ(DumpOf(*client, 0), saved);
}

TEST(RowClientTest, ARoundThatNobodyCompletesIsNamedAtTheDeadline) {
  Cluster cluster(1);
  cluster.Initialise();
  ClientOptions options = Cluster::Options(1);
  options.read_timeout = milliseconds(50);
  const auto client = RowClient::Make(cluster.spec_, cluster.addresses_, options);
  OrThrow(client->PushPart({}, 1, 1, {.round = 1, .part = 0, .parts = 2}));
  client->ReadAfter(1);
  const std::vector<std::uint64_t> ids = {1};
  std::vector<float> row(5);
  const Status status = client->Pull(0, ids, 1, true, row);
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("ps:0"), HasSubstr("waits for part(s) 1 of 2")));
}

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
    cluster_ = std::make_unique<Cluster>(servers);
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

  std::unique_ptr<Cluster> cluster_;
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
  Cluster cluster(1);
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

// A table whose rows travel in fewer bytes holds what the rounded gradients make of it, and shows
// its rows rounded.
TEST(RowClientTest, RowsTravelInTheFormatOfTheirTable) {
  for (const TableSpec::Wire wire :
       {TableSpec::Wire::kFloat16, TableSpec::Wire::kBFloat16, TableSpec::Wire::kInt8}) {
    Cluster cluster(2);
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

DistributedBatch BatchOf(std::span<const std::uint64_t> ids) {
  DistributedBatch batch;
  data::Batch& part = batch.replicas.emplace_back();
  part.size = static_cast<std::int64_t>(ids.size());
  Tensor tensor(DType::kInt64, {part.size});
  std::ranges::copy(ids, tensor.data<std::int64_t>().begin());
  part.features["other"] = Tensor(DType::kFloat32, {part.size});
  part.features["user"] = std::move(tensor);
  return batch;
}

TEST(ServerRowsTest, TheNextBatchIsLookedUpAheadAndHasThisStepsUpdate) {
  Cluster cluster(2);
  cluster.Initialise();
  const auto client = cluster.NewClient();
  const TableSpec& spec = cluster.spec_.tables[0];
  const auto local = OrThrow(RowTable::Create(spec, {0, spec.buckets}));
  const auto servers = Client::Make(cluster.spec_, cluster.addresses_, {.client = 1001});
  const auto saver = cluster.NewClient();
  ServerRows rows(*client, {.servers = *servers, .rows = *saver}, cluster.spec_.tables,
                  /*threads=*/1, /*rank=*/0, /*processes=*/1);
  constexpr std::int64_t kSteps = 5;
  for (std::int64_t step = 1; step <= kSteps; ++step) {
    // The last one is not what was foreseen.
    const auto number = static_cast<std::uint64_t>(step == kSteps ? 100 : step);
    const Call call = RandomCall(300, 5, number);
    const DistributedBatch batch = BatchOf(call.ids);
    const DistributedBatch next = BatchOf(RandomCall(300, 5, number + 1).ids);
    rows.StartStep(step, batch);
    std::vector<float> there(call.gradients.size());
    std::vector<float> here(call.gradients.size());
    OrThrow(rows.Lookup(0, call.ids, /*training=*/true, there));
    OrThrow(local->Pull(call.ids, step, RowTable::Purpose::kTraining, here));
    ASSERT_EQ(there, here) << step;
    rows.Add(0, 0, call.ids, call.gradients);
    OrThrow(rows.Apply(step, 3, &next));
    OrThrow(rows.Finish());
    OrThrow(local->Apply({.ids = call.ids,
                          .values = call.gradients,
                          .scale = static_cast<float>(1.0 / 3),
                          .step = step}));
  }
  EXPECT_EQ(rows.foreseen(), kSteps - 2);
  rows.Forget();
  const TempDir dir;
  OrThrow(rows.Save(0, FileSystem::Local(), dir / "rows"));
  const auto loaded = OrThrow(RowTable::Create(spec, {0, spec.buckets}));
  const std::string path = dir / "rows";
  OrThrow(LoadRows(*loaded, FileSystem::Local(), std::span(&path, 1)));
  for (std::uint32_t bucket = 0; bucket < spec.buckets; ++bucket) {
    ASSERT_EQ(loaded->DumpBucket(bucket), local->DumpBucket(bucket)) << bucket;
  }
}

// Rows of all tables are fetched in one call. A feature that was taken for the ids of a table,
// which knows none of them, is no reason to do without the others' rows.
TEST(RowsAheadTest, TablesAreFetchedTogetherAndOneThatRefusesLeavesTheOthersTheirRows) {
  for (const bool refuses : {false, true}) {
    Cluster cluster(1);
    if (refuses) {
      cluster.spec_.tables[0].missing = TableSpec::Missing::kError;
    }
    cluster.Initialise();
    const auto client = cluster.NewClient();
    RowLookahead lookahead(cluster.spec_.tables);
    const std::vector<std::uint64_t> ids = {3, 4};
    lookahead.SetBatch(BatchOf(ids).replicas);
    lookahead.Learn(0, ids);
    lookahead.Learn(1, ids);
    const std::vector<std::uint64_t> next = {5, 6, 7};
    const std::vector<data::Batch> parts = BatchOf(next).replicas;
    RowsAhead ahead(cluster.spec_.tables);
    const RowsAhead::Batch batch{.number = 2, .lookups = lookahead.Foresee(parts)};
    ahead.Fetch(*client, std::span(&batch, 1), {}, 1);
    EXPECT_EQ(cluster.servers_[0]->rows().stats().pulls, 1U);
    EXPECT_EQ(cluster.servers_[0]->rows().stats().rejected, refuses ? 2U : 0U);
    std::vector<float> rows(next.size() * 5);
    EXPECT_EQ(ahead.Take(*client, 2, 0, next, rows), !refuses);
    rows.resize(next.size());
    EXPECT_FALSE(ahead.Take(*client, 1, 1, next, rows)) << "of another batch";
    ASSERT_TRUE(ahead.Take(*client, 2, 1, next, rows));
    for (std::size_t i = 0; i < next.size(); ++i) {
      std::vector<float> first(1);
      InitialRow(cluster.spec_.tables[1], next[i], first);
      EXPECT_EQ(rows[i], first[0]);
    }
  }
}

// Two batches ahead of table 0: ids {1, 2, 3}, and {3, 4, 1}.
class TwoBatchesAhead : public ::testing::Test {
 protected:
  TwoBatchesAhead() { cluster_.Initialise(); }

  static RowsAhead::Batch BatchOf(std::uint64_t number, const std::vector<std::uint64_t>& ids) {
    return {.number = number, .lookups = {{0, ids}}};
  }
  std::vector<float> Pull(const std::vector<std::uint64_t>& ids) {
    std::vector<float> rows(ids.size() * 5);
    OrThrow(other_->Pull(0, ids, 1, /*training=*/false, rows));
    return rows;
  }
  static void Push(RowClient& client, const std::vector<std::uint64_t>& ids) {
    const std::vector<float> gradients(ids.size() * 5, 1);
    const RowClient::Gradients push{.table = 0, .ids = ids, .values = gradients};
    OrThrow(client.Push(std::span(&push, 1), 1, 1));
  }
  bool Take(std::uint64_t number, const std::vector<std::uint64_t>& ids) {
    rows_.assign(ids.size() * 5, 0);
    return ahead_.Take(*client_, number, 0, ids, rows_);
  }

  Cluster cluster_{2};
  const std::unique_ptr<RowClient> client_ = cluster_.NewClient(1);
  const std::unique_ptr<RowClient> other_ = cluster_.NewClient(2);
  RowsAhead ahead_{cluster_.spec_.tables};
  const std::vector<std::uint64_t> second_ = {1, 2, 3};
  const std::vector<std::uint64_t> third_ = {3, 4, 1};
  const std::vector<std::uint64_t> fourth_ = {1, 7, 8};
  std::vector<float> rows_;  // that Take gave
};

TEST_F(TwoBatchesAhead, RowsThatThisProcessPushesArePulledAgainAndNoOthers) {
  const std::vector<RowsAhead::Batch> two = {BatchOf(2, second_), BatchOf(3, third_)};
  std::vector<RowsAhead::Exchange> exchanges = ahead_.Plan(two, {});
  ASSERT_EQ(exchanges.size(), 2U) << "the next batch does not wait for those behind it";
  exchanges[0].Run(*client_, 1);
  ahead_.Keep(std::move(exchanges[0]));
  EXPECT_TRUE(Take(2, second_));
  EXPECT_FALSE(Take(3, third_));
  exchanges[1].Run(*client_, 1);
  ahead_.Keep(std::move(exchanges[1]));
  EXPECT_TRUE(Take(3, third_));
  const std::vector<float> before = rows_;

  Push(*client_, {3, 9, 3});
  Push(*other_, {4});
  const std::vector<RowsAhead::Batch> next = {BatchOf(3, third_), BatchOf(4, fourth_)};
  exchanges = ahead_.Plan(next, {{3, 9, 3}});
  EXPECT_FALSE(Take(2, second_)) << "its batch is over";
  ASSERT_EQ(exchanges.size(), 2U);
  for (RowsAhead::Exchange& exchange : exchanges) {
    exchange.Run(*client_, 2);
    ahead_.Keep(std::move(exchange));
  }
  EXPECT_EQ(ahead_.refreshed(), 1);
  ASSERT_TRUE(Take(3, third_));
  const std::vector<float> now = Pull(third_);
  const auto row = [](const std::vector<float>& rows, std::size_t i) {
    return std::vector<float>(rows.begin() + static_cast<std::ptrdiff_t>(5 * i),
                              rows.begin() + static_cast<std::ptrdiff_t>(5 * (i + 1)));
  };
  EXPECT_NE(row(now, 0), row(before, 0));
  EXPECT_EQ(row(rows_, 0), row(now, 0));
  EXPECT_NE(row(now, 1), row(before, 1));
  EXPECT_EQ(row(rows_, 1), row(before, 1)) << "what others push is not asked for";
  EXPECT_EQ(row(rows_, 2), row(before, 2));
  EXPECT_TRUE(Take(4, fourth_));
  EXPECT_EQ(ahead_.taken(), 4);
}

TEST_F(TwoBatchesAhead, RowsThatCannotBePulledAgainAreNotUsed) {
  const std::vector<RowsAhead::Batch> two = {BatchOf(2, second_), BatchOf(3, third_)};
  ahead_.Fetch(*client_, two, {}, 1);
  ASSERT_TRUE(Take(3, third_));
  Push(*client_, {3});
  client_->Abort(Unavailable("ps:1 is lost"));
  ahead_.Fetch(*client_, std::span(two).last(1), {{3}}, 2);
  EXPECT_EQ(ahead_.refreshed(), 0);
  EXPECT_FALSE(Take(3, third_));
}

// A batch that was not wanted before, or whose lookups were not known then.
TEST_F(TwoBatchesAhead, OnlyWhatIsNotHeldIsPulled) {
  const RowsAhead::Batch batch = BatchOf(3, third_);
  ahead_.Fetch(*client_, std::span(&batch, 1), {}, 1);
  const std::uint64_t pulls =
      cluster_.servers_[0]->rows().stats().pulls + cluster_.servers_[1]->rows().stats().pulls;
  ahead_.Fetch(*client_, std::span(&batch, 1), {{2, 9}}, 1);
  EXPECT_EQ(cluster_.servers_[0]->rows().stats().pulls + cluster_.servers_[1]->rows().stats().pulls,
            pulls);
  const RowsAhead::Batch more{.number = 3, .lookups = {{0, third_}, {1, third_}}};
  ahead_.Fetch(*client_, std::span(&more, 1), {}, 1);
  EXPECT_TRUE(Take(3, third_));
  std::vector<float> items(third_.size());
  EXPECT_TRUE(ahead_.Take(*client_, 3, 1, third_, items));
  ahead_.Forget();
  EXPECT_FALSE(Take(3, third_));
}

// Three batches an epoch, and an error for the third of epoch 1.
class ThreeBatches final : public DistributedDataset {
 public:
  explicit ThreeBatches(int* fetched) : fetched_(fetched) {}
  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    epoch_ = epoch;
    index_ = first_batch;
    return {};
  }
  Result<std::optional<DistributedBatch>> Next() override {
    ++*fetched_;
    if (index_ == 3) {
      return std::optional<DistributedBatch>();
    }
    if (epoch_ == 1 && index_ == 2) {
      return DataLoss("broken");
    }
    return std::optional(DistributedBatch{.epoch = epoch_, .index = index_++});
  }
  std::int64_t batches_per_epoch() const override { return 3; }
  double input_seconds() const override { return *fetched_; }  // one for each that was fetched

 private:
  int* fetched_;
  std::int64_t epoch_ = 0;
  std::int64_t index_ = 0;
};

TEST(LookAheadTest, TheNextBatchIsThereToLookAtAndComesInItsTurn) {
  int fetched = 0;
  PeekNext peek;
  auto dataset = LookAhead(std::make_unique<ThreeBatches>(&fetched),
                           [&](PeekNext offered) { peek = std::move(offered); });
  OrThrow(dataset->BeginEpoch(0, 0));
  for (std::int64_t index = 0; index < 3; ++index) {
    EXPECT_EQ(OrThrow(dataset->Next())->index, index);
    if (index == 0) {
      EXPECT_EQ(fetched, 1) << "nobody has looked";
    }
    for (int looks = 0; looks < 2; ++looks) {
      const DistributedBatch* const next = peek();
      ASSERT_EQ(next != nullptr, index < 2);
      EXPECT_EQ(next == nullptr ? index + 1 : next->index, index + 1);
    }
  }
  EXPECT_FALSE(OrThrow(dataset->Next()).has_value());
  OrThrow(dataset->BeginEpoch(1, 1));
  EXPECT_FALSE(peek);
  EXPECT_EQ(OrThrow(dataset->Next())->index, 1);
  EXPECT_EQ(peek(), nullptr);
  EXPECT_EQ(dataset->Next().status(), DataLoss("broken"));
  EXPECT_EQ(dataset->input_seconds(), fetched) << "what was looked at has been waited for, too";
  dataset.reset();
  EXPECT_FALSE(peek);
}

TEST(ServerRowsTest, WithoutALookaheadEachLookupIsAsked) {
  Cluster cluster(1);
  cluster.Initialise();
  const auto client = cluster.NewClient();
  const auto servers = Client::Make(cluster.spec_, cluster.addresses_, {.client = 1001});
  const auto saver = cluster.NewClient();
  ServerRows rows(*client, {.servers = *servers, .rows = *saver}, cluster.spec_.tables,
                  /*threads=*/1, /*rank=*/0, /*processes=*/1, /*looks_ahead=*/false);
  const std::vector<std::uint64_t> ids = {3, 4};
  const DistributedBatch batch = BatchOf(ids);
  std::vector<float> there(10);
  for (std::int64_t step = 1; step <= 3; ++step) {
    rows.StartStep(step, batch);
    OrThrow(rows.Lookup(0, ids, /*training=*/true, there));
    rows.Add(0, 0, ids, std::vector<float>(10, 1));
    OrThrow(rows.Apply(step, 1, &batch));
    OrThrow(rows.Finish());
  }
  EXPECT_EQ(rows.foreseen(), 0);
  EXPECT_EQ(cluster.servers_[0]->rows().stats().pulls, 3U);
}

TEST(ServerRowsTest, GradientsThatAreNotFiniteLeaveTheProcessNeverToBeSent) {
  Cluster cluster(1);
  cluster.Initialise();
  const auto client = cluster.NewClient();
  const auto servers = Client::Make(cluster.spec_, cluster.addresses_, {.client = 1001});
  const auto saver = cluster.NewClient();
  ServerRows rows(*client, {.servers = *servers, .rows = *saver}, cluster.spec_.tables,
                  /*threads=*/1, /*rank=*/0, /*processes=*/1);
  const std::vector<std::uint64_t> ids = {3, 4};
  std::vector<float> gradients(10, 1);
  gradients[7] = std::numeric_limits<float>::infinity();
  rows.StartStep(1, BatchOf(ids));
  rows.Add(0, 0, ids, gradients);
  const Status status = rows.Apply(1, 1, nullptr);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("table \"users\""), HasSubstr("id 4")));
  EXPECT_EQ(rows.Finish(), OkStatus());
  EXPECT_EQ(cluster.servers_[0]->rows().stats().pushes, 0);
  OrThrow(rows.Apply(1, 1, nullptr));
  OrThrow(rows.Finish());
  EXPECT_EQ(cluster.servers_[0]->rows().stats().rows, 0) << "they are gone";
}

TEST(RowClientTest, ReadingMakesNoRows) {
  Cluster cluster(2);
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
  Cluster cluster(2);
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

TEST(RowClientTest, WhatWasDumpedIsRestoredOnAnyNumberOfServers) {
  Cluster saved(3, /*buckets=*/2);  // buckets of several frames
  saved.Initialise();
  const auto from = saved.NewClient();
  std::vector<std::uint64_t> ids(250'000);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = i * i;
  }
  std::vector<float> rows(ids.size() * 5);
  OrThrow(from->Pull(0, ids, 1, true, rows));
  const std::vector<RowClient::Gradients> gradients = {{.table = 0, .ids = ids, .values = rows}};
  OrThrow(from->Push(gradients, 1, 1));
  const auto dumps = DumpOf(*from, 0);
  ASSERT_EQ(dumps.size(), 2);
  ASSERT_GT(dumps.at(0).size(), 8U << 20);
  for (const int servers : {1, 2}) {
    Cluster other(servers, /*buckets=*/2);
    other.Initialise();
    const auto to = other.NewClient();
    const Call before = RandomCall(100, 5, 1);  // what is there is replaced
    const std::vector<RowClient::Gradients> garbage = {
        {.table = 0, .ids = before.ids, .values = before.gradients}};
    OrThrow(to->Push(garbage, 1, 1));
    OrThrow(to->Restore(
        0, [&](std::uint32_t bucket) -> Result<std::string> { return dumps.at(bucket); }, nullptr));
    EXPECT_EQ(DumpOf(*to, 0), dumps) << servers;
    // The last server's alone; the others keep the garbage.
    OrThrow(to->Push(garbage, 2, 1));
    const auto with_garbage = DumpOf(*to, 0);
    const std::vector<int> last = {servers - 1};
    OrThrow(to->Restore(
        0, [&](std::uint32_t bucket) -> Result<std::string> { return dumps.at(bucket); }, &last));
    const auto mixed = DumpOf(*to, 0);
    const BucketRange range = BucketsOf(servers - 1, servers, 2);
    for (const auto& [bucket, dump] : mixed) {
      const bool restored = bucket >= range.begin && bucket < range.end;
      EXPECT_TRUE(dump == (restored ? dumps : with_garbage).at(bucket)) << servers << " " << bucket;
    }
  }
}

TEST(RowClientTest, ErrorsNameServerAndTableAndTheServerGoesOn) {
  Cluster cluster(1);
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
  const auto stranger = Client::Make(other, cluster.addresses_, Cluster::Options(7));
  const Status differs = stranger->Declare();
  EXPECT_EQ(differs.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(differs.message(), HasSubstr("table \"items\" differs: declared with dim 1"));
  std::vector<float> rows(2);
  const auto strange_rows = RowClient::Make(other, cluster.addresses_, Cluster::Options(7));
  EXPECT_EQ(strange_rows->Pull(1, ids, 1, true, rows).code(), StatusCode::kFailedPrecondition);

  std::vector<float> row(5);
  EXPECT_EQ(client->Pull(0, ids, 1, true, row), OkStatus());
}

TEST(RowClientTest, AServerThatHoldsNothingYetSaysSo) {
  Cluster cluster(1);
  const auto client = cluster.NewClient();
  const std::vector<std::uint64_t> ids = {1};
  std::vector<float> row(5);
  EXPECT_EQ(client->Pull(0, ids, 1, true, row).code(), StatusCode::kUnavailable);
}

TEST(RowClientTest, AServerThatIsGoneIsNamedInTime) {
  Cluster cluster(2);
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
  Cluster cluster(2);
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

// A server that has 100 bytes of each bucket, and gives ten of them and then none.
class StingyServer final : public Rows::WithRawCallbackMethod_Dump<Rows::Service> {
 public:
  grpc::ServerUnaryReactor* Dump(grpc::CallbackServerContext* context,
                                 const grpc::ByteBuffer* request,
                                 grpc::ByteBuffer* reply) override {
    ++asked_;
    const ReceivedFrame received = OrThrow(Receive(*request));
    BucketPiece piece = received.frame.header.buckets(0);
    piece.set_bytes(piece.offset() == 0 ? 10 : 0);
    piece.set_total(100);
    FrameHeader header;
    *header.add_buckets() = piece;
    *reply = Assemble(header, {OwnedSlice(std::string(piece.bytes(), 'x'))});
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  int asked() const { return asked_; }

 private:
  std::atomic<int> asked_{0};
};

TEST(RowClientTest, AServerThatHasNoMoreOfABucketIsNamed) {
  StingyServer service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  const std::string address = "127.0.0.1:" + std::to_string(port);
  Cluster cluster(0, /*buckets=*/4);
  cluster.spec_.servers = 1;
  const auto client = RowClient::Make(cluster.spec_, {address}, Cluster::Options(1));
  std::atomic<bool> over{false};
  std::thread watch([&] {  // a dump that never ends is an error of this test, too
    const Deadline late = DeadlineAfter(std::chrono::seconds(20));
    while (!over && std::chrono::steady_clock::now() < late) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    if (!over) {
      client->Abort(DeadlineExceeded("the dump has not ended"));
    }
  });
  const Status status = client->Dump(0, [](std::uint32_t, std::string_view) { return Status(); });
  over = true;
  watch.join();
  EXPECT_EQ(status.code(), StatusCode::kInternal) << status.ToString();
  EXPECT_THAT(status.message(), AllOf(HasSubstr("ps:0 (" + address + ")"), HasSubstr("\"users\""),
                                      HasSubstr("what follows byte 10"), HasSubstr("bucket 0")));
  EXPECT_EQ(service.asked(), 5) << "once for each bucket, and for what is left of the first";
}

}  // namespace
}  // namespace cohort::ps
