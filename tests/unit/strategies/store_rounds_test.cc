// Rounds in a store: parts, attempts, and those of which the scheduler says which count.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/optim/optimizers.h>

#include "parameter_server/variables/parameter_store.h"
#include "store_test.h"

namespace cohort::ps {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::FloatEq;

TEST_F(StoreTest, ARoundIsAppliedWhenAllPartsAreThereInTheOrderOfParts) {
  Declare(*Sgd({.learning_rate = 1}), "sync");
  Assign({0, 0, 0, 0, 0, 0, 0});
  // In floats 1e8 + -1e8 + 1 is 1, in another order 0.
  const std::vector<float> big(7, 1e8F);
  const std::vector<float> minus(7, -1e8F);
  EXPECT_EQ(Push(RoundHeader(1, 2, 3, 1), ones_).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(1, 1, 3, 1), minus).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(0));
  EXPECT_EQ(store_.version(0), 0U);
  EXPECT_EQ(Push(RoundHeader(1, 0, 3, 2), big).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-0.25)) << "divided by the weights of all parts";
  EXPECT_EQ(store_.version(0), 1U);
  EXPECT_EQ(Push(RoundHeader(1, 0, 3, 2), big).kind(), Error::NONE) << "applied already: ignored";
  EXPECT_THAT(Read(0), Each(-0.25));
  EXPECT_EQ(Push(RoundHeader(3, 0, 1, 2), ones_).kind(), Error::OUT_OF_ORDER);
}

TEST_F(StoreTest, APartWithoutExamplesSendsNothing) {
  Declare(*Sgd({.learning_rate = 1}), "sync");
  Assign({0, 0, 0, 0, 0, 0, 3});
  EXPECT_EQ(Push(RoundHeader(1, 0, 2, 0), {}).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(1, 1, 2, 2), {2, 2, 2, 2, 2, 2, 9}).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-1));
  EXPECT_THAT(Read(2), ElementsAre(9));
  EXPECT_EQ(Push(RoundHeader(2, 0, 1, 0), {}).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-1));
  EXPECT_EQ(store_.version(0), 2U);
}

TEST_F(StoreTest, ANewAttemptDropsThePartsOfTheOldOne) {
  Declare(*Sgd({.learning_rate = 1}), "sync");
  Assign({0, 0, 0, 0, 0, 0, 0});
  const std::vector<float> hundred(7, 100);
  EXPECT_EQ(Push(RoundHeader(1, 0, 3, 1, 0), hundred).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(1, 0, 2, 1, 1), ones_).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(1, 1, 3, 1, 0), hundred).kind(), Error::NONE) << "late: no effect";
  EXPECT_EQ(Push(RoundHeader(1, 2, 3, 1, 0), hundred).kind(), Error::NONE);
  EXPECT_EQ(store_.version(0), 0U);
  EXPECT_EQ(Push(RoundHeader(1, 1, 2, 1, 1), ones_).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-1));
  EXPECT_EQ(store_.version(0), 1U);
}

TEST_F(StoreTest, WithBackupWorkersACommitNamesThePartsThatCountAndLateOnesAreTold) {
  Declare(*Sgd({.learning_rate = 1}), "sync:1");
  Assign({0, 0, 0, 0, 0, 0, 0});
  const std::vector<float> hundred(7, 100);
  const std::vector<float> threes(7, 3);
  const auto commit = [&](std::vector<std::uint32_t> winners) {
    FrameHeader header = Header({0, 1, 2});
    header.mutable_commit()->set_round(1);
    header.mutable_commit()->mutable_winners()->Assign(winners.begin(), winners.end());
    return store_.Admit(header, DeadlineAfter(std::chrono::seconds(1))).kind();
  };
  EXPECT_EQ(Push(RoundHeader(1, 2, 3, 1), threes).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(1, 0, 3, 1), ones_).kind(), Error::NONE);
  EXPECT_EQ(store_.version(0), 0U) << "nothing is applied before it is decided who has won";
  EXPECT_EQ(commit({0, 1}), Error::OUT_OF_ORDER) << "part 1 is not there";
  EXPECT_EQ(commit({}), Error::OUT_OF_ORDER);
  EXPECT_EQ(commit({0, 7}), Error::OUT_OF_ORDER);
  EXPECT_EQ(store_.version(0), 0U);
  EXPECT_EQ(commit({0, 2}), Error::NONE);
  EXPECT_THAT(Read(0), Each(-2)) << "the mean over the two that have won";
  ParameterStore::Pushed late;
  EXPECT_EQ(store_.Push(RoundHeader(1, 1, 3, 1), Payload(hundred), &late).kind(), Error::NONE);
  EXPECT_TRUE(late.late);
  EXPECT_EQ(commit({0, 2}), Error::NONE) << "every worker brings it";
  EXPECT_THAT(Read(0), Each(-2));
  EXPECT_EQ(store_.version(0), 1U);
  EXPECT_EQ(store_.stats().late, 3U) << "by chunk";

  // A part that was there in time for the push, not for the decision, has no effect later either.
  EXPECT_EQ(Push(RoundHeader(2, 0, 3, 1), ones_).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(2, 1, 3, 1), hundred).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(2, 2, 3, 1), ones_).kind(), Error::NONE);
  FrameHeader header = Header({0, 1, 2});
  header.mutable_commit()->set_round(2);
  header.mutable_commit()->add_winners(0);
  header.mutable_commit()->add_winners(2);
  EXPECT_EQ(store_.Admit(header, DeadlineAfter(std::chrono::seconds(1))).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-3));
  EXPECT_EQ(store_.stats().late, 6U);
}

// Between the sum over the parts that count and the factor by which it is clipped.
TEST_F(StoreTest, WithBackupWorkersALatePartDoesNotTakeThePlaceOfASumThatWaits) {
  Declare(*Sgd({.learning_rate = 1, .global_clip_norm = 1e6}), "sync:1");
  Assign({0, 0, 0, 0, 0, 0, 0});
  const std::vector<float> large(7, 100);
  for (const int part : {1, 2}) {
    EXPECT_EQ(Push(RoundHeader(1, part, 3, 1), ones_).kind(), Error::NONE);
  }
  Commit commit;
  commit.set_round(1);
  commit.add_winners(1);
  commit.add_winners(2);
  const auto norms = OrThrow(store_.RoundNorms(spec_.Fingerprint(), 1, commit));
  EXPECT_EQ(norms.weight, 2);
  ParameterStore::Pushed pushed;
  EXPECT_EQ(store_.Push(RoundHeader(1, 0, 3, 1), Payload(large), &pushed).kind(), Error::NONE);
  EXPECT_TRUE(pushed.late);
  OrThrow(store_.Settle(spec_.Fingerprint(), 1, 1));
  EXPECT_THAT(Read(0), Each(FloatEq(-1)));
  EXPECT_THAT(Read(2), ElementsAre(1)) << "the mean of what the winners have";
}

TEST_F(StoreTest, RoundsThatMakeNoSenseAreRefused) {
  Declare(*Sgd({.learning_rate = 1}), "sync");
  Assign({0, 0, 0, 0, 0, 0, 0});
  EXPECT_EQ(Push(PushHeader(), ones_).kind(), Error::BAD_FRAME) << "no round";
  EXPECT_EQ(Push(RoundHeader(1, 2, 2, 1), ones_).kind(), Error::BAD_FRAME);
  EXPECT_EQ(Push(RoundHeader(1, 0, 0, 1), ones_).kind(), Error::BAD_FRAME);
  EXPECT_EQ(Push(RoundHeader(1, 0, 1 << 30, 1), ones_).kind(), Error::BAD_FRAME);
}

}  // namespace
}  // namespace cohort::ps
