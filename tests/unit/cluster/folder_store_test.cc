#include <cohort/cluster/folder_store.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <thread>

#include "testing/temp_dir.h"

namespace cohort {
namespace {

using ::testing::HasSubstr;

TEST(FolderStore, HoldsAValueOnce) {
  const testing::TempDir folder;
  FolderStore one(folder.path());
  FolderStore other(folder.path());
  const std::string value("\0\n bytes", 8);
  ASSERT_EQ(one.Insert("a//b/", value), OkStatus());
  EXPECT_EQ(other.Get("a/b").value(), value);
  const Status again = other.Insert("a/b", "other");
  EXPECT_EQ(again.code(), StatusCode::kAlreadyExists);
  EXPECT_THAT(again.message(), HasSubstr("a/b"));
  EXPECT_EQ(one.Get("a/b").value(), value);
}

TEST(FolderStore, KeysThatLookAlikeAreDifferent) {
  const testing::TempDir folder;
  FolderStore store(folder.path());
  for (const std::string key : {"a/b", "a_b", "a%2Fb", "a%b", "..", "a/../b"}) {
    ASSERT_EQ(store.Insert(key, key), OkStatus()) << key;
  }
  for (const std::string key : {"a/b", "a_b", "a%2Fb", "a%b", "..", "a/../b"}) {
    EXPECT_EQ(store.Get(key).value(), key);
  }
}

TEST(FolderStore, LeavesNothingBesideTheValues) {
  const testing::TempDir folder;
  FolderStore store(folder.path());
  ASSERT_EQ(store.Insert("a", "1"), OkStatus());
  ASSERT_FALSE(store.Insert("a", "2").ok());
  const auto files = std::filesystem::directory_iterator(folder.path());
  EXPECT_EQ(std::distance(begin(files), end(files)), 1);
}

TEST(FolderStore, WaitsForAnotherProcessAndNamesWhatDidNotCome) {
  const testing::TempDir folder;
  FolderStore store(folder.path());
  std::thread late([path = folder.path()] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    EXPECT_EQ(FolderStore(path).Insert("late", "value"), OkStatus());
  });
  EXPECT_EQ(store.Wait("late", DeadlineAfter(std::chrono::seconds(10))).value(), "value");
  late.join();
  const Result<std::string> never =
      store.Wait("never", DeadlineAfter(std::chrono::milliseconds(10)));
  EXPECT_EQ(never.status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(never.status().message(), HasSubstr("never"));
}

TEST(FolderStore, BadInputIsRefused) {
  const testing::TempDir folder;
  FolderStore store(folder.path());
  EXPECT_EQ(store.Insert("//", "").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(store.Insert(std::string(300, 'k'), "").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(store.Insert("big", std::string((1 << 20) + 1, 'x')).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(store.Get("none").status().code(), StatusCode::kNotFound);
  FolderStore nowhere(folder.path() + "/none");
  const Status status = nowhere.Insert("key", "value");
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.message(), HasSubstr("/none"));
}

}  // namespace
}  // namespace cohort
