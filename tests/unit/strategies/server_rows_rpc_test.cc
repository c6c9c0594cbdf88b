// A worker's rows over real connections: those of the next batch are fetched ahead of it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "multi_worker/server_rows.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_lookahead.h"
#include "parameter_server/rows/row_table.h"
#include "parameter_server/rows/rows_ahead.h"
#include "parameter_server/variables/client.h"
#include "synchronous/distributed_dataset.h"
#include "testing/temp_dir.h"
#include "two_tables.h"

namespace cohort::ps {
namespace {

using cohort::testing::TempDir;
using ::testing::AllOf;
using ::testing::HasSubstr;

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
  TwoTables cluster(2);
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
    rows.Add(0, {.table = 0, .ids = call.ids, .values = call.gradients});
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
    TwoTables cluster(1);
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

  TwoTables cluster_{2};
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
  TwoTables cluster(1);
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
    rows.Add(0, {.table = 0, .ids = ids, .values = std::vector<float>(10, 1)});
    OrThrow(rows.Apply(step, 1, &batch));
    OrThrow(rows.Finish());
  }
  EXPECT_EQ(rows.foreseen(), 0);
  EXPECT_EQ(cluster.servers_[0]->rows().stats().pulls, 3U);
}

TEST(ServerRowsTest, GradientsThatAreNotFiniteLeaveTheProcessNeverToBeSent) {
  TwoTables cluster(1);
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
  rows.Add(0, {.table = 0, .ids = ids, .values = gradients});
  const Status status = rows.Apply(1, 1, nullptr);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("table \"users\""), HasSubstr("id 4")));
  EXPECT_EQ(rows.Finish(), OkStatus());
  EXPECT_EQ(cluster.servers_[0]->rows().stats().pushes, 0);
  OrThrow(rows.Apply(1, 1, nullptr));
  OrThrow(rows.Finish());
  EXPECT_EQ(cluster.servers_[0]->rows().stats().rows, 0) << "they are gone";
}

}  // namespace
}  // namespace cohort::ps
