// Policies under which each worker has an order of its own: at a mark, and of its own making.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "collect.h"

namespace cohort::data {
namespace {

using ::testing::HasSubstr;

Status IterateStatus(const Dataset& dataset, const IterateOptions& options) {
  return dataset.Iterate(options).status();
}

// Goldens of TensorFlow 2.21's AutoShardPolicy.HINT: each worker goes on with every W-th example.
TEST(Shard, ByHintIsTheGoldenOfHint) {
  const IterateOptions hint{.policy = ShardPolicy::kHint};
  const auto of = [&](const Dataset& data, int workers, int worker) {
    IterateOptions options = hint;
    options.num_workers = workers;
    options.worker = worker;
    return Collect(data, options);
  };
  const Dataset twelve = Ids(12).Shard(kShardHint, kShardHint).Batch(4);
  EXPECT_EQ(of(twelve, 2, 0), (IdBatches{{0, 2}, {4, 6}, {8, 10}}));
  EXPECT_EQ(of(twelve, 2, 1), (IdBatches{{1, 3}, {5, 7}, {9, 11}}));
  const Dataset eleven = Ids(11).Shard(kShardHint, kShardHint).Batch(4);
  EXPECT_EQ(of(eleven, 2, 0), (IdBatches{{0, 2}, {4, 6}, {8, 10}}));
  EXPECT_EQ(of(eleven, 2, 1), (IdBatches{{1, 3}, {5, 7}, {9}}));
  EXPECT_EQ(of(Ids(20).Shard(kShardHint, kShardHint).Batch(20), 5, 1), (IdBatches{{1, 6, 11, 16}}));
  EXPECT_EQ(of(twelve, 1, 0), Collect(Ids(12).Batch(4)));
  EXPECT_EQ(twelve.size(), 12);
}

// What stands behind the mark is each worker's own, what stands before it is all workers'.
TEST(Shard, ByHintStagesAreBeforeOrBehindTheMark) {
  const IterateOptions hint{.epoch = 3, .policy = ShardPolicy::kHint};
  const auto order = Flatten(Collect(Ids(23).Shuffle(5).Batch(23), {.epoch = 3}));
  for (int workers = 1; workers <= 5; ++workers) {
    // The workers' batches are the order's, dealt out.
    const auto dealt = Flatten(CollectWorld(
        Ids(23).Shuffle(5).Shard(kShardHint, kShardHint).Batch(workers), workers, hint));
    EXPECT_EQ(dealt, order) << workers;
    for (const Remainder remainder : {Remainder::kShort, Remainder::kDrop, Remainder::kPad}) {
      const Dataset own =
          Ids(23).Shard(kShardHint, kShardHint).Shuffle(5).Batch(2 * workers, remainder);
      const IdBatches world = CollectWorld(own, workers, hint);
      auto all = Flatten(world);
      std::sort(all.begin(), all.end());
      IterateOptions options = hint;
      options.num_workers = workers;
      EXPECT_EQ(OrThrow(own.CountBatches(options)), static_cast<std::int64_t>(world.size()));
      if (remainder == Remainder::kShort) {
        EXPECT_EQ(all, Flatten(Collect(Ids(23).Batch(23)))) << "every example once";
      } else {
        EXPECT_EQ(all.size(), 2U * static_cast<std::size_t>(workers) * world.size())
            << "every batch is whole";
      }
    }
    const auto taken = CollectWorld(
        Ids(23).Shard(kShardHint, kShardHint).Take(2).Repeat(2).Batch(workers), workers, hint);
    EXPECT_EQ(taken.size(), 4U) << "Take and Repeat are each worker's own";
  }
  IterateOptions resumed{.num_workers = 3, .worker = 1, .policy = ShardPolicy::kHint};
  const Dataset data = Ids(40).Shard(kShardHint, kShardHint).Shuffle(2).Batch(6);
  const IdBatches whole = Collect(data, resumed);
  for (std::size_t k = 0; k <= whole.size(); ++k) {
    resumed.first_batch = static_cast<std::int64_t>(k);
    EXPECT_EQ(Collect(data, resumed),
              IdBatches(whole.begin() + static_cast<std::ptrdiff_t>(k), whole.end()));
  }
}

TEST(Shard, AMarkGoesWithItsPolicyOnly) {
  const Dataset marked = Ids(12).Shard(kShardHint, kShardHint);
  for (const ShardPolicy policy :
       {ShardPolicy::kAuto, ShardPolicy::kData, ShardPolicy::kOff, ShardPolicy::kFile}) {
    const Status status = IterateStatus(marked.Batch(4), {.num_workers = 2, .policy = policy});
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr("only under ShardPolicy::kHint"));
  }
  // tf.data leaves such a data set as it is: every worker would read everything.
  EXPECT_THAT(
      IterateStatus(Ids(12).Batch(4), {.num_workers = 2, .policy = ShardPolicy::kHint}).message(),
      HasSubstr("has no mark"));
  EXPECT_THROW(marked.Shard(kShardHint, kShardHint), ContractError);
  EXPECT_THROW(Ids(12).Shard(kShardHint, 0), ContractError);
  EXPECT_THAT(marked.AsSource().status().message(), HasSubstr("mark"));
  EXPECT_THAT(
      IterateStatus(marked.Batch(2), {.num_workers = 3, .policy = ShardPolicy::kHint}).message(),
      HasSubstr("a global batch of 2 leaves some of 3 workers"));
  EXPECT_THAT(
      IterateStatus(marked.Batch(4), {.num_workers = 2, .policy = ShardPolicy::kHint, .begin = 2})
          .message(),
      HasSubstr("range"));
  EXPECT_NE(marked.Batch(4).Fingerprint(), Ids(12).Batch(4).Fingerprint());
}

// A share of its own: as many batches as the workers agreed on.
TEST(Shard, OwnSharesHaveAsManyBatchesAsAgreedOn) {
  const auto own = [](std::int64_t examples, Remainder remainder, std::int64_t batches,
                      int worker) {
    return Collect(
        Ids(examples).Batch(5, remainder),
        {.num_workers = 2, .worker = worker, .policy = ShardPolicy::kOwn, .num_batches = batches});
  };
  // Of a global batch of 5, worker 0 has 3 and worker 1 has 2, and the other way round in the next.
  EXPECT_EQ(own(7, Remainder::kShort, -1, 0), (IdBatches{{0, 1, 2}, {3, 4}, {5, 6}}));
  EXPECT_EQ(own(3, Remainder::kShort, 3, 1), (IdBatches{{0, 1}, {2}, {}}));
  EXPECT_EQ(own(0, Remainder::kShort, 2, 1), (IdBatches{{}, {}}));
  EXPECT_EQ(own(7, Remainder::kDrop, -1, 0), (IdBatches{{0, 1, 2}, {3, 4}}));
  EXPECT_EQ(own(8, Remainder::kDrop, -1, 0), (IdBatches{{0, 1, 2}, {3, 4}, {5, 6, 7}}));
  EXPECT_EQ(own(7, Remainder::kDrop, 1, 0), (IdBatches{{0, 1, 2}}));
  EXPECT_EQ(own(3, Remainder::kPad, 3, 1), (IdBatches{{0, 1}, {2, 2, 2}, {2, 2}}));
  EXPECT_EQ(own(3, Remainder::kWrap, 3, 1), (IdBatches{{0, 1}, {2, 0, 1}, {2, 0}}));
  const auto refused = [](std::int64_t examples, Remainder remainder,
                          const IterateOptions& options) {
    return IterateStatus(Ids(examples).Batch(5, remainder), options).message();
  };
  EXPECT_THAT(refused(7, Remainder::kShort,
                      {.num_workers = 2, .policy = ShardPolicy::kOwn, .num_batches = 2}),
              HasSubstr("num_batches 2 of a share of 3 batches"));
  EXPECT_THAT(refused(7, Remainder::kDrop,
                      {.num_workers = 2, .policy = ShardPolicy::kOwn, .num_batches = 3}),
              HasSubstr("num_batches 3 of a share of 2 batches"));
  EXPECT_THAT(refused(0, Remainder::kPad,
                      {.num_workers = 2, .policy = ShardPolicy::kOwn, .num_batches = 3}),
              HasSubstr("has no examples to fill"));
  EXPECT_THAT(refused(7, Remainder::kShort, {.num_workers = 2, .num_batches = 3}),
              HasSubstr("only under ShardPolicy::kOwn"));
}

// Where each worker has an order of its own, its batches have the sizes of tf.data's
// batch_sizes_for_worker(G, N, 1, w), over and over: the larger parts go round.
TEST(Rebatch, SizesOfOwnOrdersAreThoseOfTfData) {
  const auto sizes = [](std::int64_t batch, int workers, int worker) {
    std::vector<std::int64_t> all;
    for (const auto& ids :
         Collect(Ids(batch).Batch(batch),
                 {.num_workers = workers, .worker = worker, .policy = ShardPolicy::kOwn})) {
      all.push_back(std::ssize(ids));
    }
    return all;  // of one round: every place of it once
  };
  // Of TensorFlow 2.21.
  EXPECT_EQ(sizes(11, 4, 0), (std::vector<std::int64_t>{3, 3, 3, 2}));
  EXPECT_EQ(sizes(11, 4, 1), (std::vector<std::int64_t>{3, 3, 2, 3}));
  EXPECT_EQ(sizes(11, 4, 3), (std::vector<std::int64_t>{2, 3, 3, 3}));
  EXPECT_EQ(sizes(4, 3, 2), (std::vector<std::int64_t>{1, 2, 1}));
  for (std::int64_t batch = 1; batch < 30; ++batch) {
    for (int workers = 1; workers <= std::min<std::int64_t>(batch, 9); ++workers) {
      // The rule as it is written down: base rotated to the left.
      std::vector<std::int64_t> base(static_cast<std::size_t>(workers), batch / workers);
      std::fill_n(base.begin(), batch % workers, batch / workers + 1);
      for (int worker = 0; worker < workers; ++worker) {
        auto turned = base;
        std::rotate(turned.begin(), turned.begin() + worker, turned.end());
        EXPECT_EQ(sizes(batch, workers, worker), turned) << batch << " " << workers;
      }
    }
  }
}

// tf.data's rebatch beside that of an order all share, of G examples a batch over N replicas of one
// worker each. Where N divides G they are one. Where it does not, the legacy rebatch of its DATA
// policy cuts parts of ceil(G / N); here the first G mod N workers have one example more in every
// batch: sizes of one step add up to G, and differ by at most one.
TEST(Rebatch, IsThatOfTfDataWhereReplicasDivideTheBatch) {
  const auto sizes = [](std::int64_t batch, int parts) {
    std::vector<std::int64_t> all;
    for (int part = 0; part < parts; ++part) {
      all.push_back(PartBegin(batch, parts, part + 1) - PartBegin(batch, parts, part));
    }
    return all;
  };
  // Of TensorFlow 2.21: the first step of batch_sizes_for_worker over all workers, and the last
  // batch of its legacy rebatch where that is the same.
  EXPECT_EQ(sizes(4, 2), (std::vector<std::int64_t>{2, 2}));
  EXPECT_EQ(sizes(4, 4), (std::vector<std::int64_t>{1, 1, 1, 1}));
  EXPECT_EQ(sizes(4, 5), (std::vector<std::int64_t>{1, 1, 1, 1, 0}))
      << "legacy: [0] [1] [2] [3] []";
  EXPECT_EQ(sizes(11, 4), (std::vector<std::int64_t>{3, 3, 3, 2}));
  // range(6).batch(4) over 2: legacy [0 1] [2 3] then [4] [5].
  EXPECT_EQ(Collect(Ids(6).Batch(4), {.num_workers = 2, .worker = 0}), (IdBatches{{0, 1}, {4}}));
  EXPECT_EQ(Collect(Ids(6).Batch(4), {.num_workers = 2, .worker = 1}), (IdBatches{{2, 3}, {5}}));
  // Deliberately not: range(8).batch(4) over 3 is [0 1] [2 3] [] there, so that one replica idles.
  EXPECT_EQ(sizes(4, 3), (std::vector<std::int64_t>{2, 1, 1}));
  for (std::int64_t batch = 0; batch < 40; ++batch) {
    for (int parts = 1; parts <= 9; ++parts) {
      const auto all = sizes(batch, parts);
      EXPECT_EQ(std::accumulate(all.begin(), all.end(), std::int64_t{0}), batch);
      EXPECT_LE(
          *std::max_element(all.begin(), all.end()) - *std::min_element(all.begin(), all.end()), 1);
    }
  }
}

}  // namespace
}  // namespace cohort::data
