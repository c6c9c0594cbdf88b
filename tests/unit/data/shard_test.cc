// Which examples a worker gets, and in which order.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <set>
#include <utility>

#include "collect.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Status IterateStatus(const Dataset& dataset, const IterateOptions& options) {
  return dataset.Iterate(options).status();
}

TEST(PartBegin, FirstPartsGetOneMore) {
  // batch_sizes_for_worker: 11 over 4 is 3 3 3 2.
  EXPECT_EQ(PartBegin(11, 4, 0), 0);
  EXPECT_EQ(PartBegin(11, 4, 1), 3);
  EXPECT_EQ(PartBegin(11, 4, 2), 6);
  EXPECT_EQ(PartBegin(11, 4, 3), 9);
  EXPECT_EQ(PartBegin(11, 4, 4), 11);
  EXPECT_EQ(PartBegin(2, 5, 2), 2);
  EXPECT_EQ(PartBegin(2, 5, 5), 2);
}

// The goldens of tf.distribute's input guide: 2 workers, global batch 4.
TEST(Shard, ByRecordIsTheGoldenOfData) {
  const Dataset data = Ids(12).Batch(4);
  EXPECT_EQ(Collect(data, {.num_workers = 2, .worker = 0, .policy = ShardPolicy::kData}),
            (IdBatches{{0, 1}, {4, 5}, {8, 9}}));
  EXPECT_EQ(Collect(data, {.num_workers = 2, .worker = 1, .policy = ShardPolicy::kData}),
            (IdBatches{{2, 3}, {6, 7}, {10, 11}}));
}

TEST(Shard, ByFileReadsOwnFiles) {
  const Dataset data =
      Dataset(std::make_shared<FilesSource>(std::vector<std::int64_t>{6, 6})).Batch(4);
  EXPECT_EQ(Collect(data, {.num_workers = 2, .worker = 0, .policy = ShardPolicy::kFile}),
            (IdBatches{{0, 1}, {2, 3}, {4, 5}}));
  EXPECT_EQ(Collect(data, {.num_workers = 2, .worker = 1, .policy = ShardPolicy::kFile}),
            (IdBatches{{6, 7}, {8, 9}, {10, 11}}));
}

TEST(Shard, ASpanIsThePartsOfSeveralWorkersAsOne) {
  const Dataset data = Ids(17).Batch(11);  // parts of 3 3 3 2, and of 2 2 1 1
  EXPECT_EQ(Collect(data, {.num_workers = 4, .worker = 0, .span = 2}),
            (IdBatches{{0, 1, 2, 3, 4, 5}, {11, 12, 13, 14}}));
  EXPECT_EQ(Collect(data, {.num_workers = 4, .worker = 2, .span = 2}),
            (IdBatches{{6, 7, 8, 9, 10}, {15, 16}}));
  for (const int span : {0, 3}) {
    EXPECT_THAT(IterateStatus(data, {.num_workers = 4, .worker = 2, .span = span}).message(),
                HasSubstr("a span of " + std::to_string(span)));
  }
}

TEST(Shard, OffGivesEverythingToEveryone) {
  const Dataset data = Ids(6).Batch(4);
  for (int worker = 0; worker < 2; ++worker) {
    EXPECT_EQ(Collect(data, {.num_workers = 2, .worker = worker, .policy = ShardPolicy::kOff}),
              (IdBatches{{0, 1, 2, 3}, {4, 5}}));
  }
}

// Property: for any number of workers the global batches are those of one worker, so the union is
// the data set, once, and every worker has as many batches.
TEST(Shard, UnionOverWorkersIsTheDataSetForAnyWorld) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 60; ++trial) {
    const std::int64_t size = static_cast<int>(random() % 200);
    const std::int64_t batch = 1 + static_cast<int>(random() % 40);
    Dataset data = Ids(size);
    if (trial % 3 != 0) {
      data = data.Shuffle(random());
    }
    data = data.Batch(batch);
    const IterateOptions options{.epoch = trial % 4};
    const IdBatches alone = Collect(data, options);
    std::vector<std::int64_t> all = Flatten(alone);
    std::sort(all.begin(), all.end());
    ASSERT_EQ(all, Flatten(Collect(Ids(size).Batch(1000))));
    ASSERT_EQ(static_cast<std::int64_t>(alone.size()), data.batches_per_epoch());
    for (int workers = 1; workers <= 9; ++workers) {
      ASSERT_EQ(CollectWorld(data, workers, options), alone)
          << size << " examples, batch " << batch << ", " << workers << " workers";
    }
  }
}

TEST(Shard, ResumingAtAnyBatchEqualsNeverHavingStopped) {
  const Dataset data = Ids(47).Shuffle(3).Batch(10);
  for (const ShardPolicy policy : {ShardPolicy::kAuto, ShardPolicy::kOff}) {
    for (int workers = 1; workers <= 3; ++workers) {
      for (int worker = 0; worker < workers; ++worker) {
        IterateOptions options{
            .num_workers = workers, .worker = worker, .epoch = 2, .policy = policy};
        const IdBatches whole = Collect(data, options);
        ASSERT_EQ(whole.size(), 5U);
        for (std::size_t k = 0; k <= whole.size(); ++k) {
          options.first_batch = static_cast<std::int64_t>(k);
          EXPECT_EQ(Collect(data, options),
                    IdBatches(whole.begin() + static_cast<std::ptrdiff_t>(k), whole.end()));
        }
      }
    }
  }
}

// A million examples: at random places each number of workers gives the stream that was never
// interrupted, one of them the whole rest of it and the others what comes next.
TEST(Shard, AMillionShuffledExamplesResumeAtRandomPlaces) {
  constexpr std::int64_t kSize = 1'000'000;
  constexpr std::int64_t kCompared = 20'000;
  const Dataset data = Ids(kSize).Shuffle(11).Batch(256);
  const std::vector<std::int64_t> whole = Flatten(Collect(data, {.epoch = 2}));
  ASSERT_EQ(whole.size(), std::size_t{kSize});
  std::vector<bool> seen(kSize, false);
  for (const std::int64_t id : whole) {
    ASSERT_FALSE(seen[static_cast<std::size_t>(id)]) << id;
    seen[static_cast<std::size_t>(id)] = true;
  }
  std::mt19937_64 random(3);
  constexpr std::array kWorkers = {1, 2, 3, 5};
  for (int place = 0; place < 20; ++place) {
    const auto batch = static_cast<std::int64_t>(
        random() % static_cast<std::uint64_t>(data.batches_per_epoch() + 1));
    for (const int workers : kWorkers) {
      const std::string saved =
          data.PositionAt({.num_workers = workers, .epoch = 2}, batch).ToString();
      IterateOptions rest =
          OrThrow(data.ResumeAt(OrThrow(DataPosition::Parse(saved)), {.num_workers = workers}));
      const bool whole_rest = workers == kWorkers[static_cast<std::size_t>(place) % 4];
      rest.end = whole_rest ? kSize : std::min(kSize, rest.begin + kCompared);
      const std::vector<std::int64_t> resumed = Flatten(CollectWorld(data, workers, rest));
      ASSERT_EQ(rest.begin, std::min(batch * 256, kSize));
      ASSERT_TRUE(std::equal(resumed.begin(), resumed.end(), whole.begin() + rest.begin,
                             whole.begin() + rest.end))
          << batch << " " << workers;
    }
  }
}

TEST(Shard, ShuffleIsAPermutationOfItsOwnInEachEpoch) {
  const Dataset data = Ids(1000).Shuffle(5).Batch(1000);
  const auto first = Flatten(Collect(data, {.epoch = 0}));
  const auto second = Flatten(Collect(data, {.epoch = 1}));
  const auto identity = Flatten(Collect(Ids(1000).Batch(1000)));
  EXPECT_NE(first, identity);
  EXPECT_NE(first, second);
  EXPECT_EQ(first, Flatten(Collect(data, {.epoch = 0})));
  EXPECT_NE(first, Flatten(Collect(Ids(1000).Shuffle(6).Batch(1000))));
  EXPECT_TRUE(std::is_permutation(first.begin(), first.end(), identity.begin()));
  EXPECT_TRUE(std::is_permutation(second.begin(), second.end(), identity.begin()));
}

TEST(Shard, WithoutReshuffleEveryEpochIsTheSame) {
  const Dataset data = Ids(100).Shuffle(5, /*reshuffle=*/false).Batch(100);
  EXPECT_EQ(Collect(data, {.epoch = 0}), Collect(data, {.epoch = 9}));
  EXPECT_NE(Collect(data), Collect(Ids(100).Batch(100)));
}

TEST(Shard, TakeBeforeShuffleCutsTheSourceAndAfterItTheOrder) {
  auto before = Flatten(Collect(Ids(100).Take(10).Shuffle(1).Batch(4)));
  std::sort(before.begin(), before.end());
  EXPECT_EQ(before, Flatten(Collect(Ids(10).Batch(4))));

  const auto order = Flatten(Collect(Ids(100).Shuffle(1).Batch(4)));
  const auto after = Flatten(Collect(Ids(100).Shuffle(1).Take(10).Batch(4)));
  EXPECT_EQ(after, std::vector<std::int64_t>(order.begin(), order.begin() + 10));

  EXPECT_EQ(Ids(3).Take(10).size(), 3);
  EXPECT_EQ(Ids(3).Take(0).Batch(2).batches_per_epoch(), 0);
  EXPECT_EQ(Collect(Ids(3).Take(0).Batch(2)), IdBatches{});
}

TEST(Shard, DropRemainderLeavesOutTheShortBatch) {
  EXPECT_EQ(Collect(Ids(7).Batch(3, /*drop_remainder=*/true)), (IdBatches{{0, 1, 2}, {3, 4, 5}}));
  EXPECT_EQ(Ids(7).Batch(3, true).batches_per_epoch(), 2);
  EXPECT_EQ(Ids(7).Batch(3).batches_per_epoch(), 3);
  EXPECT_EQ(Collect(Ids(2).Batch(3, true)), IdBatches{});
  EXPECT_EQ(CollectWorld(Ids(11).Batch(4, true), 3), (IdBatches{{0, 1, 2, 3}, {4, 5, 6, 7}}));
}

TEST(Shard, ABatchSmallerThanTheWorldLeavesSomeWithoutExamples) {
  const Dataset data = Ids(5).Batch(2);
  EXPECT_EQ(Collect(data, {.num_workers = 4, .worker = 1}), (IdBatches{{1}, {3}, {}}));
  EXPECT_EQ(Collect(data, {.num_workers = 4, .worker = 3}), (IdBatches{{}, {}, {}}));
}

TEST(Shard, SplitsOfTheEpochTogetherAreTheEpoch) {
  const Dataset data = Ids(23).Shuffle(9).Batch(4);
  const auto whole = Flatten(Collect(data, {.epoch = 1}));
  std::vector<std::int64_t> together;
  for (std::int64_t begin = 0; begin < 23; begin += 8) {
    const IdBatches split =
        Collect(data, {.epoch = 1, .begin = begin, .end = std::min<std::int64_t>(begin + 8, 23)});
    EXPECT_EQ(split.size(), 2U);
    const auto ids = Flatten(split);
    together.insert(together.end(), ids.begin(), ids.end());
  }
  EXPECT_EQ(together, whole);
  // A split that no batch divides keeps its tail; what is dropped is the epoch's remainder.
  EXPECT_EQ(Collect(Ids(10).Batch(4, true), {.begin = 0, .end = 6}),
            (IdBatches{{0, 1, 2, 3}, {4, 5}}));
  EXPECT_EQ(Collect(Ids(10).Batch(4, true), {.begin = 6}), (IdBatches{{6, 7}}));
  EXPECT_EQ(Collect(data, {.begin = 23, .end = 23}), IdBatches{});
}

TEST(Shard, ByFileEveryWorkerHasAsManyBatchesAndTheUnionIsTheDataSet) {
  std::mt19937 random(11);
  for (int trial = 0; trial < 40; ++trial) {
    std::vector<std::int64_t> sizes(9 + random() % 4);
    for (std::int64_t& size : sizes) {
      size = static_cast<int>(random() % 12);  // empty files too
    }
    const auto source = std::make_shared<FilesSource>(sizes);
    const Dataset data = Dataset(source).Shuffle(3).Batch(9 + static_cast<int>(random() % 9));
    for (int workers = 1; workers <= 9; ++workers) {
      std::vector<std::int64_t> all =
          Flatten(CollectWorld(data, workers, {.policy = ShardPolicy::kFile}));
      std::sort(all.begin(), all.end());
      ASSERT_EQ(all, Flatten(Collect(Ids(source->size()).Batch(1000))));
      const std::int64_t full =
          OrThrow(data.CountBatches({.num_workers = workers, .policy = ShardPolicy::kFile}));
      ASSERT_EQ(static_cast<std::int64_t>(
                    CollectWorld(data, workers, {.policy = ShardPolicy::kFile}).size()),
                full);
    }
  }
}

TEST(Shard, ByFileShufflesInsideTheWorkersOwnFiles) {
  const Dataset data =
      Dataset(std::make_shared<FilesSource>(std::vector<std::int64_t>{50, 50, 50, 50}))
          .Shuffle(3)
          .Batch(20);
  std::set<std::vector<std::int64_t>> shares;
  for (std::int64_t epoch = 0; epoch < 8; ++epoch) {
    const IterateOptions options{
        .num_workers = 2, .worker = 1, .epoch = epoch, .policy = ShardPolicy::kFile};
    auto mine = Flatten(Collect(data, options));
    EXPECT_EQ(mine, Flatten(Collect(data, options)));
    EXPECT_FALSE(std::is_sorted(mine.begin(), mine.end()));
    std::sort(mine.begin(), mine.end());
    ASSERT_EQ(mine.size(), 100U);
    for (const std::size_t file : {std::size_t{0}, std::size_t{1}}) {
      EXPECT_EQ(mine[file * 50] % 50, 0) << "whole files";
      EXPECT_EQ(mine[file * 50 + 49], mine[file * 50] + 49);
    }
    shares.insert(mine);
    auto all = Flatten(CollectWorld(data, 2, options));
    std::sort(all.begin(), all.end());
    EXPECT_EQ(all, Flatten(Collect(Ids(200).Batch(200))));
  }
  EXPECT_GE(shares.size(), 2U) << "the shares are others in other epochs";
}

TEST(Shard, ByFileABufferShufflesInsideTheWorkersOwnFiles) {
  const Dataset data = Dataset(std::make_shared<FilesSource>(std::vector<std::int64_t>{40, 40, 40}))
                           .ShuffleBuffer(3, 10)
                           .Batch(20);
  std::vector<std::int64_t> all;
  for (int worker = 0; worker < 2; ++worker) {
    auto mine = Flatten(Collect(
        data, {.num_workers = 2, .worker = worker, .epoch = 1, .policy = ShardPolicy::kFile}));
    EXPECT_FALSE(std::is_sorted(mine.begin(), mine.end()));
    all.insert(all.end(), mine.begin(), mine.end());
  }
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, Flatten(Collect(Ids(120).Batch(120))));
}

TEST(Shard, FilesAreSharedOutByBytesOrElseByExamples) {
  const auto loads = [](const std::vector<std::int64_t>& examples,
                        const std::vector<std::int64_t>& bytes) {
    const Dataset data = Dataset(std::make_shared<FilesSource>(examples, bytes)).Batch(20);
    const IterateOptions options{.policy = ShardPolicy::kFile};
    std::vector<std::int64_t> sizes;
    for (int worker = 0; worker < 2; ++worker) {
      IterateOptions mine = options;
      mine.num_workers = 2;
      mine.worker = worker;
      sizes.push_back(static_cast<std::int64_t>(Flatten(Collect(data, mine)).size()));
      mine.epoch = 3;
      EXPECT_EQ(static_cast<std::int64_t>(Flatten(Collect(data, mine)).size()), sizes.back())
          << "nothing is drawn where nothing is shuffled";
    }
    return sizes;
  };
  EXPECT_THAT(loads({8, 1, 1, 1, 1, 4}, {}), ElementsAre(8, 8));
  // Files 0 to 3, and 4 and 5: 101 bytes and 100.
  EXPECT_THAT(loads({1, 1, 1, 1, 6, 6}, {60, 1, 20, 20, 50, 50}), ElementsAre(4, 12));
  EXPECT_THAT(loads({4, 4, 4, 4}, {10, 0, 10, 10}), ElementsAre(8, 8)) << "bytes are not known";
}

TEST(ShuffleBuffer, IsTheOrderOfABuffer) {
  constexpr std::int64_t kSize = 9'000;
  constexpr std::int64_t kBuffer = 700;
  constexpr std::int64_t kEpoch = 3;
  const auto order =
      Flatten(Collect(Ids(kSize).ShuffleBuffer(5, kBuffer).Batch(100), {.epoch = kEpoch}));
  std::vector<std::int64_t> slots(kBuffer);
  std::iota(slots.begin(), slots.end(), 0);
  const Philox draws(5, "data/buffer");
  std::vector<std::int64_t> expected;
  for (std::int64_t step = 0; step < kSize - kBuffer; ++step) {
    auto& slot = slots[draws.Below(kBuffer, static_cast<std::uint64_t>(step), kEpoch)];
    expected.push_back(std::exchange(slot, kBuffer + step));
  }
  ASSERT_EQ(order.size(), std::size_t{kSize});
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), order.begin()));
  EXPECT_TRUE(std::is_permutation(slots.begin(), slots.end(), order.begin() + (kSize - kBuffer)));
  EXPECT_FALSE(std::equal(slots.begin(), slots.end(), order.begin() + (kSize - kBuffer)));
}

TEST(ShuffleBuffer, IsOfSeedAndEpochAndResumesAnywhere) {
  const Dataset data = Ids(12'000).ShuffleBuffer(5, 1'000).Batch(64);
  const auto whole = Flatten(Collect(data, {.epoch = 1}));
  EXPECT_NE(whole, Flatten(Collect(data, {.epoch = 0})));
  EXPECT_NE(whole, Flatten(Collect(Ids(12'000).ShuffleBuffer(6, 1'000).Batch(64), {.epoch = 1})));
  const Dataset same = Ids(300).ShuffleBuffer(5, 20, /*reshuffle=*/false).Batch(64);
  EXPECT_EQ(Collect(same, {.epoch = 0}), Collect(same, {.epoch = 7}));
  for (const int workers : {1, 3}) {
    EXPECT_EQ(Flatten(CollectWorld(data.Prefetch(4, 3), workers, {.epoch = 1})), whole);
    for (const std::int64_t batch : {1, 63, 64, 127, 171, 172, 187}) {
      const auto rest = Flatten(CollectWorld(data, workers, {.epoch = 1, .first_batch = batch}));
      EXPECT_TRUE(std::equal(rest.begin(), rest.end(), whole.begin() + batch * 64, whole.end()))
          << batch;
    }
  }
  // Each pass of a Repeat has an order of its own.
  const auto twice = Flatten(Collect(Ids(5'000).ShuffleBuffer(5, 10).Repeat(2).Batch(64)));
  EXPECT_FALSE(std::equal(twice.begin(), twice.begin() + 5'000, twice.begin() + 5'000));
}

TEST(ShuffleBuffer, OfOneIsTheOrderAndOfAllIsShuffle) {
  const auto order = [](const Dataset& data) {
    return Flatten(Collect(data.Batch(7), {.epoch = 2}));
  };
  EXPECT_EQ(order(Ids(100).ShuffleBuffer(5, 1)), order(Ids(100)));
  EXPECT_EQ(order(Ids(100).ShuffleBuffer(5, 100)), order(Ids(100).Shuffle(5)));
  EXPECT_EQ(order(Ids(100).ShuffleBuffer(5, 1'000'000'000)), order(Ids(100).Shuffle(5)));
  EXPECT_EQ(order(Ids(0).ShuffleBuffer(5, 10)), std::vector<std::int64_t>());
  EXPECT_THROW(Ids(3).ShuffleBuffer(5, 0), ContractError);
  EXPECT_THROW(Ids(3).ShuffleBuffer(5, -1), ContractError);
  EXPECT_NE(Ids(100).ShuffleBuffer(5, 10).Fingerprint(),
            Ids(100).ShuffleBuffer(5, 11).Fingerprint());
}

// The examples of a padded batch that count.
std::vector<std::int64_t> Weighed(const Batch& batch) {
  const auto weights = batch["weight"].data<float>();
  const auto ids = IdsOf(batch);
  EXPECT_EQ(weights.size(), ids.size());
  std::vector<std::int64_t> counted;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (weights[i] == 1) {
      counted.push_back(ids[i]);
    } else {
      EXPECT_EQ(weights[i], 0);
    }
  }
  return counted;
}

TEST(Remainder, PadsWithExamplesThatWeighNothing) {
  const Dataset data = Ids(10).Batch(4, Remainder::kPad);
  EXPECT_EQ(Collect(data), (IdBatches{{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 9, 9}}));
  EXPECT_EQ(data.batches_per_epoch(), 3);
  EXPECT_EQ(data.SizeOfBatch(2), 4);
  EXPECT_EQ(data.SizeOfBatch(3), 0);
  for (int workers = 1; workers <= 5; ++workers) {
    EXPECT_EQ(CollectWorld(data, workers), Collect(data));
    std::vector<std::int64_t> counted;
    for (int worker = 0; worker < workers; ++worker) {
      auto batches = OrThrow(data.Prefetch(2).Iterate({.num_workers = workers, .worker = worker}));
      while (const auto batch = OrThrow(batches->Next())) {
        EXPECT_EQ(batch->size, PartBegin(4, workers, worker + 1) - PartBegin(4, workers, worker));
        const auto part = Weighed(*batch);
        counted.insert(counted.end(), part.begin(), part.end());
      }
    }
    std::sort(counted.begin(), counted.end());
    EXPECT_EQ(counted, Flatten(Collect(Ids(10).Batch(10)))) << "every example weighs 1, once";
  }
  // The end of an epoch's last split; other splits keep their size.
  EXPECT_EQ(Collect(data, {.begin = 6}), (IdBatches{{6, 7, 8, 9}}));
  EXPECT_EQ(Collect(data, {.begin = 7}), (IdBatches{{7, 8, 9, 9}}));
  EXPECT_EQ(Collect(data, {.begin = 0, .end = 6}), (IdBatches{{0, 1, 2, 3}, {4, 5}}));
  EXPECT_EQ(data.PositionAt({}, 3).example, 10);
  EXPECT_EQ(Collect(Ids(0).Batch(4, Remainder::kPad)), IdBatches{});
  const Dataset twice =
      OrThrow(FromTensors({{"weight", Tensor(DType::kInt64, {3})}})).Batch(2, Remainder::kPad);
  EXPECT_THAT(OrThrow(twice.Iterate())->Next().status().message(),
              AllOf(HasSubstr("'weight'"), HasSubstr("another name")));
  EXPECT_THROW(Ids(3).Batch(2, Remainder::kPad, ""), ContractError);
}

TEST(Remainder, WrapsToTheFirstExamplesOfTheOrder) {
  EXPECT_EQ(Collect(Ids(10).Batch(4, Remainder::kWrap)),
            (IdBatches{{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 0, 1}}));
  EXPECT_EQ(Collect(Ids(2).Batch(5, Remainder::kWrap)), (IdBatches{{0, 1, 0, 1, 0}}));
  const Dataset shuffled = Ids(10).Shuffle(3).Batch(4, Remainder::kWrap);
  const auto whole = Flatten(Collect(shuffled, {.epoch = 2}));
  EXPECT_EQ(whole[10], whole[0]);
  EXPECT_EQ(whole[11], whole[1]);
  EXPECT_EQ(Flatten(CollectWorld(shuffled, 3, {.epoch = 2})), whole);
  EXPECT_EQ(Collect(Ids(8).Batch(4, Remainder::kWrap)), Collect(Ids(8).Batch(4)));
}

TEST(Remainder, IsPartOfTheFingerprintAndDropIsTheFlag) {
  const Dataset data = Ids(10);
  EXPECT_EQ(data.Batch(4).Fingerprint(), data.Batch(4, Remainder::kShort).Fingerprint());
  EXPECT_EQ(data.Batch(4, true).Fingerprint(), data.Batch(4, Remainder::kDrop).Fingerprint());
  std::set<std::uint64_t> prints;
  for (const Remainder remainder :
       {Remainder::kShort, Remainder::kDrop, Remainder::kPad, Remainder::kWrap}) {
    prints.insert(data.Batch(4, remainder).Fingerprint());
  }
  prints.insert(data.Batch(4, Remainder::kPad, "w").Fingerprint());
  EXPECT_EQ(prints.size(), 5U);
}

TEST(Remainder, ByFileFillsEveryWorkersBatches) {
  const auto files = std::make_shared<FilesSource>(std::vector<std::int64_t>{7, 2});
  const IterateOptions by_file{.policy = ShardPolicy::kFile};
  EXPECT_EQ(CollectWorld(Dataset(files).Batch(4, Remainder::kPad), 2, by_file),
            (IdBatches{{0, 1, 7, 8}, {2, 3, 8, 8}, {4, 5, 8, 8}, {6, 6, 8, 8}}));
  EXPECT_EQ(CollectWorld(Dataset(files).Batch(4, Remainder::kWrap), 2, by_file),
            (IdBatches{{0, 1, 7, 8}, {2, 3, 7, 8}, {4, 5, 7, 8}, {6, 0, 7, 8}}));
  const auto empty = std::make_shared<FilesSource>(std::vector<std::int64_t>{7, 0});
  for (int worker = 0; worker < 2; ++worker) {
    EXPECT_THAT(IterateStatus(Dataset(empty).Batch(4, Remainder::kPad),
                              {.num_workers = 2, .worker = worker, .policy = ShardPolicy::kFile})
                    .message(),
                HasSubstr("the share of worker 1 has no examples"));
  }
  const auto none = std::make_shared<FilesSource>(std::vector<std::int64_t>{0, 0});
  EXPECT_EQ(CollectWorld(Dataset(none).Batch(4, Remainder::kPad), 2, by_file), IdBatches{});
}

TEST(Shard, ByFileDropRemainderKeepsOnlyBatchesThatAreWholeEverywhere) {
  const Dataset data =
      Dataset(std::make_shared<FilesSource>(std::vector<std::int64_t>{7, 5})).Batch(4, true);
  EXPECT_EQ(CollectWorld(data, 2, {.policy = ShardPolicy::kFile}),
            (IdBatches{{0, 1, 7, 8}, {2, 3, 9, 10}}));
}

TEST(Shard, FewerFilesThanWorkersIsAnErrorOnlyWhenFilesWereAskedFor) {
  const Dataset data =
      Dataset(std::make_shared<FilesSource>(std::vector<std::int64_t>{5, 5})).Batch(6);
  const Status status =
      IterateStatus(data, {.num_workers = 3, .worker = 0, .policy = ShardPolicy::kFile});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("2 files for 3 workers"), HasSubstr("kData"), HasSubstr("kOff"),
                    HasSubstr("split the data"), HasSubstr("fewer workers")));
  EXPECT_EQ(CollectWorld(data, 3, {.policy = ShardPolicy::kAuto}).size(), 2U);
  // Data that is in no file at all.
  EXPECT_THAT(
      IterateStatus(Ids(5).Batch(4), {.num_workers = 2, .policy = ShardPolicy::kFile}).message(),
      HasSubstr("0 files for 2 workers"));
  // One worker needs no division.
  EXPECT_EQ(Collect(Ids(3).Batch(4), {.policy = ShardPolicy::kFile}), (IdBatches{{0, 1, 2}}));
}

TEST(Shard, RefusesWhatCannotBeMeant) {
  const Dataset data = Ids(10).Batch(4);
  const auto message = [&](const IterateOptions& options) {
    const Status status = IterateStatus(data, options);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  EXPECT_THAT(message({.num_workers = 2, .worker = 2}), HasSubstr("worker 2 of 2"));
  EXPECT_THAT(message({.num_workers = 0}), HasSubstr("worker 0 of 0"));
  EXPECT_THAT(message({.num_workers = 2, .worker = -1}), HasSubstr("worker -1 of 2"));
  EXPECT_THAT(message({.epoch = -1}), HasSubstr("epoch -1"));
  EXPECT_THAT(message({.first_batch = 4}), HasSubstr("first_batch 4 of 3"));
  EXPECT_THAT(message({.first_batch = -1}), HasSubstr("first_batch -1 of 3"));
  EXPECT_THAT(message({.begin = 4, .end = 11}), HasSubstr("[4, 11) of an epoch of 10"));
  EXPECT_THAT(message({.begin = 4, .end = 3}), HasSubstr("[4, 3)"));
  EXPECT_THAT(message({.begin = -2}), HasSubstr("[-2, 10)"));
  EXPECT_THAT(IterateStatus(Ids(10), {}).message(), HasSubstr("call Batch"));

  const auto files = std::make_shared<FilesSource>(std::vector<std::int64_t>{5, 5, 5});
  const IterateOptions by_file{.num_workers = 3, .policy = ShardPolicy::kFile};
  EXPECT_THAT(IterateStatus(Dataset(files).Batch(2), by_file).message(),
              HasSubstr("a global batch of 2 leaves some of 3 workers"));
  EXPECT_THAT(IterateStatus(Dataset(files).Shuffle(1).Take(3).Batch(6), by_file).message(),
              HasSubstr("Take after Shuffle"));
  EXPECT_THAT(IterateStatus(Dataset(files).Batch(6),
                            {.num_workers = 3, .policy = ShardPolicy::kFile, .begin = 3})
                  .message(),
              HasSubstr("range"));
  EXPECT_EQ(
      Flatten(CollectWorld(Dataset(files).Take(7).Batch(6), 3, {.policy = ShardPolicy::kFile}))
          .size(),
      7U);
}

}  // namespace
}  // namespace cohort::data
