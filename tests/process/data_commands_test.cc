// The program's `data` and `bench input` commands, as a user runs them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include <cohort/core/file_system.h>
#include <cohort/data/arrays.h>
#include <cohort/data/idx.h>
#include <cohort/data/image.h>
#include <cohort/data/webdataset.h>
#include <cohort/io/safetensors.h>

#include "testing/process_cluster.h"

namespace cohort {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Outcome {
  int code = -1;
  std::string out;
};

Outcome RunCohort(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), COHORT_BIN_DIR "/cohort");
  testing::ProcessCluster processes;
  processes.Start("cohort", arguments);
  const auto code = processes.Wait("cohort", std::chrono::seconds(60));
  return {code.value_or(-1), processes.Stdout("cohort") + processes.Stderr("cohort")};
}

TEST(DataCommands, DigitsAreWrittenAsMnistIsAndStatReadsThem) {
  const testing::TempDir folder;
  const std::string out = folder / "new/digits";
  const Outcome written =
      RunCohort({"data", "digits", "--out", out, "--train", "50", "--test", "20", "--seed", "4"});
  EXPECT_EQ(written.code, 0) << written.out;
  const data::ImageClassification digits = OrThrow(data::LoadImageClassification(out));
  EXPECT_EQ(digits.train.size(), 50);
  EXPECT_EQ(digits.test.size(), 20);

  const Outcome stat = RunCohort({"data", "stat", out});
  EXPECT_EQ(stat.code, 0);
  EXPECT_THAT(stat.out, AllOf(HasSubstr("50 train, 20 test"), HasSubstr("float32[28,28,1]")));
}

TEST(DataCommands, MistakesEndWithTheirExitCodeAndAMessage) {
  const testing::TempDir folder;
  EXPECT_EQ(RunCohort({"data", "digits"}).code, 2);
  EXPECT_EQ(RunCohort({"data", "digits", "--out", folder.path(), "--train", "0"}).code, 2);
  EXPECT_EQ(RunCohort({"data", "digits", "--out", "/proc/nowhere"}).code, 2);
  const Outcome missing = RunCohort({"data", "stat", folder / "nothing"});
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.out, HasSubstr("nothing"));

  std::ofstream(folder / "short.csv") << "a,b\n1,2\n3\n";
  const Outcome row = RunCohort({"data", "stat", folder / "short.csv"});
  EXPECT_EQ(row.code, 2);
  EXPECT_THAT(row.out, HasSubstr("short.csv: line 3: 1 fields, the header has 2"));

  std::ofstream(folder / "cut") << std::string("\0\0\x08\x03\0\0\0\x02\0\0\0\x02\0\0\0\x02xx", 18);
  const Outcome cut = RunCohort({"data", "stat", folder / "cut"});
  EXPECT_EQ(cut.code, 2);
  EXPECT_THAT(cut.out, HasSubstr("data at byte 16: 8 bytes expected, 2 there"));
}

TEST(DataCommands, StatKnowsEveryFormatByItsContent) {
  const testing::TempDir folder;
  FileSystem& files = FileSystem::Local();
  const auto stat = [&folder](const std::string& name) {
    const Outcome outcome = RunCohort({"data", "stat", folder / name});
    EXPECT_EQ(outcome.code, 0) << outcome.out;
    return outcome.out;
  };
  const Tensor array(DType::kFloat32, {5, 2, 3});
  OrThrow(data::WriteNpy(files, folder / "a", array));
  EXPECT_THAT(stat("a"),
              AllOf(HasSubstr(".npy"), HasSubstr("records   5"), HasSubstr("float32[2,3]")));

  const io::SafetensorsEntry entry = {.name = "weight", .dtype = DType::kInt64, .shape = {4}};
  OrThrow(WriteFileAtomically(files, folder / "b",
                              io::EncodeSafetensorsHeader({&entry, 1}) + std::string(32, 'x')));
  EXPECT_THAT(stat("b"),
              AllOf(HasSubstr("safetensors"), HasSubstr("weight"), HasSubstr("int64[4]")));

  const std::string png = data::EncodePng(Tensor(DType::kUInt8, {7, 9, 1}));
  OrThrow(WriteFileAtomically(files, folder / "c", png));
  EXPECT_THAT(stat("c"), AllOf(HasSubstr("PNG"), HasSubstr("uint8[7,9,3]")));

  for (const std::string name : {"d.tar", "d.tar.gz"}) {
    auto writer = OrThrow(data::TarWriter::Create(files, folder / name));
    OrThrow(writer->AddSample("x/1", {{"cls", "1"}, {"png", png}}));
    OrThrow(writer->AddSample("x/2", {{"cls", "12"}}));
    OrThrow(writer->Add("README", "no sample"));
    OrThrow(writer->Close());
    EXPECT_THAT(stat(name), AllOf(HasSubstr("WebDataset (tar)"), HasSubstr("records   2\n"),
                                  HasSubstr("1 members belong to no sample"),
                                  HasSubstr("in 2 of 2 samples, bytes: 1 to 2"),
                                  HasSubstr("in 1 of 2 samples")));
  }

  std::ofstream(folder / "e") << "to be\nor not to be";
  EXPECT_THAT(stat("e"), AllOf(HasSubstr("2 lines"), HasSubstr("at most 12 bytes")));

  const auto json = [&folder](const std::string& name) {
    const Outcome outcome = RunCohort({"data", "stat", folder / name, "--json"});
    EXPECT_EQ(outcome.code, 0) << outcome.out;
    return nlohmann::json::parse(outcome.out);
  };
  const nlohmann::json npy = json("a");
  EXPECT_EQ(npy.at("format"), ".npy");
  EXPECT_EQ(npy.at("records"), 5);
  EXPECT_EQ(npy.at("features")[0].at("shape"), nlohmann::json({2, 3}));
  EXPECT_EQ(json("b").at("features")[0].at("name"), "weight");
  const nlohmann::json tar = json("d.tar.gz");
  EXPECT_EQ(tar.at("records"), 2);
  EXPECT_EQ(tar.at("features")[0].at("most_bytes"), 2);
  std::ofstream(folder / "h") << "x,name\n1,a\n?,b\n";
  const nlohmann::json csv = json("h");
  EXPECT_EQ(csv.at("records"), 2);
  EXPECT_EQ(csv.at("features")[0],
            nlohmann::json({{"name", "x"}, {"kind", "integer"}, {"missing", 1}}));
  EXPECT_EQ(csv.at("features")[1].at("kind"), "text");

  std::ofstream(folder / "f") << std::string("\x01\0\x02", 3);
  const Outcome unknown = RunCohort({"data", "stat", folder / "f"});
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.out, HasSubstr("neither IDX, TFRecord, .npy"));
  OrThrow(WriteFileAtomically(files, folder / "g", png.substr(0, 50)));
  const Outcome cut = RunCohort({"data", "stat", folder / "g"});
  EXPECT_EQ(cut.code, 2);
  EXPECT_THAT(cut.out, AllOf(HasSubstr("/g: PNG before byte"), HasSubstr("cut off")));
}

TEST(BenchInput, ReportsEveryCaseBesideMemcpy) {
  const Outcome bench =
      RunCohort({"bench", "input", "--examples", "200", "--seconds", "0.01", "--json"});
  ASSERT_EQ(bench.code, 0) << bench.out;
  const nlohmann::json report = nlohmann::json::parse(bench.out);
  EXPECT_GT(report.at("memcpy_examples_per_second"), 0);
  EXPECT_EQ(report.at("cases").size(), 5U);
  for (const auto& entry : report.at("cases")) {
    EXPECT_GT(entry.at("examples_per_second"), 0) << entry;
  }
}

TEST(BenchInput, PutsTheOrderBesideThreadsThatNeverWait) {
  const Outcome bench = RunCohort({"bench", "input", "--uneven", "0.1", "5", "--batch", "4",
                                   "--threads", "2", "--seconds", "0.01", "--json"});
  ASSERT_EQ(bench.code, 0) << bench.out;
  const nlohmann::json report = nlohmann::json::parse(bench.out);
  ASSERT_EQ(report.at("cases").size(), 7U);
  EXPECT_EQ(report.at("cases")[0].at("ahead"), 2);
  EXPECT_EQ(report.at("cases")[6].at("ahead"), 128);
  for (const auto& entry : report.at("cases")) {
    EXPECT_GT(entry.at("examples_per_second"), 0) << entry;
    EXPECT_GT(entry.at("of_perfect_sharing"), 0) << entry;
    EXPECT_LE(entry.at("of_perfect_sharing"), 1) << entry;
  }
  const Outcome part = RunCohort({"bench", "input", "--uneven", "2", "5"});
  EXPECT_EQ(part.code, 2);
  EXPECT_THAT(part.out, HasSubstr("--uneven: a part of 2 of the examples [at most 1]"));
}

}  // namespace
}  // namespace cohort
