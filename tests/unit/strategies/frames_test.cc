// What frames carry, however their bytes arrive; and which of a client's were there already.

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <numeric>
#include <set>

#include <cohort/core/random.h>

#include "parameter_server/frames/frame.h"
#include "parameter_server/frames/payload.h"
#include "parameter_server/frames/sequence_window.h"

namespace cohort::ps {
namespace {

std::string BytesOf(const std::vector<float>& values) {
  std::string bytes(values.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// `bytes` cut into pieces of the given sizes; the rest is the last piece.
std::vector<std::string> Cut(const std::string& bytes, const std::vector<std::size_t>& sizes) {
  std::vector<std::string> pieces;
  std::size_t at = 0;
  for (const std::size_t size : sizes) {
    pieces.push_back(bytes.substr(at, size));
    at += pieces.back().size();
  }
  pieces.push_back(bytes.substr(at));
  return pieces;
}

Segments SegmentsOf(const std::vector<std::string>& pieces) {
  Segments segments;
  for (const std::string& piece : pieces) {
    segments.push_back(std::as_bytes(std::span(piece.data(), piece.size())));
  }
  return segments;
}

TEST(Payload, FloatsStraddlePiecesOfAnySize) {
  std::vector<float> values(10'000);
  std::iota(values.begin(), values.end(), 1.0F);
  for (const std::size_t piece : {1UL, 2UL, 3UL, 5UL, 8UL, 1021UL, 40'000UL}) {
    const std::vector<std::string> pieces =
        Cut(BytesOf(values), std::vector<std::size_t>(40'000 / piece, piece));
    PayloadReader reader(SegmentsOf(pieces));
    PayloadReader::Staging staging;
    std::vector<float> got;
    while (got.size() < values.size()) {
      const std::span<const float> run = reader.NextFloats(values.size() - got.size(), staging);
      ASSERT_FALSE(run.empty());
      got.insert(got.end(), run.begin(), run.end());
    }
    EXPECT_EQ(got, values);
    EXPECT_EQ(reader.remaining(), 0U);
    EXPECT_TRUE(reader.NextFloats(1, staging).empty());
  }
}

TEST(Payload, ReadingTooMuchConsumesNothing) {
  const std::vector<std::string> pieces = {"abc", "", "de"};
  PayloadReader reader(SegmentsOf(pieces));
  char out[6] = {};
  EXPECT_FALSE(reader.Read(out, 6));
  EXPECT_FALSE(reader.Skip(6));
  EXPECT_TRUE(reader.Read(out, 4));
  EXPECT_STREQ(out, "abcd");
  EXPECT_TRUE(reader.Skip(1));
}

TEST(Payload, NaNAndInfinityAreFound) {
  std::vector<float> values(5000, 1.0F);
  values[1] = std::numeric_limits<float>::max();
  values[2] = std::numeric_limits<float>::denorm_min();
  const auto finite = [&] {
    const std::vector<std::string> pieces = Cut(BytesOf(values), {7, 4096});
    PayloadReader reader(SegmentsOf(pieces));
    return AllFinite(reader, values.size());
  };
  EXPECT_TRUE(finite());
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    values[4321] = bad;
    EXPECT_FALSE(finite());
  }
}

FrameHeader SomeHeader() {
  FrameHeader header;
  header.set_client(7);
  header.set_sequence(3);
  for (std::uint32_t c = 0; c < 300; ++c) {
    header.add_chunks(c);
    header.add_versions(c * 1000);
  }
  return header;
}

TEST(Frames, WhatIsWrittenByHandIsTheMessage) {
  const std::string payload = "0123456789";
  const std::string bytes = EncodeFramePrefix(SomeHeader(), payload.size()) + payload;
  Frame parsed;
  ASSERT_TRUE(parsed.ParseFromString(bytes));
  EXPECT_EQ(parsed.payload(), payload);
  EXPECT_EQ(parsed.header().SerializeAsString(), SomeHeader().SerializeAsString());
  // And the other way round, in whatever pieces it arrives.
  for (const std::size_t piece : {1UL, 3UL, 1000UL}) {
    const std::vector<std::string> pieces =
        Cut(parsed.SerializeAsString(), std::vector<std::size_t>(bytes.size() / piece, piece));
    const Result<DecodedFrame> frame = DecodeFrame(SegmentsOf(pieces));
    ASSERT_TRUE(frame.ok()) << frame.status().ToString();
    EXPECT_EQ(frame->header.SerializeAsString(), SomeHeader().SerializeAsString());
    EXPECT_EQ(frame->payload.remaining(), payload.size());
  }
}

TEST(Frames, CutAndFlippedFramesAreErrorsOrFrames) {
  const std::string good = EncodeFramePrefix(SomeHeader(), 8) + "abcdefgh";
  EXPECT_FALSE(DecodeFrame({}).ok());
  for (std::size_t length = 0; length < good.size(); ++length) {
    const std::string cut = good.substr(0, length);
    const Result<DecodedFrame> frame = DecodeFrame(SegmentsOf({cut}));
    // Only where the payload is missing altogether is the rest a frame of its own.
    EXPECT_EQ(frame.ok(), length == good.size() - 8 - 2) << length;
  }
  const Philox random(1);
  for (std::uint64_t i = 0; i < 20'000; ++i) {
    std::string bad = good;
    for (std::uint64_t flip = 0; flip <= i % 3; ++flip) {
      const Philox::Block draw = random.At(i, flip);
      bad[draw[0] % bad.size()] = static_cast<char>(draw[1]);
    }
    const Result<DecodedFrame> frame = DecodeFrame(SegmentsOf({bad}));
    if (frame.ok()) {
      EXPECT_LE(frame->payload.remaining(), bad.size());
    }
  }
}

TEST(SequenceWindow, EachNumberCountsOnceInAnyOrder) {
  SequenceWindow window;
  EXPECT_FALSE(window.Claim(0));
  for (const std::uint64_t s : {5UL, 1UL, 3UL, 2UL, 4UL}) {
    EXPECT_TRUE(window.Claim(s));
    EXPECT_FALSE(window.Claim(s));
  }
  EXPECT_TRUE(window.Claim(1000));
  EXPECT_TRUE(window.Claim(999));
  EXPECT_TRUE(window.Claim(6));
  EXPECT_FALSE(window.Claim(6));
  EXPECT_TRUE(window.Claim(1030));  // 6 falls out of the window, and stays seen
  EXPECT_FALSE(window.Claim(6));
  EXPECT_FALSE(window.Claim(5));
  EXPECT_TRUE(window.Claim(7));
  EXPECT_TRUE(window.Claim(1'000'000));
  EXPECT_TRUE(window.Claim(999'999));
  EXPECT_FALSE(window.Claim(1030));
}

TEST(SequenceWindow, AgreesWithASetOverManyRandomNumbers) {
  SequenceWindow window;
  std::set<std::uint64_t> seen;
  const Philox random(2);
  std::uint64_t base = 0;
  for (std::uint64_t i = 0; i < 50'000; ++i) {
    base += random.Below(3, i);
    const std::uint64_t s = base + 1 + random.Below(600, i, 1);
    EXPECT_EQ(window.Claim(s), seen.insert(s).second);
  }
}

}  // namespace
}  // namespace cohort::ps
