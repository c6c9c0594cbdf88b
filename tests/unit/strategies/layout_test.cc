// Which chunks a model is cut into, and which server has them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <utility>

#include <cohort/strategies/parameter_server.h>

#include "parameter_server/frames/frame.h"
#include "parameter_server/model/layout.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

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

// Front layers first: what a step function uses first has come first.
TEST(Layout, FramesOfEachServerAreInTheOrderOfDeclaration) {
  const ModelSpec spec = Model({{"front", {90'000}},
                                {"wide", {700, 1000}},
                                {"a", {60'000}},
                                {"bias", {300}},
                                {"b", {400'000}},
                                {"c", {50'000}},
                                {"d", {95'000}},
                                {"wider", {1'100'000}},
                                {"e", {70'000}},
                                {"f", {250'000}},
                                {"g", {80'000}},
                                {"back", {85'000}}},
                               3);
  const std::vector<Chunk> chunks = MakeChunks(spec);
  for (int s = 0; s < 3; ++s) {
    const auto frames = PackFrames(chunks, s, kFrameBytes);
    std::vector<int> sent;
    std::size_t longest = 0;
    for (const std::vector<int>& frame : frames) {
      sent.insert(sent.end(), frame.begin(), frame.end());
      longest = std::max(longest, frame.size());
    }
    EXPECT_GT(frames.size(), 1U) << "order is of several frames";
    EXPECT_GT(longest, 1U) << "and within one";
    for (std::size_t i = 1; i < sent.size(); ++i) {
      EXPECT_LT(sent[i - 1], sent[i]) << "server " << s;
      const Chunk& before = chunks[static_cast<std::size_t>(sent[i - 1])];
      const Chunk& then = chunks[static_cast<std::size_t>(sent[i])];
      EXPECT_LT(std::pair(before.parameter, before.begin), std::pair(then.parameter, then.begin))
          << "server " << s;
    }
  }
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

}  // namespace
}  // namespace cohort::ps
