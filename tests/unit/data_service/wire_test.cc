#include "wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

namespace cohort::data {
namespace {

PipelineInfo Info() {
  return {.name = "p",
          .examples = 3,
          .fingerprint = 0xFFFFFFFFFFFFFFFF,
          .by_epoch = true,
          .features = {{"x", DType::kBFloat16, {2, 0}}, {"y", DType::kInt64, {}}},
          .ragged = {{"words", DType::kInt32}}};
}

TEST(ServiceWire, APipelineComesBackAsItWas) {
  wire::Pipeline message;
  ToWire(Info(), &message);
  const PipelineInfo back = OrThrow(FromWire(message));
  EXPECT_EQ(Difference(back, Info()), "");
  EXPECT_EQ(back.name, "p");
  EXPECT_EQ(back.features, Info().features);
  EXPECT_EQ(back.ragged, Info().ragged);
  EXPECT_EQ(back.row_bytes(), 8);
}

TEST(ServiceWire, ImpossiblePipelinesAreRefused) {
  const auto code = [](const auto& spoil) {
    wire::Pipeline message;
    ToWire(Info(), &message);
    spoil(message);
    return FromWire(message).status().code();
  };
  EXPECT_EQ(code([](wire::Pipeline& p) { p.set_examples(-1); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](wire::Pipeline& p) { p.mutable_features(0)->set_dims(0, -1); }),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](wire::Pipeline& p) {
              p.mutable_features(0)->set_dims(0, std::int64_t{1} << 32);
              p.mutable_features(0)->set_dims(1, std::int64_t{1} << 32);
            }),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](wire::Pipeline& p) { p.mutable_features(0)->set_dtype(99); }),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](wire::Pipeline& p) { p.mutable_features(1)->set_name("x"); }),
            StatusCode::kInvalidArgument);
}

TEST(ServiceWire, DifferencesNameTheFeature) {
  PipelineInfo other = Info();
  other.features[1].dtype = DType::kFloat32;
  EXPECT_EQ(FeatureDifference(other, Info()), "feature 'y' is float32[], int64[] is expected");
  other.features.pop_back();
  EXPECT_EQ(FeatureDifference(other, Info()), "feature 'y' is missing, int64[] is expected");
  EXPECT_EQ(FeatureDifference(Info(), other), "feature 'y' (int64[]) is not expected");
  other = Info();
  other.ragged[0].dtype = DType::kUInt8;
  EXPECT_EQ(FeatureDifference(other, Info()),
            "feature 'words' is uint8 of any length, int32 of any length is expected");
}

TEST(ServiceWire, TheOrderOfFeaturesIsADifference) {
  PipelineInfo other = Info();
  std::swap(other.features[0], other.features[1]);
  EXPECT_EQ(FeatureDifference(other, Info()), "");
  EXPECT_EQ(Difference(other, Info()),
            "the same features in another order: 'y', 'x', 'words', 'x', 'y', 'words' is expected");
}

TEST(ServiceWire, AContractCoversAllOfAPipeline) {
  wire::Pipeline message;
  ToWire(Info(), &message);
  EXPECT_EQ(Contract(OrThrow(FromWire(message))), Contract(Info())) << "equal on both sides";
  const auto changed = [](const auto& change) {
    PipelineInfo other = Info();
    change(other);
    return Contract(other) != Contract(Info());
  };
  EXPECT_TRUE(changed([](PipelineInfo& p) { p.name = "q"; }));
  EXPECT_TRUE(changed([](PipelineInfo& p) { p.examples = 4; }));
  EXPECT_TRUE(changed([](PipelineInfo& p) { p.fingerprint = 0; }));
  EXPECT_TRUE(changed([](PipelineInfo& p) { p.by_epoch = false; }));
  EXPECT_TRUE(changed([](PipelineInfo& p) { p.features[0].shape = {0, 2}; }));
  EXPECT_TRUE(changed([](PipelineInfo& p) { p.features[1].dtype = DType::kFloat32; }));
  EXPECT_TRUE(changed([](PipelineInfo& p) { std::swap(p.features[0], p.features[1]); }));
  EXPECT_TRUE(changed([](PipelineInfo& p) { p.ragged.clear(); }));
}

TEST(ServiceWire, AReplyIsReadInPieces) {
  wire::ReadReply header;
  header.mutable_outcome()->set_message("hello");
  std::vector<grpc::Slice> payload;
  std::byte* memory = nullptr;
  payload.push_back(NewSlice(3, &memory));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % 64, 0U);
  std::memcpy(memory, "abc", 3);
  payload.push_back(NewSlice(0, &memory));
  payload.push_back(AdoptSlice({std::byte{'d'}, std::byte{'e'}}));
  Received received;
  ASSERT_TRUE(received.Take(Assemble(header, std::move(payload))));
  wire::ReadReply back;
  ASSERT_TRUE(received.ReadHeader(&back));
  EXPECT_EQ(back.outcome().message(), "hello");
  EXPECT_EQ(received.remaining(), 5U);
  std::string text(4, '\0');
  ASSERT_TRUE(received.Read(text.data(), 4));
  EXPECT_EQ(text, "abcd");
  EXPECT_FALSE(received.Read(text.data(), 2)) << "there is one byte left";
  ASSERT_TRUE(received.Read(text.data(), 1));
  EXPECT_EQ(text[0], 'e');
}

TEST(ServiceWire, WhatIsNoReplyIsTold) {
  for (const std::string& bytes :
       {std::string(), std::string("ab"), std::string("\xFF\xFF\0\0x", 5),
        std::string("\4\0\0\0\xFF\xFF\xFF\xFF", 8)}) {
    const grpc::Slice slice(bytes);
    Received received;
    wire::ReadReply header;
    EXPECT_FALSE(received.Take(grpc::ByteBuffer(&slice, 1)) && received.ReadHeader(&header));
  }
  EXPECT_FALSE(Received().Take(grpc::ByteBuffer()));
}

}  // namespace
}  // namespace cohort::data
