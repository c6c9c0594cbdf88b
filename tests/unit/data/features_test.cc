// Vocabularies, buckets, crosses, moments; Criteo's lines.

#include <cohort/data/features.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <set>

#include <cohort/data/criteo.h>
#include <cohort/data/csv.h>

#include "collect.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(Vocabulary, PositionsAndBucketsBehindThem) {
  const Vocabulary closed = OrThrow(Vocabulary::Make({"a", "", "c"}));
  EXPECT_EQ(closed.Find("a"), 0);
  EXPECT_EQ(closed.Find(""), 1);
  EXPECT_EQ(closed.Find("x"), -1);
  EXPECT_EQ(closed.size(), 3);
  const Vocabulary open = OrThrow(Vocabulary::Make({"a", "b"}, 4));
  EXPECT_EQ(open.size(), 6);
  std::set<std::int64_t> buckets;
  for (int i = 0; i < 100; ++i) {
    buckets.insert(open.Find("x" + std::to_string(i)));
  }
  EXPECT_THAT(buckets, ElementsAre(2, 3, 4, 5));
  EXPECT_THAT(Vocabulary::Make({"a", "b", "a"}).status().message(),
              HasSubstr("'a' stands twice, at 0 and 2"));

  const testing::TempDir folder;
  OrThrow(closed.Save(FileSystem::Local(), folder / "v"));
  EXPECT_THAT(OrThrow(Vocabulary::Load(FileSystem::Local(), folder / "v")).texts(),
              ElementsAre("a", "", "c"));
  EXPECT_FALSE(OrThrow(Vocabulary::Make({"a\nb"})).Save(FileSystem::Local(), folder / "w").ok());
}

TEST(Vocabulary, CountsInAnyOrderGiveTheSameTexts) {
  VocabularyCounts counts;
  for (const char* text : {"b", "c", "a", "c", "b", "d"}) {
    counts.Add(text);
  }
  VocabularyCounts more;
  more.Add("d", 5);
  counts.Merge(more);
  EXPECT_EQ(counts.distinct(), 4);
  EXPECT_THAT(counts.Texts(), ElementsAre("d", "b", "c", "a"));
  EXPECT_THAT(counts.Texts(2), ElementsAre("d", "b", "c"));
  EXPECT_THAT(counts.Texts(1, 2), ElementsAre("d", "b"));
}

// The example in the documentation of TensorFlow's Bucketize.
TEST(Bucket, IsThatOfTensorFlow) {
  const std::vector<float> boundaries = {0, 10, 100};
  std::vector<std::int64_t> buckets;
  for (const float value : {-5.F, 10000.F, 150.F, 10.F, 5.F, 100.F}) {
    buckets.push_back(Bucket(value, boundaries));
  }
  EXPECT_THAT(buckets, ElementsAre(0, 3, 3, 2, 1, 3));
  EXPECT_EQ(Bucket(std::nanf(""), boundaries), 3);
  EXPECT_EQ(Bucket(1, {}), 0);
}

TEST(Bucket, QuantilesCutIntoEqualParts) {
  std::vector<float> values;
  for (int i = 999; i >= 0; --i) {
    values.push_back(static_cast<float>(i));
  }
  values.push_back(std::nanf(""));
  EXPECT_THAT(QuantileBoundaries(values, 4), ElementsAre(250, 500, 750));
  EXPECT_THAT(QuantileBoundaries(std::vector<float>{1, 1, 1, 1, 1, 2}, 4), IsEmpty());
  EXPECT_THAT(QuantileBoundaries(std::vector<float>{1, 1, 2, 2, 2, 2}, 4), ElementsAre(2));
  EXPECT_THAT(QuantileBoundaries({}, 4), IsEmpty());
}

TEST(Cross, DependsOnEveryValueAndTheirOrder) {
  const auto cross = [](std::vector<std::int64_t> values) { return Cross(values, 1 << 30); };
  EXPECT_EQ(cross({1, 2}), cross({1, 2}));
  EXPECT_EQ(
      std::set({cross({1, 2}), cross({2, 1}), cross({1}), cross({1, 2, 0}), cross({})}).size(), 5U);
  std::vector<int> buckets(10);
  for (std::int64_t i = 0; i < 10000; ++i) {
    ++buckets[static_cast<std::size_t>(Cross(std::vector<std::int64_t>{i / 100, i % 100}, 10))];
  }
  EXPECT_GT(*std::min_element(buckets.begin(), buckets.end()), 850);
}

TEST(Moments, OfPartsAreThoseOfTheWhole) {
  const std::vector<double> values = {1e9 + 4, 1e9 + 7, 1e9 + 13, 1e9 + 16};
  Moments whole;
  Moments left;
  Moments right;
  for (std::size_t i = 0; i < values.size(); ++i) {
    whole.Add(values[i]);
    (i < 1 ? left : right).Add(values[i]);
  }
  left.Add(std::nan(""));
  EXPECT_DOUBLE_EQ(whole.mean, 1e9 + 10);
  EXPECT_DOUBLE_EQ(whole.variance(), 22.5) << "no cancellation far from zero";
  right.Merge(left);
  EXPECT_EQ(right.count, 4);
  EXPECT_EQ(right.missing, 1);
  EXPECT_DOUBLE_EQ(right.mean, whole.mean);
  EXPECT_DOUBLE_EQ(right.variance(), 22.5);
  EXPECT_EQ(right.least, 1e9 + 4);
  EXPECT_EQ(right.most, 1e9 + 16);
  Moments empty;
  empty.Merge(whole);
  empty.Merge(Moments());
  EXPECT_DOUBLE_EQ(empty.deviation(), whole.deviation());
  EXPECT_EQ(Moments().deviation(), 0);
}

TEST(FeatureMaps, RewriteExamplesAndNameWhatIsMissing) {
  const Dataset data =
      OrThrow(FromTensors({{"x", Tensor::Of<float>({2, 2}, std::vector<float>{1, 3, 5, NAN})},
                           {"a", Tensor::Of<std::int64_t>({2}, std::vector<std::int64_t>{3, 4})}}));
  Moments moments;
  moments.Add(1);
  moments.Add(5);
  const Dataset mapped = data.Map(Bucketize("b", "x", {2, 4}))
                             .Map(Standardize("x", moments))
                             .Map(CrossOf("ab", {"a", "b"}, 100));
  const Example first = OrThrow(OrThrow(mapped.AsSource())->Read(0));
  EXPECT_THAT(first.at("b").data<std::int64_t>(), ElementsAre(0, 1));
  EXPECT_THAT(first.at("x").data<float>(), ElementsAre(-1, 0));
  EXPECT_EQ(first.at("ab").data<std::int64_t>()[0], Cross(std::vector<std::int64_t>{3, 0, 1}, 100));
  const Example second = OrThrow(OrThrow(mapped.AsSource())->Read(1));
  EXPECT_THAT(second.at("x").data<float>(), ElementsAre(1, 0)) << "NaN is the mean";
  EXPECT_THAT(second.at("b").data<std::int64_t>(), ElementsAre(2, 2));
  EXPECT_THAT(data.Map(Standardize("y", moments)).AsSource().status().message(),
              HasSubstr("no feature 'y'"));
  EXPECT_THAT(data.Map(Standardize("a", moments)).AsSource().status().message(),
              HasSubstr("feature 'a' is int64, float32 is expected"));
}

class CriteoTest : public ::testing::Test {
 protected:
  Result<Example> ReadLine(const std::string& line, const CriteoOptions& options = {}) {
    std::ofstream(folder_ / "day", std::ios::binary) << line;
    return OrThrow(TextLines({folder_ / "day"}, {.decoder = CriteoLine(options)})).source().Read(0);
  }
  // Label 1, integers 1, -2, then empty ones, categories 5, then empty ones.
  static std::string Line(const std::string& last = "") {
    return "1\t1\t-2" + std::string(11, '\t') + "\t68fd1e64" + std::string(25, '\t') + last;
  }
  testing::TempDir folder_;
};

TEST_F(CriteoTest, LabelIntegersAndCategories) {
  const Example example = OrThrow(ReadLine(Line()));
  EXPECT_EQ(example.at("label").data<float>()[0], 1);
  EXPECT_FLOAT_EQ(example.at("dense").data<float>()[0], std::log(2.F));
  EXPECT_EQ(example.at("dense").data<float>()[1], 0) << "negative";
  EXPECT_EQ(example.at("dense").data<float>()[12], 0) << "missing";
  EXPECT_EQ(example.at("sparse").data<std::int64_t>()[0], 0x68fd1e64);
  EXPECT_EQ(example.at("sparse").data<std::int64_t>()[25], -1);

  const Example plain =
      OrThrow(ReadLine(Line("FFFFFFFF\r\n"), {.log = false, .missing_integer = -7}));
  EXPECT_EQ(plain.at("dense").data<float>()[1], -2);
  EXPECT_EQ(plain.at("dense").data<float>()[2], -7);
  EXPECT_EQ(plain.at("sparse").data<std::int64_t>()[25], 0xffffffff) << "upper case, CRLF";

  const Example hashed = OrThrow(ReadLine(Line("68fd1e64"), {.buckets = 1000}));
  const auto sparse = hashed.at("sparse").data<std::int64_t>();
  EXPECT_GE(sparse[0], 1);
  EXPECT_LT(sparse[0], 1000);
  EXPECT_EQ(sparse[1], 0) << "missing";
  EXPECT_NE(sparse[0], sparse[25]) << "a value is another one in another column";
  const Example test = OrThrow(ReadLine(Line().substr(2), {.label = false}));
  EXPECT_FALSE(test.contains("label"));
  EXPECT_EQ(test.at("sparse").data<std::int64_t>()[0], 0x68fd1e64);
}

TEST_F(CriteoTest, ErrorsNameLineAndColumn) {
  EXPECT_THAT(ReadLine(Line().substr(2)).status().message(),
              AllOf(HasSubstr("day, line 1: 39 columns, 40 are expected"),
                    HasSubstr("CriteoOptions.label")));
  EXPECT_THAT(ReadLine(Line("\tx")).status().message(), HasSubstr("41 columns"));
  EXPECT_THAT(ReadLine(Line("123456789")).status().message(),
              HasSubstr("column 'C26': '123456789' is not 1 to 8 hexadecimal digits"));
  EXPECT_THAT(ReadLine(Line("xyz")).status().message(), HasSubstr("column 'C26'"));
  EXPECT_THAT(ReadLine("2" + Line().substr(1)).status().message(),
              HasSubstr("column 'label': '2' is neither 0 nor 1"));
  EXPECT_THAT(ReadLine("1\t1.5" + Line().substr(3)).status().message(),
              HasSubstr("column 'I1': '1.5' is not an integer"));
}

// 200 rows, against the same file read as CSV.
TEST(CriteoRealData, SampleToTheLastValue) {
  const std::string folder = testing::RealData("criteo");
  if (folder.empty()) {
    GTEST_SKIP() << "no real data [COHORT_TEST_DATA]";
  }
  const std::string path = folder + "/criteo_sample.csv";
  const Dataset lines = OrThrow(TextLines(
      {path}, {.decoder = CriteoLine({.delimiter = ',', .log = false, .missing_integer = -99}),
               .skip_lines = 1}));
  std::vector<CsvColumn> columns;
  for (int i = 1; i <= 13; ++i) {
    columns.push_back({.name = "I" + std::to_string(i), .missing = -99, .feature = "dense"});
  }
  for (int i = 1; i <= 26; ++i) {
    columns.push_back({.name = "C" + std::to_string(i), .type = CsvType::kCategory, .missing = -1});
  }
  const CsvData csv = OrThrow(Csv({path}, {.columns = columns}));
  ASSERT_EQ(lines.size(), 200);
  ASSERT_EQ(csv.dataset.size(), 200);
  int missing = 0;
  for (std::int64_t i = 0; i < 200; ++i) {
    const Example a = OrThrow(lines.source().Read(i));
    const Example b = OrThrow(csv.dataset.source().Read(i));
    for (std::size_t k = 0; k < 13; ++k) {
      ASSERT_EQ(a.at("dense").data<float>()[k], b.at("dense").data<float>()[k]) << i;
    }
    for (std::size_t k = 0; k < 26; ++k) {
      const std::string name = "C" + std::to_string(k + 1);
      const std::int64_t position = b.at(name).data<std::int64_t>()[0];
      const std::int64_t value = a.at("sparse").data<std::int64_t>()[k];
      missing += value == -1;
      ASSERT_EQ(value, position < 0
                           ? -1
                           : std::stoll(csv.categories.at(name)[static_cast<std::size_t>(position)],
                                        nullptr, 16));
    }
  }
  EXPECT_GT(missing, 100);
}

}  // namespace
}  // namespace cohort::data
