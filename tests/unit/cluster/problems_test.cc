#include "problems.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "address.h"
#include "json_document.h"

namespace cohort {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(EditDistanceTest, CountsChanges) {
  EXPECT_EQ(EditDistance("", ""), 0);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
  EXPECT_EQ(EditDistance("worker", "wroker"), 2);
  EXPECT_EQ(EditDistance("abc", ""), 3);
}

TEST(ParseRoleTest, KnowsTheRolesAndHintsAtThem) {
  EXPECT_EQ(ParseRole("chief").type, TaskType::kChief);
  EXPECT_EQ(ParseRole("master").type, TaskType::kChief);
  EXPECT_EQ(ParseRole("evaluator").type, TaskType::kEvaluator);
  for (const auto& [wrong, right] : {std::pair("wroker", "worker"),
                                     {"workers", "worker"},
                                     {"Worker", "worker"},
                                     {"trainer", "worker"},
                                     {"PS", "ps"},
                                     {"chef", "chief"},
                                     {"evaluater", "evaluator"},
                                     {"parameter_server", "ps"}}) {
    const RoleName role = ParseRole(wrong);
    EXPECT_FALSE(role.type) << wrong;
    EXPECT_THAT(role.error, HasSubstr("did you mean '" + std::string(right) + "'?")) << wrong;
  }
  EXPECT_THAT(ParseRole("Worker").error, HasSubstr("lower case"));
  EXPECT_THAT(ParseRole("database").error, HasSubstr("use chief, worker, ps or evaluator"));
  EXPECT_FALSE(ParseRole("").type);
  EXPECT_FALSE(ParseRole(std::string(100'000, 'w')).type);
}

TEST(ParseNumberTest, IsStrict) {
  EXPECT_EQ(ParseNumber("0"), 0);
  EXPECT_EQ(ParseNumber("01"), 1);
  for (const char* text : {"", " 1", "1 ", "-1", "-0", "+1", "1.0", "0x1", "1e2", "99999999999"}) {
    EXPECT_EQ(ParseNumber(text), std::nullopt) << text;
  }
}

TEST(LocateByteTest, PointsAtTheByte) {
  const TextPosition at = LocateByte("ab\ncde\nf", 4);
  EXPECT_EQ(at.line, 2);
  EXPECT_EQ(at.column, 2);
  EXPECT_EQ(at.excerpt, "\n    cde\n     ^");
  EXPECT_EQ(LocateByte("ab", 99).column, 3);
  const TextPosition far = LocateByte(std::string(1000, 'x'), 500);
  EXPECT_EQ(far.column, 501);
  EXPECT_LT(far.excerpt.size(), 200u);
}

TEST(JsonDocumentTest, KeepsTheFirstOfDuplicateKeysAndSaysSo) {
  Problems problems;
  const auto root = ParseJson("X", R"({"a":{"b":1,"b":{"c":2},"d":3},"a":4})", problems);
  ASSERT_TRUE(root.has_value());
  EXPECT_THAT(problems.errors,
              ElementsAre("X: a.b: this key appears twice", "X: a: this key appears twice"));
  EXPECT_THAT(root->keys, ElementsAre("a"));
  EXPECT_THAT(root->Find("a")->keys, ElementsAre("b", "d"));
  EXPECT_EQ(root->Find("a")->Find("b")->integer, 1);
  EXPECT_EQ(root->Find("a")->Find("d")->integer, 3);
}

TEST(JsonDocumentTest, RefusesDeepNesting) {
  Problems problems;
  EXPECT_FALSE(ParseJson("X", std::string(200'000, '['), problems).has_value());
  EXPECT_THAT(problems.errors, ElementsAre(HasSubstr("nested more than")));
}

TEST(CheckAddressTest, AcceptsHostsAndIpv6) {
  EXPECT_EQ(CheckAddress("10.0.0.1:2222").address, "10.0.0.1:2222");
  EXPECT_EQ(CheckAddress("Job-worker_0.ns.svc:1").address, "Job-worker_0.ns.svc:1");
  EXPECT_EQ(CheckAddress("Job-worker_0.ns.svc:1").host, "job-worker_0.ns.svc");
  EXPECT_EQ(CheckAddress("[::1]:2222").host, "::1");
  EXPECT_EQ(CheckAddress("[0:0::0001]:65535").address, "[::1]:65535");
  EXPECT_EQ(CheckAddress("[fe80::1%eth0]:1").address, "[fe80::1%eth0]:1");
  EXPECT_EQ(CheckAddress("a:0").port, 0);
}

TEST(CheckAddressTest, StripsKnownSchemesWithAWarning) {
  for (const char* text : {"grpc://h:1", "GRPC://h:1", "http://h:1", "dns:///h:1"}) {
    const AddressCheck check = CheckAddress(text);
    EXPECT_EQ(check.error, "") << text;
    EXPECT_EQ(check.address, "h:1") << text;
    EXPECT_THAT(check.warning, HasSubstr("scheme")) << text;
  }
}

TEST(CheckAddressTest, RefusesTheRestWithAReason) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "empty"},
      {"h", "no port [write h:2222]"},
      {"h:", "port must be a number"},
      {":1", "host"},
      {"h:65536", "from 1 to 65535"},
      {"h:-1", "from 1 to 65535"},
      {"h:99999999999", "from 1 to 65535"},
      {"h:12a", "from 1 to 65535"},
      {" h:1", "spaces"},
      {"h:1 ", "spaces"},
      {"h: 1", "spaces"},
      {"h\n:1", "spaces"},
      {"::1", "brackets"},
      {"::1:2222", "brackets"},
      {"[::1:2222", "brackets"},
      {"[::1]", "no port"},
      {"[::1]2222", "port must be a number"},
      {"[10.0.0.1]:1", "brackets"},
      {"[::1%]:1", "brackets"},
      {"ftp://h:1", "scheme"},
      {"h/x:1", "host name"},
      {"h\xc3\xa4:1", "host name"},
  };
  for (const auto& [text, reason] : cases) {
    EXPECT_THAT(CheckAddress(text).error, HasSubstr(reason)) << text;
  }
}

}  // namespace
}  // namespace cohort
