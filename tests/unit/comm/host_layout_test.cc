#include "hierarchical/host_layout.h"

#include <cohort/comm/shm.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
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

// The kernel that was booted and the network namespace: two containers may have one host name, and
// one host may be given another.
TEST(HostIdentity, IsOfTheBootAndTheNetworkNamespace) {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  ASSERT_TRUE(std::getline(file, boot));
  ASSERT_EQ(boot.size(), 36U) << boot;
  const std::string network = std::filesystem::read_symlink("/proc/self/ns/net");
  ASSERT_THAT(network, ::testing::StartsWith("net:["));
  std::array<char, 256> name = {};
  ASSERT_EQ(::gethostname(name.data(), name.size() - 1), 0);

  EXPECT_EQ(HostIdentity(), boot + " " + network);
  EXPECT_NE(HostIdentity(), name.data());
}

}  // namespace
}  // namespace cohort
