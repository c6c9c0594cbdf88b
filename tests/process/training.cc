#include "training.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <memory>

#include "testing/temp_dir.h"

namespace cohort::testing {

std::string Bin(const std::string& program) { return std::string(COHORT_BIN_DIR) + "/" + program; }

nlohmann::json Train(const TrainingRun& run) {
  const TempDir dir;
  std::vector<std::string> argv = run.launcher;
  for (const std::string& part : std::initializer_list<std::string>{
           Bin("image_classifier"), "--model", run.model, "--global-batch",
           std::to_string(run.global_batch), "--epochs", std::to_string(run.epochs), "--seed",
           std::to_string(run.seed), "--metrics-json", dir / "metrics.json"}) {
    argv.push_back(part);
  }
  if (!run.data.empty()) {
    argv.insert(argv.end(), {"--data", run.data});
  }
  if (!run.strategy.empty()) {
    argv.insert(argv.end(), {"--strategy", run.strategy});
  }
  argv.insert(argv.end(), run.more.begin(), run.more.end());
  ProcessCluster cluster;
  cluster.Start("run", argv);
  const std::optional<int> code = cluster.Wait("run", std::chrono::minutes(5));
  EXPECT_EQ(code, 0) << cluster.Logs();
  std::ifstream file(dir / "metrics.json");
  nlohmann::json metrics = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!metrics.is_object()) {
    ADD_FAILURE() << "no metrics were written\n" << cluster.Logs();
    return nlohmann::json::object({{"accuracy", -1.0}, {"loss", -1.0}});
  }
  std::printf("%s: %s\n", run.strategy.c_str(), metrics.dump().c_str());
  return metrics;
}

std::vector<std::string> Mpirun(int processes) {
  return {"mpirun", "--allow-run-as-root",    "--oversubscribe", "--bind-to", "none",
          "-n",     std::to_string(processes)};
}

std::vector<std::string> Launch(const std::vector<std::string>& flags) {
  std::vector<std::string> argv = {Bin("cohort"), "launch"};
  argv.insert(argv.end(), flags.begin(), flags.end());
  argv.emplace_back("--");
  return argv;
}

std::string ImageData(const std::string& name, int train, int test) {
  if (std::string real = RealData(name); !real.empty()) {
    return real;
  }
  std::printf("%s is absent (COHORT_TEST_DATA): digits drawn by cohort stand in for it\n",
              name.c_str());
  // Owned by the test process, and gone with it.
  static std::map<std::pair<int, int>, std::unique_ptr<TempDir>> drawn;
  std::unique_ptr<TempDir>& dir = drawn[{train, test}];
  if (dir == nullptr) {
    dir = std::make_unique<TempDir>();
    ProcessCluster cluster;
    cluster.Start("digits", {Bin("cohort"), "data", "digits", "--out", *dir / "digits", "--train",
                             std::to_string(train), "--test", std::to_string(test)});
    EXPECT_EQ(cluster.Wait("digits", std::chrono::minutes(1)), 0) << cluster.Logs();
  }
  return *dir / "digits";
}

}  // namespace cohort::testing
