#include "topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cohort {
namespace {

using ::testing::HasSubstr;

std::string Assigned(std::string_view topology, int size) {
  std::string text;
  for (const TaskId& task : OrThrow(AssignRoles(topology, size))) {
    text += (text.empty() ? "" : " ") + task.ToString();
  }
  return text;
}

TEST(TopologyTest, AssignsRolesInRankOrder) {
  EXPECT_EQ(Assigned("", 2), "worker:0 worker:1");
  EXPECT_EQ(Assigned("chief=1,ps=2,worker=rest", 5), "chief:0 ps:0 ps:1 worker:0 worker:1");
  EXPECT_EQ(Assigned("worker=rest,ps=1", 3), "worker:0 worker:1 ps:0");
  EXPECT_EQ(Assigned("master=1,worker=1", 2), "chief:0 worker:0");
  EXPECT_EQ(Assigned("chief=1,worker=rest", 1), "chief:0");
}

TEST(TopologyTest, RefusesMistakes) {
  const std::tuple<const char*, int, const char*> cases[] = {
      {"chief", 2, "is not role=count"},
      {"worker=", 2, "must be a number or 'rest'"},
      {"worker=-1", 2, "must be a number or 'rest'"},
      {"wroker=2", 2, "did you mean 'worker'?"},
      {"worker=1,worker=1", 2, "worker appears twice"},
      {"ps=rest,worker=rest", 2, "only one role can take the rest"},
      {"worker=3", 2, "asks for 3 processes, there are 2"},
      {"worker=1", 2, "asks for 1 processes, there are 2"},
      {"chief=1,ps=2,worker=rest", 2, "asks for at least 3 processes, there are 2"},
      {"chief=1,ps=1,worker=rest", 2, "nobody trains"},
      {"ps=rest", 2, "nobody trains"},
      {"chief=2", 2, "2 chiefs"},
      {"evaluator=1,worker=rest", 2, "outside of the cluster"},
      {"worker=1,", 1, "is not role=count"},
  };
  for (const auto& [topology, size, reason] : cases) {
    const auto tasks = AssignRoles(topology, size);
    ASSERT_FALSE(tasks.ok()) << topology;
    EXPECT_THAT(tasks.status().message(), HasSubstr(reason)) << topology;
  }
}

TEST(TopologyTest, TellsAllMistakesAtOnce) {
  const auto tasks = AssignRoles("wroker=1,ps=x,chief", 3);
  ASSERT_FALSE(tasks.ok());
  EXPECT_THAT(tasks.status().message(), HasSubstr("wroker"));
  EXPECT_THAT(tasks.status().message(), HasSubstr("ps=x"));
  EXPECT_THAT(tasks.status().message(), HasSubstr("'chief' is not"));
}

}  // namespace
}  // namespace cohort
