#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "job.h"

namespace cohort::testing {
namespace {

using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Barrier, PassesWhenAllHaveArrived) {
  Job job(3);
  const auto tasks = job.JoinAll();
  Answer a, b, c;
  job.state->Barrier(tasks[0], "start", job.In(seconds(9)), {}, a.Done());
  job.state->Barrier(tasks[1], "start", job.In(seconds(9)), {}, b.Done());
  EXPECT_FALSE(a.given());
  job.state->Barrier(tasks[2], "start", job.In(seconds(9)), {}, c.Done());
  EXPECT_TRUE(a.status().ok());
  EXPECT_TRUE(b.status().ok());
  EXPECT_TRUE(c.status().ok());
}

TEST(Barrier, OneThatHasPassedAnswersItsOldResultAtOnce) {
  Job job(1);
  const auto tasks = job.JoinAll();
  Answer first, second;
  job.state->Barrier(tasks[0], "once", job.In(seconds(9)), {}, first.Done());
  job.state->Barrier(tasks[0], "once", job.In(seconds(9)), {}, second.Done());
  EXPECT_TRUE(first.status().ok());
  EXPECT_TRUE(second.status().ok());
}

TEST(Barrier, TheSameTaskTwiceCountsOnce) {
  Job job(2);
  const auto tasks = job.JoinAll();
  Answer first, again, other;
  job.state->Barrier(tasks[0], "x", job.In(seconds(9)), {}, first.Done());
  job.state->Barrier(tasks[0], "x", job.In(seconds(9)), {}, again.Done());
  EXPECT_FALSE(first.given());
  EXPECT_FALSE(again.given());
  job.state->Barrier(tasks[1], "x", job.In(seconds(9)), {}, other.Done());
  EXPECT_TRUE(first.status().ok());
  EXPECT_TRUE(again.status().ok());
}

TEST(Barrier, TheDeadlineNamesTheAbsentTheCountAndTheFirst) {
  Job job(4);
  const auto tasks = job.JoinAll();
  Answer a, b, late;
  job.state->Barrier(tasks[2], "save", job.In(seconds(30)), {}, a.Done());
  job.state->Barrier(tasks[0], "save", job.In(seconds(40)), {}, b.Done());
  job.Pass(seconds(29));
  EXPECT_FALSE(a.given());
  job.Pass(seconds(1));
  ASSERT_EQ(a.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(a.message(),
              AllOf(HasSubstr("\"save\""), HasSubstr("2/4"), HasSubstr("first worker:2"),
                    HasSubstr("missing: worker:1, worker:3"), HasSubstr("30.0 s")));
  EXPECT_EQ(b.status(), a.status());
  job.state->Barrier(tasks[1], "save", job.In(seconds(30)), {}, late.Done());
  EXPECT_EQ(late.status(), a.status());
  EXPECT_TRUE(job.state->failure().ok());  // a barrier that fails does not end the job
}

TEST(Barrier, ManyAbsentAreCounted) {
  Job job(12);
  const auto tasks = job.JoinAll();
  Answer a;
  job.state->Barrier(tasks[0], "x", job.In(seconds(1)), {}, a.Done());
  job.Pass(seconds(1));
  EXPECT_THAT(a.message(), HasSubstr("worker:8 and 3 more"));
}

TEST(Barrier, OfSomeOnly) {
  Job job(3);
  const auto tasks = job.JoinAll();
  Answer a, b;
  job.state->Barrier(tasks[0], "pair", job.In(seconds(9)), {Worker(0), Worker(2)}, a.Done());
  job.state->Barrier(tasks[2], "pair", job.In(seconds(9)), {Worker(2), Worker(0)}, b.Done());
  EXPECT_TRUE(a.status().ok());
  EXPECT_TRUE(b.status().ok());
}

TEST(Barrier, ListsThatDifferFailForAll) {
  Job job(3);
  const auto tasks = job.JoinAll();
  Answer a, b, c;
  job.state->Barrier(tasks[0], "x", job.In(seconds(9)), {Worker(0), Worker(1)}, a.Done());
  job.state->Barrier(tasks[1], "x", job.In(seconds(9)), {Worker(1), Worker(2)}, b.Done());
  job.state->Barrier(tasks[2], "x", job.In(seconds(9)), {}, c.Done());
  for (const Answer& answer : {a, b, c}) {
    EXPECT_EQ(answer.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(answer.message(), AllOf(HasSubstr("worker:1 calls it for worker:1, worker:2"),
                                        HasSubstr("worker:0 began it for worker:0, worker:1")));
  }
}

TEST(Barrier, ACallerOutsideTheListFailsItForAll) {
  Job job(3);
  const auto tasks = job.JoinAll();
  Answer member, outsider;
  job.state->Barrier(tasks[0], "x", job.In(seconds(9)), {Worker(0), Worker(1)}, member.Done());
  job.state->Barrier(tasks[2], "x", job.In(seconds(9)), {Worker(0), Worker(1)}, outsider.Done());
  EXPECT_EQ(outsider.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(member.status(), outsider.status());
  EXPECT_THAT(member.message(), HasSubstr("worker:2 calls it but is not among"));
}

TEST(Barrier, AnUnknownParticipantOrNoNameIsTheCallersErrorOnly) {
  Job job(2);
  const auto tasks = job.JoinAll();
  Answer waits, unknown, nameless, endless;
  job.state->Barrier(tasks[0], "x", job.In(seconds(9)), {}, waits.Done());
  job.state->Barrier(tasks[1], "x", job.In(seconds(9)), {Worker(9)}, unknown.Done());
  job.state->Barrier(tasks[1], "", job.In(seconds(9)), {}, nameless.Done());
  EXPECT_EQ(unknown.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(unknown.message(), HasSubstr("worker:9"));
  EXPECT_EQ(nameless.code(), StatusCode::kInvalidArgument);
  job.state->Barrier(tasks[1], std::string(5000, 'n'), job.In(seconds(9)), {}, endless.Done());
  EXPECT_EQ(endless.code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(waits.given());
}

TEST(Barrier, ATaskThatMayLeaveAndIsLostIsNotAwaitedByAll) {
  Job job(2, {.may_leave = [](const TaskId& t) { return t.type == TaskType::kWorker; }}, true);
  const auto tasks = job.JoinAll();  // chief, worker:0, worker:1
  Answer all, pair, late_pair;
  job.state->Barrier(tasks[0], "all", job.In(seconds(60)), {}, all.Done());
  Answer worker;
  job.state->Barrier(tasks[1], "all", job.In(seconds(60)), {}, worker.Done());
  job.state->Barrier(tasks[0], "pair", job.In(seconds(60)), {Chief(), Worker(1)}, pair.Done());
  job.beating.erase(Worker(1));
  job.Pass(seconds(11));
  EXPECT_TRUE(all.status().ok()) << all.status().ToString();
  EXPECT_TRUE(worker.status().ok());
  EXPECT_EQ(pair.code(), StatusCode::kUnavailable);
  EXPECT_THAT(pair.message(), HasSubstr("worker:1 (host host-1, pid 101) sent no heartbeat"));
  job.state->Barrier(tasks[0], "pair2", job.In(seconds(60)), {Chief(), Worker(1)},
                     late_pair.Done());
  EXPECT_EQ(late_pair.code(), StatusCode::kUnavailable);
  EXPECT_THAT(late_pair.message(), Not(HasSubstr("missing")));
}

TEST(Barrier, ATaskThatCameBackTakesPartAgain) {
  Job job(1, {.may_leave = [](const TaskId& t) { return t.type == TaskType::kWorker; }}, true);
  const auto tasks = job.JoinAll();
  Answer chief, worker;
  job.beating.erase(Worker(0));
  job.Pass(seconds(11));
  const Caller second = job.Join(Worker(0), 8);
  job.state->Barrier(tasks[0], "x", job.In(seconds(5)), {}, chief.Done());
  EXPECT_FALSE(chief.given());
  job.state->Barrier(second, "x", job.In(seconds(5)), {}, worker.Done());
  EXPECT_TRUE(chief.status().ok());
  EXPECT_TRUE(worker.status().ok());
}

TEST(Barrier, FailsAtOnceWhenTheJobDoes) {
  Job job(2);
  const auto tasks = job.JoinAll();
  Answer waits, after;
  job.state->Barrier(tasks[0], "x", job.In(seconds(60)), {}, waits.Done());
  ASSERT_TRUE(job.state->ReportError(tasks[1], DataLoss("bad record")).ok());
  EXPECT_EQ(waits.code(), StatusCode::kDataLoss);
  EXPECT_THAT(waits.message(), HasSubstr("worker:1: bad record"));
  job.state->Barrier(tasks[0], "y", job.In(seconds(60)), {}, after.Done());
  EXPECT_EQ(after.code(), StatusCode::kDataLoss);
}

TEST(Barrier, ATaskThatShutsDownIsNotAwaited) {
  Job job(2);
  const auto tasks = job.JoinAll();
  Answer waits, leaves, after;
  job.state->Barrier(tasks[0], "x", job.In(seconds(60)), {}, waits.Done());
  job.state->Shutdown(tasks[1], job.In(seconds(60)), leaves.Done());
  EXPECT_EQ(waits.code(), StatusCode::kCancelled);
  EXPECT_THAT(waits.message(), HasSubstr("worker:1 (host host-1, pid 101) shuts down"));
  job.state->Barrier(tasks[0], "y", job.In(seconds(60)), {}, after.Done());
  EXPECT_EQ(after.code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace cohort::testing
