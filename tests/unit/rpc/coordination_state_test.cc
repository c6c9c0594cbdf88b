#include "coordination_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cluster_difference.h"
#include "job.h"

namespace cohort::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

bool IsWorker(const TaskId& task) { return task.type == TaskType::kWorker; }

// Joining.

TEST(Register, TheSameIncarnationAgainIsFine) {
  Job job(2);
  job.Join(Worker(0), 7);
  EXPECT_TRUE(job.state->Register(job.Form(Worker(0), 7)).ok());
  EXPECT_THAT(job.state->Alive(), ElementsAre(Worker(0)));
}

TEST(Register, ASecondProcessIsToldWhoHasTheTask) {
  Job job(2);
  job.Join(Worker(1), 7);
  job.Pass(seconds(3));
  Registration second = job.Form(Worker(1), 8);
  second.host = "other";
  second.pid = 999;
  const Status status = job.state->Register(second);
  EXPECT_EQ(status.code(), StatusCode::kAlreadyExists);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("worker:1"), HasSubstr("host host-1"),
                                      HasSubstr("pid 101"), HasSubstr("8.0 s")));
  EXPECT_TRUE(job.state->failure().ok());  // the first goes on
  EXPECT_TRUE(job.state->Heartbeat({Worker(1), 7}).ok());
}

TEST(Register, AnotherClusterIsToldTheFirstDifference) {
  Job job(2);
  const ClusterSpec other({{Worker(0), "10.0.0.10:2222"}, {Worker(1), "elsewhere:2222"}});
  Registration registration = job.Form(Worker(1), 7);
  registration.fingerprint = other.Fingerprint();
  registration.cluster_json = other.ToJson();
  const Status status = job.state->Register(registration);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("cluster.worker[1] is \"elsewhere:2222\" at worker:1 and "
                                          "\"10.0.0.11:2222\" at worker:0"));
  EXPECT_TRUE(job.state->Alive().empty());
}

TEST(Register, ATaskOutsideTheClusterIsRefused) {
  Job job(2);
  const Status status = job.state->Register(job.Form(Worker(2), 7));
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("worker:2"), HasSubstr("worker:0, worker:1")));
}

TEST(Register, TasksThatHadEndedBeforeTheServiceBeganAreNotWaitedFor) {
  CoordinationOptions options;
  options.may_leave = IsWorker;
  options.ended = {Worker(1), Chief()};  // of which the chief may not be absent
  Job job(3, options, /*chief=*/true);
  job.Join(Worker(0));
  job.Join(Worker(2));
  EXPECT_FALSE(job.state->complete());
  EXPECT_THAT(job.state->MissingText(), AllOf(HasSubstr("1/4"), HasSubstr("chief:0")));
  job.Join(Chief());
  EXPECT_TRUE(job.state->complete());
  EXPECT_FALSE(job.state->Incarnation(Worker(1)).has_value());
  job.Join(Worker(1));  // it may come nevertheless
  EXPECT_TRUE(job.state->Incarnation(Worker(1)).has_value());
}

TEST(Register, AQuorumIsEnoughAndTheOthersMayComeLater) {
  CoordinationOptions options;
  options.may_leave = IsWorker;
  options.quorum = {.of = IsWorker, .least = 2};
  Job job(4, options, /*chief=*/true);
  const Caller first = job.Join(Worker(3));
  Answer waits;
  job.state->RollCall(first, job.In(seconds(60)), waits.Done());
  EXPECT_THAT(job.state->MissingText(),
              AllOf(HasSubstr("4/5: chief:0"), HasSubstr("worker:0"), HasSubstr("worker:2"),
                    HasSubstr("; the job begins with 1 of 3 of these")));
  job.Join(Worker(1));
  EXPECT_FALSE(job.state->complete()) << "the chief is no part of the quorum";
  EXPECT_FALSE(waits.given());
  job.Join(Chief());
  EXPECT_TRUE(job.state->complete());
  EXPECT_TRUE(waits.status().ok());
  EXPECT_EQ(job.state->MissingText(), "");
  EXPECT_TRUE(job.state->Missing().empty());
  const Caller late = job.Join(Worker(0));
  Answer at_once;
  job.state->RollCall(late, job.In(seconds(60)), at_once.Done());
  EXPECT_TRUE(at_once.status().ok());
}

TEST(ClusterDifference, FindsTheFieldInBothSpellings) {
  const std::string base = R"({"chief":["a:1"],"worker":["b:1","c:1"]})";
  EXPECT_EQ(FirstClusterDifference(base, "x", base, "y"), "");
  EXPECT_EQ(
      FirstClusterDifference(R"({"chief":["a:1"],"worker":{"0":"b:1","1":"c:2"}})", "x", base, "y"),
      R"(cluster.worker[1] is "c:2" at x and "c:1" at y)");
  EXPECT_EQ(FirstClusterDifference(R"({"chief":["a:1"],"worker":["b:1"]})", "x", base, "y"),
            R"(cluster.worker[1] is absent at x and "c:1" at y)");
  EXPECT_EQ(FirstClusterDifference(R"({"worker":["b:1","c:1"]})", "x", base, "y"),
            R"(cluster.chief[0] is absent at x and "a:1" at y)");
  EXPECT_THAT(FirstClusterDifference("{garbage", "x", base, "y"), HasSubstr("{garbage"));
}

TEST(RollCall, EndsWhenTheLastHasJoined) {
  Job job(3);
  const Caller first = job.Join(Worker(0));
  job.Join(Worker(2));
  Answer waits;
  job.state->RollCall(first, job.In(seconds(10)), waits.Done());
  EXPECT_FALSE(waits.given());
  EXPECT_EQ(job.state->MissingText(), "1/3: worker:1 (10.0.0.11:2222, not registered)");
  job.Join(Worker(1));
  EXPECT_TRUE(waits.status().ok());
  EXPECT_TRUE(job.state->complete());
  EXPECT_EQ(job.state->MissingText(), "");
}

TEST(RollCall, ASliceEndsWithWhoIsMissingAndWhy) {
  Job job(4);
  const Caller first = job.Join(Worker(0));
  job.Join(Worker(1));
  Answer waits;
  job.state->RollCall(first, job.In(seconds(10)), waits.Done());
  job.state->SetReasons({{Worker(3), "connection refused"}});
  job.Pass(seconds(10));
  EXPECT_TRUE(waits.status().ok());
  EXPECT_FALSE(job.state->complete());
  EXPECT_EQ(job.state->MissingText(),
            "2/4: worker:2 (10.0.0.12:2222, not registered), worker:3 (10.0.0.13:2222, connection "
            "refused)");
}

TEST(RollCall, ATaskThatDiesWhileJoiningEndsItForAll) {
  Job job(3);
  const Caller first = job.Join(Worker(0));
  job.Join(Worker(1));
  Answer waits;
  job.state->RollCall(first, job.In(seconds(100)), waits.Done());
  job.beating.erase(Worker(1));
  job.Pass(seconds(11));
  EXPECT_EQ(waits.code(), StatusCode::kUnavailable);
  EXPECT_THAT(waits.message(), HasSubstr("worker:1"));
}

// Being alive.

TEST(Heartbeat, SilenceEndsTheJobForAll) {
  Job job(3);
  const auto tasks = job.JoinAll();
  Answer watch;
  job.state->Watch(tasks[0], job.In(seconds(60)), watch.Done());
  job.beating.erase(Worker(1));
  job.Pass(seconds(10));
  EXPECT_TRUE(job.state->failure().ok());
  EXPECT_FALSE(watch.given());
  job.Pass(milliseconds(200));
  const Status failure = job.state->failure();
  EXPECT_EQ(failure.code(), StatusCode::kUnavailable);
  EXPECT_THAT(failure.message(),
              HasSubstr("worker:1 (host host-1, pid 101) sent no heartbeat for 10.1 s"));
  EXPECT_EQ(watch.status(), failure);
  EXPECT_EQ(job.state->Heartbeat(tasks[2]), failure);
  EXPECT_THAT(job.state->Alive(), ElementsAre(Worker(0), Worker(2)));
}

TEST(Heartbeat, TheNextTickIsDueWhenTheNextTaskWouldBeDead) {
  Job job(1);
  job.JoinAll();
  job.beating.clear();
  job.Pass(milliseconds(9'500));
  EXPECT_EQ(job.state->Tick(), job.In(milliseconds(501)));
}

TEST(Heartbeat, AWrongIncarnationIsAborted) {
  Job job(1);
  job.Join(Worker(0), 7);
  const Status status = job.state->Heartbeat({Worker(0), 8});
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("0000000000000008"), HasSubstr("0000000000000007")));
}

TEST(Heartbeat, OfAnUnknownTask) {
  Job job(2);
  EXPECT_EQ(job.state->Heartbeat({Worker(5), 7}).code(), StatusCode::kInvalidArgument);
  const Status unregistered = job.state->Heartbeat({Worker(1), 7});
  EXPECT_EQ(unregistered.code(), StatusCode::kAborted);  // a chief that was restarted
  EXPECT_THAT(unregistered.message(), HasSubstr("worker:0 was restarted"));
}

TEST(Heartbeat, APauseOfTheServiceIsNotHeldAgainstTheTasks) {
  Job job(2);
  job.JoinAll();
  job.clock.Advance(seconds(60));  // the service was stopped; heartbeats wait in its sockets
  job.state->Tick();
  EXPECT_TRUE(job.state->failure().ok());
  job.beating.erase(Worker(1));
  job.Pass(seconds(8));
  EXPECT_TRUE(job.state->failure().ok());
  job.Pass(seconds(3));
  EXPECT_EQ(job.state->failure().code(), StatusCode::kUnavailable);
}

TEST(Connection, OneThatBreaksAndDoesNotComeBackIsADeathFoundEarly) {
  Job job(2);
  const auto tasks = job.JoinAll();
  Answer watch;
  const std::uint64_t number = job.state->Watch(tasks[1], job.In(seconds(60)), watch.Done());
  job.state->WatchBroken(tasks[1], number);
  job.beating.erase(Worker(1));
  job.Pass(milliseconds(1'900));
  EXPECT_TRUE(job.state->failure().ok());
  job.Pass(milliseconds(300));
  EXPECT_EQ(job.state->failure().code(), StatusCode::kUnavailable);
  EXPECT_THAT(job.state->failure().message(),
              AllOf(HasSubstr("worker:1 (host host-1, pid 101) closed its connection"),
                    HasSubstr("last heartbeat 2.1 s ago")));
}

TEST(Connection, OneThatComesBackIsForgiven) {
  Job job(2);
  const auto tasks = job.JoinAll();
  Answer first, second;
  const std::uint64_t number = job.state->Watch(tasks[1], job.In(seconds(60)), first.Done());
  job.state->WatchBroken(tasks[1], number);
  job.Pass(seconds(1));
  job.state->Watch(tasks[1], job.In(seconds(60)), second.Done());
  job.Pass(seconds(5));
  EXPECT_TRUE(job.state->failure().ok());
}

TEST(Connection, TheBreakOfAnOldOneIsNoNews) {
  Job job(2);
  const auto tasks = job.JoinAll();
  Answer first, second;
  const std::uint64_t old = job.state->Watch(tasks[1], job.In(seconds(60)), first.Done());
  job.state->Watch(tasks[1], job.In(seconds(60)), second.Done());
  job.state->WatchBroken(tasks[1], old);
  job.Pass(seconds(5));
  EXPECT_TRUE(job.state->failure().ok());
}

TEST(Watch, JoiningCanWaitForItsArrival) {
  Job job(2);
  const auto tasks = job.JoinAll();
  Answer waits, expires, other, late, watch;
  job.state->AwaitWatch(tasks[0], job.In(seconds(30)), waits.Done());
  job.state->AwaitWatch(tasks[0], job.In(seconds(5)), expires.Done());
  job.state->AwaitWatch(tasks[1], job.In(seconds(30)), other.Done());
  job.Pass(seconds(5));
  EXPECT_TRUE(expires.given());
  EXPECT_FALSE(waits.given());
  job.state->Watch(tasks[0], job.In(seconds(60)), watch.Done());
  EXPECT_TRUE(waits.status().ok());
  EXPECT_FALSE(other.given());
  job.state->AwaitWatch(tasks[0], job.In(seconds(30)), late.Done());
  EXPECT_TRUE(late.status().ok());
  ASSERT_TRUE(job.state->ReportError(tasks[0], Internal("x")).ok());
  EXPECT_EQ(other.code(), StatusCode::kInternal);
}

TEST(Watch, AHealthySliceEndsOk) {
  Job job(1);
  const auto tasks = job.JoinAll();
  Answer watch;
  job.state->Watch(tasks[0], job.In(seconds(30)), watch.Done());
  job.Pass(seconds(29));
  EXPECT_FALSE(watch.given());
  job.Pass(seconds(1));
  EXPECT_TRUE(watch.status().ok());
}

// Restarts.

TEST(Restart, EndsTheJobAndNamesBothIncarnations) {
  Job job(2);
  const auto tasks = job.JoinAll();
  Answer watch;
  const std::uint64_t number = job.state->Watch(tasks[1], job.In(seconds(60)), watch.Done());
  job.state->WatchBroken(tasks[1], number);  // killed
  const Status status = job.state->Register(job.Form(Worker(1), 0xabc));
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("worker:1"), HasSubstr("0000000000000abc"),
                                      HasSubstr("0000000000000007")));
  EXPECT_EQ(job.state->failure(), status);
  EXPECT_EQ(job.state->Heartbeat(tasks[0]), status);
}

TEST(Restart, OfATaskThatMayLeaveReplacesTheOldOne) {
  Job job(2, {.may_leave = IsWorker}, true);
  const auto tasks = job.JoinAll();
  Answer watch;
  const std::uint64_t number = job.state->Watch(tasks[1], job.In(seconds(60)), watch.Done());
  job.state->WatchBroken(tasks[1], number);
  EXPECT_TRUE(job.state->TakeLost().empty());
  job.Join(Worker(0), 8);
  const auto lost = job.state->TakeLost();
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].first, Worker(0));
  EXPECT_EQ(lost[0].second.code(), StatusCode::kAborted);
  EXPECT_TRUE(job.state->failure().ok());
  EXPECT_TRUE(job.state->Heartbeat({Worker(0), 8}).ok());
  EXPECT_EQ(job.state->Heartbeat({Worker(0), 7}).code(), StatusCode::kAborted);
}

TEST(Restart, OfATaskThatMayLeaveDoesNotWaitForTheHeartbeatTimeout) {
  Job job(1, {.may_leave = IsWorker}, true);
  job.JoinAll();
  job.beating.erase(Worker(0));  // its machine is gone: nothing closed the connection
  job.Pass(milliseconds(3'100));
  job.Join(Worker(0), 8);
  EXPECT_EQ(job.state->TakeLost().size(), 1u);
}

TEST(Restart, ADuplicateOfALivingTaskThatMayLeaveIsRefused) {
  Job job(1, {.may_leave = IsWorker}, true);
  job.JoinAll();
  EXPECT_EQ(job.state->Register(job.Form(Worker(0), 8)).code(), StatusCode::kAlreadyExists);
}

TEST(MayLeave, ItsDeathIsToldAndTheJobGoesOn) {
  Job job(2, {.may_leave = IsWorker}, true);
  const auto tasks = job.JoinAll();
  job.beating.erase(Worker(1));
  job.Pass(seconds(11));
  const auto lost = job.state->TakeLost();
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].first, Worker(1));
  EXPECT_EQ(lost[0].second.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(job.state->TakeLost().empty());
  EXPECT_TRUE(job.state->Heartbeat(tasks[0]).ok());
  EXPECT_EQ(job.state->Heartbeat(tasks[2]), lost[0].second);  // were it alive after all
}

TEST(MayLeave, ACleanLeaveIsToldAsSuch) {
  Job job(1, {.may_leave = IsWorker}, true);
  const auto tasks = job.JoinAll();
  EXPECT_TRUE(job.state->Leave(tasks[1]).ok());
  const auto lost = job.state->TakeLost();
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].second.code(), StatusCode::kCancelled);
  EXPECT_TRUE(job.state->failure().ok());
  job.Pass(seconds(20));
  EXPECT_TRUE(job.state->failure().ok());
}

// Errors.

TEST(ReportError, ReachesAllWithCodeAndTask) {
  Job job(3);
  const auto tasks = job.JoinAll();
  Answer watch, waits_key;
  job.state->Watch(tasks[0], job.In(seconds(60)), watch.Done());
  job.state->Wait(tasks[2], "key", job.In(seconds(60)),
                  [done = waits_key.Done()](const Result<std::string>& r) { done(r.status()); });
  ASSERT_TRUE(job.state->ReportError(tasks[1], DataLoss("record 17 is torn")).ok());
  const Status expected = DataLoss("worker:1: record 17 is torn");
  EXPECT_EQ(job.state->failure(), expected);
  EXPECT_EQ(watch.status(), expected);
  EXPECT_EQ(waits_key.code(), StatusCode::kDataLoss);
  EXPECT_THAT(waits_key.message(), AllOf(HasSubstr("\"key\""), HasSubstr(expected.message())));
  for (const Caller& task : tasks) {
    EXPECT_EQ(job.state->Heartbeat(task), expected);
  }
  EXPECT_EQ(job.state->Insert(tasks[0], "k", "v", 1), expected);
}

// A deadline is explained by what the heartbeats told: who is at which operation.
TEST(Progress, ALateTaskIsNamedWithItsOperation) {
  Job job(3);
  const std::vector<Caller> callers = job.JoinAll();
  const auto at = [&](int worker, std::uint64_t sequence) {
    EXPECT_TRUE(job.state
                    ->Heartbeat(callers[static_cast<std::size_t>(worker)],
                                TaskProgress{1, sequence, "AllReduce 'bucket 1' float32[8]",
                                             milliseconds(500), true})
                    .ok());
  };
  at(0, 481);
  at(1, 480);
  at(2, 481);
  job.Pass(seconds(3));
  EXPECT_TRUE(
      job.state->ReportError(callers[0], DeadlineExceeded("AllReduce not done after 2 s")).ok());
  EXPECT_EQ(job.state->failure().code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(
      job.state->failure().message(),
      AllOf(HasSubstr("worker:0: AllReduce not done after 2 s; by the heartbeats, worker:1 last "
                      "entered AllReduce 'bucket 1' float32[8] #480 (generation 1) 3.5 s ago; the "
                      "other 2 are in #481")));
}

// The others have just entered the next one: what is known of the late is not new enough.
TEST(Progress, NobodyIsBlamedByOldNews) {
  Job job(2);
  const std::vector<Caller> callers = job.JoinAll();
  EXPECT_TRUE(
      job.state->Heartbeat(callers[0], TaskProgress{1, 5, "Barrier", milliseconds(10), true}).ok());
  EXPECT_TRUE(
      job.state->Heartbeat(callers[1], TaskProgress{1, 4, "Barrier", milliseconds(10), true}).ok());
  EXPECT_TRUE(job.state->ReportError(callers[0], DeadlineExceeded("late")).ok());
  EXPECT_EQ(job.state->failure().message(), "worker:0: late");
}

TEST(Progress, ADeadTasksLastOperationIsInItsEnd) {
  Job job(2);
  const std::vector<Caller> callers = job.JoinAll();
  EXPECT_TRUE(job.state
                  ->Heartbeat(callers[1],
                              TaskProgress{3, 7, "AllReduce 'w' float32[8]", milliseconds(0), true})
                  .ok());
  job.beating.erase(Worker(1));
  job.Pass(seconds(11));
  EXPECT_EQ(job.state->failure().code(), StatusCode::kUnavailable);
  EXPECT_THAT(job.state->failure().message(),
              AllOf(HasSubstr("worker:1 (host host-1, pid 101) sent no heartbeat for 10."),
                    HasSubstr("it last entered AllReduce 'w' float32[8] #7 (generation 3) 10.")));
}

TEST(Progress, ALostPeersLastHeartbeatIsTold) {
  Job job(3);
  const std::vector<Caller> callers = job.JoinAll();
  job.beating.erase(Worker(2));
  job.Pass(seconds(4));
  EXPECT_TRUE(
      job.state
          ->ReportError(callers[0], Unavailable("rank 2 (worker:2) is gone during AllReduce "
                                                "'w' float32[8] #7 (generation 1)"))
          .ok());
  EXPECT_THAT(job.state->failure().message(),
              HasSubstr("(generation 1); worker:2: last heartbeat 4.0 s ago"));
}

TEST(ReportError, TheFirstErrorStays) {
  Job job(2);
  const auto tasks = job.JoinAll();
  ASSERT_TRUE(job.state->ReportError(tasks[0], Internal("first")).ok());
  ASSERT_TRUE(job.state->ReportError(tasks[1], DataLoss("second")).ok());
  EXPECT_EQ(job.state->Fail(Unavailable("third")), Internal("worker:0: first"));
  EXPECT_EQ(job.state->failure(), Internal("worker:0: first"));
  const Status late = job.state->Register(job.Form(Worker(1), 9));
  EXPECT_FALSE(late.ok());
}

TEST(ReportError, IsUnheardByWhoHasJoinedAndNotAskedYet) {
  Job job(3);
  const auto tasks = job.JoinAll();
  Answer watches;
  job.state->Watch(tasks[0], job.In(seconds(60)), watches.Done());
  EXPECT_FALSE(job.state->unheard());  // the job has not failed
  EXPECT_EQ(job.state->Fail(Internal("x")), Internal("x"));
  EXPECT_EQ(watches.status(), Internal("x"));
  EXPECT_TRUE(job.state->unheard());
  Answer late;
  job.state->Watch(tasks[1], job.In(seconds(60)), late.Done());
  EXPECT_EQ(late.status(), Internal("x"));
  EXPECT_TRUE(job.state->unheard());
  EXPECT_EQ(job.state->Get(tasks[2], "key").status(), Internal("x"));
  EXPECT_FALSE(job.state->unheard());
}

TEST(ReportError, AStaleIncarnationCannotFailTheJob) {
  Job job(1);
  job.JoinAll();
  EXPECT_EQ(job.state->ReportError({Worker(0), 99}, Internal("x")).code(), StatusCode::kAborted);
  EXPECT_TRUE(job.state->failure().ok());
}

// Ends.

TEST(Shutdown, AllLeaveTogether) {
  Job job(2);
  const auto tasks = job.JoinAll();
  Answer a, b, watch;
  job.state->Watch(tasks[0], job.In(seconds(60)), watch.Done());
  job.state->Shutdown(tasks[0], job.In(seconds(60)), a.Done());
  EXPECT_FALSE(a.given());
  job.state->Shutdown(tasks[1], job.In(seconds(60)), b.Done());
  EXPECT_TRUE(a.status().ok());
  EXPECT_TRUE(b.status().ok());
  EXPECT_TRUE(watch.status().ok());
  EXPECT_TRUE(job.state->Alive().empty());
  job.beating.clear();
  job.Pass(seconds(30));  // no one misses their heartbeats
  EXPECT_TRUE(job.state->failure().ok());
  EXPECT_TRUE(job.state->Heartbeat(tasks[0]).ok());  // one that was under way
  EXPECT_TRUE(job.state->Leave(tasks[0]).ok());
  EXPECT_EQ(job.state->Insert(tasks[0], "k", "v", 1).code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(job.state->Register(job.Form(Worker(0), 7)).code(), StatusCode::kAborted);
}

TEST(Shutdown, TheDeadlineTellsTheCallersWhoIsMissingAndTheOthersThatItBegan) {
  Job job(3);
  const auto tasks = job.JoinAll();
  Answer waits, watch;
  job.state->Watch(tasks[2], job.In(seconds(100)), watch.Done());
  job.state->Shutdown(tasks[0], job.In(seconds(60)), waits.Done());
  job.Pass(seconds(60));
  EXPECT_EQ(waits.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(waits.message(), AllOf(HasSubstr("1/3"), HasSubstr("60.0 s"),
                                     HasSubstr("missing: worker:1, worker:2")));
  EXPECT_EQ(watch.code(), StatusCode::kInternal);
  EXPECT_THAT(watch.message(), HasSubstr("shutdown was initiated without worker:1, worker:2"));
}

TEST(Shutdown, DoesNotWaitForTasksThatMayLeaveAndAreNotThere) {
  Job job(3, {.may_leave = IsWorker}, true);
  const Caller chief = job.Join(Chief());
  const Caller first = job.Join(Worker(0));
  job.Join(Worker(1));
  job.beating.erase(Worker(1));  // dies; worker:2 never came
  Answer a, b;
  job.state->Shutdown(chief, job.In(seconds(60)), a.Done());
  job.state->Shutdown(first, job.In(seconds(60)), b.Done());
  job.Pass(seconds(11));
  EXPECT_EQ(job.state->TakeLost().size(), 1u);
  EXPECT_FALSE(a.given());
  job.state->Told();
  EXPECT_TRUE(a.status().ok());
  EXPECT_TRUE(b.status().ok());
}

TEST(Shutdown, IsNotDoneBeforeItIsKnownWhatALossComesTo) {
  Job job(1, {.may_leave = IsWorker}, true);
  const auto tasks = job.JoinAll();
  job.beating.erase(Worker(0));
  Answer waits;
  job.state->Shutdown(tasks[0], job.In(seconds(60)), waits.Done());
  job.Pass(seconds(11));
  const auto lost = job.state->TakeLost();
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(job.state->Fail(lost[0].second), lost[0].second);
  job.state->Told();
  EXPECT_EQ(waits.status(), lost[0].second);
}

TEST(Shutdown, AFailureEndsTheWait) {
  Job job(3);
  const auto tasks = job.JoinAll();
  Answer waits;
  job.state->Shutdown(tasks[0], job.In(seconds(60)), waits.Done());
  job.beating.erase(Worker(1));
  job.Pass(seconds(11));
  EXPECT_EQ(waits.code(), StatusCode::kUnavailable);
  EXPECT_THAT(waits.message(), HasSubstr("worker:1"));
}

TEST(Leave, WithoutShutdownIsACancellationNotADeath) {
  Job job(2);
  const auto tasks = job.JoinAll();
  EXPECT_TRUE(job.state->Leave(tasks[1]).ok());
  EXPECT_EQ(job.state->failure().code(), StatusCode::kCancelled);
  EXPECT_THAT(job.state->failure().message(),
              HasSubstr("worker:1 (host host-1, pid 101) left the job before its end"));
}

TEST(Stop, AnswersEveryWait) {
  Job job(3);
  const auto tasks = std::vector{job.Join(Worker(0)), job.Join(Worker(1))};
  Answer roll_call, watch, barrier, key, shutdown;
  job.state->RollCall(tasks[0], job.In(seconds(60)), roll_call.Done());
  job.state->Watch(tasks[0], job.In(seconds(60)), watch.Done());
  job.state->Barrier(tasks[0], "b", job.In(seconds(60)), {}, barrier.Done());
  job.state->Wait(tasks[0], "k", job.In(seconds(60)),
                  [done = key.Done()](const Result<std::string>& r) { done(r.status()); });
  job.state->Shutdown(tasks[1], job.In(seconds(60)), shutdown.Done());
  job.state->Stop(Unavailable("the service stopped"));
  for (const Answer& answer : {roll_call, watch, key, shutdown}) {
    EXPECT_EQ(answer.code(), StatusCode::kUnavailable);
    EXPECT_THAT(answer.message(), HasSubstr("the service stopped"));
  }
  EXPECT_EQ(barrier.code(), StatusCode::kCancelled);  // worker:1 shut down before
  EXPECT_EQ(job.state->Tick(), job.In(seconds(1)));
}

}  // namespace
}  // namespace cohort::testing
