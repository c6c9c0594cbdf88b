// Prefetching: order, bounds, and ends at any point.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "collect.h"
#include "iterator.h"
#include "prefetch_tuner.h"

namespace cohort::data {
namespace {

TEST(Prefetch, KeepsTheOrderWithAnyNumberOfThreads) {
  const Dataset data = Ids(237).Shuffle(4).Batch(10);
  const IdBatches expected = Collect(data, {.epoch = 3});
  for (const int batches : {1, 2, 7, 100}) {
    for (const int threads : {1, 2, 4}) {
      EXPECT_EQ(Collect(data.Prefetch(batches, threads), {.epoch = 3}), expected);
      EXPECT_EQ(CollectWorld(data.Prefetch(batches, threads), 3, {.epoch = 3}), expected);
    }
  }
}

TEST(Prefetch, ResumesLikeTheDirectIterator) {
  const Dataset data = Ids(50).Shuffle(4).Batch(8);
  for (std::int64_t k = 0; k <= 7; ++k) {
    EXPECT_EQ(Collect(data.Prefetch(3, 2), {.first_batch = k}), Collect(data, {.first_batch = k}));
  }
}

// Lets examples through up to a limit, and counts them.
struct Gate {
  std::mutex mutex;
  std::condition_variable changed;
  int limit = 0;
  int passed = 0;
  int waiting = 0;

  Dataset Guard(const Dataset& dataset) {
    return dataset.Map([this](Example&) {
      std::unique_lock lock(mutex);
      ++waiting;
      changed.notify_all();
      changed.wait(lock, [this] { return passed < limit; });
      ++passed;
      --waiting;
      changed.notify_all();
      return OkStatus();
    });
  }
  void Open(int count) {
    std::lock_guard lock(mutex);
    limit += count;
    changed.notify_all();
  }
  void AwaitPassed(int count) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return passed == count; });
  }
};

TEST(Prefetch, PreparesAsManyBatchesAsAskedAndNoMore) {
  Gate gate;
  gate.Open(1000);
  auto iterator = OrThrow(gate.Guard(Ids(100)).Batch(5).Prefetch(3, 2).Iterate());
  gate.AwaitPassed(15);  // three batches, without a call of Next
  EXPECT_TRUE(OrThrow(iterator->Next()).has_value());
  gate.AwaitPassed(20);
  iterator.reset();
  EXPECT_EQ(gate.passed, 20);
}

TEST(PrefetchTuner, GrowsWhereTheConsumerWaits) {
  PrefetchTuner tuner({.threads = 1, .ahead = 2}, {.threads = 3, .ahead = 16});
  const auto window = [&tuner](int waits, bool idle) {
    bool grown = false;
    for (int i = 0; i < 8; ++i) {
      EXPECT_FALSE(grown) << "only at a window's end";
      grown = tuner.Took(i < waits, idle);
    }
    return grown;
  };
  EXPECT_FALSE(window(0, false));
  EXPECT_FALSE(window(1, false)) << "a hiccup";
  EXPECT_TRUE(window(2, false));
  EXPECT_EQ(tuner.size().threads, 2);
  EXPECT_EQ(tuner.size().ahead, 3);
  EXPECT_TRUE(window(8, true)) << "threads stood still: more batches, not more threads";
  EXPECT_EQ(tuner.size().threads, 2);
  EXPECT_EQ(tuner.size().ahead, 6);
  EXPECT_TRUE(window(8, false));
  EXPECT_EQ(tuner.size().threads, 3);
  EXPECT_EQ(tuner.size().ahead, 6);
  EXPECT_FALSE(window(8, false)) << "as many as there may be";
  EXPECT_TRUE(window(8, true));
  EXPECT_TRUE(window(8, true));
  EXPECT_EQ(tuner.size().ahead, 16);
  EXPECT_FALSE(window(8, true));
}

// No example comes through before three threads are there, which only waiting brings about.
TEST(Prefetch, AutoAddsThreadsWhileTheConsumerWaits) {
  std::mutex mutex;
  std::condition_variable changed;
  int inside = 0;
  int most = 0;
  bool slow = true;
  const Dataset data = Ids(100).Map([&](Example&) {
    std::unique_lock lock(mutex);
    most = std::max(most, ++inside);
    slow = slow && most < 3;
    changed.notify_all();
    if (slow) {
      changed.wait_for(lock, std::chrono::milliseconds(20), [&] { return most >= 3; });
    }
    --inside;
    return OkStatus();
  });
  const Dataset batches = data.Batch(1);
  EXPECT_EQ(Collect(batches.Prefetch(kAutotune, kAutotune)), Collect(Ids(100).Batch(1)));
  EXPECT_GE(most, 3);
  most = 0;
  slow = true;
  EXPECT_EQ(Collect(data.Take(30).Batch(1).Prefetch(2, kAutotune)), Collect(Ids(30).Batch(1)));
  EXPECT_EQ(most, 2) << "no more than batches ahead";
}

TEST(Prefetch, BytesBoundWhatIsPrepared) {
  Gate gate;
  gate.Open(1000);
  // Batches of 5 ids, 40 bytes: one whose size is not known yet, and then as many as fit into 100.
  auto iterator = OrThrow(gate.Guard(Ids(100)).Batch(5).Prefetch(8, 1, 100).Iterate());
  gate.AwaitPassed(10);
  EXPECT_TRUE(OrThrow(iterator->Next()).has_value());
  gate.AwaitPassed(15);
  for (int i = 0; i < 19; ++i) {
    EXPECT_TRUE(OrThrow(iterator->Next()).has_value());
  }
  EXPECT_FALSE(OrThrow(iterator->Next()).has_value());
  EXPECT_EQ(gate.passed, 100);
  // Less than a batch: one at a time.
  const Dataset data = Ids(50).Shuffle(2).Batch(8);
  EXPECT_EQ(Collect(data.Prefetch(8, 3, 1)), Collect(data));
}

// Nothing is known of the size of a mapped batch before there is one: the first is built alone.
TEST(Prefetch, BytesBoundAlsoWhatComesFirst) {
  Gate gate;
  auto iterator = OrThrow(gate.Guard(Ids(100)).Batch(1).Prefetch(8, 4, 100).Iterate());
  {
    std::unique_lock lock(gate.mutex);
    gate.changed.wait(lock, [&] { return gate.waiting == 1; });
    EXPECT_FALSE(gate.changed.wait_for(lock, std::chrono::milliseconds(50),
                                       [&] { return gate.waiting > 1; }));
  }
  gate.Open(1000);
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(OrThrow(iterator->Next()).has_value());
  }
  // Of a size that is known before, as many as fit: two of 40 bytes into 100.
  std::atomic<int> inside = 0;
  std::atomic<int> most = 0;
  class Counting final : public Source {
   public:
    Counting(std::atomic<int>* at, std::atomic<int>* top) : at_(at), top_(top) {}
    std::int64_t size() const override { return 100; }
    const std::vector<FeatureSpec>& features() const override { return features_; }
    Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
      const int now = ++*at_;
      for (int before = *top_; before < now && !top_->compare_exchange_weak(before, now);) {
      }
      std::this_thread::yield();
      *reinterpret_cast<std::int64_t*>(rows[0]) = index;
      --*at_;
      return {};
    }
    std::string Where(std::int64_t index) const override { return std::to_string(index); }
    std::uint64_t Fingerprint() const override { return 1; }

   private:
    std::atomic<int>* at_;
    std::atomic<int>* top_;
    std::vector<FeatureSpec> features_ = {{"id", DType::kInt64, Shape()}};
  };
  const Dataset known(std::make_shared<Counting>(&inside, &most));
  EXPECT_EQ(Collect(known.Batch(5).Prefetch(8, 8, 100)), Collect(Ids(100).Batch(5)));
  EXPECT_LE(most, 2);
}

// Every batch lies in memory that was handed in, with what was in there overwritten.
// New memory for every batch would cost the kernel its pages. What is still held stays as it is.
TEST(Iterate, MemoryOfLargeBatchesIsUsedAgain) {
  const Dataset data =
      Ids(64)
          .Map([](Example& example) {
            const std::int64_t id = example.at("id").data<std::int64_t>()[0];
            example["wide"] = Tensor(DType::kFloat32, {1 << 16});
            std::ranges::fill(example["wide"].data<float>(), static_cast<float>(id));
            return OkStatus();
          })
          .Batch(4);
  const auto batches = OrThrow(data.Iterate());
  const Batch held = *OrThrow(batches->Next());
  std::set<const std::byte*> places;
  for (int i = 1; i < 16; ++i) {
    const Batch batch = *OrThrow(batches->Next());
    places.insert(batch.features.at("wide").raw());
  }
  EXPECT_LE(places.size(), 2U);
  EXPECT_FALSE(places.contains(held.features.at("wide").raw()));
  const auto ids = held.features.at("id").data<std::int64_t>();
  const auto wide = held.features.at("wide").data<float>();
  for (std::size_t i = 0; i < wide.size(); ++i) {
    ASSERT_EQ(wide[i], static_cast<float>(ids[i >> 16])) << i;
  }
}

TEST(Iterate, BatchesLieInMemoryThatIsHandedIn) {
  struct Blocks {
    std::mutex mutex;
    std::map<const std::byte*, std::size_t> live;
    int made = 0;
  };
  const auto blocks = std::make_shared<Blocks>();
  const AllocateBytes allocate = [blocks](std::size_t bytes) {
    EXPECT_GT(bytes, 0U);
    constexpr std::size_t kAlignment = 64;
    auto* const memory = static_cast<std::byte*>(
        std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment));
    std::memset(memory, 0xA5, bytes);
    const std::lock_guard lock(blocks->mutex);
    ++blocks->made;
    blocks->live[memory] = bytes;
    return std::shared_ptr<std::byte>(memory, [blocks](std::byte* gone) {
      const std::lock_guard held(blocks->mutex);
      blocks->live.erase(gone);
      std::free(gone);
    });
  };
  const auto within = [&](const Tensor& tensor) {
    const std::lock_guard lock(blocks->mutex);
    auto block = blocks->live.upper_bound(tensor.raw());
    return block != blocks->live.begin() &&
           tensor.raw() + tensor.bytes() <= (--block)->first + block->second;
  };
  const Dataset plain = Ids(23).Shuffle(1);
  const Dataset mapped = plain.Lists({"list", "padded"}).Map([](Example& example) {
    const std::int64_t id = example.at("id").data<std::int64_t>()[0];
    for (const char* const name : {"list", "padded"}) {
      example[name] = Tensor(DType::kFloat32, {id % 4});
      std::fill_n(example[name].data<float>().begin(), id % 4, static_cast<float>(id));
    }
    return OkStatus();
  });
  for (const Dataset& data :
       {plain.Batch(5), plain.Batch(5, Remainder::kPad),
        mapped.Batch(5, Remainder::kPad).Pad("padded", {.lengths = "lengths"})}) {
    for (const int ahead : {0, 3}) {
      auto expected = OrThrow(data.Iterate());
      auto iterator = OrThrow(data.Prefetch(ahead, 2).Iterate({.allocate = allocate}));
      while (const auto batch = OrThrow(iterator->Next())) {
        const auto other = *OrThrow(expected->Next());
        const auto same = [&](const Tensor& a, const Tensor& b) {
          EXPECT_TRUE(within(a));
          EXPECT_FALSE(within(b));
          EXPECT_EQ(a.shape(), b.shape());
          EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.bytes()), 0);
        };
        ASSERT_EQ(batch->features.size(), other.features.size());
        for (const auto& [name, tensor] : batch->features) {
          SCOPED_TRACE(name);
          same(tensor, other[name]);
        }
        for (const auto& [name, lists] : batch->ragged) {
          SCOPED_TRACE(name);
          same(lists.values, other.lists(name).values);
          same(lists.splits, other.lists(name).splits);
        }
      }
      EXPECT_FALSE(OrThrow(expected->Next()).has_value());
    }
  }
  EXPECT_GT(blocks->made, 0);
  EXPECT_TRUE(blocks->live.empty()) << "nothing is kept";
  // Memory that is not there is an error like others.
  const AllocateBytes none = [](std::size_t) -> std::shared_ptr<std::byte> {
    throw StatusError(ResourceExhausted("no page-locked memory"));
  };
  for (const int ahead : {0, 2}) {
    auto iterator = OrThrow(plain.Batch(5).Prefetch(ahead).Iterate({.allocate = none}));
    const Status status = iterator->Next().status();
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
    EXPECT_NE(status.message().find("no page-locked memory"), std::string::npos);
  }
}

TEST(Prefetch, BytesAreBoundedWhereNothingIsSaid) {
  EXPECT_EQ(BytesBound({.ahead = 3, .threads = 2, .max_bytes = 77}), 77);
  EXPECT_EQ(BytesBound({.ahead = kAutotune}), std::int64_t{256} << 20);
  EXPECT_EQ(BytesBound({.threads = kAutotune}), std::int64_t{256} << 20);
  EXPECT_GT(BytesBound({.ahead = 3}), 0);
  EXPECT_LE(BytesBound({.ahead = 3}), std::int64_t{1} << 30);
}

TEST(Prefetch, DestructionAtAnyPointJoins) {
  for (int taken = 0; taken <= 12; ++taken) {
    auto iterator = OrThrow(Ids(1000).Shuffle(1).Batch(3).Prefetch(4, 3).Iterate());
    for (int i = 0; i < taken; ++i) {
      ASSERT_TRUE(OrThrow(iterator->Next()).has_value());
    }
  }
  // Full queues, at the end, and never used.
  Gate gate;
  gate.Open(8);
  auto full = OrThrow(gate.Guard(Ids(100)).Batch(2).Prefetch(4).Iterate());
  gate.AwaitPassed(8);
  full.reset();
  auto ended = OrThrow(Ids(10).Batch(5).Prefetch(4).Iterate());
  while (OrThrow(ended->Next()).has_value()) {
  }
}

TEST(Prefetch, DestructionStopsABatchThatIsBeingBuilt) {
  std::atomic<int> mapped = 0;
  std::atomic<bool> destroying = false;
  const Dataset data = Ids(1 << 20)
                           .Map([&](Example&) {
                             ++mapped;
                             destroying.wait(false);
                             return OkStatus();
                           })
                           .Batch(1 << 20)
                           .Prefetch(1);
  auto iterator = OrThrow(data.Iterate());
  while (mapped == 0) {
    std::this_thread::yield();
  }
  std::thread release([&] {
    destroying = true;
    destroying.notify_all();
  });
  iterator.reset();
  release.join();
  EXPECT_LT(mapped, 1 << 20);
}

// Threads that are in the middle of batches of a minute's work: the end does not wait for them.
TEST(Prefetch, DestructionTakesNoLongerThanASecond) {
  for (const int taken : {0, 1, 3}) {
    std::atomic<int> read = 0;
    const Dataset data = Ids(100'000)
                             .Map([&](Example&) {
                               if (++read > 4 * 3) {  // the first batches come at once
                                 std::this_thread::sleep_for(std::chrono::milliseconds(10));
                               }
                               return OkStatus();
                             })
                             .Batch(taken == 0 ? 6'000 : 4);
    auto iterator = OrThrow(data.Prefetch(8, 4).Iterate());
    for (int i = 0; i < taken; ++i) {
      ASSERT_TRUE(OrThrow(iterator->Next()).has_value());
    }
    while (read == 0) {
      std::this_thread::yield();
    }
    const auto before = std::chrono::steady_clock::now();
    iterator.reset();
    EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(1));
  }
}

TEST(Prefetch, OutlivesTheDatasetItCameFrom) {
  std::unique_ptr<BatchIterator> iterator;
  {
    const Dataset data = Ids(10).Batch(4).Prefetch(2);
    iterator = OrThrow(data.Iterate());
  }
  EXPECT_EQ(IdsOf(*OrThrow(iterator->Next())).size(), 4U);
}

TEST(Prefetch, SourcesThatThrowAreReported) {
  class Throwing final : public Source {
   public:
    std::int64_t size() const override { return 4; }
    const std::vector<FeatureSpec>& features() const override { return features_; }
    Status ReadInto(std::int64_t, std::span<std::byte* const>) const override {
      throw std::runtime_error("the codec is gone");
    }
    std::string Where(std::int64_t) const override { return "nowhere"; }
    std::uint64_t Fingerprint() const override { return 0; }

   private:
    std::vector<FeatureSpec> features_ = {{"x", DType::kFloat32, Shape()}};
  };
  auto iterator = OrThrow(Dataset(std::make_shared<Throwing>()).Batch(2).Prefetch(2).Iterate());
  const Status status = iterator->Next().status();
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_NE(status.message().find("the codec is gone"), std::string::npos);
}

}  // namespace
}  // namespace cohort::data
