// What a sparse table is declared as: its message, what is wrong with it, whose its buckets are.

#include "parameter_server/rows/row_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include <cohort/optim/optimizers.h>

#include <cohort/parameter_server.pb.h>
#include "row_table_test.h"

namespace cohort::ps::row_tables {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(TableSpec, BucketsAreDealtInEqualRanges) {
  for (const std::uint32_t buckets : {1U, 16U, 4096U}) {
    for (const int servers : {1, 2, 3, 7, 16, 33}) {
      std::uint32_t next = 0;
      for (int s = 0; s < servers; ++s) {
        const BucketRange range = BucketsOf(s, servers, buckets);
        EXPECT_EQ(range.begin, next);
        EXPECT_LE(range.end - range.begin, buckets / static_cast<std::uint32_t>(servers) + 1);
        for (std::uint32_t b = range.begin; b < range.end; ++b) {
          EXPECT_EQ(ServerOf(b, servers, buckets), s);
        }
        next = range.end;
      }
      EXPECT_EQ(next, buckets);
    }
  }
}

// What protobuf makes of the .proto is what is written and read here without it.
TEST(TableSpec, BytesAreThoseOfTheMessage) {
  TableSpec spec;
  spec.name = "users";
  spec.dim = std::int64_t{1} << 33;
  spec.seed = 0xFEDCBA9876543210;
  spec.optimizer = R"({"name":"adam"})";
  spec.initializer = {RowInitializer::Kind::kNormal, -0.0};
  spec.missing = TableSpec::Missing::kError;
  spec.bias_scope = TableSpec::BiasScope::kTable;
  spec.not_finite = TableSpec::NotFinite::kSkipRow;
  spec.mean_of_occurrences = true;
  spec.admit_after = 300;
  spec.admit_probability = 0.25;
  spec.time_to_live = 0xFFFFFFFF;
  spec.capacity = std::uint64_t{1} << 40;
  spec.eviction = TableSpec::Eviction::kLeastFrequent;
  spec.buckets = 16;
  spec.wire = TableSpec::Wire::kInt8;
  TableMessage message;
  message.set_name("users");
  message.set_dim(std::int64_t{1} << 33);
  message.set_seed(0xFEDCBA9876543210);
  message.set_optimizer(R"({"name":"adam"})");
  message.set_initializer(2);
  message.set_initializer_scale(-0.0);
  message.set_missing(2);
  message.set_bias_scope(1);
  message.set_not_finite(1);
  message.set_mean_of_occurrences(true);
  message.set_admit_after(300);
  message.set_admit_probability(0.25);
  message.set_time_to_live(0xFFFFFFFF);
  message.set_capacity(std::uint64_t{1} << 40);
  message.set_eviction(1);
  message.set_buckets(16);
  message.set_wire(2);
  EXPECT_EQ(ToMessage(spec), message.SerializeAsString());

  TableSpec nothing;
  nothing.admit_after = 0;
  nothing.admit_probability = 0;
  nothing.buckets = 0;
  EXPECT_EQ(ToMessage(nothing), "");
}

TEST(TableSpec, TravelsAndIsChecked) {
  TableSpec spec = SmallSpec();
  spec.capacity = 1000;
  spec.admit_after = 3;
  spec.eviction = TableSpec::Eviction::kLeastFrequent;
  spec.bias_scope = TableSpec::BiasScope::kTable;
  spec.not_finite = TableSpec::NotFinite::kSkipRow;
  spec.time_to_live = 9;
  spec.mean_of_occurrences = true;
  const std::string bytes = ToMessage(spec);
  EXPECT_EQ(OrThrow(SpecOf(bytes)), spec);
  TableSpec with_feedback = spec;  // a worker's own affair
  with_feedback.wire_feedback = 5;
  EXPECT_EQ(ToMessage(with_feedback), bytes);
  EXPECT_EQ(with_feedback.Compare(spec, "ps:0"), OkStatus());
  EXPECT_EQ(with_feedback.Fingerprint(), spec.Fingerprint());
  EXPECT_EQ(SpecOf(bytes.substr(0, 5)).status().code(), StatusCode::kDataLoss);
  TableMessage message;
  ASSERT_TRUE(message.ParseFromString(bytes));
  message.set_missing(9);
  EXPECT_EQ(SpecOf(message.SerializeAsString()).status().code(), StatusCode::kUnimplemented);

  TableSpec bad = SmallSpec(R"({"name":"magic"})");
  bad.dim = 0;
  bad.buckets = 12;
  bad.admit_probability = 0;
  const Status status = bad.Check();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("\"users\""), HasSubstr("dim is 0"), HasSubstr("buckets is 12"),
                    HasSubstr("admit_probability"), HasSubstr("magic")));
  bad = SmallSpec();
  bad.missing = TableSpec::Missing::kError;
  bad.capacity = 100;
  EXPECT_THAT(bad.Check().message(), HasSubstr("no eviction"));
  bad = SmallSpec();
  bad.wire_feedback = (std::uint64_t{1} << 31) + 1;
  EXPECT_THAT(bad.Check().message(), HasSubstr("wire_feedback is 2147483649 rows"));
  bad = SmallSpec();
  bad.missing = TableSpec::Missing::kZeros;
  EXPECT_THAT(bad.Check().message(), HasSubstr("initializer zeros"));
  bad = SmallSpec(Sgd({.global_clip_norm = 1})->config());
  EXPECT_THAT(bad.Check().message(), HasSubstr("global_clip_norm"));
  EXPECT_THAT(RowTable::Create(SmallSpec(), {3, 17}).status().message(), HasSubstr("3 to 17"));
}

}  // namespace
}  // namespace cohort::ps::row_tables
