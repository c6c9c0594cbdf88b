// What tests of one server's sparse tables begin with.

#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cohort/optim/optimizers.h>

#include "parameter_server/frames/payload.h"
#include "parameter_server/rows/row_store.h"

namespace cohort::ps {

inline constexpr std::uint64_t kLayout = 17;

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
    EXPECT_THAT(error.message(), ::testing::HasSubstr(naming));
    EXPECT_THAT(Pull(5), ::testing::ElementsAre(0, 0)) << "nothing had an effect";
  }

  RowStore store_{0};
  RowStore::Moved moved_;
  std::uint64_t sequence_ = 0;
};

}  // namespace cohort::ps
