#include <cohort/io/safetensors.h>
#include <gtest/gtest.h>

#include <fstream>

#include "testing/hex.h"
#include "testing/temp_dir.h"

namespace cohort::io {
namespace {

class SafetensorsTest : public ::testing::Test {
 protected:
  Result<std::vector<SafetensorsEntry>> ReadBytes(const std::string& bytes) {
    const std::string path = dir_ / "t.safetensors";
    std::ofstream(path, std::ios::binary) << bytes;
    const auto file = OrThrow(FileSystem::Local().OpenForRead(path));
    return ReadSafetensorsHeader(*file, path);
  }
  // A file of this JSON as it stands and `data` bytes.
  Result<std::vector<SafetensorsEntry>> ReadJson(const std::string& json, std::size_t data) {
    const std::uint64_t n = json.size();
    return ReadBytes(std::string(reinterpret_cast<const char*>(&n), 8) + json +
                     std::string(data, 'd'));
  }
  void ExpectRejected(const std::string& json, std::size_t data, const std::string& part) {
    const auto result = ReadJson(json, data);
    EXPECT_EQ(result.status().code(), StatusCode::kDataLoss) << json;
    EXPECT_NE(result.status().message().find(part), std::string::npos)
        << json << ": " << result.status().message();
    EXPECT_NE(result.status().message().find("t.safetensors"), std::string::npos);
  }
  testing::TempDir dir_;
};

TEST_F(SafetensorsTest, GoldenBytes) {
  const std::vector<SafetensorsEntry> a = {{.name = "a", .shape = {2}}};
  const std::string header = EncodeSafetensorsHeader(a);
  EXPECT_EQ(testing::ToHex(header.substr(0, 8)), "3800000000000000");
  EXPECT_EQ(header.substr(8), R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  )");
  const auto read = ReadBytes(header + testing::FromHex("0000803f00000040"));
  ASSERT_TRUE(read.ok()) << read.status().ToString();
  EXPECT_EQ(*read,
            (std::vector<SafetensorsEntry>{{.name = "a", .shape = {2}, .begin = 64, .end = 72}}));
}

TEST_F(SafetensorsTest, AllTypesShapesAndMetadata) {
  const std::vector<SafetensorsEntry> entries = {
      {.name = "z", .dtype = DType::kFloat64, .shape = {2, 3}},
      {.name = "empty", .dtype = DType::kInt32, .shape = {4, 0}},
      {.name = "scalar", .dtype = DType::kInt64, .shape = {}},
      {.name = "h", .dtype = DType::kFloat16, .shape = {3}},
      {.name = "b", .dtype = DType::kBFloat16, .shape = {3}},
      {.name = "u \"quoted\"", .dtype = DType::kUInt8, .shape = {5}},
  };
  const auto read = ReadBytes(EncodeSafetensorsHeader(entries, {{"k", "v"}}) +
                              std::string(48 + 8 + 6 + 6 + 5, 'd'));
  ASSERT_TRUE(read.ok()) << read.status().ToString();
  ASSERT_EQ(read->size(), entries.size());
  for (const SafetensorsEntry& wanted : entries) {
    const auto it = std::find_if(read->begin(), read->end(),
                                 [&](const auto& e) { return e.name == wanted.name; });
    ASSERT_NE(it, read->end()) << wanted.name;
    EXPECT_EQ(it->dtype, wanted.dtype);
    EXPECT_EQ(it->shape, wanted.shape);
    EXPECT_EQ(it->end - it->begin,
              static_cast<std::uint64_t>(wanted.shape.elements()) * SizeOf(wanted.dtype));
  }
  EXPECT_TRUE(ReadBytes(EncodeSafetensorsHeader({})).ok()) << "no tensors at all";
}

TEST_F(SafetensorsTest, RejectsBadSizes) {
  EXPECT_EQ(ReadBytes("").status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(ReadBytes("1234567").status().code(), StatusCode::kDataLoss);
  EXPECT_NE(ReadBytes(testing::FromHex("0900000000000000") + "{}")
                .status()
                .message()
                .find("larger than the file"),
            std::string::npos);
  EXPECT_NE(ReadBytes(testing::FromHex("ffffffffffffffff") + "{}")
                .status()
                .message()
                .find("larger than the format allows"),
            std::string::npos);
}

TEST_F(SafetensorsTest, RejectsBadHeaders) {
  ExpectRejected(" {}", 0, "begin with {");
  ExpectRejected("[]", 0, "begin with {");
  ExpectRejected("{", 0, "no JSON");
  ExpectRejected("{} x", 0, "no JSON");
  ExpectRejected(R"({"a":1})", 0, "needs exactly");
  ExpectRejected(R"({"a":{"dtype":"F32","shape":[1]}})", 4, "needs exactly");
  ExpectRejected(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4,
                 "needs exactly");
  ExpectRejected(R"({"__metadata__":{"k":1}})", 0, "strings only");
  ExpectRejected(R"({"__metadata__":"k"})", 0, "strings only");
  ExpectRejected(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)"
                 R"("a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})",
                 0, "\"a\" stands twice");
}

TEST_F(SafetensorsTest, RejectsBadEntries) {
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}}";
  };
  ASSERT_TRUE(ReadJson(entry("\"F32\"", "[2]", "[0,8]"), 8).ok());
  ExpectRejected(entry("\"F8_E4M3\"", "[2]", "[0,8]"), 8, "not supported");
  ExpectRejected(entry("32", "[2]", "[0,8]"), 8, "not supported");
  ExpectRejected(entry("\"F32\"", "2", "[0,8]"), 8, "no list of sizes");
  ExpectRejected(entry("\"F32\"", "[-2]", "[0,8]"), 8, "no list of sizes");
  ExpectRejected(entry("\"F32\"", "[2.0]", "[0,8]"), 8, "no list of sizes");
  ExpectRejected(entry("\"F32\"", "[18446744073709551615]", "[0,8]"), 8, "too large");
  ExpectRejected(entry("\"F32\"", "[4294967296,4294967296]", "[0,0]"), 0, "too large");
  ExpectRejected(entry("\"F32\"", "[2305843009213693952,8]", "[0,0]"), 0, "too large");
  ExpectRejected(entry("\"F32\"", "[2]", "[0]"), 8, "no [begin, end]");
  ExpectRejected(entry("\"F32\"", "[2]", "[-8,0]"), 8, "no [begin, end]");
  ExpectRejected(entry("\"F32\"", "[2]", "[8,0]"), 8, "outside");
  ExpectRejected(entry("\"F32\"", "[2]", "[0,9]"), 8, "outside");
  ExpectRejected(entry("\"F32\"", "[2]", "[0,4]"), 4, "takes 4 bytes, but");
  ExpectRejected(entry("\"F32\"", "[2]", "[0,8]"), 9, "1 bytes at the end");
  ExpectRejected(entry("\"F32\"", "[2]", "[1,9]"), 9, "gap");
  ExpectRejected(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                 R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                 12, "overlaps");
  ExpectRejected(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                 R"("b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
                 12, "gap");
}

TEST_F(SafetensorsTest, WritingTwoOfANameIsTheCallersBreach) {
  const std::vector<SafetensorsEntry> twice = {{.name = "a", .shape = {1}},
                                               {.name = "a", .shape = {1}}};
  EXPECT_THROW(static_cast<void>(EncodeSafetensorsHeader(twice)), ContractError);
  const std::vector<SafetensorsEntry> latin = {{.name = "a\xff", .shape = {1}}};
  EXPECT_THROW(static_cast<void>(EncodeSafetensorsHeader(latin)), ContractError);
}

}  // namespace
}  // namespace cohort::io
