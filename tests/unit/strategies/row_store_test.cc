// One server's sparse tables: what frames do, once each, and everything that a client may get
// wrong.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/io/crc32c.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/server_side.h>

#include "parameter_server/rows/row_frames.h"
#include "parameter_server/rows/row_store.h"
#include "parameter_server/variables/push_ledger.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint64_t kLayout = 17;

// The bytes of a payload.
class Bytes {
 public:
  template <typename T>
  Bytes& Add(std::initializer_list<T> values) {
    for (const T value : values) {
      bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    return *this;
  }
  Bytes& Add(std::string_view bytes) {
    bytes_.append(bytes);
    return *this;
  }
  // In pieces of so many bytes, as gRPC may deliver them.
  PayloadReader Reader(std::size_t piece = std::numeric_limits<std::size_t>::max()) const {
    Segments segments;
    const auto all = std::as_bytes(std::span(bytes_));
    for (std::size_t at = 0; at < all.size(); at += std::min(piece, all.size() - at)) {
      segments.push_back(all.subspan(at, std::min(piece, all.size() - at)));
    }
    return PayloadReader(std::move(segments));
  }

  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

class RowStoreTest : public ::testing::Test {
 protected:
  void Declare(std::uint32_t time_to_live = 0, bool elects = false) {
    TableSpec words;
    words.name = "words";
    words.dim = 2;
    words.buckets = 8;
    words.optimizer = Sgd({.learning_rate = 1})->config();
    words.time_to_live = time_to_live;
    TableSpec known = words;
    known.name = "known";
    known.dim = 1;
    known.missing = TableSpec::Missing::kError;
    known.time_to_live = 0;
    OrThrow(store_.Declare({words, known}, 1, kLayout, elects));
  }
  static FrameHeader Header(std::uint32_t table, std::uint32_t count, std::uint32_t dim,
                            std::uint64_t step = 1) {
    FrameHeader header;
    header.set_client(1);
    header.set_layout(kLayout);
    RowBlock& rows = *header.mutable_rows();
    rows.set_table(table);
    rows.set_count(count);
    rows.set_dim(dim);
    rows.set_step(step);
    return header;
  }
  FrameHeader PushHeader(std::uint32_t count = 2, std::uint64_t step = 1) {
    FrameHeader header = Header(0, count, 2, step);
    header.set_sequence(++sequence_);
    header.set_weight(1);
    return header;
  }
  // Ids 5 and 9, once and twice, gradients (1, 2) and (3, 4).
  static Bytes TwoRows() {
    return Bytes().Add<std::uint64_t>({5, 9}).Add<std::uint32_t>({1, 2}).Add<float>({1, 2, 3, 4});
  }
  std::vector<float> Pull(std::uint64_t id) {
    RowStore::Reading reading;
    EXPECT_EQ(store_.Plan(Header(0, 1, 2), Bytes().Add({id}).Reader(), &reading).kind(),
              Error::NONE);
    std::vector<float> row(reading.floats());
    EXPECT_EQ(store_.Pull(reading, row, &moved_).kind(), Error::NONE);
    return row;
  }
  void ExpectRefused(const FrameHeader& header, const Bytes& payload, Error::Kind kind,
                     const std::string& naming) {
    const Error error = store_.Push(header, payload.Reader(), &moved_);
    EXPECT_EQ(error.kind(), kind) << error.message();
    EXPECT_THAT(error.message(), HasSubstr(naming));
    EXPECT_THAT(Pull(5), ElementsAre(0, 0)) << "nothing had an effect";
  }

  RowStore store_{0};
  RowStore::Moved moved_;
  std::uint64_t sequence_ = 0;
};

TEST_F(RowStoreTest, NothingIsServedBeforeADeclaration) {
  EXPECT_EQ(store_.Push(PushHeader(), TwoRows().Reader(), &moved_).kind(), Error::NOT_READY);
}

TEST_F(RowStoreTest, APushHasItsEffectOnceHoweverOftenItArrives) {
  Declare();
  FrameHeader header = PushHeader();
  header.set_weight(2);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(store_.Push(header, TwoRows().Reader(), &moved_).kind(), Error::NONE);
  }
  EXPECT_THAT(Pull(5), ElementsAre(-0.5, -1));
  EXPECT_THAT(Pull(9), ElementsAre(-1.5, -2));
  EXPECT_EQ(store_.stats().pushes, 1);
  EXPECT_EQ(store_.stats().duplicates, 2);
  EXPECT_EQ(store_.stats().rows, 2);
}

TEST_F(RowStoreTest, APayloadMayLieInPiecesOfAnyAlignment) {
  Declare();
  EXPECT_EQ(store_.Push(PushHeader(), TwoRows().Reader(3), &moved_).kind(), Error::NONE);
  EXPECT_THAT(Pull(9), ElementsAre(-3, -4));
}

TEST_F(RowStoreTest, WhatIsWrongWithAFrameIsSaidAndHasNoEffect) {
  Declare();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  FrameHeader header = PushHeader();
  header.set_layout(kLayout + 1);
  ExpectRefused(header, TwoRows(), Error::SPEC_MISMATCH, "another model");
  header = PushHeader();
  header.clear_rows();
  ExpectRefused(header, TwoRows(), Error::BAD_FRAME, "without a table");
  header = PushHeader();
  header.mutable_rows()->set_table(2);
  ExpectRefused(header, TwoRows(), Error::UNKNOWN_TABLE, "table 2 of 2");
  header = PushHeader();
  header.mutable_rows()->set_dim(3);
  ExpectRefused(header, TwoRows(), Error::BAD_FRAME, "\"words\": rows of 3 floats, its dim is 2");
  header = PushHeader();
  header.mutable_rows()->set_dtype(1);
  ExpectRefused(header, TwoRows(), Error::BAD_FRAME, "\"words\": values of type 1");
  ExpectRefused(PushHeader(3), TwoRows(), Error::BAD_FRAME, "\"words\": 40 bytes for 3 ids");
  ExpectRefused(PushHeader(0xFFFFFFFF), TwoRows(), Error::BAD_FRAME, "for 4294967295 ids");
  ExpectRefused(PushHeader(), Bytes(), Error::BAD_FRAME, "0 bytes for 2 ids");
  ExpectRefused(PushHeader(), TwoRows().Add<char>({0}), Error::BAD_FRAME, "41 bytes");
  ExpectRefused(PushHeader(2, 0), TwoRows(), Error::BAD_FRAME, "step 0");
  ExpectRefused(PushHeader(2, 1ULL << 32), TwoRows(), Error::BAD_FRAME, "step 4294967296");
  header = PushHeader();
  header.set_sequence(0);
  ExpectRefused(header, TwoRows(), Error::BAD_FRAME, "sequence number");
  for (const double weight : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN(),
                              std::numeric_limits<double>::infinity()}) {
    header = PushHeader();
    header.set_weight(weight);
    ExpectRefused(header, TwoRows(), Error::BAD_FRAME, "weight");
  }
  ExpectRefused(
      PushHeader(),
      Bytes().Add<std::uint64_t>({5, 9}).Add<std::uint32_t>({1, 1}).Add<float>({1, 2, 3, nan}),
      Error::BAD_ROWS, "the gradient of id 9 holds NaN");
  ExpectRefused(
      PushHeader(),
      Bytes().Add<std::uint64_t>({5, 9}).Add<std::uint32_t>({1, 0}).Add<float>({1, 2, 3, 4}),
      Error::BAD_ROWS, "a count of 0 for id 9");
  EXPECT_EQ(store_.stats().pushes, 0);
  EXPECT_EQ(store_.stats().rejected, 18);
}

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

TEST_F(RowStoreTest, IdsAndCountsMayBeNarrow) {
  Declare();
  FrameHeader header = PushHeader();
  header.mutable_rows()->set_narrow_ids(true);
  header.mutable_rows()->set_count_bytes(1);
  const Bytes bytes =
      Bytes().Add<std::uint32_t>({5, 9}).Add<std::uint8_t>({1, 200, 0, 0}).Add<float>({1, 2, 3, 4});
  EXPECT_EQ(store_.Push(header, bytes.Reader(), &moved_).kind(), Error::NONE);
  header = PushHeader();
  header.mutable_rows()->set_count_bytes(2);
  EXPECT_EQ(store_
                .Push(header,
                      Bytes()
                          .Add<std::uint64_t>({5, 9})
                          .Add<std::uint16_t>({1, 300})
                          .Add<float>({1, 2, 3, 4})
                          .Reader(3),
                      &moved_)
                .kind(),
            Error::NONE);
  EXPECT_THAT(Pull(9), ElementsAre(-6, -8));
  header = PushHeader();
  header.mutable_rows()->set_count_bytes(3);
  EXPECT_EQ(store_.Push(header, bytes.Reader(), &moved_).kind(), Error::BAD_FRAME);
  RowStore::Reading reading;
  FrameHeader pull = Header(0, 2, 2);
  pull.mutable_rows()->set_narrow_ids(true);
  EXPECT_EQ(
      store_.Plan(pull, Bytes().Add<std::uint32_t>({9, 0xFFFFFFFF}).Reader(), &reading).kind(),
      Error::NONE);
  EXPECT_THAT(reading.blocks.at(0).ids, ElementsAre(9, 0xFFFFFFFF));
}

TEST_F(RowStoreTest, APushThatWasRefusedIsRefusedAgain) {
  Declare();
  FrameHeader header = Header(1, 1, 1);
  header.set_sequence(++sequence_);
  header.set_weight(1);
  const Bytes payload = Bytes().Add<std::uint64_t>({7}).Add<std::uint32_t>({1}).Add<float>({1});
  for (int i = 0; i < 2; ++i) {
    const Error error = store_.Push(header, payload.Reader(), &moved_);
    EXPECT_EQ(error.kind(), Error::NO_ROW);
    EXPECT_THAT(error.message(), HasSubstr("table \"known\" has no row for id 7"));
  }
}

TEST_F(RowStoreTest, APullOfMoreThanAFrameHoldsIsRefused) {
  Declare();
  const std::uint32_t ids = (4 << 20) / 8 + 1;
  RowStore::Reading reading;
  const std::string zeros(std::size_t{ids} * 8, '\0');
  const Error error = store_.Plan(Header(0, ids, 2), Bytes().Add(zeros).Reader(), &reading);
  EXPECT_EQ(error.kind(), Error::BAD_FRAME);
  EXPECT_THAT(error.message(), HasSubstr("do not fit in a frame"));
}

TEST_F(RowStoreTest, RowsThatAreUnusedForLongGo) {
  Declare(/*time_to_live=*/10);
  EXPECT_EQ(store_.Push(PushHeader(2, 1), TwoRows().Reader(), &moved_).kind(), Error::NONE);
  EXPECT_EQ(store_.stats().rows, 2);
  const Bytes other = Bytes().Add<std::uint64_t>({6}).Add<std::uint32_t>({1}).Add<float>({1, 1});
  for (std::uint64_t step = 2; step <= 30; ++step) {
    EXPECT_EQ(store_.Push(PushHeader(1, step), other.Reader(), &moved_).kind(), Error::NONE);
  }
  EXPECT_EQ(store_.stats().rows, 1);
}

// A frame that comes late says which rows are gone by its step, each at the step when it was due.
TEST_F(RowStoreTest, StepsThatAServerDidNotHearOfAreMadeUpFor) {
  for (const bool push : {false, true}) {
    RowStore store(0);
    TableSpec words;
    words.name = "words";
    words.dim = 2;
    words.buckets = 8;
    words.optimizer = Sgd({.learning_rate = 1})->config();
    words.time_to_live = 4;
    OrThrow(store.Declare({words}, 1, kLayout));
    const auto each_step = OrThrow(RowTable::Create(words, {0, 8}));
    std::vector<std::uint64_t> ids(40);
    std::iota(ids.begin(), ids.end(), 0);
    Bytes all;
    for (const std::uint64_t id : ids) {
      all.Add({id});
    }
    RowStore::Reading reading;
    FrameHeader pull = Header(0, 40, 2, 1);
    pull.mutable_rows()->set_training(true);
    ASSERT_EQ(store.Plan(pull, all.Reader(), &reading).kind(), Error::NONE);
    std::vector<float> rows(80);
    ASSERT_EQ(store.Pull(reading, rows, &moved_).kind(), Error::NONE);
    OrThrow(each_step->Pull(ids, 1, RowTable::Purpose::kTraining, rows));
    // Step 8: some buckets were last looked through at step 5, and keep their rows until 9.
    for (std::int64_t step = 1; step <= 7; ++step) {
      OrThrow(each_step->EvictWhenDue(step));
    }
    const Bytes one =
        push ? Bytes().Add<std::uint64_t>({77}).Add<std::uint32_t>({1}).Add<float>({1, 1})
             : Bytes().Add<std::uint64_t>({77});
    FrameHeader header = PushHeader(1, 8);
    if (push) {
      ASSERT_EQ(store.Push(header, one.Reader(), &moved_).kind(), Error::NONE);
    } else {
      ASSERT_EQ(store.Plan(header, one.Reader(), &reading).kind(), Error::NONE);
      ASSERT_EQ(store.Pull(reading, std::span(rows).first(2), &moved_).kind(), Error::NONE);
    }
    const std::uint64_t left = each_step->stats().rows;
    EXPECT_GT(left, 0U);
    EXPECT_LT(left, ids.size());
    EXPECT_EQ(store.stats().rows, left + (push ? 1 : 0)) << push;
    // A snapshot is behind the last step, whoever has heard of it.
    ASSERT_EQ(store.Freeze(kLayout, 1, 12).kind(), Error::NONE);
    EXPECT_EQ(store.stats().rows, push ? 1 : 0);
    EXPECT_EQ(store.counts().at(0).evicted, ids.size());
  }
}

TEST(RowStoreCountsTest, WhatATableLosesIsCountedAndTheFirstSkippedGradientIsLogged) {
  std::vector<std::string> lines;
  RowStore store(3, Log([&](LogLevel level, std::string_view line) {
                   EXPECT_EQ(level, LogLevel::kWarning);
                   lines.emplace_back(line);
                 }));
  EXPECT_TRUE(store.counts().empty());
  TableSpec words;
  words.name = "words";
  words.dim = 1;
  words.buckets = 4;
  words.optimizer = Sgd({.learning_rate = 1})->config();
  words.not_finite = TableSpec::NotFinite::kSkipRow;
  TableSpec rare = words;
  rare.name = "rare";
  rare.not_finite = TableSpec::NotFinite::kReject;
  rare.admit_after = 3;
  OrThrow(store.Declare({words, rare}, 4, kLayout));
  // Of ids that belong on server 3 of 4.
  const auto id_here = [](std::uint64_t from) {
    while (ServerOf(BucketOf(from, 4), 4, 4) != 3) {
      ++from;
    }
    return from;
  };
  std::uint64_t sequence = 0;
  const auto push = [&](std::uint32_t table, std::uint64_t id, float gradient) {
    FrameHeader header;
    header.set_client(1);
    header.set_layout(kLayout);
    header.set_sequence(++sequence);
    header.set_weight(1);
    header.mutable_rows()->set_table(table);
    header.mutable_rows()->set_count(1);
    header.mutable_rows()->set_dim(1);
    header.mutable_rows()->set_step(1);
    RowStore::Moved moved;
    const Error error = store.Push(
        header,
        Bytes().Add<std::uint64_t>({id}).Add<std::uint32_t>({1}).Add<float>({gradient}).Reader(),
        &moved);
    EXPECT_TRUE(moved.empty());
    return error.kind();
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::uint64_t first = id_here(0);
  EXPECT_EQ(push(0, first, 1), Error::NONE);
  EXPECT_TRUE(lines.empty());
  EXPECT_EQ(push(0, first, nan), Error::NONE);
  EXPECT_EQ(push(0, id_here(first + 1), nan), Error::NONE);
  EXPECT_EQ(push(1, first, 1), Error::NONE);
  EXPECT_EQ(push(1, first, nan), Error::BAD_ROWS);
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_THAT(lines[0], HasSubstr("ps:3, table \"words\""));
  EXPECT_THAT(lines[0], HasSubstr("id " + std::to_string(first)));
  // Also when the tables are made anew.
  OrThrow(store.Reset());
  EXPECT_EQ(push(0, first, nan), Error::NONE);
  EXPECT_EQ(lines.size(), 1U);
  const std::vector<TableCounts> counts = store.counts();
  ASSERT_EQ(counts.size(), 2U);
  EXPECT_EQ(counts[0].name, "words");
  EXPECT_EQ(counts[0].skipped, 3U);
  EXPECT_EQ(counts[0].dropped, 0U);
  EXPECT_EQ(counts[0].refused, 0U);
  EXPECT_EQ(counts[1].name, "rare");
  EXPECT_EQ(counts[1].skipped, 0U);
  EXPECT_EQ(counts[1].dropped, 1U);
  EXPECT_EQ(counts[1].refused, 1U);
}

TEST_F(RowStoreTest, DumpsAreRestoredBucketByBucketAndDamageIsSeen) {
  Declare();
  EXPECT_EQ(store_.Push(PushHeader(), TwoRows().Reader(), &moved_).kind(), Error::NONE);
  FrameHeader from = Header(0, 0, 2);
  from.add_buckets();
  std::vector<BucketPiece> pieces;
  std::string bytes;
  EXPECT_EQ(store_.Dump(from, &pieces, &bytes, &moved_).kind(), Error::NONE);
  ASSERT_EQ(pieces.size(), 8);
  FrameHeader to = Header(0, 0, 2);
  EXPECT_THAT(store_.Restore(to, Bytes().Reader()).message(), HasSubstr("a sequence number"));
  for (const BucketPiece& piece : pieces) {
    *to.add_buckets() = piece;
  }
  const auto restore = [&](const std::string& payload) {
    to.set_sequence(to.sequence() + 1);
    return store_.Restore(to, Bytes().Add(payload).Reader()).kind();
  };
  EXPECT_EQ(store_.Push(PushHeader(), TwoRows().Reader(), &moved_).kind(), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-2, -4));
  to.set_sequence(1);
  EXPECT_EQ(store_.Restore(to, Bytes().Add(bytes).Reader(7)).kind(), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-1, -2));
  EXPECT_EQ(store_.Push(PushHeader(), TwoRows().Reader(), &moved_).kind(), Error::NONE);
  EXPECT_EQ(store_.Restore(to, Bytes().Add(bytes).Reader()).kind(), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-2, -4)) << "a repetition has no effect on what came since";

  std::string damaged = bytes;
  damaged.back() = static_cast<char>(damaged.back() ^ 1);
  EXPECT_EQ(restore(damaged), Error::DAMAGED);
  EXPECT_EQ(restore(bytes + "x"), Error::BAD_FRAME);
  to.mutable_buckets(7)->set_bucket(8);
  EXPECT_EQ(restore(bytes), Error::BAD_FRAME);
  to.mutable_buckets(7)->set_bucket(7);
  to.mutable_buckets(7)->set_offset(1);
  to.mutable_buckets(7)->set_total(1 + to.buckets(7).total());
  EXPECT_EQ(restore(bytes), Error::DAMAGED);
  from.mutable_buckets(0)->set_bucket(9);
  EXPECT_EQ(store_.Dump(from, &pieces, &bytes, &moved_).kind(), Error::BAD_FRAME);
}

// Frames with flipped, missing and additional bytes: refused or applied, never more than that.
TEST_F(RowStoreTest, WhatComesDamagedDoesNoHarm) {
  Declare();
  EXPECT_EQ(store_.Push(PushHeader(), TwoRows().Reader(), &moved_).kind(), Error::NONE);
  FrameHeader restore = Header(0, 0, 2);
  std::string dump;
  {
    FrameHeader from = Header(0, 0, 2);
    from.add_buckets();
    std::vector<BucketPiece> pieces;
    EXPECT_EQ(store_.Dump(from, &pieces, &dump, &moved_).kind(), Error::NONE);
    for (const BucketPiece& piece : pieces) {
      *restore.add_buckets() = piece;
    }
  }
  restore.set_sequence(1);
  const std::string push = TwoRows().bytes();
  const std::string pushes = push + push;
  FrameHeader both = PushHeader();
  *both.add_more_rows() = both.rows();
  const std::vector<std::string> frames = {EncodeFramePrefix(PushHeader(), push.size()) + push,
                                           EncodeFramePrefix(restore, dump.size()) + dump,
                                           EncodeFramePrefix(both, pushes.size()) + pushes};
  const Philox random(1, "damage");
  int decoded = 0;
  for (std::uint64_t i = 0; i < 20'000; ++i) {
    store_.Stay();
    store_.pushes().Reset();  // each frame is the first of its client
    std::string bytes = frames[i % frames.size()];
    const std::uint64_t flips = random.Below(4, 0, i);
    for (std::uint64_t f = 0; f < flips; ++f) {
      bytes[random.Below(bytes.size(), 2 * f + 1, i)] ^=
          static_cast<char>(1 << random.Below(8, 2 * f + 2, i));
    }
    if (random.Below(4, 100, i) == 0) {
      bytes.resize(random.Below(bytes.size() + 8, 101, i));
    }
    const Result<DecodedFrame> frame = DecodeFrame({std::as_bytes(std::span(bytes))});
    if (!frame.ok()) {
      continue;
    }
    ++decoded;
    RowStore::Reading reading;
    std::vector<BucketPiece> pieces;
    std::string out;
    if (store_.Plan(frame->header, frame->payload, &reading).kind() == Error::NONE) {
      std::vector<float> rows(reading.floats());
      (void)store_.Pull(reading, rows, &moved_);
    }
    (void)store_.Push(frame->header, frame->payload, &moved_);
    (void)store_.Restore(frame->header, frame->payload);
    (void)store_.Dump(frame->header, &pieces, &out, &moved_);
  }
  EXPECT_GT(decoded, 1000);
  store_.Stay();
  store_.pushes().Reset();
  EXPECT_EQ(store_.Restore(restore, Bytes().Add(dump).Reader()).kind(), Error::NONE);
  EXPECT_THAT(Pull(5), ElementsAre(-1, -2));
}

// Two servers of one table, and the requests by which bucket 0 of it moves, each with its number.
class RowStoreMovesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    TableSpec words;
    words.name = "words";
    words.dim = 1;
    words.buckets = 2;
    words.initializer = {RowInitializer::Kind::kZeros, 0};
    words.optimizer = Sgd({.learning_rate = 1})->config();
    words.time_to_live = 10;
    for (const auto& store : stores_) {
      OrThrow(store->Declare({words}, 2, kLayout));
    }
    while (BucketOf(id_, 2) != 0) {
      ++id_;
    }
  }
  static FrameHeader Header(std::uint64_t sequence = 0) {
    FrameHeader h;
    h.set_client(1);
    h.set_layout(kLayout);
    h.set_sequence(sequence);
    h.mutable_rows()->set_table(0);
    return h;
  }
  // A bucket and its server, as the server says; empty: it took the gradient.
  std::vector<std::uint32_t> Push(std::size_t server, std::uint64_t sequence,
                                  std::uint64_t at_step = 1) {
    FrameHeader h = Header(sequence);
    h.set_weight(1);
    h.mutable_rows()->set_count(1);
    h.mutable_rows()->set_dim(1);
    h.mutable_rows()->set_step(at_step);
    const Error error = stores_[server]->Push(
        h, Bytes().Add<std::uint64_t>({id_}).Add<std::uint32_t>({1}).Add<float>({1}).Reader(),
        &moved_);
    EXPECT_EQ(error.kind(), Error::NONE) << error.message();
    return moved_.empty() ? std::vector<std::uint32_t>()
                          : std::vector<std::uint32_t>{moved_[0].bucket, moved_[0].server};
  }
  Error::Kind Step(std::uint64_t sequence, std::size_t server, BucketMove::Step step,
                   std::uint32_t to = 0) {
    FrameHeader h = Header(sequence);
    h.add_buckets()->set_bucket(0);
    h.mutable_move()->set_step(step);
    h.mutable_move()->set_to(to);
    return stores_[server]->Move(h).kind();
  }
  std::string Dump(std::size_t server) {
    FrameHeader h = Header();
    h.add_buckets()->set_bucket(0);
    h.set_until(1);
    std::vector<BucketPiece> pieces;
    std::string bytes;
    EXPECT_EQ(stores_[server]->Dump(h, &pieces, &bytes, &moved_).kind(), Error::NONE);
    return bytes;
  }
  Error::Kind Install(std::uint64_t sequence, std::size_t server, const std::string& dump) {
    FrameHeader h = Header(sequence);
    h.set_adopt(true);
    BucketPiece& piece = *h.add_buckets();
    piece.set_bytes(dump.size());
    piece.set_total(dump.size());
    piece.set_crc32c(io::Crc32c(std::as_bytes(std::span(dump))));
    return stores_[server]->Restore(h, Bytes().Add(dump).Reader()).kind();
  }
  // The whole of a move, numbered from `first` at both servers; returns the next number.
  std::uint64_t Move(std::uint64_t first, std::size_t from, std::size_t to) {
    EXPECT_EQ(Step(first, from, BucketMove::GIVE, static_cast<std::uint32_t>(to)), Error::NONE);
    EXPECT_EQ(Install(first, to, Dump(from)), Error::NONE);
    EXPECT_EQ(Step(first + 1, from, BucketMove::DROP), Error::NONE);
    return first + 2;
  }

  std::array<std::unique_ptr<RowStore>, 2> stores_ = {std::make_unique<RowStore>(0),
                                                      std::make_unique<RowStore>(1)};
  std::uint64_t id_ = 0;  // of bucket 0
  RowStore::Moved moved_;
};

// A frame of which one block's bucket is elsewhere: no block has an effect, now or later.
TEST_F(RowStoreMovesTest, ABlockWhoseBucketIsElsewhereHoldsItsFrameBack) {
  std::uint64_t other = 0;
  while (BucketOf(other, 2) != 1) {
    ++other;
  }
  const std::string before = Dump(0);
  FrameHeader h = Header(1);
  h.set_weight(1);
  h.mutable_rows()->set_count(1);
  h.mutable_rows()->set_dim(1);
  h.mutable_rows()->set_step(1);
  *h.add_more_rows() = h.rows();
  const auto push = [&](std::uint64_t second) {
    Bytes bytes;
    for (const std::uint64_t id : {id_, second}) {
      bytes.Add<std::uint64_t>({id}).Add<std::uint32_t>({1}).Add<float>({1});
    }
    return stores_[0]->Push(h, bytes.Reader(), &moved_).kind();
  };
  EXPECT_EQ(push(other), Error::NONE);
  EXPECT_THAT(moved_, ElementsAre(RowStore::Elsewhere{1, 1, 1}));
  EXPECT_EQ(Dump(0), before);
  EXPECT_EQ(push(other), Error::NONE) << "repeated";
  EXPECT_THAT(moved_, ElementsAre(RowStore::Elsewhere{1, 1, 1}));
  EXPECT_EQ(push(id_), Error::NONE) << "as if all were back";
  EXPECT_THAT(moved_, ElementsAre(RowStore::Elsewhere{0, 0, 0}));
  EXPECT_EQ(Dump(0), before) << "it went under another number";
  h.set_sequence(2);
  EXPECT_EQ(push(id_), Error::NONE);
  EXPECT_THAT(moved_, IsEmpty());
  EXPECT_NE(Dump(0), before);

  RowStore::Reading reading;
  FrameHeader pull = h;
  const Bytes ids = Bytes().Add<std::uint64_t>({id_, other});
  ASSERT_EQ(stores_[0]->Plan(pull, ids.Reader(), &reading).kind(), Error::NONE);
  std::vector<float> rows(reading.floats());
  EXPECT_EQ(stores_[0]->Pull(reading, rows, &moved_).kind(), Error::NONE);
  EXPECT_THAT(moved_, ElementsAre(RowStore::Elsewhere{1, 1, 1}));
}

TEST_F(RowStoreMovesTest, ARowWhoseBucketIsElsewhereIsNotMissing) {
  TableSpec words;
  words.name = "words";
  words.dim = 1;
  words.buckets = 2;
  words.optimizer = Sgd({.learning_rate = 1})->config();
  TableSpec known = words;
  known.name = "known";
  known.missing = TableSpec::Missing::kError;
  RowStore store(0);
  OrThrow(store.Declare({words, known}, 2, kLayout));
  std::uint64_t other = 0;
  while (BucketOf(other, 2) != 1) {
    ++other;
  }
  FrameHeader h = Header(1);
  h.set_weight(1);
  h.mutable_rows()->set_count(1);
  h.mutable_rows()->set_dim(1);
  h.mutable_rows()->set_step(1);
  *h.add_more_rows() = h.rows();
  h.mutable_more_rows(0)->set_table(1);
  const auto push = [&](std::uint64_t of_known) {
    Bytes bytes;
    for (const std::uint64_t id : {id_, of_known}) {
      bytes.Add<std::uint64_t>({id}).Add<std::uint32_t>({1}).Add<float>({1});
    }
    return store.Push(h, bytes.Reader(), &moved_).kind();
  };
  EXPECT_EQ(push(other), Error::NONE);
  EXPECT_THAT(moved_, ElementsAre(RowStore::Elsewhere{1, 1, 1}));
  h.set_sequence(2);
  EXPECT_EQ(push(id_), Error::NO_ROW) << "this one is missing here";
  EXPECT_EQ(store.stats().rows, 0) << "of no table";
}

TEST_F(RowStoreMovesTest, EachStepMayBeRepeated) {
  EXPECT_THAT(Push(0, 1), IsEmpty());
  EXPECT_THAT(Push(1, 1), ElementsAre(0, 0)) << "the first server of bucket 0 is 0";
  EXPECT_EQ(Step(1, 1, BucketMove::GIVE, 0), Error::NOT_NOW) << "it is not there";
  EXPECT_EQ(Step(1, 0, BucketMove::GIVE, 1), Error::NONE);
  EXPECT_EQ(Step(1, 0, BucketMove::GIVE, 1), Error::NONE);
  EXPECT_THAT(Push(0, 2), ElementsAre(0, 1));
  EXPECT_THAT(Push(1, 2), ElementsAre(0, 0)) << "not before it is there";
  // It cannot be brought, and stays; a push that was sent elsewhere has no effect when it is back.
  EXPECT_EQ(Step(2, 0, BucketMove::KEEP), Error::NONE);
  EXPECT_EQ(Step(2, 0, BucketMove::KEEP), Error::NONE);
  const std::string before = Dump(0);
  EXPECT_THAT(Push(0, 2), ElementsAre(0, 0)) << "under another number";
  EXPECT_EQ(Dump(0), before);
  EXPECT_THAT(Push(0, 3), IsEmpty());

  EXPECT_EQ(Step(3, 0, BucketMove::GIVE, 1), Error::NONE);
  const std::string dump = Dump(0);
  EXPECT_NE(dump, before);
  EXPECT_EQ(Install(2, 1, dump), Error::NONE);
  EXPECT_THAT(Push(1, 3), IsEmpty());
  const std::string after = Dump(1);
  EXPECT_NE(after, dump);
  EXPECT_EQ(Install(2, 1, dump), Error::NONE);
  EXPECT_EQ(Dump(1), after) << "what came since stays";
  EXPECT_EQ(Step(4, 0, BucketMove::DROP), Error::NONE);
  EXPECT_EQ(Step(4, 0, BucketMove::DROP), Error::NONE);
  EXPECT_EQ(stores_[0]->stats().rows, 0U);
  EXPECT_THAT(Push(0, 4), ElementsAre(0, 1));
  EXPECT_EQ(Dump(0), "");
  EXPECT_THAT(moved_, ElementsAre(RowStore::Elsewhere{0, 0, 1}));
  // From the beginning: buckets are where they were at first.
  OrThrow(stores_[0]->Reset());
  EXPECT_THAT(Push(0, 1), IsEmpty());
}

// Requests that were repeated, and whose first copies arrive when the bucket has moved on.
TEST_F(RowStoreMovesTest, WhatComesLateHasNoEffect) {
  EXPECT_THAT(Push(0, 1), IsEmpty());
  const std::string old = Dump(0);
  std::uint64_t next = Move(1, 0, 1);
  EXPECT_THAT(Push(1, 1), IsEmpty());
  next = Move(next, 1, 0);
  EXPECT_THAT(Push(0, 2), IsEmpty());
  const std::string now = Dump(0);
  // Of the first move: at ps:1 the bucket would be there twice, at ps:0 nowhere.
  EXPECT_NE(Install(1, 1, old), Error::NONE);
  EXPECT_THAT(Push(1, 2), ElementsAre(0, 0));
  EXPECT_NE(Step(1, 0, BucketMove::GIVE, 1), Error::NONE);
  EXPECT_EQ(Dump(0), now);
  EXPECT_THAT(Push(0, 3), IsEmpty());
  // In the middle of a third: it is not dropped before it has arrived, and does not come back.
  EXPECT_EQ(Step(next, 0, BucketMove::GIVE, 1), Error::NONE);
  const std::string dump = Dump(0);
  EXPECT_NE(Step(2, 0, BucketMove::DROP), Error::NONE);
  EXPECT_EQ(Dump(0), dump);
  EXPECT_NE(Step(2, 0, BucketMove::KEEP), Error::NONE);
  EXPECT_THAT(Push(0, 4), ElementsAre(0, 1));
  // A bucket that could not be brought stays where it was, also when what brought it comes yet.
  std::string damaged = dump;
  damaged[0] = 1;
  EXPECT_EQ(Install(next, 1, damaged), Error::DAMAGED);
  EXPECT_EQ(Step(next + 1, 0, BucketMove::KEEP), Error::NONE);
  EXPECT_EQ(Install(next, 1, dump), Error::DAMAGED) << "as it was answered";
  EXPECT_THAT(Push(1, 5), ElementsAre(0, 0));
  EXPECT_THAT(Push(0, 5), IsEmpty());
}

// However long it takes to bring it: pieces of one dump.
TEST_F(RowStoreMovesTest, ABucketOnItsWayIsAsItWasWhenItLeft) {
  EXPECT_THAT(Push(0, 1), IsEmpty());
  EXPECT_EQ(Step(1, 0, BucketMove::GIVE, 1), Error::NONE);
  const std::string dump = Dump(0);
  FrameHeader late = Header(2);  // a push of nothing, by which old rows expire
  late.set_weight(1);
  late.mutable_rows()->set_dim(1);
  for (std::uint64_t step = 90; step <= 100; ++step) {
    late.set_sequence(late.sequence() + 1);
    late.mutable_rows()->set_step(step);
    EXPECT_EQ(stores_[0]->Push(late, Bytes().Reader(), &moved_).kind(), Error::NONE);
  }
  EXPECT_EQ(stores_[0]->stats().rows, 0U);
  EXPECT_EQ(Dump(0), dump);
  EXPECT_EQ(Install(1, 1, dump), Error::NONE);
  EXPECT_EQ(Step(2, 0, BucketMove::DROP), Error::NONE);
  EXPECT_EQ(Dump(1), dump);
}

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

// ---- Late gradients ----------------------------------------------------------------------------

class LateRowStore : public RowStoreTest {
 protected:
  void DeclareLate(TableSpec::Wire wire = TableSpec::Wire::kFloat32) {
    TableSpec words;
    words.name = "words";
    words.dim = 2;
    words.buckets = 8;
    words.optimizer = ServerSide(Sgd({.learning_rate = 1})->config(),
                                 {.delay_compensation = 0.5, .staleness_scaling = true});
    words.wire = wire;
    dtype_ = static_cast<std::uint32_t>(wire);
    OrThrow(store_.Declare({words}, 1, kLayout));
  }
  FrameHeader PushOf(std::uint64_t client) {
    FrameHeader header = PushHeader(1);
    header.set_client(client);
    header.mutable_rows()->set_dtype(dtype_);
    return header;
  }
  // The row of id 5, and its count of updates.
  std::vector<float> PullFive() {
    FrameHeader header = Header(0, 1, 2);
    header.mutable_rows()->set_dtype(dtype_);
    RowStore::Reading reading;
    const std::uint64_t id = 5;
    EXPECT_EQ(store_.Plan(header, Bytes().Add({id}).Reader(), &reading).kind(), Error::NONE);
    std::vector<float> reply(reading.floats());
    EXPECT_EQ(store_.Pull(reading, reply, &moved_).kind(), Error::NONE);
    return reply;
  }

 private:
  std::uint32_t dtype_ = 0;
};

TEST_F(LateRowStore, APullBringsCountsAndAPushBringsThemBack) {
  DeclareLate();
  const auto one = [](std::uint32_t updates, float pulled) {
    return Bytes()
        .Add<std::uint64_t>({5})
        .Add<std::uint32_t>({1})
        .Add<float>({2, 2})
        .Add<std::uint32_t>({updates})
        .Add<float>({pulled, pulled});
  };
  const auto updates = [&] {
    const std::vector<float> reply = PullFive();
    EXPECT_EQ(reply.size(), 3) << "a row, and a count";
    return std::bit_cast<std::uint32_t>(reply[2]);
  };
  EXPECT_EQ(updates(), kNoRow);
  EXPECT_EQ(store_.Push(PushOf(1), one(kNoRow, 0).Reader(), &moved_).kind(), Error::NONE);
  EXPECT_EQ(updates(), 1);
  EXPECT_FLOAT_EQ(PullFive()[0], -2);
  EXPECT_EQ(store_.Push(PushOf(2), one(1, -2).Reader(3), &moved_).kind(), Error::NONE);
  EXPECT_FLOAT_EQ(PullFive()[0], -4);
  // Computed from the same, two updates ago: (2 + 0.5 * 4 * (-4 - 0)) / 2 = -3.
  const FrameHeader late = PushOf(3);
  for (int i = 0; i < 3; ++i) {  // once, however often it comes
    EXPECT_EQ(store_.Push(late, one(0, 0).Reader(), &moved_).kind(), Error::NONE);
    EXPECT_FLOAT_EQ(PullFive()[0], -1);
    EXPECT_EQ(updates(), 3);
  }
}

TEST_F(LateRowStore, RowsThatWerePulledTravelInTheTablesFormat) {
  DeclareLate(TableSpec::Wire::kBFloat16);
  const auto one = [](std::uint32_t updates, std::uint16_t pulled) {
    return Bytes()
        .Add<std::uint64_t>({5})
        .Add<std::uint32_t>({1})
        .Add<std::uint16_t>({0x4000, 0x4000})  // 2
        .Add<std::uint32_t>({updates})
        .Add<std::uint16_t>({pulled, pulled});
  };
  EXPECT_EQ(store_.Push(PushOf(1), one(kNoRow, 0).Reader(), &moved_).kind(), Error::NONE);
  // 2 + 0.5 * 4 * (-2 - -1) = 0, of a row that was -1 (0xBF80) then.
  EXPECT_EQ(store_.Push(PushOf(2), one(0, 0xBF80).Reader(), &moved_).kind(), Error::NONE);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(PullFive()[0]), 0xC000C000U) << "-2 and -2";
}

TEST_F(LateRowStore, AFrameOfAnotherLengthOrOfARoundIsRefused) {
  DeclareLate();
  const Bytes without = Bytes().Add<std::uint64_t>({5}).Add<std::uint32_t>({1}).Add<float>({2, 2});
  Error error = store_.Push(PushOf(1), without.Reader(), &moved_);
  EXPECT_EQ(error.kind(), Error::BAD_FRAME);
  EXPECT_THAT(error.message(), HasSubstr("words\": 20 bytes for 1 ids, which take 32"));
  const Bytes whole = Bytes(without).Add<std::uint32_t>({0}).Add<float>({0, 0});
  FrameHeader part = PushOf(1);
  part.mutable_round()->set_round(1);
  part.mutable_round()->set_parts(1);
  error = store_.Push(part, whole.Reader(), &moved_);
  EXPECT_EQ(error.kind(), Error::BAD_FRAME);
  EXPECT_THAT(error.message(), HasSubstr("words\": a part of a round"));
  EXPECT_EQ(store_.stats().rows, 0);
}

TEST_F(LateRowStore, TwoRowsOfAnIdMustFitInAFrame) {
  TableSpec words;
  words.name = "words";
  words.dim = kMaxRowFloats;
  words.buckets = 1;
  words.optimizer = ServerSide(Sgd()->config(), {.delay_compensation = 1});
  EXPECT_THAT(store_.Declare({words}, 1, kLayout).message(),
              HasSubstr("[at most " + std::to_string((kMaxRowFloats - 1) / 2) + "]"));
}

TEST_F(RowStoreTest, OtherTablesTravelAsTheyDid) {
  Declare();
  EXPECT_EQ(Pull(5).size(), 2);
}

}  // namespace
}  // namespace cohort::ps
