// Lists of any length: from Map, from TFRecord, in batches, padded, by length.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include <cohort/data/combine.h>
#include <cohort/data/tf_example.h>
#include <cohort/data/tf_record.h>
#include <cohort/io/record_file.h>

#include "collect.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::int64_t LengthOf(std::int64_t id) { return id * 7 % 5; }

// Example i has id i and list "list" of LengthOf(i) times the number i.
Dataset WithLists(std::int64_t size) {
  return Ids(size)
      .Map([](Example& example) {
        const std::int64_t id = example.at("id").data<std::int64_t>()[0];
        Tensor list(DType::kInt64, {LengthOf(id)});
        std::fill_n(list.data<std::int64_t>().begin(), list.elements(), id);
        example["list"] = list;
        return OkStatus();
      })
      .Lists({"list"});
}

Batch Next(const Dataset& data, const IterateOptions& options = {}) {
  return OrThrow(OrThrow(data.Iterate(options))->Next()).value();
}

TEST(Ragged, ABatchHasValuesAndSplits) {
  const Batch batch = Next(WithLists(10).Batch(6));
  EXPECT_EQ(batch.size, 6);
  const Ragged& lists = batch.lists("list");
  EXPECT_THAT(lists.splits.data<std::int64_t>(), ElementsAre(0, 0, 2, 6, 7, 10, 10));
  EXPECT_THAT(lists.values.data<std::int64_t>(), ElementsAre(1, 1, 2, 2, 2, 2, 3, 4, 4, 4));
  const Batch slice = batch.Slice(2, 4);
  EXPECT_THAT(slice.lists("list").splits.data<std::int64_t>(), ElementsAre(0, 4, 5));
  EXPECT_THAT(slice.lists("list").values.data<std::int64_t>(), ElementsAre(2, 2, 2, 2, 3));
  EXPECT_THROW(static_cast<void>(batch.lists("id")), ContractError);
  // A worker without examples has the feature.
  const Batch empty = Next(WithLists(10).Batch(2), {.num_workers = 3, .worker = 2});
  EXPECT_THAT(empty.lists("list").splits.data<std::int64_t>(), ElementsAre(0));
  EXPECT_EQ(empty.lists("list").values.dtype(), DType::kInt64);
}

TEST(Ragged, FingerprintsTellEveryValueThatPads) {
  std::set<std::uint64_t> digests;
  for (const double value : {0.0, 1e-9, 2e-9}) {
    digests.insert(WithLists(3).Batch(2).Pad("list", {.value = value}).Fingerprint());
  }
  EXPECT_EQ(digests.size(), 3U);
}

TEST(Ragged, WhatIsNotDeclaredIsAnErrorThatSaysHow) {
  const auto lists = [](Example& example) {
    example["list"] = Tensor(DType::kInt64, {example.at("id").data<std::int64_t>()[0]});
    return OkStatus();
  };
  EXPECT_THAT(OrThrow(Ids(3).Map(lists).Batch(3).Iterate())->Next().status().message(),
              HasSubstr("[Dataset::Lists takes lists of any length]"));
  const auto matrix = [](Example& example) {
    example["list"] = Tensor(DType::kInt64, {2, 2});
    return OkStatus();
  };
  EXPECT_THAT(
      OrThrow(Ids(3).Map(matrix).Lists({"list"}).Batch(3).Iterate())->Next().status().message(),
      HasSubstr("ragged feature 'list' is int64[2,2]"));
}

TEST(Ragged, PadsToTheLongestOrToALength) {
  const Dataset data = WithLists(10);
  const Batch longest =
      Next(data.Pad("list", {.value = -1, .multiple = 3, .lengths = "n"}).Batch(3));
  EXPECT_EQ(longest["list"].shape(), Shape({3, 6})) << "4, rounded up to a multiple of 3";
  EXPECT_THAT(longest["list"].data<std::int64_t>(),
              ElementsAre(-1, -1, -1, -1, -1, -1, 1, 1, -1, -1, -1, -1, 2, 2, 2, 2, -1, -1));
  EXPECT_THAT(longest["n"].data<std::int64_t>(), ElementsAre(0, 2, 4));
  EXPECT_THAT(longest.ragged, IsEmpty());
  const Batch cut = Next(data.Batch(3).Pad("list", {.length = 3, .cut = true}));
  EXPECT_THAT(cut["list"].data<std::int64_t>(), ElementsAre(0, 0, 0, 1, 1, 0, 2, 2, 2));
  EXPECT_THAT(
      OrThrow(data.Batch(3).Pad("list", {.length = 3}).Iterate())->Next().status().message(),
      AllOf(HasSubstr("example 2"), HasSubstr("'list' holds 4 values, PadOptions.length "
                                              "is 3")));
  EXPECT_THAT(OrThrow(data.Batch(3).Pad("id").Iterate())->Next().status().message(),
              HasSubstr("'id' is to be padded, and is not ragged"));
  EXPECT_THAT(
      OrThrow(data.Batch(3).Pad("list", {.value = 1e20}).Iterate())->Next().status().message(),
      HasSubstr("'list' is int64, which has no"));
  EXPECT_NE(data.Batch(3).Pad("list").Fingerprint(), data.Batch(3).Fingerprint());
}

TEST(Ragged, BucketsHaveListsOfAboutOneLengthAndEveryExampleOnce) {
  const auto lengths = OrThrow(WithLists(203).LengthsOf("list", 2));
  ASSERT_EQ(lengths->size(), 203U);
  EXPECT_EQ((*lengths)[2], 4);
  const Dataset data = WithLists(203).Shuffle(1).BucketByLength(lengths, 2, 10).Batch(8);
  std::vector<std::int64_t> seen;
  std::int64_t spread = 0;
  bool ascending = true;
  std::int64_t before = 0;
  auto batches = OrThrow(data.Iterate({.epoch = 1}));
  while (const auto batch = OrThrow(batches->Next())) {
    std::int64_t least = 100;
    std::int64_t most = 0;
    for (const std::int64_t id : IdsOf(*batch)) {
      seen.push_back(id);
      least = std::min(least, LengthOf(id));
      most = std::max(most, LengthOf(id));
    }
    spread += most - least;
    ascending = ascending && before <= most;
    before = most;
  }
  EXPECT_LT(spread, 26) << "lengths in a batch differ by less than 1 on average";
  EXPECT_FALSE(ascending) << "not the short ones first";
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::unique(seen.begin(), seen.end()) - seen.begin(), 203);
  EXPECT_NE(Collect(data, {.epoch = 1}), Collect(data, {.epoch = 2}));
  EXPECT_THROW(static_cast<void>(WithLists(3).BucketByLength(lengths, 1)), ContractError);
  const Dataset shuffled = OrThrow(Concatenate({WithLists(3).Shuffle(1), WithLists(3)}));
  EXPECT_EQ(shuffled.LengthsOf("list").status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(WithLists(3).LengthsOf("id").status().message(), HasSubstr("has not one axis"));
}

TEST(Ragged, CombinedAndCachedListsStayWhatTheyAre) {
  const Dataset data = WithLists(10);
  const Dataset all = OrThrow(Cache(OrThrow(Concatenate({data.Skip(5), data.Take(5)}))));
  for (int pass = 0; pass < 2; ++pass) {
    const Batch batch = Next(all.Batch(10));
    const Ragged& lists = batch.lists("list");
    EXPECT_THAT(IdsOf(batch), ElementsAre(5, 6, 7, 8, 9, 0, 1, 2, 3, 4));
    for (std::size_t row = 0; row < 10; ++row) {
      const std::int64_t id = IdsOf(batch)[row];
      const auto splits = lists.splits.data<std::int64_t>();
      ASSERT_EQ(splits[row + 1] - splits[row], LengthOf(id));
      for (std::int64_t i = splits[row]; i < splits[row + 1]; ++i) {
        EXPECT_EQ(lists.values.data<std::int64_t>()[static_cast<std::size_t>(i)], id);
      }
    }
  }
}

class RaggedRecords : public ::testing::Test {
 protected:
  std::string Write(const std::vector<std::string>& records) {
    auto writer = OrThrow(io::RecordWriter::Create(FileSystem::Local(), folder_ / "r"));
    for (const std::string& record : records) {
      OrThrow(writer->Write(record));
    }
    OrThrow(writer->Close());
    return folder_ / "r";
  }
  testing::TempDir folder_;
};

TEST_F(RaggedRecords, ListsOfExamples) {
  TfFeatures one;
  one["id"] = {.kind = TfFeature::Kind::kInt64, .ints = {1}};
  one["x"] = {.kind = TfFeature::Kind::kFloat, .floats = {1.5, 2.5, 3.5}};
  one["tags"] = {.kind = TfFeature::Kind::kBytes, .bytes = {"a", "b"}};
  one["text"] = {.kind = TfFeature::Kind::kBytes, .bytes = {"hello"}};
  TfFeatures two;
  two["id"] = {.kind = TfFeature::Kind::kInt64, .ints = {2}};
  two["x"] = {.kind = TfFeature::Kind::kFloat};
  const std::string path = Write({EncodeTfExample(one), EncodeTfExample(two)});
  const TfRecordOptions options = {
      .features = {{.name = "x", .ragged = true},
                   {.name = "id", .type = TfType::kInt64},
                   {.name = "tags", .type = TfType::kHash, .ragged = true, .buckets = 50},
                   {.name = "text", .type = TfType::kBytes, .ragged = true}}};
  const Dataset data = OrThrow(TfRecords({path}, options));
  const Batch batch = Next(data.Repeat(2).Batch(4));
  EXPECT_THAT(IdsOf(batch), ElementsAre(1, 2, 1, 2));
  EXPECT_THAT(batch.lists("x").splits.data<std::int64_t>(), ElementsAre(0, 3, 3, 6, 6));
  EXPECT_THAT(batch.lists("x").values.data<float>(), ElementsAre(1.5, 2.5, 3.5, 1.5, 2.5, 3.5));
  EXPECT_THAT(batch.lists("tags").splits.data<std::int64_t>(), ElementsAre(0, 2, 2, 4, 4));
  EXPECT_EQ(batch.lists("tags").values.data<std::int64_t>()[0],
            static_cast<std::int64_t>(Hash64("a") % 50));
  EXPECT_THAT(batch.lists("text").values.data<std::uint8_t>(),
              ElementsAre('h', 'e', 'l', 'l', 'o', 'h', 'e', 'l', 'l', 'o'));
  EXPECT_EQ(OrThrow(data.LengthsOf("text"))->at(0), 5);

  EXPECT_THAT(OrThrow(TfRecords({path}, {.features = {{.name = "tags", .ragged = true}}}))
                  .source()
                  .Read(0)
                  .status()
                  .message(),
              HasSubstr("record 0: feature 'tags': holds a list of bytes, a list of float"));
  EXPECT_THAT(
      OrThrow(TfRecords({path},
                        {.features = {{.name = "tags", .type = TfType::kBytes, .ragged = true}}}))
          .source()
          .Read(0)
          .status()
          .message(),
      HasSubstr("holds 2 strings, at most 1"));
  EXPECT_THAT(TfRecords({path}, {.features = {{.name = "x", .shape = {2}, .ragged = true}}})
                  .status()
                  .message(),
              HasSubstr("'x' is ragged: a list without a shape"));
}

TEST_F(RaggedRecords, StepsOfSequenceExamples) {
  TfSequenceExample one;
  one.context["id"] = {.kind = TfFeature::Kind::kInt64, .ints = {1}};
  one.steps["x"] = {{.kind = TfFeature::Kind::kFloat, .floats = {1, 2}},
                    {.kind = TfFeature::Kind::kFloat, .floats = {3, 4}}};
  TfSequenceExample two;
  two.context["id"] = {.kind = TfFeature::Kind::kInt64, .ints = {2}};
  two.steps["x"] = {{.kind = TfFeature::Kind::kFloat, .floats = {5, 6}},
                    {.kind = TfFeature::Kind::kFloat, .floats = {7}}};
  const std::string path =
      Write({EncodeTfSequenceExample(one), EncodeTfSequenceExample(two), EncodeTfExample({})});
  const TfRecordOptions options = {
      .features = {{.name = "x", .shape = {2}, .steps = true},
                   {.name = "id", .type = TfType::kInt64, .missing = 0}}};
  const Dataset data = OrThrow(TfRecords({path}, options));
  const Example first = OrThrow(data.source().Read(0));
  EXPECT_THAT(first.at("x").data<float>(), ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(first.at("id").data<std::int64_t>()[0], 1);
  EXPECT_THAT(data.source().Read(1).status().message(),
              HasSubstr("record 1: feature 'x': step 1: holds 1 values, 2 are asked for"));
  EXPECT_EQ(OrThrow(data.source().Read(2)).at("x").elements(), 0);
}

}  // namespace
}  // namespace cohort::data
