// CSV files, good and bad.

#include <cohort/data/csv.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <cohort/core/random.h>
#include <cohort/io/compression.h>

#include "commands/watched_files.h"
#include "sources/csv_reader.h"
#include "sources/csv_rows.h"
#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CsvTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = folder_ / name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  Result<CsvData> Read(const std::string& text, std::vector<CsvColumn> columns) {
    return Csv({Write("t.csv", text)}, {.columns = std::move(columns)});
  }
  std::string Error(const std::string& text, std::vector<CsvColumn> columns) {
    const Status status = Read(text, std::move(columns)).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    return status.message();
  }

  testing::TempDir folder_;
};

template <typename T>
std::vector<T> All(const Dataset& dataset, const std::string& feature) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < dataset.size(); ++i) {
    const Example example = OrThrow(dataset.source().Read(i));
    const auto data = example.at(feature).template data<T>();
    values.insert(values.end(), data.begin(), data.end());
  }
  return values;
}

const std::vector<CsvColumn> kTwoColumns = {
    {.name = "n", .type = CsvType::kInt64},
    {.name = "t", .type = CsvType::kHash, .buckets = 1'000'000'000}};

// Every part of files, one behind the other; the message of the first that is an error.
struct Parts {
  std::vector<std::int64_t> values;
  std::string error;
};
Parts ReadParts(const std::vector<std::string>& paths, int count, int threads = 1) {
  Parts parts;
  for (int i = 0; i < count; ++i) {
    const auto part = Csv(paths, {.columns = kTwoColumns, .threads = threads, .part = {i, count}});
    if (!part.ok()) {
      parts.error = parts.error.empty() ? part.status().message() : parts.error;
      continue;
    }
    for (const char* const feature : {"n", "t"}) {
      const auto values = All<std::int64_t>(part->dataset, feature);
      // By row, so that parts one behind the other are the whole.
      for (std::size_t row = 0; row < values.size(); ++row) {
        if (feature[0] == 'n') {
          parts.values.push_back(values[row]);
          parts.values.push_back(0);
        } else {
          parts.values[parts.values.size() - 2 * values.size() + 2 * row + 1] = values[row];
        }
      }
    }
  }
  return parts;
}

// For any count: more parts than rows, cuts within headers, rows and line ends.
TEST_F(CsvTest, PartsAreEveryRowOnce) {
  Philox random(5);
  std::uint64_t at = 0;
  const auto below = [&](std::uint64_t bound) { return random.Below(bound, at++); };
  for (int round = 0; round < 60; ++round) {
    std::vector<std::string> paths;
    for (std::uint64_t file = 0; file <= below(3); ++file) {
      const std::string end = below(2) == 0 ? "\n" : "\r\n";
      std::string text = std::string(below(2) == 0 ? "\xEF\xBB\xBF" : "") + "n,t" + end;
      for (std::uint64_t row = below(12); row > 0; --row) {
        text += std::to_string(below(2000)) + "," +
                (below(3) == 0 ? "\"a, \"\"b\"" : std::string(below(9), 'x') + "y") + end +
                (below(5) == 0 ? end : "");
      }
      if (below(2) == 0) {
        text.resize(text.size() - end.size());  // no final line end
      }
      paths.push_back(Write(std::to_string(round) + "-" + std::to_string(file), text));
    }
    const Parts whole = ReadParts(paths, 1);
    ASSERT_EQ(whole.error, "");
    for (const int count : {2, 3, 5, 17, 100}) {
      const Parts parts = ReadParts(paths, count);
      ASSERT_EQ(parts.error, "") << paths[0] << " " << count;
      ASSERT_EQ(parts.values, whole.values) << paths[0] << " " << count;
    }
  }
}

// A line feed in quotes: where no part begins at it all is as ever; otherwise a part is an error.
TEST_F(CsvTest, PartsWithLineFeedsInQuotesAreRightOrAnError) {
  std::string text = "n,t\n";
  for (int i = 0; i < 40; ++i) {
    text += std::to_string(i) + (i % 4 == 0 ? ",\"a\n1,b\n\"\n" : ",c\n");
  }
  const std::vector<std::string> paths = {Write("q.csv", text), Write("r.csv", "n,t\n7,d\n")};
  const Parts whole = ReadParts(paths, 1);
  ASSERT_EQ(whole.values.size(), 2 * 41U);
  int right = 0;
  int refused = 0;
  for (int count = 2; count < 80; ++count) {
    const Parts parts = ReadParts(paths, count);
    if (parts.error.empty()) {
      ++right;
      EXPECT_EQ(parts.values, whole.values) << count;
    } else {
      ++refused;
    }
  }
  EXPECT_GT(right, 0);
  EXPECT_GT(refused, 0);
  const std::string cut = Write("cut.csv", "n,t\n1,\"aaaaaaaaaaaaaaaa\n1,b\"\n2,c\n");
  EXPECT_THAT(ReadParts({cut}, 2).error,
              AllOf(HasSubstr("cut.csv, part 0 of 2 from byte 4, line 2: a quote is opened"),
                    HasSubstr("byte 24, where the next part begins, lies in quotes")));
}

// A large file, on threads, and what of it is read.
TEST_F(CsvTest, APartReadsItsOwnBytes) {
  std::string text = "n,t\n";
  for (int i = 0; text.size() < 5'000'000; ++i) {
    text += std::to_string(i) + ",text " + std::to_string(i % 1000) + "\n";
  }
  const std::string path = Write("large.csv", text);
  EXPECT_EQ(ReadParts({path}, 3, 2).values, ReadParts({path}, 1).values);
  std::atomic<std::uint64_t> read = 0;
  WatchedFiles watched(FileSystem::Local(), [&read](std::uint64_t begin, std::uint64_t end,
                                                    std::uint64_t) { read += end - begin; });
  for (int i = 0; i < 4; ++i) {
    read = 0;
    OrThrow(Csv({path, path},
                {.columns = kTwoColumns, .threads = 2, .part = {i, 4}, .files = &watched}));
    EXPECT_GE(read, 2 * text.size() / 4);
    EXPECT_LT(read, 2 * text.size() / 4 + 20'000);
  }
}

TEST_F(CsvTest, PartsThatCannotBeAreRefused) {
  const std::string path = Write("t.csv", "n,t\n1,a\n2\n3,c\n");
  const auto error = [&](const std::string& file, CsvOptions options) {
    return Csv({file}, options).status().message();
  };
  EXPECT_THAT(error(path, {.columns = kTwoColumns, .part = {2, 2}}), HasSubstr("part 2 of 2"));
  EXPECT_THAT(error(path, {.columns = {{.name = "t", .type = CsvType::kCategory}}, .part = {0, 2}}),
              AllOf(HasSubstr("column 't'"), HasSubstr("other categories")));
  EXPECT_THAT(error(path, {.columns = {{.name = "x"}}, .part = {1, 2}}),
              HasSubstr("no column 'x'"));
  EXPECT_THAT(error(path, {.columns = kTwoColumns, .part = {1, 2}}),
              HasSubstr("t.csv, part 1 of 2 from byte 8, line 2: 1 fields"));
  EXPECT_THAT(error(Write("e.csv", ""), {.columns = kTwoColumns, .part = {1, 2}}),
              HasSubstr("e.csv: empty"));
  EXPECT_THAT(
      error(Write("z.csv", io::Gzip("n,t\n1,a\n")), {.columns = kTwoColumns, .part = {0, 2}}),
      HasSubstr("z.csv: gzip has no parts"));
}

// Numbers, texts that are first seen in other orders, missing values, blank lines, CRLF.
TEST_F(CsvTest, SeveralThreadsReadWhatOneReads) {
  for (const std::string quote : {"", "\""}) {
    std::string text = "n,x,city\n";
    for (int i = 0; i < 80'000; ++i) {
      text += std::to_string(i) + "," + (i % 11 == 0 ? "?" : std::to_string(i * 7 % 1000) + ".5") +
              ",c" + (i % 17 == 0 ? quote + quote : "") +
              std::to_string(i % 89 * 7 % 97 + i / 30'000) + (i % 5 == 0 ? "\r\n" : "\n") +
              (i % 1000 == 0 ? "\n" : "");
    }
    const std::string path = Write("large.csv", text);
    ASSERT_GT(text.size(), std::size_t{1} << 20);
    const auto read = [&](int threads) {
      return Csv({path}, {.columns = {{.name = "n", .type = CsvType::kInt64},
                                      {.name = "x", .missing = -1},
                                      {.name = "city", .type = CsvType::kCategory, .missing = -2}},
                          .threads = threads});
    };
    const CsvData one = OrThrow(read(1));
    for (const int threads : {2, 3, 7}) {
      const CsvData several = OrThrow(read(threads));
      ASSERT_EQ(several.dataset.size(), 80'000);
      EXPECT_EQ(several.categories, one.categories);
      EXPECT_EQ(several.dataset.Fingerprint(), one.dataset.Fingerprint()) << threads;
      for (const std::int64_t i : {0, 1, 29'999, 30'000, 79'999}) {
        EXPECT_EQ(several.dataset.source().Where(i), one.dataset.source().Where(i));
      }
    }
    text += "1,2\n1,2,3\n";
    Write("large.csv", text);
    EXPECT_EQ(read(3).status().message(), read(1).status().message());
    EXPECT_THAT(read(3).status().message(), HasSubstr("line 80082: 2 fields, the header has 3"));
  }
  EXPECT_THAT(Csv({"x"}, {.columns = {{.name = "n"}}, .threads = 0}).status().message(),
              HasSubstr("at least 1 thread"));
}

TEST_F(CsvTest, TypedColumnsBecomeFeatures) {
  const CsvData data = OrThrow(Read("age,city,id,name\n1.5,b,-7,x\n+2e1,a,9,y\n-3,b,0,x\n",
                                    {{.name = "age"},
                                     {.name = "id", .type = CsvType::kInt64},
                                     {.name = "city", .type = CsvType::kCategory},
                                     {.name = "name", .type = CsvType::kHash, .buckets = 1000}}));
  EXPECT_EQ(data.dataset.size(), 3);
  EXPECT_THAT(All<float>(data.dataset, "age"), ElementsAre(1.5F, 20, -3));
  EXPECT_THAT(All<std::int64_t>(data.dataset, "id"), ElementsAre(-7, 9, 0));
  EXPECT_THAT(All<std::int64_t>(data.dataset, "city"), ElementsAre(1, 0, 1));
  EXPECT_THAT(data.categories.at("city"), ElementsAre("a", "b"));
  const auto hashes = All<std::int64_t>(data.dataset, "name");
  EXPECT_EQ(hashes[0], hashes[2]);
  EXPECT_NE(hashes[0], hashes[1]);
  EXPECT_EQ(hashes[0], static_cast<std::int64_t>(Hash64("x") % 1000));
  EXPECT_EQ(data.dataset.source().Where(1), (folder_ / "t.csv") + ", line 3");
}

TEST_F(CsvTest, ColumnsOfOneFeatureAreAVector) {
  const CsvData data = OrThrow(Read(
      "a,b,c\n1,2,3\n4,5,6\n", {{.name = "c", .feature = "x"}, {.name = "a", .feature = "x"}}));
  const Example example = OrThrow(data.dataset.source().Read(1));
  EXPECT_EQ(example.size(), 1U);
  EXPECT_THAT(example.at("x").data<float>(), ElementsAre(6, 4));
}

TEST_F(CsvTest, QuotesLineEndsAndBlanks) {
  const CsvData data = OrThrow(
      Read("\xEF\xBB\xBF\"t\" , n\r\n\"a, \"\"b\"\"\nc\" ,1\r\n\r\n  plain text , 2\n\"\",3\n x,4",
           {{.name = "t", .type = CsvType::kCategory}, {.name = "n", .type = CsvType::kInt64}}));
  EXPECT_THAT(data.categories.at("t"), ElementsAre("", "a, \"b\"\nc", "plain text", "x"));
  EXPECT_THAT(All<std::int64_t>(data.dataset, "t"), ElementsAre(1, 2, 0, 3));
  EXPECT_THAT(All<std::int64_t>(data.dataset, "n"), ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(data.dataset.source().Where(1), (folder_ / "t.csv") + ", line 5");

  const CsvData untrimmed = OrThrow(Csv(
      {Write("t.csv", "t;n\n a;1\n")},
      {.columns = {{.name = "t", .type = CsvType::kCategory}}, .delimiter = ';', .trim = false}));
  EXPECT_THAT(untrimmed.categories.at("t"), ElementsAre(" a"));
}

TEST_F(CsvTest, MissingValuesAreAnErrorUnlessToldOtherwise) {
  const std::string text = "x,c\n1,a\n,?\n3,b\n";
  EXPECT_THAT(
      Error(text, {{.name = "x"}}),
      AllOf(HasSubstr("t.csv, line 3: column 'x': the value is missing"), HasSubstr("`missing`")));
  EXPECT_THAT(Error(text, {{.name = "c", .type = CsvType::kCategory}}), HasSubstr("column 'c'"));
  const CsvData data =
      OrThrow(Read(text, {{.name = "x", .missing = -1},
                          {.name = "c", .type = CsvType::kCategory, .missing = 2}}));
  EXPECT_THAT(All<float>(data.dataset, "x"), ElementsAre(1, -1, 3));
  EXPECT_THAT(All<std::int64_t>(data.dataset, "c"), ElementsAre(0, 2, 1));
}

TEST_F(CsvTest, GivenCategoriesKeepTheirPositions) {
  const CsvColumn column{.name = "c", .type = CsvType::kCategory, .categories = {"z", "a"}};
  const CsvData data = OrThrow(Read("c\na\nz\na\n", {column}));
  EXPECT_THAT(All<std::int64_t>(data.dataset, "c"), ElementsAre(1, 0, 1));
  EXPECT_THAT(data.categories.at("c"), ElementsAre("z", "a"));
  EXPECT_THAT(Error("c\na\nq\n", {column}),
              HasSubstr("line 3: column 'c': 'q' is not one of the 2 categories"));
  CsvColumn tolerant = column;
  tolerant.unknown = 2;
  EXPECT_THAT(All<std::int64_t>(OrThrow(Read("c\nq\n", {tolerant})).dataset, "c"), ElementsAre(2));
}

TEST_F(CsvTest, RowsOfTheWrongLengthNameFileLineAndCounts) {
  EXPECT_THAT(Error("a,b,c\n1,2,3\n4,5\n", {{.name = "a"}}),
              HasSubstr("t.csv, line 3: 2 fields, the header has 3"));
  EXPECT_THAT(Error("a,b\n1,2\n\n4,5,6\n", {{.name = "a"}}),
              HasSubstr("line 4: 3 fields, the header has 2"));
}

TEST_F(CsvTest, ValuesThatAreNotOfTheTypeNameLineAndColumn) {
  EXPECT_THAT(Error("a\n1\ntwo\n", {{.name = "a"}}),
              HasSubstr("line 3: column 'a': 'two' is not a finite number"));
  EXPECT_THAT(Error("a\n1x\n", {{.name = "a"}}), HasSubstr("'1x'"));
  EXPECT_THAT(Error("a\nnan\n", {{.name = "a"}}), HasSubstr("not a finite number"));
  EXPECT_THAT(Error("a\ninf\n", {{.name = "a"}}), HasSubstr("not a finite number"));
  EXPECT_THAT(Error("a\n1.0\n", {{.name = "a", .type = CsvType::kInt64}}),
              HasSubstr("'1.0' is not a 64-bit integer"));
  EXPECT_THAT(Error("a\n9223372036854775808\n", {{.name = "a", .type = CsvType::kInt64}}),
              HasSubstr("not a 64-bit integer"));
}

TEST_F(CsvTest, BrokenQuotesNameTheLine) {
  EXPECT_THAT(Error("a,b\n1,\"x\n2,y\n", {{.name = "a"}}),
              HasSubstr("line 2: a quote is opened and never closed"));
  EXPECT_THAT(Error("a,b\n1,\"x\"y\n", {{.name = "a"}}),
              HasSubstr("line 2: text follows a closing quote"));
}

TEST_F(CsvTest, EmptyFilesAndMissingColumns) {
  EXPECT_THAT(Error("", {{.name = "a"}}), HasSubstr("not even a header"));
  EXPECT_EQ(OrThrow(Read("a\n", {{.name = "a"}})).dataset.size(), 0);
  const Status status = Read("a,b\n", {{.name = "c"}}).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("no column 'c'; the header has: a, b"));
  EXPECT_EQ(Csv({folder_ / "nothing.csv"}, {.columns = {{.name = "a"}}}).status().code(),
            StatusCode::kNotFound);
}

TEST_F(CsvTest, SeveralFilesAreOneDataSet) {
  const std::string one = Write("1.csv", "a,c\n1,y\n2,x\n");
  const std::string none = Write("2.csv", "a,c\n");
  const std::string two = Write("3.csv", "a,c\n3,w\n");
  const CsvOptions options{.columns = {{.name = "a"}, {.name = "c", .type = CsvType::kCategory}}};
  const CsvData data = OrThrow(Csv({one, none, two}, options));
  EXPECT_THAT(All<float>(data.dataset, "a"), ElementsAre(1, 2, 3));
  EXPECT_THAT(All<std::int64_t>(data.dataset, "c"), ElementsAre(2, 1, 0)) << "one vocabulary";
  const std::vector<FileRange> files = data.dataset.source().files();
  ASSERT_EQ(files.size(), 3U);
  EXPECT_EQ(files[1].begin, 2);
  EXPECT_EQ(files[1].end, 2);
  EXPECT_EQ(data.dataset.source().Where(2), two + ", line 2");
  EXPECT_THAT(Csv({one, Write("4.csv", "a,d\n")}, options).status().message(),
              HasSubstr("the header is not that of " + one));
}

TEST_F(CsvTest, RefusesColumnsThatMakeNoSense) {
  const auto message = [this](std::vector<CsvColumn> columns) {
    const Status status = Read("a,b,a\n", std::move(columns)).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  EXPECT_THAT(message({}), HasSubstr("no columns"));
  EXPECT_THAT(message({{.name = "b"}, {.name = "b"}}), HasSubstr("'b' is asked for twice"));
  EXPECT_THAT(message({{.name = "a"}}), HasSubstr("more than once"));
  EXPECT_THAT(message({{.name = "b"}, {.name = "c", .feature = "b"}}),
              HasSubstr("both become feature 'b'"));
  EXPECT_THAT(message({{.name = "b", .feature = "x"},
                       {.name = "c", .type = CsvType::kInt64, .feature = "x"}}),
              HasSubstr("mixes numbers"));
  EXPECT_THAT(message({{.name = "b", .type = CsvType::kHash, .buckets = -1}}),
              HasSubstr("buckets"));
  EXPECT_THAT(message({{.name = "b", .type = CsvType::kCategory, .categories = {"u", "u"}}}),
              HasSubstr("a category twice"));
  for (const double missing : {1e20, -1e19, 0.5}) {
    EXPECT_THAT(message({{.name = "b", .type = CsvType::kInt64, .missing = missing}}),
                HasSubstr("'b' is int64, which has no"));
  }
  EXPECT_THAT(message({{.name = "b", .missing = 1e300}}), HasSubstr("float32, which has no"));
  EXPECT_TRUE(Read("b\n1\n", {{.name = "b", .missing = 1e30}}).ok());
  EXPECT_EQ(Csv({}, {.columns = {{.name = "a"}}}).status().code(), StatusCode::kInvalidArgument);
}

// Of random texts: what CsvReader reads a row at a time, and where it stops.
TEST(CsvRowsTest, RowsManyAtATimeAreThoseOfTheReader) {
  const Philox random(7);
  const std::string_view alphabet = "ab1,,,;;\t \n\n\r\"";
  std::uint64_t at = 0;
  const auto below = [&](std::size_t n) { return random.At(at++)[0] % n; };
  std::size_t rows_seen = 0;
  std::size_t errors_seen = 0;
  for (int round = 0; round < 4000; ++round) {
    const std::size_t width = 1 + below(3);
    const char delimiter = ",;\t"[below(3)];
    const bool trim = below(2) == 0;
    const std::size_t quotes = below(3);  // 0: none
    std::string text;
    for (std::size_t row = below(400); row-- > 0;) {
      for (std::size_t field = 0; field < width; ++field) {
        text += field > 0 ? std::string(1, delimiter) : std::string();
        for (std::size_t n = below(5); n-- > 0;) {
          const char c = alphabet[below(alphabet.size())];
          const bool rare = c == '\n' || c == '\r' || c == delimiter || c == '"';
          text += rare && (below(200) != 0 || (c == '"' && quotes == 0)) ? 'x' : c;
        }
        if (quotes == 2 && below(20) == 0) {
          text += delimiter == ';' ? ";\"q\"\"r\ns\"" : "";
        }
      }
      text += below(9) == 0 ? "\r\n" : below(50) == 0 ? "\n\n" : "\n";
    }
    if (below(2) == 0 && !text.empty()) {
      text.pop_back();
    }

    std::vector<std::vector<std::string>> expected;
    std::vector<std::int64_t> lines;
    std::string error;
    CsvReader reader(text, delimiter, trim, 5);
    for (std::vector<CsvField> fields;;) {
      const Result<bool> more = reader.Next(fields);
      if (!more.ok()) {
        error = more.status().message();
        break;
      }
      if (!*more) {
        break;
      }
      if (fields.size() != width) {
        error = "line " + std::to_string(reader.line()) + ": " + std::to_string(fields.size()) +
                " fields, the header has " + std::to_string(width);
        break;
      }
      lines.push_back(reader.line());
      std::vector<std::string>& row = expected.emplace_back();
      for (const CsvField& field : fields) {
        row.push_back((field.quoted ? "quoted " : "") + std::string(field.text));
      }
    }

    const std::string padded = text + std::string(CsvRows::kSlack, ',');
    CsvRows rows(std::string_view(padded).substr(0, text.size()), delimiter, trim, 5, width);
    std::size_t row = 0;
    while (const std::size_t count = rows.Next()) {
      ASSERT_LE(row + count, expected.size()) << round;
      for (std::size_t i = 0; i < count; ++i, ++row) {
        ASSERT_EQ(rows.line(i), lines[row]) << round;
        for (std::size_t field = 0; field < width; ++field) {
          const CsvField& got = rows.field(field)[i * width];
          ASSERT_EQ((got.quoted ? "quoted " : "") + std::string(got.text), expected[row][field])
              << round << ", row " << row;
        }
      }
    }
    ASSERT_EQ(row, expected.size()) << round;
    ASSERT_EQ(rows.status().message(), error) << round;
    rows_seen += row;
    errors_seen += error.empty() ? 0 : 1;
  }
  EXPECT_GT(rows_seen, 100'000U);
  EXPECT_GT(errors_seen, 1000U);
}

TEST_F(CsvTest, NumbersOfAnyLength) {
  std::string text = "i,f\n";
  std::vector<std::int64_t> ints;
  std::vector<float> floats;
  std::string digits;
  for (int length = 1; length <= 18; ++length) {
    digits += static_cast<char>('0' + (length * 7) % 10);
    for (const std::string sign : {"", "-", "+"}) {
      for (const std::string zeros : {"", "00"}) {
        const std::string number = sign + zeros + digits;
        ints.push_back(std::stoll(number));
        floats.push_back(std::stof(number));
        text += number + "," + number + "\n";
      }
    }
  }
  const CsvData data = OrThrow(Read(text, {{.name = "i", .type = CsvType::kInt64}, {.name = "f"}}));
  EXPECT_EQ(All<std::int64_t>(data.dataset, "i"), ints);
  EXPECT_EQ(All<float>(data.dataset, "f"), floats);
  // What stands beside the digits in ASCII, and bytes that differ in the highest bit.
  for (const char c : {'/', ':', '\xB1', 'q', '\0', '!'}) {
    for (std::size_t at = 0; at < 8; ++at) {
      std::string bad = "12345678";
      bad[at] = c;
      EXPECT_THAT(Error("a\n" + bad + "\n", {{.name = "a", .type = CsvType::kInt64}}),
                  HasSubstr("is not a 64-bit integer"));
    }
  }
}

TEST_F(CsvTest, CategoriesOfAnyLengthAndNumber) {
  std::vector<std::string> texts;
  for (std::size_t size = 1; size <= 80; ++size) {
    texts.push_back(std::string(size, 'a'));
    texts.push_back(std::string(size, 'a') + '\0');  // NUL is a byte like others
    texts.push_back(std::string(size, 'a') + "b");
    texts.push_back("b" + std::string(size, 'a'));
  }
  for (int i = 0; i < 5000; ++i) {
    texts.push_back("c" + std::to_string(i));
  }
  std::sort(texts.begin(), texts.end());
  std::string text = "c\n";
  std::vector<std::int64_t> expected;
  for (std::size_t i = 0; i < 3 * texts.size(); ++i) {
    const std::size_t at = i * 7919 % texts.size();
    expected.push_back(static_cast<std::int64_t>(at));
    text += (i % 5 == 0 ? '"' + texts[at] + '"' : texts[at]) + "\n";
  }
  for (const bool given : {false, true}) {
    const CsvData data =
        OrThrow(Read(text, {{.name = "c",
                             .type = CsvType::kCategory,
                             .categories = given ? texts : std::vector<std::string>()}}));
    EXPECT_EQ(data.categories.at("c"), texts);
    EXPECT_EQ(All<std::int64_t>(data.dataset, "c"), expected);
  }
}

TEST_F(CsvTest, TheFirstWrongValueIsNamed) {
  std::string text = "a,b\n";
  for (int i = 0; i < 600; ++i) {
    text += (i == 500 ? "x" : "1") + std::string(",") + (i == 499 ? "y" : "2") + "\n";
  }
  EXPECT_THAT(Error(text, {{.name = "a"}, {.name = "b"}}),
              HasSubstr("t.csv, line 501: column 'b': 'y' is not"));
  EXPECT_THAT(Error(text + "1\n", {{.name = "a"}}), HasSubstr("line 502: column 'a': 'x'"));
}

// The census data: every row, against a plain split of its lines.
TEST(CsvRealData, AdultToTheLastRow) {
  const std::string folder = testing::RealData("adult");
  if (folder.empty()) {
    GTEST_SKIP() << "no real data [COHORT_TEST_DATA]";
  }
  const std::vector<std::string> numeric = {"age",          "fnlwgt",       "education-num",
                                            "capital-gain", "capital-loss", "hours-per-week"};
  const std::vector<std::string> text = {"workclass",  "education",     "marital-status",
                                         "occupation", "relationship",  "race",
                                         "sex",        "native-country"};
  CsvOptions options;
  for (const std::string& name : numeric) {
    options.columns.push_back({.name = name, .feature = "numeric"});
  }
  for (const std::string& name : text) {
    options.columns.push_back(
        {.name = name, .type = CsvType::kCategory, .missing = -1, .feature = "text"});
  }
  options.columns.push_back({.name = "Y", .type = CsvType::kCategory});
  const CsvData data = OrThrow(Csv({folder + "/adult.data"}, options));
  EXPECT_EQ(data.dataset.size(), 32561);
  EXPECT_THAT(data.categories.at("Y"), ElementsAre("<=50K", ">50K"));

  std::ifstream lines(folder + "/adult.data");
  const auto split = [](const std::string& line) {
    std::vector<std::string> fields;
    std::istringstream stream(line);
    for (std::string field; std::getline(stream, field, ',');) {
      field.erase(0, field.find_first_not_of(' '));
      fields.push_back(field);
    }
    return fields;
  };
  std::string line;
  std::getline(lines, line);
  const std::vector<std::string> header = split(line);
  const auto place = [&header](const std::string& name) {
    return static_cast<std::size_t>(std::find(header.begin(), header.end(), name) - header.begin());
  };
  std::int64_t row = 0;
  std::int64_t missing = 0;
  for (; std::getline(lines, line) && !line.empty(); ++row) {
    const std::vector<std::string> fields = split(line);
    const Example example = OrThrow(data.dataset.source().Read(row));
    for (std::size_t i = 0; i < numeric.size(); ++i) {
      ASSERT_EQ(example.at("numeric").data<float>()[i], std::stof(fields.at(place(numeric[i]))));
    }
    for (std::size_t i = 0; i < text.size(); ++i) {
      const std::string& field = fields.at(place(text[i]));
      const std::int64_t id = example.at("text").data<std::int64_t>()[i];
      ASSERT_EQ(id < 0 ? "?" : data.categories.at(text[i]).at(static_cast<std::size_t>(id)), field);
      missing += id < 0;
    }
    ASSERT_EQ(example.at("Y").data<std::int64_t>()[0], fields.at(place("Y")) == ">50K");
  }
  EXPECT_EQ(row, 32561);
  EXPECT_EQ(missing, 4262);

  // The test half has the same categories but for its labels' full stop.
  for (CsvColumn& column : options.columns) {
    if (column.type == CsvType::kCategory) {
      column.categories = data.categories.at(column.name);
    }
  }
  options.columns.back().categories = {"<=50K.", ">50K."};
  EXPECT_EQ(OrThrow(Csv({folder + "/adult.test"}, options)).dataset.size(), 16281);
}

class CsvWriterTest : public ::testing::Test {
 protected:
  std::string Content(const std::string& path) { return OrThrow(ReadFile(files_, path)); }
  FileSystem& files_ = FileSystem::Local();
  testing::TempDir folder_;
};

TEST_F(CsvWriterTest, FieldsReadBackAsTheyWereWritten) {
  const std::vector<std::string> texts = {"plain",        "",          "?",
                                          " blank",       "blank\t",   "a,b",
                                          "a\tb",         "say \"x\"", "two\r\nlines",
                                          "\xEF\xBB\xBF", "\"",        "caf\xC3\xA9",
                                          "a;b",          "\n",        "1"};
  for (const char delimiter : {',', '\t', ';'}) {
    for (const std::string name : {"t.csv", "t.csv.gz"}) {
      auto writer = OrThrow(CsvWriter::Create(files_, folder_ / name, {"te,x\tt", "n"}, delimiter));
      for (std::size_t i = 0; i < texts.size(); ++i) {
        OrThrow(writer->Write({texts[i], std::to_string(i)}));
      }
      OrThrow(writer->Write({std::nullopt, "-5"}));
      EXPECT_FALSE(files_.Exists(folder_ / name));
      OrThrow(writer->Close());
      const CsvData read = OrThrow(Csv(
          {folder_ / name},
          {.columns =
               {{.name = "te,x\tt", .type = CsvType::kCategory, .missing = -1, .categories = texts},
                {.name = "n", .type = CsvType::kInt64}},
           .delimiter = delimiter}));
      ASSERT_EQ(read.dataset.size(), static_cast<std::int64_t>(texts.size()) + 1);
      for (std::int64_t i = 0; i < read.dataset.size(); ++i) {
        const Example row = OrThrow(read.dataset.source().Read(i));
        const bool last = i + 1 == read.dataset.size();
        EXPECT_EQ(row.at("te,x\tt").data<std::int64_t>()[0], last ? -1 : i);
        EXPECT_EQ(row.at("n").data<std::int64_t>()[0], last ? -5 : i);
      }
      OrThrow(files_.RemoveAll(folder_ / name));
    }
  }
}

TEST_F(CsvWriterTest, TensorsBecomeColumns) {
  const float x[] = {0.1F, 1e-30F, -3, 16777216};
  const std::int64_t y[] = {INT64_MIN, 7};
  const std::uint8_t b[] = {255, 0};
  const Example columns = {{"x", Tensor::Of<float>({2, 2}, x)},
                           {"y", Tensor::Of<std::int64_t>({2}, y)},
                           {"b", Tensor::Of<std::uint8_t>({2}, b)}};
  OrThrow(WriteCsv(files_, folder_ / "t.csv", columns));
  EXPECT_EQ(Content(folder_ / "t.csv"),
            "b,x_0,x_1,y\n255,0.1,1e-30,-9223372036854775808\n0,-3,16777216,7\n");

  const auto status = [this](const Example& bad) {
    return WriteCsv(files_, folder_ / "bad.csv", bad);
  };
  EXPECT_THAT(status({}).message(), HasSubstr("no columns"));
  EXPECT_THAT(status({{"x", Tensor(DType::kFloat16, {2})}}).message(),
              HasSubstr("tensor 'x' is float16[2]"));
  EXPECT_FALSE(status({{"x", Tensor(DType::kInt32, {})}}).ok());
  EXPECT_FALSE(status({{"x", Tensor(DType::kInt32, {2})}, {"y", Tensor(DType::kInt32, {3})}}).ok());
  EXPECT_THAT(
      status({{"x", Tensor(DType::kInt32, {2, 1})}, {"x_0", Tensor(DType::kInt32, {2})}}).message(),
      HasSubstr("column 'x_0' stands twice"));
  const float nan[] = {0, NAN};
  EXPECT_THAT(status({{"x", Tensor::Of<float>({2}, nan)}}).message(),
              HasSubstr("bad.csv, row 1: column 'x' is not finite"));
  EXPECT_FALSE(files_.Exists(folder_ / "bad.csv"));
}

TEST_F(CsvWriterTest, RowsThatAreNoneAndDisksThatAreFull) {
  EXPECT_FALSE(CsvWriter::Create(files_, folder_ / "t.csv", {}).ok());
  EXPECT_FALSE(CsvWriter::Create(files_, folder_ / "t.csv", {"a", "a"}).ok());
  EXPECT_FALSE(CsvWriter::Create(files_, folder_ / "t.csv", {"a"}, '"').ok());
  {
    auto writer = OrThrow(CsvWriter::Create(files_, folder_ / "t.csv", {"a"}));
    EXPECT_THAT(writer->Write({"1", "2"}).message(),
                HasSubstr("t.csv, row 0: 2 fields, the header has 1"));
    EXPECT_THAT(writer->Write({std::nullopt}).message(), HasSubstr("blank line"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path())) << "given up before Close";
  for (const std::string failing : {"append", "sync", "close", "rename"}) {
    testing::FaultyFileSystem faulty([&failing](std::string_view operation, const std::string&) {
      return operation == failing ? ResourceExhausted("disk full") : Status();
    });
    auto writer = OrThrow(CsvWriter::Create(faulty, folder_ / "t.csv", {"a"}));
    OrThrow(writer->Write({"1"}));
    EXPECT_EQ(writer->Close().code(), StatusCode::kResourceExhausted) << failing;
    EXPECT_TRUE(std::filesystem::is_empty(folder_.path())) << failing;
  }
}

}  // namespace
}  // namespace cohort::data
