// What happens to a job when one of its processes is killed, or never comes.

#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <regex>
#include <thread>

#include <cohort/core/clock.h>
#include <cohort/core/file_system.h>

#include "training.h"

namespace cohort::testing {
namespace {

using std::chrono::seconds;

std::vector<std::string> Classifier(const std::string& strategy,
                                    const std::vector<std::string>& more) {
  std::vector<std::string> argv = {Bin("image_classifier"), "--strategy", strategy};
  argv.insert(argv.end(), more.begin(), more.end());
  return argv;
}

// Long enough to be hit in the middle.
const std::vector<std::string> kLong = {"--model",        "mlp", "--epochs", "1000",
                                        "--global-batch", "64"};

TEST(MultiWorkerMirrored, AKilledWorkerEndsTheOthersWithItsName) {
  ProcessCluster cluster;
  cluster.StartTasks({{"worker", 3}}, Classifier("multi_worker_mirrored", kLong));
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "epoch 1/1000", seconds(60))) << cluster.Logs();
  ASSERT_TRUE(cluster.Signal("worker:1", SIGKILL));
  const auto codes = cluster.WaitAll(seconds(15));
  EXPECT_EQ(codes.at("worker:1"), 128 + SIGKILL);
  for (const std::string survivor : {"worker:0", "worker:2"}) {
    EXPECT_EQ(codes.at(survivor), 138) << cluster.Logs();
    EXPECT_NE(cluster.Stderr(survivor).find("worker:1"), std::string::npos) << cluster.Logs();
  }
}

TEST(MultiWorkerMirrored, AKilledChiefEndsTheOthersWithItsName) {
  ProcessCluster cluster;
  cluster.StartTasks({{"worker", 2}}, Classifier("multi_worker_mirrored", kLong));
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "epoch 1/1000", seconds(60))) << cluster.Logs();
  ASSERT_TRUE(cluster.Signal("worker:0", SIGKILL));
  EXPECT_EQ(cluster.Wait("worker:1", seconds(15)), 138) << cluster.Logs();
  EXPECT_NE(cluster.Stderr("worker:1").find("worker:0"), std::string::npos) << cluster.Logs();
}

TEST(MultiWorkerMirrored, AStoppedWorkerIsNamedAtTheDeadline) {
  ProcessCluster cluster;
  std::vector<std::string> flags = kLong;
  flags.insert(flags.end(), {"--communication-timeout", "4"});
  cluster.StartTasks({{"worker", 2}}, Classifier("multi_worker_mirrored", flags));
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "epoch 1/1000", seconds(60))) << cluster.Logs();
  ASSERT_TRUE(cluster.Signal("worker:1", SIGSTOP));
  EXPECT_EQ(cluster.Wait("worker:0", seconds(15)), 138) << cluster.Logs();
  EXPECT_NE(cluster.Stderr("worker:0").find("worker:1"), std::string::npos) << cluster.Logs();
}

// What a worker said on SIGUSR1 before it stopped, and what the other wrote when it failed.
TEST(MultiWorkerMirrored, FlightRecordsNameTheStoppedWorker) {
  ProcessCluster cluster;
  const TempDir dir;
  std::vector<std::string> flags = kLong;
  flags.insert(flags.end(), {"--communication-timeout", "3", "--flight-folder", dir.path()});
  cluster.StartTasks({{"worker", 2}}, Classifier("multi_worker_mirrored", flags));
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "epoch 1/1000", seconds(60))) << cluster.Logs();
  const std::string records = dir.path() + "/collectives.g1.rank";
  ASSERT_TRUE(cluster.Signal("worker:1", SIGUSR1));
  ASSERT_TRUE(
      cluster.WaitForOutput("worker:1", "flight record: " + records + "1.jsonl", seconds(10)))
      << cluster.Logs();
  // The job goes on after that record: until the other's shows it in a later operation.
  const std::string behind = "behind: rank 1 (worker:1) last entered ";
  const auto merged = [&](int number) {
    const std::string name = "trace " + std::to_string(number);
    cluster.Start(name, {Bin("cohort"), "trace", records + "0.jsonl", records + "1.jsonl"});
    EXPECT_EQ(cluster.Wait(name, seconds(10)), 0) << cluster.Logs();
    return cluster.Stdout(name);
  };
  int number = 0;
  for (const auto deadline = std::chrono::steady_clock::now() + seconds(10);;) {
    std::filesystem::remove(records + "0.jsonl");
    ASSERT_TRUE(cluster.Signal("worker:0", SIGUSR1));
    while (!std::filesystem::exists(records + "0.jsonl")) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << cluster.Logs();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    if (merged(number++).find(behind) != std::string::npos) {
      break;
    }
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << cluster.Logs();
  }
  ASSERT_TRUE(cluster.Signal("worker:1", SIGSTOP));
  ASSERT_EQ(cluster.Wait("worker:0", seconds(15)), 138) << cluster.Logs();
  const std::string trace = merged(number);
  EXPECT_NE(trace.find("collectives, generation 1: 2 ranks, 2 records"), std::string::npos)
      << trace;
  EXPECT_NE(trace.find(behind), std::string::npos) << trace;
}

TEST(MultiWorkerMirrored, AMissingWorkerIsNamedInTheRollCallAndAtTheDeadline) {
  ProcessCluster cluster;
  cluster.StartTasks(
      {{"worker", 3}},
      Classifier("multi_worker_mirrored", {"--model", "linear", "--join-timeout", "13"}), {},
      {"worker:2"});
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "waiting for", seconds(13))) << cluster.Logs();
  const auto codes = cluster.WaitAll(seconds(25));
  for (const std::string present : {"worker:0", "worker:1"}) {
    EXPECT_EQ(codes.at(present), 138) << cluster.Logs();
    EXPECT_NE(cluster.Stderr(present).find("worker:2"), std::string::npos) << cluster.Logs();
  }
}

TEST(MultiWorkerMirrored, TerminatedSavesAndResumes) {
  const TempDir dir;
  const std::vector<std::string> flags = {
      "--model",        "linear", "--epochs",         "1000",
      "--global-batch", "64",     "--checkpoint-dir", dir / "c"};
  ProcessCluster cluster;
  cluster.StartTasks({{"worker", 2}}, Classifier("multi_worker_mirrored", flags));
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "epoch 1/1000", seconds(60))) << cluster.Logs();
  ASSERT_TRUE(cluster.Signal("worker:0", SIGTERM));
  const auto codes = cluster.WaitAll(seconds(30));
  EXPECT_EQ(codes.at("worker:0"), 143) << cluster.Logs();
  EXPECT_EQ(codes.at("worker:1"), 143) << cluster.Logs();
  EXPECT_NE(cluster.Stderr("worker:0").find("state saved in"), std::string::npos) << cluster.Logs();

  ProcessCluster again;
  again.StartTasks({{"worker", 2}}, Classifier("multi_worker_mirrored", flags));
  EXPECT_TRUE(again.WaitForOutput("worker:0", "resumed at epoch", seconds(60))) << again.Logs();
  again.Signal("worker:0", SIGTERM);
  again.Signal("worker:1", SIGTERM);
  EXPECT_EQ(again.Wait("worker:0", seconds(30)), 143) << again.Logs();
}

TEST(ParameterServer, AKilledWorkerIsDoneWithout) {
  ProcessCluster cluster;
  const TempDir dir;
  cluster.StartTasks({{"chief", 1}, {"worker", 2}, {"ps", 2}},
                     Classifier("parameter_server", {"--model", "mlp", "--epochs", "3",
                                                     "--metrics-json", dir / "m.json"}));
  ASSERT_TRUE(cluster.WaitForOutput("chief:0", "epoch", seconds(60))) << cluster.Logs();
  ASSERT_TRUE(cluster.Signal("worker:1", SIGKILL)) << cluster.Logs();
  const auto codes = cluster.WaitAll(seconds(120));
  EXPECT_EQ(codes.at("chief:0"), 0) << cluster.Logs();
  EXPECT_EQ(codes.at("worker:0"), 0) << cluster.Logs();
  EXPECT_EQ(codes.at("ps:0"), 0) << cluster.Logs();
  EXPECT_EQ(codes.at("ps:1"), 0) << cluster.Logs();
  const auto metrics =
      nlohmann::json::parse(OrThrow(ReadFile(FileSystem::Local(), dir / "m.json")));
  EXPECT_EQ(metrics["examples"], 3 * 8000)
      << "every example of every epoch was seen, and counted once";
}

// A job that is stopped, by its chief or by its workers, is saved between two updates with all that
// was trained, and goes on from there.
struct Stop {
  const char* name;
  bool chief;  // a task of its own
  const char* consistency;
  std::vector<std::string> told;
  int servers = 1;
};
class ParameterServerStop : public ::testing::TestWithParam<Stop> {};

TEST_P(ParameterServerStop, SavesWhatWasTrainedAndResumes) {
  const TempDir dir;
  const int epochs = GetParam().consistency == std::string("sync") ? 10 : 30;
  constexpr int kBatches = 125;
  const std::string chief = GetParam().chief ? "chief:0" : "worker:0";
  std::vector<std::pair<std::string, int>> tasks = {{"worker", 2}, {"ps", GetParam().servers}};
  if (GetParam().chief) {
    tasks.emplace_back("chief", 1);
  }
  const auto program = Classifier(
      "parameter_server", {"--model", "linear", "--epochs", std::to_string(epochs),
                           "--global-batch", "64", "--consistency", GetParam().consistency,
                           "--checkpoint-dir", dir / "c", "--metrics-json", dir / "m.json"});
  ProcessCluster cluster;
  cluster.StartTasks(tasks, program);
  ASSERT_TRUE(cluster.WaitForOutput(chief, "epoch", seconds(60))) << cluster.Logs();
  ASSERT_TRUE(cluster.Signal(GetParam().told.front(), SIGTERM)) << cluster.Logs();
  for (std::size_t i = 1; i < GetParam().told.size(); ++i) {
    cluster.Signal(GetParam().told[i], SIGTERM);  // it may have heard, and ended
  }
  for (const auto& [task, code] : cluster.WaitAll(seconds(60))) {
    EXPECT_EQ(code, task.starts_with("ps") ? 0 : 143) << task << "\n" << cluster.Logs();
  }
  EXPECT_NE(cluster.Stderr(chief).find("state saved in"), std::string::npos) << cluster.Logs();

  ProcessCluster again;
  again.StartTasks(tasks, program);
  for (const auto& [task, code] : again.WaitAll(seconds(120))) {
    EXPECT_EQ(code, 0) << task << "\n" << again.Logs();
  }
  const std::string log = again.Stderr(chief);
  std::smatch place;
  ASSERT_TRUE(std::regex_search(
      log, place, std::regex("resumed at epoch ([0-9]+), batch ([0-9]+), step ([0-9]+)")))
      << log;
  const int batches = (std::stoi(place[1]) - 1) * kBatches + std::stoi(place[2]);
  EXPECT_EQ(std::stoi(place[3]), batches) << "each batch before it was trained once";
  EXPECT_LT(batches, epochs * kBatches);
  const auto metrics =
      nlohmann::json::parse(OrThrow(ReadFile(FileSystem::Local(), dir / "m.json")));
  EXPECT_EQ(metrics["examples"], (epochs * kBatches - batches) * 64) << "and all others since";
}

INSTANTIATE_TEST_SUITE_P(
    All, ParameterServerStop,
    ::testing::Values(Stop{"AsyncAll", true, "async", {"chief:0", "worker:0", "worker:1"}},
                      Stop{"AsyncTheChief", true, "async", {"chief:0"}},
                      Stop{"AsyncTheWorkers", true, "async", {"worker:0", "worker:1"}},
                      Stop{"SyncAll", true, "sync", {"chief:0", "worker:0", "worker:1"}},
                      Stop{"SyncTheChief", true, "sync", {"chief:0"}},
                      Stop{"SyncTheWorkers", true, "sync", {"worker:0", "worker:1"}},
                      Stop{
                          "AsyncAllOfAWorkerThatIsChief", false, "async", {"worker:0", "worker:1"}},
                      Stop{"AsyncAWorkerThatIsChief", false, "async", {"worker:0"}},
                      Stop{"SyncAWorkerThatIsChief", false, "sync", {"worker:0"}},
                      Stop{"BoundedOfTwoServers", false, "ssp:2", {"worker:0", "worker:1"}, 2}),
    [](const auto& test) { return test.param.name; });

TEST(ParameterServer, ResumesFromItsLastState) {
  const TempDir dir;
  const auto train = [&](int epochs) {
    return Train({.data = ImageData("mnist", 8000, 2000),
                  .strategy = "parameter_server",
                  .model = "linear",
                  .epochs = epochs,
                  .launcher = Launch({"-n", "2", "--ps", "1", "--chief"}),
                  .more = {"--checkpoint-dir", dir / "c"}});
  };
  const nlohmann::json first = train(1);
  EXPECT_EQ(first["steps"], 125);
  EXPECT_NE(first["checkpoint"].get<std::string>().find("step-0000000125"), std::string::npos);
  const nlohmann::json second = train(3);
  EXPECT_EQ(second["steps"], 250) << "only the epochs that were left";
  EXPECT_LT(second["epoch_losses"].at(0), first["epoch_losses"].at(0));
}

// With one order of parts, a job that goes on from its last save ends with the bits of one that was
// never interrupted.
TEST(ParameterServer, AfterAKilledServerTheJobGoesOnFromTheLastSave) {
  const TempDir dir;
  const std::string data = ImageData("mnist", 8000, 2000);
  const auto train = [&](const std::string& folder) {
    return Train({.data = data,
                  .strategy = "parameter_server",
                  .model = "linear",
                  .epochs = 3,
                  .launcher = Launch({"-n", "2", "--ps", "2", "--chief"}),
                  .more = {"--checkpoint-dir", dir / folder, "--consistency", "sync"}});
  };
  ProcessCluster cluster;
  cluster.StartTasks(
      {{"chief", 1}, {"worker", 2}, {"ps", 2}},
      Classifier("parameter_server", {"--data", data, "--model", "linear", "--epochs", "1000",
                                      "--consistency", "sync", "--save-every-steps", "40",
                                      "--checkpoint-dir", dir / "killed", "--rejoin-grace", "0"}));
  const auto saved = [&] {
    const auto names = FileSystem::Local().List(dir / "killed");
    return names.ok() && std::any_of(names->begin(), names->end(), [](const std::string& name) {
             return name.find("step-") == 0;
           });
  };
  const Deadline patience = DeadlineAfter(seconds(60));
  while (!saved() && std::chrono::steady_clock::now() < patience) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ASSERT_TRUE(cluster.Signal("ps:0", SIGKILL)) << cluster.Logs();
  EXPECT_EQ(cluster.WaitAll(seconds(30)).at("chief:0"), 138) << cluster.Logs();
  ASSERT_TRUE(saved()) << cluster.Logs();

  const nlohmann::json resumed = train("killed");
  const nlohmann::json whole = train("whole");
  EXPECT_EQ(whole["steps"], 375);
  EXPECT_LT(resumed["steps"], 375) << "it began anew";
  EXPECT_GT(resumed["steps"], 0) << "the job had ended before it was killed";
  EXPECT_EQ(resumed["parameters_crc32c"], whole["parameters_crc32c"]);
}

TEST(ParameterServer, AKilledServerThatNobodyReplacesEndsTheJobWithItsName) {
  ProcessCluster cluster;
  std::vector<std::string> flags = kLong;
  flags.insert(flags.end(), {"--rejoin-grace", "0.5"});
  cluster.StartTasks({{"chief", 1}, {"worker", 2}, {"ps", 2}},
                     Classifier("parameter_server", flags));
  ASSERT_TRUE(cluster.WaitForOutput("chief:0", "epoch", seconds(60))) << cluster.Logs();
  ASSERT_TRUE(cluster.Signal("ps:1", SIGKILL));
  const auto codes = cluster.WaitAll(seconds(15));
  for (const std::string survivor : {"chief:0", "worker:0", "worker:1", "ps:0"}) {
    EXPECT_EQ(codes.at(survivor), 138) << survivor << "\n" << cluster.Logs();
    EXPECT_NE(cluster.Stderr(survivor).find("ps:1"), std::string::npos) << survivor << "\n"
                                                                        << cluster.Logs();
  }
}

}  // namespace
}  // namespace cohort::testing
