#include "host_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cohort {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Hosts(std::string_view text) { return OrThrow(ExpandHostList(text)); }

TEST(HostListTest, KeepsLeadingZeros) {
  EXPECT_THAT(Hosts("n[001-003]"), ElementsAre("n001", "n002", "n003"));
  EXPECT_THAT(Hosts("n[08-11]"), ElementsAre("n08", "n09", "n10", "n11"));
}

TEST(HostListTest, KeepsTheOrderOfTheList) {
  EXPECT_THAT(Hosts("n[9-10,2]"), ElementsAre("n9", "n10", "n2"));
  EXPECT_THAT(Hosts("z1,a1"), ElementsAre("z1", "a1"));
}

TEST(HostListTest, ExpandsSeveralGroupsInOneName) {
  EXPECT_THAT(Hosts("r[1-2]-n[01-02].x"),
              ElementsAre("r1-n01.x", "r1-n02.x", "r2-n01.x", "r2-n02.x"));
  EXPECT_THAT(Hosts("[a,b]1,c"), ElementsAre("a1", "b1", "c"));
}

TEST(HostListTest, KeepsRepeats) { EXPECT_THAT(Hosts("a,b,a"), ElementsAre("a", "b", "a")); }

TEST(HostListTest, RefusesWhatIsNoList) {
  for (const char* text : {"", ",", "a,", "n[1-2", "n1]", "n[[1]]", "n[2-1]", "n[]", "n[1-]",
                           "n[-1]", "n[1,]", "n[1-99999999]", "n[1-999][1-999]"}) {
    EXPECT_FALSE(ExpandHostList(text).ok()) << text;
  }
}

TEST(TasksPerNodeTest, Expands) {
  EXPECT_THAT(OrThrow(ExpandTasksPerNode("2(x3),1")), ElementsAre(2, 2, 2, 1));
  EXPECT_THAT(OrThrow(ExpandTasksPerNode("4")), ElementsAre(4));
}

TEST(TasksPerNodeTest, RefusesWhatIsNoList) {
  for (const char* text : {"", "a", "2(x)", "2(x3", "2,,1", "-1", "2(x999999999)"}) {
    EXPECT_FALSE(ExpandTasksPerNode(text).ok()) << text;
  }
}

}  // namespace
}  // namespace cohort
