// Functions that the chief calls, where the job is saved, and where servers go back to a save: the
// queue, and the chief's waits.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cohort/strategies/coordinator.h>

#include "parameter_server/chief/closure_queue.h"
#include "parameter_server/chief/journal.h"
#include "parameter_server/chief/remote_functions.h"
#include "parameter_server/chief/scheduler.h"
#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr milliseconds kAtOnce{0};
constexpr std::chrono::minutes kPatience{1};

TaskId Worker(int index) { return {TaskType::kWorker, index}; }
Sender Process(int index, std::uint64_t incarnation) {
  return {.task = Worker(index), .incarnation = incarnation};
}
std::int64_t IdOf(const Closure* closure) { return closure == nullptr ? 0 : closure->id; }

// ---- ClosureQueue, when what was done is undone -------------------------------------------------

constexpr ClosureMemory kEnough{.calls = 100, .bytes = 100'000};

// The worker runs the next call, which is of that argument.
void RunNext(ClosureQueue& queue, int worker, const std::string& argument,
             const Result<std::string>& outcome) {
  const Closure* const closure = queue.Next(Worker(worker));
  ASSERT_NE(closure, nullptr) << argument;
  EXPECT_EQ(closure->argument, argument);
  queue.Finish(Worker(worker), closure->id, outcome);
}

TEST(ClosureQueueRollBack, AllBehindItRunAgainInTheirOrderAndResultsStay) {
  ClosureQueue queue(10, 2, Log(), kEnough);
  std::vector<std::shared_ptr<RemoteResult>> results;
  for (const char* argument : {"a", "b", "c", "d", "e"}) {
    results.push_back(queue.Add("train", argument));
  }
  RunNext(queue, 0, "a", std::string("1"));
  const std::int64_t b = IdOf(queue.Next(Worker(0)));
  RunNext(queue, 1, "c", std::string("3"));
  const std::int64_t d = IdOf(queue.Next(Worker(1)));
  EXPECT_TRUE(queue.CanRollBack(1));
  EXPECT_EQ(queue.RollBack(1), 1U) << "c; a is not behind 1";
  EXPECT_EQ(queue.owed(), 1U);
  EXPECT_EQ(queue.running(), 0U);
  EXPECT_EQ(queue.waiting(), 4U);
  // Who runs what was undone has no say any more.
  queue.Finish(Worker(0), b, std::string("late"));
  queue.Finish(Worker(1), d, Aborted("it went back"));
  EXPECT_FALSE(results[1]->over);
  EXPECT_EQ(queue.waiting(), 4U);
  RunNext(queue, 1, "b", std::string("2"));
  EXPECT_EQ(queue.owed(), 1U);
  const std::vector<std::int64_t> old = {b, d};
  const Closure* const again = queue.Next(Worker(1), old);
  ASSERT_NE(again, nullptr);
  EXPECT_EQ(again->argument, "c");
  EXPECT_EQ(queue.Describe(), "2 wait, train (3) runs on worker:1") << "as it was scheduled";
  queue.Finish(Worker(1), again->id, std::string("another"));
  EXPECT_EQ(queue.owed(), 0U);
  EXPECT_EQ(results[2]->value, "3") << "the first result stays";
  RunNext(queue, 0, "d", std::string("4"));
  RunNext(queue, 0, "e", std::string("5"));
  EXPECT_TRUE(queue.idle());
  EXPECT_EQ(results[1]->value, "2");
  EXPECT_EQ(results[4]->value, "5");
}

TEST(ClosureQueueRollBack, GoesBackTwiceAndAlsoFurther) {
  ClosureQueue queue(10, 1, Log(), kEnough);
  for (const char* argument : {"a", "b", "c"}) {
    queue.Add("train", argument);
  }
  for (const char* argument : {"a", "b", "c"}) {
    RunNext(queue, 0, argument, std::string());
  }
  EXPECT_EQ(queue.RollBack(2), 1U);
  queue.Next(Worker(0));
  EXPECT_EQ(queue.RollBack(2), 0U) << "c had not returned again";
  EXPECT_EQ(queue.owed(), 1U);
  EXPECT_EQ(queue.RollBack(0), 2U);
  EXPECT_EQ(queue.owed(), 3U);
  for (const char* argument : {"a", "b", "c"}) {
    RunNext(queue, 1, argument, std::string());
  }
  EXPECT_TRUE(queue.idle());
  EXPECT_EQ(queue.owed(), 0U);
}

TEST(ClosureQueueRollBack, ALostWorkersCallRunsAgainThereToo) {
  ClosureQueue queue(1, 1, Log(), kEnough);
  queue.Add("train", "a");
  RunNext(queue, 0, "a", std::string());
  queue.RollBack(0);
  queue.Next(Worker(0));
  queue.Lost(Worker(0), Unavailable("killed"));
  EXPECT_EQ(queue.error().code(), StatusCode::kUnavailable) << "its one attempt";
  EXPECT_THAT(queue.error().message(), HasSubstr("the values are without it"));
  EXPECT_EQ(queue.owed(), 0U);
}

TEST(ClosureQueueRollBack, ErrorsAndCancellingLeaveWhatRunsAgain) {
  ClosureQueue queue(10, 1, Log(), kEnough);
  const auto first = queue.Add("train", "a");
  queue.Add("train", "b");
  const auto third = queue.Add("train", "c");
  const auto fourth = queue.Add("train", "d");
  RunNext(queue, 0, "a", std::string("1"));
  RunNext(queue, 0, "b", std::string("2"));
  queue.RollBack(0);
  RunNext(queue, 0, "a", DataLoss("bad file"));
  EXPECT_EQ(first->value, "1");
  EXPECT_EQ(queue.error(),
            DataLoss("train (1) on worker:0: bad file, when it ran again since the servers went "
                     "back to a save: the values are without it"));
  EXPECT_EQ(third->error.code(), StatusCode::kCancelled);
  EXPECT_EQ(queue.owed(), 1U);
  queue.Next(Worker(0));
  queue.Lost(Worker(0), Unavailable("killed"));
  EXPECT_EQ(queue.waiting(), 1U) << "b, also with that error";
  EXPECT_FALSE(queue.TakeError().ok());
  queue.Next(Worker(0));
  queue.Cancel(Cancelled("closed"));
  EXPECT_EQ(queue.running(), 1U) << "b, which was given out";
  queue.Finish(Worker(0), queue.Next(Worker(0))->id, std::string());
  EXPECT_TRUE(queue.idle());
  EXPECT_EQ(fourth->error.code(), StatusCode::kCancelled);
}

TEST(ClosureQueueRollBack, WhatHasNoResultIsCancelledWhereAnErrorIsToBeTaken) {
  ClosureQueue queue(10, 1, Log(), kEnough);
  queue.Add("train", "a");
  const auto runs = queue.Add("train", "b");
  queue.Add("train", "c");
  RunNext(queue, 0, "a", std::string("1"));
  queue.Next(Worker(0));
  RunNext(queue, 1, "c", DataLoss("bad file"));
  queue.RollBack(0);
  EXPECT_EQ(runs->error.code(), StatusCode::kCancelled);
  RunNext(queue, 0, "a", std::string());
  EXPECT_TRUE(queue.idle());
  EXPECT_EQ(queue.error().code(), StatusCode::kDataLoss);
}

// Each of them has its result, and nobody else would tell that the values are without it.
TEST(ClosureQueueRollBack, AllThatFailWhenTheyRunAgainAreToldTheLastOnesCounted) {
  ClosureQueue queue(10, 1, Log(), kEnough);
  for (int call = 1; call <= 12; ++call) {
    queue.Add("train", std::to_string(call));
  }
  for (int call = 1; call <= 12; ++call) {
    RunNext(queue, 0, std::to_string(call), std::string());
  }
  EXPECT_EQ(queue.RollBack(0), 12U);
  for (int call = 1; call <= 12; ++call) {
    RunNext(
        queue, 0, std::to_string(call),
        call == 3 ? Result<std::string>(std::string()) : Result<std::string>(DataLoss("bad file")));
  }
  EXPECT_TRUE(queue.idle());
  EXPECT_EQ(queue.owed(), 0U);
  EXPECT_TRUE(queue.lacks());
  const Status error = queue.TakeError();
  EXPECT_EQ(error.code(), StatusCode::kDataLoss);
  for (const int call : {1, 2, 4, 5, 10}) {
    EXPECT_THAT(error.message(), HasSubstr("train (" + std::to_string(call) + ") on worker:0"));
  }
  EXPECT_THAT(error.message(), Not(HasSubstr("train (3)")));
  EXPECT_THAT(error.message(), Not(HasSubstr("train (11)")));
  EXPECT_THAT(error.message(), HasSubstr("; and 2 more, likewise"));
  EXPECT_FALSE(queue.lacks());
  EXPECT_TRUE(queue.TakeError().ok()) << "once";
  queue.Add("train", "13");
  RunNext(queue, 0, "13", DataLoss("bad file"));
  EXPECT_EQ(queue.TakeError(), DataLoss("train (13) on worker:0: bad file"));
}

TEST(ClosureQueueRollBack, RemembersTheLastOfThem) {
  ClosureQueue queue(10, 1, Log(), {.calls = 2, .bytes = 100'000});
  for (const char* argument : {"a", "b", "c"}) {
    queue.Add("train", argument);
  }
  RunNext(queue, 0, "a", std::string());
  RunNext(queue, 0, "b", std::string());
  EXPECT_TRUE(queue.CanRollBack(0));
  RunNext(queue, 0, "c", std::string());
  EXPECT_FALSE(queue.CanRollBack(0)) << "a is forgotten";
  EXPECT_TRUE(queue.CanRollBack(1));
  queue.Forget(2);
  EXPECT_FALSE(queue.CanRollBack(1));
  EXPECT_EQ(queue.RollBack(2), 1U);

  ClosureQueue small(10, 1, Log(), {.calls = 100, .bytes = 1000});
  small.Add("train", "a");
  small.Add("train", std::string(900, 'b'));
  RunNext(small, 0, "a", std::string());
  EXPECT_TRUE(small.CanRollBack(0));
  RunNext(small, 0, std::string(900, 'b'), std::string());
  EXPECT_FALSE(small.CanRollBack(1)) << "too large to be remembered alone";

  ClosureQueue none(10, 1, Log());
  none.Add("train", "a");
  EXPECT_TRUE(none.CanRollBack(0)) << "nothing has returned";
  RunNext(none, 0, "a", std::string());
  EXPECT_FALSE(none.CanRollBack(0));
}

TEST(ClosureQueueRollBack, HoldingBackLetsWhatWasBegunBeDone) {
  ClosureQueue queue(10, 1, Log(), kEnough);
  for (const char* argument : {"a", "b", "c"}) {
    queue.Add("train", argument);
  }
  EXPECT_TRUE(queue.at_rest());
  queue.Next(Worker(0));
  queue.Next(Worker(1));
  queue.HoldBack(true);
  EXPECT_FALSE(queue.at_rest());
  queue.Finish(Worker(1), 2, std::string());
  EXPECT_EQ(queue.Next(Worker(1)), nullptr) << "c is not begun";
  queue.Lost(Worker(0), Unavailable("killed"));
  EXPECT_FALSE(queue.at_rest()) << "a has been begun, and nobody is at it";
  RunNext(queue, 1, "a", std::string());
  EXPECT_TRUE(queue.at_rest());
  EXPECT_EQ(queue.begun(), 2);
  queue.RollBack(1);
  EXPECT_FALSE(queue.at_rest()) << "b had returned";
  RunNext(queue, 0, "b", std::string());
  EXPECT_TRUE(queue.at_rest());
  queue.HoldBack(false);
  RunNext(queue, 0, "c", DataLoss("bad file"));
  queue.Add("train", "d");
  EXPECT_EQ(queue.begun(), 3) << "also what has failed is over";
}

// ---- Saves and roll-backs -----------------------------------------------------------------------

class FunctionSavesTest : public ::testing::Test {
 protected:
  FunctionSavesTest()
      : state_({.workers = {Worker(0), Worker(1)}, .rejoin_timeout = milliseconds(50)}) {
    OrThrow(state_.Attach(Process(0, 10)));
    OrThrow(state_.Attach(Process(1, 11)));
  }
  void Create(const ScheduleOptions& options = {}) {
    state_.SetView(1, {});
    coordinator_ = OrThrow(OpenFunctions(state_, options));
    OrThrow(state_.Open(0));
  }
  RemoteValue Schedule(const std::string& argument) {
    return OrThrow(coordinator_->Schedule("train", argument));
  }
  ClosureReply Next(const Sender& sender) {
    return OrThrow(state_.NextClosure(sender, {}, kAtOnce));
  }
  std::optional<std::int64_t> Cut(Deadline deadline = DeadlineAfter(kPatience)) {
    return OrThrow(state_.BeginCallCut(deadline));
  }
  // Until a cut that another thread waits for has begun.
  bool AwaitHeldBack() {
    const Deadline deadline = DeadlineAfter(kPatience);
    while (std::chrono::steady_clock::now() < deadline) {
      const Status joined = coordinator_->Join(DeadlineAfter(milliseconds(1)));
      if (joined.message().find("a save holds back") != std::string::npos) {
        return true;
      }
    }
    return false;
  }
  // As a save of that step, of which the servers have a snapshot.
  void Save(std::int64_t step) {
    ASSERT_TRUE(Cut().has_value());
    Course course = state_.CourseAt(step);
    state_.EndCallCut();
    OrThrow(state_.Remember(std::move(course)));
  }
  // The worker runs what comes next, of that argument.
  std::string Run(const Sender& sender, const Result<std::string>& outcome) {
    const ClosureReply reply = Next(sender);
    EXPECT_EQ(reply.progress, Progress::kGo);
    OrThrow(state_.FinishClosure(sender, reply.closure.id, outcome));
    return reply.closure.argument;
  }

  ps::Scheduler state_;
  std::unique_ptr<cohort::Coordinator> coordinator_;
};

TEST_F(FunctionSavesTest, ACutWaitsForWhatWasBegunAndHoldsTheRestBack) {
  Create({.calls_in_flight = 1});
  Schedule("a");
  Schedule("b");
  const std::int64_t a = Next(Process(0, 10)).closure.id;
  auto cut = std::async(std::launch::async, [&] { return Cut(); });
  ASSERT_TRUE(AwaitHeldBack());
  EXPECT_EQ(Next(Process(1, 11)).progress, Progress::kWait) << "b, which is not begun";
  EXPECT_EQ(cut.wait_for(milliseconds(20)), std::future_status::timeout) << "a runs";
  OrThrow(state_.FinishClosure(Process(0, 10), a, std::string()));
  const std::int64_t over = *cut.get();
  EXPECT_EQ(over, 1);
  EXPECT_EQ(Next(Process(1, 11)).progress, Progress::kWait) << "until the cut ends";
  state_.EndCallCut();
  EXPECT_EQ(Run(Process(1, 11), std::string()), "b");
  EXPECT_EQ(Cut(), 2);
  state_.EndCallCut();
}

TEST_F(FunctionSavesTest, ACutThatIsNotReachedSaysWhatRunsAndEnds) {
  Create();
  Schedule("a");
  Schedule("b");
  Next(Process(0, 10));
  EXPECT_EQ(state_.BeginCallCut(DeadlineAfter(kAtOnce)).status(),
            DeadlineExceeded("Save at its deadline: 1 wait, train (1) runs on worker:0; a save "
                             "holds back what is not begun"));
  EXPECT_EQ(Next(Process(1, 11)).closure.argument, "b") << "nothing is held back any more";
}

TEST_F(FunctionSavesTest, AnErrorOfACallIsReturnedInsteadOfACut) {
  Create();
  Schedule("a");
  Schedule("b");
  Run(Process(0, 10), DataLoss("bad file"));
  EXPECT_EQ(state_.BeginCallCut(DeadlineAfter(kPatience)).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(Cut(), 2) << "once; what was cancelled is over";
  state_.EndCallCut();
  coordinator_->Close();
  EXPECT_EQ(state_.BeginCallCut(DeadlineAfter(kPatience)).status().code(),
            StatusCode::kFailedPrecondition);
}

TEST_F(FunctionSavesTest, ThereIsNoCutWhileAServerIsLost) {
  Create();
  Schedule("a");
  Next(Process(0, 10));
  auto cut = std::async(std::launch::async, [&] { return Cut(); });
  state_.ServerLost(Unavailable("ps:0 is gone"));
  EXPECT_FALSE(cut.get().has_value());
}

TEST_F(FunctionSavesTest, WhatReturnedSinceTheSaveRunsAgainInTheNextEpoch) {
  Create({.calls_in_flight = 1});
  std::vector<RemoteValue> values;
  for (const char* argument : {"a", "b", "c", "d"}) {
    values.push_back(Schedule(argument));
  }
  EXPECT_EQ(Run(Process(0, 10), std::string("1")), "a");
  Save(5);
  EXPECT_EQ(Run(Process(0, 10), std::string("2")), "b");
  const ClosureReply c = Next(Process(1, 11));
  EXPECT_EQ(c.closure.epoch, 1U);
  state_.ServerLost(Unavailable("ps:0 is gone"));
  OrThrow(state_.RollBack(5, 2, {}));
  EXPECT_EQ(state_.calls_again(), 1U);
  OrThrow(state_.FinishClosure(Process(1, 11), c.closure.id, std::string("of another epoch")));
  const ClosureReply b = Next(Process(1, 11));
  EXPECT_EQ(b.closure.argument, "b");
  EXPECT_EQ(b.closure.epoch, 2U);
  EXPECT_EQ(Run(Process(0, 10), std::string("3")), "c");
  EXPECT_EQ(state_.AwaitCallsAgain(DeadlineAfter(kAtOnce)).code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(coordinator_->Join(DeadlineAfter(kAtOnce)).code(), StatusCode::kDeadlineExceeded);
  OrThrow(state_.FinishClosure(Process(1, 11), b.closure.id, std::string("another")));
  OrThrow(state_.AwaitCallsAgain(DeadlineAfter(kAtOnce)));
  EXPECT_EQ(Run(Process(0, 10), std::string("4")), "d");
  OrThrow(coordinator_->Join(DeadlineAfter(kAtOnce)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(OrThrow(coordinator_->Fetch(values[i], DeadlineAfter(kAtOnce))),
              std::to_string(i + 1));
  }
}

TEST_F(FunctionSavesTest, ACallThatFailsWhileAServerIsLostHasItsAttemptsLeft) {
  Create({.max_attempts = 1});
  const RemoteValue value = Schedule("a");
  const std::int64_t a = Next(Process(0, 10)).closure.id;
  state_.ServerLost(Unavailable("ps:0 is gone"));
  OrThrow(state_.FinishClosure(Process(0, 10), a, Unavailable("ps:0 is gone")));
  OrThrow(state_.GoOn(std::nullopt, 2, {}));
  EXPECT_EQ(Run(Process(1, 11), std::string("1")), "a");
  EXPECT_EQ(OrThrow(coordinator_->Fetch(value, DeadlineAfter(kAtOnce))), "1");
}

// What it may still push would be behind a snapshot that is made now, and before one of no server
// that knows.
TEST(CutsOfCalls, ThereIsNoneBeforeItIsToldThatAWorkerIsGone) {
  std::promise<void> told;
  std::promise<void> go_on;
  ps::Scheduler state({.workers = {Worker(0), Worker(1)}, .on_gone = [&](std::uint64_t) {
                         told.set_value();
                         go_on.get_future().wait();
                       }});
  OrThrow(state.Attach(Process(0, 10)));
  OrThrow(state.Attach(Process(1, 11)));
  const auto coordinator = OrThrow(OpenFunctions(state, {}));
  OrThrow(state.Open(0));
  auto lost = std::async(std::launch::async,
                         [&] { state.Lost(Worker(0), Unavailable("silent for 10 s")); });
  told.get_future().wait();
  EXPECT_EQ(state.BeginCallCut(DeadlineAfter(kAtOnce)).status(),
            DeadlineExceeded("Save at its deadline: 0 wait; a save holds back what is not begun; a "
                             "worker is gone, which the journal has still to note"));
  EXPECT_FALSE(OrThrow(state.BeginCut(kAtOnce)).has_value());
  EXPECT_EQ(state.AtWork(), "the disk of the journal");
  state.EndCut();
  go_on.set_value();
  lost.get();
  EXPECT_EQ(OrThrow(state.BeginCallCut(DeadlineAfter(kPatience))), 0);
  state.EndCallCut();
  EXPECT_TRUE(OrThrow(state.BeginCut(kPatience)).has_value());
  state.EndCut();
}

// The journal is written without the lock: a call that is held returns, and another one is
// forgotten for it.
TEST(CallsAndTheJournal, WhatReturnsWhileItIsWrittenMayKeepTheJobFromGoingBack) {
  const testing::TempDir folder;
  std::function<void()> at_sync;
  testing::FaultyFileSystem files([&](std::string_view operation, const std::string&) {
    if (operation == "sync" && at_sync) {
      std::exchange(at_sync, nullptr)();
    }
    return OkStatus();
  });
  const auto journal = OrThrow(Journal::Open(files, folder.path(), /*backup_workers=*/0));
  OrThrow(journal->Begin(false, 1));
  ps::Scheduler state({.workers = {Worker(0)}, .journal = journal.get()});
  OrThrow(state.Attach(Process(0, 10)));
  state.SetView(1, {"server"});
  const auto coordinator = OrThrow(OpenFunctions(state, {.max_kept_calls = 1}));
  OrThrow(state.Open(0));
  for (const char* argument : {"a", "b"}) {
    OrThrow(coordinator->Schedule("train", argument).status());
  }
  const auto next = [&] { return OrThrow(state.NextClosure(Process(0, 10), {}, kAtOnce)).closure; };
  OrThrow(state.FinishClosure(Process(0, 10), next().id, std::string()));
  const std::int64_t b = next().id;
  state.ServerLost(Unavailable("ps:0 is gone"));
  at_sync = [&] { OrThrow(state.FinishClosure(Process(0, 10), b, std::string())); };
  const Status status = state.RollBack(0, 2, {"server"});
  EXPECT_EQ(at_sync, nullptr) << "the journal was written";
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("since the save of step 0"));
}

TEST_F(FunctionSavesTest, WithoutASaveAllCallsRunAgain) {
  Create();
  Schedule("a");
  Run(Process(0, 10), std::string("1"));
  OrThrow(coordinator_->Join(DeadlineAfter(kAtOnce)));
  state_.ServerLost(Unavailable("ps:0 is gone"));
  OrThrow(state_.RollBack(0, 2, {}));
  EXPECT_EQ(Run(Process(1, 11), std::string("2")), "a");
}

TEST_F(FunctionSavesTest, CallsThatAreNotRememberedKeepTheJobFromGoingBack) {
  Create({.max_kept_calls = 1});
  for (const char* argument : {"a", "b", "c"}) {
    Schedule(argument);
  }
  Run(Process(0, 10), std::string());
  Run(Process(0, 10), std::string());
  state_.ServerLost(Unavailable("ps:0 is gone"));
  const Status status = state_.RollBack(0, 2, {});
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("since the save of step 0"),
                                      HasSubstr("Coordinator::Save more often")));
}

TEST_F(FunctionSavesTest, ASecondRunThatFailsAfterCloseIsTheEndsError) {
  Create();
  Schedule("a");
  Run(Process(0, 10), std::string("1"));
  coordinator_->Close();
  state_.ServerLost(Unavailable("ps:0 is gone"));
  OrThrow(state_.RollBack(0, 2, {}));
  EXPECT_EQ(Run(Process(0, 10), DataLoss("bad file")), "a");
  for (const Sender& sender : {Process(0, 10), Process(1, 11)}) {
    EXPECT_EQ(Next(sender).progress, Progress::kOver);
    OrThrow(state_.Done(sender));
  }
  const Result<bool> over = state_.WaitOver(kAtOnce);
  EXPECT_EQ(over.status().code(), StatusCode::kDataLoss);
  EXPECT_THAT(over.status().message(), HasSubstr("train (1) on worker:0: bad file"));
  EXPECT_TRUE(OrThrow(state_.WaitOver(kAtOnce))) << "once";
}

// One that was closed is told so by its workers when these calls have run.
TEST_F(FunctionSavesTest, AClosedCoordinatorHasWorkersRunThemAgain) {
  Create();
  Schedule("a");
  Run(Process(0, 10), std::string("1"));
  coordinator_->Close();
  EXPECT_EQ(Next(Process(0, 10)).progress, Progress::kOver);
  OrThrow(state_.Done(Process(0, 10)));
  state_.ServerLost(Unavailable("ps:0 is gone"));
  OrThrow(state_.RollBack(0, 2, {}));
  const ClosureReply again = Next(Process(1, 11));
  EXPECT_EQ(again.closure.argument, "a");
  state_.Lost(Worker(1), Unavailable("killed"));
  const Result<bool> over = state_.WaitOver(kAtOnce);
  EXPECT_EQ(over.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(over.status().message(), HasSubstr("nobody is left"));
  OrThrow(state_.Attach(Process(1, 12)));
  EXPECT_EQ(Run(Process(1, 12), std::string()), "a");
  EXPECT_EQ(Next(Process(1, 12)).progress, Progress::kOver);
}

}  // namespace
}  // namespace cohort::ps
