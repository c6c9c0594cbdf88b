// A chief and its journal, for tests of what another one in its place makes of it.

#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/file_system.h>

#include "parameter_server/chief/journal.h"
#include "parameter_server/chief/scheduler.h"
#include "testing/temp_dir.h"

namespace cohort::ps {

inline constexpr Duration kAtOnce{0};
inline constexpr DatasetInfo kData{.fingerprint = 1, .examples = 100, .batch_size = 10};

inline TaskId Worker(int index) { return {TaskType::kWorker, index}; }
inline Sender Process(int worker, std::uint64_t incarnation, std::uint64_t epoch) {
  return {.task = Worker(worker), .incarnation = incarnation, .epoch = epoch};
}

// A chief, as far as it hands out work.
struct Chief {
  explicit Chief(const std::string& folder, FileSystem& files = FileSystem::Local(),
                 const DatasetInfo& data = kData)
      : journal(OrThrow(Journal::Open(files, folder, /*backup_workers=*/0))),
        before(journal->state()),
        epoch(before.epoch + 1),
        scheduler({.workers = {Worker(0), Worker(1)},
                   .rejoin_timeout = std::chrono::milliseconds(0),
                   .journal = journal.get()}) {
    OrThrow(journal->Begin(before.epoch > 0, epoch));
    if (before.epoch > 0) {
      scheduler.Succeed(before);
    }
    scheduler.SetView(epoch, {"server"}, before.epoch > 0 ? "the chief was started again" : "");
    opened = scheduler.OpenDataset("chief:0", 0, data);
  }

  Sender Attach(int worker) {
    const Sender sender = Process(worker, 100 * epoch + static_cast<std::uint64_t>(worker), epoch);
    OrThrow(scheduler.Attach(Process(worker, sender.incarnation, 0)));
    return sender;
  }
  SplitReply Next(const Sender& sender, std::int64_t epoch_of_data, const FinishedSplit& finished) {
    return OrThrow(scheduler.NextSplit(sender, {0, epoch_of_data}, 0, finished, kAtOnce));
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
    scheduler.Acknowledge(sender, {0, epoch_of_data}, finished);
    return begins;
  }
  void Save(std::int64_t step) {
    ASSERT_TRUE(OrThrow(scheduler.BeginCut(std::chrono::milliseconds(1))).has_value());
    const Course course = scheduler.CourseAt(step);
    scheduler.EndCut();
    OrThrow(scheduler.Remember(course));
  }

  std::unique_ptr<Journal> journal;
  const JournalState before;
  const std::uint64_t epoch;
  Scheduler scheduler;
  Status opened;
};

inline std::string PathIn(const testing::TempDir& folder) {
  return folder.path() + "/chief.journal";
}

}  // namespace cohort::ps
