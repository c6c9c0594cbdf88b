// Buckets that move from one server to another: each gradient has its effect once.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <cohort/io/crc32c.h>
#include <cohort/optim/optimizers.h>

#include "parameter_server/rows/row_store.h"
#include "row_store_test.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

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

}  // namespace
}  // namespace cohort::ps
