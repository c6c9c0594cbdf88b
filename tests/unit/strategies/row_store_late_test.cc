// Tables that make up for late gradients: what travels beside rows and gradients.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <string>
#include <vector>

#include <cohort/optim/optimizers.h>
#include <cohort/optim/server_side.h>

#include "parameter_server/rows/row_store.h"
#include "row_store_test.h"

namespace cohort::ps {
namespace {

using ::testing::HasSubstr;

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

}  // namespace
}  // namespace cohort::ps
