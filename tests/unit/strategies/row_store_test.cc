// One server's sparse tables: what frames do, once each, and everything that a client may get
// wrong.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>

#include "parameter_server/rows/row_store.h"
#include "row_store_test.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

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

TEST_F(RowStoreTest, OtherTablesTravelAsTheyDid) {
  Declare();
  EXPECT_EQ(Pull(5).size(), 2);
}

}  // namespace
}  // namespace cohort::ps
