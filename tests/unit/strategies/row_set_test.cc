// The rows of a bucket, found by their ids.

#include "parameter_server/rows/row_set.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>

#include <cohort/core/random.h>
#include <cohort/optim/id_index.h>

namespace cohort::ps {
namespace {

// Whatever is inserted and removed, a set holds what a map holds.
TEST(RowSet, EqualsAMap) {
  for (const std::size_t floats : {std::size_t{1}, std::size_t{700}, std::size_t{20000}}) {
    const RowShape shape(floats);
    RowMemory memory;
    RowSet set;
    std::map<std::uint64_t, float> expected;
    const Philox random(floats);
    const std::uint64_t span = floats > 1000 ? 60 : 3000;
    for (std::uint64_t i = 0; i < (floats > 1000 ? 1500U : 30000U); ++i) {
      const std::uint64_t id = random.Below(span, i) << 40;
      // Grows in the first half, and shrinks in the second.
      const bool insert = random.Uniform(i, 1) < (i % 20000 < 10000 ? 0.7F : 0.3F);
      const std::uint32_t row = set.Find(HashId(id), id, shape);
      ASSERT_EQ(row != RowSet::kNone, expected.contains(id));
      if (insert && row == RowSet::kNone) {
        std::byte* const record = set.Insert(HashId(id), id, shape, memory);
        const auto value = static_cast<float>(i);
        std::memcpy(record + shape.stride - sizeof(float), &value, sizeof(value));
        expected[id] = value;
      } else if (!insert && row != RowSet::kNone) {
        set.Remove(row, shape, memory);
        expected.erase(id);
      }
      ASSERT_EQ(set.size(), expected.size());
    }
    for (const auto& [id, value] : expected) {
      const std::uint32_t row = set.Find(HashId(id), id, shape);
      ASSERT_NE(row, RowSet::kNone);
      float found = 0;
      std::memcpy(&found, set.At(row, shape) + shape.stride - sizeof(float), sizeof(found));
      EXPECT_EQ(found, value);
    }
    EXPECT_LE(memory.allocated_bytes(), (2 * expected.size() + 64) * (shape.stride + 64));
    set.Clear(shape, memory);
    EXPECT_EQ(memory.allocated_bytes(), 0U);
    EXPECT_EQ(set.Find(HashId(0), 0, shape), RowSet::kNone);
  }
}

}  // namespace
}  // namespace cohort::ps
