// The scheduler, without a network: who gets which work, and what becomes of it when workers or
// servers are lost.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <set>

#include <cohort/core/random.h>

#include "parameter_server/chief/scheduler.h"
#include "parameter_server/variables/retired_clients.h"

namespace cohort::ps {
namespace {

using ::testing::HasSubstr;

TaskId Worker(int index) { return {TaskType::kWorker, index}; }

constexpr Duration kAtOnce{0};
constexpr DatasetInfo kData{.fingerprint = 1, .examples = 100, .batch_size = 10};

Sender Process(int worker, std::uint64_t incarnation) {
  return {.task = Worker(worker), .incarnation = incarnation};
}

class SchedulerTest : public ::testing::Test {
 protected:
  SchedulerTest()
      : scheduler_(
            {.workers = {Worker(0), Worker(1)}, .rejoin_timeout = std::chrono::milliseconds(0)}) {
    OrThrow(scheduler_.OpenDataset("chief:0", 0, kData));
    OrThrow(scheduler_.Attach(Process(0, 10)));
    OrThrow(scheduler_.Attach(Process(1, 11)));
  }

  SplitReply Next(const Sender& sender, std::int64_t finished = 0, std::int64_t epoch = 0) {
    return OrThrow(
        scheduler_.NextSplit(sender, {.dataset = 0, .epoch = epoch}, 0, {.id = finished}, kAtOnce));
  }
  // Everything that is left of the epoch.
  void Finish(const Sender& sender, std::int64_t epoch = 0) {
    for (SplitReply reply = Next(sender, 0, epoch); reply.progress != Progress::kOver;
         reply = Next(sender, reply.split.id, epoch)) {
      ASSERT_EQ(reply.progress, Progress::kGo);
    }
  }

  Scheduler scheduler_;
};

TEST_F(SchedulerTest, NothingIsHandedOutBeforeItOpens) {
  EXPECT_EQ(Next(Process(0, 10)).progress, Progress::kWait);
  OrThrow(scheduler_.Open(0));
  EXPECT_EQ(Next(Process(0, 10)).progress, Progress::kGo);
}

TEST_F(SchedulerTest, DifferentDataIsRefused) {
  EXPECT_TRUE(scheduler_.OpenDataset("worker:0", 0, kData).ok());
  EXPECT_THAT(scheduler_.OpenDataset("worker:1", 0, {1, 101, 10}).message(),
              HasSubstr("worker:1 has 101 examples in batches of 10, another process 100"));
  EXPECT_THAT(scheduler_.OpenDataset("worker:1", 0, {2, 100, 10}).message(),
              HasSubstr("fingerprint"));
  EXPECT_EQ(scheduler_.OpenDataset("worker:1", -1, kData).code(), StatusCode::kInvalidArgument);
}

TEST_F(SchedulerTest, ALostWorkersSplitGoesToAnotherAndCountsOnce) {
  OrThrow(scheduler_.Open(0));
  const Split lost = Next(Process(0, 10)).split;
  Next(Process(1, 11));
  scheduler_.Lost(Worker(0), Unavailable("killed"));
  EXPECT_EQ(scheduler_.NextSplit(Process(0, 10), {}, 0, {.id = lost.id}, kAtOnce).status().code(),
            StatusCode::kAborted);
  Finish(Process(1, 11));
  const EpochCoverage coverage = scheduler_.coverage().at(0);
  EXPECT_EQ(coverage.seen, 100);
  EXPECT_EQ(coverage.examples, 100);
  EXPECT_EQ(coverage.reissued, 1);
}

TEST_F(SchedulerTest, ANewIncarnationTakesOverAtOnceAndFindsOldEpochsOver) {
  OrThrow(scheduler_.Open(0));
  Next(Process(0, 10));
  EXPECT_TRUE(scheduler_.Attach(Process(0, 12)).ok());
  EXPECT_EQ(scheduler_.NextSplit(Process(0, 10), {}, 0, {}, kAtOnce).status().code(),
            StatusCode::kAborted);
  Finish(Process(1, 11), 0);
  Finish(Process(1, 11), 3);
  EXPECT_EQ(Next(Process(0, 12), 0, 0).progress, Progress::kOver);
  EXPECT_EQ(Next(Process(0, 12), 0, 1).progress, Progress::kOver) << "never trained, but passed";
  EXPECT_EQ(scheduler_.Attach({.task = Worker(7), .incarnation = 1}).status().code(),
            StatusCode::kFailedPrecondition);
}

// A job of any length, in which processes come and go: servers remember of those that are gone no
// more than there are live ones.
TEST(RetiredClientsTest, WhatHasToBeRememberedIsBoundedByTheLiveOnes) {
  constexpr int kWorkers = 5;
  std::vector<TaskId> workers;
  for (int w = 0; w < kWorkers; ++w) {
    workers.push_back(Worker(w));
  }
  RetiredClients retired;
  // Its numbers go over the greatest there is, and 0 is nobody's.
  Scheduler scheduler({.workers = workers,
                       .on_gone = [&](std::uint64_t client) { retired.Add(client); },
                       .first_client = std::numeric_limits<std::uint64_t>::max() - 500});
  std::map<int, std::uint64_t> live;
  std::vector<std::uint64_t> gone;
  const Philox random(1);
  std::uint64_t incarnation = 0;
  for (int i = 0; i < 2000; ++i) {
    const int worker = static_cast<int>(random.Below(kWorkers, static_cast<std::uint64_t>(i)));
    if (live.contains(worker)) {
      gone.push_back(live[worker]);
    }
    live[worker] = OrThrow(scheduler.Attach(Process(worker, ++incarnation)));
    ASSERT_EQ(OrThrow(scheduler.Attach(Process(worker, incarnation))), live[worker])
        << "asked twice, it says the same";
    ASSERT_LE(retired.Ranges().size() / 2, kWorkers + 2U);
  }
  for (const auto& [worker, client] : live) {
    EXPECT_FALSE(retired.contains(client));
    EXPECT_NE(client, 0U);
  }
  for (const std::uint64_t client : gone) {
    ASSERT_TRUE(retired.contains(client));
  }
}

TEST(RetiredClientsTest, IsWhatASetOfNumbersWouldBe) {
  const Philox random(2);
  std::uint64_t drawn = 0;
  for (int round = 0; round < 20; ++round) {
    RetiredClients retired;
    std::set<std::uint64_t> expected;
    for (int i = 0; i < 30; ++i) {
      const std::uint64_t first = random.Below(200, ++drawn);
      const std::uint64_t last = first + random.Below(6, ++drawn);
      retired.Add(first, last);
      for (std::uint64_t client = first; client <= last; ++client) {
        expected.insert(client);
      }
    }
    for (std::uint64_t client = 0; client < 210; ++client) {
      ASSERT_EQ(retired.contains(client), expected.contains(client)) << client;
    }
    RetiredClients again;
    const std::vector<std::uint64_t> ranges = retired.Ranges();
    for (std::size_t i = 0; i < ranges.size(); i += 2) {
      ASSERT_TRUE(i == 0 || ranges[i] > ranges[i - 1] + 1) << "ranges that touch are one";
      again.Add(ranges[i], ranges[i + 1]);
    }
    EXPECT_EQ(again.Ranges(), ranges);
  }
  RetiredClients edges;
  edges.Add(std::numeric_limits<std::uint64_t>::max());
  edges.Add(0);
  EXPECT_FALSE(edges.contains(1));
  EXPECT_EQ(edges.Ranges().size(), 4U);
}

TEST_F(SchedulerTest, AnEpochThatAWorkerLeavesEarlyIsFinishedByTheOthers) {
  OrThrow(scheduler_.Open(0));
  Next(Process(0, 10));
  Next(Process(0, 10), 0, 1);  // it goes on to the next epoch without finishing
  Finish(Process(1, 11));
  EXPECT_EQ(scheduler_.coverage().at(0).seen, 100);
}

TEST_F(SchedulerTest, TheJobIsOverWhenAllAreDoneOrLost) {
  OrThrow(scheduler_.Open(0));
  EXPECT_FALSE(OrThrow(scheduler_.WaitOver(kAtOnce)));
  scheduler_.Lost(Worker(0), Unavailable("killed"));
  EXPECT_FALSE(OrThrow(scheduler_.WaitOver(kAtOnce)));
  EXPECT_TRUE(scheduler_.Done(Process(1, 11)).ok());
  EXPECT_TRUE(OrThrow(scheduler_.WaitOver(kAtOnce)));
}

TEST_F(SchedulerTest, AJobWithoutWorkersEndsWithAnError) {
  OrThrow(scheduler_.Open(0));
  scheduler_.Lost(Worker(0), Unavailable("killed"));
  scheduler_.Lost(Worker(1), Unavailable("worker:1 was killed as well"));
  Result<bool> over = scheduler_.WaitOver(std::chrono::milliseconds(5));
  EXPECT_EQ(over.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(over.status().message(), HasSubstr("worker:1 was killed as well"));
}

TEST_F(SchedulerTest, ResumedEpochsStartWhereTheyWereLeft) {
  OrThrow(scheduler_.Open(0));
  const SplitReply reply =
      OrThrow(scheduler_.NextSplit(Process(0, 10), {.dataset = 0, .epoch = 5}, 7, {}, kAtOnce));
  EXPECT_EQ(reply.split.begin, 70);
  EXPECT_EQ(scheduler_.coverage().at(0).examples, 30);
}

// Of the epoch of the servers that the scheduler is in.
Sender In(std::uint64_t epoch, const Sender& sender) {
  return {.task = sender.task, .incarnation = sender.incarnation, .epoch = epoch};
}

class RollBackTest : public SchedulerTest {
 protected:
  RollBackTest() {
    scheduler_.SetView(1, {"old"});
    OrThrow(scheduler_.Open(0));
  }
  void Save(std::int64_t step) {
    ASSERT_TRUE(OrThrow(scheduler_.BeginCut(std::chrono::milliseconds(1))).has_value());
    const Course course = scheduler_.CourseAt(step);
    scheduler_.EndCut();
    OrThrow(scheduler_.Remember(course));
  }
  void LoseAServer() { scheduler_.ServerLost(Unavailable("ps:1 was killed")); }

  const Sender first_ = In(1, Process(0, 10));
  const Sender second_ = In(1, Process(1, 11));
};

TEST_F(RollBackTest, WhoIsFurtherOnGetsWhatIsLeftSinceTheSaveFirst) {
  const Split split = Next(first_).split;
  ASSERT_EQ(Next(second_).progress, Progress::kGo);
  OrThrow(scheduler_.NextSplit(second_, {0, 0}, 0, {.id = 2, .steps = 1}, kAtOnce));
  scheduler_.Acknowledge(second_, {0, 0}, {.id = 3, .steps = 1});
  scheduler_.Acknowledge(first_, {0, 0}, {.id = split.id, .steps = 1});
  Save(3);
  Finish(first_, 0);
  Finish(first_, 1);
  ASSERT_EQ(Next(first_, 0, 2).progress, Progress::kGo);
  LoseAServer();
  OrThrow(scheduler_.RollBack(3, 2, {"new"}));
  EXPECT_EQ(scheduler_.advance().steps, 3);
  const Sender back = In(2, first_);
  std::int64_t finished = 0;
  std::int64_t of = -1;
  std::vector<std::pair<std::int64_t, std::int64_t>> begins;  // epoch and example
  for (;;) {
    const SplitReply reply = OrThrow(scheduler_.NextSplit(
        back, {0, 2}, 0, {.id = finished, .epoch = of, .steps = finished > 0 ? 1 : 0}, kAtOnce));
    if (reply.progress == Progress::kOver) {
      break;
    }
    ASSERT_EQ(reply.progress, Progress::kGo);
    begins.emplace_back(reply.epoch, reply.split.begin);
    finished = reply.split.id;
    of = reply.epoch;
  }
  std::vector<std::pair<std::int64_t, std::int64_t>> expected;
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    for (std::int64_t begin = epoch == 0 ? 30 : 0; begin < 100; begin += 10) {
      expected.emplace_back(epoch, begin);
    }
  }
  EXPECT_EQ(begins, expected);
  for (const EpochCoverage& epoch : scheduler_.coverage()) {
    EXPECT_EQ(epoch.seen, 100) << epoch.epoch;
    EXPECT_EQ(epoch.steps, 10) << epoch.epoch;
  }
}

TEST_F(RollBackTest, NothingOfAnEarlierEpochOfTheServersCounts) {
  const Split split = Next(first_).split;
  LoseAServer();
  EXPECT_EQ(Next(first_, split.id).progress, Progress::kStale) << "while one is lost";
  OrThrow(scheduler_.RollBack(0, 2, {"new"}));
  EXPECT_EQ(Next(first_, split.id).progress, Progress::kStale);
  scheduler_.Acknowledge(first_, {0, 0}, {.id = split.id});
  EXPECT_EQ(Next(In(2, first_)).split, split) << "it is to be done again";
  Next(first_, split.id);
  EXPECT_EQ(scheduler_.coverage().at(0).seen, 0);
}

TEST_F(RollBackTest, RoundsAreNumberedAndCutAsBefore) {
  const auto join = [&](const Sender& sender, std::int64_t epoch) {
    return OrThrow(scheduler_.JoinRound(sender, {0, epoch}, 0, kAtOnce));
  };
  // The first of them joins, and waits for the second.
  const auto together = [&](std::uint64_t servers, std::int64_t epoch) {
    const Sender a = In(servers, first_);
    const Sender b = In(servers, second_);
    EXPECT_EQ(join(a, epoch).progress, Progress::kWait);
    const RoundReply of_b = join(b, epoch);
    EXPECT_EQ(of_b.progress, Progress::kGo);
    EXPECT_EQ(join(a, epoch).part.round, of_b.part.round);
    for (const Sender& sender : {a, b}) {
      OrThrow(scheduler_.FinishRound(sender, of_b.part.round, 0, {}, kAtOnce));
    }
    return of_b.part;
  };
  for (int round = 0; round < 4; ++round) {
    together(1, 0);
  }
  Save(4);
  for (int round = 4; round < 13; ++round) {
    together(1, round < 10 ? 0 : 1);
  }
  EXPECT_EQ(scheduler_.StepsSince(0), 13);
  EXPECT_EQ(scheduler_.StepsSince(4), 9);
  EXPECT_EQ(join(first_, 1).progress, Progress::kWait);  // what it asks for is forgotten
  LoseAServer();
  EXPECT_EQ(join(second_, 1).progress, Progress::kStale);
  OrThrow(scheduler_.RollBack(4, 2, {"new"}));
  for (std::uint64_t round = 5; round <= 13; ++round) {
    const RoundPart part = together(2, 1);
    EXPECT_EQ(part.round, round);
    EXPECT_EQ(part.epoch.epoch, round <= 10 ? 0 : 1);
    EXPECT_EQ(part.batch, static_cast<std::int64_t>(round - 1) % 10);
  }
}

TEST_F(RollBackTest, WaitsInTheChiefEndWithTheLossUntilItIsOver) {
  Next(first_);
  LoseAServer();
  EXPECT_THAT(scheduler_.BeginCut(kAtOnce).status().message(), HasSubstr("ps:1 was killed"));
  EXPECT_THAT(scheduler_.WaitOver(kAtOnce).status().message(), HasSubstr("ps:1 was killed"));
  const ServerView lost = scheduler_.AwaitView(1, false, std::chrono::seconds(5));
  EXPECT_TRUE(lost.recovering);
  EXPECT_EQ(lost.why, "ps:1 was killed");
  OrThrow(scheduler_.RollBack(0, 2, {"new"}));
  EXPECT_FALSE(OrThrow(scheduler_.WaitOver(kAtOnce)));
  const ServerView back = scheduler_.AwaitView(1, true, std::chrono::seconds(5));
  EXPECT_EQ(back.epoch, 2U);
  EXPECT_FALSE(back.recovering);
  EXPECT_EQ(back.addresses, std::vector<std::string>{"new"});
}

TEST_F(RollBackTest, ASaveThatIsNotOfThisJobIsRefused) {
  LoseAServer();
  EXPECT_EQ(scheduler_.RollBack(7, 2, {"new"}).code(), StatusCode::kFailedPrecondition);
}

TEST_F(RollBackTest, AnotherDataSetCannotBeGoneBackTo) {
  OrThrow(scheduler_.OpenDataset("chief:0", 1, kData));
  Finish(first_, 0);
  OrThrow(scheduler_.NextSplit(first_, {1, 0}, 0, {}, kAtOnce));
  LoseAServer();
  EXPECT_THAT(scheduler_.RollBack(0, 2, {"new"}).message(), HasSubstr("another data set"));
}

TEST_F(RollBackTest, WorkersThatHaveEndedCannotDoItAgain) {
  Finish(first_);
  EXPECT_TRUE(scheduler_.Done(first_).ok());
  LoseAServer();
  OrThrow(scheduler_.RollBack(0, 2, {"new"}));
  EXPECT_TRUE(scheduler_.Done(In(1, second_)).ok());
  EXPECT_THAT(scheduler_.WaitOver(kAtOnce).status().message(),
              HasSubstr("nobody is left to train"));
}

}  // namespace
}  // namespace cohort::ps
