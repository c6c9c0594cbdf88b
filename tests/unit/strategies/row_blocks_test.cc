// Frames of rows of several tables: applied as a whole or not at all, and what shares a frame.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "parameter_server/rows/row_frames.h"
#include "parameter_server/rows/row_store.h"
#include "row_store_test.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Frames whose first block is TwoRows of "words".
class RowBlocksTest : public RowStoreTest {
 protected:
  static void AddBlockOf(FrameHeader& header, std::uint32_t table, std::uint32_t count,
                         std::uint32_t dim) {
    RowBlock& block = *header.add_more_rows();
    block.set_table(table);
    block.set_count(count);
    block.set_dim(dim);
    block.set_step(1);
  }
  // Gradients (10, 20) and (30, 40) of ids 5 and 7.
  static Bytes Behind(Bytes bytes) {
    return bytes.Add<std::uint64_t>({5, 7}).Add<std::uint32_t>({1, 1}).Add<float>({10, 20, 30, 40});
  }
};

TEST_F(RowBlocksTest, AFrameIsAppliedAsAWholeAndOnce) {
  Declare();
  FrameHeader header = PushHeader();
  AddBlockOf(header, 0, 2, 2);
  AddBlockOf(header, 1, 0, 1);  // of no ids
  for (int i = 0; i < 3; ++i) {
    // In pieces of 12 bytes, which end within blocks.
    EXPECT_EQ(store_.Push(header, Behind(TwoRows()).Reader(12), &moved_).kind(), Error::NONE);
  }
  EXPECT_THAT(Pull(5), ElementsAre(-11, -22));
  EXPECT_THAT(Pull(9), ElementsAre(-3, -4));
  EXPECT_THAT(Pull(7), ElementsAre(-30, -40));
  EXPECT_EQ(store_.stats().pushes, 1);
  EXPECT_EQ(store_.stats().duplicates, 2);
}

TEST_F(RowBlocksTest, WhatIsWrongWithOneBlockLeavesTheOthersWithoutEffect) {
  Declare();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto header = [&](std::uint32_t table, std::uint32_t count, std::uint32_t dim) {
    FrameHeader h = PushHeader();
    AddBlockOf(h, table, count, dim);
    return h;
  };
  const auto one_known = [](float gradient) {
    return TwoRows().Add<std::uint64_t>({3}).Add<std::uint32_t>({1}).Add<float>({gradient});
  };
  ExpectRefused(header(1, 1, 1), one_known(1), Error::NO_ROW, "\"known\" has no row for id 3");
  ExpectRefused(header(1, 1, 1), one_known(nan), Error::BAD_ROWS,
                "\"known\": the gradient of id 3");
  ExpectRefused(header(2, 1, 1), one_known(1), Error::UNKNOWN_TABLE, "table 2 of 2");
  ExpectRefused(header(1, 1, 2), one_known(1), Error::BAD_FRAME, "\"known\": rows of 2 floats");
  // 40 bytes are the first block's, 16 the second's.
  ExpectRefused(header(1, 2, 1), one_known(1), Error::BAD_FRAME, "\"known\": 16 bytes for 2 ids");
  ExpectRefused(header(1, 0, 1), one_known(1), Error::BAD_FRAME, "\"known\": 16 bytes for 0 ids");
  FrameHeader longer = header(1, 1, 1);
  longer.mutable_rows()->set_count(0xFFFFFFFF);
  ExpectRefused(longer, one_known(1), Error::BAD_FRAME, "\"words\": 56 bytes for 4294967295 ids");
  FrameHeader steps = header(0, 2, 2);
  steps.mutable_round()->set_round(1);
  steps.mutable_round()->set_parts(1);
  steps.mutable_more_rows(0)->set_step(2);
  ExpectRefused(steps, Behind(TwoRows()), Error::BAD_FRAME, "step 2 in a round of step 1");
  FrameHeader many = PushHeader();
  while (NumBlocks(many) <= kMaxRowBlocks) {
    AddBlockOf(many, 0, 0, 2);
  }
  ExpectRefused(many, TwoRows(), Error::BAD_FRAME, "65 blocks");
  EXPECT_EQ(store_.stats().pushes, 0);
  // A number that was refused is not used up.
  FrameHeader right = header(0, 2, 2);
  right.set_sequence(1);
  EXPECT_EQ(store_.Push(right, Behind(TwoRows()).Reader(), &moved_).kind(), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-11, -22));
}

TEST_F(RowBlocksTest, APullMakesNoRowWhereARowIsMissingThatMustBeThere) {
  Declare();
  FrameHeader header = Header(0, 2, 2);
  header.mutable_rows()->set_training(true);
  AddBlockOf(header, 1, 1, 1);
  header.mutable_more_rows(0)->set_training(true);
  const Bytes ids = Bytes().Add<std::uint64_t>({5, 9, 3});
  RowStore::Reading reading;
  ASSERT_EQ(store_.Plan(header, ids.Reader(), &reading).kind(), Error::NONE);
  std::vector<float> rows(reading.floats());
  EXPECT_EQ(rows.size(), 5U);
  const Error error = store_.Pull(reading, rows, &moved_);
  EXPECT_EQ(error.kind(), Error::NO_ROW);
  EXPECT_THAT(error.message(), HasSubstr("\"known\" has no row for id 3"));
  EXPECT_EQ(store_.stats().rows, 0U);
  EXPECT_EQ(store_.stats().rejected, 1U);
}

TEST_F(RowBlocksTest, TheRowsOfAllBlocksFitInAFrame) {
  Declare();
  // 300,000 rows of 8 bytes, twice.
  FrameHeader header = Header(0, 300'000, 2);
  AddBlockOf(header, 0, 300'000, 2);
  const std::string ids(600'000 * sizeof(std::uint64_t), '\0');
  RowStore::Reading reading;
  const Error error = store_.Plan(header, Bytes().Add(ids).Reader(), &reading);
  EXPECT_EQ(error.kind(), Error::BAD_FRAME);
  EXPECT_THAT(error.message(), HasSubstr("\"words\": 300000 rows do not fit in a frame behind"));
}

TEST_F(RowBlocksTest, AFrameIsOfOnePartOfARound) {
  Declare();
  for (const std::uint32_t part : {1U, 0U}) {
    FrameHeader header = PushHeader();
    header.set_client(part + 1);
    header.set_advance(true);
    header.mutable_round()->set_round(1);
    header.mutable_round()->set_part(part);
    header.mutable_round()->set_parts(2);
    AddBlockOf(header, 0, 2, 2);
    for (int i = 0; i < 2; ++i) {
      EXPECT_EQ(store_.Push(header, Behind(TwoRows()).Reader(), &moved_).kind(), Error::NONE);
    }
  }
  EXPECT_THAT(Pull(5), ElementsAre(0, 0));
  FrameHeader after = Header(0, 0, 2);
  AddBlockOf(after, 1, 0, 1);
  after.mutable_more_rows(0)->set_after_round(1);  // one block's word is enough
  EXPECT_EQ(store_.Admit(after, std::chrono::steady_clock::now()).kind(), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-11, -22));
  EXPECT_THAT(Pull(9), ElementsAre(-3, -4));
}

TEST(RowFramesTest, PiecesOfAServerShareAFrameAsFarAsTheyFit) {
  const RowFrames frames({{.server = 1, .bytes = 40, .table = 0},
                          {.server = 0, .bytes = 60, .table = 1},
                          {.server = 1, .bytes = 60, .table = 1, .run = 1},
                          {.server = 1, .bytes = 1, .table = 2},
                          {.server = 0, .bytes = 300, .table = 3}},
                         /*most_bytes=*/100);
  std::vector<std::array<std::size_t, 3>> got;
  for (const RowFrames::Frame& frame : frames.frames()) {
    got.push_back({static_cast<std::size_t>(frame.server), frame.begin, frame.end});
  }
  EXPECT_EQ(got,
            (std::vector<std::array<std::size_t, 3>>{{0, 0, 1}, {0, 1, 2}, {1, 2, 4}, {1, 4, 5}}));
  EXPECT_EQ(frames.pieces()[3].table, 1U);
  EXPECT_EQ(frames.pieces()[3].run, 1U);

  FrameHeader reply;
  AddBlock(reply).set_tag(2);
  EXPECT_EQ(frames.AnsweredBy(1, reply), nullptr) << "a block is missing";
  AddBlock(reply).set_tag(3);
  EXPECT_EQ(frames.AnsweredBy(1, reply), &frames.frames()[2]);
  EXPECT_EQ(frames.AnsweredBy(0, reply), nullptr) << "another server's";
  MutableBlockAt(reply, 1).set_tag(4);
  EXPECT_EQ(frames.AnsweredBy(1, reply), nullptr);
  reply.mutable_rows()->set_tag(3);
  EXPECT_EQ(frames.AnsweredBy(1, reply), nullptr) << "in the middle of a frame";
  reply.mutable_rows()->set_tag(99);
  EXPECT_EQ(frames.AnsweredBy(1, reply), nullptr);

  const RowFrames many(std::vector<RowPiece>(2 * kMaxRowBlocks + 1), 100);
  EXPECT_EQ(many.frames().size(), 3U);
  EXPECT_TRUE(RowFrames({}, 100).frames().empty());
}

}  // namespace
}  // namespace cohort::ps
