// Data sets put together: order, resuming, what is refused. Orders are checked against plain loops.

#include <cohort/data/combine.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "collect.h"
#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Order = std::vector<std::int64_t>;

// Ids [begin, end).
Dataset IdsFrom(std::int64_t begin, std::int64_t end) {
  return Ids(end - begin).Map([begin](Example& example) {
    example.at("id").data<std::int64_t>()[0] += begin;
    return OkStatus();
  });
}

Order OrderOf(const Dataset& data, std::int64_t epoch = 0) {
  return Flatten(Collect(data.Batch(7), {.epoch = epoch}));
}

Order Sorted(Order order) {
  std::sort(order.begin(), order.end());
  return order;
}

Order Count(std::int64_t begin, std::int64_t end) {
  Order order(static_cast<std::size_t>(end - begin));
  std::iota(order.begin(), order.end(), begin);
  return order;
}

TEST(Order, SkipShardAndRepeatAreThoseOfTfData) {
  EXPECT_THAT(OrderOf(Ids(5).Skip(3)), ElementsAre(3, 4));
  EXPECT_THAT(OrderOf(Ids(5).Skip(6)), IsEmpty());
  EXPECT_THAT(OrderOf(Ids(10).Shard(3, 0)), ElementsAre(0, 3, 6, 9));
  EXPECT_THAT(OrderOf(Ids(10).Shard(3, 1)), ElementsAre(1, 4, 7));
  EXPECT_THAT(OrderOf(Ids(10).Shard(3, 2)), ElementsAre(2, 5, 8));
  EXPECT_THAT(OrderOf(Ids(2).Shard(3, 2)), IsEmpty());
  EXPECT_THAT(OrderOf(Ids(2).Repeat(3)), ElementsAre(0, 1, 0, 1, 0, 1));
  EXPECT_THAT(OrderOf(Ids(3).Repeat(0)), IsEmpty());
  EXPECT_THAT(OrderOf(Ids(0).Repeat(5)), IsEmpty());
  EXPECT_THAT(OrderOf(Ids(6).Skip(1).Take(4).Shard(2, 1).Repeat(2)), ElementsAre(2, 4, 2, 4));
  EXPECT_THROW(static_cast<void>(Ids(3).Repeat(std::int64_t{1} << 62)), ContractError);
  EXPECT_THROW(static_cast<void>(Ids(3).Shard(2, 2)), ContractError);
}

TEST(Order, RepeatShufflesAnewEachTimeAndKeepsPassesApart) {
  const Dataset data = Ids(40).Shuffle(3).Repeat(4);
  std::set<Order> passes;
  for (const std::int64_t epoch : {0, 1}) {
    const Order order = OrderOf(data, epoch);
    for (auto it = order.begin(); it != order.end(); it += 40) {
      const Order pass(it, it + 40);
      EXPECT_EQ(Sorted(pass), Count(0, 40));
      passes.insert(pass);
    }
  }
  EXPECT_EQ(passes.size(), 8U) << "no pass is like another, in no epoch";
  const Order same = OrderOf(Ids(40).Shuffle(3, /*reshuffle=*/false).Repeat(2));
  EXPECT_EQ(Order(same.begin(), same.begin() + 40), Order(same.begin() + 40, same.end()));
}

TEST(Order, ShuffleBlocksIsAPermutationThatStaysCloseTogether) {
  for (const std::int64_t size : {0, 1, 7, 8, 63, 64, 65, 100, 1000}) {
    for (const std::int64_t block : {1, 8, 100}) {
      for (const std::int64_t mixed : {1, 3, 1000}) {
        const Dataset data = Ids(size).ShuffleBlocks(5, block, mixed);
        for (const std::int64_t epoch : {0, 1, 2}) {
          ASSERT_EQ(Sorted(OrderOf(data, epoch)), Count(0, size))
              << size << " " << block << " " << mixed;
        }
      }
    }
  }
  const Order order = OrderOf(Ids(1000).ShuffleBlocks(5, 16, 4));
  EXPECT_NE(order, OrderOf(Ids(1000).ShuffleBlocks(5, 16, 4), 1));
  EXPECT_EQ(OrderOf(Ids(1000).ShuffleBlocks(5, 16, 4, false), 1),
            OrderOf(Ids(1000).ShuffleBlocks(5, 16, 4, false)));
  // A group of four blocks is 64 examples, or 56 with the short one, of four blocks.
  std::set<std::int64_t> blocks;
  for (std::size_t i = 0; i < 56; ++i) {
    blocks.insert(order[i] / 16);
  }
  EXPECT_LE(blocks.size(), 4U);
  // Each of the 63 blocks begins somewhere else than it lay, but for a few.
  int unmoved = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    unmoved += order[i] == static_cast<std::int64_t>(i);
  }
  EXPECT_LT(unmoved, 100);
}

TEST(Concatenate, PartsOneBehindAnother) {
  const Dataset data = OrThrow(Concatenate({IdsFrom(10, 13), Ids(0), Ids(2).Repeat(2)}));
  EXPECT_THAT(OrderOf(data), ElementsAre(10, 11, 12, 0, 1, 0, 1));
  EXPECT_EQ(data.source().Where(3), "data set 2, " + Ids(2).source().Where(0));
  const Dataset shuffled = OrThrow(Concatenate({Ids(30).Shuffle(1), IdsFrom(30, 40)}));
  EXPECT_EQ(Sorted(OrderOf(shuffled)), Count(0, 40));
  EXPECT_NE(OrderOf(shuffled, 0), OrderOf(shuffled, 1)) << "a shuffled part is shuffled anew";
  const Order order = OrderOf(shuffled);
  EXPECT_EQ(Order(order.begin() + 30, order.end()), Count(30, 40));
}

TEST(Concatenate, FilesAreThoseOfItsParts) {
  const Dataset one(std::make_shared<FilesSource>(std::vector<std::int64_t>{3, 2}));
  const Dataset all = OrThrow(Concatenate({one, one}));
  const auto files = all.source().files();
  ASSERT_EQ(files.size(), 4U);
  EXPECT_EQ(files[3].begin, 8);
  EXPECT_EQ(files[3].end, 10);
  EXPECT_EQ(CollectWorld(all.Batch(4), 4, {.policy = ShardPolicy::kFile}).size(), 3U);
  EXPECT_TRUE(OrThrow(Concatenate({one, Ids(3)})).source().files().empty());
}

TEST(Concatenate, RefusesFeaturesThatDiffer) {
  const Dataset other = OrThrow(FromTensors({{"id", Tensor(DType::kInt64, {3, 2})}}));
  EXPECT_THAT(
      Concatenate({Ids(3), other}).status().message(),
      AllOf(HasSubstr("data set 1 has id int64[2]"), HasSubstr("data set 0 has id int64[]")));
  EXPECT_THAT(Concatenate({}).status().message(), HasSubstr("no data sets"));
  EXPECT_THAT(Concatenate({Ids(3), Ids(3).Batch(2)}).status().message(),
              AllOf(HasSubstr("Concatenate, data set 1"), HasSubstr("with batches")));
  // Features in another order are the same features.
  const Tensor x = Tensor::Of<float>({1}, std::vector<float>{1});
  const Tensor y = Tensor::Of<float>({1}, std::vector<float>{2});
  const auto swapped = [&](Example& example) {
    std::swap(example.at("x"), example.at("y"));
    return OkStatus();
  };
  const Dataset both = OrThrow(FromTensors({{"x", x}, {"y", y}}));
  const Dataset all = OrThrow(Concatenate({both, both.Map(swapped)}));
  EXPECT_EQ(OrThrow(all.source().Read(1)).at("x").data<float>()[0], 2);
}

TEST(Zip, ExamplesOfAllAsOne) {
  const auto renamed = [](const Dataset& data) {
    return data.Map([](Example& example) {
      example["other"] = example.at("id");
      example.erase("id");
      return OkStatus();
    });
  };
  const Dataset data = OrThrow(Zip({Ids(20).Shuffle(1), renamed(Ids(20).Shuffle(2))}));
  auto batches = OrThrow(data.Batch(20).Iterate({.epoch = 3}));
  const auto batch = OrThrow(batches->Next());
  EXPECT_EQ(IdsOf(*batch), OrderOf(Ids(20).Shuffle(1), 3));
  const auto other = (*batch)["other"].data<std::int64_t>();
  EXPECT_EQ(Order(other.begin(), other.end()), OrderOf(Ids(20).Shuffle(2), 3));
  EXPECT_THAT(Zip({Ids(3), renamed(Ids(4))}).status().message(),
              HasSubstr("data set 1 has 4 examples, data set 0 3 [Take"));
  EXPECT_THAT(Zip({Ids(3), Ids(3)}).status().message(),
              HasSubstr("feature 'id' is in data sets 0 and 1"));
}

// What tf.data's kernel does, in its own steps.
Order InterleavedBySteps(const std::vector<std::int64_t>& sizes, std::int64_t cycle,
                         std::int64_t block) {
  struct Open {
    std::int64_t first = 0;
    std::int64_t left = 0;
    bool is_open = false;
  };
  std::vector<Open> slots(static_cast<std::size_t>(cycle));
  Order order;
  std::size_t at = 0;
  std::size_t next = 0;
  std::int64_t in_block = 0;
  std::int64_t first = 0;
  std::int64_t num_open = 0;
  const auto advance = [&] {
    in_block = 0;
    at = (at + 1) % slots.size();
  };
  while (next < sizes.size() || num_open > 0) {
    Open& slot = slots[at];
    if (slot.is_open && slot.left > 0) {
      order.push_back(slot.first++);
      --slot.left;
      if (++in_block == block) {
        advance();
      }
    } else if (slot.is_open) {
      slot.is_open = false;
      --num_open;
      advance();
    } else if (next < sizes.size()) {
      slot = {first, sizes[next], true};
      first += sizes[next++];
      ++num_open;
    } else {
      advance();
    }
  }
  return order;
}

TEST(Interleave, OrderIsThatOfTfData) {
  // Its documentation's: range(1, 6), each 6 times, two open, blocks of four.
  std::vector<Dataset> parts;
  for (std::int64_t x = 1; x <= 5; ++x) {
    parts.push_back(IdsFrom(x, x + 1).Repeat(6));
  }
  EXPECT_THAT(OrderOf(OrThrow(Interleave(parts, {.cycle_length = 2, .block_length = 4}))),
              ElementsAre(1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 3, 3, 4, 4, 5,
                          5, 5, 5, 5, 5));
  // A part that ends with its block still takes the turn in which that is seen.
  EXPECT_THAT(OrderOf(OrThrow(Interleave({IdsFrom(0, 2), IdsFrom(10, 13), IdsFrom(20, 22)},
                                         {.cycle_length = 2, .block_length = 2}))),
              ElementsAre(0, 1, 10, 11, 12, 20, 21));
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::int64_t> sizes(random() % 9 + 1);
    parts.clear();
    std::int64_t begin = 0;
    for (std::int64_t& size : sizes) {
      size = static_cast<std::int64_t>(random() % 14);
      parts.push_back(IdsFrom(begin, begin + size));
      begin += size;
    }
    const std::int64_t cycle = random() % 11 + 1;
    const std::int64_t block = random() % 5 + 1;
    const Order order =
        OrderOf(OrThrow(Interleave(parts, {.cycle_length = cycle, .block_length = block})));
    ASSERT_EQ(order, InterleavedBySteps(sizes, cycle, block)) << round;
  }
}

TEST(Interleave, OneOpenPartIsConcatenate) {
  const std::vector<Dataset> parts = {Ids(30).Shuffle(1), Ids(0), IdsFrom(30, 40).Repeat(2)};
  const Dataset data = OrThrow(Interleave(parts, {.cycle_length = 1, .block_length = 7}));
  EXPECT_EQ(OrderOf(data, 2), OrderOf(OrThrow(Concatenate(parts)), 2));
  EXPECT_EQ(data.source().Where(3).substr(0, 11), "data set 0,");
  EXPECT_NE(data.Fingerprint(),
            OrThrow(Interleave(parts, {.cycle_length = 2, .block_length = 7})).Fingerprint());
}

TEST(Interleave, ResumesAnywhereWithAnyNumberOfWorkers) {
  const Dataset data = OrThrow(Interleave({Ids(23).Shuffle(4), IdsFrom(23, 60), IdsFrom(60, 71)},
                                          {.cycle_length = 2, .block_length = 3}));
  const Order whole = OrderOf(data, 1);
  ASSERT_EQ(Sorted(whole), Count(0, 71));
  for (std::int64_t done = 0; done <= 71; ++done) {
    const DataPosition place = data.Batch(1).PositionAt({.epoch = 1}, done);
    for (const int workers : {1, 3}) {
      const Dataset batched = data.Batch(5).Prefetch(2);
      const IterateOptions rest = OrThrow(batched.ResumeAt(
          OrThrow(DataPosition::Parse(place.ToString())), {.num_workers = workers}));
      ASSERT_EQ(Flatten(CollectWorld(batched, workers, rest)),
                Order(whole.begin() + done, whole.end()))
          << done;
    }
  }
}

TEST(Interleave, RefusesWhatMakesNoSense) {
  EXPECT_THAT(Interleave({Ids(3)}, {.cycle_length = 0}).status().message(),
              HasSubstr("Interleave: 0 open parts and blocks of 1"));
  EXPECT_THAT(Interleave({}).status().message(), HasSubstr("Interleave: no data sets"));
  const Dataset other = OrThrow(FromTensors({{"id", Tensor(DType::kInt64, {3, 2})}}));
  EXPECT_THAT(Interleave({Ids(3), other}).status().message(),
              HasSubstr("Interleave: data set 1 has id int64[2]"));
}

TEST(Mix, ProportionsAreExactInEveryBlock) {
  const Dataset data =
      OrThrow(Mix({Ids(1000), IdsFrom(1000, 1300)}, {.weights = {3, 1}, .seed = 4, .block = 40}));
  const Order order = OrderOf(data);
  ASSERT_EQ(order.size(), 30U * 40U) << "the second has 30 blocks of 10, the first 33 of 30";
  Order firsts;
  for (std::size_t block = 0; block < 30; ++block) {
    const Order part(order.begin() + static_cast<std::ptrdiff_t>(block * 40),
                     order.begin() + static_cast<std::ptrdiff_t>(block * 40 + 40));
    EXPECT_EQ(std::count_if(part.begin(), part.end(), [](auto id) { return id < 1000; }), 30);
    firsts.push_back(part[0] < 1000);
  }
  EXPECT_EQ(Sorted(order).back(), 1299);
  EXPECT_EQ(std::set(order.begin(), order.end()).size(), order.size()) << "nothing twice";
  EXPECT_GT(std::count(firsts.begin(), firsts.end(), 0), 0) << "no fixed places in a block";
  EXPECT_NE(OrderOf(data, 1), order);
  EXPECT_EQ(Sorted(OrderOf(data, 1)), Sorted(order));
}

TEST(Mix, WithoutWeightsEveryExampleOnce) {
  for (const std::int64_t size : {0, 1, 5, 33, 500}) {
    const Dataset data =
        OrThrow(Mix({Ids(100), IdsFrom(100, 100 + size)}, {.seed = 1, .block = 16}));
    EXPECT_EQ(Sorted(OrderOf(data)), Count(0, 100 + size)) << size;
  }
}

TEST(Mix, RefusesWhatMakesNoSense) {
  EXPECT_THAT(Mix({Ids(3), Ids(3)}, {.weights = {1}}).status().message(),
              HasSubstr("1 weights for 2 data sets"));
  EXPECT_THAT(Mix({Ids(3), Ids(3)}, {.weights = {1, 0}}).status().message(),
              HasSubstr("of data set 1 is not a number above 0"));
  EXPECT_THAT(Mix({Ids(3), Ids(3)}, {.weights = {1e6, 1}}).status().message(),
              HasSubstr("[MixOptions.block]"));
  for (const double weight : {std::nan(""), -1.0, 1e301, std::numeric_limits<double>::infinity()}) {
    EXPECT_THAT(Mix({Ids(3), Ids(3)}, {.weights = {1, weight}}).status().message(),
                HasSubstr("of data set 1 is not a number above 0"))
        << weight;
  }
}

TEST(Filter, KeepsWhatHoldsInOrder) {
  const auto third = [](const Example& example) -> Result<bool> {
    return example.at("id").data<std::int64_t>()[0] % 3 == 0;
  };
  for (const int threads : {1, 3}) {
    const Dataset data = OrThrow(Filter(Ids(1000).Skip(1), third, threads));
    EXPECT_EQ(data.size(), 333);
    EXPECT_EQ(OrThrow(data.source().Read(0)).at("id").data<std::int64_t>()[0], 3);
    EXPECT_EQ(data.source().Where(0), Ids(1000).source().Where(3));
  }
  const Dataset files(std::make_shared<FilesSource>(std::vector<std::int64_t>{4, 1, 5}));
  const auto ranges = OrThrow(Filter(files, third)).source().files();
  ASSERT_EQ(ranges.size(), 3U);
  EXPECT_EQ(ranges[0].end, 2) << "0 and 3";
  EXPECT_EQ(ranges[1].end, 2);
  EXPECT_EQ(ranges[2].end, 4) << "6 and 9";

  const auto fails = [](const Example& example) -> Result<bool> {
    const auto id = example.at("id").data<std::int64_t>()[0];
    if (id == 500) {
      throw std::runtime_error("five hundred");
    }
    return id < 900 ? Result<bool>(true) : InvalidArgument("nine hundred");
  };
  EXPECT_THAT(Filter(Ids(1000), fails, 4).status().message(), HasSubstr("five hundred"));
  EXPECT_THAT(Filter(Ids(10).Shuffle(1), third).status().message(),
              HasSubstr("Filter: the data set is shuffled"));
  EXPECT_EQ(OrThrow(Filter(Ids(10).Shuffle(1, false), third)).size(), 4);
}

TEST(SkipCorrupt, LeavesOutCountsAndBounds) {
  const Dataset data = Ids(200).Map([](Example& example) {
    const auto id = example.at("id").data<std::int64_t>()[0];
    return id % 50 == 0 ? DataLoss("damaged " + std::to_string(id)) : OkStatus();
  });
  CorruptExamples corrupt;
  for (const int threads : {1, 3}) {
    Metrics metrics;
    const Dataset sound = OrThrow(SkipCorrupt(data, 4, &corrupt, threads, &metrics));
    EXPECT_THAT(metrics.ToText(),
                AllOf(HasSubstr("\ncohort_data_records_total{result=\"ok\"} 196\n"),
                      HasSubstr("\ncohort_data_records_total{result=\"corrupt\"} 4\n")));
    EXPECT_EQ(sound.size(), 196);
    EXPECT_EQ(corrupt.examples, 4);
    EXPECT_THAT(corrupt.messages, ElementsAre(HasSubstr("damaged 0"), HasSubstr("damaged 50"),
                                              HasSubstr("damaged 100"), HasSubstr("damaged 150")));
    EXPECT_EQ(OrderOf(sound.Shuffle(1)).size(), 196U);
  }
  EXPECT_THAT(SkipCorrupt(data, 3).status().message(),
              AllOf(HasSubstr("4 corrupt examples, at most 3"), HasSubstr("damaged 0")));
  const Dataset broken = Ids(3).Map([](Example&) { return NotFound("gone"); });
  EXPECT_FALSE(SkipCorrupt(broken, 3).ok());
}

TEST(FlatMap, MakesListsOfAnyLength) {
  const auto make = [](const Example& example, std::vector<Example>& made) {
    const std::int64_t id = example.at("id").data<std::int64_t>()[0];
    for (std::int64_t k = 0; k < 2; ++k) {
      const std::vector<std::int64_t> list(static_cast<std::size_t>(id + k), id);
      made.push_back(
          {{"id", example.at("id")}, {"list", Tensor::Of<std::int64_t>({id + k}, list)}});
    }
    return OkStatus();
  };
  const Dataset flat = OrThrow(FlatMap(Ids(3), make, 1, {"list"}));
  const auto batches = OrThrow(flat.Batch(6).Iterate());
  const Batch batch = *OrThrow(batches->Next());
  EXPECT_THAT(IdsOf(batch), ElementsAre(0, 0, 1, 1, 2, 2));
  EXPECT_THAT(batch.lists("list").splits.data<std::int64_t>(), ElementsAre(0, 0, 1, 2, 4, 6, 9));
  EXPECT_THAT(batch.lists("list").values.data<std::int64_t>(),
              ElementsAre(0, 1, 1, 1, 2, 2, 2, 2, 2));
  // Without being named it has the length of the first one.
  EXPECT_THAT(OrThrow(FlatMap(Ids(3), make)).source().Read(1).status().message(),
              HasSubstr("feature 'list' is not as in the first example"));
  EXPECT_THAT(FlatMap(Ids(3), make, 1, {"words"}).status().message(),
              HasSubstr("there is no list 'words'"));
  const Dataset square = OrThrow(
      FlatMap(Ids(3),
              [](const Example& example, std::vector<Example>& made) {
                made.push_back(example);
                const std::int64_t id = example.at("id").data<std::int64_t>()[0];
                made.back()["list"] = Tensor(DType::kInt64, id == 2 ? Shape({1, 2}) : Shape({id}));
                return OkStatus();
              },
              1, {"list"}));
  EXPECT_TRUE(square.source().Read(1).ok());
  EXPECT_THAT(square.source().Read(2).status().message(),
              HasSubstr("feature 'list' is not as in the first example, a list of int64"));
}

TEST(FlatMap, EveryExampleMadeHasANumber) {
  const auto repeat = [](const Example& example, std::vector<Example>& made) {
    const auto id = example.at("id").data<std::int64_t>()[0];
    for (std::int64_t i = 0; i < id % 4; ++i) {
      const std::int64_t value = id * 10 + i;
      made.push_back({{"id", Tensor::Of<std::int64_t>(Shape(), {&value, 1})}});
    }
    return OkStatus();
  };
  const Dataset data = OrThrow(FlatMap(Ids(6), repeat, 2));
  EXPECT_THAT(OrderOf(data), ElementsAre(10, 20, 21, 30, 31, 32, 50));
  EXPECT_EQ(Sorted(OrderOf(data.Shuffle(2))), Sorted(OrderOf(data)));
  EXPECT_THAT(data.source().Where(4), AllOf(HasSubstr("3"), HasSubstr("example 1 of it")));
  int calls = 0;
  const auto unsteady = [&calls](const Example& example, std::vector<Example>& made) {
    made.assign(++calls > 3 ? 2 : 1, example);
    return OkStatus();
  };
  const Dataset bad = OrThrow(FlatMap(Ids(2), unsteady));
  EXPECT_THAT(bad.source().Read(1).status().message(), HasSubstr("makes 2 examples, and made 1"));
}

// Any data set, stopped anywhere, goes on as if it had not been: with other numbers of workers and
// threads, and from a place that was saved as text.
TEST(Resume, AtAnyPlaceWithAnyWorkersAndThreadsIsTheSameStream) {
  std::mt19937 random(11);
  const auto below = [&random](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  const auto any = [&](std::int64_t begin) {
    Dataset data = IdsFrom(begin, begin + 20 + below(60));
    for (std::int64_t stages = below(3); stages > 0; --stages) {
      switch (below(7)) {
        case 0:
          data = data.Shuffle(random());
          break;
        case 5:
          data = data.ShuffleBuffer(random(), 1 + below(100));
          break;
        case 1:
          data = data.ShuffleBlocks(random(), 1 + below(9), 1 + below(4));
          break;
        case 2:
          data = data.Repeat(1 + below(3));
          break;
        case 3:
          data = data.Skip(below(10));
          break;
        case 4:
          data = data.Shard(2, below(2));
          break;
        default:
          data = data.Take(30 + below(30));
      }
    }
    return data;
  };
  for (int trial = 0; trial < 25; ++trial) {
    Dataset data = any(0);
    switch (below(4)) {
      case 0:
        data = OrThrow(Concatenate({data, any(1000)}));
        break;
      case 1:
        data = OrThrow(Mix({data, any(1000)}, {.seed = random(), .block = 1 + below(20)}));
        break;
      case 2:
        data = OrThrow(Mix({data, any(1000).Repeat(2)}, {.weights = {1, 2}, .block = 6}));
        break;
      default:
        break;
    }
    if (below(2) == 0) {
      data = data.Shuffle(random());
    }
    if (below(3) == 0 && data.source().AtEpoch(1) == nullptr) {
      std::vector<std::int32_t> lengths(static_cast<std::size_t>(data.source().size()));
      for (auto& length : lengths) {
        length = static_cast<std::int32_t>(below(20));
      }
      data = data.BucketByLength(std::make_shared<const std::vector<std::int32_t>>(lengths),
                                 random(), 1 + below(4));
    }
    constexpr std::array kRemainders = {Remainder::kShort, Remainder::kDrop, Remainder::kPad,
                                        Remainder::kWrap};
    data = data.Batch(1 + below(12), kRemainders[static_cast<std::size_t>(below(4))]);
    const IterateOptions whole = {.epoch = below(3)};
    const IdBatches expected = Collect(data, whole);
    ASSERT_EQ(static_cast<std::int64_t>(expected.size()), OrThrow(data.CountBatches(whole)));
    for (const int workers : {1, 2, 3, 5}) {
      for (const int threads : {0, 1, 3}) {
        const Dataset prefetched =
            threads == 0 ? data : data.Prefetch(3, threads, below(2) == 0 ? 0 : 200);
        const auto stop = below(static_cast<std::int64_t>(expected.size()) + 1);
        const IdBatches rest(expected.begin() + stop, expected.end());
        IterateOptions from = whole;
        from.first_batch = stop;
        ASSERT_EQ(CollectWorld(prefetched, workers, from), rest) << trial;

        const std::string saved = data.PositionAt(whole, stop).ToString();
        ASSERT_LT(saved.size(), 100U);
        const IterateOptions place =
            OrThrow(data.ResumeAt(OrThrow(DataPosition::Parse(saved)), {.policy = whole.policy}));
        ASSERT_EQ(CollectWorld(prefetched, workers, place), rest) << trial << " " << saved;
      }
    }
  }
}

TEST(Resume, AnotherBatchSizeGoesOnWithTheSameExamples) {
  const Dataset data = Ids(100).Shuffle(5);
  const DataPosition place = data.Batch(8).PositionAt({.epoch = 2}, 5);
  EXPECT_EQ(place.example, 40);
  const Dataset other = data.Batch(7);
  const Order rest = Flatten(Collect(other, OrThrow(other.ResumeAt(place))));
  const Order order = OrderOf(data, 2);
  EXPECT_EQ(rest, Order(order.begin() + 40, order.end()));
  EXPECT_EQ(data.Batch(8).PositionAt({}, 13).example, 100) << "the end of the epoch";
  const Dataset whole = data.Batch(8, /*drop_remainder=*/true);
  EXPECT_EQ(whole.PositionAt({}, 11).example, 88);
  EXPECT_EQ(whole.PositionAt({}, 12).example, 100) << "what is left is no batch";
}

TEST(Resume, RefusesAnotherOrderAndNoPlace) {
  const DataPosition place = Ids(100).Shuffle(5).Batch(8).PositionAt({}, 5);
  for (const Dataset& other : {Ids(100).Shuffle(6), Ids(99).Shuffle(5), Ids(100),
                               Ids(100).Shuffle(5).Take(90), Ids(100).Shuffle(5).Shard(2, 0)}) {
    EXPECT_EQ(other.Batch(8).ResumeAt(place).status().code(), StatusCode::kFailedPrecondition);
  }
  for (const char* text :
       {"", "epoch 1", "epoch 1 example 2 of ", "epoch -1 example 2 of 3",
        "epoch 1 example 2 of 3 ", "epoch 99999999999999999999 example 2 of 3"}) {
    EXPECT_FALSE(DataPosition::Parse(text).ok()) << text;
  }
  EXPECT_EQ(OrThrow(DataPosition::Parse("epoch 1 example 2 of 3")), (DataPosition{1, 2, 3}));
}

}  // namespace
}  // namespace cohort::data
