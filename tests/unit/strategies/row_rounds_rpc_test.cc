// Rounds of pushes to sparse tables, over real connections.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_table.h"
#include "parameter_server/variables/client.h"
#include "two_tables.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Three workers, two servers, both tables, of which one has no rows in some parts.
TEST(RowClientTest, RoundsAreOneUpdateAndWhatIsReadAfterThemHasThem) {
  TwoTables cluster(2);
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
  TwoTables cluster(2);
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
  TwoTables cluster(1);
  cluster.Initialise();
  ClientOptions options = TwoTables::Options(1);
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

}  // namespace
}  // namespace cohort::ps
