// `cohort bench device`, as a user runs it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "testing/process_cluster.h"

namespace cohort {
namespace {

struct Outcome {
  int code = -1;
  std::string out, err;
};

Outcome RunBenchDevice(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {COHORT_BIN_DIR "/cohort", "bench", "device"});
  testing::ProcessCluster processes;
  processes.Start("bench", arguments);
  const auto code = processes.Wait("bench", std::chrono::seconds(60));
  return {code.value_or(-1), processes.Stdout("bench"), processes.Stderr("bench")};
}

TEST(BenchDevice, JsonHasALineForEachKernel) {
  const Outcome run = RunBenchDevice({"--device", "cpu", "--threads", "1", "--parameters", "1000",
                                      "--rows", "1", "--samples", "1", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  std::istringstream lines(run.out);
  std::set<std::string> kernels;
  for (std::string line; std::getline(lines, line);) {
    const auto json = nlohmann::json::parse(line);
    EXPECT_EQ(json["device"], "cpu");
    EXPECT_GT(json["ms"].get<double>(), 0);
    const char* const figure = json.contains("tflops") ? "tflops" : "share_of_copy";
    EXPECT_GT(json[figure].get<double>(), 0) << line;
    kernels.insert(json["kernel"].get<std::string>());
  }
  for (const char* kernel :
       {"memory copy", "adamw", "layer norm, backward", "cross-entropy, backward",
        "attention, backward", "batch norm, backward", "max pool, backward",
        "compress, with feedback", "convolution, by kernel", "product"}) {
    EXPECT_EQ(kernels.count(kernel), 1U) << kernel;
  }
}

TEST(BenchDevice, ADeviceThatIsNoneIsAnError) {
  const Outcome run = RunBenchDevice({"--device", "abacus"});
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, ::testing::HasSubstr("abacus"));
}

}  // namespace
}  // namespace cohort
