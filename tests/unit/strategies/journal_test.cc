// What a chief has noted, and what another one in its place makes of it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <utility>
#include <vector>

#include <cohort/core/file_system.h>

#include "journal_chief.h"
#include "parameter_server/chief/journal.h"
#include "parameter_server/chief/scheduler.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using testing::TempDir;

TEST(JournalTest, AnotherChiefHandsOutWhatIsLeftSinceTheSave) {
  const TempDir folder;
  {
    Chief chief(folder.path());
    OrThrow(chief.scheduler.Open(0));
    const Sender worker = chief.Attach(0);
    chief.Finish(worker, 0);
    EXPECT_EQ(chief.Finish(worker, 1, 4).size(), 4U);
    chief.Save(14);
    chief.Finish(worker, 1);
    chief.Finish(worker, 2, 3);
  }
  Chief chief(folder.path());
  EXPECT_EQ(chief.epoch, 2U);
  const Sender worker = chief.Attach(0);
  EXPECT_EQ(chief.Next(worker, 2, {}).progress, Progress::kStale) << "not before Open";
  EXPECT_TRUE(chief.scheduler.AwaitView(0, false, kAtOnce).recovering);
  OrThrow(chief.scheduler.Open(14));
  EXPECT_FALSE(chief.scheduler.AwaitView(0, false, kAtOnce).recovering);
  EXPECT_EQ(chief.scheduler.advance().steps, 14);
  const auto begins = chief.Finish(worker, 2);
  std::vector<std::pair<std::int64_t, std::int64_t>> expected;
  for (std::int64_t begin = 40; begin < 100; begin += 10) {
    expected.emplace_back(1, begin);
  }
  for (std::int64_t begin = 0; begin < 100; begin += 10) {
    expected.emplace_back(2, begin);
  }
  EXPECT_EQ(begins, expected);
  for (const EpochCoverage& epoch : chief.scheduler.coverage()) {
    EXPECT_EQ(epoch.seen, 100) << epoch.epoch;
    EXPECT_EQ(epoch.steps, 10) << epoch.epoch;
    EXPECT_EQ(epoch.loss, 2) << epoch.epoch;
    EXPECT_THAT(epoch.metrics, ElementsAre(3)) << epoch.epoch;
  }
}

// What is noted with each save does not grow with the epochs that are over.
TEST(JournalTest, EpochsThatWereOverLongAgoAreNotNotedAgain) {
  constexpr std::int64_t kEpochs = 100;
  const TempDir folder;
  {
    Chief chief(folder.path());
    OrThrow(chief.scheduler.Open(0));
    const Sender worker = chief.Attach(0);
    std::uintmax_t bytes = 0;
    for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch) {
      EXPECT_EQ(chief.Finish(worker, epoch).size(), 10U);
      chief.Save(10 * (epoch + 1));
      const std::uintmax_t now = std::filesystem::file_size(PathIn(folder));
      if (epoch == 30) {
        bytes = now;
      } else if (epoch > 30) {
        EXPECT_LE(now, bytes + bytes / 5) << epoch;
      }
    }
    EXPECT_LE(chief.scheduler.CourseAt(1).epochs.size(), 2 * Journal::kMaxCourses);
    EXPECT_EQ(chief.Next(worker, 0, {}).progress, Progress::kOver);
    EXPECT_EQ(chief.scheduler.advance().epochs, kEpochs);
    EXPECT_EQ(chief.scheduler.advance().steps, 10 * kEpochs);
    EXPECT_EQ(chief.scheduler.StepsSince(10 * (kEpochs - 3)), 30);
    const std::vector<EpochCoverage> coverage = chief.scheduler.coverage();
    ASSERT_EQ(coverage.size(), static_cast<std::size_t>(kEpochs));
    for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch) {
      EXPECT_EQ(coverage[static_cast<std::size_t>(epoch)].epoch, epoch);
      EXPECT_EQ(coverage[static_cast<std::size_t>(epoch)].seen, 100) << epoch;
      EXPECT_EQ(coverage[static_cast<std::size_t>(epoch)].loss, 2) << epoch;
    }
    // Back to the oldest save that there is a way to, and there again.
    const std::int64_t oldest = kEpochs - static_cast<std::int64_t>(Journal::kMaxCourses) + 1;
    chief.scheduler.ServerLost(Unavailable("ps:1 was killed"));
    OrThrow(chief.scheduler.RollBack(10 * oldest, chief.epoch, {"server"}));
    EXPECT_EQ(chief.scheduler.advance().steps, 10 * oldest);
    EXPECT_EQ(chief.Finish(worker, kEpochs - 1).size(),
              10 * static_cast<std::size_t>(kEpochs - oldest));
    EXPECT_EQ(chief.scheduler.advance().epochs, kEpochs);
    chief.Save(10 * kEpochs);
  }
  Chief chief(folder.path());
  const Sender worker = chief.Attach(0);
  OrThrow(chief.scheduler.Open(10 * kEpochs));
  EXPECT_EQ(chief.Finish(worker, kEpochs).size(), 10U) << "and nothing of earlier epochs";
}

TEST(JournalTest, RoundsGoOnWithTheirNumbers) {
  const TempDir folder;
  const auto round = [](Chief& chief, const Sender& a, const Sender& b, std::int64_t epoch) {
    const auto join = [&](const Sender& sender) {
      return OrThrow(chief.scheduler.JoinRound(sender, {0, epoch}, 0, kAtOnce));
    };
    EXPECT_EQ(join(a).progress, Progress::kWait);
    const RoundPart part = join(b).part;
    for (const Sender& sender : {a, b}) {
      OrThrow(chief.scheduler.FinishRound(sender, part.round, part.attempt,
                                          {.loss_sum = 1, .weight = 5, .metric_sums = {}},
                                          kAtOnce));
    }
    return part;
  };
  {
    Chief chief(folder.path());
    OrThrow(chief.scheduler.Open(0));
    const Sender a = chief.Attach(0);
    const Sender b = chief.Attach(1);
    for (int i = 0; i < 7; ++i) {
      round(chief, a, b, 0);
    }
    chief.Save(7);
    for (int i = 7; i < 12; ++i) {
      round(chief, a, b, i < 10 ? 0 : 1);
    }
  }
  Chief chief(folder.path());
  OrThrow(chief.scheduler.Open(7));
  const Sender a = chief.Attach(0);
  const Sender b = chief.Attach(1);
  for (std::uint64_t number = 8; number <= 20; ++number) {
    const RoundPart part = round(chief, a, b, 1);
    EXPECT_EQ(part.round, number);
    EXPECT_EQ(part.epoch.epoch, number <= 10 ? 0 : 1);
    EXPECT_EQ(part.batch, static_cast<std::int64_t>(number - 1) % 10);
  }
  EXPECT_EQ(chief.scheduler.coverage().at(0).loss, 0.2);
}

TEST(JournalTest, WorkersThatHadEndedAreNotWaitedFor) {
  const TempDir folder;
  {
    Chief chief(folder.path());
    OrThrow(chief.scheduler.Open(0));
    const Sender first = chief.Attach(0);
    chief.Attach(1);
    chief.scheduler.Lost(Worker(0), Unavailable("killed"));
    chief.Attach(0);
    chief.scheduler.Lost(Worker(0), Unavailable("killed again"));
    EXPECT_FALSE(chief.scheduler.Done(first).ok()) << "it was given up";
  }
  Chief chief(folder.path());
  EXPECT_THAT(chief.before.ended, ElementsAre(Pair(Worker(0), JournalState::End::kLost)));
  OrThrow(chief.scheduler.Open(0));
  const Sender second = chief.Attach(1);
  EXPECT_EQ(OrThrow(chief.scheduler.JoinRound(second, {0, 0}, 0, kAtOnce)).progress, Progress::kGo)
      << "alone";
  EXPECT_TRUE(chief.scheduler.Done(second).ok());
  EXPECT_TRUE(OrThrow(chief.scheduler.WaitOver(kAtOnce)));
  EXPECT_EQ(OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0))->state().ended.size(),
            2U);
}

// Of a job that goes on, and of another one, which has nothing to do with who had ended before.
TEST(JournalTest, AWorkerIsLostBeforeTheJournalBegins) {
  for (const bool goes_on : {false, true}) {
    const TempDir folder;
    {
      const auto before = OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0));
      OrThrow(before->Begin(false, 3));
      OrThrow(before->Await(before->Worker(Worker(7), JournalState::End::kDone)));
    }
    const auto journal = OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0));
    Scheduler scheduler({.workers = {Worker(0), Worker(1)}, .journal = journal.get()});
    scheduler.Lost(Worker(0), Unavailable("killed"));
    OrThrow(journal->Begin(goes_on, 4));
    OrThrow(scheduler.Open(0));
    EXPECT_FALSE(OrThrow(scheduler.WaitOver(kAtOnce))) << "worker:1 is still expected";
    const auto ended = OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0))->state().ended;
    EXPECT_EQ(ended.size(), goes_on ? 2U : 1U);
    EXPECT_EQ(ended.at(Worker(0)), JournalState::End::kLost);
  }
}

TEST(JournalTest, AWorkerThatIsBackBeforeTheJobGoesOnHasNotEnded) {
  const TempDir folder;
  {
    Chief chief(folder.path());
    OrThrow(chief.scheduler.Open(0));
    chief.Attach(0);
    chief.scheduler.Lost(Worker(0), Unavailable("killed"));
  }
  const auto journal = OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0));
  const JournalState before = journal->state();
  EXPECT_EQ(before.ended.size(), 1U);
  Scheduler scheduler({.workers = {Worker(0), Worker(1)}, .journal = journal.get()});
  OrThrow(scheduler.Attach(Process(0, 9, 0)));
  OrThrow(journal->Begin(true, 2));
  scheduler.Succeed(before);
  EXPECT_TRUE(OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0))->state().ended.empty());
}

TEST(JournalTest, ASaveThatItKnowsNothingOfIsRefused) {
  const TempDir folder;
  OrThrow(Chief(folder.path()).scheduler.Open(0));
  EXPECT_THAT(Chief(folder.path()).scheduler.Open(5).message(),
              HasSubstr("step 5, where this job has not been"));
}

TEST(JournalTest, AWorkerOfAJobThatItKnowsNothingOfIsRefused) {
  const TempDir folder;
  Chief chief(folder.path());
  for (const std::uint64_t epoch : {9U, 1U}) {
    EXPECT_THAT(chief.scheduler.Attach(Process(0, 7, epoch)).status().message(),
                HasSubstr("worker:0 comes from a job whose chief and servers are gone"));
  }
  Scheduler early({.workers = {Worker(0)}});
  OrThrow(early.Attach(Process(0, 7, 9)));  // it may yet succeed
  early.SetView(1, {"server"});
  EXPECT_EQ(early.Open(0).code(), StatusCode::kFailedPrecondition);
}

TEST(JournalTest, OtherValuesToBeginWithAreRefused) {
  const TempDir folder;
  OrThrow(Chief(folder.path()).scheduler.Open(0, 77));
  EXPECT_THAT(Chief(folder.path()).scheduler.Open(0, 78).message(),
              HasSubstr("begin anew with other values"));
  EXPECT_TRUE(Chief(folder.path()).scheduler.Open(0, 77).ok());
}

TEST(JournalTest, AnOpenThatIsRefusedChangesNothing) {
  const TempDir folder;
  OrThrow(Chief(folder.path()).scheduler.Open(0, 77));
  Chief chief(folder.path());
  const Sender worker = chief.Attach(0);
  for (int tries = 0; tries < 2; ++tries) {
    EXPECT_THAT(chief.scheduler.Open(0, 78).message(), HasSubstr("begin anew with other values"));
    EXPECT_TRUE(chief.scheduler.AwaitView(0, false, kAtOnce).recovering);
    EXPECT_EQ(chief.Next(worker, 0, {}).progress, Progress::kStale) << "nothing is handed out";
  }
  OrThrow(chief.scheduler.Open(0, 77));
  EXPECT_EQ(chief.Finish(worker, 0).size(), 10U);
}

// The workers are at another data set than the save; the way to a later one is still there.
TEST(JournalTest, ARollBackThatIsRefusedChangesNothing) {
  const TempDir folder;
  Chief chief(folder.path());
  OrThrow(chief.scheduler.OpenDataset("chief:0", 1, kData));
  OrThrow(chief.scheduler.Open(0));
  const Sender worker = chief.Attach(0);
  chief.Finish(worker, 0, 2);
  chief.Save(2);
  chief.Finish(worker, 0);
  EXPECT_EQ(OrThrow(chief.scheduler.NextSplit(worker, {1, 0}, 0, {}, kAtOnce)).progress,
            Progress::kGo);
  const Course later = {.step = 10,
                        .digest = 0,
                        .epochs = {},
                        .rounds = chief.scheduler.CourseAt(2).rounds,
                        .again = {}};
  OrThrow(chief.scheduler.Remember(later));
  chief.scheduler.ServerLost(Unavailable("ps:1 was killed"));
  EXPECT_THAT(chief.scheduler.RollBack(2, 2, {"server"}).message(),
              HasSubstr("another data set's epochs"));
  EXPECT_TRUE(chief.scheduler.recovering());
  EXPECT_TRUE(chief.scheduler.GoOn(10, 2, {"server"}).ok()) << "it is remembered still";
}

TEST(JournalTest, OtherDataIsRefused) {
  const TempDir folder;
  OrThrow(Chief(folder.path()).scheduler.Open(0));
  const Chief chief(folder.path(), FileSystem::Local(), {1, 101, 10});
  EXPECT_THAT(chief.opened.message(), HasSubstr("chief:0 has 101 examples"));
}

}  // namespace
}  // namespace cohort::ps
