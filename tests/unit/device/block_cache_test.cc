#include "cuda/block_cache.h"

#include <map>
#include <set>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cohort::cuda {
namespace {

using testing::HasSubstr;

constexpr std::size_t kMiB = std::size_t{1} << 20;

// A device of so much memory, whose blocks are numbers.
struct Ledger {
  std::size_t capacity = 100 * kMiB;
  std::size_t taken = 0;
  std::map<std::byte*, std::size_t> blocks;
  int takes = 0, returns = 0, drains = 0, patient_drains = 0;
  bool can_drain = true;
  bool drain_fails = false;
};

class FakeSource final : public BlockSource {
 public:
  explicit FakeSource(Ledger& ledger) : ledger_(ledger) {}
  std::byte* Take(std::size_t bytes) override {
    if (bytes > ledger_.capacity - ledger_.taken) {
      return nullptr;
    }
    ++ledger_.takes;
    ledger_.taken += bytes;
    auto* const block = reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(next_ += 4096));
    ledger_.blocks[block] = bytes;
    return block;
  }
  void Return(std::byte* block) noexcept override {
    ++ledger_.returns;
    ledger_.taken -= ledger_.blocks.at(block);
    ledger_.blocks.erase(block);
  }
  bool Drain(bool patiently) override {
    ++ledger_.drains;
    ledger_.patient_drains += patiently ? 1 : 0;
    if (ledger_.drain_fails) {
      throw StatusError(DeadlineExceeded("stuck"));
    }
    return ledger_.can_drain;
  }
  std::string Left() override { return "little"; }

 private:
  Ledger& ledger_;
  std::uintptr_t next_ = 0;
};

std::shared_ptr<BlockCache> MakeCache(Ledger& ledger) {
  return std::make_shared<BlockCache>("memory of cuda:7", std::make_unique<FakeSource>(ledger));
}

TEST(BlockCache, ADroppedBlockIsGivenOutAgainOnceTheDeviceIsIdle) {
  Ledger ledger;
  const auto cache = MakeCache(ledger);
  auto a = cache->Allocate(1000, "a");
  auto b = cache->Allocate(1000, "b");
  EXPECT_EQ(cache->use().held, 2 * 1024);
  std::byte* const address = a.get();
  a.reset();
  b.reset();
  EXPECT_EQ(ledger.returns + ledger.drains, 0) << "dropping calls nothing of the device's";
  EXPECT_EQ(cache->use().held, 0);
  EXPECT_EQ(cache->use().kept, 2 * 1024);
  EXPECT_EQ(cache->use().most, 2 * 1024);

  a = cache->Allocate(1020, "c");
  EXPECT_EQ(ledger.drains, 1);
  EXPECT_EQ(a.get(), address);
  b = cache->Allocate(1, "c");
  EXPECT_EQ(ledger.drains, 1) << "a much smaller request takes a block of its own";
  EXPECT_EQ(ledger.takes, 3);
  b = cache->Allocate(1000, "c");
  EXPECT_EQ(ledger.drains, 1) << "both were dropped before";
  EXPECT_EQ(ledger.takes, 3);
}

TEST(BlockCache, WhatCannotBeWaitedForIsNotGivenOutAgain) {
  Ledger ledger;
  const auto cache = MakeCache(ledger);
  cache->Allocate(kMiB, "a").reset();
  ledger.can_drain = false;
  const auto fresh = cache->Allocate(kMiB, "b");
  EXPECT_EQ(ledger.takes, 2);
  EXPECT_EQ(ledger.patient_drains, 0) << "there is other memory";
  EXPECT_EQ(cache->use().kept, kMiB);
  ledger.drain_fails = true;
  EXPECT_THROW((void)cache->Allocate(kMiB, "c"), StatusError);
  ledger.drain_fails = false;
  ledger.can_drain = true;
  const auto again = cache->Allocate(kMiB, "d");
  EXPECT_EQ(ledger.takes, 2) << "the block survived the failed wait";
}

TEST(BlockCache, WhatIsKeptGoesBackBeforeMemoryIsOut) {
  Ledger ledger;
  const auto cache = MakeCache(ledger);
  cache->Allocate(60 * kMiB, "a").reset();
  const auto b = cache->Allocate(80 * kMiB, "b");
  EXPECT_EQ(ledger.returns, 1);
  EXPECT_EQ(ledger.patient_drains, 1);
  EXPECT_EQ(cache->use().kept, 0);
  EXPECT_EQ(ledger.taken, 80 * kMiB);
}

TEST(BlockCache, AnErrorSaysWhoHoldsWhat) {
  Ledger ledger;
  const auto cache = MakeCache(ledger);
  const auto a = cache->Allocate(4 * kMiB, "a");
  auto b = cache->Allocate(30 * kMiB, "b");
  const auto c = cache->Allocate(20 * kMiB, "c");
  const auto d = cache->Allocate(10 * kMiB, "d");
  b = cache->Allocate(18 * kMiB, "b");
  try {
    (void)cache->Allocate(60 * kMiB, "parameters");
    FAIL();
  } catch (const StatusError& error) {
    EXPECT_EQ(error.status().code(), StatusCode::kResourceExhausted);
    EXPECT_THAT(
        error.status().message(),
        HasSubstr(
            "memory of cuda:7 has no 62914560 bytes (60.0 MiB) for parameters: this process holds "
            "52.0 MiB of it (20.0 MiB c, 18.0 MiB b, 10.0 MiB d), at most 82.0 MiB "
            "so far; little are left"));
  }
  EXPECT_EQ(cache->use().kept, 0) << "all of it went back before";
  EXPECT_EQ(cache->use().held, 52 * kMiB);
}

TEST(BlockCache, SizesPastAllMemoryAreRefused) {
  Ledger ledger;
  const auto cache = MakeCache(ledger);
  EXPECT_THROW((void)cache->Allocate(~std::size_t{0}, "all"), StatusError);
  EXPECT_NE(cache->Allocate(0, "nothing"), nullptr);
}

TEST(BlockCache, BlocksKeepItAliveAndAllGoesBackInTheEnd) {
  Ledger ledger;
  auto cache = MakeCache(ledger);
  auto a = cache->Allocate(1000, "a");
  cache->Allocate(2000, "b").reset();
  cache.reset();
  EXPECT_EQ(ledger.returns, 0);
  a.reset();
  EXPECT_EQ(ledger.returns, 2);
  EXPECT_TRUE(ledger.blocks.empty());
}

}  // namespace
}  // namespace cohort::cuda
