// Text, a line an example.

#include <cohort/data/text_lines.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <charconv>
#include <stdexcept>

#include <cohort/core/random.h>
#include <cohort/io/compression.h>

#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class TextLinesTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& bytes) {
    const std::string path = folder_ / name;
    OrThrow(WriteFileAtomically(FileSystem::Local(), path, bytes));
    return path;
  }
  static std::vector<std::string> Read(const Dataset& data) {
    std::vector<std::string> lines;
    for (std::int64_t i = 0; i < data.size(); ++i) {
      const Example example = OrThrow(data.source().Read(i));
      lines.emplace_back(reinterpret_cast<const char*>(example.at("line").raw()),
                         static_cast<std::size_t>(example.at("length").data<std::int64_t>()[0]));
    }
    return lines;
  }
  std::vector<std::string> LinesOf(const std::string& bytes) {
    return Read(OrThrow(TextLines({Write("text", bytes)}, {.decoder = PaddedLine(20)})));
  }
  testing::TempDir folder_;
};

TEST_F(TextLinesTest, LinesEndInLfCrlfOrWithTheFile) {
  EXPECT_THAT(LinesOf(""), ElementsAre());
  EXPECT_THAT(LinesOf("\n"), ElementsAre(""));
  EXPECT_THAT(LinesOf("a"), ElementsAre("a"));
  EXPECT_THAT(LinesOf("a\nbc\n"), ElementsAre("a", "bc"));
  EXPECT_THAT(LinesOf("a\r\n\r\nb\rc\r\nd"), ElementsAre("a", "", "b\rc", "d"));
  EXPECT_THAT(LinesOf("\xEF\xBB\xBF"), ElementsAre());
  EXPECT_THAT(LinesOf("\xEF\xBB\xBFgr\xC3\xBC\xC3\x9F\n"), ElementsAre("gr\xC3\xBC\xC3\x9F"));
  EXPECT_THAT(LinesOf(std::string("a\0b\n", 4)), ElementsAre(std::string("a\0b", 3)));
}

TEST_F(TextLinesTest, LinesAcrossThePiecesOfTheWalk) {
  // Line ends around 1 MiB, where the walk reads on.
  for (const std::size_t first : {(1U << 20) - 2, (1U << 20) - 1, 1U << 20, (1U << 20) + 1}) {
    const Dataset data = OrThrow(TextLines(
        {Write("text", std::string(first, 'a') + "\nbb\n" + std::string((1U << 20) - 3, 'c'))},
        {.decoder = PaddedLine(2, /*cut=*/true)}));
    EXPECT_THAT(Read(data), ElementsAre("aa", "bb", "cc"));
  }
}

TEST_F(TextLinesTest, FilesFollowOneAnotherAndGzipIsToldByContent) {
  const Dataset data = OrThrow(
      TextLines({Write("1", "head\nx\ny\n"), Write("2", "head\n"), Write("3", io::Gzip("head\nz"))},
                {.decoder = PaddedLine(4), .skip_lines = 1}));
  EXPECT_THAT(Read(data), ElementsAre("x", "y", "z"));
  EXPECT_THAT(data.source().Where(1), HasSubstr("1, line 3"));
  EXPECT_THAT(data.source().Where(2), HasSubstr("3, line 2"));
  EXPECT_EQ(data.source().files().size(), 3U);
  EXPECT_EQ(OrThrow(TextLines({folder_ / "1"}, {.skip_lines = 9})).size(), 0);
}

TEST_F(TextLinesTest, HashesAreOfTheLineWithoutItsEnd) {
  const std::string path = Write("text", "one\r\ntwo\none");
  const auto hashes = [&](const LineDecoder& decoder) {
    const auto batch = OrThrow(
        OrThrow(OrThrow(TextLines({path}, {.decoder = decoder})).Batch(3).Iterate())->Next());
    const auto values = (*batch)["line"].data<std::int64_t>();
    return std::vector<std::int64_t>(values.begin(), values.end());
  };
  const auto one = Hash64("one");
  const auto two = Hash64("two");
  EXPECT_THAT(hashes(HashedLine()),
              ElementsAre(static_cast<std::int64_t>(one), static_cast<std::int64_t>(two),
                          static_cast<std::int64_t>(one)));
  EXPECT_THAT(hashes(HashedLine(100)), ElementsAre(one % 100, two % 100, one % 100));
}

TEST_F(TextLinesTest, ADecoderOfTheCallersOwn) {
  LineDecoder decoder = {
      .features = {{"x", DType::kInt32, Shape()}},
      .decode =
          [](std::string_view line, std::span<std::byte* const> rows) {
            if (line == "throw") {
              throw std::runtime_error("no such line");
            }
            auto* const x = reinterpret_cast<std::int32_t*>(rows[0]);
            const auto [end, error] = std::from_chars(line.begin(), line.end(), *x);
            return error == std::errc() && end == line.end()
                       ? Status()
                       : InvalidArgument("'" + std::string(line) + "' is no number");
          },
      .name = "number"};
  const Dataset data =
      OrThrow(TextLines({Write("text", "5\nfive\nthrow\n")}, {.decoder = decoder}));
  EXPECT_THAT(OrThrow(data.source().Read(0)).at("x").data<std::int32_t>(), ElementsAre(5));
  const Status status = data.source().Read(1).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), AllOf(StartsWith(folder_ / "text"), HasSubstr("line 2: 'five'")));
  EXPECT_THAT(data.source().Read(2).status().message(),
              HasSubstr("line 3: exception: no such line"));
  decoder.name = "another";
  EXPECT_NE(OrThrow(TextLines({folder_ / "text"}, {.decoder = decoder})).Fingerprint(),
            data.Fingerprint());
}

TEST_F(TextLinesTest, LinesThatAreTooLong) {
  const std::string path = Write("text", "abcde\nabcdef\n");
  const Dataset data = OrThrow(TextLines({path}, {.decoder = PaddedLine(5)}));
  EXPECT_TRUE(data.source().Read(0).ok());
  EXPECT_THAT(data.source().Read(1).status().message(),
              HasSubstr("line 2: holds 6 bytes, 5 are the longest"));
  EXPECT_THAT(Read(OrThrow(TextLines({path}, {.decoder = PaddedLine(5, true)}))),
              ElementsAre("abcde", "abcde"));
  const Status status = TextLines({path}, {.max_line_bytes = 6}).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("text, line 2 at byte 6: longer than 6 bytes"));
  // A file that is no text ends the walk at the first pieces.
  EXPECT_THAT(TextLines({Write("binary", std::string(3 << 20, '\0'))},
                        {.max_line_bytes = std::size_t{1} << 20})
                  .status()
                  .message(),
              HasSubstr("line 1 at byte 0: longer than 1048576 bytes"));
}

TEST_F(TextLinesTest, AFileThatBecameShorterIsNamedWithTheLine) {
  const std::string path = Write("text", "one\ntwo\n");
  const Dataset data = OrThrow(TextLines({path}));
  std::filesystem::resize_file(path, 5);
  EXPECT_TRUE(data.source().Read(0).ok());
  EXPECT_THAT(data.source().Read(1).status().message(),
              AllOf(StartsWith(path + ", line 2"), HasSubstr("became shorter")));
}

TEST_F(TextLinesTest, OptionsThatMakeNoSense) {
  const std::string path = Write("text", "a\n");
  EXPECT_EQ(TextLines({}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(TextLines({folder_ / "nothing"}).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(TextLines({path}, {.decoder = {}}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(TextLines({path}, {.skip_lines = -1}).status().code(), StatusCode::kInvalidArgument);
  LineDecoder twice = PaddedLine(3);
  twice.features[1].name = "line";
  EXPECT_THAT(TextLines({path}, {.decoder = twice}).status().message(),
              HasSubstr("'line' stands twice"));
  EXPECT_THROW(PaddedLine(0), ContractError);
  EXPECT_THROW(HashedLine(-1), ContractError);
  const std::string packed = io::Gzip("abc\n");
  EXPECT_EQ(TextLines({Write("cut.gz", packed.substr(0, packed.size() - 3))}).status().code(),
            StatusCode::kDataLoss);
}

// Lines as `wc -l` counts them.
TEST(TextLinesRealData, TinyShakespeare) {
  const std::string folder = testing::RealData("text");
  if (folder.empty()) {
    GTEST_SKIP() << "no real data [COHORT_TEST_DATA]";
  }
  const Dataset data =
      OrThrow(TextLines({folder + "/tinyshakespeare.txt"}, {.decoder = PaddedLine(70)}));
  EXPECT_EQ(data.size(), 40000);
  std::int64_t bytes = 0;
  auto iterator = OrThrow(data.Shuffle(1).Batch(500).Prefetch(2).Iterate());
  while (const auto batch = OrThrow(iterator->Next())) {
    for (const std::int64_t length : (*batch)["length"].data<std::int64_t>()) {
      bytes += length + 1;
    }
  }
  EXPECT_EQ(bytes, 1115394);
}

}  // namespace
}  // namespace cohort::data
