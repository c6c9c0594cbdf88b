// `cohort bench scaling`, `cohort bench overlap` and `cohort bench feed`, as a user runs them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "testing/process_cluster.h"

namespace cohort {
namespace {

struct Outcome {
  int code = -1;
  std::string out, err;
};

Outcome RunBench(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {COHORT_BIN_DIR "/cohort", "bench"});
  testing::ProcessCluster processes;
  processes.Start("bench", arguments);
  const auto code = processes.Wait("bench", std::chrono::seconds(60));
  return {code.value_or(-1), processes.Stdout("bench"), processes.Stderr("bench")};
}

// What of a step's time is waiting. Less than none where something else delayed the others.
void ExpectExposed(const nlohmann::json& json, const std::string& exposed, const std::string& step,
                   double expected) {
  EXPECT_NEAR(json[exposed].get<double>(), expected, 1e-6 * json[step].get<double>()) << exposed;
}

// At their best those who communicate are slower than those who do not, in such small steps.
void ExpectSlower(const nlohmann::json& json, const std::string& communicating) {
  const auto best = [&](const std::string& contestant) {
    return std::ranges::min(json["rounds_ms"][contestant].get<std::vector<double>>());
  };
  EXPECT_GT(best(communicating), best("without communication")) << json;
}

TEST(BenchScaling, WorkersWithAndWithoutCommunicationTakeTurns) {
  for (const std::string transport : {"shm", "tcp"}) {
    const Outcome run = RunBench({"scaling", "--model", "mlp", "--batch", "4", "--transport",
                                  transport, "--rounds", "3", "--seconds", "0.05", "--json"});
    ASSERT_EQ(run.code, 0) << run.err;
    const auto json = nlohmann::json::parse(run.out);
    EXPECT_EQ(json["workers"], 2);
    EXPECT_EQ(json["transport"], transport);
    const int values = 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10;
    EXPECT_GE(json["gradient_bytes"], 4 * values);
    EXPECT_LT(json["gradient_bytes"], 4 * values + 6 * 64);  // each parameter is aligned
    for (const char* figure :
         {"ms_per_step", "ms_per_step_without_communication", "efficiency",
          "weak_scaling_efficiency", "strong_scaling_speedup", "examples_per_second"}) {
      EXPECT_GT(json[figure].get<double>(), 0) << figure;
    }
    ExpectExposed(json, "exposed_communication_ms", "ms_per_step",
                  json["ms_per_step"].get<double>() * (1 - json["efficiency"].get<double>()));
    EXPECT_EQ(json["rounds_ms"]["together"].size(), 3U);
    ExpectSlower(json, "together");
    if (json.contains("libtorch_ddp")) {  // why it was not to be had
      EXPECT_NE(json["libtorch_ddp"], "");
      EXPECT_FALSE(json.contains("libtorch_ddp_ms_per_step"));
    } else {
      EXPECT_EQ(json["rounds_ms"]["LibTorch DDP"].size(), 3U);
      for (const char* figure : {"libtorch_ddp_weak_scaling_efficiency", "speed_over_libtorch_ddp",
                                 "efficiency_over_libtorch_ddp"}) {
        EXPECT_GT(json[figure].get<double>(), 0) << figure;
      }
    }
  }
}

TEST(BenchOverlap, BucketsAndOneBucketTakeTurns) {
  const Outcome run = RunBench({"overlap", "--model", "cnn", "--batch", "4", "--transport", "tcp",
                                "--rounds", "3", "--seconds", "0.05", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const auto json = nlohmann::json::parse(run.out);
  EXPECT_EQ(json["bucket_bytes"], 256 << 10);
  for (const char* figure :
       {"ms_per_step_without_communication", "speedup", "speedup_by_default"}) {
    EXPECT_GT(json[figure].get<double>(), 0) << figure;
  }
  for (const std::string which : {"overlapped", "by_default", "after_backward"}) {
    const std::string step = "ms_per_step_" + which;
    ExpectExposed(
        json, "exposed_ms_" + which, step,
        json[step].get<double>() - json["ms_per_step_without_communication"].get<double>());
  }
  ExpectSlower(json, "after backward");
  for (const char* contestant :
       {"overlapped", "by default", "after backward", "without communication"}) {
    EXPECT_EQ(json["rounds_ms"][contestant].size(), 3U) << contestant;
  }
}

TEST(BenchFeed, FilesAndOneBatchTakeTurns) {
  for (const std::string threads : {"-1", "0", "2"}) {
    const Outcome run = RunBench({"feed", "--examples", "300", "--batch", "64", "--rounds", "2",
                                  "--seconds", "0.02", "--input-threads", threads, "--json"});
    ASSERT_EQ(run.code, 0) << run.err;
    const auto json = nlohmann::json::parse(run.out);
    for (const char* figure : {"examples_per_second", "limit_examples_per_second", "of_limit"}) {
      EXPECT_GT(json[figure].get<double>(), 0) << figure;
    }
    EXPECT_GT(json["input_wait"].get<double>(), 0);
    EXPECT_LT(json["input_wait"].get<double>(), 1);
    EXPECT_EQ(json["rounds_input_wait"].size(), 2U);
  }
  EXPECT_EQ(RunBench({"feed", "--model", "resnet"}).code, 2);
}

TEST(BenchScaling, WrongFlagsAreExitCode2) {
  EXPECT_EQ(RunBench({"scaling", "--batch", "0"}).code, 2);
  EXPECT_EQ(RunBench({"overlap", "--workers", "0"}).code, 2);
  EXPECT_EQ(RunBench({"overlap", "--bucket-bytes", "0"}).code, 2);
  EXPECT_EQ(RunBench({"overlap", "--timeout", "0"}).code, 2);
}

TEST(BenchScaling, AWorkerThatCannotStartEndsTheRun) {
  const Outcome run = RunBench({"scaling", "--exec-prefix", "false", "--seconds", "0.02"});
  EXPECT_NE(run.code, 0);
  EXPECT_THAT(run.err, ::testing::HasSubstr("worker"));
}

}  // namespace
}  // namespace cohort
