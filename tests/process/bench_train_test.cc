// `cohort bench train`, as a user runs it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

Outcome RunBenchTrain(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {COHORT_BIN_DIR "/cohort", "bench", "train"});
  testing::ProcessCluster processes;
  processes.Start("bench", arguments);
  const auto code = processes.Wait("bench", std::chrono::seconds(120));
  return {code.value_or(-1), processes.Stdout("bench"), processes.Stderr("bench")};
}

TEST(BenchTrain, JsonHoldsTheFiguresAndTheLimit) {
  for (const std::string model : {"mlp", "cnn"}) {
    const Outcome run = RunBenchTrain({"--model", model, "--threads", "2", "--batch", "3",
                                       "--rounds", "1", "--no-peer", "--json"});
    ASSERT_EQ(run.code, 0) << run.err;
    const auto json = nlohmann::json::parse(run.out);
    EXPECT_EQ(json["model"], model);
    EXPECT_EQ(json["threads"], 2);
    EXPECT_EQ(json["batch"], 3);
    for (const char* figure : {"ms_per_step", "median_ms_per_step", "examples_per_second", "gflops",
                               "fma_peak_gflops", "speedup_over_1_thread"}) {
      EXPECT_GT(json[figure].get<double>(), 0) << figure;
    }
    EXPECT_GT(json["share_of_fma_peak"].get<double>(), 0);
    EXPECT_LT(json["share_of_fma_peak"].get<double>(), 1);
    EXPECT_FALSE(json.contains("torch_time_ratio"));
  }
}

TEST(BenchTrain, ADeviceComputesInAnyPrecision) {
  for (const std::string precision : {"float32", "mixed_bfloat16", "mixed_float16"}) {
    const Outcome run = RunBenchTrain(
        {"--device", "cpu", "--batch", "2", "--rounds", "1", "--precision", precision, "--json"});
    ASSERT_EQ(run.code, 0) << run.err;
    const auto json = nlohmann::json::parse(run.out);
    EXPECT_EQ(json["precision"], precision);
    EXPECT_GT(json["ms_per_step"].get<double>(), 0);
    EXPECT_GT(json["loss"].get<double>(), 0);
  }
}

TEST(BenchTrain, ADeviceTrainsAResNet) {
  const Outcome run =
      RunBenchTrain({"--device", "cpu", "--model", "resnet18", "--batch", "1", "--image-size", "64",
                     "--rounds", "1", "--threads", "2", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const auto json = nlohmann::json::parse(run.out);
  EXPECT_EQ(json["image_size"], 64);
  EXPECT_EQ(json["parameters"], 11'689'512 + 2 * 4'800) << "and the averages";
  EXPECT_GT(json["examples_per_second"].get<double>(), 0);
  // 3 * 2 * 1.8e9 / 3.5^2 operations an image.
  EXPECT_NEAR(json["tflops"].get<double>(),
              json["examples_per_second"].get<double>() * 3 * 2 * 1.8e9 / 12.25 / 1e12, 1e-6);
  EXPECT_TRUE(json["loss"].is_number()) << "not infinite";
}

TEST(BenchTrain, ATableIsForPeople) {
  const Outcome run = RunBenchTrain({"--batch", "2", "--rounds", "1", "--no-peer"});
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(run.out, ::testing::AllOf(::testing::HasSubstr("mlp, batch 2"),
                                        ::testing::HasSubstr("examples/s"),
                                        ::testing::HasSubstr("FMA peak")));
}

TEST(BenchTrain, WrongFlagsAreExitCode2) {
  const Outcome model = RunBenchTrain({"--model", "resnet"});
  EXPECT_EQ(model.code, 2);
  EXPECT_THAT(model.err, ::testing::HasSubstr("resnet"));
  EXPECT_EQ(RunBenchTrain({"--threads", "0"}).code, 2);
  EXPECT_EQ(RunBenchTrain({"--model", "resnet50"}).code, 2) << "beside LibTorch";
  EXPECT_EQ(RunBenchTrain({"--model", "resnet50", "--device", "cpu", "--image-size", "8"}).code, 2);
  EXPECT_EQ(RunBenchTrain({"--precision", "half", "--device", "cpu"}).code, 2);
  EXPECT_EQ(RunBenchTrain({"--precision", "mixed_bfloat16"}).code, 2) << "beside LibTorch";
}

}  // namespace
}  // namespace cohort
