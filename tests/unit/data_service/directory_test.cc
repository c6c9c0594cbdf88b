#include "directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cohort::data {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr Deadline kStart{};

PipelineInfo Images(std::int64_t height = 4) {
  return {.name = "images",
          .examples = 10,
          .fingerprint = 7,
          .features = {{"image", DType::kUInt8, {height, 4, 3}}, {"label", DType::kInt64, {}}}};
}

InputWorker Worker(std::uint64_t incarnation, const std::string& address,
                   std::vector<PipelineInfo> pipelines = {Images()}) {
  return {.incarnation = incarnation, .address = address, .pipelines = std::move(pipelines)};
}

class DirectoryTest : public ::testing::Test {
 protected:
  std::vector<std::string> Found(Deadline now) {
    std::vector<std::string> addresses;
    for (const InputWorker* worker : OrThrow(directory_.Find("images", now)).workers) {
      addresses.push_back(worker->address);
    }
    return addresses;
  }
  Directory directory_{10s};
};

TEST_F(DirectoryTest, FindsWhoServesIt) {
  OrThrow(directory_.Register(Worker(1, ""), kStart));
  OrThrow(directory_.Register(Worker(2, "a:1"), kStart));
  PipelineInfo other = Images();
  other.name = "text";
  OrThrow(directory_.Register(Worker(3, "b:1", {other}), kStart));
  EXPECT_THAT(Found(kStart), ElementsAre("", "a:1"));
  EXPECT_EQ(OrThrow(directory_.Find("images", kStart)).pipeline.features, Images().features);
  const Status none = directory_.Find("sound", kStart).status();
  EXPECT_EQ(none.code(), StatusCode::kNotFound);
  EXPECT_THAT(none.message(),
              AllOf(HasSubstr("'sound'"), HasSubstr("served are: 'images', 'text'")));
}

TEST_F(DirectoryTest, ForgetsWhoIsSilentOrLeaves) {
  OrThrow(directory_.Register(Worker(1, ""), kStart));
  OrThrow(directory_.Register(Worker(2, "a:1"), kStart));
  OrThrow(directory_.Register(Worker(3, "b:1"), kStart + 5s));
  EXPECT_THAT(Found(kStart + 10s), ElementsAre("", "a:1", "b:1"));
  EXPECT_THAT(Found(kStart + 11s), ElementsAre("", "b:1"));
  EXPECT_FALSE(directory_.Knows(2, kStart + 11s));
  EXPECT_TRUE(directory_.Knows(3, kStart + 11s));
  directory_.Leave(3);
  EXPECT_FALSE(directory_.Knows(3, kStart + 11s));
  EXPECT_THAT(Found(kStart + 11s), ElementsAre("")) << "this process is never silent";
}

TEST_F(DirectoryTest, AWorkerAtTheSameAddressReplacesTheOneBefore) {
  OrThrow(directory_.Register(Worker(1, "a:1"), kStart));
  OrThrow(directory_.Register(Worker(2, "a:1", {Images(8)}), kStart));
  EXPECT_THAT(Found(kStart), ElementsAre("a:1"));
  EXPECT_EQ(OrThrow(directory_.Find("images", kStart)).pipeline.features[0].shape,
            Shape({8, 4, 3}));
}

TEST_F(DirectoryTest, RefusesAPipelineThatIsNotTheOthers) {
  OrThrow(directory_.Register(Worker(1, "a:1"), kStart));
  const Status shape = directory_.Register(Worker(2, "b:1", {Images(8)}), kStart);
  EXPECT_EQ(shape.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(shape.message(),
              AllOf(HasSubstr("'images'"), HasSubstr("b:1"), HasSubstr("a:1"),
                    HasSubstr("feature 'image' is uint8[8,4,3], uint8[4,4,3] is expected")));
  PipelineInfo data = Images();
  data.fingerprint = 8;
  EXPECT_THAT(directory_.Register(Worker(2, "b:1", {data}), kStart).message(),
              HasSubstr("other data"));
  data.examples = 11;
  EXPECT_THAT(directory_.Register(Worker(2, "b:1", {data}), kStart).message(),
              HasSubstr("11 examples, 10 are expected"));
  EXPECT_THAT(Found(kStart), ElementsAre("a:1"));
  // Once the others are gone, it is what there is.
  OrThrow(directory_.Register(Worker(2, "b:1", {Images(8)}), kStart + 11s));
  EXPECT_THAT(Found(kStart + 11s), ElementsAre("b:1"));
}

}  // namespace
}  // namespace cohort::data
