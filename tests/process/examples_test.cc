// Every example runs to its end, alone and as two processes, and learns.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>
#include <thread>

#include <cohort/core/file_system.h>
#include <cohort/core/random.h>
#include <cohort/core/status.h>
#include <cohort/data/clicks.h>
#include <cohort/data/image.h>

#include "testing/temp_dir.h"
#include "training.h"

namespace cohort::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

// What the example printed; it must end with 0.
std::string Output(const std::vector<std::string>& argv) {
  ProcessCluster cluster;
  cluster.Start("example", argv, {{"OMP_NUM_THREADS", "1"}});
  EXPECT_EQ(cluster.Wait("example", std::chrono::minutes(2)), 0) << cluster.Logs();
  return cluster.Stdout("example");
}

std::vector<std::string> InTwoProcesses(const std::string& program) {
  std::vector<std::string> argv = Launch({"-n", "2"});
  argv.push_back(Bin(program));
  return argv;
}

// The last number that `pattern` captures in `text`.
double LastNumber(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  double last = -1;
  for (std::sregex_iterator it(text.begin(), text.end(), regex), end; it != end; ++it) {
    last = std::stod((*it)[1].str());
  }
  return last;
}

TEST(Examples, Fit) {
  for (const auto& argv : {std::vector<std::string>{Bin("fit")}, InTwoProcesses("fit")}) {
    const double loss = LastNumber(Output(argv), R"(loss ([0-9.]+) after 189 steps)");
    EXPECT_GT(loss, 0);
    EXPECT_LT(loss, 0.5);
  }
}

TEST(Examples, CustomLoop) {
  for (const auto& argv :
       {std::vector<std::string>{Bin("custom_loop")}, InTwoProcesses("custom_loop")}) {
    EXPECT_GT(LastNumber(Output(argv), R"(epoch 3: ([0-9.]+) of 4000 examples right)"), 0.9);
  }
}

// A step is as large in one process as in two: what is handed over are means.
TEST(Examples, BringYourOwnGradients) {
  const char* const kRight = R"(epoch 3: ([0-9.]+) of)";
  const double alone = LastNumber(Output({Bin("bring_your_own_gradients")}), kRight);
  EXPECT_GT(alone, 0.8);
  EXPECT_NEAR(LastNumber(Output(InTwoProcesses("bring_your_own_gradients")), kRight), alone, 0.03);
}

// What an example measured on its test data.
nlohmann::json Metrics(const std::string& example, std::vector<std::string> argv,
                       const std::vector<std::string>& flags) {
  const TempDir dir;
  argv.insert(argv.end(), {Bin(example), "--quiet", "--metrics-json", dir / "metrics.json"});
  argv.insert(argv.end(), flags.begin(), flags.end());
  Output(argv);
  std::ifstream file(dir / "metrics.json");
  nlohmann::json metrics = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  return metrics.is_object() ? metrics : nlohmann::json({{"auc", 0.0}, {"accuracy", 0.0}});
}

nlohmann::json WideAndDeep(std::vector<std::string> argv, const std::vector<std::string>& flags) {
  return Metrics("wide_and_deep", std::move(argv), flags);
}

TEST(Examples, Dlrm) {
  const std::vector<std::string> flags = {"--examples", "30000", "--test",
                                          "10000",      "--ids", "2000"};
  // What so few clicks teach: 73 % of what can be known of them, on servers 70 to 73 % in six runs.
  const auto learnt = [](const nlohmann::json& metrics) {
    return metrics.value("of_bayes_excess", 0.0);
  };
  const nlohmann::json alone = Metrics("dlrm", {}, flags);
  EXPECT_NEAR(alone.value("bayes_auc", 0.0), 0.8234, 0.0005);
  EXPECT_NEAR(learnt(alone), 0.732, 0.01);
  const nlohmann::json remote = Metrics("dlrm", Launch({"-n", "2", "--ps", "2", "--chief"}), flags);
  EXPECT_NEAR(learnt(remote), learnt(alone), 0.05);
  std::vector<std::string> eight_bits = flags;
  eight_bits.insert(eight_bits.end(), {"--compression", "int8", "--wire", "int8", "--partitioner",
                                       "fixed:2", "--start", "quorum:1"});
  EXPECT_NEAR(learnt(Metrics("dlrm", Launch({"-n", "2", "--ps", "2", "--chief"}), eight_bits)),
              learnt(alone), 0.05);
}

// Of workers and servers, where nobody asks for anything else: in step, with tables on servers.
TEST(Examples, ModelsWithTablesAreTrainedInStepByDefault) {
  const std::vector<std::string> flags = {"--examples", "4000", "--test", "1000", "--ids", "500"};
  const auto argv = Launch({"-n", "2", "--ps", "1"});
  const nlohmann::json by_default = Metrics("dlrm", argv, flags);
  EXPECT_EQ(by_default.value("strategy", ""), "multi_worker_mirrored");
  std::vector<std::string> asked = flags;
  asked.insert(asked.end(), {"--strategy", "parameter_server", "--consistency", "hybrid"});
  const nlohmann::json hybrid = Metrics("dlrm", argv, asked);
  EXPECT_EQ(hybrid.value("strategy", ""), "multi_worker_mirrored");
  EXPECT_EQ(hybrid.value("parameters_crc32c", "no"), by_default.value("parameters_crc32c", ""));
  asked.back() = "async";
  asked.insert(asked.end(), {"--global-batch", "32", "--lookahead", "3"});
  const nlohmann::json async = Metrics("dlrm", argv, asked);
  EXPECT_EQ(async.value("strategy", ""), "parameter_server");
  const nlohmann::json servers = async.value("parameter_server", nlohmann::json::object());
  EXPECT_GT(servers.value("foreseen", 0), 0);
  EXPECT_GT(servers.value("refreshed_rows", 0), 0) << "of several batches ahead";
}

// What the processes of `argv`, which end well, say of the consistency that was chosen, in order.
std::vector<std::string> Chosen(std::vector<std::string> argv, const std::string& example,
                                const std::vector<std::string>& flags) {
  argv.insert(argv.end(), {Bin(example), "--quiet"});
  argv.insert(argv.end(), flags.begin(), flags.end());
  ProcessCluster cluster;
  cluster.Start("job", argv, {{"OMP_NUM_THREADS", "1"}});
  EXPECT_EQ(cluster.Wait("job", std::chrono::minutes(2)), 0) << cluster.Logs();
  const std::string said = cluster.Stdout("job") + cluster.Stderr("job");
  const std::regex line("consistency [a-z]+: [^\\n]*");
  std::vector<std::string> chosen;
  for (std::sregex_iterator it(said.begin(), said.end(), line), end; it != end; ++it) {
    chosen.push_back(it->str());
  }
  return chosen;
}

TEST(Examples, TheChiefOfAJobWithServersSaysWhatItChose) {
  const std::vector<std::string> dlrm = {"--examples", "4000", "--test", "1000", "--ids", "500"};
  EXPECT_THAT(Chosen(Launch({"-n", "2", "--ps", "1"}), "dlrm", dlrm),
              ElementsAre(AllOf(StartsWith("consistency hybrid: the model has "),
                                HasSubstr("no chief task leads the job"))));
  EXPECT_THAT(Chosen(Launch({"-n", "1", "--ps", "1", "--chief"}), "dlrm", dlrm),
              ElementsAre(AllOf(StartsWith("consistency async: hybrid, for the model's "),
                                HasSubstr("is led by worker:0, and the cluster has chief:0"))));
  std::vector<std::string> asked = dlrm;
  asked.insert(asked.end(), {"--consistency", "async"});
  EXPECT_THAT(Chosen(Launch({"-n", "1", "--ps", "1"}), "dlrm", asked), IsEmpty());
  asked.back() = "auto";
  asked.insert(asked.end(), {"--strategy", "parameter_server"});
  EXPECT_THAT(Chosen(Launch({"-n", "1", "--ps", "1"}), "dlrm", asked),
              ElementsAre("consistency async: strategy parameter_server was asked for"));
  EXPECT_THAT(
      Chosen(Launch({"-n", "1", "--ps", "1"}), "gpt",
             {"--layers", "1", "--heads", "1", "--width", "16", "--length", "16", "--epochs", "1",
              "--steps-per-epoch", "5", "--global-batch", "4", "--threads", "1"}),
      ElementsAre("consistency async: the model has no sparse tables"));
}

// One process is told otherwise than the others: all end at once, and say who differs.
TEST(Examples, ProcessesOfOtherConsistenciesEndWithBothNames) {
  std::vector<std::string> argv = {Bin("dlrm"), "--quiet", "--examples", "4000",
                                   "--test",    "1000",    "--ids",      "500"};
  ProcessCluster cluster;
  const std::string spec = cluster.StartTasks({{"worker", 2}, {"ps", 1}}, argv,
                                              {{"OMP_NUM_THREADS", "1"}}, {"worker:1"});
  argv.insert(argv.end(), {"--consistency", "async"});
  cluster.Start(
      "worker:1", argv,
      {{"OMP_NUM_THREADS", "1"},
       {"TF_CONFIG", R"({"cluster":)" + spec + R"(,"task":{"type":"worker","index":1}})"}});
  for (const auto& [name, code] : cluster.WaitAll(std::chrono::seconds(60))) {
    EXPECT_EQ(code, 2) << name << cluster.Logs();
    EXPECT_THAT(cluster.Stderr(name),
                HasSubstr("worker:1 is of parameter_server, and worker:0 of multi_worker_mirrored"))
        << name;
  }
}

std::vector<std::string> InStep(std::vector<std::string> flags) {
  flags.insert(flags.end(), {"--strategy", "multi_worker_mirrored"});
  return flags;
}

// Criteo's files: the generated clicks as its lines are the generated clicks, and what is no line
// of it is told with file, line and column.
TEST(Examples, DlrmOnFiles) {
  const TempDir dir;
  const data::ClickModel model({.count = 0, .ids = 2000});
  const auto write = [&](const std::string& name, std::int64_t begin, std::int64_t end) {
    std::ofstream file(dir / name);
    for (std::int64_t i = begin; i < end; ++i) {
      file << data::CriteoLine(model.Draw(i));
    }
    return dir / name;
  };
  const std::string first = write("day_0", 0, 7000);
  const std::string second = write("day_1", 7000, 20'000);
  const std::string third = write("day_2", 20'000, 25'000);
  const nlohmann::json generated =
      Metrics("dlrm", {}, {"--examples", "20000", "--test", "5000", "--ids", "2000"});
  const nlohmann::json split = Metrics("dlrm", {}, {"--data", first, second, "--test-data", third});
  EXPECT_EQ(split.value("examples", 0.0), 20'000);
  EXPECT_NEAR(split.value("auc", 0.0), generated.value("auc", 1.0), 0.001);
  EXPECT_FALSE(split.contains("bayes_auc")) << "nobody knows it";
  const nlohmann::json held = Metrics("dlrm", Launch({"-n", "2", "--ps", "1"}),
                                      InStep({"--data", first, second, third, "--test", "5000"}));
  EXPECT_NEAR(held.value("auc", 0.0), split.value("auc", 1.0), 0.002);

  ProcessCluster cluster;
  cluster.Start("all", {Bin("dlrm"), "--quiet", "--data", first}, {});
  EXPECT_EQ(cluster.Wait("all", std::chrono::minutes(1)), 2);
  EXPECT_THAT(cluster.Stderr("all"), HasSubstr("--data has 7000 clicks, of which --test 100000"));
  std::ofstream(first, std::ios::app) << "1\tno line\n";
  cluster.Start("bad", {Bin("dlrm"), "--quiet", "--data", first, "--test-data", third}, {});
  EXPECT_NE(cluster.Wait("bad", std::chrono::minutes(1)), 0);
  EXPECT_THAT(cluster.Stderr("bad"), AllOf(HasSubstr("day_0, line 7001"), HasSubstr("2 columns")));
}

// 200 lines of the real log, of which a data frame has made a CSV file: what they look like, not
// what they teach.
TEST(Examples, DlrmOnLinesOfTheRealLog) {
  const std::string folder = RealData("criteo");
  if (folder.empty()) {
    GTEST_SKIP() << "no sample of the real log [$COHORT_TEST_DATA]";
  }
  const nlohmann::json metrics = Metrics("dlrm", {},
                                         {"--csv", "--data", folder + "/criteo_sample.csv",
                                          "--test", "50", "--global-batch", "25", "--epochs", "2"});
  EXPECT_EQ(metrics.value("examples", 0.0), 300);
  // What it came to when columns were known to be read rightly; it is the same in every run.
  EXPECT_NEAR(metrics.value("auc", 0.0), 0.6167, 0.02);
  EXPECT_NEAR(metrics.value("loss", 9.0), 0.6218, 0.01);
}

// On sentences that the program makes up; the same again is the same to the bit, and two processes
// come to the same but for the rounding of sums.
TEST(Examples, Gpt) {
  const std::vector<std::string> flags = {
      "--layers",  "2",  "--heads",        "2",  "--width",           "32",
      "--length",  "32", "--epochs",       "2",  "--steps-per-epoch", "100",
      "--warm-up", "10", "--global-batch", "16", "--learning-rate",   "0.01",
      "--threads", "1",  "--generate",     "20"};
  const nlohmann::json alone = Metrics("gpt", {}, flags);
  EXPECT_LT(alone.value("loss", 9.0), 1.5);
  EXPECT_GT(alone.value("loss", 0.0), alone.value("best_loss", 9.0));
  const std::vector<double> validation = alone.value("validation_losses", std::vector<double>());
  ASSERT_EQ(validation.size(), 2U);
  EXPECT_LT(validation[1], validation[0]);
  const std::string crc = alone.value("parameters_crc32c", "none");
  EXPECT_EQ(Metrics("gpt", {}, flags).value("parameters_crc32c", "other"), crc);
  const nlohmann::json two = Metrics("gpt", Launch({"-n", "2"}), flags);
  EXPECT_EQ(two.value("replicas", 0), 2);
  EXPECT_NEAR(two.value("loss", 0.0), alone.value("loss", 9.0), 0.05);
}

#if TEST_IMAGES
// Images of three classes, of another colour each, with noise; a fifth are for validation.
void WriteImageFolder(const TempDir& dir, int images_of_a_class) {
  for (int label = 0; label < 3; ++label) {
    for (int i = 0; i < images_of_a_class; ++i) {
      const Philox noise(static_cast<std::uint64_t>(label), "image");
      Tensor image(DType::kUInt8, {20, 24, 3});
      for (std::size_t e = 0; e < image.bytes(); ++e) {
        const bool bright = static_cast<int>(e % 3) == label;
        image.data<std::uint8_t>()[e] = static_cast<std::uint8_t>(
            (bright ? 140 : 40) + noise.Below(60, e, static_cast<std::uint64_t>(i)));
      }
      const std::filesystem::path folder = std::filesystem::path(dir.path()) /
                                           (i % 5 == 0 ? "val" : "train") /
                                           ("class" + std::to_string(label));
      std::filesystem::create_directories(folder);
      OrThrow(WriteFileAtomically(
          FileSystem::Local(), folder / (std::to_string(i) + (i % 2 == 0 ? ".png" : ".jpg")),
          i % 2 == 0 ? data::EncodePng(image) : data::EncodeJpeg(image, 95)));
    }
  }
}

TEST(Examples, ResNetOnAFolderOfImages) {
  const TempDir dir;
  WriteImageFolder(dir, 20);
  const std::vector<std::string> flags = {
      "--data",         dir.path(), "--image-size", "16", "--width",         "8",
      "--global-batch", "16",       "--epochs",     "10", "--learning-rate", "0.5",
      "--min-area",     "0.4",      "--threads",    "1",  "--input-threads", "1"};
  const nlohmann::json alone = Metrics("resnet", {}, flags);
  EXPECT_EQ(alone.value("classes", 0), 3);
  EXPECT_EQ(alone.value("training_images", 0), 48);
  EXPECT_EQ(alone.value("validation_images", 0), 12);
  EXPECT_EQ(alone.value("validation_accuracies", std::vector<double>()).size(), 10U);
  EXPECT_GT(alone.value("accuracy", 0.0), 0.9);
  EXPECT_FALSE(alone.contains("top5_accuracy")) << "of three classes";
  EXPECT_EQ(Metrics("resnet", {}, flags).value("parameters_crc32c", "other"),
            alone.value("parameters_crc32c", "none"));
  const nlohmann::json two = Metrics("resnet", Launch({"-n", "2"}), flags);
  EXPECT_EQ(two.value("replicas", 0), 2);
  EXPECT_GT(two.value("accuracy", 0.0), 0.9);
  const nlohmann::json servers = Metrics("resnet", Launch({"-n", "2", "--ps", "1"}), [&] {
    std::vector<std::string> in_step = flags;
    in_step.insert(in_step.end(), {"--consistency", "sync"});
    return in_step;
  }());
  EXPECT_GT(servers.value("accuracy", 0.0), 0.6);
}

TEST(Examples, ResNetNamesWhatIsWrongWithAFolder) {
  const TempDir dir;
  WriteImageFolder(dir, 5);
  const auto run = [&](const std::string& name, const std::vector<std::string>& flags) {
    ProcessCluster cluster;
    std::vector<std::string> argv = {Bin("resnet"), "--quiet", "--image-size", "16",
                                     "--width",     "8",       "--epochs",     "1"};
    argv.insert(argv.end(), flags.begin(), flags.end());
    cluster.Start(name, argv, {{"OMP_NUM_THREADS", "1"}});
    const int code = cluster.Wait(name, std::chrono::minutes(1)).value_or(-1);
    return std::pair(code, cluster.Stderr(name));
  };
  const auto expect = [&](const std::vector<std::string>& flags, int code,
                          const std::string& text) {
    const auto [got, said] = run("resnet", flags);
    EXPECT_EQ(got, code) << said;
    EXPECT_THAT(said, HasSubstr(text));
  };
  expect({"--data", dir / "missing"}, ExitCode(NotFound("")), dir / "missing/train");
  expect({"--depth", "20"}, 2, "--depth");
  expect({"--data", dir.path(), "--classes", "5"}, 2, "--classes");
  std::filesystem::create_directories(dir / "val/class3");
  expect({"--data", dir.path()}, ExitCode(InvalidArgument("")), dir / "val/class3");
  std::filesystem::remove(dir / "val/class3");
  std::ofstream(dir / "train/class0/9.jpg") << "no image";
  expect({"--data", dir.path()}, ExitCode(DataLoss("")), dir / "train/class0/9.jpg");
  std::filesystem::rename(dir / "train/class0/9.jpg", dir / "train/class0/notes.txt");
  expect({"--data", dir.path()}, ExitCode(InvalidArgument("")), dir / "train/class0/notes.txt");
  expect({"--data", dir.path(), "--skip-others"}, 0, dir / "train/class0/notes.txt");
}
#endif

TEST(Examples, ResNetOnImagesThatItDraws) {
  const nlohmann::json metrics = Metrics(
      "resnet", {},
      {"--image-size", "16", "--width", "8", "--classes", "6", "--examples", "600",
       "--global-batch", "32", "--epochs", "2", "--learning-rate", "0.3", "--threads", "1"});
  EXPECT_EQ(metrics.value("examples", 0.0), 1200);
  EXPECT_GT(metrics.value("accuracy", 0.0), 0.8);
  EXPECT_GE(metrics.value("top5_accuracy", 0.0), metrics.value("accuracy", 1.0));
}

// Workers in step, with tables on servers, are one process but for the rounding of sums.
TEST(Examples, TablesOfWorkersInStep) {
  const std::vector<std::string> servers = Launch({"-n", "2", "--ps", "2"});
  std::vector<std::string> flags = {"--examples", "20000", "--test", "10000", "--ids", "2000"};
  EXPECT_NEAR(Metrics("dlrm", servers, InStep(flags)).value("auc", 0.0),
              Metrics("dlrm", {}, flags).value("auc", 1.0), 0.002);
  flags = {"--people", "2000", "--epochs", "2"};
  EXPECT_NEAR(Metrics("wide_and_deep", servers, InStep(flags)).value("auc", 0.0),
              Metrics("wide_and_deep", {}, flags).value("auc", 1.0), 0.002);
}

TEST(Examples, WideAndDeep) {
  const std::vector<std::string> flags = {"--people", "4000", "--epochs", "3"};
  const double alone = WideAndDeep({}, flags)["auc"];
  EXPECT_GT(alone, 0.72);
  const double remote = WideAndDeep(Launch({"-n", "2", "--ps", "2", "--chief"}), flags)["auc"];
  EXPECT_NEAR(remote, alone, 0.02);
}

TEST(Examples, WideAndDeepOnTheCensus) {
  const std::string data = RealData("adult");
  if (data.empty()) {
    GTEST_SKIP() << "adult is absent (COHORT_TEST_DATA)";
  }
  const nlohmann::json alone = WideAndDeep({}, {"--data", data});
  const nlohmann::json remote =
      WideAndDeep(Launch({"-n", "3", "--ps", "2", "--chief"}), {"--data", data});
  for (const nlohmann::json& metrics : {alone, remote}) {
    EXPECT_GE(metrics["auc"], 0.90);
    EXPECT_GE(metrics["accuracy"], 0.845);
  }
  EXPECT_NEAR(static_cast<double>(remote["auc"]), static_cast<double>(alone["auc"]), 0.003);
}

TEST(Examples, WideAndDeepEndsWithTheNameOfALostServer) {
  ProcessCluster cluster;
  cluster.StartTasks(
      {{"chief", 1}, {"worker", 1}, {"ps", 2}},
      {Bin("wide_and_deep"), "--epochs", "1000", "--people", "1000", "--rejoin-grace", "0"},
      {{"OMP_NUM_THREADS", "1"}});
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (cluster.Stderr("chief:0").find("epoch 1:") == std::string::npos) {
    ASSERT_LT(std::chrono::steady_clock::now(), give_up) << cluster.Logs();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  ASSERT_TRUE(cluster.Signal("ps:1", SIGKILL));
  for (const char* name : {"chief:0", "worker:0", "ps:0"}) {
    EXPECT_EQ(cluster.Wait(name, std::chrono::seconds(30)), 138) << name;
    EXPECT_NE(cluster.Stderr(name).find("ps:1"), std::string::npos) << name;
  }
  EXPECT_EQ(cluster.Wait("ps:1", std::chrono::seconds(5)), 128 + SIGKILL);
}

// Whoever is lost, the others end with its name, where nobody may take a server's place.
TEST(Examples, WorkersInStepEndWithALostServerOrWorker) {
  for (const std::string lost : {"ps:1", "worker:1"}) {
    ProcessCluster cluster;
    cluster.StartTasks({{"worker", 2}, {"ps", 2}},
                       {Bin("wide_and_deep"), "--epochs", "1000", "--people", "1000", "--strategy",
                        "multi_worker_mirrored", "--rejoin-grace", "0"},
                       {{"OMP_NUM_THREADS", "1"}});
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (cluster.Stderr("worker:0").find("epoch 1/") == std::string::npos) {
      ASSERT_LT(std::chrono::steady_clock::now(), give_up) << cluster.Logs();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    ASSERT_TRUE(cluster.Signal(lost, SIGKILL));
    for (const std::string name : {"worker:0", "worker:1", "ps:0", "ps:1"}) {
      if (name == lost) {
        EXPECT_EQ(cluster.Wait(name, std::chrono::seconds(5)), 128 + SIGKILL);
        continue;
      }
      EXPECT_EQ(cluster.Wait(name, std::chrono::seconds(30)), 138) << name << cluster.Logs();
      EXPECT_NE(cluster.Stderr(name).find(lost), std::string::npos) << name;
    }
  }
}

// Of a launcher's tasks, by what is in its TF_CONFIG; 0: it is not there.
pid_t PidOfTask(pid_t launcher, const std::string& type, int index) {
  const std::string task =
      R"("task":{"type":")" + type + R"(","index":)" + std::to_string(index) + "}";
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::ifstream stat(entry.path() / "stat");
    pid_t pid = 0;
    std::string name;
    char state = 0;
    pid_t parent = 0;
    if (!(stat >> pid >> name >> state >> parent) || parent != launcher) {
      continue;
    }
    std::ifstream environment(entry.path() / "environ");
    std::stringstream text;
    text << environment.rdbuf();
    if (text.str().find(task) != std::string::npos) {
      return pid;
    }
  }
  return 0;
}

// Whoever is lost, the job goes on from its last save, and comes to the same bits.
TEST(Examples, WorkersInStepAreStartedAgainAndEndAsIfNobodyHadBeenLost) {
  const std::vector<std::string> flags = {"--people", "4000", "--epochs", "30"};
  const std::vector<std::string> servers = Launch({"-n", "2", "--ps", "2"});
  const nlohmann::json undisturbed = Metrics("wide_and_deep", servers, InStep(flags));
  for (const auto& [type, index] : {std::pair("ps", 1), std::pair("worker", 0)}) {
    const TempDir dir;
    std::vector<std::string> argv =
        Launch({"-n", "2", "--ps", "2", "--restart-job", "2", "--grace", "5"});
    argv.push_back(Bin("wide_and_deep"));
    const auto in_step = InStep(flags);
    argv.insert(argv.end(), in_step.begin(), in_step.end());
    argv.insert(argv.end(), {"--checkpoint-dir", dir / "saves", "--metrics-json", dir / "json"});
    ProcessCluster cluster;
    cluster.Start("launch", argv, {{"OMP_NUM_THREADS", "1"}});
    ASSERT_TRUE(cluster.WaitForOutput("launch", "epoch 2/", std::chrono::minutes(1)))
        << cluster.Logs();
    const pid_t lost = PidOfTask(cluster.pid("launch"), type, index);
    ASSERT_GT(lost, 0) << type;
    ASSERT_EQ(::kill(lost, SIGKILL), 0);
    EXPECT_EQ(cluster.Wait("launch", std::chrono::minutes(2)), 0) << cluster.Logs();
    EXPECT_NE(cluster.Stderr("launch").find("the job is started again, 1 of 2 times"),
              std::string::npos);
    EXPECT_EQ(cluster.Stderr("launch").find("2 of 2 times"), std::string::npos) << cluster.Logs();
    std::ifstream file(dir / "json");
    const nlohmann::json metrics = nlohmann::json::parse(file);
    EXPECT_EQ(metrics["parameters_crc32c"], undisturbed["parameters_crc32c"]) << type;
    EXPECT_EQ(metrics["auc"], undisturbed["auc"]) << type;
  }
}

// A server, or a worker, alone: the others go on as they are.
TEST(Examples, WorkersInStepGoBackWhenOneIsStartedAgainAndEndAsIfItHadNotBeenLost) {
  const std::vector<std::string> flags = {"--people", "8000", "--epochs", "20"};
  const nlohmann::json undisturbed =
      Metrics("wide_and_deep", Launch({"-n", "2", "--ps", "2"}), InStep(flags));
  for (const char* const type : {"ps", "worker"}) {
    const TempDir dir;
    std::vector<std::string> argv =
        Launch({"-n", "2", "--ps", "2", "--restart", "5", "--restart-workers"});
    argv.push_back(Bin("wide_and_deep"));
    const auto in_step = InStep(flags);
    argv.insert(argv.end(), in_step.begin(), in_step.end());
    argv.insert(argv.end(), {"--checkpoint-dir", dir / "saves", "--metrics-json", dir / "json"});
    ProcessCluster cluster;
    cluster.Start("launch", argv, {{"OMP_NUM_THREADS", "1"}});
    ASSERT_TRUE(cluster.WaitForOutput("launch", "epoch 2/", std::chrono::minutes(1)))
        << cluster.Logs();
    const pid_t lost = PidOfTask(cluster.pid("launch"), type, 1);
    ASSERT_GT(lost, 0) << type;
    ASSERT_EQ(::kill(lost, SIGKILL), 0);
    ASSERT_TRUE(cluster.WaitForOutput("launch", "rolled back ", std::chrono::minutes(1)))
        << cluster.Logs();
    EXPECT_EQ(cluster.Wait("launch", std::chrono::minutes(2)), 0) << cluster.Logs();
    std::ifstream file(dir / "json");
    const nlohmann::json metrics = nlohmann::json::parse(file);
    EXPECT_EQ(metrics["parameters_crc32c"], undisturbed["parameters_crc32c"]) << type;
    EXPECT_EQ(metrics["auc"], undisturbed["auc"]) << type;
  }
}

TEST(Examples, Coordinator) {
  std::vector<std::string> argv = Launch({"-n", "2", "--ps", "1", "--chief"});
  argv.push_back(Bin("coordinator"));
  const std::string output = Output(argv);
  EXPECT_GT(LastNumber(output, R"(piece 0: loss ([0-9.]+))"), 1.5);
  EXPECT_GT(LastNumber(output, R"(piece 19: loss ([0-9.]+))"), 0);
  EXPECT_LT(LastNumber(output, R"(piece 19: loss ([0-9.]+))"), 1.0);
}

// So many pieces that the job is not over when something is lost in it.
std::vector<std::string> LongCoordination() { return {Bin("coordinator"), "", "200"}; }

TEST(Examples, CoordinatorOutlivesAWorker) {
  ProcessCluster cluster;
  cluster.StartTasks({{"chief", 1}, {"worker", 2}, {"ps", 1}}, LongCoordination(),
                     {{"OMP_NUM_THREADS", "1"}});
  ASSERT_TRUE(cluster.WaitForOutput("worker:1", "piece ", std::chrono::minutes(1)));
  ASSERT_TRUE(cluster.Signal("worker:1", SIGKILL));
  for (const char* name : {"chief:0", "worker:0", "ps:0"}) {
    EXPECT_EQ(cluster.Wait(name, std::chrono::minutes(1)), 0) << name;
  }
  EXPECT_EQ(cluster.Wait("worker:1", std::chrono::seconds(5)), 128 + SIGKILL);
  EXPECT_NE(cluster.Stderr("chief:0").find("goes on without worker:1"), std::string::npos);
  EXPECT_LT(LastNumber(cluster.Stdout("chief:0"), R"(piece 199: loss ([0-9.]+))"), 1.0);
  EXPECT_GT(LastNumber(cluster.Stdout("chief:0"), R"(piece 199: loss ([0-9.]+))"), 0);
}

TEST(Examples, CoordinatorWaitsForAWorkerToComeBack) {
  ProcessCluster cluster;
  const std::string spec = cluster.StartTasks({{"chief", 1}, {"worker", 1}, {"ps", 1}},
                                              LongCoordination(), {{"OMP_NUM_THREADS", "1"}});
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "piece ", std::chrono::minutes(1)));
  ASSERT_TRUE(cluster.Signal("worker:0", SIGKILL));
  ASSERT_TRUE(
      cluster.WaitForOutput("chief:0", "goes on without worker:0", std::chrono::minutes(1)));
  cluster.Start(
      "again", LongCoordination(),
      {{"OMP_NUM_THREADS", "1"},
       {"TF_CONFIG", R"({"cluster":)" + spec + R"(,"task":{"type":"worker","index":0}})"}});
  for (const char* name : {"chief:0", "again", "ps:0"}) {
    EXPECT_EQ(cluster.Wait(name, std::chrono::minutes(1)), 0) << name;
  }
  EXPECT_LT(LastNumber(cluster.Stdout("chief:0"), R"(piece 199: loss ([0-9.]+))"), 1.0);
  EXPECT_GT(LastNumber(cluster.Stdout("chief:0"), R"(piece 199: loss ([0-9.]+))"), 0);
}

TEST(Examples, CoordinatorGoesBackWhereAServerIsLost) {
  ProcessCluster cluster;
  const std::string spec = cluster.StartTasks({{"chief", 1}, {"worker", 2}, {"ps", 1}},
                                              LongCoordination(), {{"OMP_NUM_THREADS", "1"}});
  ASSERT_TRUE(cluster.WaitForOutput("worker:1", "piece ", std::chrono::minutes(1)));
  ASSERT_TRUE(cluster.Signal("ps:0", SIGKILL));
  EXPECT_EQ(cluster.Wait("ps:0", std::chrono::seconds(5)), 128 + SIGKILL);
  cluster.Start("again", LongCoordination(),
                {{"OMP_NUM_THREADS", "1"},
                 {"TF_CONFIG", R"({"cluster":)" + spec + R"(,"task":{"type":"ps","index":0}})"}});
  for (const char* name : {"chief:0", "worker:0", "worker:1", "again"}) {
    EXPECT_EQ(cluster.Wait(name, std::chrono::minutes(1)), 0) << name;
  }
  EXPECT_NE(cluster.Stderr("chief:0").find("rolled back"), std::string::npos);
  EXPECT_LT(LastNumber(cluster.Stdout("chief:0"), R"(piece 199: loss ([0-9.]+))"), 1.0);
}

// A job that is started again goes on from its save, here of all that there is to do.
TEST(Examples, CoordinatorGoesOnFromItsSave) {
  const TempDir folder;
  std::vector<std::string> argv = Launch({"-n", "2", "--ps", "1", "--chief"});
  argv.insert(argv.end(), {Bin("coordinator"), folder.path()});
  EXPECT_GT(LastNumber(Output(argv), R"(piece 0: loss ([0-9.]+))"), 1.5);
  const std::string again = Output(argv);
  EXPECT_EQ(again.find("piece 14: "), std::string::npos) << again;
  EXPECT_NE(again.find("20 of 20 pieces were done before"), std::string::npos) << again;
}

TEST(Examples, LibtorchGradients) {
  if (!std::filesystem::exists(Bin("libtorch_gradients"))) {
    GTEST_SKIP() << "libtorch_gradients is built where libtorch-dev is installed";
  }
  EXPECT_LT(LastNumber(Output({Bin("libtorch_gradients")}), R"(epoch 3: loss ([0-9.]+))"), 0.7);
  const std::string both = Output(InTwoProcesses("libtorch_gradients"));
  const std::regex crc(R"(crc32c ([0-9a-f]{8}))");
  std::vector<std::string> seen;
  for (std::sregex_iterator it(both.begin(), both.end(), crc), end; it != end; ++it) {
    seen.push_back((*it)[1].str());
  }
  ASSERT_EQ(seen.size(), 2U) << both;
  EXPECT_EQ(seen[0], seen[1]) << "both processes end with the same parameters";
}

}  // namespace
}  // namespace cohort::testing
