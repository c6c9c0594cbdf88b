// The parts of a parameter server that know no network: layout, frames, window, splits, rounds.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include <cohort/core/random.h>
#include <cohort/strategies/parameter_server.h>

#include "parameter_server/chief/coordinator.h"
#include "parameter_server/chief/round_table.h"
#include "parameter_server/chief/split_queue.h"
#include "parameter_server/frames/frame.h"
#include "parameter_server/frames/payload.h"
#include "parameter_server/frames/sequence_window.h"
#include "parameter_server/model/layout.h"
#include "parameter_server/variables/retired_clients.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TaskId Worker(int index) { return {TaskType::kWorker, index}; }

ModelSpec Model(std::vector<ParameterSpec> parameters, int servers) {
  std::int64_t offset = 0;
  for (ParameterSpec& parameter : parameters) {
    parameter.offset = offset;
    offset += (parameter.shape.elements() + 15) / 16 * 16;
  }
  return {.parameters = std::move(parameters),
          .optimizer = R"({"name":"sgd","learning_rate":1})",
          .servers = servers};
}

// ---- Layout -------------------------------------------------------------------------------------

TEST(Layout, ChunksCoverEveryElementOnce) {
  const ModelSpec spec = Model({{"a", {1000, 7}}, {"b", {3}}, {"none", {0, 5}}, {"c", {}}}, 3);
  std::vector<std::vector<int>> hits(4);
  for (std::size_t p = 0; p < 4; ++p) {
    hits[p].resize(static_cast<std::size_t>(spec.parameters[p].shape.elements()));
  }
  for (const Chunk& chunk : MakeChunks(spec, 512)) {
    EXPECT_LE(chunk.elements, 512);
    EXPECT_GT(chunk.elements, 0);
    EXPECT_LT(chunk.server, 3);
    const auto p = static_cast<std::size_t>(chunk.parameter);
    EXPECT_EQ(chunk.offset, spec.parameters[p].offset + chunk.begin);
    for (std::int64_t i = 0; i < chunk.elements; ++i) {
      ++hits[p].at(static_cast<std::size_t>(chunk.begin + i));
    }
  }
  for (const std::vector<int>& parameter : hits) {
    for (const int count : parameter) {
      ASSERT_EQ(count, 1);
    }
  }
}

TEST(Layout, ServersGetAboutTheSame) {
  const ModelSpec spec =
      Model({{"big", {1 << 20}}, {"x", {5000}}, {"y", {700, 700}}, {"z", {10}}}, 4);
  std::vector<std::int64_t> load(4, 0);
  for (const Chunk& chunk : MakeChunks(spec)) {
    load[static_cast<std::size_t>(chunk.server)] += chunk.elements;
  }
  const auto [least, most] = std::minmax_element(load.begin(), load.end());
  EXPECT_LE(*most - *least, kMaxChunkElements);
}

TEST(Partitioner, NumbersOfShards) {
  const auto shards = [](const std::string& text, const Shape& shape, int servers = 4) {
    return OrThrow(Partitioner::Parse(text)).ShardsOf(shape, servers);
  };
  EXPECT_EQ(shards("fixed:5", {13, 2}), 5);
  EXPECT_EQ(shards("fixed:5", {3, 100}), 3) << "no more than rows";
  EXPECT_EQ(shards("min:100:9", {50, 2}), 4) << "400 bytes";
  EXPECT_EQ(shards("min:99:9", {50, 2}), 5) << "rounded up";
  EXPECT_EQ(shards("min:1", {50, 2}), 4) << "as many as servers";
  EXPECT_EQ(shards("min:1:7", {50, 2}), 7);
  EXPECT_EQ(shards("min:256k:8", {1 << 20}), 8);
  EXPECT_EQ(shards("min:256k:80", {1 << 20}), 16);
  EXPECT_EQ(shards("min:1k", {2, 3}), 1);
  EXPECT_EQ(shards("max:100", {50, 2}), 5) << "12 rows fit";
  EXPECT_EQ(shards("max:100:3", {50, 2}), 3);
  EXPECT_EQ(shards("max:4", {50, 2}), 50) << "a row does not fit";
  EXPECT_EQ(shards("max:1m", {1 << 20, 2}), 8);
  EXPECT_EQ(shards("pieces", {1 << 20, 2}), 1);
  for (const char* text : {"fixed:5", "min:1", "max:4"}) {
    EXPECT_EQ(shards(text, {}), 1) << "a scalar is not cut";
    EXPECT_EQ(shards(text, {0, 5}), 1);
    EXPECT_EQ(OrThrow(Partitioner::Parse(text)).ToString(), text);
  }
  EXPECT_EQ(OrThrow(Partitioner::Parse("max:1k:3")).ToString(), "max:1024:3");
  for (const char* text :
       {"", "fixed", "fixed:0", "fixed:-1", "fixed:4k", "min", "min:", "min:x", "min:5q", "max:1:0",
        "max:1:2:3", "pieces:4", "even", "max:99999999999999999999", "max:9999999999g"}) {
    EXPECT_EQ(Partitioner::Parse(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
}

// Whatever the partitioner: every element once, shards as "div" deals rows, each on one server.
// Whoever fills in the fields may leave one out.
TEST(Partitioner, OneThatIsNoneIsRefused) {
  using Kind = Partitioner::Kind;
  for (const Partitioner& good :
       {Partitioner{}, Partitioner{.kind = Kind::kFixedShards, .shards = 4},
        Partitioner{.kind = Kind::kMinSize, .bytes = 8},
        Partitioner{.kind = Kind::kMaxSize, .shards = 2, .bytes = 8}}) {
    EXPECT_EQ(good.Check(), OkStatus()) << good.ToString();
  }
  for (const Partitioner& bad :
       {Partitioner{.kind = Kind::kFixedShards},
        Partitioner{.kind = Kind::kFixedShards, .shards = -1},
        Partitioner{.kind = Kind::kFixedShards, .shards = 4, .bytes = 8},
        Partitioner{.kind = Kind::kMinSize, .shards = 4},
        Partitioner{.kind = Kind::kMaxSize, .bytes = -8},
        Partitioner{.kind = Kind::kMaxSize, .shards = -2, .bytes = 8}, Partitioner{.shards = 2}}) {
    EXPECT_EQ(bad.Check().code(), StatusCode::kInvalidArgument) << bad.ToString();
    EXPECT_EQ(ParameterServerStrategy::Make({}, {.partitioner = bad}).status(), bad.Check());
  }
}

TEST(Partitioner, ShardsAreOfWholeRowsAndOfOneServer) {
  for (const char* text : {"fixed:5", "min:2k:6", "max:3k", "max:1", "min:100"}) {
    for (const int servers : {1, 3}) {
      ModelSpec spec = Model({{"a", {13, 70}}, {"b", {3}}, {"none", {0, 5}}, {"c", {}}}, servers);
      spec.partitioner = OrThrow(Partitioner::Parse(text));
      std::vector<std::int64_t> next(4, 0);
      std::int64_t shard_end = 0;  // of a, in rows
      std::int64_t shard = 0;
      int server = 0;
      for (const Chunk& chunk : MakeChunks(spec, 64)) {
        EXPECT_LE(chunk.elements, 64);
        const auto p = static_cast<std::size_t>(chunk.parameter);
        EXPECT_EQ(chunk.begin, next[p]);
        next[p] = chunk.begin + chunk.elements;
        if (chunk.parameter != 0) {
          continue;
        }
        const std::int64_t count = spec.partitioner.ShardsOf({13, 70}, servers);
        if (chunk.begin == shard_end * 70) {
          shard_end += 13 / count + (shard++ < 13 % count ? 1 : 0);
          server = chunk.server;
        }
        EXPECT_EQ(chunk.server, server) << text;
        EXPECT_LE(next[p], shard_end * 70) << text << ": over the end of its shard";
      }
      EXPECT_THAT(next, ElementsAre(13 * 70, 3, 0, 1)) << text;
    }
  }
  ModelSpec thirteen = Model({{"a", {13}}}, 5);
  thirteen.partitioner = OrThrow(Partitioner::Parse("fixed:5"));
  std::vector<std::int64_t> rows;
  std::set<int> servers;
  for (const Chunk& chunk : MakeChunks(thirteen)) {
    rows.push_back(chunk.elements);
    servers.insert(chunk.server);
  }
  EXPECT_THAT(rows, ElementsAre(3, 3, 3, 2, 2));
  EXPECT_EQ(servers.size(), 5U) << "placed by size";
}

TEST(Layout, FramesKeepTheLimitAndHoldEveryChunk) {
  const ModelSpec spec = Model({{"a", {3'000'000}}, {"b", {100}}, {"c", {900'000}}}, 2);
  const std::vector<Chunk> chunks = MakeChunks(spec);
  std::set<int> seen;
  for (int s = 0; s < 2; ++s) {
    for (const std::vector<int>& frame : PackFrames(chunks, s, 4 << 20)) {
      std::int64_t bytes = 0;
      for (const int c : frame) {
        EXPECT_EQ(chunks[static_cast<std::size_t>(c)].server, s);
        EXPECT_TRUE(seen.insert(c).second);
        bytes += chunks[static_cast<std::size_t>(c)].elements * 4;
      }
      EXPECT_LE(bytes, 4 << 20);
    }
  }
  EXPECT_EQ(seen.size(), chunks.size());
}

TEST(Layout, WhereStepsAreCountedEveryServerHasAChunk) {
  ModelSpec spec = Model({{"a", {2}}, {"none", {0, 5}}}, 3);
  EXPECT_EQ(MakeChunks(spec).size(), 1U);
  const std::uint64_t before = spec.Fingerprint();
  spec.counts_steps = true;
  EXPECT_NE(spec.Fingerprint(), before);
  const std::vector<Chunk> chunks = MakeChunks(spec);
  ASSERT_EQ(chunks.size(), 3U);
  EXPECT_EQ(chunks[0].elements, 2);
  for (int s = 0; s < 3; ++s) {
    const Chunk& chunk = chunks[static_cast<std::size_t>(s)];
    EXPECT_EQ(chunk.server, s);
    EXPECT_EQ(chunk.parameter, s == 0 ? 0 : kNoParameter);
    EXPECT_EQ(PackFrames(chunks, s, 4 << 20).size(), 1U);
    if (s > 0) {
      EXPECT_EQ(chunk.elements, 0);
      EXPECT_FALSE(chunk.trainable) << "no rule is applied to it, and it is in no norm";
    }
  }
  spec.parameters.clear();
  EXPECT_EQ(MakeChunks(spec).size(), 3U);
}

TEST(Layout, TheFirstDifferenceIsNamed) {
  const ModelSpec spec = Model({{"a", {2, 3}}, {"b", {4}}}, 1);
  ModelSpec other = spec;
  EXPECT_TRUE(spec.Compare(other, "worker:1").ok());
  EXPECT_EQ(spec.Fingerprint(), other.Fingerprint());
  other.parameters[1].shape = Shape{5};
  EXPECT_NE(spec.Fingerprint(), other.Fingerprint());
  EXPECT_THAT(spec.Compare(other, "worker:1").message(),
              HasSubstr("parameter 1 differs: declared b [4], worker:1 has b [5]"));
  other.parameters.pop_back();
  EXPECT_THAT(spec.Compare(other, "worker:1").message(), HasSubstr("does not have"));
  other = spec;
  other.parameters[0].trainable = false;
  EXPECT_THAT(spec.Compare(other, "w").message(), HasSubstr("not trainable"));
  other = spec;
  other.partitioner = OrThrow(Partitioner::Parse("fixed:2"));
  EXPECT_NE(spec.Fingerprint(), other.Fingerprint());
  EXPECT_THAT(spec.Compare(other, "w").message(),
              HasSubstr("partitioner differs: declared pieces, w has fixed:2"));
  other = spec;
  other.counts_steps = true;
  EXPECT_THAT(
      spec.Compare(other, "w").message(),
      HasSubstr("declared servers that hold tables alone, w has servers with the variables"));
  other = spec;
  other.optimizer = "{}";
  EXPECT_THAT(spec.Compare(other, "w").message(), HasSubstr("optimizer differs"));
  other = spec;
  other.consistency.mode = Consistency::Mode::kSynchronous;
  EXPECT_EQ(spec.Compare(other, "w").code(), StatusCode::kFailedPrecondition);
}

// ---- Payloads and frames ------------------------------------------------------------------------

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

// ---- Exactly once -------------------------------------------------------------------------------

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

// ---- Splits -------------------------------------------------------------------------------------

TEST(SplitQueue, EveryExampleIsHandedOutAndFinishedOnce) {
  SplitQueue queue(0, 100, 32);
  const auto a = queue.Next(Worker(0));
  const auto b = queue.Next(Worker(1));
  EXPECT_EQ(*a, (Split{1, 0, 32}));
  EXPECT_EQ(*b, (Split{2, 32, 64}));
  EXPECT_EQ(queue.Next(Worker(0)), a) << "asking again gives the same";
  queue.Finish(Worker(0), a->id);
  queue.Finish(Worker(0), a->id);
  EXPECT_EQ(queue.seen(), 32);
  EXPECT_EQ(*queue.Next(Worker(0)), (Split{3, 64, 96}));
  queue.Finish(Worker(0), 3);
  EXPECT_EQ(*queue.Next(Worker(0)), (Split{4, 96, 100}));
  queue.Finish(Worker(0), 4);
  EXPECT_EQ(queue.Next(Worker(0)), std::nullopt);
  EXPECT_FALSE(queue.over()) << "worker:1 still holds one";
  queue.Finish(Worker(1), 2);
  EXPECT_TRUE(queue.over());
  EXPECT_EQ(queue.seen(), 100);
  EXPECT_EQ(queue.splits(), 4);
}

TEST(SplitQueue, SplitsOfAnySizeHaveNumbersOfTheirOwnAlsoAfterAJournal) {
  SplitQueue queue(0, 100, 32);
  EXPECT_EQ(*queue.Next(Worker(0), 10), (Split{1, 0, 10}));
  EXPECT_EQ(*queue.Next(Worker(1), 99), (Split{2, 10, 42}));
  EXPECT_EQ(queue.held(), 42);
  EXPECT_EQ(queue.left(), 58);
  EXPECT_EQ(queue.Next(Worker(2), 0), std::nullopt) << "nothing new";
  SplitQueue again(queue.Keep());
  EXPECT_EQ(*again.Next(Worker(2), 0), (Split{1, 0, 10})) << "what was held is no news";
  EXPECT_EQ(*again.Next(Worker(1), 0), (Split{2, 10, 42}));
  EXPECT_EQ(*again.Next(Worker(0), 5), (Split{3, 42, 47}));
  SplitQueue::Kept old = queue.Keep();
  old.splits = 0;  // as journals were that did not have it
  SplitQueue older(old);
  older.Next(Worker(1));
  older.Next(Worker(2));
  EXPECT_EQ(older.Next(Worker(0), 5)->id, 3);
}

TEST(SplitQueue, WhatALostWorkerHeldIsHandedOutAgain) {
  SplitQueue queue(10, 50, 20);
  EXPECT_EQ(queue.Next(Worker(0))->begin, 10);
  EXPECT_EQ(queue.Next(Worker(1))->begin, 30);
  queue.Lost(Worker(0));
  queue.Finish(Worker(0), 1);  // too late
  EXPECT_EQ(queue.seen(), 0);
  queue.Finish(Worker(1), 2);
  EXPECT_EQ(*queue.Next(Worker(1)), (Split{1, 10, 30}));
  EXPECT_EQ(queue.reissued(), 1);
  queue.Finish(Worker(1), 1);
  EXPECT_TRUE(queue.over());
}

TEST(SplitQueue, AnEmptyEpochIsOver) {
  EXPECT_TRUE(SplitQueue(0, 0, 5).over());
  EXPECT_TRUE(SplitQueue(7, 3, 5).over());
}

TEST(SplitQueue, TenSplitsPerWorkerWherePossible) {
  EXPECT_EQ(BatchesPerSplit(5, 2), 1);
  EXPECT_EQ(BatchesPerSplit(125, 2), 6);
  EXPECT_EQ(BatchesPerSplit(1'000'000, 2), 64);
}

// ---- Rounds -------------------------------------------------------------------------------------

constexpr EpochKey kEpoch{.dataset = 0, .epoch = 0};
using Reply = RoundTable::Reply;

TEST(RoundTable, ABatchIsCutAmongAllAndSumsAddUp) {
  RoundTable rounds(41, {Worker(0), Worker(1)});
  rounds.OpenEpoch(kEpoch, 0, 2);
  RoundPart a;
  RoundPart b;
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &a), Reply::kWait);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &b), Reply::kGo);
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &a), Reply::kGo);
  EXPECT_EQ(a, (RoundPart{.round = 42, .part = 0, .parts = 2}));
  EXPECT_EQ(b, (RoundPart{.round = 42, .part = 1, .parts = 2}));
  RoundTotal total;
  EXPECT_EQ(rounds.Finish(Worker(0), 42, 0, {1, 3, {5}}, &total), Reply::kWait);
  EXPECT_EQ(rounds.Finish(Worker(1), 42, 0, {2, 4, {6}}, &total), Reply::kGo);
  EXPECT_EQ(total.loss_sum, 3);
  EXPECT_EQ(total.commit, (RoundCommit{.round = 42, .attempt = 0, .winners = {0, 1}}));
  EXPECT_EQ(rounds.Finish(Worker(0), 42, 0, {1, 3, {5}}, &total), Reply::kGo);
  EXPECT_EQ(total.weight, 7);
  EXPECT_THAT(total.metric_sums, ElementsAre(11));
  EXPECT_EQ(rounds.applied(kEpoch), 1);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &b), Reply::kWait);
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &a), Reply::kGo);
  EXPECT_EQ(a.round, 43U);
  EXPECT_EQ(a.batch, 1);
}

TEST(RoundTable, WhenAMemberIsLostTheBatchIsCutAnew) {
  RoundTable rounds(0, {Worker(0), Worker(1), Worker(2)});
  rounds.OpenEpoch(kEpoch, 0, 1);
  RoundPart part;
  RoundTotal total;
  rounds.Join(Worker(0), kEpoch, &part);
  rounds.Join(Worker(1), kEpoch, &part);
  rounds.Join(Worker(2), kEpoch, &part);
  EXPECT_EQ(rounds.Finish(Worker(0), 1, 0, {1, 1, {}}, &total), Reply::kWait);
  rounds.Leave(Worker(1));
  EXPECT_EQ(rounds.Finish(Worker(0), 1, 0, {1, 1, {}}, &total), Reply::kOver) << "superseded";
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(part, (RoundPart{.round = 1, .attempt = 1, .part = 0, .parts = 2}));
  EXPECT_EQ(rounds.Finish(Worker(2), 1, 0, {1, 1, {}}, &total), Reply::kOver);
  EXPECT_EQ(rounds.Join(Worker(2), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(part.part, 1);
  EXPECT_EQ(rounds.Finish(Worker(0), 1, 1, {2, 2, {}}, &total), Reply::kWait);
  EXPECT_EQ(rounds.Finish(Worker(2), 1, 1, {2, 2, {}}, &total), Reply::kGo);
  EXPECT_EQ(total.weight, 4);
  EXPECT_EQ(total.commit, (RoundCommit{.round = 1, .attempt = 1, .winners = {0, 1}}));
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &part), Reply::kOver);
}

TEST(RoundTable, AMemberThatLeavesAfterItsPartCounts) {
  RoundTable rounds(0, {Worker(0), Worker(1)});
  rounds.OpenEpoch(kEpoch, 0, 1);
  RoundPart part;
  RoundTotal total;
  rounds.Join(Worker(0), kEpoch, &part);
  rounds.Join(Worker(1), kEpoch, &part);
  rounds.Finish(Worker(1), 1, 0, {4, 2, {}}, &total);
  rounds.Leave(Worker(1));
  EXPECT_EQ(rounds.Finish(Worker(0), 1, 0, {1, 1, {}}, &total), Reply::kGo);
  EXPECT_EQ(total.weight, 3);
}

TEST(RoundTable, NewcomersJoinTheNextRoundAndTheLastOneCanBeRepeated) {
  RoundTable rounds(0, {Worker(0)});
  rounds.OpenEpoch(kEpoch, 0, 3);
  RoundPart part;
  RoundTotal total;
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &part), Reply::kWait);
  EXPECT_EQ(rounds.Finish(Worker(0), 1, 0, {1, 1, {}}, &total), Reply::kGo);
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(part.parts, 2);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(part.part, 1);
  // Both are lost: the batch waits for whoever comes.
  rounds.Leave(Worker(0));
  rounds.Leave(Worker(1));
  EXPECT_EQ(rounds.applied(kEpoch), 1);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(part.round, 2U);
  EXPECT_EQ(part.parts, 1);
  EXPECT_GT(part.attempt, 0);
}

TEST(RoundTable, WhoAsksForAnEpochThatEndsDoesNotHoldUpTheNext) {
  RoundTable rounds(0, {Worker(0)});
  const EpochKey second{.dataset = 0, .epoch = 1};
  rounds.OpenEpoch(kEpoch, 0, 1);
  rounds.OpenEpoch(second, 0, 1);
  RoundPart part;
  RoundTotal total;
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &part), Reply::kWait);
  EXPECT_EQ(rounds.Finish(Worker(0), 1, 0, {1, 1, {}}, &total), Reply::kGo);
  EXPECT_EQ(rounds.Join(Worker(0), second, &part), Reply::kGo);
  EXPECT_EQ(part.epoch, second);
  EXPECT_EQ(part.parts, 1);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &part), Reply::kOver);
}

// ---- Coordinator --------------------------------------------------------------------------------

constexpr Duration kAtOnce{0};
constexpr DatasetInfo kData{.fingerprint = 1, .examples = 100, .batch_size = 10};

Sender Process(int worker, std::uint64_t incarnation) {
  return {.task = Worker(worker), .incarnation = incarnation};
}

class CoordinatorTest : public ::testing::Test {
 protected:
  CoordinatorTest()
      : coordinator_(
            {.workers = {Worker(0), Worker(1)}, .rejoin_timeout = std::chrono::milliseconds(0)}) {
    OrThrow(coordinator_.OpenDataset("chief:0", 0, kData));
    OrThrow(coordinator_.Attach(Process(0, 10)));
    OrThrow(coordinator_.Attach(Process(1, 11)));
  }

  SplitReply Next(const Sender& sender, std::int64_t finished = 0, std::int64_t epoch = 0) {
    return OrThrow(coordinator_.NextSplit(sender, {.dataset = 0, .epoch = epoch}, 0,
                                          {.id = finished}, kAtOnce));
  }
  // Everything that is left of the epoch.
  void Finish(const Sender& sender, std::int64_t epoch = 0) {
    for (SplitReply reply = Next(sender, 0, epoch); reply.progress != Progress::kOver;
         reply = Next(sender, reply.split.id, epoch)) {
      ASSERT_EQ(reply.progress, Progress::kGo);
    }
  }

  Coordinator coordinator_;
};

TEST_F(CoordinatorTest, NothingIsHandedOutBeforeItOpens) {
  EXPECT_EQ(Next(Process(0, 10)).progress, Progress::kWait);
  OrThrow(coordinator_.Open(0));
  EXPECT_EQ(Next(Process(0, 10)).progress, Progress::kGo);
}

TEST_F(CoordinatorTest, DifferentDataIsRefused) {
  EXPECT_TRUE(coordinator_.OpenDataset("worker:0", 0, kData).ok());
  EXPECT_THAT(coordinator_.OpenDataset("worker:1", 0, {1, 101, 10}).message(),
              HasSubstr("worker:1 has 101 examples in batches of 10, another process 100"));
  EXPECT_THAT(coordinator_.OpenDataset("worker:1", 0, {2, 100, 10}).message(),
              HasSubstr("fingerprint"));
  EXPECT_EQ(coordinator_.OpenDataset("worker:1", -1, kData).code(), StatusCode::kInvalidArgument);
}

TEST_F(CoordinatorTest, ALostWorkersSplitGoesToAnotherAndCountsOnce) {
  OrThrow(coordinator_.Open(0));
  const Split lost = Next(Process(0, 10)).split;
  Next(Process(1, 11));
  coordinator_.Lost(Worker(0), Unavailable("killed"));
  EXPECT_EQ(coordinator_.NextSplit(Process(0, 10), {}, 0, {.id = lost.id}, kAtOnce).status().code(),
            StatusCode::kAborted);
  Finish(Process(1, 11));
  const EpochCoverage coverage = coordinator_.coverage().at(0);
  EXPECT_EQ(coverage.seen, 100);
  EXPECT_EQ(coverage.examples, 100);
  EXPECT_EQ(coverage.reissued, 1);
}

TEST_F(CoordinatorTest, ANewIncarnationTakesOverAtOnceAndFindsOldEpochsOver) {
  OrThrow(coordinator_.Open(0));
  Next(Process(0, 10));
  EXPECT_TRUE(coordinator_.Attach(Process(0, 12)).ok());
  EXPECT_EQ(coordinator_.NextSplit(Process(0, 10), {}, 0, {}, kAtOnce).status().code(),
            StatusCode::kAborted);
  Finish(Process(1, 11), 0);
  Finish(Process(1, 11), 3);
  EXPECT_EQ(Next(Process(0, 12), 0, 0).progress, Progress::kOver);
  EXPECT_EQ(Next(Process(0, 12), 0, 1).progress, Progress::kOver) << "never trained, but passed";
  EXPECT_EQ(coordinator_.Attach({.task = Worker(7), .incarnation = 1}).status().code(),
            StatusCode::kFailedPrecondition);
}

// A job of any length, in which processes come and go: servers remember of those that are gone no
// more than there are live ones.
TEST(RetiredClientsTest, WhatHasToBeRememberedIsBoundedByTheLiveOnes) {
  constexpr int kWorkers = 5;
  std::vector<TaskId> workers;
  for (int w = 0; w < kWorkers; ++w) {
    workers.push_back(Worker(w));
  }
  RetiredClients retired;
  // Its numbers go over the greatest there is, and 0 is nobody's.
  Coordinator coordinator({.workers = workers,
                           .on_gone = [&](std::uint64_t client) { retired.Add(client); },
                           .first_client = std::numeric_limits<std::uint64_t>::max() - 500});
  std::map<int, std::uint64_t> live;
  std::vector<std::uint64_t> gone;
  const Philox random(1);
  std::uint64_t incarnation = 0;
  for (int i = 0; i < 2000; ++i) {
    const int worker = static_cast<int>(random.Below(kWorkers, static_cast<std::uint64_t>(i)));
    if (live.contains(worker)) {
      gone.push_back(live[worker]);
    }
    live[worker] = OrThrow(coordinator.Attach(Process(worker, ++incarnation)));
    ASSERT_EQ(OrThrow(coordinator.Attach(Process(worker, incarnation))), live[worker])
        << "asked twice, it says the same";
    ASSERT_LE(retired.Ranges().size() / 2, kWorkers + 2U);
  }
  for (const auto& [worker, client] : live) {
    EXPECT_FALSE(retired.contains(client));
    EXPECT_NE(client, 0U);
  }
  for (const std::uint64_t client : gone) {
    ASSERT_TRUE(retired.contains(client));
  }
}

TEST(RetiredClientsTest, IsWhatASetOfNumbersWouldBe) {
  const Philox random(2);
  std::uint64_t drawn = 0;
  for (int round = 0; round < 20; ++round) {
    RetiredClients retired;
    std::set<std::uint64_t> expected;
    for (int i = 0; i < 30; ++i) {
      const std::uint64_t first = random.Below(200, ++drawn);
      const std::uint64_t last = first + random.Below(6, ++drawn);
      retired.Add(first, last);
      for (std::uint64_t client = first; client <= last; ++client) {
        expected.insert(client);
      }
    }
    for (std::uint64_t client = 0; client < 210; ++client) {
      ASSERT_EQ(retired.contains(client), expected.contains(client)) << client;
    }
    RetiredClients again;
    const std::vector<std::uint64_t> ranges = retired.Ranges();
    for (std::size_t i = 0; i < ranges.size(); i += 2) {
      ASSERT_TRUE(i == 0 || ranges[i] > ranges[i - 1] + 1) << "ranges that touch are one";
      again.Add(ranges[i], ranges[i + 1]);
    }
    EXPECT_EQ(again.Ranges(), ranges);
  }
  RetiredClients edges;
  edges.Add(std::numeric_limits<std::uint64_t>::max());
  edges.Add(0);
  EXPECT_FALSE(edges.contains(1));
  EXPECT_EQ(edges.Ranges().size(), 4U);
}

TEST_F(CoordinatorTest, AnEpochThatAWorkerLeavesEarlyIsFinishedByTheOthers) {
  OrThrow(coordinator_.Open(0));
  Next(Process(0, 10));
  Next(Process(0, 10), 0, 1);  // it goes on to the next epoch without finishing
  Finish(Process(1, 11));
  EXPECT_EQ(coordinator_.coverage().at(0).seen, 100);
}

TEST_F(CoordinatorTest, TheJobIsOverWhenAllAreDoneOrLost) {
  OrThrow(coordinator_.Open(0));
  EXPECT_FALSE(OrThrow(coordinator_.WaitOver(kAtOnce)));
  coordinator_.Lost(Worker(0), Unavailable("killed"));
  EXPECT_FALSE(OrThrow(coordinator_.WaitOver(kAtOnce)));
  EXPECT_TRUE(coordinator_.Done(Process(1, 11)).ok());
  EXPECT_TRUE(OrThrow(coordinator_.WaitOver(kAtOnce)));
}

TEST_F(CoordinatorTest, AJobWithoutWorkersEndsWithAnError) {
  OrThrow(coordinator_.Open(0));
  coordinator_.Lost(Worker(0), Unavailable("killed"));
  coordinator_.Lost(Worker(1), Unavailable("worker:1 was killed as well"));
  Result<bool> over = coordinator_.WaitOver(std::chrono::milliseconds(5));
  EXPECT_EQ(over.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(over.status().message(), HasSubstr("worker:1 was killed as well"));
}

TEST_F(CoordinatorTest, ResumedEpochsStartWhereTheyWereLeft) {
  OrThrow(coordinator_.Open(0));
  const SplitReply reply =
      OrThrow(coordinator_.NextSplit(Process(0, 10), {.dataset = 0, .epoch = 5}, 7, {}, kAtOnce));
  EXPECT_EQ(reply.split.begin, 70);
  EXPECT_EQ(coordinator_.coverage().at(0).examples, 30);
}

// Of the epoch of the servers that the coordinator is in.
Sender In(std::uint64_t epoch, const Sender& sender) {
  return {.task = sender.task, .incarnation = sender.incarnation, .epoch = epoch};
}

class RollBackTest : public CoordinatorTest {
 protected:
  RollBackTest() {
    coordinator_.SetView(1, {"old"});
    OrThrow(coordinator_.Open(0));
  }
  void Save(std::int64_t step) {
    ASSERT_TRUE(OrThrow(coordinator_.BeginCut(std::chrono::milliseconds(1))).has_value());
    const Course course = coordinator_.CourseAt(step);
    coordinator_.EndCut();
    OrThrow(coordinator_.Remember(course));
  }
  void LoseAServer() { coordinator_.ServerLost(Unavailable("ps:1 was killed")); }

  const Sender first_ = In(1, Process(0, 10));
  const Sender second_ = In(1, Process(1, 11));
};

TEST_F(RollBackTest, WhoIsFurtherOnGetsWhatIsLeftSinceTheSaveFirst) {
  const Split split = Next(first_).split;
  ASSERT_EQ(Next(second_).progress, Progress::kGo);
  OrThrow(coordinator_.NextSplit(second_, {0, 0}, 0, {.id = 2, .steps = 1}, kAtOnce));
  coordinator_.Acknowledge(second_, {0, 0}, {.id = 3, .steps = 1});
  coordinator_.Acknowledge(first_, {0, 0}, {.id = split.id, .steps = 1});
  Save(3);
  Finish(first_, 0);
  Finish(first_, 1);
  ASSERT_EQ(Next(first_, 0, 2).progress, Progress::kGo);
  LoseAServer();
  OrThrow(coordinator_.RollBack(3, 2, {"new"}));
  EXPECT_EQ(coordinator_.advance().steps, 3);
  const Sender back = In(2, first_);
  std::int64_t finished = 0;
  std::int64_t of = -1;
  std::vector<std::pair<std::int64_t, std::int64_t>> begins;  // epoch and example
  for (;;) {
    const SplitReply reply = OrThrow(coordinator_.NextSplit(
        back, {0, 2}, 0, {.id = finished, .epoch = of, .steps = finished > 0 ? 1 : 0}, kAtOnce));
    if (reply.progress == Progress::kOver) {
      break;
    }
    ASSERT_EQ(reply.progress, Progress::kGo);
    begins.emplace_back(reply.epoch, reply.split.begin);
    finished = reply.split.id;
    of = reply.epoch;
  }
  std::vector<std::pair<std::int64_t, std::int64_t>> expected;
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    for (std::int64_t begin = epoch == 0 ? 30 : 0; begin < 100; begin += 10) {
      expected.emplace_back(epoch, begin);
    }
  }
  EXPECT_EQ(begins, expected);
  for (const EpochCoverage& epoch : coordinator_.coverage()) {
    EXPECT_EQ(epoch.seen, 100) << epoch.epoch;
    EXPECT_EQ(epoch.steps, 10) << epoch.epoch;
  }
}

TEST_F(RollBackTest, NothingOfAnEarlierEpochOfTheServersCounts) {
  const Split split = Next(first_).split;
  LoseAServer();
  EXPECT_EQ(Next(first_, split.id).progress, Progress::kStale) << "while one is lost";
  OrThrow(coordinator_.RollBack(0, 2, {"new"}));
  EXPECT_EQ(Next(first_, split.id).progress, Progress::kStale);
  coordinator_.Acknowledge(first_, {0, 0}, {.id = split.id});
  EXPECT_EQ(Next(In(2, first_)).split, split) << "it is to be done again";
  Next(first_, split.id);
  EXPECT_EQ(coordinator_.coverage().at(0).seen, 0);
}

TEST_F(RollBackTest, RoundsAreNumberedAndCutAsBefore) {
  const auto join = [&](const Sender& sender, std::int64_t epoch) {
    return OrThrow(coordinator_.JoinRound(sender, {0, epoch}, 0, kAtOnce));
  };
  // The first of them joins, and waits for the second.
  const auto together = [&](std::uint64_t servers, std::int64_t epoch) {
    const Sender a = In(servers, first_);
    const Sender b = In(servers, second_);
    EXPECT_EQ(join(a, epoch).progress, Progress::kWait);
    const RoundReply of_b = join(b, epoch);
    EXPECT_EQ(of_b.progress, Progress::kGo);
    EXPECT_EQ(join(a, epoch).part.round, of_b.part.round);
    for (const Sender& sender : {a, b}) {
      OrThrow(coordinator_.FinishRound(sender, of_b.part.round, 0, {}, kAtOnce));
    }
    return of_b.part;
  };
  for (int round = 0; round < 4; ++round) {
    together(1, 0);
  }
  Save(4);
  for (int round = 4; round < 13; ++round) {
    together(1, round < 10 ? 0 : 1);
  }
  EXPECT_EQ(coordinator_.StepsSince(0), 13);
  EXPECT_EQ(coordinator_.StepsSince(4), 9);
  EXPECT_EQ(join(first_, 1).progress, Progress::kWait);  // what it asks for is forgotten
  LoseAServer();
  EXPECT_EQ(join(second_, 1).progress, Progress::kStale);
  OrThrow(coordinator_.RollBack(4, 2, {"new"}));
  for (std::uint64_t round = 5; round <= 13; ++round) {
    const RoundPart part = together(2, 1);
    EXPECT_EQ(part.round, round);
    EXPECT_EQ(part.epoch.epoch, round <= 10 ? 0 : 1);
    EXPECT_EQ(part.batch, static_cast<std::int64_t>(round - 1) % 10);
  }
}

TEST_F(RollBackTest, WaitsInTheChiefEndWithTheLossUntilItIsOver) {
  Next(first_);
  LoseAServer();
  EXPECT_THAT(coordinator_.BeginCut(kAtOnce).status().message(), HasSubstr("ps:1 was killed"));
  EXPECT_THAT(coordinator_.WaitOver(kAtOnce).status().message(), HasSubstr("ps:1 was killed"));
  const ServerView lost = coordinator_.AwaitView(1, false, std::chrono::seconds(5));
  EXPECT_TRUE(lost.recovering);
  EXPECT_EQ(lost.why, "ps:1 was killed");
  OrThrow(coordinator_.RollBack(0, 2, {"new"}));
  EXPECT_FALSE(OrThrow(coordinator_.WaitOver(kAtOnce)));
  const ServerView back = coordinator_.AwaitView(1, true, std::chrono::seconds(5));
  EXPECT_EQ(back.epoch, 2U);
  EXPECT_FALSE(back.recovering);
  EXPECT_EQ(back.addresses, std::vector<std::string>{"new"});
}

TEST_F(RollBackTest, ASaveThatIsNotOfThisJobIsRefused) {
  LoseAServer();
  EXPECT_EQ(coordinator_.RollBack(7, 2, {"new"}).code(), StatusCode::kFailedPrecondition);
}

TEST_F(RollBackTest, AnotherDataSetCannotBeGoneBackTo) {
  OrThrow(coordinator_.OpenDataset("chief:0", 1, kData));
  Finish(first_, 0);
  OrThrow(coordinator_.NextSplit(first_, {1, 0}, 0, {}, kAtOnce));
  LoseAServer();
  EXPECT_THAT(coordinator_.RollBack(0, 2, {"new"}).message(), HasSubstr("another data set"));
}

TEST_F(RollBackTest, WorkersThatHaveEndedCannotDoItAgain) {
  Finish(first_);
  EXPECT_TRUE(coordinator_.Done(first_).ok());
  LoseAServer();
  OrThrow(coordinator_.RollBack(0, 2, {"new"}));
  EXPECT_TRUE(coordinator_.Done(In(1, second_)).ok());
  EXPECT_THAT(coordinator_.WaitOver(kAtOnce).status().message(),
              HasSubstr("nobody is left to train"));
}

}  // namespace
}  // namespace cohort::ps
