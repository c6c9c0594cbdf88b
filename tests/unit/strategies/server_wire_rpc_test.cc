// Gradients and values that travel in fewer bytes, and what rounding takes of them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/optim/optimizers.h>

#include "parameter_server/variables/client.h"
#include "servers_test.h"

namespace cohort::ps {
namespace {

using ::testing::HasSubstr;

// `bias` is not trained: it moves by differences, and travels as it is.
TEST_F(ServersTest, GradientsAndValuesTravelIn16Bits) {
  for (const DType wire : {DType::kFloat16, DType::kBFloat16}) {
    servers_.clear();
    addresses_.clear();
    Start(2);
    spec_.parameters[1].trainable = false;
    Initialise();
    const float step = wire == DType::kFloat16 ? 0x1p-10F : 0x1p-7F;  // of values from 1 to 2
    const auto client = Client::Make(
        spec_, addresses_, {.client = 1, .task = "worker:1", .wire = {.push = wire, .pull = wire}});
    std::vector<float> values(elements_);
    OrThrow(client->Pull(values, true));
    const auto gradient = std::make_shared<std::vector<float>>(elements_, -(1 + step / 4));
    (*gradient)[3000 * 701 + 8] = step / 4;
    for (int i = 0; i < 8; ++i) {
      OrThrow(client->Push(GradientOf(gradient, /*weight=*/8), values));
    }
    // Eight times (1 + step/4)/8: without feedback the quarter would be lost.
    std::vector<float> exact(elements_);
    OrThrow(NewClient(2)->Pull(exact, true));
    EXPECT_NEAR(exact[0], 1 + step / 4, step / 16);
    EXPECT_NEAR(exact[3000 * 701 - 1], 1 + step / 4, step / 16);
    EXPECT_EQ(values[0], 1) << "rounded";
    EXPECT_EQ(exact[3000 * 701 + 8], 8 * step / 4) << "a difference";
    EXPECT_EQ(values[3000 * 701 + 8], 8 * step / 4);
    EXPECT_EQ(client->version(), 8U);
  }
}

// What rounding took of a push is applied with the next one's clipping, and was with its own.
TEST_F(ServersTest, WhatIsFedBackIsClippedAsItsGradientWas) {
  constexpr float kStep = 0x1p-7F;  // of values from 1 to 2
  Start(1);
  Initialise();
  const auto client = Client::Make(
      spec_, addresses_, {.client = 1, .task = "worker:1", .wire = {.push = DType::kBFloat16}});
  std::vector<float> values(elements_);
  OrThrow(client->Pull(values, true));
  const std::vector<float> first(elements_, -(1 + kStep / 4));
  const std::vector<float> second(elements_, -1.0F / 256);
  OrThrow(client->Push({.arena = first, .weight = 1, .clip = 0.125}, values));
  ExpectAll(values, 0.125F);
  OrThrow(client->Push({.arena = second, .weight = 1}, values));
  ExpectAll(values, 0.125F + 0.125F * kStep / 4 + 1.0F / 256);
}

// So it is with a round, whose clipping is known when all of it is there.
TEST_F(ServersTest, WhatARoundFeedsBackIsClippedAsItWas) {
  constexpr double kMost = 0.125;
  Start(2);
  spec_.consistency.mode = Consistency::Mode::kSynchronous;
  spec_.optimizer = Sgd({.learning_rate = 1, .global_clip_norm = kMost})->config();
  Initialise();
  const auto client = Client::Make(
      spec_, addresses_, {.client = 1, .task = "worker:1", .wire = {.push = DType::kBFloat16}});
  std::vector<float> gradient(elements_, 0);
  std::vector<float> values(elements_);
  const auto round = [&](std::uint64_t number, float first) {
    gradient[0] = first;
    Gradient pushed = {.arena = gradient, .weight = 1};
    pushed.round.emplace();
    pushed.round->set_round(number);
    pushed.round->set_parts(1);
    OrThrow(client->Push(pushed, {}));
    for (int repeated = 0; repeated < 2; ++repeated) {
      OrThrow(client->Settle(number, {}, kMost));
    }
    OrThrow(client->Pull(values, false));
  };
  round(1, -(1 + 0x1p-9F));  // arrives as -1
  EXPECT_EQ(values[0], 0.125F);
  round(2, -0x1p-8F);
  EXPECT_EQ(values[0], 0.125F + 0x1p-12F + 0x1p-8F);
}

// With backup workers. What rounding took of a part that was dropped is as little applied as the
// part, and an empty part takes nothing.
TEST_F(ServersTest, OfAPartThatWasDroppedNothingIsFedBack) {
  constexpr double kMost = 0.125;
  constexpr float kLong = -(1 + 0x1p-9F);  // arrives as -1
  constexpr float kShort = -0x1p-8F;
  Start(2);
  spec_.consistency.mode = Consistency::Mode::kSynchronous;
  spec_.consistency.backup_workers = 1;
  spec_.optimizer = Sgd({.learning_rate = 1, .global_clip_norm = kMost})->config();
  Initialise();
  const auto client = Client::Make(
      spec_, addresses_, {.client = 1, .task = "worker:1", .wire = {.push = DType::kBFloat16}});
  const auto other = NewClient(2);
  std::vector<float> gradient(elements_, 0);
  std::vector<float> values(elements_);
  const auto push = [&](Client& by, std::uint64_t round, std::uint32_t attempt, std::uint32_t part,
                        std::uint32_t parts, float first) {
    gradient[0] = first;
    Gradient pushed = {.arena = gradient, .weight = first == 0 ? 0.0 : 1.0};
    pushed.round.emplace();
    pushed.round->set_round(round);
    pushed.round->set_attempt(attempt);
    pushed.round->set_part(part);
    pushed.round->set_parts(parts);
    OrThrow(by.Push(pushed, {}));
  };
  const auto finish = [&](std::uint64_t round, std::uint32_t attempt,
                          const std::vector<std::uint32_t>& winners) {
    Commit commit;
    commit.set_round(round);
    commit.set_attempt(attempt);
    commit.mutable_winners()->Assign(winners.begin(), winners.end());
    OrThrow(client->Settle(round, commit, kMost));
    OrThrow(client->PullForStep(values, commit));
    return values[0];
  };
  push(*client, 1, 0, 0, 2, kLong);
  push(*other, 1, 0, 1, 2, 0);
  EXPECT_EQ(finish(1, 0, {1}), 0) << "it was late";
  push(*client, 2, 0, 0, 2, kShort);
  EXPECT_EQ(finish(2, 0, {0}), 0x1p-8F);

  push(*client, 3, 0, 0, 2, kLong);
  push(*client, 3, 1, 0, 1, kShort);
  EXPECT_EQ(finish(3, 1, {0}), 2 * 0x1p-8F) << "the round was cut anew";

  push(*client, 4, 0, 0, 2, kLong);
  EXPECT_EQ(finish(4, 0, {0}), 2 * 0x1p-8F + 0.125F) << "clipped to an eighth, as is what is left";
  push(*client, 5, 0, 0, 2, 0);
  push(*other, 5, 0, 1, 2, -1);
  EXPECT_EQ(finish(5, 0, {0, 1}), 2 * 0x1p-8F + 0.25F) << "clipped, with an empty part of its own";
  push(*client, 6, 0, 0, 2, kShort);
  EXPECT_EQ(finish(6, 0, {0}), 3 * 0x1p-8F + 0x1p-12F + 0.25F);

  push(*client, 7, 0, 0, 2, kLong);
  push(*other, 7, 0, 1, 2, kShort);
  OrThrow(other->Settle(
      7,
      [] {
        Commit commit;
        commit.set_round(7);
        commit.add_winners(1);
        return commit;
      }(),
      kMost));
  push(*other, 8, 0, 1, 2, kShort);
  EXPECT_EQ(finish(8, 0, {1}), 5 * 0x1p-8F + 0x1p-12F + 0.25F) << "late for two rounds";
  push(*client, 9, 0, 0, 2, kShort);
  EXPECT_EQ(finish(9, 0, {0}), 6 * 0x1p-8F + 0x1p-12F + 0.25F);
}

TEST_F(ServersTest, ValuesTooLargeFor16BitsAreErrorsWithTheirName) {
  Start(1);
  Initialise(70'000);
  const auto client = Client::Make(spec_, addresses_,
                                   {.client = 1,
                                    .task = "worker:1",
                                    .wire = {.push = DType::kFloat16, .pull = DType::kFloat16}});
  std::vector<float> values(elements_);
  EXPECT_THAT(client->Pull(values, true).message(),
              HasSubstr("wide holds a value that float16 cannot [let values travel"));
  const auto gradient = std::make_shared<std::vector<float>>(elements_, 70'000.0F);
  EXPECT_THAT(client->Push(GradientOf(gradient), {}).message(),
              HasSubstr("the gradient of wide holds a value that float16 cannot"));
  OrThrow(NewClient(2)->Pull(values, true));  // the server goes on
  ExpectAll(values, 70'000);
}

}  // namespace
}  // namespace cohort::ps
