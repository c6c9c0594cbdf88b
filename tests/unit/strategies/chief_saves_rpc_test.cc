// Saves that do not begin: a server refuses to keep what it has, and the job goes on. And ways back
// to a save that a program leaves in the middle: the job does not.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/optim/optimizers.h>

#include <cohort/parameter_server.pb.h>
#include "parameter_server/chief_saves.h"
#include "parameter_server/frames/exchange.h"
#include "parameter_server/frames/frame.h"
#include "parameter_server/frames/wire.h"
#include "parameter_server/job.h"
#include "parameter_server/remote_rows.h"
#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr char kKind[] = "parameter_server";
constexpr std::uint32_t kBuckets = 16;  // 8 at each of two servers

ModelSpec Model() {
  ModelSpec spec;
  spec.parameters = {{"bias", {3}, true, 0}};
  spec.optimizer = Sgd({.learning_rate = 1})->config();
  spec.servers = 2;
  TableSpec items;
  items.name = "items";
  items.dim = 2;
  items.buckets = kBuckets;
  items.optimizer = spec.optimizer;
  spec.tables = {items};
  return spec;
}

// A job of a chief, of which the test has the place, two servers and a worker that leaves at once.
class ChiefSavesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const TaskId chief = {TaskType::kChief, 0};
    const ClusterSpec cluster(
        {{chief, "127.0.0.1:" + std::to_string(cohort::testing::UnusedPorts(1)[0])},
         {{TaskType::kWorker, 0}, "127.0.0.1:0"},
         {{TaskType::kPs, 0}, "127.0.0.1:0"},
         {{TaskType::kPs, 1}, "127.0.0.1:0"}});
    for (const TaskId& task : cluster.Tasks()) {
      if (task != chief) {
        others_.push_back(std::async(std::launch::async, [this, cluster, task]() -> Status {
          COHORT_ASSIGN_OR_RETURN(const auto job, Join(cluster, task));
          if (job->is_server()) {
            COHORT_RETURN_IF_ERROR(job->server()->Declare(Model(), task.ToString()));
            ports_[static_cast<std::size_t>(task.index)].set_value(job->server()->port());
            COHORT_RETURN_IF_ERROR(job->ServeVariables());
          }
          return job->Leave();
        }));
      }
    }
    chief_ = OrThrow(Join(cluster, chief));
    Client& client = chief_->Connect(Model());
    OrThrow(client.Declare());
    OrThrow(client.Begin({}).status());
    OrThrow(client.Assign(std::vector<float>(3), {}, 0));
    OrThrow(chief_->scheduler()->Open(0, 0));
    std::vector<std::string> addresses;
    for (std::promise<int>& port : ports_) {
      addresses.push_back("127.0.0.1:" + std::to_string(port.get_future().get()));
    }
    moves_.emplace(DataChannels(addresses), ServerNames(addresses), milliseconds(10'000), "Rows",
                   chief_->epoch());
  }
  void TearDown() override {
    if (chief_ != nullptr) {
      EXPECT_EQ(chief_->Leave(), OkStatus());
      rows_.reset();
      chief_.reset();
    }
    for (std::future<Status>& other : others_) {
      EXPECT_EQ(other.get(), OkStatus());
    }
  }

  static Result<std::unique_ptr<Job>> Join(const ClusterSpec& cluster, const TaskId& task) {
    ClusterConfig config;
    config.cluster = cluster;
    config.task = task;
    return Job::Join(config, {.join_timeout = milliseconds(30'000)}, kKind);
  }
  ChiefSaves Saves(std::function<Status()> finish_last_round) {
    const Log log([this](LogLevel level, std::string_view message) {
      if (level == LogLevel::kWarning) {
        warnings_ += std::string(message) + "\n";
      }
    });
    return {*chief_, log, {.finish_last_round = std::move(finish_last_round), .refresh = [] {
                             return Status();
                           }}};
  }
  // Of a chief that has bound the model.
  void Bind(ChiefSaves& saves) {
    rows_.emplace([this]() -> RowClient& { return *chief_->rows(); }, Model().tables,
                  [] { return std::uint64_t{0}; }, step_);
    saves.Bind(Model().tables, &*rows_);
  }
  // One step of a bucket's way to the other server.
  Status Move(int server, std::uint32_t bucket, BucketMove::Step step) {
    FrameHeader header;
    header.set_client(3000);
    header.set_layout(Model().Fingerprint());
    header.set_epoch(chief_->epoch());
    header.set_sequence(++sequence_);
    header.mutable_rows()->set_table(0);
    header.add_buckets()->set_bucket(bucket);
    header.mutable_move()->set_step(step);
    header.mutable_move()->set_to(static_cast<std::uint32_t>(1 - server));
    std::vector<FrameCall> calls;
    calls.push_back({server, Assemble(header, {})});
    return moves_->Run("Move", std::move(calls), [](int, ReceivedFrame&) { return OkStatus(); });
  }

  std::string warnings_;
  std::unique_ptr<Job> chief_;
  std::optional<Exchange> moves_;
  std::optional<RemoteRows> rows_;

 private:
  const std::int64_t step_ = 0;
  std::uint64_t sequence_ = 0;
  std::promise<int> ports_[2];
  std::vector<std::future<Status>> others_;
};

TEST_F(ChiefSavesTest, WhatOneServerRefusesToKeepPutsTheSaveOff) {
  constexpr std::uint32_t kOfTheFirst = 0;
  constexpr std::uint32_t kOfTheSecond = kBuckets - 1;
  ChiefSaves saves = Saves([] { return Status(); });
  OrThrow(Move(1, kOfTheSecond, BucketMove::GIVE));
  for (std::uint64_t refused = 1; refused <= 2; ++refused) {
    warnings_.clear();
    const auto frozen = saves.TryFreeze({}, "no save now: ");
    ASSERT_TRUE(frozen.ok()) << frozen.status().ToString();
    EXPECT_FALSE(frozen->has_value());
    EXPECT_EQ(saves.failed(), refused);
    EXPECT_THAT(warnings_, HasSubstr("no save now: "));
    EXPECT_THAT(warnings_, HasSubstr("ps:1"));
    EXPECT_THAT(warnings_, HasSubstr("a bucket is on its way"));
    // What the first has begun to keep it keeps no more.
    EXPECT_EQ(Move(0, kOfTheFirst, BucketMove::GIVE), OkStatus());
    EXPECT_EQ(Move(0, kOfTheFirst, BucketMove::KEEP), OkStatus());
  }
  OrThrow(Move(1, kOfTheSecond, BucketMove::KEEP));
  const auto frozen = saves.TryFreeze({}, "no save now: ");
  ASSERT_TRUE(frozen.ok()) << frozen.status().ToString();
  EXPECT_TRUE(frozen->has_value());
  EXPECT_EQ(Move(0, kOfTheFirst, BucketMove::GIVE).code(), StatusCode::kFailedPrecondition)
      << "there is a snapshot";
  EXPECT_EQ(saves.failed(), 2U);
  OrThrow(chief_->client()->Thaw().status());
}

TEST_F(ChiefSavesTest, OnlyTheLossOfAProcessIsAnError) {
  Status of_the_round = ResourceExhausted("no memory for it");
  ChiefSaves saves = Saves([&] { return of_the_round; });
  auto frozen = saves.TryFreeze({}, "no save now: ");
  ASSERT_TRUE(frozen.ok()) << frozen.status().ToString();
  EXPECT_FALSE(frozen->has_value());
  EXPECT_THAT(warnings_, HasSubstr("no save now: "));
  EXPECT_THAT(warnings_, HasSubstr("no memory for it"));
  for (const Status& lost : {Unavailable("ps:1 does not answer"), Aborted("another chief")}) {
    of_the_round = lost;
    EXPECT_EQ(saves.TryFreeze({}, "no save now: ").status(), lost);
  }
  EXPECT_EQ(saves.failed(), 1U) << "of those the job goes back, or ends";
}

// ---- Going back ---------------------------------------------------------------------------------

using Restore = std::function<Result<std::int64_t>()>;

constexpr std::int64_t kSaved = 50;

// What the servers have in the first value of "bias".
float ValueOf(Job& chief) {
  std::vector<float> values(3);
  OrThrow(chief.client()->PullState(values, {}));
  return values[0];
}

TEST_F(ChiefSavesTest, WhatIsNotAllOfASaveIsNotGoneBackTo) {
  const testing::TempDir dir;
  const std::string file = dir / "items.rows";
  ChiefSaves saves = Saves([] { return Status(); });
  Bind(saves);
  OrThrow(saves.SaveTable(0, FileSystem::Local(), file));
  saves.BeginWith(std::vector<float>(3, 5.0F), {}, 0);
  const auto give_rows = [&] {
    OrThrow(saves.LoadTable(0, FileSystem::Local(), {file}, /*before_training=*/false));
  };
  const auto give_values = [&](std::int64_t step) {
    OrThrow(saves.Assign(std::vector<float>(3, 7.0F), {}, step));
  };
  const auto expect_refused = [&](const Restore& restore, const std::string& why) {
    saves.SetPlan({.restore = restore});
    const Status status = saves.Restore(nullptr).status();
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr(why));
    EXPECT_NE(ValueOf(*chief_), 5.0F) << "nor is that taken for the lack of a save";
  };
  const Restore lost_values = [&]() -> Result<std::int64_t> {
    give_rows();
    return NotFound("part-3 of step 50");
  };
  const Restore lost_rows = [&]() -> Result<std::int64_t> {
    give_values(kSaved);
    return saves.LoadTable(0, FileSystem::Local(), {dir / "nothing"}, false);
  };
  const Restore nothing = []() -> Result<std::int64_t> { return kSaved; };
  const Restore no_rows = [&]() -> Result<std::int64_t> {
    give_values(kSaved);
    return kSaved;
  };
  const Restore other_step = [&]() -> Result<std::int64_t> {
    give_rows();
    give_values(kSaved - 10);
    return kSaved;
  };
  expect_refused(lost_values, "part-3 of step 50");
  expect_refused(lost_rows, dir / "nothing");
  expect_refused(nothing, "has returned step 50, and given the servers no values");
  expect_refused(no_rows, "no rows of table \"items\"");
  expect_refused(other_step, "the values of step 40");
  // All of it is, on all servers or one.
  saves.SetPlan({.restore = [&]() -> Result<std::int64_t> {
    give_rows();
    give_values(kSaved);
    return kSaved;
  }});
  EXPECT_EQ(OrThrow(saves.Restore(nullptr)), kSaved);
  const Job::Lost lost = {.servers = {1}, .version = kSaved + 9};
  EXPECT_EQ(OrThrow(saves.Restore(&lost)), kSaved);
  EXPECT_EQ(ValueOf(*chief_), 7.0F);
  // So is the job's beginning, where there is no save.
  saves.SetPlan({.restore = [] { return Result<std::int64_t>(NotFound("no save")); }});
  EXPECT_EQ(OrThrow(saves.Restore(nullptr)), 0);
  EXPECT_EQ(ValueOf(*chief_), 5.0F);
}

TEST_F(ChiefSavesTest, WhatGoingBackThrowsIsItsError) {
  ChiefSaves saves = Saves([] { return Status(); });
  saves.BeginWith(std::vector<float>(3, 5.0F), {}, 0);
  const auto expect = [&](Restore restore, StatusCode code, const std::string& why) {
    saves.SetPlan({.restore = std::move(restore)});
    const Status status = saves.Restore(nullptr).status();
    EXPECT_EQ(status.code(), code) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr(why));
    EXPECT_EQ(ValueOf(*chief_), 0.0F);
  };
  expect([]() -> Result<std::int64_t> { return DataLoss("part-3 is damaged"); },
         StatusCode::kDataLoss, "part-3 is damaged");
  expect([]() -> Result<std::int64_t> { throw StatusError(DataLoss("part-4 is damaged")); },
         StatusCode::kDataLoss, "part-4 is damaged");
  // The same when it is tried again, and not.
  expect([]() -> Result<std::int64_t> { throw std::out_of_range("shelf 7"); },
         StatusCode::kFailedPrecondition, "SavePlan::restore has thrown: shelf 7");
  expect([]() -> Result<std::int64_t> { throw std::runtime_error("the store is away"); },
         StatusCode::kInternal, "the store is away");
}

TEST_F(ChiefSavesTest, WhereTheSaveIsGoneItIsSaidWhatWasFound) {
  ChiefSaves saves = Saves([] { return Status(); });
  saves.SetPlan({.restore = [] { return Result<std::int64_t>(NotFound("no save in /away")); }});
  const Status status = saves.Restore(nullptr).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
  EXPECT_THAT(status.message(), HasSubstr("is gone: no save in /away"));
}

}  // namespace
}  // namespace cohort::ps
