// What workers in step know of their servers, over a coordination service of real connections. The
// servers' processes are clients of it that hold nothing.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
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

// A client that stops behind the reading of a key, once.
class StoppingClient final : public CoordinationClient {
 public:
  explicit StoppingClient(std::unique_ptr<CoordinationClient> client)
      : client_(std::move(client)) {}

  void StopBehind(const std::string& key, std::function<void()> stop) {
    key_ = key;
    stop_ = std::move(stop);
  }

  Status Insert(const std::string& key, const std::string& value) override {
    return client_->Insert(key, value);
  }
  Result<std::string> Get(const std::string& key) override {
    Result<std::string> value = client_->Get(key);
    if (key == key_ && stop_) {
      std::exchange(stop_, {})();
    }
    return value;
  }
  Result<std::string> Wait(const std::string& key, Deadline deadline) override {
    return client_->Wait(key, deadline);
  }
  std::uint64_t incarnation() const override { return client_->incarnation(); }
  Status Barrier(const std::string& name, Deadline deadline,
                 const std::vector<TaskId>& participants) override {
    return client_->Barrier(name, deadline, participants);
  }
  Result<Generation> Regroup(const RegroupOptions& options) override {
    return client_->Regroup(options);
  }
  Status RegroupAsked() const override { return client_->RegroupAsked(); }
  void SetProgress(std::function<TaskProgress()> progress) override {
    client_->SetProgress(std::move(progress));
  }
  Status ReportError(const Status& error) override { return client_->ReportError(error); }
  Status failure() const override { return client_->failure(); }
  bool service_lost() const override { return client_->service_lost(); }
  void OnFailure(std::function<void(const Status&)> callback) override {
    client_->OnFailure(std::move(callback));
  }
  Status Shutdown() override { return client_->Shutdown(); }

 private:
  const std::unique_ptr<CoordinationClient> client_;
  std::string key_;
  std::function<void()> stop_;
};

// What is counted on other threads.
class Count {
 public:
  void Add() {
    {
      const std::lock_guard lock(mutex_);
      ++count_;
    }
    changed_.notify_all();
  }
  int now() const {
    const std::lock_guard lock(mutex_);
    return count_;
  }
  [[nodiscard]] bool Await(int least) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, seconds(20), [&] { return count_ >= least; });
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

// Two workers and two servers.
class ServerWatchTest : public ::testing::Test {
 protected:
  struct Worker {
    std::unique_ptr<StoppingClient> client;
    Count ended;  // how often its calls were
    std::function<void()> end;
    std::unique_ptr<ServerWatch> watch;
  };

  void Begin(milliseconds rejoin_grace = seconds(30)) {
    options_.rejoin_grace = rejoin_grace;
    options_.communication.timeout = seconds(30);
    options_.worker_patience = milliseconds(0);
    config_.cluster = cluster_;
    coordination_.heartbeat_interval = milliseconds(100);
    if (ServerWatch::GoesOn(config_, options_)) {
      coordination_.may_leave = [](const TaskId& task) {
        return task != TaskId{TaskType::kWorker, 0};
      };
    }
    service_ = OrThrow(CoordinationServer::Start("127.0.0.1:0", cluster_, coordination_));
    for (int s = 0; s < 2; ++s) {
      StartServer(s, "first");
    }
    for (int w = 0; w < 2; ++w) {
      StartWorker(w, workers_[w]);
    }
    service_->OnTaskLost([this](const TaskId&, const Status&) { told_.Add(); });
    for (const Worker& worker : workers_) {
      ASSERT_EQ(worker.watch->Meet(), OkStatus());
      EXPECT_EQ(worker.watch->crew(), cluster_.TrainingTasks());
      EXPECT_FALSE(worker.watch->joined_in_training());
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
    if (silent_) {
      release_.set_value();
    }
    for (Worker* worker : {&workers_[0], &workers_[1], &another_}) {
      if (worker->watch != nullptr) {
        worker->watch->Stop();
      }
    }
    servers_.clear();
    for (Worker* worker : {&workers_[0], &workers_[1], &another_}) {
      worker->client.reset();
    }
    service_.reset();
  }

  void BeginTraining() {
    ASSERT_TRUE(chief().BeginTraining());
    ASSERT_TRUE(other().BeginTraining());
  }

  void StartWorker(int index, Worker& worker) {
    config_.task = {TaskType::kWorker, index};
    worker.client = std::make_unique<StoppingClient>(Join(config_.task));
    worker.watch = std::make_unique<ServerWatch>(
        config_, options_,
        ServerWatch::Parts{.server = index == 0 ? service_.get() : nullptr,
                           .client = worker.client.get(),
                           .end_calls = [&worker](const Status&) {
                             worker.ended.Add();
                             if (worker.end) {
                               worker.end();
                             }
                           }});
  }
  // worker:1 stands still from now on, which the chief learns; and goes on alone.
  void LoseTheOther() {
    silent_ = true;
    workers_[1].client->SetProgress([released = release_.get_future().share()]() -> TaskProgress {
      released.wait();
      return {};
    });
    ASSERT_EQ(chief().CheckLoss(Unavailable("a collective")), OkStatus());
    EXPECT_THAT(chief().loss().message(), HasSubstr("worker:1"));
    ASSERT_EQ(chief().AwaitNextTerm(), OkStatus());
    EXPECT_EQ(chief().term(), 2U);
    EXPECT_THAT(chief().crew(), ElementsAre(TaskId{TaskType::kWorker, 0}));
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
  // ps:1 is lost, "second" is there in its place, and lost when the chief has read its address:
  // then the chief has been told so, and `then` follows.
  void LoseTheSecond(std::function<void()> then) {
    Lose(1);
    ASSERT_TRUE(told_.Await(1));
    StartServer(1, "second");
    workers_[0].client->StopBehind(ps::ProcessKey(1, servers_.at(1)->incarnation()),
                                   [this, then = std::move(then)] {
                                     Lose(1);
                                     EXPECT_TRUE(told_.Await(2));
                                     then();
                                   });
  }

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
  StrategyOptions options_;
  ClusterConfig config_;
  std::promise<void> release_;  // of the worker that stands still
  bool silent_ = false;         // there is one
  Count told_;                  // losses, of which the chief's watch was told before
  std::unique_ptr<CoordinationServer> service_;
  std::map<int, std::unique_ptr<CoordinationClient>> servers_;
  Worker workers_[2];
  Worker another_;  // in place of worker:1
};

TEST_F(ServerWatchTest, AllWorkersHearOfALossAndMeetAgainWhenThereIsAnotherProcess) {
  Begin();
  BeginTraining();
  Lose(1);
  for (Worker& worker : workers_) {
    EXPECT_EQ(worker.watch->CheckLoss(Unavailable("a push")), OkStatus());
    EXPECT_TRUE(worker.ended.Await(1));
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
    EXPECT_EQ(worker.ended.now(), 1);
  }
}

// Nobody has entered it yet: its loss counts all the same.
TEST_F(ServerWatchTest, OneThatIsLostWhileItIsAskedForIsReplacedByAThird) {
  Begin();
  BeginTraining();
  LoseTheSecond([this] { StartServer(1, "third"); });
  EXPECT_THAT(AwaitNextTerm(), ElementsAre(OkStatus(), OkStatus()));
  EXPECT_THAT(OrThrow(chief().Addresses()), ElementsAre("first 0", "third 1"));
}

TEST_F(ServerWatchTest, OneThatIsLostWhileItIsAskedForIsMissed) {
  Begin(milliseconds(200));
  BeginTraining();
  LoseTheSecond([] {});
  for (const Status& status : AwaitNextTerm()) {
    EXPECT_THAT(status.message(), AllOf(HasSubstr("ps:1 was lost as soon as it was there"),
                                        HasSubstr("within 0.2 s (rejoin_grace)")));
  }
}

// As it does where a communicator writes its flight record to a slow disk.
TEST_F(ServerWatchTest, ThatCallsTakeLongToEndHoldsUpNobodyElse) {
  std::promise<void> let_go;
  workers_[0].end = [done = let_go.get_future().share()] { done.wait_for(seconds(60)); };
  Begin();
  BeginTraining();
  Lose(1);
  EXPECT_TRUE(workers_[0].ended.Await(1));
  auto loss = std::async(std::launch::async, [this] { return chief().loss(); });
  EXPECT_EQ(loss.wait_for(seconds(20)), std::future_status::ready);
  EXPECT_EQ(other().CheckLoss(Unavailable("a push")), OkStatus());
  Lose(0);
  EXPECT_TRUE(told_.Await(2)) << "the service tells of others";
  StartServer(0, "second");
  StartServer(1, "second");
  auto next = std::async(std::launch::async, [this] { return AwaitNextTerm(); });
  EXPECT_EQ(chief().term(), 1U) << "calls of the next term would end, too";
  let_go.set_value();
  EXPECT_THAT(loss.get().message(), HasSubstr("ps:1"));
  EXPECT_THAT(next.get(), ElementsAre(OkStatus(), OkStatus()));
  EXPECT_EQ(workers_[0].ended.now(), 1);
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

TEST_F(ServerWatchTest, AWorkerIsDoneWithoutUntilAnotherProcessIsThereAtTheNextLoss) {
  coordination_.heartbeat_timeout = seconds(3);
  Begin();
  BeginTraining();
  LoseTheOther();
  StartWorker(1, another_);
  auto met = std::async(std::launch::async, [this] { return another_.watch->Meet(); });
  Lose(1);
  EXPECT_EQ(chief().CheckLoss(Unavailable("a push")), OkStatus());
  StartServer(1, "second");
  EXPECT_EQ(chief().AwaitNextTerm(), OkStatus());
  EXPECT_EQ(met.get(), OkStatus());
  EXPECT_TRUE(another_.watch->joined_in_training());
  EXPECT_TRUE(another_.watch->BeginTraining());
  for (const ServerWatch* watch : {&chief(), another_.watch.get()}) {
    EXPECT_EQ(watch->term(), 3U);
    EXPECT_EQ(watch->crew(), cluster_.TrainingTasks());
  }
  EXPECT_EQ(chief().EndTraining(), OkStatus());
  EXPECT_EQ(another_.watch->EndTraining(), OkStatus());
  EXPECT_FALSE(another_.watch->joined_in_training());
}

TEST_F(ServerWatchTest, OneThatComesTooLateEndsWithTheJob) {
  coordination_.heartbeat_timeout = seconds(3);
  Begin();
  BeginTraining();
  LoseTheOther();
  StartWorker(1, another_);
  auto met = std::async(std::launch::async, [this] { return another_.watch->Meet(); });
  EXPECT_EQ(chief().EndTraining(), OkStatus());
  chief().Leave();
  const Status ended = met.get();
  EXPECT_EQ(ended.code(), StatusCode::kAborted);
  EXPECT_THAT(ended.message(), HasSubstr("the job has ended without worker:1"));
}

// It has had an error that is its own, and nobody comes in its place.
TEST_F(ServerWatchTest, AWorkerThatLeavesWhileTheOthersTrainEndsTheJob) {
  Begin();
  BeginTraining();
  other().Stop();
  workers_[1].client.reset();
  const Status failure =
      servers_.at(0)->Wait("what nobody says", DeadlineAfter(seconds(30))).status();
  EXPECT_THAT(failure.ToString(),
              AllOf(HasSubstr("Cancelled"), HasSubstr("worker:1"), HasSubstr("before its end")));
  EXPECT_EQ(chief().loss(), OkStatus());
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
