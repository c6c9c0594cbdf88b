// One server's sparse tables: what frames do, once each, and everything that a client may get
// wrong.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <thread>

#include <cohort/core/random.h>
#include <cohort/io/crc32c.h>
#include <cohort/optim/optimizers.h>

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
TEST_F(RowRoundsTest, TheCoordinatorSaysWhichPartsARoundHas) {
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
  EXPECT_THAT(reading.ids, ElementsAre(9, 0xFFFFFFFF));
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
  const std::vector<std::string> frames = {EncodeFramePrefix(PushHeader(), push.size()) + push,
                                           EncodeFramePrefix(restore, dump.size()) + dump};
  const Philox random(1, "damage");
  int decoded = 0;
  for (std::uint64_t i = 0; i < 20'000; ++i) {
    store_.Stay();
    store_.pushes().Reset();  // each frame is the first of its client
    std::string bytes = frames[i % 2];
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
  // What the server says of where the bucket is; empty: it took the gradient.
  RowStore::Moved Push(std::size_t server, std::uint64_t sequence, std::uint64_t at_step = 1) {
    FrameHeader h = Header(sequence);
    h.set_weight(1);
    h.mutable_rows()->set_count(1);
    h.mutable_rows()->set_dim(1);
    h.mutable_rows()->set_step(at_step);
    const Error error = stores_[server]->Push(
        h, Bytes().Add<std::uint64_t>({id_}).Add<std::uint32_t>({1}).Add<float>({1}).Reader(),
        &moved_);
    EXPECT_EQ(error.kind(), Error::NONE) << error.message();
    return moved_;
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
  EXPECT_THAT(moved_, ElementsAre(0, 1));
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

// A worker that was given up: its last push is waited for, and no other has an effect.
TEST(PushLedgerTest, NothingOfARetiredClientIsNew) {
  PushLedger ledger;
  ASSERT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kNew);
  std::atomic<bool> finished = false;
  std::jthread other([&] {
    ledger.Retire(1);
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

TEST(PushLedgerTest, WhoWaitsForAPushOfARetiredClientIsFenced) {
  PushLedger ledger;
  ASSERT_EQ(ledger.Claim(1, 1), PushLedger::Claimed::kNew);
  std::jthread repeats([&] { EXPECT_NE(ledger.Claim(1, 1), PushLedger::Claimed::kNew); });
  std::jthread retires([&] { ledger.Retire(1); });
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
