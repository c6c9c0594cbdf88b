// Functions that the chief calls and workers run: the queue, and the chief's waits.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <numeric>

#include <cohort/data/memory.h>
#include <cohort/strategies/coordinator.h>

#include "parameter_server/chief/closure_queue.h"
#include "parameter_server/chief/remote_functions.h"
#include "parameter_server/chief/scheduler.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr milliseconds kAtOnce{0};
constexpr std::chrono::minutes kPatience{1};

TaskId Worker(int index) { return {TaskType::kWorker, index}; }
Sender Process(int index, std::uint64_t incarnation) {
  return {.task = Worker(index), .incarnation = incarnation};
}

// ---- ClosureQueue -------------------------------------------------------------------------------

TEST(ClosureQueue, HandsOutInOrderOneToEachWorker) {
  ClosureQueue queue(10, 1, Log());
  const auto first = queue.Add("train", "a");
  queue.Add("train", "b");
  EXPECT_EQ(queue.Next(Worker(0))->argument, "a");
  EXPECT_EQ(queue.Next(Worker(0))->id, 1) << "the same to a repeated request";
  EXPECT_EQ(queue.Next(Worker(1))->argument, "b");
  EXPECT_EQ(queue.Next(Worker(2)), nullptr);
  EXPECT_EQ(queue.Describe(), "0 wait, train (1) runs on worker:0, train (2) runs on worker:1");
  queue.Finish(Worker(0), 1, std::string("value"));
  EXPECT_TRUE(first->over);
  EXPECT_EQ(first->value, "value");
  EXPECT_FALSE(queue.idle());
  queue.Finish(Worker(1), 2, std::string());
  EXPECT_TRUE(queue.idle());
}

TEST(ClosureQueue, WhatALostWorkerHeldRunsAgainAndCountsOnce) {
  ClosureQueue queue(10, 1, Log());
  const auto result = queue.Add("train", "a");
  queue.Add("train", "b");
  queue.Next(Worker(0));
  queue.Lost(Worker(0), Unavailable("killed"));
  queue.Lost(Worker(0), Unavailable("killed"));
  EXPECT_EQ(queue.waiting(), 2U);
  EXPECT_EQ(queue.Next(Worker(1))->argument, "a") << "before anything new";
  queue.Finish(Worker(0), 1, std::string("late"));
  EXPECT_FALSE(result->over) << "who lost it has no say any more";
  queue.Finish(Worker(1), 1, std::string("in time"));
  queue.Finish(Worker(1), 1, std::string("repeated"));
  EXPECT_EQ(result->value, "in time");
}

TEST(ClosureQueue, InfrastructureIsNotTheClosuresErrorUntilAttemptsRunOut) {
  ClosureQueue queue(3, 1, Log());
  const auto result = queue.Add("train", "a");
  for (const Status& why : {Unavailable("ps:0 is gone"), Aborted("taken over")}) {
    EXPECT_EQ(queue.Next(Worker(0))->id, 1);
    queue.Finish(Worker(0), 1, why);
    EXPECT_FALSE(result->over);
    EXPECT_TRUE(queue.error().ok());
  }
  queue.Next(Worker(1));
  queue.Lost(Worker(1), Unavailable("killed"));
  EXPECT_TRUE(result->over);
  EXPECT_EQ(queue.error().code(), StatusCode::kUnavailable);
  EXPECT_THAT(queue.error().message(),
              AllOf(HasSubstr("train (1) on worker:1: killed"), HasSubstr("last of 3 attempts")));
}

TEST(ClosureQueue, WhatFailsWhenAServerWasLostIsNoAttempt) {
  ClosureQueue queue(2, 2, Log());
  queue.Add("train", "a");
  queue.Add("train", "b");
  for (int loss = 0; loss < 3; ++loss) {
    EXPECT_EQ(queue.Next(Worker(0))->id, 1);
    queue.ServerLost();
    queue.ServerLost();
    queue.Finish(Worker(0), 1, Unavailable("ps:0 is gone"));
  }
  EXPECT_TRUE(queue.error().ok());
  for (int attempt = 0; attempt < 2; ++attempt) {
    EXPECT_TRUE(queue.error().ok());
    EXPECT_EQ(queue.Next(Worker(0))->id, 1) << "the next run is one";
    queue.Finish(Worker(0), 1, Unavailable("by itself"));
  }
  EXPECT_THAT(queue.error().message(), HasSubstr("last of 2 attempts"));
}

TEST(ClosureQueue, AnErrorCancelsWhatWaitsAndIsTakenOnce) {
  ClosureQueue queue(10, 1, Log());
  const auto failed = queue.Add("train", "a");
  const auto good = queue.Add("train", "b");
  const auto lost = queue.Add("train", "c");
  const auto waits = queue.Add("train", "d");
  queue.Next(Worker(0));
  queue.Next(Worker(1));
  queue.Next(Worker(2));
  queue.Finish(Worker(0), 1, DataLoss("bad file"));
  EXPECT_EQ(failed->error, DataLoss("train (1) on worker:0: bad file"));
  EXPECT_EQ(waits->error.code(), StatusCode::kCancelled);
  EXPECT_THAT(waits->error.message(), HasSubstr("bad file"));
  queue.Finish(Worker(1), 2, std::string("good"));
  EXPECT_EQ(good->value, "good") << "what ran then counts";
  queue.Lost(Worker(2), Unavailable("killed"));
  EXPECT_EQ(lost->error.code(), StatusCode::kCancelled) << "and is not run again";
  EXPECT_TRUE(queue.idle());
  EXPECT_EQ(queue.TakeError(), failed->error);
  EXPECT_TRUE(queue.TakeError().ok());
  queue.Add("train", "e");
  EXPECT_EQ(queue.Next(Worker(0))->argument, "e") << "it goes on";
}

std::int64_t IdOf(const Closure* closure) { return closure == nullptr ? 0 : closure->id; }

TEST(ClosureQueue, AWorkerHoldsSeveralButNotTheLastFew) {
  ClosureQueue queue(10, 3, Log());
  for (const char* argument : {"a", "b", "c", "d", "e", "f"}) {
    queue.Add("train", argument);
  }
  using Ids = std::vector<std::int64_t>;
  EXPECT_EQ(IdOf(queue.Next(Worker(0))), 1);
  EXPECT_EQ(IdOf(queue.Next(Worker(0), Ids{1})), 2);
  EXPECT_EQ(IdOf(queue.Next(Worker(0), Ids{1})), 2) << "the answer was lost";
  EXPECT_EQ(IdOf(queue.Next(Worker(0), Ids{1, 2})), 3);
  EXPECT_EQ(IdOf(queue.Next(Worker(0), Ids{1, 2, 3})), 0);
  EXPECT_EQ(queue.Describe(),
            "3 wait, train (1) runs on worker:0, train (2) behind it, train (3) behind it");
  EXPECT_EQ(queue.running(), 3U);
  queue.Finish(Worker(0), 1, std::string());
  EXPECT_EQ(IdOf(queue.Next(Worker(0), Ids{2, 3}, /*spared=*/3)), 0) << "left for others";
  EXPECT_EQ(IdOf(queue.Next(Worker(0), Ids{2, 3}, /*spared=*/2)), 4);
  EXPECT_EQ(IdOf(queue.Next(Worker(1), Ids{}, /*spared=*/2)), 5) << "who has none gets one";
}

TEST(ClosureQueue, AllThatALostWorkerHeldReturnsInItsOrderAndOnlyTheFirstHasRun) {
  ClosureQueue queue(2, 3, Log());
  std::vector<std::shared_ptr<RemoteResult>> results;
  for (const char* argument : {"a", "b", "c", "d"}) {
    results.push_back(queue.Add("train", argument));
  }
  using Ids = std::vector<std::int64_t>;
  const auto take_three = [&](int worker) {
    EXPECT_EQ(IdOf(queue.Next(Worker(worker))), 1);
    EXPECT_EQ(IdOf(queue.Next(Worker(worker), Ids{1})), 2);
    EXPECT_EQ(IdOf(queue.Next(Worker(worker), Ids{1, 2})), 3);
  };
  take_three(0);
  queue.Lost(Worker(0), Unavailable("killed"));
  EXPECT_EQ(queue.waiting(), 4U);
  EXPECT_EQ(queue.running(), 0U);
  take_three(1);
  queue.Finish(Worker(1), 1, std::string("value"));
  queue.Finish(Worker(0), 2, std::string("late"));
  EXPECT_FALSE(results[1]->over);
  queue.Lost(Worker(1), Unavailable("killed"));  // while 2 ran, for the first time
  EXPECT_TRUE(queue.error().ok());
  EXPECT_EQ(IdOf(queue.Next(Worker(2))), 2);
  queue.Lost(Worker(2), Unavailable("killed"));
  EXPECT_EQ(queue.error().code(), StatusCode::kUnavailable) << "its second run was its last";
  EXPECT_EQ(results[0]->value, "value");
  EXPECT_EQ(results[2]->error.code(), StatusCode::kCancelled);
}

TEST(Functions, ErrorsAreStatuses) {
  Functions functions;
  functions.Add("echo", [](const std::string& text) { return text; });
  functions.Add("throws", [](const std::string&) -> Result<std::string> {
    throw StatusError(DataLoss("bad file"));
  });
  functions.Add("breaks", [](const std::string&) -> Result<std::string> {
    throw std::runtime_error("by itself");
  });
  EXPECT_EQ(OrThrow(functions.Call("echo", "text")), "text");
  EXPECT_EQ(functions.Call("throws", "").status(), DataLoss("bad file"));
  EXPECT_EQ(functions.Call("breaks", "").status(), Internal("exception: by itself"));
  EXPECT_EQ(functions.Call("trian", "").status(),
            NotFound("no function is called 'trian' [there are: breaks, echo, throws]"));
  EXPECT_THROW(functions.Add("echo", [](const std::string& text) { return text; }), ContractError);
}

TEST(Functions, DataSetsAreMadeByNameAndOnlyForFunctionsThatTakeThem) {
  Functions functions;
  functions.Add("plain", [](const std::string& text) { return text; });
  functions.Add(
      "sum",
      [](const std::string&, std::span<data::BatchIterator* const> data) -> Result<std::string> {
        return std::to_string(data.size());
      });
  functions.AddDataset("unbatched", [](const InputPipeline&) -> Result<data::Dataset> {
    return data::FromTensors({{"id", Tensor(DType::kInt64, Shape{4})}});
  });
  functions.AddDataset("broken", [](const InputPipeline& pipeline) -> Result<data::Dataset> {
    return DataLoss("part " + std::to_string(pipeline.index) + " of " +
                    std::to_string(pipeline.count));
  });
  data::BatchIterator* const none = nullptr;
  EXPECT_EQ(OrThrow(functions.Call("sum", "", {&none, 1})), "1");
  EXPECT_EQ(OrThrow(functions.Call("sum", "")), "0");
  EXPECT_EQ(functions.Call("plain", "", {&none, 1}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(functions.MakeDataset("unbatched", {}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(functions.MakeDataset("broken", {.index = 1, .count = 3}).status(),
            DataLoss("part 1 of 3"));
  EXPECT_EQ(functions.MakeDataset("other", {}).status(),
            NotFound("no data set is called 'other' [there are: broken, unbatched]"));
}

TEST(Functions, OtherStrategiesHaveNoCoordinator) {
  const auto strategy = OrThrow(Strategy::FromEnv("one_device"));
  EXPECT_EQ(cohort::Coordinator::Create(*strategy).status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(ServeFunctions(*strategy, {}).code(), StatusCode::kFailedPrecondition);
}

// ---- Without a network --------------------------------------------------------------------------

class FunctionsTest : public ::testing::Test {
 protected:
  FunctionsTest()
      : state_({.workers = {Worker(0), Worker(1)}, .rejoin_timeout = milliseconds(50)}) {
    OrThrow(state_.Attach(Process(0, 10)));
    OrThrow(state_.Attach(Process(1, 11)));
  }
  void Create(const ScheduleOptions& options = {}) {
    coordinator_ = OrThrow(OpenFunctions(state_, options));
    OrThrow(state_.Open(0));
  }
  RemoteValue Schedule(const std::string& argument) {
    return OrThrow(coordinator_->Schedule("train", argument));
  }
  ClosureReply Next(const Sender& sender) {
    return OrThrow(state_.NextClosure(sender, {}, kAtOnce));
  }
  // The worker runs what comes next, for which it waits: while a lost server is seen to, none does.
  void Run(const Sender& sender, const Result<std::string>& outcome) {
    const ClosureReply reply = OrThrow(state_.NextClosure(sender, {}, kPatience));
    ASSERT_EQ(reply.progress, Progress::kGo);
    OrThrow(state_.FinishClosure(sender, reply.closure.id, outcome));
  }

  ps::Scheduler state_;
  std::unique_ptr<cohort::Coordinator> coordinator_;
};

TEST_F(FunctionsTest, WorkersWaitForTheFirstCallAndLeaveAfterTheLast) {
  EXPECT_EQ(Next(Process(0, 10)).progress, Progress::kWait) << "no coordinator yet";
  Create();
  EXPECT_EQ(Next(Process(0, 10)).progress, Progress::kWait);
  EXPECT_TRUE(coordinator_->Done());
  const RemoteValue value = Schedule("a");
  EXPECT_FALSE(coordinator_->Done());
  Run(Process(0, 10), std::string("result"));
  EXPECT_TRUE(coordinator_->Done());
  OrThrow(coordinator_->Join(DeadlineAfter(kAtOnce)));
  EXPECT_EQ(OrThrow(coordinator_->Fetch(value, DeadlineAfter(kAtOnce))), "result");
  EXPECT_EQ(OrThrow(coordinator_->Fetch(value, DeadlineAfter(kAtOnce))), "result");
  coordinator_->Close();
  EXPECT_EQ(Next(Process(0, 10)).progress, Progress::kOver);
  EXPECT_EQ(coordinator_->Schedule("train", "").status().code(), StatusCode::kFailedPrecondition);
}

TEST_F(FunctionsTest, DeadlinesNameWhatRunsAndWhere) {
  Create();
  const RemoteValue value = Schedule("a");
  Schedule("b");
  Next(Process(1, 11));
  const Status late = DeadlineExceeded("Join at its deadline: 1 wait, train (1) runs on worker:1");
  EXPECT_EQ(coordinator_->Join(DeadlineAfter(kAtOnce)), late);
  EXPECT_EQ(coordinator_->Fetch(value, DeadlineAfter(kAtOnce)).status().code(),
            StatusCode::kDeadlineExceeded);
}

TEST_F(FunctionsTest, AnErrorIsReturnedOnceWhenNothingRunsAndForgotten) {
  Create({.schedule_timeout = kAtOnce});
  const RemoteValue failed = Schedule("a");
  const RemoteValue good = Schedule("b");
  const RemoteValue cancelled = Schedule("c");
  Next(Process(0, 10));
  Next(Process(1, 11));
  Run(Process(0, 10), DataLoss("bad file"));
  EXPECT_EQ(coordinator_->Schedule("train", "d").status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(coordinator_->Join(DeadlineAfter(kAtOnce)).code(), StatusCode::kDeadlineExceeded);
  Run(Process(1, 11), std::string("good"));
  EXPECT_EQ(coordinator_->Schedule("train", "d").status().code(), StatusCode::kDataLoss);
  OrThrow(coordinator_->Join(DeadlineAfter(kAtOnce)));
  EXPECT_EQ(OrThrow(coordinator_->Fetch(good, DeadlineAfter(kAtOnce))), "good");
  EXPECT_EQ(coordinator_->Fetch(failed, DeadlineAfter(kAtOnce)).status().code(),
            StatusCode::kDataLoss);
  EXPECT_EQ(coordinator_->Fetch(cancelled, DeadlineAfter(kAtOnce)).status().code(),
            StatusCode::kCancelled);
  const RemoteValue next = Schedule("e");
  Run(Process(0, 10), std::string("on"));
  EXPECT_EQ(OrThrow(coordinator_->Fetch(next, DeadlineAfter(kAtOnce))), "on");
}

TEST_F(FunctionsTest, FetchAndJoinReturnTheErrorToo) {
  Create();
  const RemoteValue failed = Schedule("a");
  const RemoteValue cancelled = Schedule("b");
  Run(Process(0, 10), InvalidArgument("odd"));
  EXPECT_EQ(coordinator_->Fetch(cancelled, DeadlineAfter(kAtOnce)).status().code(),
            StatusCode::kInvalidArgument);
  OrThrow(coordinator_->Join(DeadlineAfter(kAtOnce)));
  Schedule("c");
  Run(Process(0, 10), InvalidArgument("odd"));
  EXPECT_EQ(coordinator_->Join(DeadlineAfter(kAtOnce)).code(), StatusCode::kInvalidArgument);
  OrThrow(coordinator_->Join(DeadlineAfter(kAtOnce)));
}

TEST_F(FunctionsTest, ScheduleWaitsForRoom) {
  Create({.max_waiting = 1, .schedule_timeout = kAtOnce});
  Schedule("a");
  EXPECT_EQ(coordinator_->Schedule("train", "b").status().code(), StatusCode::kDeadlineExceeded);
  Next(Process(0, 10));
  Schedule("b");
}

TEST_F(FunctionsTest, ScheduleRefusesWhatCannotTravel) {
  Create();
  EXPECT_EQ(coordinator_->Schedule("", "a").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(coordinator_->Schedule("train", std::string(kMaxFunctionBytes, 'a')).status().code(),
            StatusCode::kInvalidArgument);
}

TEST_F(FunctionsTest, AnotherWorkerOrTheSameComeBackRunsWhatALostOneHeld) {
  Create();
  const RemoteValue value = Schedule("a");
  const std::int64_t id = Next(Process(0, 10)).closure.id;
  state_.Lost(Worker(0), Unavailable("killed"));
  EXPECT_EQ(state_.NextClosure(Process(0, 10), {}, kAtOnce).status().code(), StatusCode::kAborted);
  OrThrow(state_.Attach(Process(0, 12)));
  EXPECT_EQ(Next(Process(0, 12)).closure.id, id);
  OrThrow(state_.Attach(Process(0, 13)));  // replaced before its end was noticed
  EXPECT_EQ(Next(Process(1, 11)).closure.id, id);
  EXPECT_EQ(state_.FinishClosure(Process(0, 12), id, std::string("late")).code(),
            StatusCode::kAborted);
  OrThrow(state_.FinishClosure(Process(0, 13), id, std::string("not its own")));
  Run(Process(1, 11), std::string("right"));
  EXPECT_EQ(OrThrow(coordinator_->Fetch(value, DeadlineAfter(kAtOnce))), "right");
}

TEST_F(FunctionsTest, AWorkerThatLeavesLeavesItsCallToOthers) {
  Create();
  Schedule("a");
  Next(Process(0, 10));
  OrThrow(state_.Done(Process(0, 10)));
  EXPECT_EQ(Next(Process(1, 11)).closure.argument, "a");
}

TEST_F(FunctionsTest, WhatFailsTheJobEndsEveryWait) {
  Create();
  const RemoteValue value = Schedule("a");
  auto join =
      std::async(std::launch::async, [&] { return coordinator_->Join(DeadlineAfter(kPatience)); });
  state_.Fail(Unavailable("ps:0 is gone"));
  EXPECT_EQ(join.get(), Unavailable("ps:0 is gone"));
  EXPECT_EQ(coordinator_->Fetch(value, DeadlineAfter(kPatience)).status(),
            Unavailable("ps:0 is gone"));
  EXPECT_EQ(coordinator_->Schedule("train", "").status(), Unavailable("ps:0 is gone"));
}

TEST_F(FunctionsTest, WaitsSeeToALostServerAndGoOn) {
  const Status why = Unavailable("ps:0 is gone");
  int seen_to = 0;
  Status then;
  Deadline given;
  coordinator_ = OrThrow(OpenFunctions(state_, {}, [&](const Status& lost, Deadline deadline) {
    EXPECT_EQ(lost, why);
    given = deadline;
    ++seen_to;
    return then.ok() ? state_.GoOn(std::nullopt, static_cast<std::uint64_t>(1 + seen_to), {})
                     : then;
  }));
  OrThrow(state_.Open(0));
  const RemoteValue value = Schedule("a");
  auto join =
      std::async(std::launch::async, [&] { return coordinator_->Join(DeadlineAfter(kPatience)); });
  state_.ServerLost(why);
  Run(Process(0, 10), std::string("done"));
  EXPECT_EQ(join.get(), OkStatus());
  EXPECT_EQ(seen_to, 1);
  EXPECT_FALSE(state_.recovering());
  state_.ServerLost(why);
  const Deadline asked = DeadlineAfter(kPatience);
  EXPECT_EQ(OrThrow(coordinator_->Fetch(value, asked)), "done");
  EXPECT_EQ(seen_to, 2);
  EXPECT_EQ(given, asked) << "who waits for another thread that sees to it waits so long";
  state_.ServerLost(why);
  then = Unavailable("nobody came");
  EXPECT_EQ(coordinator_->Schedule("train", "b").status(), then);
}

TEST_F(FunctionsTest, WithoutWorkersTheWaitsEnd) {
  Create();
  Schedule("a");
  state_.Lost(Worker(0), Unavailable("killed"));
  state_.Lost(Worker(1), Unavailable("killed"));
  const Status status = coordinator_->Join(DeadlineAfter(kPatience));
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("no worker is left"));
}

TEST_F(FunctionsTest, AJobHasOneCoordinatorOrNone) {
  Create();
  EXPECT_EQ(OpenFunctions(state_, {}).status().code(), StatusCode::kFailedPrecondition);
  ps::Scheduler serves({.workers = {Worker(0)}});
  OrThrow(serves.Attach(Process(0, 10)));
  OrThrow(serves.Open(0));
  EXPECT_EQ(serves.NextClosure(Process(0, 10), {}, kAtOnce).status().code(),
            StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace cohort::ps
