// Going on within an epoch that other workers, or workers who went ahead, began.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>
#include <set>
#include <thread>

#include "collect.h"

namespace cohort::data {
namespace {

using ::testing::HasSubstr;

IdBatches From(const IdBatches& batches, std::int64_t first) {
  return IdBatches(batches.begin() + first, batches.end());
}

// Through text, as checkpoints have it.
DataPosition Saved(const DataPosition& position) {
  const DataPosition read = OrThrow(DataPosition::Parse(position.ToString()));
  EXPECT_EQ(read, position);
  return read;
}

// A world of `workers` from `position` on, in global batches.
IdBatches GoOn(const Dataset& data, const DataPosition& position, ShardPolicy policy, int workers) {
  const IterateOptions options =
      OrThrow(data.ResumeAt(position, {.num_workers = workers, .policy = policy}));
  return CollectWorld(data, workers, options);
}

TEST(ResumeEpoch, OrdersOfWorkersAreGoneOnWithByAnyNumberOfWorkers) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 30; ++trial) {
    std::vector<std::int64_t> sizes(5 + random() % 4);
    for (std::int64_t& size : sizes) {
      size = 1 + static_cast<std::int64_t>(random() % 12);
    }
    const auto source = std::make_shared<FilesSource>(sizes);
    const auto size = 5 + static_cast<std::int64_t>(random() % 6);
    const Remainder remainder = std::array{Remainder::kShort, Remainder::kDrop, Remainder::kPad,
                                           Remainder::kWrap}[random() % 4];
    const bool by_file = random() % 2 == 0;
    const ShardPolicy policy = by_file ? ShardPolicy::kFile : ShardPolicy::kHint;
    const Dataset data =
        by_file ? Dataset(source).Shuffle(3).Batch(size, remainder)
                : Dataset(source).Shard(kShardHint, kShardHint).Shuffle(3).Batch(size, remainder);
    const int workers = 1 + static_cast<int>(random() % 5);
    IterateOptions begun{.epoch = 2, .policy = policy};
    const IdBatches whole = CollectWorld(data, workers, begun);
    begun.num_workers = workers;
    for (std::int64_t batch = 0; batch <= std::ssize(whole); ++batch) {
      const DataPosition position = Saved(data.PositionAt(begun, batch));
      for (int others = 1; others <= 5; ++others) {
        EXPECT_EQ(GoOn(data, position, policy, others), From(whole, batch))
            << workers << " workers, then " << others << ", batch " << batch;
        // And again, with a third number of them.
        IterateOptions options =
            OrThrow(data.ResumeAt(position, {.num_workers = others, .policy = policy}));
        if (options.first_batch < std::ssize(whole)) {
          const DataPosition later = Saved(data.PositionAt(options, options.first_batch + 1));
          EXPECT_EQ(GoOn(data, later, policy, 3), From(whole, batch + 1));
        }
      }
    }
  }
}

TEST(ResumeEpoch, ByFileAnEpochThatWasBegunByRecordEndsSo) {
  const Dataset data = Dataset(std::make_shared<FilesSource>(std::vector<std::int64_t>{9, 8, 6}))
                           .Shuffle(5)
                           .Batch(4);
  const IdBatches whole = CollectWorld(data, 2, {.epoch = 1});
  for (std::int64_t batch = 1; batch <= std::ssize(whole); ++batch) {
    EXPECT_EQ(GoOn(data, Saved(data.PositionAt({.num_workers = 2, .epoch = 1}, batch)),
                   ShardPolicy::kFile, 3),
              From(whole, batch));
  }
  // From the beginning of an epoch it is divided by file at once.
  EXPECT_EQ(GoOn(data, data.PositionAt({.num_workers = 2, .epoch = 1}, 0), ShardPolicy::kFile, 3),
            CollectWorld(data, 3, {.epoch = 1, .policy = ShardPolicy::kFile}));
  const auto refused = [&](const DataPosition& position, const Dataset& with, ShardPolicy policy) {
    const Status status = with.ResumeAt(position, {.num_workers = 3, .policy = policy}).status();
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
    return status.message();
  };
  const Dataset fives = Dataset(std::make_shared<FilesSource>(std::vector<std::int64_t>{9, 8, 6}))
                            .Shuffle(5)
                            .Batch(5);
  EXPECT_THAT(refused(data.PositionAt({.num_workers = 2}, 2), fives, ShardPolicy::kFile),
              HasSubstr("example 8"));
  EXPECT_THAT(refused(data.PositionAt({.num_workers = 2}, 2), data, ShardPolicy::kOwn),
              HasSubstr("none of shares"));
  const IterateOptions by_file{.num_workers = 2, .policy = ShardPolicy::kFile};
  EXPECT_THAT(refused(data.PositionAt(by_file, 2), fives, ShardPolicy::kFile),
              HasSubstr("divided by file in batches of 4, not of 5"));
  EXPECT_THAT(refused(data.PositionAt({.num_workers = 2, .policy = ShardPolicy::kOwn}, 2), data,
                      ShardPolicy::kOwn),
              HasSubstr("by each worker itself among 2 workers"));
  EXPECT_THAT(
      refused(data.PositionAt(by_file, 2),
              data.source().size() == 23
                  ? Dataset(std::make_shared<FilesSource>(std::vector<std::int64_t>{9, 8, 6}))
                        .Shuffle(6)
                        .Batch(4)
                  : data,
              ShardPolicy::kFile),
      HasSubstr("other data"));
}

TEST(ResumeEpoch, AutoIsByFileWhereThatCanBe) {
  const Dataset data = Dataset(std::make_shared<FilesSource>(std::vector<std::int64_t>{6, 6, 6}))
                           .Shuffle(2)
                           .Batch(4);
  for (int workers = 1; workers <= 5; ++workers) {
    const ShardPolicy stands_for =
        workers == 2 || workers == 3 ? ShardPolicy::kFile : ShardPolicy::kData;
    EXPECT_EQ(data.PolicyFor(ShardPolicy::kAuto, workers), stands_for);
    if (workers <= 4) {
      EXPECT_EQ(CollectWorld(data, workers, {.policy = ShardPolicy::kAuto}),
                CollectWorld(data, workers, {.policy = stands_for}));
    }
  }
  const Dataset files(std::make_shared<FilesSource>(std::vector<std::int64_t>{6, 6, 6}));
  EXPECT_EQ(files.Shuffle(2).Batch(2).PolicyFor(ShardPolicy::kAuto, 3), ShardPolicy::kData);
  EXPECT_EQ(files.Skip(2).Batch(4).PolicyFor(ShardPolicy::kAuto, 2), ShardPolicy::kData);
  EXPECT_EQ(CollectWorld(files.Skip(2).Batch(4), 2, {.policy = ShardPolicy::kAuto}),
            CollectWorld(files.Skip(2).Batch(4), 2, {}));
  // Part of an order that all share is not by file.
  EXPECT_EQ(Collect(data, {.policy = ShardPolicy::kAuto, .begin = 4, .end = 12}),
            Collect(data, {.begin = 4, .end = 12}));
  EXPECT_EQ(Ids(5).Batch(2).PolicyFor(ShardPolicy::kAuto, 2), ShardPolicy::kData);
}

TEST(ResumeEpoch, WhatIsNoPlaceIsRefused) {
  for (const char* text : {"",
                           "epoch",
                           "epoch 1",
                           "epoch 1 example",
                           "epoch 1 example 2",
                           "epoch 1 example 2 of",
                           "epoch 1 example 2 of x",
                           "epoch 1 example 2 of 3 ",
                           "epoch -1 example 2 of 3",
                           "epoch 1 example -2 of 3",
                           "epoch 1 example 99999999999999999999 of 3",
                           "epoch 1 batch 2 of 3",
                           "epoch 1 batch 2 of 3 examples of 4",
                           "epoch 1 batch 2 of 3 examples, by of 4",
                           "epoch 1 batch 2 of 3 examples, by file of 4",
                           "epoch 1 batch 2 of 3 examples, by file among 2 of 4",
                           "epoch 1 batch 2 of 3 examples, by file among 2 to 2 but of 4",
                           "epoch 1 batch 2 of 3 examples, by file among 2 to 2 but [1] of 4",
                           "epoch 1 batch 2 of 3 examples, by file among 2 to 2 but [1] [2,] of 4",
                           "epoch 1 batch 2 of 3 examples, by file among 2 to 2 but [1] [2 of 4"}) {
    EXPECT_EQ(DataPosition::Parse(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
  // What can be read and cannot be.
  const Dataset data = Ids(40).Batch(4);
  const auto refused = [&](const EpochDivision& division) {
    return data.Iterate({.num_workers = 3, .first_batch = division.batch, .begun = {division}})
        .status()
        .message();
  };
  EXPECT_THAT(refused({.num_workers = 0}), HasSubstr("no division"));
  EXPECT_THAT(refused({.num_workers = 2, .batch = 3, .overtaken = {{1}}}), HasSubstr("lists of 1"));
  for (const std::vector<std::int64_t>& numbers :
       std::vector<std::vector<std::int64_t>>{{4}, {-1}, {2, 1}, {1, 1}, {99}}) {
    EXPECT_THAT(refused({.num_workers = 2, .batch = 3, .overtaken = {{}, numbers}}),
                HasSubstr("still to come"));
  }
  EXPECT_THAT(data.Iterate({.num_workers = 3, .first_batch = 1, .begun = {{.batch = 2}}})
                  .status()
                  .message(),
              HasSubstr("first_batch 1 of batches 2 to 10"));
  EXPECT_THAT(data.Iterate({.num_workers = 3, .begin = 2, .begun = {{}}}).status().message(),
              HasSubstr("range"));
}

// Examples of these batches take long.
Dataset Slow(const Dataset& data, std::set<std::int64_t> slow) {
  return data.Map([slow = std::move(slow)](Example& example) {
    if (slow.contains(example.at("id").data<std::int64_t>()[0])) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return OkStatus();
  });
}

TEST(Deterministic, WithoutItABatchThatTakesLongHoldsUpNothingElse) {
  std::atomic<bool> go = true;
  const Dataset data = Ids(60)
                           .Map([&go](Example& example) {
                             while (!go && example.at("id").data<std::int64_t>()[0] == 4) {
                               std::this_thread::sleep_for(std::chrono::milliseconds(1));
                             }
                             return OkStatus();
                           })
                           .Batch(4)
                           .Prefetch(6, 3);
  const IdBatches in_order = Collect(Ids(60).Batch(4));
  EXPECT_TRUE(data.deterministic());
  EXPECT_EQ(Collect(data), in_order);
  go = false;
  auto iterator = OrThrow(data.Deterministic(false).Iterate());
  IdBatches batches;
  for (std::size_t i = 0; i + 1 < in_order.size(); ++i) {
    batches.push_back(IdsOf(*OrThrow(iterator->Next())));
  }
  EXPECT_EQ(iterator->Overtaken(), std::vector<std::int64_t>{1});
  go = true;
  batches.push_back(IdsOf(*OrThrow(iterator->Next())));
  EXPECT_EQ(batches.back(), in_order[1]);
  EXPECT_TRUE(iterator->Overtaken().empty());
  EXPECT_FALSE(OrThrow(iterator->Next()).has_value());
  std::ranges::sort(batches);
  EXPECT_EQ(batches, in_order) << "each once, as it is";
  // A range of the order comes in order.
  EXPECT_EQ(Collect(data.Deterministic(false), {.begin = 0, .end = 30}),
            Collect(Ids(60).Batch(4), {.begin = 0, .end = 30}));
}

TEST(Deterministic, WithoutItAnErrorStays) {
  const Dataset data =
      Ids(60)
          .Map([](Example& example) {
            return example.at("id").data<std::int64_t>()[0] == 21 ? DataLoss("broken") : OkStatus();
          })
          .Batch(4)
          .Prefetch(6, 3)
          .Deterministic(false);
  auto iterator = OrThrow(data.Iterate());
  Status status;
  for (int i = 0; i < 15 && status.ok(); ++i) {
    status = iterator->Next().status();
  }
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(iterator->Next().status(), status);
  }
}

// Interrupted anywhere, again and again, by other workers each time: every example once, or, with
// batches that are filled up, every batch of the epoch.
TEST(Deterministic, WithoutItEachEpochIsStillWhole) {
  std::mt19937 random(3);
  std::size_t longest = 0;
  int went_ahead = 0;
  for (int trial = 0; trial < 24; ++trial) {
    std::set<std::int64_t> slow;
    for (int i = 0; i < 6; ++i) {
      slow.insert(static_cast<std::int64_t>(random() % 97));
    }
    const auto files = std::make_shared<FilesSource>(std::vector<std::int64_t>{20, 30, 10, 30, 7});
    const bool by_file = trial % 3 == 2;
    const Dataset data = Slow(Dataset(files), slow)
                             .Shuffle(4)
                             .Batch(6)
                             .Prefetch(1 + static_cast<int>(random() % 8), 3)
                             .Deterministic(false);
    const ShardPolicy policy = by_file ? ShardPolicy::kFile : ShardPolicy::kData;
    std::vector<std::int64_t> seen;
    IterateOptions options{.epoch = 1, .policy = policy};
    for (int run = 0;; ++run) {
      options.num_workers = run == 1 ? options.num_workers : 1 + static_cast<int>(random() % 4);
      const std::int64_t total = OrThrow(data.CountBatches(options));
      const std::int64_t until =
          run == 3 ? total
                   : std::min(total, options.first_batch + static_cast<std::int64_t>(random() % 6));
      std::vector<std::vector<std::int64_t>> overtaken;
      for (int worker = 0; worker < options.num_workers; ++worker) {
        IterateOptions mine = options;
        mine.worker = worker;
        auto iterator = OrThrow(data.Iterate(mine));
        for (std::int64_t batch = options.first_batch; batch < until; ++batch) {
          const auto ids = IdsOf(*OrThrow(iterator->Next()));
          seen.insert(seen.end(), ids.begin(), ids.end());
        }
        overtaken.push_back(iterator->Overtaken());
        went_ahead += overtaken.back().empty() ? 0 : 1;
        if (until == total) {
          EXPECT_FALSE(OrThrow(iterator->Next()).has_value());
          EXPECT_TRUE(iterator->Overtaken().empty());
        }
      }
      if (until == total) {
        break;
      }
      const DataPosition position = Saved(data.PositionAt(options, until, overtaken));
      longest = std::max(longest, position.ToString().size());
      const int next = 1 + static_cast<int>(random() % 4);
      options = OrThrow(data.ResumeAt(
          position, {.num_workers = run == 0 ? options.num_workers : next, .policy = policy}));
      if (position.begun.empty()) {  // in an order that all share: a range, and batches from it
        ASSERT_EQ(options.begin, until * 6);
        options.begin = 0;
        options.first_batch = until;
      }
      ASSERT_EQ(options.first_batch, until);
      options.num_workers = run == 0 ? options.num_workers : next;
    }
    std::ranges::sort(seen);
    ASSERT_EQ(seen, Flatten(Collect(Ids(97).Batch(97)))) << trial;
  }
  EXPECT_GT(went_ahead, 10);
  EXPECT_LT(longest, 1024U);
}

}  // namespace
}  // namespace cohort::data
