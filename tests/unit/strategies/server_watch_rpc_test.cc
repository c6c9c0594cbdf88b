// What workers in step know of their servers, over a coordination service of real connections. The
// servers' processes are clients of it that hold nothing.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <cohort/rpc/coordination.h>

#include "multi_worker/server_watch.h"
#include "parameter_server/job.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Two workers and two servers.
class ServerWatchTest : public ::testing::Test {
 protected:
  struct Worker {
    std::unique_ptr<CoordinationClient> client;
    std::atomic<int> ended = 0;  // how often its calls were
    std::unique_ptr<ServerWatch> watch;
  };

  void Begin(milliseconds rejoin_grace = seconds(30)) {
    StrategyOptions options;
    options.rejoin_grace = rejoin_grace;
    options.collective_timeout = seconds(30);
    ClusterConfig config;
    config.cluster = cluster_;
    coordination_.heartbeat_interval = milliseconds(100);
    if (ServerWatch::GoesOn(config, options)) {
      coordination_.may_leave = [](const TaskId& task) { return task.type == TaskType::kPs; };
    }
    service_ = OrThrow(CoordinationServer::Start("127.0.0.1:0", cluster_, coordination_));
    for (int s = 0; s < 2; ++s) {
      StartServer(s, "first");
    }
    for (int w = 0; w < 2; ++w) {
      config.task = {TaskType::kWorker, w};
      Worker& worker = workers_[w];
      worker.client = Join(config.task);
      worker.watch = std::make_unique<ServerWatch>(
          config, options,
          ServerWatch::Parts{.server = w == 0 ? service_.get() : nullptr,
                             .client = worker.client.get(),
                             .end_calls = [&worker](const Status&) { ++worker.ended; }});
    }
    // As Bind does.
    const auto addresses = OrThrow(chief().Addresses());
    EXPECT_THAT(addresses, ElementsAre("first 0", "first 1"));
    ASSERT_EQ(chief().SayReady(addresses), OkStatus());
    EXPECT_EQ(OrThrow(other().AwaitReady()), addresses);
  }

  ServerWatch& chief() { return *workers_[0].watch; }
  ServerWatch& other() { return *workers_[1].watch; }
  void TearDown() override {
    for (Worker& worker : workers_) {
      worker.watch->Stop();
    }
    servers_.clear();
    for (Worker& worker : workers_) {
      worker.client.reset();
    }
    service_.reset();
  }

  void BeginTraining() {
    ASSERT_TRUE(chief().BeginTraining());
    ASSERT_TRUE(other().BeginTraining());
  }

  std::unique_ptr<CoordinationClient> Join(const TaskId& task) {
    return OrThrow(CoordinationClient::Join("127.0.0.1:" + std::to_string(service_->port()),
                                            cluster_, task,
                                            /*wait_for_all=*/false, coordination_));
  }
  void StartServer(int server, const std::string& process) {
    servers_[server] = Join({TaskType::kPs, server});
    ASSERT_EQ(servers_[server]->Insert(ps::ProcessKey(server, servers_[server]->incarnation()),
                                       process + " " + std::to_string(server)),
              OkStatus());
  }
  void Lose(int server) { servers_.erase(server); }

  // Of both, who call at the same time.
  std::vector<Status> AwaitNextTerm() {
    auto others = std::async(std::launch::async, [this] { return other().AwaitNextTerm(); });
    const Status chiefs = chief().AwaitNextTerm();
    return {chiefs, others.get()};
  }
  // What ends the job.
  Status Failure() {
    return workers_[1].client->Wait("what nobody says", DeadlineAfter(seconds(30))).status();
  }

  const ClusterSpec cluster_{std::map<TaskId, std::string>{
      {{TaskType::kWorker, 0}, "127.0.0.1:0"},
      {{TaskType::kWorker, 1}, "127.0.0.1:0"},
      {{TaskType::kPs, 0}, "127.0.0.1:0"},
      {{TaskType::kPs, 1}, "127.0.0.1:0"},
  }};
  CoordinationOptions coordination_;
  std::unique_ptr<CoordinationServer> service_;
  std::map<int, std::unique_ptr<CoordinationClient>> servers_;
  Worker workers_[2];
};

TEST_F(ServerWatchTest, AllWorkersHearOfALossAndMeetAgainWhenThereIsAnotherProcess) {
  Begin();
  BeginTraining();
  Lose(1);
  for (Worker& worker : workers_) {
    EXPECT_EQ(worker.watch->CheckLoss(Unavailable("a push")), OkStatus());
    EXPECT_EQ(worker.ended, 1);
    EXPECT_THAT(worker.watch->loss().message(), HasSubstr("ps:1"));
    EXPECT_EQ(worker.watch->CheckLoss(InvalidArgument("of a step")).code(),
              StatusCode::kInvalidArgument)
        << "no loss leads to that";
  }
  StartServer(1, "second");
  EXPECT_THAT(AwaitNextTerm(), ElementsAre(OkStatus(), OkStatus()));
  EXPECT_THAT(OrThrow(chief().Addresses()), ElementsAre("first 0", "second 1"));
  for (Worker& worker : workers_) {
    EXPECT_EQ(worker.watch->term(), 2U);
    EXPECT_EQ(worker.watch->loss(), OkStatus());
    EXPECT_EQ(worker.ended, 1);
  }
}

TEST_F(ServerWatchTest, ServersThatAreLostTogetherAreWaitedForTogetherAndSoAreLaterOnes) {
  Begin();
  BeginTraining();
  Lose(1);
  ASSERT_EQ(chief().CheckLoss(Unavailable("a push")), OkStatus());
  Lose(0);
  auto both = std::async(std::launch::async, [this] { return AwaitNextTerm(); });
  StartServer(0, "second");
  StartServer(1, "second");
  EXPECT_THAT(both.get(), ElementsAre(OkStatus(), OkStatus()));
  EXPECT_THAT(OrThrow(chief().Addresses()), ElementsAre("second 0", "second 1"));

  Lose(0);
  EXPECT_EQ(other().CheckLoss(Unavailable("a push")), OkStatus());
  StartServer(0, "third");
  EXPECT_THAT(AwaitNextTerm(), ElementsAre(OkStatus(), OkStatus()));
  EXPECT_THAT(OrThrow(chief().Addresses()), ElementsAre("third 0", "second 1"));
  EXPECT_EQ(chief().term(), 3U);
}

TEST_F(ServerWatchTest, WhenTrainingIsOverALossEndsTheJob) {
  Begin();
  BeginTraining();
  EXPECT_EQ(chief().EndTraining(), OkStatus());
  EXPECT_EQ(other().EndTraining(), OkStatus());
  Lose(0);
  EXPECT_THAT(Failure().ToString(), AllOf(HasSubstr("Unavailable"), HasSubstr("ps:0")));
  EXPECT_EQ(other().CheckLoss(Unavailable("a lookup")).message(), "a lookup");
}

TEST_F(ServerWatchTest, TrainingThatHasLostAServerIsOverForNobody) {
  Begin();
  BeginTraining();
  Lose(0);
  ASSERT_EQ(chief().CheckLoss(Unavailable("a lookup")), OkStatus());
  for (Worker& worker : workers_) {
    EXPECT_THAT(worker.watch->EndTraining().message(), HasSubstr("ps:0"));
  }
  StartServer(0, "second");
  EXPECT_THAT(AwaitNextTerm(), ElementsAre(OkStatus(), OkStatus()));
  EXPECT_EQ(chief().EndTraining(), OkStatus());
  EXPECT_EQ(other().EndTraining(), OkStatus());
}

TEST_F(ServerWatchTest, BeforeTrainingALossEndsTheJob) {
  Begin();
  Lose(1);
  EXPECT_THAT(Failure().ToString(), AllOf(HasSubstr("Unavailable"), HasSubstr("ps:1")));
}

TEST_F(ServerWatchTest, ThatNobodyComesIsSaidWithItsName) {
  Begin(milliseconds(200));
  BeginTraining();
  Lose(1);
  ASSERT_EQ(chief().CheckLoss(Unavailable("a push")), OkStatus());
  for (const Status& status : AwaitNextTerm()) {
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(status.message(),
                HasSubstr("no other process has taken its place within 0.2 s (rejoin_grace) [start "
                          "ps:1 again"));
  }
}

TEST_F(ServerWatchTest, WithoutAGraceNothingIsWaitedFor) {
  Begin(milliseconds(0));
  EXPECT_FALSE(chief().BeginTraining());
  Lose(1);
  EXPECT_THAT(Failure().message(), HasSubstr("ps:1"));
  EXPECT_EQ(chief().CheckLoss(Unavailable("a push")).message(), "a push");
  EXPECT_EQ(chief().EndTraining(), OkStatus());
}

}  // namespace
}  // namespace cohort
