// A source that reads many examples at once is asked for many at once.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <numeric>

#include <cohort/data/bulk_source.h>
#include <cohort/data/combine.h>

#include "collect.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

// Counts its calls. Example i is i, and a list of i % 3 times i.
class CountingBulk final : public BulkSource {
 public:
  explicit CountingBulk(std::atomic<int>* calls) : calls_(calls) {}
  std::int64_t size() const override { return 1000; }
  const std::vector<FeatureSpec>& features() const override { return features_; }
  const std::vector<RaggedSpec>& ragged() const override { return ragged_; }
  std::string Where(std::int64_t index) const override {
    return "example " + std::to_string(index);
  }
  std::uint64_t Fingerprint() const override { return 1; }
  Status ReadMany(std::span<const std::int64_t> indexes, std::span<std::byte* const> rows,
                  std::span<std::vector<std::byte>> values,
                  std::span<std::vector<std::int64_t>> ends) const override {
    ++*calls_;
    for (std::size_t k = 0; k < indexes.size(); ++k) {
      reinterpret_cast<std::int64_t*>(rows[0])[k] = indexes[k];
      const auto* const bytes = reinterpret_cast<const std::byte*>(&indexes[k]);
      for (std::int64_t n = 0; n < indexes[k] % 3; ++n) {
        values[0].insert(values[0].end(), bytes, bytes + sizeof(std::int64_t));
      }
      ends[0].push_back(static_cast<std::int64_t>(values[0].size()));
    }
    return {};
  }

 private:
  std::atomic<int>* const calls_;
  std::vector<FeatureSpec> features_ = {{"id", DType::kInt64, Shape()}};
  std::vector<RaggedSpec> ragged_ = {{"list", DType::kInt64}};
};

void ExpectAll(const Dataset& data) {
  EXPECT_EQ(Flatten(Collect(data.Batch(64))), Flatten(Collect(Ids(1000).Batch(64))));
  const auto batch = *OrThrow(OrThrow(data.Batch(1000).Iterate())->Next());
  const auto splits = batch.lists("list").splits.data<std::int64_t>();
  const auto values = batch.lists("list").values.data<std::int64_t>();
  for (std::size_t i = 0; i < 1000; ++i) {
    ASSERT_EQ(splits[i + 1] - splits[i], static_cast<std::int64_t>(i % 3));
    for (std::int64_t at = splits[i]; at < splits[i + 1]; ++at) {
      ASSERT_EQ(values[static_cast<std::size_t>(at)], static_cast<std::int64_t>(i));
    }
  }
}

TEST(BulkSource, ABatchIsOneCall) {
  std::atomic<int> calls = 0;
  const Dataset data(std::make_shared<CountingBulk>(&calls));
  EXPECT_EQ(Collect(data.Shuffle(1).Batch(100)), Collect(Ids(1000).Shuffle(1).Batch(100)));
  EXPECT_EQ(calls, 10);
}

TEST(BulkSource, ASnapshotReadsManyAtOnce) {
  for (const bool mapped : {false, true}) {
    const testing::TempDir folder;
    std::atomic<int> calls = 0;
    Dataset data(std::make_shared<CountingBulk>(&calls));
    if (mapped) {
      data = data.Map([](Example&) { return OkStatus(); });
    }
    const Dataset snapshot =
        OrThrow(Snapshot(data, FileSystem::Local(), folder.path(), {.shards = 4, .threads = 2}));
    EXPECT_LT(calls, 100) << "a thousand examples one by one";
    const int before = calls;
    ExpectAll(snapshot);
    EXPECT_EQ(calls, before) << "and never again";
  }
}

// What a map makes of some examples only is found, and nothing is written.
TEST(BulkSource, ASnapshotOfExamplesThatDifferIsAnError) {
  const testing::TempDir folder;
  const Dataset data = Ids(40).Map([](Example& example) {
    const std::int64_t id = example.at("id").data<std::int64_t>()[0];
    example["x"] = Tensor(id < 32 ? DType::kFloat32 : DType::kInt32, {2});
    return OkStatus();
  });
  const Status status = Snapshot(data, FileSystem::Local(), folder.path(), {.shards = 5}).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("feature 'x'"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace cohort::data
