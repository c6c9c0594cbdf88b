// A tour of what users get wrong: each is a clear error and the right exit code, and nothing hangs.

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "testing/temp_dir.h"
#include "training.h"

namespace cohort::testing {
namespace {

using ::testing::TestWithParam;

struct Outcome {
  int code = -1;
  std::string text;  // both streams
};

Outcome RunProgram(const std::vector<std::string>& argv, const Variables& env = {},
                   std::chrono::seconds limit = std::chrono::seconds(60)) {
  ProcessCluster cluster;
  cluster.Start("program", argv, env);
  const std::optional<int> code = cluster.Wait("program", limit);
  EXPECT_TRUE(code.has_value()) << "it hangs\n" << cluster.Logs();
  return {code.value_or(-1), cluster.Stdout("program") + cluster.Stderr("program")};
}

void ExpectRefused(const Outcome& outcome, const std::string& named) {
  EXPECT_EQ(outcome.code, 2) << outcome.text;
  EXPECT_NE(outcome.text.find(named), std::string::npos) << "should name '" << named << "':\n"
                                                         << outcome.text;
}

struct BadConfig {
  const char* name;
  const char* tf_config;
  const char* named;
};

class TfConfig : public TestWithParam<BadConfig> {};

TEST_P(TfConfig, IsRefused) {
  ExpectRefused(
      RunProgram({Bin("image_classifier"), "--strategy", "multi_worker_mirrored", "--epochs", "0"},
                 {{"TF_CONFIG", GetParam().tf_config}}),
      GetParam().named);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, TfConfig,
    ::testing::Values(
        BadConfig{"Empty", "", "TF_CONFIG is set but empty"},
        BadConfig{"NotJson", R"({"cluster": {"worker": ["a:1", "b:2"]}, "task": )", "line 1"},
        BadConfig{
            "TrailingComma",
            R"({"cluster": {"worker": ["a:1", "b:2",]}, "task": {"type": "worker", "index": 0}})",
            "column"},
        BadConfig{
            "UnknownJob",
            R"({"cluster": {"wroker": ["a:1", "b:2"]}, "task": {"type": "wroker", "index": 0}})",
            "worker"},
        BadConfig{
            "Capitalised",
            R"({"cluster": {"Worker": ["a:1", "b:2"]}, "task": {"type": "Worker", "index": 0}})",
            "Worker"},
        BadConfig{
            "IndexPastTheEnd",
            R"({"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 2}})",
            "task.index"},
        BadConfig{
            "IndexNegative",
            R"({"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": -1}})",
            "task.index"},
        BadConfig{
            "IndexFraction",
            R"({"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0.5}})",
            "task.index"},
        BadConfig{"TaskMissing", R"({"cluster": {"worker": ["a:1", "b:2"]}})", "task"},
        BadConfig{
            "PortMissing",
            R"({"cluster": {"worker": ["a", "b:2"]}, "task": {"type": "worker", "index": 0}})",
            "cluster.worker[0]"},
        BadConfig{
            "PortTooLarge",
            R"({"cluster": {"worker": ["a:66660", "b:2"]}, "task": {"type": "worker", "index": 0}})",
            "66660"},
        BadConfig{
            "SameAddressTwice",
            R"({"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}})",
            "a:1"},
        BadConfig{
            "DuplicateKey",
            R"({"cluster": {"worker": ["a:1"], "worker": ["b:1", "c:1"]}, "task": {"type": "worker", "index": 0}})",
            "worker"},
        BadConfig{"ChiefAndMaster",
                  R"({"cluster": {"chief": ["a:1"], "master": ["b:1"], "worker": ["c:1"]},
                      "task": {"type": "worker", "index": 0}})",
                  "master"}),
    [](const auto& kind) { return std::string(kind.param.name); });

TEST(Flags, AreChecked) {
  ExpectRefused(RunProgram({Bin("image_classifier"), "--strategy", "mirored"}), "mirrored");
  ExpectRefused(RunProgram({Bin("image_classifier"), "--global-batch", "0"}), "--global-batch");
  ExpectRefused(RunProgram({Bin("image_classifier"), "--epochs", "many"}), "--epochs");
  ExpectRefused(RunProgram({Bin("image_classifier"), "--no-such-flag"}), "no-such-flag");
  ExpectRefused(RunProgram({Bin("image_classifier"), "--compress-values"}), "--compress-values");
  const Outcome algorithm = RunProgram({Bin("image_classifier"), "--all-reduce", "foo"});
  ExpectRefused(algorithm, "--all-reduce");
  ExpectRefused(algorithm, "halving_doubling");
  ExpectRefused(RunProgram({Bin("image_classifier"), "--deterministic", "--all-reduce", "ring"}),
                "deterministic with communication.implementation 'ring'");
  ExpectRefused(RunProgram({Bin("image_classifier"), "--bind-host", "10.0.0.3:80"}),
                "communication.bind_host is '10.0.0.3:80'");
  ExpectRefused(RunProgram({Bin("image_classifier"), "--bytes-per-pack", "-1"}),
                "--bytes-per-pack");
  ExpectRefused(RunProgram({Bin("image_classifier"), "--communication-timeout", "0"}),
                "--communication-timeout");
  ExpectRefused(RunProgram({Bin("image_classifier"), "--server-loss", "partial"}),
                "server_loss kPartial under one_device");
  ExpectRefused(RunProgram({Bin("image_classifier"), "--devices", "0"}), "devices '0'");
  ExpectRefused(RunProgram({Bin("image_classifier"), "--devices", "tpu:0"}), "tpu:0");
  EXPECT_EQ(RunProgram({Bin("image_classifier"), "--help"}).code, 0);
}

TEST(GlobalBatch, SmallerThanTheReplicas) {
  const Outcome outcome =
      RunProgram({Bin("image_classifier"), "--strategy", "mirrored", "--devices", "4",
                  "--global-batch", "3", "--model", "linear"});
  ExpectRefused(outcome, "3");
  EXPECT_NE(outcome.text.find("4"), std::string::npos) << outcome.text;
}

TEST(Strategy, OneDeviceInAClusterIsRefused) {
  ExpectRefused(
      RunProgram(
          {Bin("image_classifier"), "--strategy", "one_device"},
          {{"TF_CONFIG",
            R"({"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}})"}}),
      "one_device");
}

TEST(Strategy, ParameterServerWithoutServersIsRefused) {
  ExpectRefused(RunProgram({Bin("image_classifier"), "--strategy", "parameter_server"}), "ps");
}

// Files of digits that a test may damage.
class ImageFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    const Outcome made = RunProgram(
        {Bin("cohort"), "data", "digits", "--out", dir_ / "d", "--train", "200", "--test", "50"});
    ASSERT_EQ(made.code, 0) << made.text;
  }
  std::string File(const std::string& part) const {
    for (const auto& entry : std::filesystem::directory_iterator(dir_ / "d")) {
      if (entry.path().filename().string().find(part) != std::string::npos) {
        return entry.path().string();
      }
    }
    ADD_FAILURE() << "no file like " << part;
    return {};
  }
  static std::string Read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static void Write(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
  }
  Outcome Train(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> argv = {
        Bin("image_classifier"), "--data", dir_ / "d", "--model", "linear", "--epochs", "1"};
    argv.insert(argv.end(), more.begin(), more.end());
    return RunProgram(argv);
  }
  TempDir dir_;
};

TEST_F(ImageFiles, Whole) { EXPECT_EQ(Train().code, 0); }

TEST_F(ImageFiles, Truncated) {
  const std::string path = File("train-images");
  const std::string bytes = Read(path);
  Write(path, bytes.substr(0, bytes.size() / 2));
  ExpectRefused(Train(), path);
}

TEST_F(ImageFiles, Empty) {
  const std::string path = File("train-labels");
  Write(path, "");
  ExpectRefused(Train(), path);
}

TEST_F(ImageFiles, OneBitFlipped) {
  const std::string path = File("t10k-images");
  std::string bytes = Read(path);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  Write(path, bytes);
  ExpectRefused(Train(), path);
}

TEST_F(ImageFiles, LabelsOfAnotherSet) {
  std::filesystem::copy_file(File("t10k-labels"), File("train-labels"),
                             std::filesystem::copy_options::overwrite_existing);
  ExpectRefused(Train(), "200");
}

TEST_F(ImageFiles, Missing) {
  const std::string path = File("t10k-labels");
  std::filesystem::remove(path);
  ExpectRefused(Train(), "t10k-labels");
}

TEST_F(ImageFiles, LabelOutOfRange) {
  const Outcome outcome = Train({"--classes", "5"});
  ExpectRefused(outcome, "label");
  EXPECT_NE(outcome.text.find("5"), std::string::npos) << outcome.text;
}

TEST_F(ImageFiles, LabelOutOfRangeOnOneOfTwoWorkersEndsBoth) {
  std::vector<std::string> argv = Launch({"-n", "2"});
  argv.insert(argv.end(),
              {Bin("image_classifier"), "--data", dir_ / "d", "--model", "linear", "--epochs", "1",
               "--strategy", "multi_worker_mirrored", "--classes", "5"});
  ExpectRefused(RunProgram(argv), "label");
}

TEST_F(ImageFiles, FullDisk) {
  // The shell limits the size of files, and has the signal ignored: a write fails as on a full
  // disk.
  const std::string command = "ulimit -f 8; trap '' XFSZ; exec \"$0\" \"$@\"";
  const Outcome outcome =
      RunProgram({"/bin/bash", "-c", command, Bin("image_classifier"), "--data", dir_ / "d",
                  "--model", "mlp", "--epochs", "1", "--checkpoint-dir", dir_ / "checkpoints"});
  ExpectRefused(outcome, dir_ / "checkpoints");
}

TEST_F(ImageFiles, CheckpointFolderThatCannotBeMade) {
  Write(dir_ / "file", "x");
  ExpectRefused(Train({"--checkpoint-dir", dir_ / "file/checkpoints"}), dir_ / "file/checkpoints");
}

TEST_F(ImageFiles, CheckpointFolderThatMayNotBeWritten) {
  if (::geteuid() == 0) {
    ExpectRefused(Train({"--checkpoint-dir", "/proc/cohort-checkpoints"}),
                  "/proc/cohort-checkpoints");
    return;
  }
  std::filesystem::create_directory(dir_ / "readonly");
  std::filesystem::permissions(
      dir_ / "readonly", std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  ExpectRefused(Train({"--checkpoint-dir", dir_ / "readonly/c"}), dir_ / "readonly/c");
}

TEST_F(ImageFiles, MetricsFileThatCannotBeWritten) {
  ExpectRefused(Train({"--metrics-json", dir_ / "no/such/folder/m.json"}),
                dir_ / "no/such/folder/m.json");
}

TEST(Cohort, UnknownCommandsAreRefused) {
  ExpectRefused(RunProgram({Bin("cohort"), "lunch"}), "lunch");
  EXPECT_EQ(RunProgram({Bin("cohort"), "--help"}).code, 0);
}

}  // namespace
}  // namespace cohort::testing
