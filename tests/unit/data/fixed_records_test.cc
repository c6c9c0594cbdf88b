// Records of one length, good and bad.

#include <cohort/data/fixed_records.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/io/compression.h>

#include "testing/hex.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FromHex;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class FixedRecordsTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& bytes) {
    const std::string path = folder_ / name;
    OrThrow(WriteFileAtomically(FileSystem::Local(), path, bytes));
    return path;
  }
  testing::TempDir folder_;
};

TEST_F(FixedRecordsTest, FieldsStandAtTheirOffsetsInBothByteOrders) {
  // header aaaa | int16-like gap, float32 1.5 little-endian, int32 big-endian, two bytes | footer
  // ff
  const std::string path = Write("r", FromHex("aaaa"
                                              "0000 0000c03f 00000102 0304"
                                              "0000 000000c0 fffffffe 0506"
                                              "ff"));
  const Dataset data = OrThrow(FixedRecords(
      {path}, {.record_bytes = 12,
               .fields = {{.name = "f", .offset = 2, .dtype = DType::kFloat32},
                          {.name = "i", .offset = 6, .dtype = DType::kInt32, .big_endian = true},
                          {.name = "b", .offset = 10, .shape = {2}},
                          {.name = "none", .offset = 12, .shape = {0}}},
               .header_bytes = 2,
               .footer_bytes = 1}));
  ASSERT_EQ(data.size(), 2);
  const Example first = OrThrow(data.source().Read(0));
  EXPECT_THAT(first.at("f").data<float>(), ElementsAre(1.5F));
  EXPECT_THAT(first.at("i").data<std::int32_t>(), ElementsAre(258));
  EXPECT_THAT(first.at("b").data<std::uint8_t>(), ElementsAre(3, 4));
  const Example second = OrThrow(data.source().Read(1));
  EXPECT_THAT(second.at("f").data<float>(), ElementsAre(-2.0F));
  EXPECT_THAT(second.at("i").data<std::int32_t>(), ElementsAre(-2));
  EXPECT_THAT(data.source().Where(1), HasSubstr("r, record 1"));
}

TEST_F(FixedRecordsTest, CifarsBinaryVersion) {
  // A label and 3 x 32 x 32 bytes, planes one after another.
  std::string bytes;
  for (int i = 0; i < 3; ++i) {
    bytes += static_cast<char>(i + 4);
    bytes += std::string(3072, static_cast<char>(i * 10));
  }
  const Dataset data = OrThrow(FixedRecords(
      {Write("data_batch_1.bin", bytes), Write("empty.bin", "")},
      {.record_bytes = 3073,
       .fields = {{.name = "label"}, {.name = "image", .offset = 1, .shape = {3, 32, 32}}}}));
  EXPECT_EQ(data.size(), 3);
  const auto batch = OrThrow(OrThrow(data.Batch(3).Iterate())->Next());
  EXPECT_THAT((*batch)["label"].data<std::uint8_t>(), ElementsAre(4, 5, 6));
  EXPECT_EQ((*batch)["image"].shape(), Shape({3, 3, 32, 32}));
  EXPECT_EQ((*batch)["image"].data<std::uint8_t>()[3072], 10);
}

TEST_F(FixedRecordsTest, FilesThatAreNoWholeNumberOfRecords) {
  const FixedRecordOptions options = {
      .record_bytes = 10, .fields = {{.name = "b"}}, .header_bytes = 3, .footer_bytes = 2};
  const auto status = [&](const std::string& bytes) {
    return FixedRecords({Write("bad", bytes)}, options).status();
  };
  EXPECT_THAT(status("xxxx").message(),
              AllOf(StartsWith(folder_ / "bad"), HasSubstr("4 bytes, header and footer are 5")));
  EXPECT_EQ(status("").code(), StatusCode::kDataLoss);
  EXPECT_TRUE(status(std::string(5, 'x')).ok());
  EXPECT_TRUE(status(std::string(25, 'x')).ok());
  for (std::size_t size = 6; size < 15; ++size) {
    EXPECT_THAT(status(std::string(size, 'x')).message(),
                HasSubstr("record 0 at byte 3 has " + std::to_string(size - 5) + " of 10 bytes"));
  }
  EXPECT_THAT(status(std::string(24, 'x')).message(), HasSubstr("record 1 at byte 13 has 9 of 10"));
}

TEST_F(FixedRecordsTest, GzipIsAskedForAndNeverGuessed) {
  FixedRecordOptions options = {.record_bytes = 4, .fields = {{.name = "b", .shape = {4}}}};
  // Records may begin as gzip does.
  const std::string raw = Write("raw", FromHex("1f8b0102 03040506"));
  EXPECT_THAT(
      OrThrow(OrThrow(FixedRecords({raw}, options)).source().Read(0)).at("b").data<std::uint8_t>(),
      ElementsAre(0x1f, 0x8b, 1, 2));
  const std::string packed = io::Gzip("abcdefgh");
  const std::string path = Write("packed", packed);
  options.record_bytes = packed.size() - 1;
  EXPECT_THAT(FixedRecords({path}, options).status().message(),
              HasSubstr("set FixedRecordOptions.gzip"));
  options.record_bytes = 4;
  options.gzip = true;
  EXPECT_EQ(OrThrow(FixedRecords({path}, options)).size(), 2);
  EXPECT_THAT(FixedRecords({Write("plain", "abcd")}, options).status().message(),
              HasSubstr("plain: does not begin as gzip does"));
  EXPECT_EQ(
      FixedRecords({Write("cut", packed.substr(0, packed.size() - 1))}, options).status().code(),
      StatusCode::kDataLoss);
}

TEST_F(FixedRecordsTest, OptionsThatMakeNoSense) {
  const std::string path = Write("r", "12345678");
  const auto status = [&path](const FixedRecordOptions& options) {
    return FixedRecords({path}, options).status();
  };
  EXPECT_EQ(FixedRecords({}, {.record_bytes = 4, .fields = {{.name = "b"}}}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(status({.record_bytes = 0, .fields = {{.name = "b"}}}).code(),
            StatusCode::kInvalidArgument);
  EXPECT_THAT(status({.record_bytes = 4}).message(), HasSubstr("no fields to read"));
  EXPECT_THAT(status({.record_bytes = 4, .fields = {{.name = "b"}, {.name = "b"}}}).message(),
              HasSubstr("'b' is asked for twice"));
  const auto reaches = HasSubstr("reaches beyond the record of 4 bytes");
  EXPECT_THAT(status({.record_bytes = 4, .fields = {{.name = "b", .offset = 4}}}).message(),
              reaches);
  EXPECT_THAT(status({.record_bytes = 4, .fields = {{.name = "b", .offset = SIZE_MAX}}}).message(),
              reaches);
  EXPECT_THAT(
      status({.record_bytes = 4, .fields = {{.name = "b", .shape = {INT64_MAX, 4}}}}).message(),
      reaches);
  EXPECT_EQ(status({.record_bytes = 4,
                    .fields = {{.name = "b"}},
                    .header_bytes = SIZE_MAX,
                    .footer_bytes = 2})
                .code(),
            StatusCode::kInvalidArgument);
}

TEST_F(FixedRecordsTest, AFileThatBecameShorterIsNamedWithTheRecord) {
  const std::string path = Write("r", "12345678");
  const Dataset data =
      OrThrow(FixedRecords({path}, {.record_bytes = 4, .fields = {{.name = "b", .shape = {4}}}}));
  std::filesystem::resize_file(path, 6);
  EXPECT_TRUE(data.source().Read(0).ok());
  EXPECT_THAT(data.source().Read(1).status().message(),
              AllOf(StartsWith("record 1: " + path), HasSubstr("4 bytes expected at byte 4")));
}

}  // namespace
}  // namespace cohort::data
