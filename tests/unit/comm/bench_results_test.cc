// Wrong results in `cohort bench allreduce` and its kin: counted, told, and no exit code 0.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "commands/bench/block.h"
#include "commands/bench/report.h"

namespace cohort::bench {
namespace {

using ::testing::HasSubstr;

// At place i of operation k.
int Given(int rank, std::int64_t i, int k) { return static_cast<int>((i + rank + k) % 4); }

// Rank 1 of 2, which knows what the other gives. Some of its results are one more than they should
// be.
class SpoiltSubject final : public Subject {
 public:
  explicit SpoiltSubject(int spoilt) : spoilt_(spoilt) {}

  int rank() const override { return 1; }
  int size() const override { return 2; }
  Status Barrier() override { return {}; }

  Status Run(Operation operation, const Buffers& buffers) override {
    auto* const out = static_cast<float*>(buffers.output.data);
    const std::int64_t n = buffers.output.count;
    for (std::int64_t i = 0; i < n; ++i) {
      out[i] = static_cast<float>(Right(operation, i, n));
    }
    for (int s = 0; s < spoilt_; ++s) {
      out[n - 1 - s] += 1;
    }
    ++k_;
    return {};
  }

 private:
  int Right(Operation operation, std::int64_t i, std::int64_t n) const {
    switch (operation) {
      case Operation::kAllReduce:
        return Given(0, i, k_) + Given(1, i, k_);
      case Operation::kReduceScatter:
        return Given(0, n + i, k_) + Given(1, n + i, k_);
      case Operation::kAllGather:
        return Given(i < n / 2 ? 0 : 1, i % (n / 2), k_);
      case Operation::kBroadcast:
        return Given(0, i, k_);
    }
    return -1;
  }

  const int spoilt_;
  int k_ = 0;
};

Row Measure(const Options& options, int spoilt) {
  SpoiltSubject subject(spoilt);
  Workload workload =
      OrThrow(Workload::Make(subject, options.operation, DType::kFloat32, options.sizes.front()));
  std::uint64_t k = 0;
  const Block block = OrThrow(
      RunBlock(subject, *MakeBarrierStartLine(subject), workload, /*iterations=*/3, k, options));
  EXPECT_EQ(block.seconds.size(), 3U);
  Row row;
  row.bytes = workload.bytes();
  row.rounds = block.seconds;
  row.wrong = block.wrong;
  return row;
}

TEST(BenchResults, AWrongElementIsCountedToldAndNoExitCode0) {
  const std::vector<SubjectSpec> specs = {{"cohort", "", "shm"}, {"gloo", "ring", "tcp"}};
  for (int o = 0; o < 4; ++o) {
    Options options;
    options.operation = static_cast<Operation>(o);
    options.sizes = {12'000};  // more than a tile of the pattern, and not whole tiles
    options.json = true;
    const std::vector<Row> rows = {Measure(options, 0), Measure(options, 2)};
    EXPECT_EQ(rows[0].wrong, 0) << OperationName(options.operation);
    EXPECT_EQ(rows[1].wrong, 2 * 5) << "of five operations, two of which are not timed";

    ::testing::internal::CaptureStdout();
    Report(options).Print(specs, rows);
    const std::string text = ::testing::internal::GetCapturedStdout();
    EXPECT_EQ(nlohmann::json::parse(text.substr(0, text.find('\n')))["wrong"], 0);
    EXPECT_EQ(nlohmann::json::parse(text.substr(text.find('\n')))["wrong"], 10);

    EXPECT_EQ(ExitCode(CheckResults(specs, {rows[0], rows[0]})), 0);
    const Status status = CheckResults(specs, rows);
    EXPECT_EQ(ExitCode(status), 1);
    EXPECT_THAT(status.message(), HasSubstr("gloo ring, 10 elements of 12000 bytes"));
  }
}

}  // namespace
}  // namespace cohort::bench
