// `cohort bench scaling` and `cohort bench overlap` with the model of each example, as a user runs
// them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "testing/process_cluster.h"
#include "testing/sanitized.h"
#include "testing/temp_dir.h"

namespace cohort {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

struct Outcome {
  int code = -1;
  std::string out, err;
};

Outcome RunBench(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {COHORT_BIN_DIR "/cohort", "bench"});
  testing::ProcessCluster processes;
  processes.Start("bench", arguments);
  const auto code = processes.Wait("bench", std::chrono::seconds(100) * testing::kPatience);
  return {code.value_or(-1), processes.Stdout("bench"), processes.Stderr("bench")};
}

struct Model {
  std::string name;
  std::vector<std::string> flags;  // that make it small
  // float32 values of its parameters; 0: not counted here.
  int values = 0;
  nlohmann::json sizes = nlohmann::json::object();  // that the result tells
};

int MlpValues(int hidden) {
  return 784 * hidden + hidden + hidden * hidden + hidden + hidden * 10 + 10;
}

const std::vector<Model>& Models() {
  static const std::vector<Model> models = {
      {"linear", {}, 784 * 10 + 10, {}},
      {"mlp", {"--hidden", "32"}, MlpValues(32), {{"hidden", 32}}},
      {"mlp2048", {}, MlpValues(2048), {{"hidden", 2048}}},
      {"cnn", {}, 9 * 32 + 32 + 9 * 32 * 64 + 64 + 3136 * 128 + 128 + 128 * 10 + 10, {}},
      {"resnet18", {}, 0, {}},
      {"resnet34", {}, 0, {}},
      {"resnet50", {}, 0, {}},
      {"resnet",
       {"--image-size", "16", "--width", "4"},
       0,
       {{"depth", 18}, {"image-size", 16}, {"width", 4}}},
      {"gpt",
       {"--layers", "1", "--heads", "2", "--width", "16", "--length", "8"},
       0,
       {{"heads", 2}, {"layers", 1}, {"length", 8}, {"width", 16}}},
      {"dlrm",
       {"--ids", "5000", "--servers", "2"},
       0,
       {{"embedding", 16}, {"ids", 5000}, {"servers", 2}}},
      {"wide_and_deep",
       {"--embedding", "4"},
       (10 * 4 + 5) * 64 + 64 + 64 * 32 + 32 + 32 + 1,
       {{"embedding", 4}, {"servers", 1}}},
  };
  return models;
}

std::vector<std::string> Arguments(const std::string& command, const Model& model,
                                   std::vector<std::string> more) {
  std::vector<std::string> arguments = {command,    "--model", model.name,  "--batch", "2",
                                        "--rounds", "1",       "--seconds", "0.01",    "--json"};
  arguments.insert(arguments.end(), model.flags.begin(), model.flags.end());
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

class EachModel : public ::testing::TestWithParam<Model> {};

TEST_P(EachModel, IsMeasured) {
  const Model& model = GetParam();
  const Outcome run = RunBench(Arguments("scaling", model, {}));
  ASSERT_EQ(run.code, 0) << run.err;
  const auto json = nlohmann::json::parse(run.out);
  EXPECT_EQ(json["model"], model.name);
  EXPECT_EQ(json["workers"], 2);
  EXPECT_EQ(json["batch"], 2);
  EXPECT_EQ(json["sizes"], model.sizes.is_null() ? nlohmann::json::object() : model.sizes);
  EXPECT_GT(json["gradient_bytes"], 0);
  if (model.values > 0) {
    EXPECT_GE(json["gradient_bytes"], 4 * model.values);
    EXPECT_LT(json["gradient_bytes"], 4 * model.values + 16 * 64);  // each parameter is aligned
  }
  for (const char* figure :
       {"ms_per_step", "ms_per_step_without_communication", "ms_per_step_one_worker", "efficiency",
        "efficiency_of_barriers_alone", "weak_scaling_efficiency", "strong_scaling_speedup",
        "strong_scaling_efficiency", "examples_per_second"}) {
    const double value = json[figure].get<double>();
    EXPECT_TRUE(std::isfinite(value) && value > 0) << figure << ' ' << value;
  }
  const double step = json["ms_per_step"].get<double>();
  EXPECT_NEAR(json["examples_per_second"].get<double>() * step / 4e3, 1, 1e-6);
  for (const char* contestant : {"together", "without communication", "in step", "one worker",
                                 "one worker, all examples", "in buckets"}) {
    EXPECT_EQ(json["rounds_ms"][contestant].size(), 1U) << contestant;
  }
  const std::set<std::string> with_peer = {"cnn", "mlp", "mlp2048"};
  if (!with_peer.contains(model.name)) {
    EXPECT_THAT(json["libtorch_ddp"].get<std::string>(), HasSubstr("no such model"));
    EXPECT_FALSE(json["rounds_ms"].contains("LibTorch DDP"));
  }
}

INSTANTIATE_TEST_SUITE_P(BenchScaling, EachModel, ::testing::ValuesIn(Models()),
                         [](const auto& tested) { return tested.param.name; });

// One job each for both contestants that communicate, with the same servers.
TEST(BenchModels, OverlapWithTablesOnServers) {
  for (const Model& model : Models()) {
    if (model.name != "wide_and_deep" && model.name != "gpt") {
      continue;
    }
    const Outcome run = RunBench(Arguments("overlap", model, {"--transport", "tcp"}));
    ASSERT_EQ(run.code, 0) << run.err;
    const auto json = nlohmann::json::parse(run.out);
    EXPECT_EQ(json["model"], model.name);
    EXPECT_EQ(json["sizes"], model.sizes);
    for (const char* figure : {"ms_per_step_overlapped", "ms_per_step_after_backward",
                               "ms_per_step_without_communication", "speedup"}) {
      EXPECT_GT(json[figure].get<double>(), 0) << figure;
    }
  }
}

TEST(BenchModels, OneWorkerNeedsNoServers) {
  const Outcome run = RunBench({"scaling", "--model", "wide_and_deep", "--workers", "1", "--batch",
                                "2", "--rounds", "1", "--seconds", "0.01", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const auto json = nlohmann::json::parse(run.out);
  EXPECT_EQ(json["workers"], 1);
  EXPECT_GT(json["ms_per_step"].get<double>(), 0);
}

// So that this test names all that there are.
TEST(BenchModels, AnUnknownOneIsToldThoseThereAre) {
  for (const std::string command : {"scaling", "overlap"}) {
    const Outcome run = RunBench({command, "--model", "alexnet"});
    EXPECT_EQ(run.code, 2);
    EXPECT_THAT(run.err, HasSubstr("alexnet"));
    const std::size_t begin = run.err.find('{');
    const std::size_t end = run.err.find('}');
    ASSERT_TRUE(begin != std::string::npos && end != std::string::npos && begin < end) << run.err;
    std::set<std::string> named;
    for (std::size_t at = begin + 1; at < end;) {
      const std::size_t comma = std::min(end, run.err.find(',', at));
      named.insert(run.err.substr(at, comma - at));
      at = comma + 1;
    }
    std::set<std::string> tested;
    for (const Model& model : Models()) {
      tested.insert(model.name);
    }
    EXPECT_EQ(named, tested) << run.err;
  }
}

TEST(BenchModels, FlagsThatAModelDoesNotHaveAreExitCode2) {
  const Outcome layers = RunBench({"scaling", "--model", "mlp", "--layers", "2"});
  EXPECT_EQ(layers.code, 2);
  EXPECT_THAT(layers.err, HasSubstr("model mlp has no --layers [it has --hidden]"));
  const Outcome heads = RunBench({"overlap", "--model", "gpt", "--heads", "3"});
  EXPECT_EQ(heads.code, 2);
  EXPECT_THAT(heads.err, HasSubstr("--heads 3 does not divide --width 128"));
  const Outcome elsewhere = RunBench({"scaling", "--model", "dlrm", "--exec-prefix", "env"});
  EXPECT_EQ(elsewhere.code, 2);
  EXPECT_THAT(elsewhere.err, HasSubstr("model dlrm has tables on servers"));
  const Outcome alone =
      RunBench({"scaling", "--model", "dlrm", "--workers", "1", "--servers", "2"});
  EXPECT_EQ(alone.code, 2);
  EXPECT_THAT(alone.err, HasSubstr("--servers for one worker"));
}

// Words before the command of a worker: a script that does what `texts` says by rank.
std::string PrefixOf(const testing::TempDir& dir, const std::vector<std::string>& texts) {
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    const std::string script = dir / std::to_string(rank);
    std::ofstream(script) << "#!/bin/sh\n" << texts[rank] << "\n";
    std::filesystem::permissions(script, std::filesystem::perms::owner_all);
  }
  return dir / "{rank}";
}

// The second worker never comes to where the first one waits for it.
TEST(BenchModels, AWorkerIsWaitedForAsLongAsWasSaid) {
  const testing::TempDir dir;
  const Outcome run =
      RunBench({"scaling", "--model", "linear", "--rounds", "1", "--seconds", "0.5", "--timeout",
                "1", "--exec-prefix", PrefixOf(dir, {"exec \"$@\"", "exec sleep 100"})});
  EXPECT_EQ(run.code, 138) << run.err;
  EXPECT_THAT(run.err, ContainsRegex("rank 0 did not meet all 2 ranks within [0-9] s"));
  EXPECT_THAT(run.err, HasSubstr("[--timeout, where steps take seconds]"));
}

TEST(BenchModels, WhatAWorkerCannotDoIsTheUsersToMend) {
  const testing::TempDir dir;
  const Outcome run = RunBench({"overlap", "--model", "linear", "--exec-prefix",
                                PrefixOf(dir, {"exec sleep 100", "exit 2"})});
  EXPECT_EQ(run.code, 2) << run.err;
  EXPECT_THAT(run.err, HasSubstr("a process of worker 1: exit code 2"));
}

}  // namespace
}  // namespace cohort
