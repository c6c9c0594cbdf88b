// Datasets as values, and what becomes of examples on their way into a batch.

#include <cohort/data/dataset.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "collect.h"

namespace cohort::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Status FirstError(const Dataset& dataset) {
  auto iterator = OrThrow(dataset.Iterate());
  for (;;) {
    auto batch = iterator->Next();
    if (!batch.ok()) {
      EXPECT_EQ(iterator->Next().status(), batch.status()) << "an iterator stays at its error";
      return batch.status();
    }
    if (!batch->has_value()) {
      return {};
    }
  }
}

TEST(FromTensors, RowsBecomeExamples) {
  const Dataset data = OrThrow(
      FromTensors({{"x", Tensor::Of<float>({3, 2}, std::vector<float>{1, 2, 3, 4, 5, 6})},
                   {"y", Tensor::Of<std::int64_t>({3}, std::vector<std::int64_t>{7, 8, 9})}}));
  EXPECT_EQ(data.size(), 3);
  auto iterator = OrThrow(data.Batch(2).Iterate({.first_batch = 1}));
  const auto batch = OrThrow(iterator->Next());
  ASSERT_TRUE(batch.has_value());
  EXPECT_EQ(batch->size, 1);
  EXPECT_EQ((*batch)["x"].shape(), Shape({1, 2}));
  EXPECT_THAT((*batch)["x"].data<float>(), ElementsAre(5, 6));
  EXPECT_THAT((*batch)["y"].data<std::int64_t>(), ElementsAre(9));
  EXPECT_FALSE(OrThrow(iterator->Next()).has_value());
  EXPECT_FALSE(OrThrow(iterator->Next()).has_value()) << "the end is repeatable";
}

TEST(FromTensors, RefusesTensorsThatDoNotFitTogether) {
  EXPECT_THAT(FromTensors({}).status().message(), HasSubstr("at least one tensor"));
  EXPECT_THAT(FromTensors({{"s", Tensor(DType::kFloat32, Shape())}}).status().message(),
              HasSubstr("'s' is a scalar"));
  EXPECT_THAT(
      FromTensors({{"a", Tensor(DType::kFloat32, {3, 2})}, {"b", Tensor(DType::kFloat32, {4})}})
          .status()
          .message(),
      HasSubstr("'b' has 4 examples, tensor 'a' has 3"));
}

TEST(FromTensors, NoExamplesNoBatches) {
  const Dataset data = OrThrow(FromTensors({{"x", Tensor(DType::kFloat32, {0, 2})}}));
  EXPECT_EQ(data.size(), 0);
  const Dataset batched = data.Shuffle(1).Batch(4).Prefetch(2);
  EXPECT_EQ(batched.batches_per_epoch(), 0);
  EXPECT_FALSE(
      OrThrow(OrThrow(batched.Iterate({.num_workers = 3, .worker = 2}))->Next()).has_value());
}

TEST(Batch, LooksUpAndSlices) {
  const Batch batch{3, {{"x", Tensor::Of<float>({3, 2}, std::vector<float>{1, 2, 3, 4, 5, 6})}}};
  const Batch slice = batch.Slice(1, 3);
  EXPECT_EQ(slice.size, 2);
  EXPECT_THAT(slice["x"].data<float>(), ElementsAre(3, 4, 5, 6));
  EXPECT_EQ(slice["x"].raw(), batch["x"].raw() + 2 * sizeof(float)) << "memory is shared";
  const Batch none = batch.Slice(3, 3);
  EXPECT_EQ(none["x"].shape(), Shape({0, 2}));
  EXPECT_THROW(static_cast<void>(batch.Slice(2, 4)), ContractError);
  try {
    static_cast<void>(batch["image"]);
    FAIL();
  } catch (const ContractError& error) {
    EXPECT_THAT(error.what(), HasSubstr("no feature 'image'; it has: x"));
  }
}

TEST(Dataset, IsAValue) {
  const Dataset base = Ids(10);
  const Dataset shuffled = base.Shuffle(1);
  EXPECT_EQ(base.Batch(10).batch_size(), 10);
  EXPECT_EQ(base.batch_size(), 0);
  EXPECT_EQ(base.batches_per_epoch(), 0);
  EXPECT_NE(Collect(shuffled.Batch(10)), Collect(base.Batch(10)));
  EXPECT_EQ(base.source().size(), 10);
}

TEST(Dataset, MeaninglessSizesAreTheCallersMistake) {
  const Dataset data = Ids(4);
  EXPECT_THROW(static_cast<void>(data.Batch(0)), ContractError);
  EXPECT_THROW(static_cast<void>(data.Batch(-3)), ContractError);
  EXPECT_THROW(static_cast<void>(data.Take(-1)), ContractError);
  EXPECT_THROW(static_cast<void>(data.Repeat(-1)), ContractError);
  EXPECT_THROW(static_cast<void>(data.Shard(0, 0)), ContractError);
  EXPECT_THROW(static_cast<void>(data.ShuffleBuffer(1, 0)), ContractError);
  EXPECT_THROW(static_cast<void>(data.ShuffleBuffer(1, -5)), ContractError);
  EXPECT_EQ(Collect(data.Batch(3).Prefetch(0)), (IdBatches{{0, 1, 2}, {3}})) << "none ahead";
  EXPECT_THROW(static_cast<void>(data.Prefetch(-2)), ContractError);
  EXPECT_THROW(static_cast<void>(data.Prefetch(1, 0)), ContractError);
  EXPECT_THROW(static_cast<void>(data.Map(nullptr)), ContractError);
  EXPECT_THROW(static_cast<void>(data.Batch(2).Batch(2)), ContractError);
  EXPECT_THROW(static_cast<void>(data.Batch(2).Shuffle(1)), ContractError);
  EXPECT_THROW(Dataset(std::shared_ptr<const Source>()), ContractError);
  // As large as it gets.
  EXPECT_EQ(Collect(data.Batch(std::numeric_limits<std::int64_t>::max())),
            (IdBatches{{0, 1, 2, 3}}));
}

TEST(Dataset, FingerprintTellsApartWhatIsRead) {
  const Dataset base = Ids(10);
  const auto pass = [](Example&) { return OkStatus(); };
  const std::vector<std::uint64_t> all = {
      base.Fingerprint(),
      Ids(11).Fingerprint(),
      base.Shuffle(1).Fingerprint(),
      base.Shuffle(2).Fingerprint(),
      base.Shuffle(1, false).Fingerprint(),
      base.Take(5).Fingerprint(),
      base.Take(5).Shuffle(1).Fingerprint(),
      base.Shuffle(1).Take(5).Fingerprint(),
      base.Map(pass).Fingerprint(),
      base.Batch(2).Fingerprint(),
      base.Batch(2, true).Fingerprint(),
      OrThrow(FromTensors({{"id", Tensor(DType::kInt64, {10})}})).Fingerprint(),
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (std::size_t k = 0; k < i; ++k) {
      EXPECT_NE(all[i], all[k]) << i << " and " << k;
    }
  }
  EXPECT_EQ(base.Shuffle(1).Batch(2).Fingerprint(), Ids(10).Shuffle(1).Batch(2).Fingerprint());
  EXPECT_EQ(base.Batch(2).Prefetch(3).Fingerprint(), base.Batch(2).Fingerprint());
}

TEST(Map, RewritesAddsAndDropsFeatures) {
  const Dataset data = Ids(5).Map([](Example& example) {
    const float id = static_cast<float>(example.at("id").data<std::int64_t>()[0]);
    example.erase("id");
    example["pair"] = Tensor::Of<float>({2}, std::vector<float>{id, -id});
    return OkStatus();
  });
  auto iterator = OrThrow(data.Batch(4).Iterate({.num_workers = 3, .worker = 1}));
  auto batch = OrThrow(iterator->Next());
  ASSERT_TRUE(batch.has_value());
  EXPECT_EQ(batch->features.size(), 1U);
  EXPECT_THAT((*batch)["pair"].data<float>(), ElementsAre(2, -2));
  // The last global batch has one example, of worker 0: still the mapped features here.
  batch = OrThrow(iterator->Next());
  ASSERT_TRUE(batch.has_value());
  EXPECT_EQ(batch->size, 0);
  EXPECT_EQ(batch->features.size(), 1U);
  EXPECT_EQ((*batch)["pair"].shape(), Shape({0, 2}));
}

TEST(Map, StagesRunInOrderAndMayAlias) {
  const Dataset data = Ids(3)
                           .Map([](Example& example) {
                             example["copy"] = example.at("id");
                             return OkStatus();
                           })
                           .Map([](Example& example) {
                             example.at("copy").data<std::int64_t>()[0] += 10;
                             return OkStatus();
                           })
                           .Shuffle(1)
                           .Batch(3);
  const auto batch = OrThrow(OrThrow(data.Iterate())->Next());
  const auto ids = Flatten(Collect(Ids(3).Shuffle(1).Batch(3)));
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ((*batch)["copy"].data<std::int64_t>()[i], ids[i] + 10);
    EXPECT_EQ((*batch)["id"].data<std::int64_t>()[i], ids[i] + 10) << "the map changed both";
  }
}

TEST(Map, ErrorsSurfaceWithFileAndOrdinal) {
  const Dataset files(std::make_shared<FilesSource>(std::vector<std::int64_t>{6, 6}));
  const auto fails_at_8 = [](Example& example) {
    return example.at("id").data<std::int64_t>()[0] == 8 ? InvalidArgument("cannot decode")
                                                         : OkStatus();
  };
  for (const int prefetch : {0, 2}) {
    const Dataset data = files.Map(fails_at_8).Batch(3).Prefetch(prefetch, 2);
    const Status status = FirstError(data);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), "map of file1, record 2: cannot decode");
    // The batches before it are delivered.
    auto iterator = OrThrow(data.Iterate());
    EXPECT_TRUE(OrThrow(iterator->Next()).has_value());
    EXPECT_TRUE(OrThrow(iterator->Next()).has_value());
    EXPECT_FALSE(iterator->Next().ok());
  }
}

TEST(Map, ExceptionsSurfaceLikeErrors) {
  for (const int prefetch : {0, 2}) {
    const Status status = FirstError(Ids(4)
                                         .Map([](Example& example) {
                                           static_cast<void>(example.at("image"));
                                           return OkStatus();
                                         })
                                         .Batch(2)
                                         .Prefetch(prefetch));
    EXPECT_EQ(status.code(), StatusCode::kInternal);
    EXPECT_THAT(status.message(), HasSubstr("map of example 0: exception: "));
  }
}

TEST(Map, ExamplesOfABatchMustBeAlike) {
  const auto map = [](auto change) {
    return FirstError(Ids(4)
                          .Map([change](Example& example) {
                            if (example.at("id").template data<std::int64_t>()[0] == 2) {
                              change(example);
                            }
                            return OkStatus();
                          })
                          .Batch(4))
        .message();
  };
  EXPECT_EQ(map([](Example& e) { e["id"] = Tensor(DType::kInt64, {2}); }),
            "map of example 2: feature 'id' is int64[2], in the examples before it int64[]");
  EXPECT_THAT(map([](Example& e) { e["id"] = Tensor(DType::kFloat32, Shape()); }),
              HasSubstr("is float32[], in the examples before it int64[]"));
  EXPECT_THAT(map([](Example& e) { e["more"] = Tensor(DType::kInt64, Shape()); }),
              HasSubstr("'more' is not in the examples before it"));
  EXPECT_THAT(map([](Example& e) { e.clear(); }),
              HasSubstr("'id' of the examples before it is missing"));
}

}  // namespace
}  // namespace cohort::data
