// Sparse tables on a device with memory of its own: rows and sums of gradients have the CPU's bits,
// and neither travels more than once for each id.

#include <cohort/core/random.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/operations.h>
#include <cohort/optim/row_source.h>

#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/far_device.h"
#include "testing/finite_difference.h"

namespace cohort::nn {
namespace {

using testing::FarTraffic;
using testing::MakeFarDevice;
using testing::RandomTensor;
using testing::TrafficOf;
using Ids = std::vector<std::int64_t>;

constexpr std::int64_t kWidth = 5;
constexpr std::int64_t kTables = 2;

struct Wanted {
  int table = 0;
  Ids ids;
};
struct Case {
  const char* name;
  std::vector<Wanted> lookups;
  friend std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }
};

const Case kCases[] = {
    {"repeated", {{0, {3, 1, 3, 3, 7, 1, 3}}}},
    {"all_equal", {{0, {5, 5, 5, 5, 5, 5}}}},
    {"all_distinct", {{0, {9, 8, 7, 6}}}},
    {"nothing", {{0, {}}}},
    {"one", {{1, {1LL << 40}}}},
    {"several_tables", {{0, {3, 1, 3}}, {1, {3, 3, 2, 3}}}},
    {"a_table_several_times", {{0, {3, 1, 3, 2, 3}}, {1, {2, 2}}, {0, {1, 3, 8, 3}}, {0, {}}}},
};

// Rows that are drawn from their ids.
class DrawnRows final : public RowSource {
 public:
  explicit DrawnRows(Status answer = {}) : answer_(std::move(answer)) {}

  Status Lookup(int table, std::span<const std::uint64_t> ids, bool /*training*/,
                std::span<float> rows) override {
    EXPECT_EQ(rows.size(), ids.size() * kWidth);
    asked += ids.size();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i] = Philox(static_cast<std::uint64_t>(table), "rows")
                    .Uniform(ids[i / kWidth], static_cast<std::uint64_t>(i % kWidth));
    }
    return answer_;
  }

  std::size_t asked = 0;

 private:
  const Status answer_;
};

// Adds gradients up in the order in which it gets them, as who sends them to servers does.
class SummingSink final : public GradientSink {
 public:
  struct Sum {
    std::vector<float> values;
    std::uint32_t count = 0;
    friend bool operator==(const Sum&, const Sum&) = default;
  };

  void AddRows(const RowGradients& given) override {
    ASSERT_EQ(given.values.size(), given.ids.size() * kWidth);
    for (std::size_t i = 0; i < given.ids.size(); ++i) {
      const std::span<const float> from = given.values.subspan(i * kWidth, kWidth);
      Sum& sum = sums[{given.table, given.ids[i]}];
      if (sum.count == 0) {
        sum.values.assign(from.begin(), from.end());
        order[given.table].push_back(given.ids[i]);
      } else {
        for (std::size_t k = 0; k < kWidth; ++k) {
          sum.values[k] += from[k];
        }
      }
      sum.count += given.counts.empty() ? 1 : given.counts[i];
    }
    rows += given.ids.size();
  }
  std::span<float> Accumulator(int) override { throw ContractError("no parameters"); }
  void AddSlices(int, const IndexedSlices&) override { throw ContractError("no parameters"); }
  void Ready(int) override { throw ContractError("no parameters"); }
  float loss_seed() const override { return 0.75F; }

  std::map<std::pair<int, std::uint64_t>, Sum> sums;
  std::map<int, std::vector<std::uint64_t>> order;  // by table, of the ids' first gradients
  std::size_t rows = 0;
};

struct Outcome {
  std::vector<std::vector<float>> rows;  // of each lookup
  SummingSink sink;
  std::size_t asked = 0;
  FarTraffic traffic;  // of forward and backward pass
};

FarTraffic Since(const FarTraffic& before, const FarTraffic& now) {
  return {.to_device = now.to_device - before.to_device, .to_host = now.to_host - before.to_host};
}

// Every lookup's rows times numbers that are drawn, summed up.
void RunOn(const std::shared_ptr<Device>& device, const std::vector<Wanted>& lookups,
           Outcome& outcome, bool training = true) {
  const bool far = device->memory_space() == MemorySpace::kDevice;
  ParameterSet declared;
  std::vector<Embedding> tables;
  for (int t = 0; t < kTables; ++t) {
    tables.emplace_back(declared, "t" + std::to_string(t), 0, kWidth,
                        EmbeddingOptions{.table = TableSpec()});
  }
  declared.Build();
  const auto stream = device->MakeStream();
  ParameterSet parameters = declared.CopyOn(*device, *stream);
  DrawnRows source;
  parameters.SetRows(&source);
  Workspace workspace(device);
  Tape tape(parameters, *stream, workspace, {.training = training, .intra_op_threads = 1});
  const FarTraffic before = far ? TrafficOf(*device) : FarTraffic();
  std::vector<Variable> found;
  std::optional<Variable> loss;
  for (const Wanted& wanted : lookups) {
    const auto count = static_cast<std::int64_t>(wanted.ids.size());
    found.push_back(tables[static_cast<std::size_t>(wanted.table)](
        tape, Tensor::Of<std::int64_t>({count}, wanted.ids)));
    ASSERT_EQ(found.back().shape(), Shape({count, kWidth}));
    const Variable drawn = tape.Input(RandomTensor({count, kWidth}, 10 + found.size()));
    const Variable sum = Sum(Sum(Multiply(found.back(), drawn), 1), 0);
    loss = loss.has_value() ? Add(*loss, sum) : sum;
  }
  if (training) {
    tape.Backward(*loss, outcome.sink);
  }
  ASSERT_EQ(tape.Finish(), OkStatus());
  outcome.traffic = Since(before, far ? TrafficOf(*device) : FarTraffic());
  outcome.asked = source.asked;
  for (const Variable& rows : found) {
    const Tensor copy = tape.Fetch(rows);
    ASSERT_EQ(tape.Finish(), OkStatus());
    outcome.rows.emplace_back(Floats(copy).begin(), Floats(copy).end());
  }
}

std::int64_t Different(const Ids& ids) {
  return static_cast<std::int64_t>(std::set<std::int64_t>(ids.begin(), ids.end()).size());
}

class FarTables : public ::testing::TestWithParam<Case> {};

TEST_P(FarTables, HaveTheCpusBits) {
  const Case& c = GetParam();
  Outcome expected;
  ASSERT_NO_FATAL_FAILURE(RunOn(CpuDevice(), c.lookups, expected));
  Outcome got;
  ASSERT_NO_FATAL_FAILURE(RunOn(MakeFarDevice(), c.lookups, got));
  EXPECT_EQ(got.rows, expected.rows);
  EXPECT_TRUE(got.sink.sums == expected.sink.sums);
  EXPECT_EQ(got.sink.order, expected.sink.order) << "what is sent is the same, byte by byte";
  Outcome evaluated;
  ASSERT_NO_FATAL_FAILURE(RunOn(MakeFarDevice(), c.lookups, evaluated, /*training=*/false));
  EXPECT_EQ(evaluated.rows, expected.rows);
  EXPECT_EQ(evaluated.traffic.to_host, 0);
}

TEST_P(FarTables, TravelOnceForEachId) {
  const Case& c = GetParam();
  Outcome got;
  ASSERT_NO_FATAL_FAILURE(RunOn(MakeFarDevice(), c.lookups, got));
  constexpr std::int64_t kRow = kWidth * sizeof(float);
  std::int64_t asked = 0;
  std::int64_t to_device = 0;
  std::map<int, std::vector<const Wanted*>> by_table;
  for (const Wanted& wanted : c.lookups) {
    const auto count = static_cast<std::int64_t>(wanted.ids.size());
    asked += Different(wanted.ids);
    // Rows, and where each goes; and the numbers that they are multiplied by.
    to_device += Different(wanted.ids) * kRow + count * 4 + count * kRow;
    if (count > 0) {
      by_table[wanted.table].push_back(&wanted);
    }
  }
  std::int64_t sums = 0;
  for (const auto& [table, lookups] : by_table) {
    Ids all;
    for (const Wanted* const wanted : lookups) {
      all.insert(all.end(), wanted->ids.begin(), wanted->ids.end());
    }
    sums += Different(all);
    to_device += lookups.size() == 1 ? 0 : static_cast<std::int64_t>(all.size()) * 4;
  }
  EXPECT_EQ(got.asked, static_cast<std::size_t>(asked));
  EXPECT_EQ(got.sink.rows, static_cast<std::size_t>(sums));
  EXPECT_EQ(got.traffic.to_device, to_device);
  EXPECT_EQ(got.traffic.to_host, sums * kRow);
}

INSTANTIATE_TEST_SUITE_P(Lookups, FarTables, ::testing::ValuesIn(kCases),
                         [](const ::testing::TestParamInfo<Case>& c) {
                           return std::string(c.param.name);
                         });

// A lookup that fails, and ids that are no rows of the layer: Finish's status, and no gradients.
TEST(FarTableErrors, AreFinishsStatus) {
  const auto status = [](std::int64_t rows, Status answer) {
    const auto device = MakeFarDevice();
    ParameterSet declared;
    const Embedding layer(declared, "e", rows, kWidth, {.table = TableSpec()});
    declared.Build();
    const auto stream = device->MakeStream();
    ParameterSet parameters = declared.CopyOn(*device, *stream);
    DrawnRows source(std::move(answer));
    parameters.SetRows(&source);
    Workspace workspace(device);
    Tape tape(parameters, *stream, workspace, {.intra_op_threads = 1});
    SummingSink sink;
    const Ids ids = {8, 9, 8};
    tape.Backward(Sum(Sum(layer(tape, Tensor::Of<std::int64_t>({3}, ids)), 1), 0), sink);
    EXPECT_TRUE(sink.sums.empty());
    return tape.Finish();
  };
  EXPECT_EQ(status(9, {}), InvalidArgument("Embedding e: id 9 at place 1 is not in [0, 9)"));
  EXPECT_EQ(status(0, Unavailable("ps:1 is lost")), Unavailable("ps:1 is lost"));
}

}  // namespace
}  // namespace cohort::nn
