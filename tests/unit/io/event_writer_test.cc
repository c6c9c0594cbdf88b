#include <cohort/io/event_writer.h>
#include <cohort/io/record_file.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/hex.h"
#include "testing/temp_dir.h"

namespace cohort::io {
namespace {

const std::string kFileVersion =
    "1800000000000000a37f4b2209000000000000f03f1a0d627261696e2e4576656e743a3286bf577a";

class EventWriterTest : public ::testing::Test {
 protected:
  std::unique_ptr<EventWriter> Make() {
    return OrThrow(
        EventWriter::Create(files_, dir_ / "log/train", {.wall_time = [] { return 1.0; }}));
  }
  std::string Hex(const EventWriter& writer) {
    return testing::ToHex(*ReadFile(files_, writer.path()));
  }
  FileSystem& files_ = FileSystem::Local();
  testing::TempDir dir_;
};

// Bytes that TensorBoard reads, record frames included.
TEST_F(EventWriterTest, GoldenBytes) {
  const auto writer = Make();
  EXPECT_EQ(Hex(*writer), kFileVersion) << "the version is flushed at once";
  const Scalar loss{"loss", 0.5F};
  OrThrow(writer->Write(5, std::span(&loss, 1)));
  EXPECT_EQ(Hex(*writer), kFileVersion);
  OrThrow(writer->Flush());
  EXPECT_EQ(Hex(*writer), kFileVersion +
                              "1a00000000000000129bd82d09000000000000f03f10052a0d0a0b0a046c6f7373"
                              "150000003f1e6d8ff9");
}

std::vector<std::string> Records(const std::string& path) {
  auto reader = OrThrow(RecordReader::Open(FileSystem::Local(), path));
  std::vector<std::string> records;
  while (const auto record = OrThrow(reader->Next())) {
    records.push_back(testing::ToHex(*record));
  }
  return records;
}

TEST_F(EventWriterTest, ZeroIsAValueAndManyScalarsShareAnEvent) {
  const auto writer = Make();
  const std::vector<Scalar> scalars = {{"a", 0.0F}, {"b", 1.0F}};
  OrThrow(writer->Write(0, scalars));
  OrThrow(writer->Close());
  // summary (5) of two values (1), each tag (1) and simple_value (2); step 0 is not written.
  EXPECT_EQ(Records(writer->path()).at(1),
            "09000000000000f03f2a140a080a016115000000000a080a0162150000803f");
}

TEST_F(EventWriterTest, ResumeMarksWhereTheOldEventsEnd) {
  const auto writer = Make();
  OrThrow(writer->Resume(7));
  // step (2) 7, session_log (7) with status (1) START = 1; flushed.
  EXPECT_EQ(Records(writer->path()).at(1), "09000000000000f03f10073a020801");
}

TEST_F(EventWriterTest, WritersOfTheSameSecondDoNotShareAFile) {
  const auto first = Make();
  const auto second = Make();
  EXPECT_NE(first->path(), second->path());
  EXPECT_EQ(Hex(*first), kFileVersion);
  EXPECT_EQ(Hex(*second), kFileVersion);
  EXPECT_LT(first->path(), second->path()) << "readers sort by name";
  EXPECT_THAT(first->path(), ::testing::ContainsRegex(
                                 "/events\\.out\\.tfevents\\.0000000001\\.[^/]+\\.[0-9]+\\.0$"));
}

TEST_F(EventWriterTest, FolderThatCannotBeMadeIsAnError) {
  OrThrow(WriteFileAtomically(files_, dir_ / "file", "x"));
  const auto writer = EventWriter::Create(files_, dir_ / "file");
  ASSERT_FALSE(writer.ok());
  EXPECT_NE(writer.status().message().find(dir_ / "file"), std::string::npos);
}

}  // namespace
}  // namespace cohort::io
