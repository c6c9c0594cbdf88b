// Rounds of a server's sparse tables: one update for all parts, however often these come.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include <cohort/optim/optimizers.h>

#include "parameter_server/rows/row_frames.h"
#include "parameter_server/rows/row_store.h"
#include "row_store_test.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RowRoundsTest : public RowStoreTest {
 protected:
  // A part of a round: one frame, of one row.
  Error Push(std::uint64_t round, std::uint32_t part, std::uint32_t parts, std::uint64_t id,
             float gradient, double weight = 1, std::uint32_t attempt = 0) {
    last_ = Header(0, 1, 2);
    last_.set_client(part + 1);
    last_.set_sequence(++sequence_);
    last_.set_weight(weight);
    last_.set_advance(true);
    last_.mutable_round()->set_round(round);
    last_.mutable_round()->set_attempt(attempt);
    last_.mutable_round()->set_part(part);
    last_.mutable_round()->set_parts(parts);
    if (commit_.round() > 0) {
      *last_.mutable_commit() = commit_;
    }
    last_payload_ =
        Bytes().Add<std::uint64_t>({id}).Add<std::uint32_t>({1}).Add<float>({gradient, gradient});
    return store_.Push(last_, last_payload_.Reader(), &moved_);
  }
  Error::Kind Wait(std::uint64_t round, const Commit& commit = {}) {
    FrameHeader header = Header(0, 0, 2);
    header.mutable_rows()->set_after_round(round);
    if (commit.round() > 0) {
      *header.mutable_commit() = commit;
    }
    const Error error = store_.Admit(header, std::chrono::steady_clock::now());
    message_ = error.message();
    return error.kind();
  }

  FrameHeader last_;
  Bytes last_payload_;
  std::string message_;
  Commit commit_;  // that pushes bring; round 0: none
};

TEST_F(RowRoundsTest, ARoundIsOneUpdateWithTheSumOfItsPartsInTheirOrder) {
  Declare();
  EXPECT_EQ(Wait(1), Error::NONE) << "nobody has begun it";
  // 1e8 + 1 - 1e8 is 0 in this order, and 1 in another.
  EXPECT_EQ(Push(1, 2, 3, 5, -1e8F).kind(), Error::NONE);
  EXPECT_EQ(Push(1, 1, 3, 5, 1).kind(), Error::NONE);
  EXPECT_EQ(Wait(0), Error::NONE);
  EXPECT_EQ(Wait(1), Error::NOT_YET);
  EXPECT_THAT(message_, HasSubstr("round 1 of rows waits for part(s) 0 of 3"));
  EXPECT_THAT(Pull(5), ElementsAre(0, 0));
  EXPECT_EQ(Push(1, 0, 3, 5, 1e8F).kind(), Error::NONE);
  EXPECT_EQ(Wait(1), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(0, 0));
  EXPECT_EQ(Push(2, 1, 2, 5, 3, 0.5).kind(), Error::NONE);
  EXPECT_EQ(Push(2, 0, 2, 9, 6, 1).kind(), Error::NONE);
  EXPECT_EQ(Wait(2), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-2, -2)) << "divided by the sum of the weights";
  EXPECT_THAT(Pull(9), ElementsAre(-4, -4));
}

TEST_F(RowRoundsTest, APartThatWeighsNothingContributesNothing) {
  Declare();
  EXPECT_EQ(Push(1, 0, 2, 5, 100, /*weight=*/0).kind(), Error::NONE);
  EXPECT_EQ(Push(1, 1, 2, 9, 6, 2).kind(), Error::NONE);
  EXPECT_EQ(Wait(1), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(0, 0));
  EXPECT_THAT(Pull(9), ElementsAre(-3, -3));
}

TEST_F(RowRoundsTest, APartCountsOnceHoweverOftenItArrives) {
  Declare();
  for (const std::uint32_t part : {0U, 1U}) {
    EXPECT_EQ(Push(1, part, 2, 5, 1).kind(), Error::NONE);
    EXPECT_EQ(store_.Push(last_, last_payload_.Reader(), &moved_).kind(), Error::NONE);
  }
  EXPECT_EQ(Wait(1), Error::NONE);
  EXPECT_EQ(store_.Push(last_, last_payload_.Reader(), &moved_).kind(), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-1, -1));
  EXPECT_EQ(store_.stats().duplicates, 3);
}

// Until somebody needs it: its members may be lost before all servers have all parts.
TEST_F(RowRoundsTest, ANewerAttemptTakesThePlaceOfARoundThatNobodyHasRead) {
  Declare();
  EXPECT_EQ(Push(1, 0, 2, 5, 100).kind(), Error::NONE);
  EXPECT_EQ(Push(1, 1, 2, 5, 100).kind(), Error::NONE);
  EXPECT_EQ(Push(1, 0, 1, 5, 1, 1, /*attempt=*/1).kind(), Error::NONE);
  EXPECT_EQ(Push(1, 1, 2, 5, 100).kind(), Error::NONE) << "too late, and dropped";
  EXPECT_EQ(Wait(1), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-1, -1));
  EXPECT_EQ(Push(1, 0, 1, 5, 1, 1, /*attempt=*/2).kind(), Error::NONE);
  EXPECT_EQ(Wait(1), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-1, -1)) << "the round was over";
}

TEST_F(RowRoundsTest, TheNextRoundAndADumpNeedTheOneBefore) {
  Declare();
  EXPECT_EQ(Push(1, 0, 1, 5, 1).kind(), Error::NONE);
  EXPECT_EQ(Push(2, 0, 2, 5, 1).kind(), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-1, -1));
  const Error early = Push(4, 1, 2, 5, 1);
  EXPECT_EQ(early.kind(), Error::OUT_OF_ORDER);
  EXPECT_THAT(early.message(), HasSubstr("of round 2 parts are missing"));
  EXPECT_EQ(Push(2, 1, 2, 5, 1).kind(), Error::NONE);
  FrameHeader from = Header(0, 0, 2);
  from.add_buckets();
  std::vector<BucketPiece> pieces;
  std::string bytes;
  EXPECT_EQ(store_.Dump(from, &pieces, &bytes, &moved_).kind(), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-2, -2));
}

// As where a process looked up nothing here since.
TEST_F(RowRoundsTest, APartMayBeARoundAheadOfTheOthers) {
  Declare();
  EXPECT_EQ(Push(1, 0, 2, 5, 1).kind(), Error::NONE);
  EXPECT_EQ(Push(2, 0, 2, 5, 3).kind(), Error::NONE);
  EXPECT_EQ(Push(2, 1, 2, 5, 3).kind(), Error::NONE);
  EXPECT_EQ(Wait(1), Error::NOT_YET);
  EXPECT_EQ(Wait(2), Error::NOT_YET) << "after round 1, whatever is there of it";
  EXPECT_THAT(message_, HasSubstr("round 1 of rows waits for part(s) 1 of 2"));
  EXPECT_THAT(Pull(5), ElementsAre(0, 0));
  EXPECT_EQ(Push(1, 1, 2, 5, 1).kind(), Error::NONE);
  EXPECT_EQ(Wait(1), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-1, -1)) << "and round 2 waits until it is needed";
  EXPECT_EQ(Push(3, 0, 2, 5, 1).kind(), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-4, -4));
}

// With backup workers: what nobody has chosen waits, what was not chosen is dropped, also when it
// comes later, and the weights are those of the winners.
TEST_F(RowRoundsTest, TheSchedulerSaysWhichPartsARoundHas) {
  Declare(/*time_to_live=*/0, /*elects=*/true);
  const auto commit = [](std::uint64_t round, std::vector<std::uint32_t> winners) {
    Commit message;
    message.set_round(round);
    message.mutable_winners()->Assign(winners.begin(), winners.end());
    return message;
  };
  EXPECT_EQ(Push(1, 0, 3, 5, 1).kind(), Error::NONE);
  EXPECT_EQ(Push(1, 2, 3, 5, 7).kind(), Error::NONE);
  EXPECT_EQ(Wait(1), Error::NOT_YET);
  EXPECT_THAT(message_, HasSubstr("nobody has said which parts round 1 of rows has"));
  EXPECT_NE(Wait(1, commit(1, {0, 1})), Error::NONE);
  EXPECT_THAT(message_, HasSubstr("the parts of round 1 of rows are not there"));
  EXPECT_NE(Wait(1, commit(1, {})), Error::NONE);
  EXPECT_NE(Wait(1, commit(1, {0, 3})), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(0, 0));
  EXPECT_EQ(Wait(1, commit(1, {2})), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-7, -7)) << "part 2 alone";
  EXPECT_EQ(Wait(1, commit(1, {0})), Error::NONE) << "the first word counts";
  EXPECT_EQ(Push(1, 1, 3, 5, 100).kind(), Error::NONE) << "late, and dropped";
  EXPECT_THAT(Pull(5), ElementsAre(-7, -7));

  // A part of the next round brings it as well as a read.
  EXPECT_EQ(Push(2, 0, 2, 5, 1).kind(), Error::NONE);
  EXPECT_EQ(Push(2, 1, 2, 5, 3).kind(), Error::NONE);
  commit_ = commit(2, {0, 1});
  EXPECT_EQ(Push(3, 1, 2, 5, 1).kind(), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-9, -9));
}

// Workers that wait for a round apply it, table by table, while the next one's parts come. One of
// them reads nothing for some rounds, so it is a round ahead of the others.
TEST_F(RowRoundsTest, WhoeverWaitsForARoundAppliesItOnceAndInItsOrder) {
  constexpr std::uint32_t kWorkers = 4;
  constexpr std::uint32_t kTables = 5;
  constexpr std::uint64_t kRounds = 200;
  std::vector<TableSpec> tables;
  for (std::uint32_t t = 0; t < kTables; ++t) {
    TableSpec& table = tables.emplace_back();
    table.name = "table" + std::to_string(t);
    table.dim = 1;
    table.buckets = 8;
    table.optimizer = Sgd({.learning_rate = 1})->config();
  }
  OrThrow(store_.Declare(tables, 1, kLayout));
  std::vector<std::thread> threads;
  for (std::uint32_t part = 0; part < kWorkers; ++part) {
    threads.emplace_back([&, part] {
      for (std::uint64_t round = 1; round <= kRounds; ++round) {
        FrameHeader header;
        header.set_client(part + 1);
        header.set_layout(kLayout);
        header.set_sequence(round);
        header.set_weight(1.0 / kWorkers);
        header.set_advance(true);
        header.mutable_round()->set_round(round);
        header.mutable_round()->set_part(part);
        header.mutable_round()->set_parts(kWorkers);
        Bytes payload;
        for (std::uint32_t t = 0; t < kTables; ++t) {
          RowBlock& block = AddBlock(header);
          block.set_table(t);
          block.set_count(1);
          block.set_dim(1);
          block.set_step(round);
          // 1e8 + 1 - 1e8 + 1 is 1 in this order, and 0 or 2 in others.
          constexpr std::array<float, kWorkers> kGradients = {1e8F, 1, -1e8F, 1};
          payload.Add<std::uint64_t>({5}).Add<std::uint32_t>({1}).Add<float>({kGradients[part]});
        }
        RowStore::Moved moved;
        Error error = store_.Push(header, payload.Reader(), &moved);
        ASSERT_EQ(error.kind(), Error::NONE) << error.message();
        if (part == 0 && round % 2 == 0) {
          continue;
        }
        const Result<bool> applied =
            store_.rounds().WaitApplied(round, DeadlineAfter(std::chrono::seconds(60)));
        ASSERT_TRUE(applied.ok() && *applied) << "round " << round;
        for (std::uint32_t t = 0; t < kTables; ++t) {
          RowStore::Reading reading;
          ASSERT_EQ(store_
                        .Plan(Header(t, 1, 1, round + 1), Bytes().Add<std::uint64_t>({5}).Reader(),
                              &reading)
                        .kind(),
                    Error::NONE);
          std::vector<float> row(1);
          ASSERT_EQ(store_.Pull(reading, row, &moved).kind(), Error::NONE);
          // The next round's update is not: this worker's part is missing.
          ASSERT_EQ(row[0], -static_cast<float>(round)) << "table " << t;
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  OrThrow(store_.rounds().Settle());
  for (std::uint32_t t = 0; t < kTables; ++t) {
    RowStore::Reading reading;
    ASSERT_EQ(
        store_.Plan(Header(t, 1, 1), Bytes().Add<std::uint64_t>({5}).Reader(), &reading).kind(),
        Error::NONE);
    std::vector<float> row(1);
    ASSERT_EQ(store_.Pull(reading, row, &moved_).kind(), Error::NONE);
    EXPECT_EQ(row[0], -static_cast<float>(kRounds)) << "table " << t;
  }
}

TEST_F(RowRoundsTest, WhatIsWrongWithAPartIsSaidAndTheRoundGoesOn) {
  Declare();
  EXPECT_EQ(Push(1, 0, 2, 5, 1).kind(), Error::NONE);
  EXPECT_EQ(Push(1, 1, 2, 5, std::numeric_limits<float>::infinity()).kind(), Error::BAD_ROWS);
  EXPECT_EQ(Push(1, 2, 2, 5, 1).kind(), Error::BAD_ROWS);
  EXPECT_EQ(Push(1, 1, 3, 5, 1).kind(), Error::BAD_ROWS) << "others say 2 parts";
  EXPECT_EQ(Push(1, 0, 2, 5, 1).kind(), Error::BAD_ROWS) << "that part was complete";
  EXPECT_EQ(Push(1, 1, 2, 9, 1, 0).kind(), Error::NONE);
  EXPECT_EQ(Wait(1), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-1, -1));
}

}  // namespace
}  // namespace cohort::ps
