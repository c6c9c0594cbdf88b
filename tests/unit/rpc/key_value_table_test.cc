#include "key_value_table.h"

#include <gtest/gtest.h>

#include <optional>

namespace cohort {
namespace {

using std::chrono::seconds;

TEST(NormalizeKey, SlashesOnlySeparate) {
  EXPECT_EQ(*NormalizeKey("a//b/"), "a/b");
  EXPECT_EQ(*NormalizeKey("/a/b"), "a/b");
  EXPECT_EQ(*NormalizeKey("a"), "a");
  EXPECT_EQ(NormalizeKey("").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(NormalizeKey("//").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(NormalizeKey(std::string(5000, 'k')).status().code(), StatusCode::kInvalidArgument);
}

TEST(KeyValueTable, InsertsOnceAndFindsUnderEverySpelling) {
  KeyValueTable table;
  Completions completions;
  EXPECT_EQ(table.Get("a/b").status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(table.Insert("a//b/", "1", "worker:0 1", completions).ok());
  EXPECT_EQ(*table.Get("a/b"), "1");
  EXPECT_EQ(*table.Get("/a/b/"), "1");
  const Status again = table.Insert("a/b", "2", "worker:1 1", completions);
  EXPECT_EQ(again.code(), StatusCode::kAlreadyExists);
  EXPECT_NE(again.message().find("a/b"), std::string::npos);
  EXPECT_EQ(*table.Get("a/b"), "1");
}

TEST(KeyValueTable, ARepeatedRequestIsTheSameInsertion) {
  KeyValueTable table;
  Completions completions;
  ASSERT_TRUE(table.Insert("key", "1", "worker:0 1", completions).ok());
  EXPECT_TRUE(table.Insert("key", "1", "worker:0 1", completions).ok());
  EXPECT_EQ(table.Insert("key", "1", "worker:0 2", completions).code(), StatusCode::kAlreadyExists);
}

TEST(KeyValueTable, AValueHasAtMostAMebibyte) {
  KeyValueTable table;
  Completions completions;
  EXPECT_TRUE(table.Insert("fits", std::string(1 << 20, 'x'), "o", completions).ok());
  const Status status = table.Insert("big", std::string((1 << 20) + 1, 'x'), "o", completions);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("1048577 bytes"), std::string::npos);
  EXPECT_EQ(table.Get("big").status().code(), StatusCode::kNotFound);
}

TEST(KeyValueTable, WaitIsAnsweredByTheInsertOrTheDeadline) {
  KeyValueTable table;
  const Deadline now{};
  std::optional<Result<std::string>> early, late, at_once;
  {
    Completions completions;
    table.Wait(
        "a/b", now + seconds(5), [&](const auto& r) { early = r; }, completions);
    table.Wait(
        "c", now + seconds(3), [&](const auto& r) { late = r; }, completions);
    EXPECT_EQ(table.Next(), now + seconds(3));
  }
  {
    Completions completions;
    table.Expire(now + seconds(2), completions);
    ASSERT_TRUE(table.Insert("a//b", "bytes", "o", completions).ok());
    EXPECT_FALSE(early.has_value());  // the answer comes after the lock is released
  }
  ASSERT_TRUE(early.has_value());
  EXPECT_EQ(early->value(), "bytes");
  EXPECT_FALSE(late.has_value());
  {
    Completions completions;
    table.Expire(now + seconds(3), completions);
    table.Wait(
        "a/b/", now, [&](const auto& r) { at_once = r; }, completions);
  }
  ASSERT_TRUE(late.has_value());
  EXPECT_EQ(late->status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_NE(late->status().message().find("\"c\""), std::string::npos);
  EXPECT_EQ(at_once->value(), "bytes");
  EXPECT_EQ(table.Next(), Deadline::max());
}

}  // namespace
}  // namespace cohort
