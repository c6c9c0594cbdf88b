// `cohort bench reduction`, `embedding`, `dlrm`, `ps`, `snapshot` and `explain`, as a user runs
// them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "testing/process_cluster.h"
#include "testing/sanitized.h"
#include "testing/temp_dir.h"

namespace cohort {
namespace {

// One JSON object a line.
std::vector<nlohmann::json> RunBench(const std::vector<std::string>& arguments) {
  testing::ProcessCluster processes;
  std::vector<std::string> argv = {COHORT_BIN_DIR "/cohort", "bench"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  processes.Start("bench", argv);
  EXPECT_EQ(processes.Wait("bench", std::chrono::seconds(60)), 0) << processes.Stderr("bench");
  std::vector<nlohmann::json> lines;
  std::istringstream out(processes.Stdout("bench"));
  for (std::string line; std::getline(out, line);) {
    lines.push_back(nlohmann::json::parse(line));
  }
  return lines;
}

// Figures that a machine may have, and not only in another unit; and those that follow from others.
void ExpectRate(const nlohmann::json& rate, double most) {
  EXPECT_GT(rate.get<double>(), 0);
  EXPECT_LT(rate.get<double>(), most);
}
void ExpectQuotient(const nlohmann::json& ratio, const nlohmann::json& of,
                    const nlohmann::json& to) {
  const double expected = of.get<double>() / to.get<double>();
  EXPECT_NEAR(ratio.get<double>(), expected, 1e-6 * expected);
}

TEST(BenchReduction, EveryTypeAndReductionBesideTheLimit) {
  std::set<std::string> types;
  std::set<std::string> ops;
  for (const nlohmann::json& line :
       RunBench({"reduction", "--sizes", "16k", "--rounds", "1", "--json"})) {
    EXPECT_EQ(line.at("bytes"), 16384);
    ExpectRate(line.at("gb_per_s"), 10'000);
    ExpectRate(line.at("ratio_to_memcpy"), 1000);
    ExpectRate(line.at("ratio_to_limit"), 1000);
    if (line.at("op") == "memcpy") {
      EXPECT_NEAR(line.at("ratio_to_memcpy").get<double>(), 1, 1e-6);
    }
    types.insert(line.at("dtype"));
    ops.insert(line.at("op"));
  }
  EXPECT_EQ(types, (std::set<std::string>{"-", "float32", "float64", "int32", "int64", "float16",
                                          "bfloat16", "uint8"}));
  EXPECT_EQ(ops, (std::set<std::string>{"memcpy", "limit", "limit of 4", "sum", "mean", "min",
                                        "max", "product", "sum of 4"}));
}

// Exit code 0 says that table and flat array hold the same bits after the same updates.
TEST(BenchEmbedding, EveryOptimizerBesideAFlatArray) {
  for (const std::string optimizer : {"adagrad", "row_wise_adagrad", "adam", "sgd"}) {
    const nlohmann::json run =
        RunBench({"embedding", "--rows", "5000", "--dim", "6", "--ids", "700", "--calls", "2",
                  "--rounds", "1", "--optimizer", optimizer, "--json"})
            .at(0);
    EXPECT_EQ(run.at("rows"), 5000);
    EXPECT_EQ(run.at("wrong"), 0);
    EXPECT_EQ(run.at("cases").size(), 4U);
    for (const nlohmann::json& line : run.at("cases")) {
      ExpectRate(line.at("per_second"), 1e10);
      ExpectQuotient(line.at("ratio_to_flat"), line.at("per_second"), line.at("flat_per_second"));
    }
  }
}

// Exit code 0 says that the server's rows are those of the table.
TEST(BenchEmbedding, ThroughAServerBesideTheTable) {
  const nlohmann::json run = RunBench({"embedding", "--remote", "--rows", "5000", "--dim", "6",
                                       "--ids", "700", "--calls", "2", "--rounds", "1", "--json"})
                                 .at(0);
  EXPECT_EQ(run.at("wrong"), 0);
  EXPECT_EQ(run.at("remote").size(), 2U);
  for (const nlohmann::json& line : run.at("remote")) {
    ExpectRate(line.at("per_second"), 1e10);
    ExpectQuotient(line.at("ratio_to_table"), line.at("per_second"), line.at("table_per_second"));
  }
}

// Likewise, of many tables in one call and in a call for each.
TEST(BenchEmbedding, ManyTablesInOneCallBesideACallForEach) {
  const nlohmann::json run =
      RunBench({"embedding", "--remote", "--tables", "26", "--rows", "2600", "--dim", "6", "--ids",
                "520", "--calls", "2", "--rounds", "1", "--json"})
          .at(0);
  EXPECT_EQ(run.at("tables"), 26);
  EXPECT_EQ(run.at("ids_of_table"), 20);
  EXPECT_EQ(run.at("wrong"), 0);
  EXPECT_EQ(run.at("remote").size(), 2U);
  for (const nlohmann::json& line : run.at("remote")) {
    ExpectRate(line.at("per_second"), 1e10);
    ExpectQuotient(line.at("ratio_to_a_call_for_each"), line.at("per_second"),
                   line.at("per_second_with_a_call_for_each"));
  }
}

// Likewise, of workers whose pushes are parts of rounds.
TEST(BenchEmbedding, RoundsBesidePushesOfTheSameWorkers) {
  const nlohmann::json run =
      RunBench({"embedding", "--remote", "--rounds-of", "3", "--rows", "5000", "--dim", "6",
                "--ids", "700", "--calls", "2", "--rounds", "2", "--json"})
          .at(0);
  EXPECT_EQ(run.at("rounds_of"), 3);
  EXPECT_EQ(run.at("wrong"), 0);
  ASSERT_EQ(run.at("remote").size(), 1U);
  const nlohmann::json& line = run.at("remote").at(0);
  ExpectRate(line.at("per_second"), 1e10);
  ExpectQuotient(line.at("ratio_to_pushes"), line.at("per_second"),
                 line.at("per_second_of_pushes"));
}

TEST(BenchDlrm, TrainsWithEachOptimizer) {
  for (const std::string optimizer : {"sgd", "adagrad"}) {
    const nlohmann::json run =
        RunBench({"dlrm", "--optimizer", optimizer, "--rows", "100", "--batch", "16", "--zipf", "1",
                  "--steps", "2", "--rounds", "1", "--no-peer", "--json"})
            .at(0);
    EXPECT_EQ(run.at("optimizer"), optimizer);
    ExpectRate(run.at("ms_per_step"), 10'000);
    ExpectQuotient(run.at("examples_per_second"), 16'000, run.at("ms_per_step"));
  }
}

TEST(BenchPs, EverySizeBesideAStreamAndPlainGrpc) {
  const nlohmann::json run =
      RunBench({"ps", "--bytes", "4k,2500k", "--rounds", "1", "--seconds", "0.01", "--json"}).at(0);
  ASSERT_EQ(run.at("sizes").size(), 2U);
  for (const nlohmann::json& size : run.at("sizes")) {
    for (const char* name :
         {"stream", "push", "pull", "push_shm", "pull_shm", "push_bytes", "pull_bytes"}) {
      ExpectRate(size.at(name).at("us"), 10e6);
      ExpectQuotient(size.at(name).at("gb_per_second"), size.at("bytes").get<double>() / 1e3,
                     size.at(name).at("us"));
      ExpectQuotient(size.at(name).at("of_stream"), size.at(name).at("gb_per_second"),
                     size.at("stream").at("gb_per_second"));
    }
    for (const std::string what : {"push", "pull"}) {
      const auto us = [&](const std::string& how) { return size.at(what + how).at("us"); };
      ExpectQuotient(size.at(what + "_of_bytes_service"), us("_bytes"), us(""));
      ExpectQuotient(size.at(what + "_shm_of_tcp"), us(""), us("_shm"));
    }
    EXPECT_EQ(size.contains("push_pipelined"), size.at("bytes") == 4096);
    EXPECT_EQ(size.contains("push_pipelined_shm"), size.at("bytes") == 4096);
  }
  EXPECT_EQ(run.at("sizes")[1].at("bytes"), 2500 << 10);
}

TEST(BenchSnapshot, TheWorkerTrainsOnWhileTheFileIsWritten) {
  const testing::TempDir folder;
  const nlohmann::json run =
      RunBench({"ps", "snapshot", "--bytes", "1m", "--dense", "4k", "--ids", "100", "--rounds", "1",
                "--seconds", "0.05", "--folder", folder.path(), "--json"})
          .at(0);
  EXPECT_EQ(run.at("rows"), (1 << 20) / 152) << "of 16 weights and as many slots";
  EXPECT_GT(run.at("file_bytes").get<double>(), run.at("rows").get<double>() * 148);
  for (const char* name : {"alone", "beside_snapshot", "beside_plain_write"}) {
    EXPECT_GT(run.at(name).at("p99_ms").get<double>(), 0) << name;
    EXPECT_GE(run.at(name).at("p99_ms").get<double>(), run.at(name).at("p50_ms").get<double>());
  }
  EXPECT_GE(run.at("pause_ms").get<double>(), run.at("flip_ms").get<double>());
  EXPECT_GT(run.at("snapshot_gb_per_second").get<double>(), 0);
  EXPECT_GT(run.at("plain_alone_gb_per_second").get<double>(), 0);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(BenchPsResume, AKilledServerIsReplacedAndEachPhaseHasItsTime) {
  const testing::TempDir folder;
  const nlohmann::json run = RunBench({"ps", "resume", "--bytes", "2m", "--rounds", "2", "--folder",
                                       folder.path(), "--json"})
                                 .at(0);
  EXPECT_EQ(run.at("rounds"), 2);
  for (const char* name : {"noticed", "restored", "first_step"}) {
    EXPECT_GT(run.at(std::string(name) + "_seconds").get<double>(), 0) << name;
  }
  EXPECT_GE(run.at("worst_seconds").get<double>(), run.at("all_seconds").get<double>());
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(BenchPsHot, HotBucketsMoveAndWorkersGoOn) {
  const nlohmann::json run =
      RunBench({"ps", "hot", "--rows", "1000", "--ids", "8", "--seconds", "0.3", "--json"}).at(0);
  for (const char* phase : {"before", "while_moving", "after"}) {
    EXPECT_GT(run.at(phase).at("steps").get<double>(), 0) << phase;
    EXPECT_GE(run.at(phase).at("pull_p99_ms").get<double>(),
              run.at(phase).at("pull_p50_ms").get<double>());
  }
  EXPECT_GT(run.at("busiest_before").get<double>(), 1.15);
  EXPECT_GT(run.at("moves").get<int>(), 0);
  EXPECT_LT(run.at("busiest_after").get<double>(), run.at("busiest_before").get<double>());
}

TEST(BenchPsWorkers, InRoundsAndAsynchronouslyAndAServersMemory) {
  const nlohmann::json run =
      RunBench({"ps",           "workers", "--workers", "1,2", "--examples", "256",
                "--batch",      "32",      "--epochs",  "2",   "--rounds",   "1",
                "--save-steps", "2",       "--clients", "2",   "--bytes",    "64k",
                "--seconds",    "0.05",    "--json"})
          .at(0);
  ASSERT_EQ(run.at("workers").size(), 2U);
  for (const nlohmann::json& of : run.at("workers")) {
    ExpectRate(of.at("sync_examples_per_second"), 1e8);
    // Of one round.
    ExpectQuotient(of.at("async_to_sync"), of.at("async_examples_per_second"),
                   of.at("sync_examples_per_second"));
    ExpectRate(of.at("alone_examples_per_second"), 1e8);
    ExpectQuotient(of.at("async_to_alone"), of.at("async_examples_per_second"),
                   of.at("alone_examples_per_second"));
    ExpectRate(of.at("sync_cpu_us_per_example"), 1e6);
    ExpectRate(of.at("async_cpu_us_per_example"), 1e6);
    ExpectRate(of.at("alone_cpu_us_per_example"), 1e6);
  }
  for (const nlohmann::json& of : run.at("saves")) {
    EXPECT_GT(of.at("saves").get<int>(), 0) << "16 batches, a save each 2";
    EXPECT_GE(of.at("longest_pause_ms").get<double>(), of.at("mean_pause_ms").get<double>());
    EXPECT_GT(of.at("mean_pause_ms").get<double>(), 0);
  }
  ExpectRate(run.at("memory").at("pushes_per_second"), 1e7);
  const auto one = run.at("memory").at("one_client_bytes").get<std::int64_t>();
  const auto most = run.at("memory").at("most_bytes").get<std::int64_t>();
  EXPECT_GT(one, 3 * (64 << 10));
  EXPECT_GE(most, one);
  if (!testing::kSanitized) {
    // Of each of the two clients at once a ring of 4 MiB for each direction, and a frame and its
    // answer.
    EXPECT_LT(most - one, std::int64_t{2 * (2 * 4 + 2)} << 20);
    EXPECT_LT(one, std::int64_t{128} << 20) << "the values, two rings, and the program itself";
  }
}

TEST(BenchEmbedding, AnUnknownOptimizerIsAMistakeOfUse) {
  testing::ProcessCluster processes;
  processes.Start("bench",
                  {COHORT_BIN_DIR "/cohort", "bench", "embedding", "--optimizer", "adagard"});
  EXPECT_EQ(processes.Wait("bench", std::chrono::seconds(60)), 2);
  EXPECT_NE(processes.Stderr("bench").find("did you mean \"adagrad\""), std::string::npos)
      << processes.Stderr("bench");
}

// One line of each size is the one that "auto" takes; 300 KiB are enough for hierarchical.
TEST(BenchExplain, PredictsMeasuresAndChooses) {
  const std::map<std::string, std::set<std::string>> own = {{"local", {"one_shot", "shared"}},
                                                            {"shm", {"one_shot", "shared"}},
                                                            {"tcp", {}},
                                                            {"hierarchical", {"hierarchical"}}};
  for (const auto& [transport, unpredicted] : own) {
    for (const std::string op : {"allreduce", "reducescatter", "allgather"}) {
      SCOPED_TRACE(transport + " " + op);
      const nlohmann::json run =
          RunBench({"explain", "--transport", transport, "--ranks", "3", "--op", op, "--sizes",
                    "240,300k", "--rounds", "2", "--json"})
              .at(0);
      EXPECT_EQ(run.at("op"), op);
      EXPECT_EQ(run.at("ranks"), 3);
      EXPECT_GT(run.at("latency_us").get<double>(), 0);
      EXPECT_GT(run.at("calibration_ms").get<double>(), 0);
      std::map<std::int64_t, int> chosen;
      std::set<std::string> without;
      for (const nlohmann::json& line : run.at("results")) {
        if (line.at("predicted_us").is_null()) {
          without.insert(line.at("algorithm"));
        } else {
          EXPECT_GT(line.at("predicted_us").get<double>(), 0);
        }
        EXPECT_GT(line.at("time_us").get<double>(), 0);
        chosen[line.at("bytes")] += line.at("chosen").get<bool>() ? 1 : 0;
      }
      EXPECT_THAT(chosen,
                  ::testing::ElementsAre(::testing::Pair(240, 1), ::testing::Pair(307'200, 1)));
      if (op == "allreduce") {
        EXPECT_EQ(without, unpredicted);
      }
    }
  }
}

}  // namespace
}  // namespace cohort
