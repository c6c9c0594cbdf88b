#include "hierarchical/host_layout.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace cohort {
namespace {

HostLayout Layout(const std::string& hosts) {  // a letter for each rank
  std::vector<std::string> names;
  for (const char host : hosts) {
    names.emplace_back(1, host);
  }
  return HostLayout(names);
}

TEST(HostLayout, RanksByHost) {
  const HostLayout layout = Layout("babcb");
  EXPECT_EQ(layout.hosts(), 3);
  EXPECT_EQ(layout.ranks(0), (std::vector<int>{0, 2, 4}));
  EXPECT_EQ(layout.ranks(1), (std::vector<int>{1}));
  EXPECT_EQ(layout.host(3), 2);
  EXPECT_EQ(layout.local_rank(4), 2);
  EXPECT_EQ(layout.local_rank(3), 0);
}

TEST(HostLayout, EvenAndInOrder) {
  struct Case {
    std::string hosts;
    bool even;
    bool keeps_order;
  };
  for (const Case& c : std::vector<Case>{{"aabb", true, true},
                                         {"aabbcc", true, true},
                                         {"aaaabbbbcccc", true, true},
                                         {"abcd", true, true},
                                         {"abab", true, false},
                                         {"abba", true, false},
                                         {"aaabbb", true, false},
                                         {"aab", false, false},
                                         {"aabbb", false, false}}) {
    EXPECT_EQ(Layout(c.hosts).even(), c.even) << c.hosts;
    EXPECT_EQ(Layout(c.hosts).keeps_order(), c.keeps_order) << c.hosts;
  }
}

}  // namespace
}  // namespace cohort
