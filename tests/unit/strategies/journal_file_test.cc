// The journal's file: what a crash, a disk that fails, or another chief does to it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include <cohort/core/file_system.h>

#include "journal_chief.h"
#include "parameter_server/chief/journal.h"
#include "parameter_server/chief/scheduler.h"
#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using testing::FaultyFileSystem;
using ::testing::HasSubstr;
using testing::TempDir;

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
  OrThrow(first.scheduler.Open(0));
  Chief second(folder.path());
  OrThrow(first.journal->Await(first.journal->Begun({0, 9}, 0)));
  const Course course = {.step = 5, .digest = 0, .epochs = {}, .rounds = {}, .again = {}};
  EXPECT_THAT(first.journal->Remember(course).message(), HasSubstr("another chief"));
  EXPECT_EQ(first.journal->GoBack(0).code(), StatusCode::kAborted);
  EXPECT_EQ(first.journal->Remove().code(), StatusCode::kAborted);
  const auto third = OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0));
  EXPECT_EQ(third->state().epoch, 2U);
  EXPECT_TRUE(third->state().begun.empty());
  OrThrow(second.scheduler.Open(0));
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
  OrThrow(chief.scheduler.Open(0));
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
  OrThrow(chief.scheduler.Remember(chief.scheduler.CourseAt(3)));
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
    OrThrow(chief.scheduler.Open(0));
    const Sender worker = chief.Attach(0);
    chief.Finish(worker, 0, 2);
    chief.Save(2);
    full = true;
    for (std::int64_t step = 3; step < 3 + static_cast<std::int64_t>(Journal::kMaxCourses);
         ++step) {
      EXPECT_EQ(chief.scheduler.Remember(chief.scheduler.CourseAt(step)).code(),
                StatusCode::kResourceExhausted);
      OrThrow(chief.scheduler.Forget(step));
    }
    full = false;
    chief.Save(50);
    EXPECT_EQ(chief.journal->GoBack(7).code(), StatusCode::kFailedPrecondition);
    full = true;
    EXPECT_FALSE(chief.scheduler.Forget(50).ok()) << "the file has it still";
    full = false;
    chief.Save(60);
  }
  Chief chief(folder.path(), files);
  ASSERT_EQ(chief.before.courses.size(), 3U);
  EXPECT_EQ(chief.before.courses[0].step, 0);
  EXPECT_EQ(chief.before.courses[1].step, 2);
  EXPECT_EQ(chief.before.courses[2].step, 60);
  OrThrow(chief.scheduler.Open(2));
  EXPECT_EQ(chief.Finish(chief.Attach(0), 0).size(), 8U);
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
