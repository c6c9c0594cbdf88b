// `cohort data verify|cat|convert|index|shard`, as a user runs them: what one tool writes, another
// reads back.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include <cohort/core/file_system.h>
#include <cohort/data/arrays.h>
#include <cohort/data/features.h>
#include <cohort/data/image.h>
#include <cohort/data/tf_example.h>
#include <cohort/data/webdataset.h>
#include <cohort/io/record_file.h>

#include "testing/process_cluster.h"
#include "unit/data/s3_server.h"

namespace cohort {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Json = nlohmann::json;

class DataTools : public ::testing::Test {
 protected:
  // stdout of `cohort data ARGUMENTS`, which must end with `code`; stderr goes to error_.
  std::string Run(std::vector<std::string> arguments, int code = 0) {
    arguments.insert(arguments.begin(), {COHORT_BIN_DIR "/cohort", "data"});
    testing::ProcessCluster processes;
    processes.Start("cohort", arguments, environment_);
    EXPECT_EQ(processes.Wait("cohort", std::chrono::seconds(60)).value_or(-1), code)
        << processes.Stdout("cohort") << processes.Stderr("cohort");
    error_ = processes.Stderr("cohort");
    return processes.Stdout("cohort");
  }
  Json RunJson(std::vector<std::string> arguments, int code = 0) {
    arguments.emplace_back("--json");
    return Json::parse(Run(std::move(arguments), code));
  }
  std::vector<Json> Cat(const std::vector<std::string>& arguments) {
    std::vector<std::string> all = {"cat"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::istringstream lines(Run(all));
    std::vector<Json> rows;
    for (std::string line; std::getline(lines, line);) {
      rows.push_back(Json::parse(line));
    }
    return rows;
  }
  std::string Write(const std::string& name, const std::string& content) {
    OrThrow(WriteFileAtomically(files_, folder_ / name, content));
    return folder_ / name;
  }
  // Example {"id": [i], "text": ["t<i>"], "x": i values} for each of [0, count).
  std::string WriteExamples(const std::string& name, int count,
                            io::Compression compression = io::Compression::kNone) {
    auto writer = OrThrow(io::RecordWriter::Create(files_, folder_ / name, compression));
    for (int i = 0; i < count; ++i) {
      const std::string text = "t" + std::to_string(i);
      data::TfFeatures features;
      features["id"] = {.kind = data::TfFeature::Kind::kInt64, .ints = {i}};
      features["text"] = {.kind = data::TfFeature::Kind::kBytes, .bytes = {text}};
      features["x"] = {.kind = data::TfFeature::Kind::kFloat,
                       .floats = std::vector<float>(static_cast<std::size_t>(i), 0.1F)};
      OrThrow(writer->Write(data::EncodeTfExample(features)));
    }
    OrThrow(writer->Close());
    return folder_ / name;
  }

  FileSystem& files_ = FileSystem::Local();
  testing::TempDir folder_;
  std::string error_;
  testing::Variables environment_;
};

TEST_F(DataTools, VerifyNamesEveryBadRecordAndGoesOn) {
  const std::string good = WriteExamples("good", 5);
  EXPECT_THAT(Run({"verify", good}), HasSubstr("sound, TFRecord, 5 records"));

  std::string bytes = OrThrow(ReadFile(files_, good));
  const auto reader = OrThrow(io::RecordReader::Open(files_, good));
  std::vector<std::uint64_t> offsets;
  for (int i = 0; i < 5; ++i) {
    offsets.push_back(reader->offset());
    ASSERT_TRUE(OrThrow(reader->Next()).has_value());
  }
  bytes[offsets[1] + 14] ^= 1;  // the bytes of record 1
  bytes[offsets[4] + 2] ^= 1;   // the length of record 4
  const Json report = RunJson({"verify", good, Write("bad", bytes)}, 2);
  EXPECT_EQ(report.at("records"), 5 + 3);
  EXPECT_EQ(report.at("bad"), 2);
  const Json& errors = report.at("files")[1].at("errors");
  EXPECT_THAT(std::string(errors.at(0)),
              AllOf(HasSubstr("record 1 at byte " + std::to_string(offsets[1])),
                    HasSubstr("checksum of its bytes")));
  EXPECT_THAT(std::string(errors.at(1)),
              AllOf(HasSubstr("record 4 at byte " + std::to_string(offsets[4])),
                    HasSubstr("checksum of its length")));

  // Sound records that are no Examples.
  auto writer = OrThrow(io::RecordWriter::Create(files_, folder_ / "raw"));
  OrThrow(writer->Write("\xff\xff\xff"));
  OrThrow(writer->Close());
  Run({"verify", folder_ / "raw"});
  EXPECT_THAT(Run({"verify", "--examples", folder_ / "raw"}, 2),
              HasSubstr("record 0 at byte 0: not a tf.train.Example"));
}

TEST_F(DataTools, VerifyKnowsEveryFormat) {
  const std::string png = data::EncodePng(Tensor(DType::kUInt8, {7, 9, 1}));
  for (const bool damaged : {false, true}) {
    auto tar = OrThrow(data::TarWriter::Create(files_, folder_ / "a.tar"));
    std::string image = png;
    image[image.size() / 2] ^= static_cast<char>(damaged ? 1 : 0);
    OrThrow(tar->AddSample("1", {{"cls", "1"}, {"png", image}}));
    OrThrow(tar->Close());
    const std::string said = Run({"verify", folder_ / "a.tar"}, damaged ? 2 : 0);
    EXPECT_THAT(said, damaged ? HasSubstr("member '1.png' at byte ") : HasSubstr("2 records"));
  }
  OrThrow(data::WriteNpy(files_, folder_ / "a.npy", Tensor(DType::kFloat32, {5, 2})));
  EXPECT_THAT(Run({"verify", folder_ / "a.npy"}), HasSubstr("5 records, 40 bytes"));
  const std::string npy = OrThrow(ReadFile(files_, folder_ / "a.npy"));
  EXPECT_THAT(Run({"verify", Write("b.npy", npy.substr(0, npy.size() - 1))}, 2),
              HasSubstr("b.npy"));
  EXPECT_THAT(Run({"verify", Write("a.csv", "a,b\n1,2\n3\n4,5\n")}, 2),
              AllOf(HasSubstr("2 records"), HasSubstr("line 3: 1 fields, the header has 2")));
  const std::string empty = Write("empty", "");
  EXPECT_THAT(Run({"verify", empty}), HasSubstr("sound, empty"));
  EXPECT_EQ(error_, "");
  EXPECT_EQ(
      RunJson({"verify", empty, folder_ / "a.npy", folder_.path() + "/./empty"}).at("empty_files"),
      2);
  EXPECT_THAT(error_, HasSubstr("warning: 1 of 3 files are given twice, the first: " + empty));
  EXPECT_THAT(Run({"verify", folder_ / "none"}, 2), HasSubstr("none"));
}

// What the reader refuses at the first of them, with every place.
TEST_F(DataTools, VerifyNamesTheMembersThatLieApart) {
  const auto write = [&](const std::string& name, const std::vector<std::string>& members) {
    auto tar = OrThrow(data::TarWriter::Create(files_, folder_ / name));
    for (const std::string& member : members) {
      OrThrow(tar->Add(member, "x"));
    }
    OrThrow(tar->Close());
    return folder_ / name;
  };
  const std::string whole =
      write("whole.tar", {"README", "1.cls", "1.raw", "notes", "1.txt", "2.cls"});
  EXPECT_THAT(Run({"verify", whole}), HasSubstr("6 records"));
  const std::string apart =
      write("apart.tar", {"1.cls", "2.cls", "1.raw", "1.txt", "2.raw", "3.cls", "3.CLS"});
  const Json report = RunJson({"verify", apart}, 2);
  EXPECT_EQ(report.at("bad"), 3);
  EXPECT_EQ(report.at("records"), 4);
  const Json& errors = report.at("files")[0].at("errors");
  // Each member takes a header and a block of content.
  EXPECT_THAT(std::string(errors.at(0)), HasSubstr("apart.tar: sample '1' goes on at byte 2048"));
  EXPECT_THAT(std::string(errors.at(1)), HasSubstr("apart.tar: sample '2' goes on at byte 4096"));
  EXPECT_THAT(
      std::string(errors.at(2)),
      HasSubstr("apart.tar: sample '3' has member 'cls' twice, the second time at byte 6144"));
}

TEST_F(DataTools, CatPrintsRecordsAsJson) {
  const std::string path = WriteExamples("r", 4, io::Compression::kZlib);
  const std::vector<Json> rows = Cat({path, path, "--offset", "2", "--limit", "3"});
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0], Json::parse(R"({"id": [2], "text": "t2", "x": [0.1, 0.1]})"));
  EXPECT_EQ(rows[1].at("id"), Json({3}));
  EXPECT_EQ(rows[2].at("id"), Json({0}));

  EXPECT_EQ(
      Cat({Write("a.csv", "n,f,t,z,m\n1,2.5,x y,007,\n-2,1e3,\"1\",1,?\n")}),
      (std::vector<Json>{Json::parse(R"({"n": 1, "f": 2.5, "t": "x y", "z": "007", "m": null})"),
                         Json::parse(R"({"n": -2, "f": 1000, "t": "1", "z": "1", "m": null})")}));
  const Tensor array = Tensor::Of<double>({2, 2, 1}, std::vector<double>{1, 2, 3, 0.1});
  OrThrow(data::WriteNpy(files_, folder_ / "a.npy", array));
  EXPECT_EQ(Cat({folder_ / "a.npy"}),
            (std::vector<Json>{Json::parse(R"({"values": [[1], [2]]})"),
                               Json::parse(R"({"values": [[3], [0.1]]})")}));
  auto tar = OrThrow(data::TarWriter::Create(files_, folder_ / "a.tar.gz"));
  OrThrow(tar->AddSample("x/1", {{"cls", "1"}, {"raw", "\xff\x01"}}));
  OrThrow(tar->Close());
  EXPECT_EQ(Cat({folder_ / "a.tar.gz"})[0],
            Json::parse(R"({"__key__": "x/1", "cls": "1", "raw": {"bytes": 2}})"));
  EXPECT_EQ(Cat({folder_ / "a.tar.gz", "--base64"})[0].at("raw").at("base64"), "/wE=");
  EXPECT_EQ(Cat({Write("t", "a\n\nb")}),
            (std::vector<Json>{{{"line", "a"}}, {{"line", ""}}, {{"line", "b"}}}));

  // Up to the bad record everything is printed.
  std::string bytes = OrThrow(ReadFile(files_, WriteExamples("bad", 3)));
  bytes.back() ^= 1;
  const std::string said = Run({"cat", Write("bad", bytes)}, 2);
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 2);
  EXPECT_THAT(error_, HasSubstr("bad: record 2 at byte"));
}

// CSV -> each format -> CSV gives the same text; floats, integers, text and missing values.
TEST_F(DataTools, ConvertKeepsEveryValueThroughEveryFormat) {
  const std::string table =
      "id,x,name,maybe\n1,0.1,\"a, \"\"b\"\"\",\n-9007199254740993,-2.5e-07,z,7\n3,16777216,é,\n";
  const std::string csv = Write("a.csv", table);
  for (const std::string through : {"b.tfrecord", "b.tfrecord.gz", "b.tfrecord.zlib", "b.csv.gz"}) {
    const Json report = RunJson({"convert", csv, "--out", folder_ / through});
    EXPECT_EQ(report.at("records"), 3) << through;
    Run({"verify", "--examples", folder_ / through});
    Run({"convert", folder_ / through, "--out", folder_ / "back.csv", "--fields",
         "id,x,name,maybe"});
    EXPECT_EQ(Cat({folder_ / "back.csv"}), Cat({csv})) << through;
  }
  Run({"convert", csv, "--out", folder_ / "b.tar"});
  EXPECT_EQ(Cat({folder_ / "b.tar"})[1].at("id"), "-9007199254740993");
  EXPECT_EQ(Cat({folder_ / "b.tar"})[1].at("name"), "z");

  Run({"convert", csv, "--out", folder_ / "b.safetensors", "--fields", "x,id,maybe"}, 2);
  EXPECT_THAT(error_, HasSubstr("field 'maybe' is missing in 2 of 3 rows"));
  Run({"convert", csv, "--out", folder_ / "b.safetensors", "--fields", "x,id,maybe", "--fill",
       "-1"});
  EXPECT_EQ(Cat({folder_ / "b.safetensors"})[1],
            Json::parse(R"({"id": -9007199254740993, "x": -2.5e-07, "maybe": 7})"));
  Run({"convert", folder_ / "b.safetensors", "--out", folder_ / "id.npy", "--fields", "id"});
  EXPECT_EQ(OrThrow(data::ReadNpy(files_, folder_ / "id.npy")).data<std::int64_t>()[1],
            -9007199254740993);
  Run({"convert", folder_ / "id.npy", "--out", folder_ / "id.tsv"});
  EXPECT_EQ(OrThrow(ReadFile(files_, folder_ / "id.tsv")), "values\n1\n-9007199254740993\n3\n");
}

TEST_F(DataTools, ConvertRefusesWhatAFormatDoesNotHold) {
  const std::string path = WriteExamples("r", 3);
  const auto refuses = [&](const std::vector<std::string>& more, const std::string& what) {
    std::vector<std::string> all = {"convert"};
    all.insert(all.end(), more.begin(), more.end());
    Run(all, 2);
    EXPECT_THAT(error_, HasSubstr(what));
  };
  refuses({path, "--out", folder_ / "a.csv"}, "field 'x' holds 0 to 2 values");
  EXPECT_FALSE(files_.Exists(folder_ / "a.csv"));
  refuses({path, "--out", folder_ / "a.npy", "--fields", "text"}, "field 'text' is no number");
  refuses({path, "--out", folder_ / "a.npy"}, "a .npy file holds one array, there are 3 fields");
  refuses({path, "--out", folder_ / "a.npy", "--fields", "nope"}, "no field 'nope'");
  refuses({path, "--out", folder_ / "a.what"}, "the format is told by the name");
  refuses({path, "--out", path + ".csv.zlib"}, "zlib is for TFRecord only");
  const std::string exact = Write("d.csv", "t,u\n1386705600.25,1\n");
  refuses({exact, "--out", folder_ / "d.tfrecord"}, "field 't' in row 0 is 1386705600.25");
  EXPECT_FALSE(files_.Exists(folder_ / "d.tfrecord"));
  Run({"convert", exact, "--out", folder_ / "d.tfrecord", "--float32"});
  std::filesystem::copy_file(path, folder_ / "same.tfrecord");
  refuses({folder_ / "same.tfrecord", "--out", folder_ / "same.tfrecord"}, "are one file");
}

TEST_F(DataTools, ShardKeepsTheOrderAndEvensTheBytes) {
  const std::string one = WriteExamples("one.tfrecord", 60);
  const std::string two = WriteExamples("two.tfrecord", 7, io::Compression::kGzip);
  const Json report =
      RunJson({"shard", one, two, "--files", "4", "--out", folder_ / "s", "--gzip"});
  ASSERT_EQ(report.at("files").size(), 4U);
  const double even = report.at("bytes").get<double>() / 4;
  std::vector<std::string> paths;
  for (const Json& file : report.at("files")) {
    paths.push_back(file.at("path"));
    EXPECT_NEAR(file.at("bytes").get<double>(), even, 300) << "one record at most";
  }
  EXPECT_EQ(paths[3], folder_ / "s-00003-of-00004.tfrecord.gz");
  EXPECT_EQ(Cat(paths), Cat({one, two}));

  const std::string csv = Write("a.csv", "a,b\n1,\"x\ny\"\n\n2,?\n3,\"?\"");
  Run({"shard", csv, "--files", "3", "--out", folder_ / "c"});
  EXPECT_EQ(OrThrow(ReadFile(files_, folder_ / "c-00000-of-00003.csv")), "a,b\n1,\"x\ny\"\n");
  EXPECT_EQ(OrThrow(ReadFile(files_, folder_ / "c-00001-of-00003.csv")), "a,b\n2,?\n");
  EXPECT_EQ(OrThrow(ReadFile(files_, folder_ / "c-00002-of-00003.csv")), "a,b\n3,\"?\"\n");
  Run({"shard", csv, "--files", "4", "--out", folder_ / "c"}, 2);
  EXPECT_THAT(error_, HasSubstr("3 records do not fill 4 files"));
  Run({"shard", csv, one, "--files", "2", "--out", folder_ / "c"}, 2);
  EXPECT_THAT(error_, HasSubstr("one.tfrecord is TFRecord, the files before it are CSV"));
  // Its outputs would take the place of inputs that are still to be read.
  const std::vector<std::string> shards = {folder_ / "c-00000-of-00003.csv",
                                           folder_ / "c-00001-of-00003.csv",
                                           folder_ / "c-00002-of-00003.csv"};
  const std::vector<Json> before = Cat(shards);
  Run({"shard", shards[2], shards[0], shards[1], "--files", "3", "--out", folder_ / "c"}, 2);
  EXPECT_THAT(error_, HasSubstr("is an input, and would be an output"));
  EXPECT_EQ(Cat(shards), before);

  auto tar = OrThrow(data::TarWriter::Create(files_, folder_ / "a.tar"));
  for (int i = 0; i < 9; ++i) {
    OrThrow(tar->AddSample(std::to_string(i), {{"cls", std::to_string(i)}, {"raw", "xyz"}}));
  }
  OrThrow(tar->Close());
  Run({"shard", folder_ / "a.tar", "--files", "2", "--out", folder_ / "w"});
  EXPECT_EQ(Cat({folder_ / "w-00000-of-00002.tar", folder_ / "w-00001-of-00002.tar"}),
            Cat({folder_ / "a.tar"}));
}

// Also where one input is cut into many files, or many inputs become one.
TEST_F(DataTools, ShardWritesTheSameFilesByAnyNumberOfThreads) {
  const auto tar = [this](const std::string& name, int begin, int end) {
    auto writer = OrThrow(data::TarWriter::Create(files_, folder_ / name));
    for (int i = begin; i < end; ++i) {
      OrThrow(writer->AddSample(
          std::to_string(i), {{"cls", std::to_string(i)}, {"raw", std::string(i * 7 % 50, 'x')}}));
    }
    OrThrow(writer->Close());
    return folder_ / name;
  };
  std::string rows = "a,b\r\n";
  for (int i = 0; i < 100; ++i) {
    rows += std::to_string(i) + ",\"x\n" + std::string(i % 9, 'y') + "\"\r\n";
  }
  const std::vector<std::vector<std::string>> sets = {
      {WriteExamples("a", 50), WriteExamples("none", 0), WriteExamples("b", 1),
       WriteExamples("c.gz", 40, io::Compression::kGzip)},
      {tar("a.tar", 0, 20), tar("b.tar.gz", 20, 37)},
      {Write("a.csv", rows), Write("b.csv", "a,b\r\n"),
       Write("c.csv", rows.substr(0, rows.find("\"\r\n", 60) + 3))},
      {Write("a.txt", "to be\nor\n\nnot to be"), Write("b.txt", "that\nis\nthe question\n")}};
  for (const auto& inputs : sets) {
    const std::vector<Json> all = Cat(inputs);
    for (const std::string files : {"1", "7"}) {
      std::map<std::string, std::string> of_one;
      for (const std::string threads : {"1", "3"}) {
        SCOPED_TRACE(inputs[0] + " " + files + " " + threads);
        std::vector<std::string> command = {
            "shard", "--files", files, "--threads", threads, "--out", folder_ / ("t" + threads)};
        command.insert(command.end(), inputs.begin(), inputs.end());
        const Json report = RunJson(command);
        std::vector<std::string> paths;
        for (const Json& file : report.at("files")) {
          paths.push_back(file.at("path"));
          const std::string content = OrThrow(ReadFile(files_, paths.back()));
          const std::string name = paths.back().substr((folder_ / "t1").size());
          EXPECT_EQ(of_one.try_emplace(name, content).first->second, content) << name;
        }
        EXPECT_EQ(of_one.size(), paths.size());
        if (threads == "3") {
          EXPECT_EQ(Cat(paths), all);
        }
      }
    }
  }
}

TEST_F(DataTools, ShardLeavesNothingWhereAnInputIsDamaged) {
  const std::string good = WriteExamples("good", 60);
  std::string bytes = OrThrow(ReadFile(files_, good));
  bytes[bytes.size() - 5] ^= 1;  // the last record's
  for (const std::string threads : {"1", "3"}) {
    Run({"shard", good, Write("bad", bytes), "--files", "6", "--out", folder_ / "s", "--threads",
         threads},
        2);
    EXPECT_THAT(error_, HasSubstr("bad: record 59 at byte"));
    for (const std::string& name : OrThrow(files_.List(folder_.path()))) {
      EXPECT_FALSE(name.starts_with("s-")) << name;
    }
  }
}

// Half a sample would go to one file, and half to another.
TEST_F(DataTools, ShardRefusesSamplesWhoseMembersDoNotLieTogether) {
  auto tar = OrThrow(data::TarWriter::Create(files_, folder_ / "mixed.tar"));
  for (const std::string member : {"a.jpg", "b.jpg", "b.cls", "a.cls"}) {
    OrThrow(tar->Add(member, "x"));
  }
  OrThrow(tar->Close());
  Run({"shard", folder_ / "mixed.tar", "--files", "2", "--out", folder_ / "s"}, 2);
  EXPECT_THAT(error_, AllOf(HasSubstr("mixed.tar: sample 'a' goes on at byte 3072"),
                            HasSubstr("behind other samples")));
  for (const std::string& name : OrThrow(files_.List(folder_.path()))) {
    EXPECT_FALSE(name.starts_with("s-")) << name;
  }
}

TEST_F(DataTools, StatsAreWhatFeaturesReadBack) {
  const std::string csv = Write("a.csv", "x,name\n1,b\n2,a\n,b\n6,c\n");
  const Json report = RunJson({"stats", csv, csv, "--out", folder_ / "s.json", "--vocabularies",
                               folder_ / "v", "--min-count", "4"});
  EXPECT_EQ(report.at("records"), 8);
  const Json& x = report.at("fields").at("x");
  EXPECT_EQ(x.at("missing_records"), 2);
  EXPECT_EQ(x.at("numbers").at("quantiles")[3], Json({0.5, 2}));
  EXPECT_EQ(report.at("fields").at("name").at("distinct_texts"), 3);
  const auto statistics = OrThrow(data::LoadStatistics(files_, folder_ / "s.json"));
  ASSERT_EQ(statistics.size(), 1U);
  EXPECT_EQ(statistics.at("x").count, 6);
  EXPECT_DOUBLE_EQ(statistics.at("x").mean, 3);
  EXPECT_DOUBLE_EQ(statistics.at("x").variance(), (4 + 1 + 9) / 3.0);
  EXPECT_EQ(statistics.at("x").most, 6);
  EXPECT_EQ(OrThrow(data::Vocabulary::Load(files_, folder_ / "v/name.txt")).texts(),
            std::vector<std::string>{"b"});
  EXPECT_THAT(Run({"stats", csv}), AllOf(HasSubstr("4 records"), HasSubstr("3 distinct texts")));
  EXPECT_FALSE(data::LoadStatistics(files_, csv).ok());
}

// More rows than a block, more numbers than the sample keeps, texts that are no UTF-8.
TEST_F(DataTools, StatsAreTheSameToTheLastBitWhoeverCounts) {
  std::string rows = "x,name\n";
  for (int i = 0; i < 9000; ++i) {
    rows += (i % 7 == 0 ? "" : std::to_string(1.0 / (i + 3))) + ",t\xff" + std::to_string(i % 50) +
            "\n";
  }
  Tensor array(DType::kFloat32, {5000, 30});
  for (std::size_t i = 0; i < array.data<float>().size(); ++i) {
    array.data<float>()[i] = 1 / static_cast<float>(i + 1);
  }
  OrThrow(data::WriteNpy(files_, folder_ / "a.npy", array));
  const std::vector<std::string> inputs = {
      Write("a.csv", rows), folder_ / "a.npy",
      WriteExamples("a.tfrecord.gz", 200, io::Compression::kGzip),
      Write("b.csv", "x,name\n2e30,u\n-2e30,u\n"), Write("empty", "")};
  const auto with = [&inputs](std::vector<std::string> more) {
    std::vector<std::string> all = {"stats"};
    all.insert(all.end(), inputs.begin(), inputs.end());
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  Run(with({"--threads", "1", "--out", folder_ / "one", "--vocabularies", folder_ / "v1"}));
  const std::string one = OrThrow(ReadFile(files_, folder_ / "one"));
  const Json report = Json::parse(one);
  EXPECT_EQ(report.at("records"), 9000 + 5000 + 200 + 2);
  EXPECT_EQ(report.at("fields").at("x").at("numbers").at("count"), 9000 - 1286 + 199 * 100 + 2);
  EXPECT_EQ(report.at("fields").at("x").at("missing_records"), 5000 + 1286);
  EXPECT_EQ(report.at("fields").at("name").at("distinct_texts"), 51);
  const Json& values = report.at("fields").at("values").at("numbers");
  EXPECT_EQ(values.at("quantiles_of"), "100000 of them");
  EXPECT_NEAR(values.at("quantiles")[3][1].get<double>(), 2 / 150000.0, 4e-7) << "the median";
  EXPECT_NEAR(values.at("mean").get<double>(), 12.4956 / 150000, 1e-8);

  Run(with({"--threads", "3", "--out", folder_ / "three"}));
  EXPECT_EQ(OrThrow(ReadFile(files_, folder_ / "three")), one);

  for (const int shards : {2, 7}) {  // 7: some have no files
    std::vector<std::string> merge = {"stats", "--merge"};
    std::int64_t records = 0;
    for (int i = shards - 1; i >= 0; --i) {
      const std::string partial = folder_ / ("p" + std::to_string(i));
      records += RunJson(with({"--shard", std::to_string(i) + "/" + std::to_string(shards),
                               "--partial", partial}))
                     .at("records")
                     .get<std::int64_t>();
      merge.push_back(partial);
    }
    EXPECT_EQ(records, report.at("records"));
    std::vector<std::string> all = merge;
    all.insert(all.end(), {"--out", folder_ / "merged", "--vocabularies", folder_ / "v2"});
    Run(all);
    EXPECT_EQ(OrThrow(ReadFile(files_, folder_ / "merged")), one) << shards;
    EXPECT_EQ(OrThrow(ReadFile(files_, folder_ / "v2/name.txt")),
              OrThrow(ReadFile(files_, folder_ / "v1/name.txt")));
    all = merge;
    all.pop_back();
    Run(all, 2);
    EXPECT_THAT(error_, HasSubstr("of " + std::to_string(shards) + " shards these are missing: 0"));
    all.push_back(all.back());
    Run(all, 2);
    EXPECT_THAT(error_, HasSubstr("are both shard 1"));
  }
  Run({"stats", inputs[0], "--shard", "0/2", "--partial", folder_ / "other"});
  Run({"stats", "--merge", folder_ / "p1", folder_ / "other"}, 2);
  EXPECT_THAT(error_, HasSubstr("other: of other files"));
  std::string bytes = OrThrow(ReadFile(files_, folder_ / "other"));
  bytes[bytes.size() / 2] ^= 1;
  Run({"stats", "--merge", Write("damaged", bytes)}, 2);
  EXPECT_THAT(error_, HasSubstr("damaged: record 0 at byte 0: corrupted"));
  Run({"stats", "--merge", inputs[0]}, 2);
  Run(with({"--shard", "2/2", "--partial", folder_ / "p"}), 2);
  EXPECT_THAT(error_, HasSubstr("--shard 2/2: not I/N"));
  Run(with({"--shard", "0/2"}), 2);
}

// Of ten records of one file one has a wrong byte; of another file's ten the fourth has a wrong
// length, behind which nothing can be found.
TEST_F(DataTools, CorruptRecordsAreLeftOutUpToABudgetAndCounted) {
  const std::string wrong = WriteExamples("wrong.tfrecord", 10);
  const std::string cut = WriteExamples("cut.tfrecord", 10);
  const auto damage = [&](const std::string& path, int record, std::uint64_t byte) {
    auto reader = OrThrow(io::RecordReader::Open(files_, path));
    for (int i = 0; i < record; ++i) {
      OrThrow(reader->Next());
    }
    std::string bytes = OrThrow(ReadFile(files_, path));
    bytes[reader->offset() + byte] ^= 1;
    OrThrow(WriteFileAtomically(files_, path, bytes));
  };
  damage(wrong, 6, 14);
  damage(cut, 3, 0);
  const std::string out = folder_ / "whole.tfrecord";

  Run({"convert", wrong, "--out", out}, 2);
  EXPECT_THAT(error_, HasSubstr("wrong.tfrecord: record 6"));
  Run({"convert", wrong, cut, "--out", out, "--max-corrupt", "1"}, 2);
  EXPECT_THAT(error_, AllOf(HasSubstr("more than 1 corrupt records"), HasSubstr("record 6")));
  const Json json = RunJson({"convert", wrong, cut, "--out", out, "--max-corrupt", "2"});
  EXPECT_EQ(json.at("records"), 12);
  EXPECT_EQ(json.at("corrupt"), 1);
  EXPECT_EQ(json.at("cut_files"), 1);
  EXPECT_THAT(Run({"convert", wrong, cut, "--out", out, "--max-corrupt", "2"}),
              HasSubstr("left out: 1 corrupt records, and what stands behind damage in 1 of the "
                        "files; the first: "));

  const std::vector<Json> rows = Cat({wrong, cut, "--max-corrupt", "2"});
  EXPECT_THAT(error_, HasSubstr("left out: 1 corrupt records"));
  EXPECT_EQ(Cat({out}), rows);
  ASSERT_EQ(rows.size(), 12U);
  EXPECT_EQ(rows[6].at("id"), Json({7}));
  EXPECT_EQ(rows[11].at("id"), Json({2}));
}

TEST_F(DataTools, IndexIsInTheFormatOfTfrecord2idx) {
  const std::string path = WriteExamples("r.tfrecord", 3);
  EXPECT_EQ(RunJson({"index", path}).at("records"), 3);
  const auto reader = OrThrow(io::RecordReader::Open(files_, path));
  std::string expected;
  while (true) {
    const std::uint64_t begin = reader->offset();
    if (!OrThrow(reader->Next()).has_value()) {
      break;
    }
    expected += std::to_string(begin) + " " + std::to_string(reader->offset() - begin) + "\n";
  }
  EXPECT_THAT(OrThrow(ReadFile(files_, path + ".idx")),
              ::testing::MatchesRegex(expected + "# cohort [0-9]+\n"));
  Run({"index", WriteExamples("z", 3, io::Compression::kGzip)}, 2);
  EXPECT_THAT(error_, HasSubstr("gzip has no random access"));
}

TEST_F(DataTools, EveryCommandHasHelpAndPrintsJson) {
  for (const std::string command : {"stat", "verify", "convert", "shard", "index", "stats"}) {
    EXPECT_THAT(Run({command, "--help"}),
                AllOf(HasSubstr("--json"), HasSubstr("print a JSON object")))
        << command;
    Run({command}, 2);
    EXPECT_THAT(error_, HasSubstr("required")) << command;
  }
  const std::string csv = Write("a.csv", "x,y\n1,2\n3,4\n");
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"stat", csv},
        {"verify", csv},
        {"stats", csv},
        {"convert", csv, "--out", folder_ / "a.tfrecord"},
        {"shard", csv + ".txt", "--files", "1", "--out", folder_ / "s"},
        {"index", folder_ / "a.tfrecord"}}) {
    Write("a.csv.txt", "x\ny\n");
    EXPECT_EQ(RunJson(command).at("records"), 2) << command[0];
    EXPECT_EQ(error_, "") << command[0] << ": short work shows no progress";
  }
}

// Two hundred times the stream, and no more memory.
TEST_F(DataTools, MemoryIsFlatOverALongStream) {
  const std::string path = WriteExamples("r.tfrecord", 400);  // 0.4 MB
  for (const std::string format : {"tfrecord", "example"}) {
    std::map<int, Json> reports;
    for (const int repeat : {1, 200}) {
      testing::ProcessCluster processes;
      processes.Start("cohort",
                      {COHORT_BIN_DIR "/cohort", "bench", "input", "--format", format, path,
                       "--repeat", std::to_string(repeat), "--rounds", "1", "--json"});
      ASSERT_EQ(processes.Wait("cohort", std::chrono::seconds(60)).value_or(-1), 0)
          << processes.Stderr("cohort");
      reports[repeat] = Json::parse(processes.Stdout("cohort"));
    }
    EXPECT_EQ(reports[200].at("records"), 400 * 200);
    EXPECT_EQ(reports[200].at("bytes"), 200 * reports[1].at("bytes").get<std::int64_t>());
    EXPECT_GT(reports[200].at("bytes"), 50'000'000);
    EXPECT_LT(reports[200].at("max_rss_kilobytes").get<int>(),
              reports[1].at("max_rss_kilobytes").get<int>() + 16'000)
        << format;
  }
}

// Packed records are gone through: a file of 128 MiB of them takes no more memory than one of 8.
TEST_F(DataTools, ShardOfPackedRecordsIsFlatInMemory) {
  constexpr int kRecordBytes = 1 << 16;
  const auto peak = [this](int records) {
    const std::string path = folder_ / (std::to_string(records) + ".tfrecord.gz");
    auto writer = OrThrow(io::RecordWriter::Create(files_, path, io::Compression::kGzip));
    for (int i = 0; i < records; ++i) {
      std::string record(kRecordBytes, static_cast<char>(i));
      record.replace(0, 8, std::to_string(10'000'000 + i));
      OrThrow(writer->Write(record));
    }
    OrThrow(writer->Close());
    testing::ProcessCluster processes;
    processes.Start("cohort", {COHORT_BIN_DIR "/cohort", "data", "shard", path, "--files", "4",
                               "--threads", "2", "--out", path, "--gzip", "--json"});
    EXPECT_EQ(processes.Wait("cohort", std::chrono::seconds(60)).value_or(-1), 0)
        << processes.Stderr("cohort");
    const Json report = Json::parse(processes.Stdout("cohort"));
    EXPECT_EQ(report.at("records"), records);
    EXPECT_EQ(report.at("bytes"), std::int64_t{kRecordBytes} * records);
    return processes.PeakKilobytes("cohort");
  };
  const std::int64_t small = peak(128);
  EXPECT_GT(small, 1000);
  EXPECT_LT(peak(2048), small + 16'000);
}

// Of a data set, which reads at random: a hundred files take the memory of one.
TEST_F(DataTools, MemoryIsFlatOverManyFiles) {
  std::vector<std::string> paths = {WriteExamples("0.tfrecord", 1000)};  // 2 MB
  for (int i = 1; i < 100; ++i) {
    paths.push_back(folder_ / (std::to_string(i) + ".tfrecord"));
    std::filesystem::copy_file(paths[0], paths.back());
  }
  std::map<std::size_t, Json> reports;
  for (const std::size_t files : {std::size_t{1}, paths.size()}) {
    std::vector<std::string> command = {COHORT_BIN_DIR "/cohort",
                                        "bench",
                                        "input",
                                        "--format",
                                        "example",
                                        "--rounds",
                                        "1",
                                        "--json"};
    command.insert(command.end(), paths.begin(),
                   paths.begin() + static_cast<std::ptrdiff_t>(files));
    testing::ProcessCluster processes;
    processes.Start("cohort", command);
    ASSERT_EQ(processes.Wait("cohort", std::chrono::seconds(60)).value_or(-1), 0)
        << processes.Stderr("cohort");
    reports[files] = Json::parse(processes.Stdout("cohort"));
    EXPECT_EQ(reports[files].at("records"), 1000 * files);
  }
  EXPECT_GT(reports[100].at("bytes"), 200'000'000);
  EXPECT_LT(reports[100].at("max_rss_kilobytes").get<int>(),
            reports[1].at("max_rss_kilobytes").get<int>() + 16'000);
}

// From the local disk to S3 and on within it, and back.
TEST_F(DataTools, PathsMayBeInS3) {
  testing::S3Server server;
  environment_ = {{"AWS_ACCESS_KEY_ID", "AK"},
                  {"AWS_SECRET_ACCESS_KEY", "SK"},
                  {"AWS_REGION", "eu-north-1"},
                  {"AWS_ENDPOINT_URL", server.origin()}};
  const std::string csv = Write("a.csv", "id,x\n1,0.5\n2,1.5\n3,2.5\n4,3.5\n");
  EXPECT_EQ(RunJson({"convert", csv, "--out", "s3://bucket/set/all.tfrecord"}).at("records"), 4);
  const Json shards = RunJson(
      {"shard", "s3://bucket/set/all.tfrecord", "--files", "2", "--out", "s3://bucket/set/s"});
  EXPECT_EQ(shards.at("files")[1].at("path"), "s3://bucket/set/s-00001-of-00002.tfrecord");
  EXPECT_EQ(RunJson({"index", "s3://bucket/set/s-*"}).at("files").size(), 2U);
  EXPECT_EQ(RunJson({"verify", "--examples", "s3://bucket/set/s-*.tfrecord"}).at("records"), 4);
  EXPECT_EQ(Cat({"s3://bucket/set/s-*.tfrecord"}), Cat({"s3://bucket/set/all.tfrecord"}));
  EXPECT_THAT(Run({"stat", "s3://bucket/set/all.tfrecord"}), HasSubstr("TFRecord"));
  Run({"convert", "s3://bucket/set/s-*.tfrecord", "--out", folder_ / "back.csv", "--fields",
       "id,x"});
  EXPECT_EQ(Cat({folder_ / "back.csv"}), Cat({csv}));
  std::vector<std::string> keys;
  for (const auto& [key, content] : server.objects()) {
    keys.push_back(key);
  }
  EXPECT_EQ(keys, (std::vector<std::string>{"set/all.tfrecord", "set/s-00000-of-00002.tfrecord",
                                            "set/s-00000-of-00002.tfrecord.idx",
                                            "set/s-00001-of-00002.tfrecord",
                                            "set/s-00001-of-00002.tfrecord.idx"}));
  Run({"cat", "s3://bucket/none-*"}, 2);
  EXPECT_THAT(error_, HasSubstr("no file matches s3://bucket/none-*"));
  Run({"convert", csv, "--out", "http://localhost/a.tfrecord"}, 2);
  EXPECT_THAT(error_,
              HasSubstr("http://localhost/a.tfrecord: files behind HTTP are read, not written"));
}

}  // namespace
}  // namespace cohort
