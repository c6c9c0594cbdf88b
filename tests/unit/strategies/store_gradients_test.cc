// What a store does to gradients beside the rule: late ones, clipping, staleness.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include <cohort/optim/optimizers.h>
#include <cohort/optim/server_side.h>

#include "parameter_server/frames/dense_codec.h"
#include "parameter_server/variables/parameter_store.h"
#include "store_test.h"

namespace cohort::ps {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::HasSubstr;

TEST_F(StoreTest, GradientsAreCompensatedForWhatHasMovedSinceTheirPull) {
  Declare(*ServerSide(Sgd({.learning_rate = 1}), {.delay_compensation = 0.5}));
  Assign({4, 4, 4, 4, 4, 4, 4});
  const std::vector<float> twos(7, 2);
  const auto pull = [&](std::uint64_t client) {
    std::vector<ParameterStore::Reading> readings;
    EXPECT_EQ(store_.Plan(Header({0, 1, 2}), &readings).kind(), Error::NONE);
    for (ParameterStore::Reading& reading : readings) {
      std::vector<float> values(reading.floats);
      store_.Copy(reading, false, values, DType::kFloat32, client);
    }
  };
  const auto push = [&](std::uint64_t client, std::uint64_t version,
                        const std::vector<float>& gradient, double weight = 1) {
    FrameHeader header = PushHeader(weight);
    header.set_client(client);
    for (int i = 0; i < 3; ++i) {
      header.set_versions(i, version);
    }
    EXPECT_EQ(Push(header, gradient).kind(), Error::NONE);
  };
  pull(1);
  pull(2);
  push(2, 0, ones_);
  EXPECT_THAT(Read(0), Each(3)) << "it was fresh";
  push(1, 0, twos);  // 2 + 0.5 * 4 * (3 - 4) = 0
  EXPECT_THAT(Read(0), Each(3));
  EXPECT_THAT(Read(1), Each(3));
  EXPECT_THAT(Read(2), Each(7)) << "what is not trained moves by differences";
  pull(1);
  push(2, 0, std::vector<float>(7, 4), /*weight=*/2);  // the mean is what is compensated
  EXPECT_THAT(Read(0), Each(3));
  push(1, 2, twos);  // nothing has moved since
  EXPECT_THAT(Read(0), Each(1));
  push(2, 0, twos);  // 2 + 0.5 * 4 * (1 - 4) = -4
  EXPECT_THAT(Read(0), Each(5));
  push(1, 1, twos);
  EXPECT_THAT(Read(0), Each(3)) << "as it is, where the copy is not of its version";
  push(9, 0, twos);
  EXPECT_THAT(Read(0), Each(1)) << "or there is none";
  pull(3);
  store_.Stay();
  push(3, 7, ones_);
  push(3, 7, twos);  // 2 + 0.5 * 4 * (0 - 1) = 0
  EXPECT_THAT(Read(0), Each(0)) << "what stays knows what it gave";
  pull(3);
  store_.Reset();
  Assign({0, 0, 0, 0, 0, 0, 0}, 9);
  push(3, 9, ones_);
  push(3, 9, twos);
  EXPECT_THAT(Read(0), Each(-3)) << "not after a roll-back";
}

TEST_F(StoreTest, WhatTravelsRoundedIsCompensatedForAsItTravelled) {
  Declare(*ServerSide(Sgd({.learning_rate = 1}), {.delay_compensation = 1}));
  const float odd = 1 + 0x1p-10F;  // 1 as bfloat16
  Assign({odd, odd, odd, odd, odd, odd, odd});
  std::vector<ParameterStore::Reading> readings;
  ASSERT_EQ(store_.Plan(Header({0}), &readings).kind(), Error::NONE);
  std::vector<float> values(EncodedFloats(DType::kBFloat16, 4));
  ASSERT_TRUE(store_.Copy(readings.at(0), false, values, DType::kBFloat16, /*client=*/1));
  FrameHeader other = PushHeader();
  other.set_client(2);
  ASSERT_EQ(Push(other, ones_).kind(), Error::NONE);
  ASSERT_EQ(Push(PushHeader(), ones_).kind(), Error::NONE);
  // 1 + 1 * (2^-10 - 1) is taken off 2^-10.
  EXPECT_THAT(Read(0), Each(0));
}

TEST_F(StoreTest, WhereThereAreCopiesAPushCarriesWhatItWasComputedFrom) {
  ParameterStore store(0);
  spec_ = {
      .parameters = {{"a", {2}, true, 0}, {"fixed", {1}, false, 8}},
      .optimizer = ServerSide(Sgd({.learning_rate = 1}), {.delay_compensation = 0.5})->config(),
      .servers = 1,
      .copies = true};
  OrThrow(store.Declare(spec_, "chief:0"));
  const std::vector<float> fours = {4, 4, 4};
  ASSERT_EQ(store.Assign(Header({0, 1}), Payload(fours)).kind(), Error::NONE);
  ParameterStore::Pushed pushed;
  std::uint64_t number = 0;
  const auto push = [&](const std::vector<float>& payload, std::uint64_t version,
                        DType wire = DType::kFloat32) {
    FrameHeader header = Header({0, 1}, version);
    header.set_sequence(++number);
    header.set_weight(1);
    header.set_wire(WireNumber(wire));
    return store.Push(header, Payload(payload), &pushed);
  };
  const auto value = [&] {
    std::vector<ParameterStore::Reading> readings;
    EXPECT_EQ(store.Plan(Header({0}), &readings).kind(), Error::NONE);
    std::vector<float> values(readings.at(0).floats);
    store.Copy(readings[0], false, values, DType::kFloat32, /*client=*/1);
    EXPECT_EQ(values[0], values[1]);
    return values[0];
  };
  // Gradients, what they were computed from, and the difference of what is not trained.
  EXPECT_EQ(push({1, 1, 9, 9, 0}, 0).kind(), Error::NONE);
  EXPECT_EQ(value(), 3) << "it was not late";
  EXPECT_EQ(push({2, 2, 4, 4, 0}, 0).kind(), Error::NONE);  // 2 + 0.5 * 4 * (3 - 4) = 0
  EXPECT_EQ(value(), 3);
  EXPECT_EQ(push({2, 2, 1, 1, 0}, 1).kind(), Error::NONE);  // 2 + 0.5 * 4 * (3 - 1) = 6
  EXPECT_EQ(value(), -3);
  std::vector<float> rounded(EncodedFloats(DType::kBFloat16, 2));
  ASSERT_TRUE(EncodeValues(DType::kBFloat16, std::vector<float>{2, 2}, rounded));
  rounded.insert(rounded.end(), {-2, -2, 0});
  EXPECT_EQ(push(rounded, 1, DType::kBFloat16).kind(), Error::NONE);  // 2 + 0.5 * 4 * -1 = 0
  EXPECT_EQ(value(), -3);
  Error error = push({2, 2, 0}, 1);
  EXPECT_EQ(error.kind(), Error::BAD_FRAME);
  EXPECT_THAT(error.message(), HasSubstr("a: 12 bytes left of the payload, 16 needed"));
  rounded.resize(1);
  EXPECT_EQ(push(rounded, 1, DType::kBFloat16).kind(), Error::BAD_FRAME);
  error = push({2, 2, 1, std::numeric_limits<float>::infinity(), 0}, 1);
  EXPECT_EQ(error.kind(), Error::NOT_FINITE);
  EXPECT_THAT(error.message(), HasSubstr("values of a that a gradient was computed from"));
  EXPECT_EQ(value(), -3);
}

TEST_F(StoreTest, TheRateIsDividedByTheStaleness) {
  Declare(*ServerSide(Sgd({.learning_rate = 1}), {.staleness_scaling = true}));
  Assign({0, 0, 0, 0, 0, 0, 0});
  const std::vector<float> twelve(7, 12);
  for (const float expected : {-12.0F, -24.0F, -30.0F, -34.0F, -37.0F}) {  // 12 / 1, 1, 2, 3, 4
    EXPECT_EQ(Push(PushHeader(), twelve).kind(), Error::NONE);  // all computed from version 0
    EXPECT_THAT(Read(0), Each(FloatEq(expected)));
  }
}

TEST_F(StoreTest, ElementsOfTheMeanAreClipped) {
  for (const char* consistency : {"async", "sync"}) {
    ParameterStore store(0);
    spec_ = {.parameters = {{"a", {2}, true, 0}},
             .optimizer = ServerSide(Sgd({.learning_rate = 1}), {.clip_value = 3})->config(),
             .consistency = OrThrow(Consistency::Parse(consistency)),
             .servers = 1};
    OrThrow(store.Declare(spec_, "chief:0"));
    const std::vector<float> zeros = {0, 0};
    ASSERT_EQ(store.Assign(Header({0}), Payload(zeros)).kind(), Error::NONE);
    const std::vector<float> gradient = {4, -20};
    ParameterStore::Pushed pushed;
    FrameHeader header = Header({0});
    header.set_sequence(1);
    header.set_weight(2);
    if (spec_.consistency.synchronous()) {
      header.mutable_round()->set_round(1);
      header.mutable_round()->set_parts(1);
    }
    ASSERT_EQ(store.Push(header, Payload(gradient), &pushed).kind(), Error::NONE);
    std::vector<ParameterStore::Reading> readings;
    ASSERT_EQ(store.Plan(Header({0}), &readings).kind(), Error::NONE);
    std::vector<float> values(readings.at(0).floats);
    store.Copy(readings[0], false, values);
    EXPECT_THAT(values, ElementsAre(-2, 3)) << consistency;
  }
}

TEST_F(StoreTest, WhatNeedsSinglePushesIsRefusedWhereThereAreRounds) {
  for (const auto& [options, field] :
       {std::pair{ServerSideOptions{.clip_norm = 1}, "clip_norm"},
        std::pair{ServerSideOptions{.delay_compensation = 1}, "delay_compensation"},
        std::pair{ServerSideOptions{.staleness_scaling = true}, "staleness_scaling"}}) {
    for (const char* consistency : {"sync", "sync:1", "async", "ssp:2"}) {
      ModelSpec spec = {.parameters = {{"a", {2}, true, 0}},
                        .optimizer = ServerSide(Sgd(), options)->config(),
                        .consistency = OrThrow(Consistency::Parse(consistency)),
                        .servers = 1};
      const Status status = ParameterStore(0).Declare(spec, "chief:0");
      if (spec.consistency.synchronous()) {
        EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
        EXPECT_THAT(status.message(),
                    AllOf(HasSubstr("sgd: " + std::string(field)), HasSubstr(consistency)));
      } else {
        EXPECT_TRUE(status.ok()) << status.message();
      }
    }
  }
}

TEST_F(StoreTest, StalenessIsMeasured) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({0, 0, 0, 0, 0, 0, 0});
  for (int i = 0; i < 3; ++i) {
    Push(PushHeader(), ones_);  // all computed from version 0
  }
  EXPECT_EQ(store_.stats().max_staleness, 2U);
  EXPECT_DOUBLE_EQ(store_.stats().mean_staleness, 1.0);
  EXPECT_EQ(store_.stats().updates, 9U);
}

}  // namespace
}  // namespace cohort::ps
