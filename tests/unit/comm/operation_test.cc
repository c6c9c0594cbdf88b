#include "operation.h"

#include <gtest/gtest.h>

#include "algorithms/choose.h"

namespace cohort {
namespace {

OperationRecord Example() {
  return {.kind = OperationKind::kAllReduce,
          .dtype = DType::kFloat32,
          .reduce_op = ReduceOp::kMean,
          .algorithm = static_cast<std::uint8_t>(Algorithm::kRing),
          .count = 10,
          .segment_bytes = 64,
          .generation = 3,
          .sequence = 12,
          .joins = 65'535,
          .name = "fc1"};
}

TEST(OperationRecord, SurvivesTheWire) {
  const OperationRecord record = Example();
  const std::optional<OperationRecord> decoded = OperationRecord::Decode(record.Encode());
  ASSERT_TRUE(decoded);
  EXPECT_TRUE(record.Matches(*decoded));
  EXPECT_EQ(decoded->Full(), record.Full());
  EXPECT_EQ(decoded->joins, record.joins);
  EXPECT_EQ(decoded->Fingerprint(), record.Fingerprint());
  EXPECT_EQ(record.Numbered(), "AllReduce 'fc1' float32[10] #12 (generation 3)");
}

TEST(OperationRecord, EveryFieldCounts) {
  const auto other = [](auto change) {
    OperationRecord record = Example();
    change(record);
    EXPECT_FALSE(Example().Matches(record)) << record.Full();
    return record;
  };
  // And in the fingerprint, where that is all that ranks compare.
  const auto differs = [&](auto change) {
    const OperationRecord record = other(change);
    EXPECT_NE(Example().Fingerprint(), record.Fingerprint()) << record.Full();
  };
  differs([](OperationRecord& r) { r.kind = OperationKind::kReduceScatter; });
  differs([](OperationRecord& r) { r.dtype = DType::kInt32; });
  differs([](OperationRecord& r) { r.reduce_op = ReduceOp::kSum; });
  differs([](OperationRecord& r) { r.algorithm = 3; });
  differs([](OperationRecord& r) { r.root = 1; });
  differs([](OperationRecord& r) { r.count = 11; });
  differs([](OperationRecord& r) { r.shape = 1; });
  differs([](OperationRecord& r) { r.segment_bytes = 128; });
  differs([](OperationRecord& r) { r.name = "fc2"; });
  differs([](OperationRecord& r) { r.name = ""; });
  differs([](OperationRecord& r) { r.name = std::string("fc1\0", 4); });
  other([](OperationRecord& r) { r.generation = 2; });  // the board is of one generation,
  other([](OperationRecord& r) { r.sequence = 13; });   // and has the number itself
}

// The brief text of a barrier has no count.
TEST(OperationRecord, ExplainsOfTwoSizesDifferInTheirFullText) {
  const OperationRecord one{.kind = OperationKind::kBarrier, .count = 1024, .shape = 1};
  OperationRecord other = one;
  other.count = 2048;
  EXPECT_FALSE(one.Matches(other));
  EXPECT_EQ(one.Brief(), other.Brief());
  EXPECT_NE(one.Full(), other.Full());
  EXPECT_NE(other.Full().find(" of 2048 bytes"), std::string::npos) << other.Full();
}

TEST(OperationRecord, DamagedBytesAreNoRecord) {
  std::vector<std::byte> bytes = Example().Encode();
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(OperationRecord::Decode(std::span(bytes).first(length)));
  }
  bytes.push_back(std::byte{0});
  EXPECT_FALSE(OperationRecord::Decode(bytes));
  bytes.pop_back();
  bytes[0] = std::byte{99};
  EXPECT_FALSE(OperationRecord::Decode(bytes));
}

TEST(OperationRecord, LongNamesAreCut) {
  OperationRecord record = Example();
  record.name = std::string(100'000, 'x');
  const std::optional<OperationRecord> decoded = OperationRecord::Decode(record.Encode());
  ASSERT_TRUE(decoded);
  EXPECT_LT(decoded->name.size(), 4000U);
  EXPECT_TRUE(record.Matches(*decoded));
}

}  // namespace
}  // namespace cohort
