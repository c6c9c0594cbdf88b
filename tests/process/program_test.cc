// The program `cohort` before any of its commands: lists, help, and what it does not know.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/process_cluster.h"

namespace cohort::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using namespace std::chrono_literals;

struct Output {
  int code;
  std::string out, err;
};

Output RunCohort(const std::vector<std::string>& arguments) {
  ProcessCluster cluster;
  std::vector<std::string> argv = {COHORT_BIN_DIR "/cohort"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  cluster.Start("cohort", argv);
  const int code = cluster.Wait("cohort", 30s).value_or(-1);
  return {code, cluster.Stdout("cohort"), cluster.Stderr("cohort")};
}

TEST(ProgramTest, ListsItsCommandsByWhatTheyAreFor) {
  for (const std::string word : {"--help", "-h", "help"}) {
    const Output output = RunCohort({word});
    EXPECT_EQ(output.code, 0) << word;
    EXPECT_THAT(output.out, AllOf(StartsWith("usage: cohort COMMAND"), HasSubstr("run a job"),
                                  HasSubstr("  launch "), HasSubstr("  bench allreduce ")));
  }
  const Output nothing = RunCohort({});
  EXPECT_EQ(nothing.code, 2);
  EXPECT_THAT(nothing.err, HasSubstr("  launch "));
}

TEST(ProgramTest, AGroupListsItsOwn) {
  const Output data = RunCohort({"data", "--help"});
  EXPECT_EQ(data.code, 0);
  EXPECT_THAT(data.out, AllOf(HasSubstr("data verify"), Not(HasSubstr("launch"))));
  const Output bench = RunCohort({"bench"});
  EXPECT_EQ(bench.code, 2);
  EXPECT_THAT(bench.err, AllOf(HasSubstr("bench ps"), Not(HasSubstr("data verify"))));
}

TEST(ProgramTest, HelpOfACommandIsTheCommands) {
  const Output help = RunCohort({"help", "config", "check"});
  EXPECT_EQ(help.code, 0);
  EXPECT_EQ(help.out, RunCohort({"config", "check", "--help"}).out);
}

TEST(ProgramTest, SaysItsVersion) {
  const Output version = RunCohort({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_THAT(version.out, StartsWith("cohort 0."));
}

TEST(ProgramTest, WhatItDoesNotKnowIsNamedWithTheNearest) {
  const Output lunch = RunCohort({"lunch", "-n", "2"});
  EXPECT_EQ(lunch.code, 2);
  EXPECT_THAT(lunch.err, HasSubstr("unknown command 'lunch' [did you mean 'launch'?]"));
  const Output verfy = RunCohort({"data", "verfy"});
  EXPECT_EQ(verfy.code, 2);
  EXPECT_THAT(verfy.err, HasSubstr("[did you mean 'data verify'?]"));
  EXPECT_THAT(RunCohort({"xyzzy"}).err, HasSubstr("[cohort --help lists them]"));
}

}  // namespace
}  // namespace cohort::testing
