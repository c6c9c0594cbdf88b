// Who waits for the disk on which a chief notes what it does, and who does not.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <mutex>
#include <utility>
#include <vector>

#include <cohort/core/file_system.h>

#include "journal_chief.h"
#include "parameter_server/chief/journal.h"
#include "parameter_server/chief/scheduler.h"
#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using testing::FaultyFileSystem;
using testing::TempDir;

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
  OrThrow(chief.scheduler.Open(0));
  const Sender worker = chief.Attach(0);
  const Split split = chief.Next(worker, 0, {}).split;
  chief.scheduler.Acknowledge(worker, {0, 0}, {.id = split.id, .epoch = 0, .steps = 1});
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
  OrThrow(chief.scheduler.Open(0));
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
  OrThrow(chief.scheduler.Open(0));
  const Sender first = chief.Attach(0);
  const Sender second = chief.Attach(1);
  const SplitReply held = chief.Next(first, 0, {});
  disk.Hold();
  std::future<SplitReply> of_next = Async([&] { return chief.Next(first, 1, {}); });
  ASSERT_TRUE(disk.AwaitStanding());

  std::future<SplitReply> of_this = Async([&] { return chief.Next(second, 0, {}); });
  std::future<ServerView> view =
      Async([&] { return chief.scheduler.AwaitView(0, false, kAtOnce); });
  std::future<Status> opened =
      Async([&] { return chief.scheduler.OpenDataset("worker:1", 0, kData); });
  std::future<void> told = Async([&] { chief.scheduler.Progressed(second, 1); });
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
  Scheduler scheduler({.workers = {Worker(0), Worker(1)},
                       .rejoin_timeout = std::chrono::milliseconds(0),
                       .on_gone = [&gone](std::uint64_t) { ++gone; },
                       .journal = journal.get()});
  OrThrow(journal->Begin(false, 1));
  scheduler.SetView(1, {"server"});
  OrThrow(scheduler.Open(0));
  OrThrow(scheduler.Attach(Process(0, 1, 0)));
  OrThrow(scheduler.Attach(Process(1, 2, 0)));
  const auto stands = [&](auto call) {
    disk.Hold();
    auto answer = Async(std::move(call));
    EXPECT_TRUE(disk.AwaitStanding());
    EXPECT_FALSE(IsReady(answer));
    return answer;
  };

  std::future<Status> opened = stands([&] { return scheduler.OpenDataset("worker:0", 0, kData); });
  std::future<Status> same = Async([&] { return scheduler.OpenDataset("worker:1", 0, kData); });
  std::future<Status> other = Async([&] {
    return scheduler.OpenDataset("worker:1", 0,
                                 {.fingerprint = 2, .examples = 100, .batch_size = 10});
  });
  EXPECT_FALSE(IsReady(opened) || IsReady(same) || IsReady(other));
  disk.LetGo();
  OrThrow(opened.get());
  // Whichever of these came first, there is one data set.
  OrThrow(same.get());
  EXPECT_EQ(other.get().code(), StatusCode::kFailedPrecondition);

  std::future<void> lost = stands([&] { scheduler.Lost(Worker(0), Unavailable("killed")); });
  EXPECT_EQ(gone.load(), 0);
  disk.LetGo();
  lost.get();
  EXPECT_EQ(gone.load(), 1);

  std::future<Status> done = stands([&] { return scheduler.Done(Process(1, 2, 1)); });
  std::future<Result<bool>> over = Async([&] { return scheduler.WaitOver(kAtOnce); });
  EXPECT_FALSE(scheduler.WorkersHaveLeft());
  EXPECT_FALSE(IsReady(over));
  EXPECT_EQ(gone.load(), 1);
  disk.LetGo();
  OrThrow(done.get());
  EXPECT_TRUE(OrThrow(over.get()));
  EXPECT_TRUE(scheduler.WorkersHaveLeft());
  EXPECT_EQ(gone.load(), 2);
}

// Its client has given up waiting for the disk, and asks once more: no answer yet for that.
TEST(JournalTest, AWorkerThatIsBackAndAsksAgainWaitsForTheDiskToo) {
  const TempDir folder;
  SlowDisk disk;
  Chief chief(folder.path(), disk.files());
  OrThrow(chief.scheduler.Open(0));
  chief.Attach(0);
  chief.scheduler.Lost(Worker(0), Unavailable("killed"));
  const auto attach = [&] { return chief.scheduler.Attach(Process(0, 9, 0)); };
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
  OrThrow(chief.scheduler.Open(0));
  const Sender worker = chief.Attach(0);
  EXPECT_EQ(chief.Finish(worker, 0, 2).size(), 2U);
  chief.scheduler.ServerLost(Unavailable("killed"));
  disk.Hold();
  std::future<Status> back =
      Async([&] { return chief.scheduler.RollBack(0, chief.epoch + 1, {"another"}); });
  ASSERT_TRUE(disk.AwaitStanding());
  std::future<SplitReply> next = Async([&] { return chief.Next(worker, 0, {}); });
  ASSERT_TRUE(Ends(next));
  EXPECT_EQ(next.get().progress, Progress::kStale);
  EXPECT_TRUE(chief.scheduler.recovering());
  disk.LetGo();
  OrThrow(back.get());
  EXPECT_FALSE(chief.scheduler.recovering());
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
  OrThrow(chief.scheduler.Open(0));
  const Sender worker = chief.Attach(0);
  full = true;
  EXPECT_EQ(chief.scheduler.NextSplit(worker, {0, 0}, 0, {}, kAtOnce).status().code(),
            StatusCode::kResourceExhausted);
  EXPECT_TRUE(chief.scheduler.Done(worker).ok());
  EXPECT_EQ(chief.scheduler.WaitOver(kAtOnce).status().code(), StatusCode::kResourceExhausted)
      << "the chief hears of it";
}

}  // namespace
}  // namespace cohort::ps
