// What a server remembers of each client's pushes.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <new>
#include <thread>

#include "parameter_server/variables/push_ledger.h"

namespace cohort::ps {
namespace {

Deadline Late() { return DeadlineAfter(std::chrono::seconds(60)); }

TEST(PushLedgerTest, OneThreadAppliesAndTheOthersWaitForIt) {
  PushLedger ledger;
  ASSERT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kNew);
  std::atomic<bool> finished = false;
  std::jthread other([&] {
    EXPECT_EQ(ledger.Claim(1, 1, Late()), PushLedger::Claimed::kRepeated);
    EXPECT_TRUE(finished);
  });
  EXPECT_EQ(ledger.Claim(2, 1), PushLedger::Claimed::kNew)
      << "another client's numbers are its own";
  finished = true;
  ledger.Finish(1, 1, true);
}

TEST(PushLedgerTest, AClaimThatWasTakenBackCanBeMadeAgain) {
  PushLedger ledger;
  ASSERT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kNew);
  std::jthread other([&] { EXPECT_EQ(ledger.Claim(1, 1, Late()), PushLedger::Claimed::kNew); });
  ledger.Finish(1, 1, false);
}

// A thread that hangs holds its own push up and no other thread for good; the push counts once.
TEST(PushLedgerTest, WhoWaitsTooLongIsToComeAgain) {
  const auto soon = [] { return DeadlineAfter(std::chrono::milliseconds(5)); };
  for (const bool applied : {true, false}) {
    PushLedger ledger;
    ASSERT_EQ(ledger.Claim(1, 7), PushLedger::Claimed::kNew);
    for (int tries = 0; tries < 3; ++tries) {
      EXPECT_EQ(ledger.Claim(1, 7, soon()), PushLedger::Claimed::kBusy);
    }
    EXPECT_EQ(RefusalOf(PushLedger::Claimed::kBusy).kind(), Error::NOT_YET);
    EXPECT_EQ(ledger.Claim(1, 8, soon()), PushLedger::Claimed::kNew);
    ledger.Finish(1, 8, true);
    EXPECT_EQ(ledger.Claim(1, 9, soon(), /*behind_all=*/true), PushLedger::Claimed::kBusy)
        << "the end of a step";
    EXPECT_EQ(ledger.Claim(1, 6, soon(), /*behind_all=*/true), PushLedger::Claimed::kNew)
        << "that of the step before";
    ledger.Finish(1, 6, true);
    ledger.Finish(1, 7, applied);
    EXPECT_EQ(ledger.Claim(1, 7, soon()),
              applied ? PushLedger::Claimed::kRepeated : PushLedger::Claimed::kNew);
    EXPECT_EQ(ledger.Claim(1, 9, Late(), /*behind_all=*/applied), PushLedger::Claimed::kNew)
        << "no number was lost by waiting";
  }
}

TEST(PushLedgerTest, AnExceptionTakesAClaimBack) {
  PushLedger ledger;
  for (const bool applied : {false, true}) {
    ASSERT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kNew);
    try {
      PushLedger::Applying applying(ledger, 1, 1);
      applying.applied = applied;
      throw std::bad_alloc();
    } catch (const std::bad_alloc&) {
    }
  }
  EXPECT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kRepeated);
  ledger.Retire(1);
}

TEST(PushLedgerTest, WhatWasForAnotherServerNeverCountsHere) {
  PushLedger ledger;
  ASSERT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kNew);
  std::jthread other(
      [&] { EXPECT_EQ(ledger.Claim(1, 1, Late()), PushLedger::Claimed::kElsewhere); });
  PushLedger::Applying(ledger, 1, 1).FinishElsewhere();
  other.join();
  ASSERT_EQ(ledger.Claim(1, 2), PushLedger::Claimed::kNew);
  ledger.Finish(1, 2, true);
  EXPECT_EQ(ledger.Claim(1, 2), PushLedger::Claimed::kRepeated);
  EXPECT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kElsewhere);
}

// As of a server that gets the part of one that was lost from its copy.
TEST(PushLedgerTest, ALearnerKnowsWhatFailedAndWhatWasForAnotherServer) {
  PushLedger ledger;
  ASSERT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kNew);
  ledger.Finish(1, 1, true);
  Error answer;
  answer.set_kind(Error::TABLE_FULL);
  answer.set_message("no memory for gradients");
  ASSERT_EQ(ledger.Claim(1, 2), PushLedger::Claimed::kNew);
  PushLedger::Applying(ledger, 1, 2).FinishFailed(answer);
  ASSERT_EQ(ledger.Claim(1, 3), PushLedger::Claimed::kNew);
  PushLedger::Applying(ledger, 1, 3).FinishElsewhere();
  PushLedger::Pushes pushes;
  ledger.Tell(&pushes);
  PushLedger learner;
  OrThrow(learner.Learn(pushes));
  EXPECT_EQ(learner.Claim(1, 1), PushLedger::Claimed::kRepeated);
  EXPECT_EQ(learner.Claim(1, 2), PushLedger::Claimed::kFailed);
  EXPECT_EQ(learner.AnswerTo(1, 2).kind(), Error::TABLE_FULL);
  EXPECT_EQ(learner.AnswerTo(1, 2).message(), "no memory for gradients");
  EXPECT_EQ(learner.Claim(1, 3), PushLedger::Claimed::kElsewhere);
  EXPECT_EQ(learner.Claim(1, 4), PushLedger::Claimed::kNew);
  learner.Finish(1, 4, true);
}

TEST(PushLedgerTest, WhatFellOutOfTheWindowIsNotTold) {
  PushLedger ledger;
  ASSERT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kNew);
  Error answer;
  answer.set_kind(Error::TABLE_FULL);
  PushLedger::Applying(ledger, 1, 1).FinishFailed(answer);
  ASSERT_EQ(ledger.Claim(1, 1 + SequenceWindow::kSize), PushLedger::Claimed::kNew);
  ledger.Finish(1, 1 + SequenceWindow::kSize, true);
  PushLedger::Pushes pushes;
  ledger.Tell(&pushes);
  ASSERT_EQ(pushes.size(), 1);
  EXPECT_TRUE(pushes[0].failed().empty());
  EXPECT_EQ(PushLedger().Learn(pushes), OkStatus());
}

TEST(PushLedgerTest, WhatNoLedgerTellsIsNotLearnt) {
  PushLedger ledger;
  ASSERT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kNew);
  ledger.Finish(1, 1, true);
  const auto learn = [&](const auto& change) {
    PushLedger::Pushes pushes;
    ledger.Tell(&pushes);
    change(pushes[0]);
    PushLedger learner;
    const Status status = learner.Learn(pushes);
    EXPECT_EQ(learner.Claim(1, 1), PushLedger::Claimed::kNew) << "nothing was learnt";
    learner.Finish(1, 1, true);
    return status.code();
  };
  EXPECT_EQ(learn([](ClientPushes& told) { told.set_seen("?"); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(learn([](ClientPushes& told) { told.add_elsewhere(2); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(learn([](ClientPushes& told) { told.add_failed()->set_number(1); }),
            StatusCode::kInvalidArgument)
      << "without an answer";
}

// A worker that was given up: its last push is waited for, and no other has an effect.
TEST(PushLedgerTest, NothingOfARetiredClientIsNew) {
  PushLedger ledger;
  ASSERT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kNew);
  std::atomic<bool> finished = false;
  std::jthread other([&] {
    EXPECT_TRUE(ledger.Retire(1, Late()));
    EXPECT_TRUE(finished);
  });
  while (!ledger.retired(1)) {
    std::this_thread::yield();
  }
  EXPECT_EQ(ledger.Claim(1, 2), PushLedger::Claimed::kFenced);
  EXPECT_EQ(ledger.Claim(2, 1), PushLedger::Claimed::kNew);
  finished = true;
  ledger.Finish(1, 1, true);
}

// The thread that tells of it is not to be held up by one that applies.
TEST(PushLedgerTest, ARetirementSaysThatAPushIsBeingApplied) {
  PushLedger ledger;
  const auto soon = [] { return DeadlineAfter(std::chrono::milliseconds(10)); };
  ASSERT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kNew);
  ASSERT_EQ(ledger.Claim(2, 1), PushLedger::Claimed::kNew);
  ledger.Finish(2, 1, true);
  EXPECT_TRUE(ledger.Retire(2, soon()));
  for (int repetition = 0; repetition < 2; ++repetition) {
    EXPECT_FALSE(ledger.Retire(1, 3, soon()));
    EXPECT_EQ(ledger.Claim(1, 2), PushLedger::Claimed::kFenced);
    EXPECT_EQ(ledger.Claim(3, 1), PushLedger::Claimed::kFenced);
  }
  ledger.Finish(1, 1, true);
  EXPECT_TRUE(ledger.Retire(1, 3, soon()));
  EXPECT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kFenced);
  // One that nobody asks about again is not kept.
  ASSERT_EQ(ledger.Claim(4, 1), PushLedger::Claimed::kNew);
  EXPECT_FALSE(ledger.Retire(4, soon()));
  ledger.Finish(4, 1, false);
  PushLedger::Pushes pushes;
  ledger.Tell(&pushes);
  EXPECT_TRUE(pushes.empty());
}

TEST(PushLedgerTest, WhoWaitsForAPushOfARetiredClientIsFenced) {
  PushLedger ledger;
  ASSERT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kNew);
  std::jthread repeats([&] { EXPECT_NE(ledger.Claim(1, 1), PushLedger::Claimed::kNew); });
  std::jthread retires([&] { EXPECT_TRUE(ledger.Retire(1, Late())); });
  while (!ledger.retired(1)) {
    std::this_thread::yield();
  }
  ledger.Finish(1, 1, false);
}

TEST(PushLedgerTest, NoLiveClientIsForgotten) {
  PushLedger ledger;
  for (std::uint64_t client = 1; client <= PushLedger::kMaxClients; ++client) {
    ASSERT_EQ(ledger.Claim(client, 1), PushLedger::Claimed::kNew);
    ledger.Finish(client, 1, true);
  }
  const std::uint64_t newcomer = PushLedger::kMaxClients + 1;
  EXPECT_EQ(ledger.Claim(newcomer, 1), PushLedger::Claimed::kTooMany);
  EXPECT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kRepeated) << "however long it was silent";
  ledger.Retire(1);
  EXPECT_EQ(ledger.Claim(newcomer, 1), PushLedger::Claimed::kNew);
  EXPECT_EQ(ledger.Claim(1, 2), PushLedger::Claimed::kFenced);
  EXPECT_EQ(RefusalOf(PushLedger::Claimed::kTooMany).kind(), Error::TOO_MANY);
}

}  // namespace
}  // namespace cohort::ps
