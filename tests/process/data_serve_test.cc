// `cohort data serve` as a user runs it: a dispatcher and input workers, one of which is killed, or
// stopped, while trainers read.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>

#include <cohort/core/file_system.h>
#include <cohort/data/arrays.h>
#include <cohort/data/image.h>
#include <cohort/data/tf_example.h>
#include <cohort/data/webdataset.h>
#include <cohort/data_service/data_service.h>
#include <cohort/io/record_file.h>

#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::int64_t kExamples = 2000;

class DataServe : public ::testing::Test {
 protected:
  DataServe() {
    Tensor numbers(DType::kInt64, {kExamples, 8});  // example i begins with i
    for (std::int64_t i = 0; i < kExamples; ++i) {
      numbers.data<std::int64_t>()[static_cast<std::size_t>(i) * 8] = i;
    }
    OrThrow(WriteNpy(FileSystem::Local(), file_, numbers));
  }

  // Starts `cohort data serve` and returns where it listens.
  std::string Serve(const std::string& name, std::vector<std::string> arguments,
                    const std::string& listen = "127.0.0.1:0") {
    arguments.insert(arguments.begin(),
                     {COHORT_BIN_DIR "/cohort", "data", "serve", "--json", "--listen", listen});
    processes_.Start(name, arguments);
    EXPECT_TRUE(processes_.WaitForOutput(name, "\"port\"", 60s)) << processes_.Logs();
    const auto line = nlohmann::json::parse(processes_.Stdout(name));
    return "127.0.0.1:" + std::to_string(line.at("port").get<int>());
  }
  std::optional<int> Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), COHORT_BIN_DIR "/cohort");
    const std::string name = "run " + std::to_string(processes_.names().size());
    processes_.Start(name, arguments);
    return processes_.Wait(name, 60s);
  }

  static bool Collect(BatchIterator& batches, std::vector<std::int64_t>& numbers, int most) {
    for (int b = 0; b < most; ++b) {
      const auto batch = OrThrow(batches.Next());
      if (!batch.has_value()) {
        return false;
      }
      const auto values = (*batch)["values"].data<std::int64_t>();
      for (std::int64_t row = 0; row < batch->size; ++row) {
        numbers.push_back(values[static_cast<std::size_t>(row) * 8]);
      }
    }
    return true;
  }

  // A dispatcher, two input workers and two trainers; `harm` befalls the first worker in the middle
  // of the epoch.
  void ExpectEveryExampleOnce(const std::function<void()>& harm) {
    const std::string dispatcher = Serve("dispatcher", {});
    Serve("first", {"--join", dispatcher, file_});
    Serve("second", {"--join", dispatcher, file_});
    const Dataset data =
        OrThrow(FromService(dispatcher, "data", {.read_timeout = 500ms, .piece_bytes = 256}))
            .Shuffle(1)
            .Batch(20)
            .Prefetch(8, 2);
    std::vector<std::int64_t> numbers;
    std::vector<std::unique_ptr<BatchIterator>> trainers;
    for (int w = 0; w < 2; ++w) {
      trainers.push_back(OrThrow(data.Iterate({.num_workers = 2, .worker = w})));
      EXPECT_TRUE(Collect(*trainers.back(), numbers, 20 + 10 * w));
    }
    harm();
    for (const auto& trainer : trainers) {
      EXPECT_FALSE(Collect(*trainer, numbers, 1000));
    }
    std::vector<std::int64_t> everything(kExamples);
    std::iota(everything.begin(), everything.end(), 0);
    EXPECT_NE(numbers, everything);
    std::sort(numbers.begin(), numbers.end());
    EXPECT_EQ(numbers, everything);
  }
  void ExpectEndsInOrder(const std::string& name) {
    EXPECT_TRUE(processes_.Signal(name, SIGTERM));
    EXPECT_EQ(processes_.Wait(name, 60s), 0) << processes_.Stderr(name);
  }

  testing::TempDir folder_;
  const std::string file_ = folder_ / "numbers.npy";
  testing::ProcessCluster processes_;
};

TEST_F(DataServe, EveryExampleReachesATrainerOnceWhenAnInputWorkerIsKilled) {
  ExpectEveryExampleOnce([&] {
    EXPECT_TRUE(processes_.Signal("first", SIGKILL));
    EXPECT_EQ(processes_.Wait("first", 60s), 128 + SIGKILL);
  });
  ExpectEndsInOrder("second");
  ExpectEndsInOrder("dispatcher");
  EXPECT_THAT(processes_.Stderr("second"), HasSubstr("served "));
}

TEST_F(DataServe, EveryExampleReachesATrainerOnceWhenAnInputWorkerIsStopped) {
  ExpectEveryExampleOnce([&] { EXPECT_TRUE(processes_.Signal("first", SIGSTOP)); });
  EXPECT_TRUE(processes_.Signal("first", SIGCONT));
  ExpectEndsInOrder("first");
  ExpectEndsInOrder("second");
  ExpectEndsInOrder("dispatcher");
}

TEST_F(DataServe, ADispatcherThatIsStartedAnewKnowsItsWorkers) {
  const std::string dispatcher = Serve("dispatcher", {});
  Serve("worker", {"--join", dispatcher, file_});
  const Dataset data = OrThrow(FromService(dispatcher, "data", {.piece_bytes = 256})).Batch(20);
  const auto trainer = OrThrow(data.Iterate());
  std::vector<std::int64_t> numbers;
  EXPECT_TRUE(Collect(*trainer, numbers, 10));
  EXPECT_TRUE(processes_.Signal("dispatcher", SIGKILL));
  EXPECT_EQ(processes_.Wait("dispatcher", 60s), 128 + SIGKILL);
  EXPECT_TRUE(Collect(*trainer, numbers, 80)) << "it knows the worker";
  Serve("dispatcher again", {}, dispatcher);
  const Dataset other = OrThrow(FromService(dispatcher, "data")).Batch(20);
  EXPECT_EQ(other.batches_per_epoch(), kExamples / 20);
  EXPECT_FALSE(Collect(*trainer, numbers, 1000));
  EXPECT_FALSE(Collect(*OrThrow(other.Iterate()), numbers, 1000));
  ASSERT_EQ(numbers.size(), 2 * kExamples);
  for (std::int64_t i = 0; i < kExamples; ++i) {
    EXPECT_EQ(numbers[static_cast<std::size_t>(i)], i);
  }
  ExpectEndsInOrder("worker");
  ExpectEndsInOrder("dispatcher again");
}

std::string Jpeg(int number) {
  Tensor image(DType::kUInt8, {8, 8, 3});
  std::fill_n(image.raw(), image.bytes(), static_cast<std::byte>(number * 10));
  return EncodeJpeg(image);
}

TEST_F(DataServe, ImagesOfArchivesAreDecoded) {
  const std::string path = folder_ / "images.tar";
  const auto tar = OrThrow(TarWriter::Create(FileSystem::Local(), path));
  for (int i = 0; i < 5; ++i) {
    OrThrow(tar->AddSample(std::to_string(i),
                           {{"jpg", Jpeg(i)}, {"cls", std::to_string(i)}, {"json", "{}"}}));
  }
  OrThrow(tar->Close());
  const std::string address = Serve("tar", {"--image", "4x6", "--name", "images", path});
  const Dataset data = OrThrow(FromService(
      address, "images",
      {.features = {{"image", DType::kFloat32, {4, 6, 3}}, {"label", DType::kInt64, {}}}}));
  const auto batch = OrThrow(OrThrow(data.Skip(3).Batch(2).Iterate())->Next());
  EXPECT_EQ((*batch)["label"].data<std::int64_t>()[1], 4);
  EXPECT_NEAR((*batch)["image"].data<float>()[0], 30 / 255.0, 0.02);
  EXPECT_THAT(processes_.Stderr("tar"), HasSubstr("left out: 'json'"));
  ExpectEndsInOrder("tar");
  EXPECT_EQ(Run({"data", "serve", path}), 2);
  EXPECT_EQ(Run({"data", "serve", "--image", "224", path}), 2);
  EXPECT_THAT(processes_.Logs(), AllOf(HasSubstr("it holds images [--image"),
                                       HasSubstr("HEIGHTxWIDTH, as in 224x224, not '224'")));
}

TEST_F(DataServe, FeaturesOfExamplesAreTold) {
  const std::string path = folder_ / "examples";
  const auto writer = OrThrow(io::RecordWriter::Create(FileSystem::Local(), path));
  for (int i = 0; i < 5; ++i) {
    const std::string image = Jpeg(i);
    TfFeatures features;
    features["photo"] = {.kind = TfFeature::Kind::kBytes, .bytes = {image}};
    features["id"] = {.kind = TfFeature::Kind::kInt64, .ints = {i}};
    features["words"] = {.kind = TfFeature::Kind::kFloat,
                         .floats = std::vector<float>(static_cast<std::size_t>(i), 0.5F)};
    OrThrow(writer->Write(EncodeTfExample(features)));
  }
  OrThrow(writer->Close());
  const std::string address = Serve("examples", {"--image", "8x8", "--uint8", path});
  const Dataset data = OrThrow(FromService(
      address, "data",
      {.features = {{"id", DType::kInt64, {}}, {"photo/pixels", DType::kUInt8, {8, 8, 3}}},
       .ragged = {{"words", DType::kFloat32}}}));
  const auto batch = OrThrow(OrThrow(data.Batch(5).Iterate())->Next());
  EXPECT_EQ((*batch)["id"].data<std::int64_t>()[4], 4);
  EXPECT_EQ(batch->lists("words").values.elements(), 0 + 1 + 2 + 3 + 4);
  EXPECT_NEAR((*batch)["photo/pixels"].data<std::uint8_t>()[4 * 192], 40, 3);
  ExpectEndsInOrder("examples");
}

TEST_F(DataServe, ItsCostIsMeasured) {
  ASSERT_EQ(Run({"bench", "service", "--json", "--images", "10", "--batch", "4", "--threads", "1",
                 "--rounds", "1"}),
            0)
      << processes_.Logs();
  const auto report = nlohmann::json::parse(processes_.Stdout(processes_.names().back()));
  ASSERT_EQ(report.at("cases").size(), 2U);
  for (const auto& item : report["cases"]) {
    EXPECT_EQ(item.at("batches"), 3);
    EXPECT_GE(item.at("bytes").get<std::int64_t>(), 10 * 224 * 224 * 3);
    EXPECT_GT(item.at("local_us_per_batch").get<double>(), 0);
    EXPECT_GT(item.at("service_mb_per_second").get<double>(), 0);
  }
}

TEST_F(DataServe, SaysWhatIsWrong) {
  EXPECT_EQ(Run({"data", "serve", "--join", "127.0.0.1:1"}), 2);
  EXPECT_EQ(Run({"data", "serve", "--join", "nowhere", file_}), 2);
  EXPECT_EQ(Run({"data", "serve", folder_ / "absent.npy"}), 2);
  EXPECT_EQ(Run({"data", "serve", "--join-timeout", "0.1", "--join", "127.0.0.1:1", file_}), 138);
  EXPECT_THAT(processes_.Logs(),
              AllOf(HasSubstr("--join comes with files"), HasSubstr("\"nowhere\" is no address"),
                    HasSubstr("absent.npy"), HasSubstr("127.0.0.1:1: connection refused")));
}

TEST_F(DataServe, ASignalEndsItWhileItWaitsForTheDispatcher) {
  processes_.Start("waits", {COHORT_BIN_DIR "/cohort", "data", "serve", "--listen", "127.0.0.1:0",
                             "--join", "127.0.0.1:1", file_});
  EXPECT_TRUE(processes_.Signal("waits", SIGTERM));
  EXPECT_EQ(processes_.Wait("waits", 60s), 128 + SIGTERM);
}

TEST_F(DataServe, OtherDataUnderTheSameNameIsRefused) {
  const std::string dispatcher = Serve("dispatcher", {file_});
  const std::string other = folder_ / "other.npy";
  OrThrow(WriteNpy(FileSystem::Local(), other, Tensor(DType::kInt64, {kExamples, 9})));
  EXPECT_EQ(Run({"data", "serve", "--join", dispatcher, "--listen", "127.0.0.1:0", other}), 2);
  EXPECT_THAT(processes_.Logs(), HasSubstr("feature 'values' is int64[9], int64[8] is expected"));
  ExpectEndsInOrder("dispatcher");
}

}  // namespace
}  // namespace cohort::data
