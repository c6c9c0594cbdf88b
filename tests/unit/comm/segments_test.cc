#include <gtest/gtest.h>

#include "algorithms/algorithms.h"

namespace cohort {
namespace {

TEST(Segments, ChunksCoverTheBufferAndDifferByOneElement) {
  std::vector<std::byte> memory(8 * 23);
  for (int ranks = 1; ranks <= 30; ++ranks) {
    std::size_t at = 0;
    for (int r = 0; r < ranks; ++r) {
      const MutableBytes chunk = Chunk(MutableBytes(memory), r, ranks, 8);
      EXPECT_EQ(chunk.data(), memory.data() + at);
      EXPECT_EQ(chunk.size() % 8, 0U);
      const std::size_t elements = chunk.size() / 8;
      EXPECT_GE(elements, 23U / static_cast<unsigned>(ranks));
      EXPECT_LE(elements, 23U / static_cast<unsigned>(ranks) + 1);
      at += chunk.size();
    }
    EXPECT_EQ(at, memory.size());
  }
}

TEST(Segments, OnlyAnEmptyChunkHasAnEmptySegment) {
  std::vector<std::byte> memory(100);
  EXPECT_EQ(Segments(MutableBytes(memory), 40).size(), 3U);
  EXPECT_EQ(Segments(MutableBytes(memory), 50).size(), 2U);
  EXPECT_EQ(Segments(MutableBytes(memory), 100).size(), 1U);
  const std::vector<MutableBytes> empty = Segments(MutableBytes(memory).first(0), 40);
  ASSERT_EQ(empty.size(), 1U);
  EXPECT_TRUE(empty[0].empty());
}

}  // namespace
}  // namespace cohort
