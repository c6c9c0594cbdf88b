#include <cohort/io/crc32c.h>
#include <cohort/io/record_file.h>
#include <gtest/gtest.h>

#include <fstream>

#include "testing/faulty_file_system.h"
#include "testing/hex.h"
#include "testing/temp_dir.h"

namespace cohort::io {
namespace {

using testing::ToHex;

class RecordFileTest : public ::testing::TestWithParam<Compression> {
 protected:
  std::string Write(const std::vector<std::string>& records, Compression compression) {
    const std::string path = dir_ / ("f" + std::to_string(count_++));
    auto writer = OrThrow(RecordWriter::Create(files_, path, compression));
    for (const auto& r : records) {
      OrThrow(writer->Write(r));
    }
    OrThrow(writer->Close());
    return path;
  }
  std::string Put(const std::string& content) {
    const std::string path = dir_ / ("f" + std::to_string(count_++));
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  // All records, then the error that ended them, if any.
  std::pair<std::vector<std::string>, Status> ReadAll(const std::string& path,
                                                      std::optional<Compression> c = {}) {
    std::vector<std::string> records;
    auto reader = OrThrow(RecordReader::Open(files_, path, c));
    while (true) {
      const auto next = reader->Next();
      if (!next.ok()) {
        return {records, next.status()};
      }
      if (!*next) {
        EXPECT_FALSE(OrThrow(reader->Next()).has_value()) << "the end repeats";
        return {records, {}};
      }
      records.emplace_back(**next);
    }
  }

  FileSystem& files_ = FileSystem::Local();
  testing::TempDir dir_;
  int count_ = 0;
};

const std::vector<std::string> kRecords = {"foo", "bar", "", "xxxx"};

TEST_P(RecordFileTest, RoundTrip) {
  std::vector<std::string> records = kRecords;
  records.push_back(std::string(5'000'000, 'z'));
  records.push_back(std::string("a\0b", 3));
  const std::string path = Write(records, GetParam());
  EXPECT_EQ(ReadAll(path, GetParam()), std::pair(records, Status()));
  EXPECT_EQ(ReadAll(path), std::pair(records, Status())) << "compression is detected";
  EXPECT_EQ(OrThrow(RecordReader::Open(files_, path))->compression(), GetParam());
}

TEST_P(RecordFileTest, ConcatenatedFilesReadAsOne) {
  const std::string a = *ReadFile(files_, Write({"1", "2"}, GetParam()));
  const std::string b = *ReadFile(files_, Write({"3"}, GetParam()));
  EXPECT_EQ(ReadAll(Put(a + b)), std::pair(std::vector<std::string>({"1", "2", "3"}), Status()));
}

TEST_P(RecordFileTest, EmptyFileWithoutRecords) {
  EXPECT_EQ(ReadAll(Write({}, GetParam()), GetParam()),
            std::pair(std::vector<std::string>(), Status()));
}

TEST_P(RecordFileTest, EveryTruncationIsAnErrorOrARecordBoundary) {
  const std::string content = *ReadFile(files_, Write(kRecords, GetParam()));
  for (std::size_t size = 0; size < content.size(); ++size) {
    const auto [records, status] = ReadAll(Put(content.substr(0, size)), GetParam());
    const bool boundary =
        GetParam() == Compression::kNone && (size == 0 || size == 19 || size == 38 || size == 54);
    EXPECT_EQ(status.ok(), boundary) << size;
    if (!boundary) {
      EXPECT_EQ(status.code(), StatusCode::kDataLoss);
      EXPECT_NE(status.message().find(dir_.path()), std::string::npos);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, RecordFileTest,
                         ::testing::Values(Compression::kNone, Compression::kGzip,
                                           Compression::kZlib),
                         [](const auto& p) { return std::string(CompressionName(p.param)); });

using RawRecordFile = RecordFileTest;

TEST_F(RawRecordFile, GoldenBytes) {
  const auto bytes = [this](const std::string& record) {
    return ToHex(*ReadFile(files_, Write({record}, Compression::kNone)));
  };
  EXPECT_EQ(bytes(""), "000000000000000029039807d8ea82a2");
  EXPECT_EQ(bytes("abc"), "0300000000000000b099490e6162636e57f121");
}

TEST_F(RawRecordFile, MessagesNameRecordOffsetAndWhatIsMissing) {
  const std::string content = *ReadFile(files_, Write(kRecords, Compression::kNone));
  const auto expect = [&](const std::string& bad, const std::string& part) {
    const auto [records, status] = ReadAll(Put(bad));
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  };
  expect(content.substr(0, 19 + 5),
         "record 1 at byte 19: truncated header, 7 of 12 bytes are missing");
  expect(content.substr(0, 19 + 12),
         "record 1 at byte 19: truncated, it has 3 bytes and a checksum, "
         "of which 7 bytes are missing");
  expect(content.substr(0, 37), "of which 1 bytes are missing");
}

// Bytes 6, 10: length and its checksum; 14: payload; last: the payload's checksum.
TEST_F(RawRecordFile, FlippedBytes) {
  const std::string content = *ReadFile(files_, Write(kRecords, Compression::kNone));
  for (const std::size_t at : {6U, 10U}) {
    std::string bad = content;
    ++bad[at];
    auto reader = OrThrow(RecordReader::Open(files_, Put(bad), Compression::kNone));
    const Status first = reader->Next().status();
    EXPECT_NE(first.message().find("record 0 at byte 0: corrupted, the checksum of its length"),
              std::string::npos);
    EXPECT_EQ(reader->Next().status(), first) << "nothing behind it can be found";
  }
  for (const std::size_t at : {14U, 18U}) {
    std::string bad = content;
    ++bad[at];
    auto reader = OrThrow(RecordReader::Open(files_, Put(bad)));
    EXPECT_NE(reader->Next().status().message().find(
                  "record 0 at byte 0: corrupted, the checksum of its bytes"),
              std::string::npos);
    EXPECT_EQ(reader->ordinal(), 1);
    EXPECT_EQ(reader->offset(), 19U);
    EXPECT_EQ(OrThrow(reader->Next()), "bar") << "one record is skipped";
  }
}

std::string Header(std::uint64_t length) {
  std::string header(reinterpret_cast<const char*>(&length), 8);
  const std::uint32_t crc = MaskCrc(Crc32c(header));
  return header + std::string(reinterpret_cast<const char*>(&crc), 4);
}

TEST_F(RawRecordFile, HugeSoundLengthTakesNoMemory) {
  for (const std::uint64_t length :
       {~std::uint64_t{0}, ~std::uint64_t{0} - 4, ~std::uint64_t{0} >> 1, std::uint64_t{1} << 50}) {
    const std::string content = Header(length) + "only this";
    const auto raw = ReadAll(Put(content)).second;
    EXPECT_EQ(raw.code(), StatusCode::kDataLoss);
    const auto packed = ReadAll(Put(Gzip(content))).second;
    EXPECT_EQ(packed.code(), StatusCode::kDataLoss);
    EXPECT_NE(packed.message().find("truncated"), std::string::npos) << packed.message();
    EXPECT_EQ(RecordFile::Open(files_, Put(content)).status().code(), StatusCode::kDataLoss);
  }
}

TEST_F(RawRecordFile, RawRecordThatBeginsLikeGzipIsRaw) {
  const std::string record(0x8b1f, 'r');  // its length is the bytes 1f 8b 00 ...
  const std::string path = Write({record}, Compression::kNone);
  EXPECT_EQ(ToHex(ReadFile(files_, path)->substr(0, 2)), "1f8b");
  EXPECT_EQ(ReadAll(path), std::pair(std::vector<std::string>{record}, Status()));
}

TEST_F(RawRecordFile, AnotherCompressionThanWasNamedIsToldByTheFirstBytes) {
  const std::map<Compression, std::string> names = {{Compression::kNone, "raw records"},
                                                    {Compression::kGzip, "gzip"},
                                                    {Compression::kZlib, "zlib"}};
  for (const auto& [is, its_name] : names) {
    const std::string path = Write(kRecords, is);
    for (const auto& [named, name] : names) {
      const Status status = RecordReader::Open(files_, path, named).status();
      if (named == is) {
        EXPECT_TRUE(status.ok()) << status.ToString();
        continue;
      }
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
      EXPECT_NE(status.message().find(path + ": begins as " + its_name + " does, not as " + name),
                std::string::npos)
          << status.message();
    }
  }
  for (const auto& [named, name] : names) {
    EXPECT_TRUE(RecordReader::Open(files_, Put(""), named).ok()) << "nothing begins as nothing";
  }
}

TEST_F(RawRecordFile, RandomAccessByNumber) {
  std::vector<std::string> records;
  for (int i = 0; i < 5000; ++i) {
    records.push_back(std::string(static_cast<std::size_t>(i * 7 % 100), static_cast<char>(i)));
  }
  records.insert(records.begin() + 77, std::string(200'000, 'L'));
  const auto file = OrThrow(RecordFile::Open(files_, Write(records, Compression::kNone)));
  ASSERT_EQ(file->size(), 5001);
  std::string record;
  for (const std::int64_t i : {3, 8, 5000, 0, 77, 78, 4321}) {
    ASSERT_TRUE(file->Read(i, record).ok());
    EXPECT_EQ(record, records[static_cast<std::size_t>(i)]) << i;
  }
  EXPECT_THROW(static_cast<void>(file->Read(5001, record)), ContractError);
  EXPECT_THROW(static_cast<void>(file->Read(-1, record)), ContractError);
}

TEST_F(RawRecordFile, RandomAccessFindsDamage) {
  std::string content = *ReadFile(files_, Write(kRecords, Compression::kNone));
  content[19 + 12] = 'c';
  const auto file = OrThrow(RecordFile::Open(files_, Put(content)));
  std::string record;
  EXPECT_TRUE(file->Read(0, record).ok());
  EXPECT_NE(file->Read(1, record).message().find("record 1 at byte 19: corrupted"),
            std::string::npos);
  EXPECT_TRUE(file->Read(2, record).ok());
  for (std::size_t size = 1; size < content.size(); ++size) {
    const bool boundary = size == 19 || size == 38 || size == 54;
    EXPECT_EQ(RecordFile::Open(files_, Put(content.substr(0, size))).ok(), boundary) << size;
  }
  EXPECT_EQ(OrThrow(RecordFile::Open(files_, Put("")))->size(), 0);
}

TEST_F(RawRecordFile, FlushedRecordsAreSeenByAReader) {
  for (const Compression c : {Compression::kNone, Compression::kGzip, Compression::kZlib}) {
    const std::string path = dir_ / std::string(CompressionName(c));
    auto writer = OrThrow(RecordWriter::Create(files_, path, c));
    OrThrow(writer->Write("first"));
    OrThrow(writer->Flush());
    auto reader = OrThrow(RecordReader::Open(files_, path, c));
    EXPECT_EQ(OrThrow(reader->Next()), "first");
    OrThrow(writer->Close());
    EXPECT_TRUE(writer->Close().ok()) << "closing twice is fine";
    EXPECT_THROW(static_cast<void>(writer->Write("late")), ContractError);
  }
}

// Large packed files are unpacked by a thread, ahead of who reads: the same records and errors.
TEST_F(RawRecordFile, PackedFilesAreUnpackedAhead) {
  std::vector<std::string> records;
  for (int i = 0; i < 600; ++i) {
    records.emplace_back(static_cast<std::size_t>(i % 50) * 977, static_cast<char>('a' + i % 26));
  }
  for (const Compression c : {Compression::kGzip, Compression::kZlib}) {
    const std::string path = Write(records, c);
    {
      const auto reader = OrThrow(RecordReader::Open(FileSystem::Local(), path));
      for (const std::string& record : records) {
        ASSERT_EQ(OrThrow(reader->Next()), record);
      }
      for (int again = 0; again < 2; ++again) {
        EXPECT_EQ(OrThrow(reader->Next()), std::nullopt) << "the end stays";
      }
    }
    for (const int taken : {1, 100, 300, 599}) {  // ends anywhere
      const auto reader = OrThrow(RecordReader::Open(FileSystem::Local(), path));
      for (int i = 0; i < taken; ++i) {
        ASSERT_TRUE(reader->Next().ok());
      }
    }
    // Cut off near the end: the records before it, then an error that stays.
    const std::string bytes = OrThrow(ReadFile(FileSystem::Local(), path));
    OrThrow(WriteFileAtomically(FileSystem::Local(), path, bytes.substr(0, bytes.size() * 9 / 10)));
    const auto reader = OrThrow(RecordReader::Open(FileSystem::Local(), path));
    std::size_t sound = 0;
    while (reader->Next().ok()) {
      ++sound;
    }
    EXPECT_GT(sound, 400U);
    EXPECT_LT(sound, records.size());
    for (int again = 0; again < 2; ++again) {
      const Status status = reader->Next().status();
      EXPECT_EQ(status.code(), StatusCode::kDataLoss);
      EXPECT_NE(status.message().find("cut off"), std::string::npos) << status.message();
    }
  }
}

// The checksum of each member is compared by whoever reads, wherever its end falls.
TEST_F(RawRecordFile, AWrongChecksumOfAMemberIsFoundAheadToo) {
  std::vector<std::string> records;
  for (int i = 0; i < 900; ++i) {
    records.emplace_back(static_cast<std::size_t>(i % 50) * 97, static_cast<char>('a' + i % 26));
  }
  for (const Compression c : {Compression::kGzip, Compression::kZlib}) {
    const std::string member = OrThrow(ReadFile(FileSystem::Local(), Write(records, c)));
    const std::size_t trailer = c == Compression::kGzip ? 8 : 4;
    for (std::size_t at = 1; at <= trailer; ++at) {  // of the third of five: 2 MB each
      std::string third = member;
      third[third.size() - at] = static_cast<char>(third[third.size() - at] ^ 1);
      const std::string path = Put(member + member + third + member + member);
      const auto [read, status] = ReadAll(path);
      EXPECT_EQ(status.code(), StatusCode::kDataLoss);
      EXPECT_NE(status.message().find("has a wrong checksum, at byte " +
                                      std::to_string(3 * member.size())),
                std::string::npos)
          << status.message();
      EXPECT_EQ(read.size(), 3 * records.size());
    }
    const auto [read, status] = ReadAll(Put(member + member + member + member + member));
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(read.size(), 5 * records.size());
  }
}

TEST_F(RawRecordFile, AfterAReadErrorTheSameRecordIsTriedAgain) {
  const std::vector<std::string> records = {std::string(400'000, 'a'), std::string(900'000, 'b'),
                                            "c"};
  for (const Compression c : {Compression::kNone, Compression::kGzip}) {
    const std::string path = Write(records, c);
    bool broken = false;
    testing::FaultyFileSystem flaky([&broken](std::string_view operation, const std::string&) {
      return broken && operation == "read" ? Unavailable("the disk is away") : Status();
    });
    auto reader = OrThrow(RecordReader::Open(flaky, path));
    EXPECT_EQ(OrThrow(reader->Next()), records[0]);
    const std::uint64_t before = reader->offset();
    broken = true;
    const auto failed = reader->Next();
    if (!failed.ok()) {  // small packed files are in the buffer already
      EXPECT_EQ(failed.status().code(), StatusCode::kUnavailable);
      EXPECT_EQ(reader->offset(), before);
      broken = false;
      EXPECT_EQ(OrThrow(reader->Next()), records[1]);
    } else {
      EXPECT_EQ(c, Compression::kGzip);
    }
    broken = false;
    EXPECT_EQ(OrThrow(reader->Next()), records[2]);
  }
}

}  // namespace
}  // namespace cohort::io
