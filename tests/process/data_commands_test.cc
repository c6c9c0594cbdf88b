// The program's `data` and `bench input` commands, as a user runs them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include <cohort/core/file_system.h>
#include <cohort/data/idx.h>

#include "testing/process_cluster.h"

namespace cohort {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Outcome {
  int code = -1;
  std::string out;
};

Outcome RunCohort(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), COHORT_BIN_DIR "/cohort");
  testing::ProcessCluster processes;
  processes.Start("cohort", arguments);
  const auto code = processes.Wait("cohort", std::chrono::seconds(60));
  return {code.value_or(-1), processes.Stdout("cohort") + processes.Stderr("cohort")};
}

TEST(DataCommands, DigitsAreWrittenAsMnistIsAndStatReadsThem) {
  const testing::TempDir folder;
  const std::string out = folder / "new/digits";
  const Outcome written =
      RunCohort({"data", "digits", "--out", out, "--train", "50", "--test", "20", "--seed", "4"});
  EXPECT_EQ(written.code, 0) << written.out;
  const data::ImageClassification digits = OrThrow(data::LoadImageClassification(out));
  EXPECT_EQ(digits.train.size(), 50);
  EXPECT_EQ(digits.test.size(), 20);

  const Outcome stat = RunCohort({"data", "stat", out});
  EXPECT_EQ(stat.code, 0);
  EXPECT_THAT(stat.out, AllOf(HasSubstr("50 train, 20 test"), HasSubstr("float32[28,28,1]")));
}

TEST(DataCommands, MistakesEndWithTheirExitCodeAndAMessage) {
  const testing::TempDir folder;
  EXPECT_EQ(RunCohort({"data", "digits"}).code, 2);
  EXPECT_EQ(RunCohort({"data", "digits", "--out", folder.path(), "--train", "0"}).code, 2);
  EXPECT_EQ(RunCohort({"data", "digits", "--out", "/proc/nowhere"}).code, 2);
  const Outcome missing = RunCohort({"data", "stat", folder / "nothing"});
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.out, HasSubstr("nothing"));

  std::ofstream(folder / "short.csv") << "a,b\n1,2\n3\n";
  const Outcome row = RunCohort({"data", "stat", folder / "short.csv"});
  EXPECT_EQ(row.code, 2);
  EXPECT_THAT(row.out, HasSubstr("short.csv: line 3: 1 fields, the header has 2"));

  std::ofstream(folder / "cut") << std::string("\0\0\x08\x03\0\0\0\x02\0\0\0\x02\0\0\0\x02xx", 18);
  const Outcome cut = RunCohort({"data", "stat", folder / "cut"});
  EXPECT_EQ(cut.code, 2);
  EXPECT_THAT(cut.out, HasSubstr("data at byte 16: 8 bytes expected, 2 there"));
}

TEST(BenchInput, ReportsEveryCaseBesideMemcpy) {
  const Outcome bench =
      RunCohort({"bench", "input", "--examples", "200", "--seconds", "0.01", "--json"});
  ASSERT_EQ(bench.code, 0) << bench.out;
  const nlohmann::json report = nlohmann::json::parse(bench.out);
  EXPECT_GT(report.at("memcpy_examples_per_second"), 0);
  EXPECT_EQ(report.at("cases").size(), 5U);
  for (const auto& entry : report.at("cases")) {
    EXPECT_GT(entry.at("examples_per_second"), 0) << entry;
  }
}

}  // namespace
}  // namespace cohort
