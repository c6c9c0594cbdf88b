#include <cohort/core/host_blocks.h>

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace cohort {
namespace {

TEST(HostBlocks, WhatIsDroppedIsUsedAgainAndNoMoreIsMadeThanWasInUse) {
  int made = 0;
  int alive = 0;
  {
    std::shared_ptr<std::byte> last;
    {
      const auto blocks = std::make_shared<HostBlocks>([&](std::size_t bytes) {
        ++made;
        ++alive;
        return std::shared_ptr<std::byte>(new std::byte[bytes], [&alive](std::byte* memory) {
          --alive;
          delete[] memory;
        });
      });
      for (int batch = 0; batch < 100; ++batch) {
        const std::shared_ptr<std::byte> images = blocks->Take(1000);
        const std::shared_ptr<std::byte> next = blocks->Take(900);
        const std::shared_ptr<std::byte> labels = blocks->Take(10);
        EXPECT_EQ((std::set{images.get(), next.get(), labels.get()}).size(), 3U);
      }
      EXPECT_EQ(made, 3);
      const auto large = blocks->Take(5000);
      EXPECT_EQ(made, 4) << "nothing that is free is so large";
      last = blocks->Take(100);
      EXPECT_EQ(made, 5) << "what is free is much too large, or too small";
    }
    EXPECT_GE(alive, 1);
    last.get()[99] = std::byte{1};
  }
  EXPECT_EQ(alive, 0) << "blocks go when the last of them does";
}

TEST(HostBlocks, OfManyLengthsFewAreKept) {
  int alive = 0;
  std::size_t bytes_alive = 0;
  const auto blocks = std::make_shared<HostBlocks>([&](std::size_t bytes) {
    ++alive;
    bytes_alive += bytes;
    return std::shared_ptr<std::byte>(new std::byte[bytes], [&, bytes](std::byte* memory) {
      --alive;
      bytes_alive -= bytes;
      delete[] memory;
    });
  });
  const auto take = [&](std::size_t bytes, int count) {
    std::vector<std::shared_ptr<std::byte>> held;
    for (int i = 0; i < count; ++i) {
      held.push_back(blocks->Take(bytes));
    }
  };
  for (std::size_t bytes = 1; bytes < 100'000; bytes = bytes * 5 + 1) {
    take(bytes, 30);
    EXPECT_LE(bytes_alive, 30 * (bytes + bytes / 8)) << "what was smaller made room";
  }
  EXPECT_EQ(alive, 30);
  take(5, 100);
  EXPECT_EQ(alive, 64);
}

TEST(HostBlocks, OneThatIsKeptKeepsNoOthers) {
  int alive = 0;
  std::shared_ptr<std::byte> kept;
  {
    const auto blocks = std::make_shared<HostBlocks>([&](std::size_t bytes) {
      ++alive;
      return std::shared_ptr<std::byte>(new std::byte[bytes], [&alive](std::byte* memory) {
        --alive;
        delete[] memory;
      });
    });
    const auto other = blocks->Take(100);
    kept = blocks->Take(100);
  }
  EXPECT_EQ(alive, 1);
  kept.reset();
  EXPECT_EQ(alive, 0);
}

}  // namespace
}  // namespace cohort
