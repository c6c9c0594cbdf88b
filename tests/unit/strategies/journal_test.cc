// What a chief has noted, and what another one in its place makes of it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <cohort/core/file_system.h>

#include "parameter_server/chief/coordinator.h"
#include "parameter_server/chief/journal.h"
#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using testing::FaultyFileSystem;
using ::testing::HasSubstr;
using ::testing::Pair;
using testing::TempDir;

constexpr Duration kAtOnce{0};
constexpr DatasetInfo kData{.fingerprint = 1, .examples = 100, .batch_size = 10};

TaskId Worker(int index) { return {TaskType::kWorker, index}; }
Sender Process(int worker, std::uint64_t incarnation, std::uint64_t epoch) {
  return {.task = Worker(worker), .incarnation = incarnation, .epoch = epoch};
}

// A chief, as far as it hands out work.
struct Chief {
  explicit Chief(const std::string& folder, FileSystem& files = FileSystem::Local(),
                 const DatasetInfo& data = kData)
      : journal(OrThrow(Journal::Open(files, folder, /*backup_workers=*/0))),
        before(journal->state()),
        epoch(before.epoch + 1),
        coordinator({.workers = {Worker(0), Worker(1)},
                     .rejoin_timeout = std::chrono::milliseconds(0),
                     .journal = journal.get()}) {
    OrThrow(journal->Begin(before.epoch > 0, epoch));
    if (before.epoch > 0) {
      coordinator.Succeed(before);
    }
    coordinator.SetView(epoch, {"server"}, before.epoch > 0 ? "the chief was started again" : "");
    opened = coordinator.OpenDataset("chief:0", 0, data);
  }

  Sender Attach(int worker) {
    const Sender sender = Process(worker, 100 * epoch + static_cast<std::uint64_t>(worker), epoch);
    OrThrow(coordinator.Attach(Process(worker, sender.incarnation, 0)));
    return sender;
  }
  SplitReply Next(const Sender& sender, std::int64_t epoch_of_data, const FinishedSplit& finished) {
    return OrThrow(coordinator.NextSplit(sender, {0, epoch_of_data}, 0, finished, kAtOnce));
  }
  // What is handed out until the epoch is over: epoch and example; not more than `most`.
  std::vector<std::pair<std::int64_t, std::int64_t>> Finish(const Sender& sender,
                                                            std::int64_t epoch_of_data,
                                                            std::size_t most = 1000) {
    std::vector<std::pair<std::int64_t, std::int64_t>> begins;
    FinishedSplit finished;
    while (begins.size() < most) {
      const SplitReply reply = Next(sender, epoch_of_data, finished);
      if (reply.progress != Progress::kGo) {
        EXPECT_EQ(reply.progress, Progress::kOver);
        return begins;
      }
      begins.emplace_back(reply.epoch, reply.split.begin);
      finished = {.id = reply.split.id,
                  .epoch = reply.epoch,
                  .steps = 1,
                  .sums = {.loss_sum = 2, .weight = 1, .metric_sums = {3}}};
    }
    coordinator.Acknowledge(sender, {0, epoch_of_data}, finished);
    return begins;
  }
  void Save(std::int64_t step) {
    ASSERT_TRUE(OrThrow(coordinator.BeginCut(std::chrono::milliseconds(1))).has_value());
    const Course course = coordinator.CourseAt(step);
    coordinator.EndCut();
    OrThrow(coordinator.Remember(course));
  }

  std::unique_ptr<Journal> journal;
  const JournalState before;
  const std::uint64_t epoch;
  Coordinator coordinator;
  Status opened;
};

std::string PathIn(const TempDir& folder) { return folder.path() + "/chief.journal"; }

TEST(JournalTest, AnotherChiefHandsOutWhatIsLeftSinceTheSave) {
  const TempDir folder;
  {
    Chief chief(folder.path());
    OrThrow(chief.coordinator.Open(0));
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
  EXPECT_TRUE(chief.coordinator.AwaitView(0, false, kAtOnce).recovering);
  OrThrow(chief.coordinator.Open(14));
  EXPECT_FALSE(chief.coordinator.AwaitView(0, false, kAtOnce).recovering);
  EXPECT_EQ(chief.coordinator.advance().steps, 14);
  const auto begins = chief.Finish(worker, 2);
  std::vector<std::pair<std::int64_t, std::int64_t>> expected;
  for (std::int64_t begin = 40; begin < 100; begin += 10) {
    expected.emplace_back(1, begin);
  }
  for (std::int64_t begin = 0; begin < 100; begin += 10) {
    expected.emplace_back(2, begin);
  }
  EXPECT_EQ(begins, expected);
  for (const EpochCoverage& epoch : chief.coordinator.coverage()) {
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
    OrThrow(chief.coordinator.Open(0));
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
    EXPECT_LE(chief.coordinator.CourseAt(1).epochs.size(), 2 * Journal::kMaxCourses);
    EXPECT_EQ(chief.Next(worker, 0, {}).progress, Progress::kOver);
    EXPECT_EQ(chief.coordinator.advance().epochs, kEpochs);
    EXPECT_EQ(chief.coordinator.advance().steps, 10 * kEpochs);
    EXPECT_EQ(chief.coordinator.StepsSince(10 * (kEpochs - 3)), 30);
    const std::vector<EpochCoverage> coverage = chief.coordinator.coverage();
    ASSERT_EQ(coverage.size(), static_cast<std::size_t>(kEpochs));
    for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch) {
      EXPECT_EQ(coverage[static_cast<std::size_t>(epoch)].epoch, epoch);
      EXPECT_EQ(coverage[static_cast<std::size_t>(epoch)].seen, 100) << epoch;
      EXPECT_EQ(coverage[static_cast<std::size_t>(epoch)].loss, 2) << epoch;
    }
    // Back to the oldest save that there is a way to, and there again.
    const std::int64_t oldest = kEpochs - static_cast<std::int64_t>(Journal::kMaxCourses) + 1;
    chief.coordinator.ServerLost(Unavailable("ps:1 was killed"));
    OrThrow(chief.coordinator.RollBack(10 * oldest, chief.epoch, {"server"}));
    EXPECT_EQ(chief.coordinator.advance().steps, 10 * oldest);
    EXPECT_EQ(chief.Finish(worker, kEpochs - 1).size(),
              10 * static_cast<std::size_t>(kEpochs - oldest));
    EXPECT_EQ(chief.coordinator.advance().epochs, kEpochs);
    chief.Save(10 * kEpochs);
  }
  Chief chief(folder.path());
  const Sender worker = chief.Attach(0);
  OrThrow(chief.coordinator.Open(10 * kEpochs));
  EXPECT_EQ(chief.Finish(worker, kEpochs).size(), 10U) << "and nothing of earlier epochs";
}

TEST(JournalTest, RoundsGoOnWithTheirNumbers) {
  const TempDir folder;
  const auto round = [](Chief& chief, const Sender& a, const Sender& b, std::int64_t epoch) {
    const auto join = [&](const Sender& sender) {
      return OrThrow(chief.coordinator.JoinRound(sender, {0, epoch}, 0, kAtOnce));
    };
    EXPECT_EQ(join(a).progress, Progress::kWait);
    const RoundPart part = join(b).part;
    for (const Sender& sender : {a, b}) {
      OrThrow(chief.coordinator.FinishRound(sender, part.round, part.attempt,
                                            {.loss_sum = 1, .weight = 5, .metric_sums = {}},
                                            kAtOnce));
    }
    return part;
  };
  {
    Chief chief(folder.path());
    OrThrow(chief.coordinator.Open(0));
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
  OrThrow(chief.coordinator.Open(7));
  const Sender a = chief.Attach(0);
  const Sender b = chief.Attach(1);
  for (std::uint64_t number = 8; number <= 20; ++number) {
    const RoundPart part = round(chief, a, b, 1);
    EXPECT_EQ(part.round, number);
    EXPECT_EQ(part.epoch.epoch, number <= 10 ? 0 : 1);
    EXPECT_EQ(part.batch, static_cast<std::int64_t>(number - 1) % 10);
  }
  EXPECT_EQ(chief.coordinator.coverage().at(0).loss, 0.2);
}

TEST(JournalTest, WorkersThatHadEndedAreNotWaitedFor) {
  const TempDir folder;
  {
    Chief chief(folder.path());
    OrThrow(chief.coordinator.Open(0));
    const Sender first = chief.Attach(0);
    chief.Attach(1);
    chief.coordinator.Lost(Worker(0), Unavailable("killed"));
    chief.Attach(0);
    chief.coordinator.Lost(Worker(0), Unavailable("killed again"));
    EXPECT_FALSE(chief.coordinator.Done(first).ok()) << "it was given up";
  }
  Chief chief(folder.path());
  EXPECT_THAT(chief.before.ended, ElementsAre(Pair(Worker(0), JournalState::End::kLost)));
  OrThrow(chief.coordinator.Open(0));
  const Sender second = chief.Attach(1);
  EXPECT_EQ(OrThrow(chief.coordinator.JoinRound(second, {0, 0}, 0, kAtOnce)).progress,
            Progress::kGo)
      << "alone";
  EXPECT_TRUE(chief.coordinator.Done(second).ok());
  EXPECT_TRUE(OrThrow(chief.coordinator.WaitOver(kAtOnce)));
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
    Coordinator coordinator({.workers = {Worker(0), Worker(1)}, .journal = journal.get()});
    coordinator.Lost(Worker(0), Unavailable("killed"));
    OrThrow(journal->Begin(goes_on, 4));
    OrThrow(coordinator.Open(0));
    EXPECT_FALSE(OrThrow(coordinator.WaitOver(kAtOnce))) << "worker:1 is still expected";
    const auto ended = OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0))->state().ended;
    EXPECT_EQ(ended.size(), goes_on ? 2U : 1U);
    EXPECT_EQ(ended.at(Worker(0)), JournalState::End::kLost);
  }
}

TEST(JournalTest, AWorkerThatIsBackBeforeTheJobGoesOnHasNotEnded) {
  const TempDir folder;
  {
    Chief chief(folder.path());
    OrThrow(chief.coordinator.Open(0));
    chief.Attach(0);
    chief.coordinator.Lost(Worker(0), Unavailable("killed"));
  }
  const auto journal = OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0));
  const JournalState before = journal->state();
  EXPECT_EQ(before.ended.size(), 1U);
  Coordinator coordinator({.workers = {Worker(0), Worker(1)}, .journal = journal.get()});
  OrThrow(coordinator.Attach(Process(0, 9, 0)));
  OrThrow(journal->Begin(true, 2));
  coordinator.Succeed(before);
  EXPECT_TRUE(OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0))->state().ended.empty());
}

TEST(JournalTest, ASaveThatItKnowsNothingOfIsRefused) {
  const TempDir folder;
  OrThrow(Chief(folder.path()).coordinator.Open(0));
  EXPECT_THAT(Chief(folder.path()).coordinator.Open(5).message(),
              HasSubstr("step 5, where this job has not been"));
}

TEST(JournalTest, AWorkerOfAJobThatItKnowsNothingOfIsRefused) {
  const TempDir folder;
  Chief chief(folder.path());
  for (const std::uint64_t epoch : {9U, 1U}) {
    EXPECT_THAT(chief.coordinator.Attach(Process(0, 7, epoch)).status().message(),
                HasSubstr("worker:0 comes from a job whose chief and servers are gone"));
  }
  Coordinator early({.workers = {Worker(0)}});
  OrThrow(early.Attach(Process(0, 7, 9)));  // it may yet succeed
  early.SetView(1, {"server"});
  EXPECT_EQ(early.Open(0).code(), StatusCode::kFailedPrecondition);
}

TEST(JournalTest, OtherValuesToBeginWithAreRefused) {
  const TempDir folder;
  OrThrow(Chief(folder.path()).coordinator.Open(0, 77));
  EXPECT_THAT(Chief(folder.path()).coordinator.Open(0, 78).message(),
              HasSubstr("begin anew with other values"));
  EXPECT_TRUE(Chief(folder.path()).coordinator.Open(0, 77).ok());
}

TEST(JournalTest, AnOpenThatIsRefusedChangesNothing) {
  const TempDir folder;
  OrThrow(Chief(folder.path()).coordinator.Open(0, 77));
  Chief chief(folder.path());
  const Sender worker = chief.Attach(0);
  for (int tries = 0; tries < 2; ++tries) {
    EXPECT_THAT(chief.coordinator.Open(0, 78).message(), HasSubstr("begin anew with other values"));
    EXPECT_TRUE(chief.coordinator.AwaitView(0, false, kAtOnce).recovering);
    EXPECT_EQ(chief.Next(worker, 0, {}).progress, Progress::kStale) << "nothing is handed out";
  }
  OrThrow(chief.coordinator.Open(0, 77));
  EXPECT_EQ(chief.Finish(worker, 0).size(), 10U);
}

// The workers are at another data set than the save; the way to a later one is still there.
TEST(JournalTest, ARollBackThatIsRefusedChangesNothing) {
  const TempDir folder;
  Chief chief(folder.path());
  OrThrow(chief.coordinator.OpenDataset("chief:0", 1, kData));
  OrThrow(chief.coordinator.Open(0));
  const Sender worker = chief.Attach(0);
  chief.Finish(worker, 0, 2);
  chief.Save(2);
  chief.Finish(worker, 0);
  EXPECT_EQ(OrThrow(chief.coordinator.NextSplit(worker, {1, 0}, 0, {}, kAtOnce)).progress,
            Progress::kGo);
  const Course later = {.step = 10,
                        .digest = 0,
                        .epochs = {},
                        .rounds = chief.coordinator.CourseAt(2).rounds,
                        .again = {}};
  OrThrow(chief.coordinator.Remember(later));
  chief.coordinator.ServerLost(Unavailable("ps:1 was killed"));
  EXPECT_THAT(chief.coordinator.RollBack(2, 2, {"server"}).message(),
              HasSubstr("another data set's epochs"));
  EXPECT_TRUE(chief.coordinator.recovering());
  EXPECT_TRUE(chief.coordinator.GoOn(10, 2, {"server"}).ok()) << "it is remembered still";
}

TEST(JournalTest, OtherDataIsRefused) {
  const TempDir folder;
  OrThrow(Chief(folder.path()).coordinator.Open(0));
  const Chief chief(folder.path(), FileSystem::Local(), {1, 101, 10});
  EXPECT_THAT(chief.opened.message(), HasSubstr("chief:0 has 101 examples"));
}

TEST(JournalTest, WhatACrashHasLeftOfALastRecordIsDropped) {
  const TempDir folder;
  const auto journal = OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0));
  OrThrow(journal->Begin(false, 4));
  OrThrow(journal->Await(journal->Begun({0, 0}, 3)));
  const auto whole = std::filesystem::file_size(PathIn(folder));
  OrThrow(journal->Await(journal->Begun({0, 1}, 0)));
  const std::string bytes = OrThrow(ReadFile(FileSystem::Local(), PathIn(folder)));
  const TempDir other;
  for (std::size_t size = whole; size <= bytes.size(); ++size) {
    OrThrow(WriteFileAtomically(FileSystem::Local(), PathIn(other), bytes.substr(0, size)));
    const JournalState state =
        OrThrow(Journal::Open(FileSystem::Local(), other.path(), 0))->state();
    EXPECT_EQ(state.epoch, 4U) << size;
    EXPECT_EQ(state.begun.size(), size == bytes.size() ? 2U : 1U) << size;
  }
}

// Every byte of every record but the last that was appended, whose loss a crash explains.
TEST(JournalTest, DamageBeforeTheEndIsAnError) {
  const TempDir folder;
  const auto journal = OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0));
  OrThrow(journal->Begin(false, 4));
  const auto first = std::filesystem::file_size(PathIn(folder));
  OrThrow(journal->Await(journal->Begun({0, 0}, 3)));
  OrThrow(journal->Await(journal->Worker(Worker(1), JournalState::End::kDone)));
  const auto whole = std::filesystem::file_size(PathIn(folder));
  OrThrow(journal->Await(journal->Begun({0, 1}, 0)));
  const std::string sound = OrThrow(ReadFile(FileSystem::Local(), PathIn(folder)));
  const TempDir other;
  const auto open = [&](const std::string& bytes) {
    OrThrow(WriteFileAtomically(FileSystem::Local(), PathIn(other), bytes));
    return Journal::Open(FileSystem::Local(), other.path(), 0);
  };
  for (std::size_t i = 0; i < sound.size(); ++i) {
    std::string bytes = sound;
    bytes[i] ^= 1;
    const auto opened = open(bytes);
    if (i >= whole) {
      ASSERT_TRUE(opened.ok()) << i << ": " << opened.status().ToString();
      EXPECT_EQ((*opened)->state().begun.size(), 1U) << i;
      continue;
    }
    EXPECT_EQ(opened.status().code(), StatusCode::kDataLoss) << i;
    EXPECT_THAT(opened.status().message(), HasSubstr("delete " + PathIn(other))) << i;
  }
  for (const std::size_t size : {std::size_t{0}, std::size_t{5}, first - 1}) {
    EXPECT_EQ(open(sound.substr(0, size)).status().code(), StatusCode::kDataLoss)
        << "no crash leaves only " << size;
  }
}

TEST(JournalTest, AChiefThatWasReplacedWritesNowhere) {
  const TempDir folder;
  Chief first(folder.path());
  OrThrow(first.coordinator.Open(0));
  Chief second(folder.path());
  OrThrow(first.journal->Await(first.journal->Begun({0, 9}, 0)));
  const Course course = {.step = 5, .digest = 0, .epochs = {}, .rounds = {}, .again = {}};
  EXPECT_THAT(first.journal->Remember(course).message(), HasSubstr("another chief"));
  EXPECT_EQ(first.journal->GoBack(0).code(), StatusCode::kAborted);
  EXPECT_EQ(first.journal->Remove().code(), StatusCode::kAborted);
  const auto third = OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0));
  EXPECT_EQ(third->state().epoch, 2U);
  EXPECT_TRUE(third->state().begun.empty());
  OrThrow(second.coordinator.Open(0));
  OrThrow(second.journal->Remove());
  EXPECT_EQ(first.journal->Remember(course).code(), StatusCode::kAborted) << "the job is over";
  EXPECT_FALSE(std::filesystem::exists(PathIn(folder)));
}

TEST(JournalTest, WhatAKilledChiefWasWritingIsRemoved) {
  const TempDir folder;
  const std::string left = PathIn(folder) + ".tmp-1-2";
  const std::string others = folder.path() + "/step-1.tmp-1-2";
  for (const std::string& path : {left, others}) {
    OrThrow(WriteFileAtomically(FileSystem::Local(), path, "half"));
  }
  const Chief chief(folder.path());
  EXPECT_FALSE(std::filesystem::exists(left));
  EXPECT_TRUE(std::filesystem::exists(others));
}

// Half a record is not written behind; the next one replaces the file, and what was noted is in it.
TEST(JournalTest, AfterAFailedWriteOnlyAReplacementFollows) {
  const TempDir folder;
  bool full = false;
  FaultyFileSystem files([&](std::string_view operation, const std::string&) {
    return full && operation == "append" ? ResourceExhausted("no space left") : OkStatus();
  });
  Chief chief(folder.path(), files);
  OrThrow(chief.coordinator.Open(0));
  full = true;
  Journal& journal = *chief.journal;
  EXPECT_EQ(journal.Await(journal.Begun({0, 1}, 0)).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(journal.Await(journal.Worker(Worker(1), JournalState::End::kDone)).code(),
            StatusCode::kResourceExhausted);
  const auto begun = [&] {
    return OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0))->state().begun.size();
  };
  EXPECT_EQ(begun(), 0U);
  full = false;
  OrThrow(journal.Await(journal.Begun({0, 2}, 0)));
  EXPECT_EQ(begun(), 2U);
  OrThrow(chief.coordinator.Remember(chief.coordinator.CourseAt(3)));
  OrThrow(journal.Await(journal.Begun({0, 3}, 0)));
  EXPECT_EQ(begun(), 3U);
}

// However many saves fail, the way back to the last one that did not is kept.
TEST(JournalTest, WaysThatCouldNotBeNotedPushOutNone) {
  const TempDir folder;
  bool full = false;
  FaultyFileSystem files([&](std::string_view operation, const std::string&) {
    return full && operation == "append" ? ResourceExhausted("no space left") : OkStatus();
  });
  {
    Chief chief(folder.path(), files);
    OrThrow(chief.coordinator.Open(0));
    const Sender worker = chief.Attach(0);
    chief.Finish(worker, 0, 2);
    chief.Save(2);
    full = true;
    for (std::int64_t step = 3; step < 3 + static_cast<std::int64_t>(Journal::kMaxCourses);
         ++step) {
      EXPECT_EQ(chief.coordinator.Remember(chief.coordinator.CourseAt(step)).code(),
                StatusCode::kResourceExhausted);
      OrThrow(chief.coordinator.Forget(step));
    }
    full = false;
    chief.Save(50);
    EXPECT_EQ(chief.journal->GoBack(7).code(), StatusCode::kFailedPrecondition);
    full = true;
    EXPECT_FALSE(chief.coordinator.Forget(50).ok()) << "the file has it still";
    full = false;
    chief.Save(60);
  }
  Chief chief(folder.path(), files);
  ASSERT_EQ(chief.before.courses.size(), 3U);
  EXPECT_EQ(chief.before.courses[0].step, 0);
  EXPECT_EQ(chief.before.courses[1].step, 2);
  EXPECT_EQ(chief.before.courses[2].step, 60);
  OrThrow(chief.coordinator.Open(2));
  EXPECT_EQ(chief.Finish(chief.Attach(0), 0).size(), 8U);
}

TEST(JournalTest, WorkIsHandedOutWhileASaveIsNoted) {
  const TempDir folder;
  std::function<void()> meanwhile;
  FaultyFileSystem files([&](std::string_view operation, const std::string&) {
    if (operation == "sync" && meanwhile) {
      std::exchange(meanwhile, {})();
    }
    return OkStatus();
  });
  Chief chief(folder.path(), files);
  OrThrow(chief.coordinator.Open(0));
  const Sender worker = chief.Attach(0);
  const Split split = chief.Next(worker, 0, {}).split;
  chief.coordinator.Acknowledge(worker, {0, 0}, {.id = split.id, .epoch = 0, .steps = 1});
  std::future<SplitReply> next;
  meanwhile = [&] {
    next = std::async(std::launch::async, [&] { return chief.Next(worker, 0, {}); });
    EXPECT_EQ(next.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  };
  chief.Save(1);
  ASSERT_TRUE(next.valid());
  EXPECT_EQ(next.get().progress, Progress::kGo);
}

// A disk that takes as long as the test wants: from Hold on, a sync stands still until LetGo;
// `with`: what this one and later ones return.
class SlowDisk {
 public:
  SlowDisk()
      : files_([this](std::string_view operation, const std::string&) {
          return operation == "sync" ? Stand() : OkStatus();
        }) {}
  ~SlowDisk() { LetGo(); }

  FileSystem& files() { return files_; }
  void Hold() {
    const std::lock_guard lock(mutex_);
    held_ = true;
  }
  void LetGo(Status with = {}) {
    {
      const std::lock_guard lock(mutex_);
      held_ = false;
      with_ = std::move(with);
    }
    changed_.notify_all();
  }
  // Until a sync stands.
  [[nodiscard]] bool AwaitStanding() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [this] { return standing_ > 0; });
  }
  int syncs() const {
    const std::lock_guard lock(mutex_);
    return syncs_;
  }

 private:
  Status Stand() {
    std::unique_lock lock(mutex_);
    ++syncs_;
    ++standing_;
    changed_.notify_all();
    changed_.wait_for(lock, std::chrono::seconds(60), [this] { return !held_; });
    --standing_;
    return with_;
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  Status with_;
  int standing_ = 0;
  int syncs_ = 0;
  FaultyFileSystem files_;  // last: it uses the rest
};

template <typename F>
auto Async(F f) {
  return std::async(std::launch::async, std::move(f));
}
template <typename T>
bool IsReady(const std::future<T>& future) {
  return future.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}
template <typename T>
bool Ends(const std::future<T>& future) {
  return future.wait_for(std::chrono::seconds(20)) == std::future_status::ready;
}

// What is noted while the disk is busy goes there in one write.
TEST(JournalTest, OneWriteTakesAllThatWasNotedMeanwhile) {
  const TempDir folder;
  SlowDisk disk;
  Chief chief(folder.path(), disk.files());
  OrThrow(chief.coordinator.Open(0));
  Journal& journal = *chief.journal;
  disk.Hold();
  const int before = disk.syncs();
  const Journal::Ticket first = journal.Begun({0, 1}, 0);
  std::future<Status> writer = Async([&] { return journal.Await(first); });
  ASSERT_TRUE(disk.AwaitStanding());
  std::vector<Journal::Ticket> tickets;
  std::vector<std::future<Status>> waiting;
  for (std::int64_t epoch = 2; epoch < 10; ++epoch) {
    tickets.push_back(journal.Begun({0, epoch}, 0));  // with nobody's leave
    waiting.push_back(Async([&journal, ticket = tickets.back()] { return journal.Await(ticket); }));
  }
  EXPECT_FALSE(journal.has(first));
  EXPECT_FALSE(journal.has(tickets.back()));
  disk.LetGo();
  OrThrow(writer.get());
  for (std::future<Status>& each : waiting) {
    OrThrow(each.get());
  }
  EXPECT_TRUE(journal.has(tickets.back()));
  EXPECT_EQ(disk.syncs(), before + 2);
  EXPECT_EQ(OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0))->state().begun.size(),
            9U);
}

TEST(JournalTest, AfterAWriteThatFailedTheNextHasWhatThatHad) {
  const TempDir folder;
  SlowDisk disk;
  Chief chief(folder.path(), disk.files());
  Journal& journal = *chief.journal;
  disk.Hold();
  const Journal::Ticket first = journal.Begun({0, 1}, 0);
  std::future<Status> writer = Async([&] { return journal.Await(first); });
  ASSERT_TRUE(disk.AwaitStanding());
  disk.LetGo(ResourceExhausted("no space left"));
  EXPECT_EQ(writer.get().code(), StatusCode::kResourceExhausted);
  EXPECT_FALSE(journal.has(first));
  const Journal::Ticket second = journal.Begun({0, 2}, 0);
  EXPECT_EQ(journal.Await(second).code(), StatusCode::kResourceExhausted);
  disk.LetGo();
  OrThrow(journal.Await(second));
  EXPECT_TRUE(journal.has(first)) << "the file was written anew";
  EXPECT_EQ(OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0))->state().begun.size(),
            2U);
}

// While one epoch's begin is on its way to the disk: who asks for that one waits, whatever else is
// asked for is answered.
TEST(JournalTest, ARequestWaitsForTheDiskOnlyForWhatItDependsOn) {
  const TempDir folder;
  SlowDisk disk;
  Chief chief(folder.path(), disk.files());
  OrThrow(chief.coordinator.Open(0));
  const Sender first = chief.Attach(0);
  const Sender second = chief.Attach(1);
  const SplitReply held = chief.Next(first, 0, {});
  disk.Hold();
  std::future<SplitReply> of_next = Async([&] { return chief.Next(first, 1, {}); });
  ASSERT_TRUE(disk.AwaitStanding());

  std::future<SplitReply> of_this = Async([&] { return chief.Next(second, 0, {}); });
  std::future<ServerView> view =
      Async([&] { return chief.coordinator.AwaitView(0, false, kAtOnce); });
  std::future<Status> opened =
      Async([&] { return chief.coordinator.OpenDataset("worker:1", 0, kData); });
  std::future<void> told = Async([&] { chief.coordinator.Progressed(second, 1); });
  ASSERT_TRUE(Ends(of_this) && Ends(view) && Ends(opened) && Ends(told));
  EXPECT_EQ(of_this.get().progress, Progress::kGo);
  EXPECT_EQ(view.get().epoch, chief.epoch);
  OrThrow(opened.get());

  std::future<SplitReply> also_next = Async([&] { return chief.Next(second, 1, {}); });
  EXPECT_FALSE(IsReady(of_next) || IsReady(also_next));
  EXPECT_TRUE(OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0))
                  ->state()
                  .begun.contains({0, 0}));
  disk.LetGo();
  ASSERT_TRUE(Ends(of_next) && Ends(also_next));
  EXPECT_EQ(of_next.get().progress, Progress::kGo);
  EXPECT_EQ(also_next.get().progress, Progress::kGo);
  EXPECT_NE(held.split.id, 0);
}

// No word on a data set, on the end of a worker, or on that of the job, before it is on the disk.
TEST(JournalTest, NoAnswerOvertakesWhatItDependsOn) {
  const TempDir folder;
  SlowDisk disk;
  std::atomic<int> gone = 0;
  const auto journal = OrThrow(Journal::Open(disk.files(), folder.path(), 0));
  Coordinator coordinator({.workers = {Worker(0), Worker(1)},
                           .rejoin_timeout = std::chrono::milliseconds(0),
                           .on_gone = [&gone](std::uint64_t) { ++gone; },
                           .journal = journal.get()});
  OrThrow(journal->Begin(false, 1));
  coordinator.SetView(1, {"server"});
  OrThrow(coordinator.Open(0));
  OrThrow(coordinator.Attach(Process(0, 1, 0)));
  OrThrow(coordinator.Attach(Process(1, 2, 0)));
  const auto stands = [&](auto call) {
    disk.Hold();
    auto answer = Async(std::move(call));
    EXPECT_TRUE(disk.AwaitStanding());
    EXPECT_FALSE(IsReady(answer));
    return answer;
  };

  std::future<Status> opened =
      stands([&] { return coordinator.OpenDataset("worker:0", 0, kData); });
  std::future<Status> same = Async([&] { return coordinator.OpenDataset("worker:1", 0, kData); });
  std::future<Status> other = Async([&] {
    return coordinator.OpenDataset("worker:1", 0,
                                   {.fingerprint = 2, .examples = 100, .batch_size = 10});
  });
  EXPECT_FALSE(IsReady(opened) || IsReady(same) || IsReady(other));
  disk.LetGo();
  OrThrow(opened.get());
  // Whichever of these came first, there is one data set.
  OrThrow(same.get());
  EXPECT_EQ(other.get().code(), StatusCode::kFailedPrecondition);

  std::future<void> lost = stands([&] { coordinator.Lost(Worker(0), Unavailable("killed")); });
  EXPECT_EQ(gone.load(), 0);
  disk.LetGo();
  lost.get();
  EXPECT_EQ(gone.load(), 1);

  std::future<Status> done = stands([&] { return coordinator.Done(Process(1, 2, 1)); });
  std::future<Result<bool>> over = Async([&] { return coordinator.WaitOver(kAtOnce); });
  EXPECT_FALSE(coordinator.WorkersHaveLeft());
  EXPECT_FALSE(IsReady(over));
  EXPECT_EQ(gone.load(), 1);
  disk.LetGo();
  OrThrow(done.get());
  EXPECT_TRUE(OrThrow(over.get()));
  EXPECT_TRUE(coordinator.WorkersHaveLeft());
  EXPECT_EQ(gone.load(), 2);
}

// Its client has given up waiting for the disk, and asks once more: no answer yet for that.
TEST(JournalTest, AWorkerThatIsBackAndAsksAgainWaitsForTheDiskToo) {
  const TempDir folder;
  SlowDisk disk;
  Chief chief(folder.path(), disk.files());
  OrThrow(chief.coordinator.Open(0));
  chief.Attach(0);
  chief.coordinator.Lost(Worker(0), Unavailable("killed"));
  const auto attach = [&] { return chief.coordinator.Attach(Process(0, 9, 0)); };
  disk.Hold();
  std::future<Result<std::uint64_t>> first = Async(attach);
  ASSERT_TRUE(disk.AwaitStanding());
  std::future<Result<std::uint64_t>> again = Async(attach);
  EXPECT_EQ(again.wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
  EXPECT_FALSE(IsReady(first));
  disk.LetGo();
  ASSERT_TRUE(Ends(first) && Ends(again));
  EXPECT_EQ(OrThrow(first.get()), OrThrow(again.get()));
  EXPECT_TRUE(Journal::Open(FileSystem::Local(), folder.path(), 0).value()->state().ended.empty());
}

// The servers' roll-back is noted: nothing is handed out meanwhile, and nobody who asks waits.
TEST(JournalTest, ARollBackIsNotedWithoutTheLock) {
  const TempDir folder;
  SlowDisk disk;
  Chief chief(folder.path(), disk.files());
  OrThrow(chief.coordinator.Open(0));
  const Sender worker = chief.Attach(0);
  EXPECT_EQ(chief.Finish(worker, 0, 2).size(), 2U);
  chief.coordinator.ServerLost(Unavailable("killed"));
  disk.Hold();
  std::future<Status> back =
      Async([&] { return chief.coordinator.RollBack(0, chief.epoch + 1, {"another"}); });
  ASSERT_TRUE(disk.AwaitStanding());
  std::future<SplitReply> next = Async([&] { return chief.Next(worker, 0, {}); });
  ASSERT_TRUE(Ends(next));
  EXPECT_EQ(next.get().progress, Progress::kStale);
  EXPECT_TRUE(chief.coordinator.recovering());
  disk.LetGo();
  OrThrow(back.get());
  EXPECT_FALSE(chief.coordinator.recovering());
  const Sender again = {
      .task = worker.task, .incarnation = worker.incarnation, .epoch = chief.epoch + 1};
  EXPECT_EQ(chief.Finish(again, 0).size(), 10U);
}

TEST(JournalTest, NothingIsHandedOutThatCouldNotBeNoted) {
  const TempDir folder;
  bool full = false;
  FaultyFileSystem files([&](std::string_view operation, const std::string&) {
    return full && operation == "sync" ? ResourceExhausted("no space left") : OkStatus();
  });
  Chief chief(folder.path(), files);
  OrThrow(chief.coordinator.Open(0));
  const Sender worker = chief.Attach(0);
  full = true;
  EXPECT_EQ(chief.coordinator.NextSplit(worker, {0, 0}, 0, {}, kAtOnce).status().code(),
            StatusCode::kResourceExhausted);
  EXPECT_TRUE(chief.coordinator.Done(worker).ok());
  EXPECT_EQ(chief.coordinator.WaitOver(kAtOnce).status().code(), StatusCode::kResourceExhausted)
      << "the chief hears of it";
}

TEST(JournalTest, AJobThatIsOverLeavesNone) {
  const TempDir folder;
  Chief chief(folder.path());
  OrThrow(chief.journal->Remove());
  EXPECT_FALSE(std::filesystem::exists(PathIn(folder)));
  OrThrow(chief.journal->Await(chief.journal->Begun({0, 0}, 0)));
  EXPECT_FALSE(std::filesystem::exists(PathIn(folder)));
}

}  // namespace
}  // namespace cohort::ps
