// Workers that pull the rows of several batches ahead: what they read has all of their own updates,
// so that one worker has the bits of one process; and of others' what its depth allows.
#include <cohort/core/random.h>
#include <cohort/data/memory.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <cohort/optim/server_side.h>
#include <cohort/strategies/parameter_server.h>
#include <cohort/train/trainer.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <numeric>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "conformance/parameter_server_job.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;

struct Outcome {
  std::vector<float> values;             // of the chief, or the only process
  std::vector<std::vector<float>> rows;  // by table, in the order of their ids
  std::int64_t foreseen = 0;             // of a worker
  std::int64_t refreshed = 0;
};

using RunTask = std::function<Result<Outcome>(Strategy&)>;

// A chief, workers and servers, as threads: what the chief came to, with the workers' counts.
Outcome OnServers(int workers, int servers, const std::string& consistency, int lookahead,
                  const RunTask& run) {
  StrategyOptions options{.lookahead = lookahead};
  options.consistency = OrThrow(Consistency::Parse(consistency));
  auto [outcome, training] = RunWithChief<Outcome>(workers, servers, options, run);
  for (const Outcome& worker : training) {
    outcome.foreseen += worker.foreseen;
    outcome.refreshed += worker.refreshed;
  }
  return outcome;
}

// When training is over. `ids`: of each table the rows that may be there.
Result<Outcome> OutcomeOf(Strategy& strategy, const ParameterSet& parameters, std::uint64_t ids) {
  Outcome outcome;
  if (strategy.is_chief()) {
    std::vector<std::uint64_t> all(ids);
    std::iota(all.begin(), all.end(), 0);
    for (std::size_t t = 0; t < parameters.tables().size(); ++t) {
      std::vector<float> rows(all.size() * static_cast<std::size_t>(parameters.tables()[t].dim));
      COHORT_RETURN_IF_ERROR(
          parameters.rows().Lookup(static_cast<int>(t), all, /*training=*/false, rows));
      outcome.rows.push_back(std::move(rows));
    }
    outcome.values.assign(parameters.all().begin(), parameters.all().end());
  }
  if (auto* const servers = dynamic_cast<ParameterServerStrategy*>(&strategy);
      servers != nullptr && strategy.trains()) {
    COHORT_ASSIGN_OR_RETURN(const ParameterServerStats stats, servers->stats());
    outcome.foreseen = stats.foreseen;
    outcome.refreshed = stats.refreshed_rows;
  }
  COHORT_RETURN_IF_ERROR(strategy.Shutdown());
  return outcome;
}

// ---- One worker ---------------------------------------------------------------------------------

constexpr std::int64_t kExamples = 240;  // in batches of 2, and splits of 12 and less
constexpr std::uint64_t kIds = 60;
constexpr std::uint64_t kDerived = 30;  // ids behind those, which no feature has

data::Dataset TwoFeatures() {
  const Philox random(9, "features");
  Tensor ids(DType::kInt64, {kExamples, 2});
  Tensor more(DType::kInt64, {kExamples, 1});
  std::uint64_t draw = 0;
  for (const Tensor& tensor : {ids, more}) {
    for (std::int64_t& id : tensor.data<std::int64_t>()) {
      id = static_cast<std::int64_t>(random.Below(kIds, draw++));
    }
  }
  return OrThrow(data::FromTensors({{"ids", ids}, {"more", more}}));
}

// Tables of every kind that a pull may matter to. `late`: under rules that ask how late a gradient
// is.
std::vector<TableSpec> Tables(bool late) {
  TableSpec plain{.name = "plain", .dim = 2, .buckets = 4};
  plain.initializer = {RowInitializer::Kind::kUniform, 0.5};
  plain.optimizer = Adagrad({.learning_rate = 0.1})->config();
  TableSpec counted = plain;
  counted.name = "counted";
  if (late) {
    counted.optimizer =
        ServerSide(counted.optimizer, {.delay_compensation = 1, .staleness_scaling = true});
  }
  TableSpec admitted = plain;
  admitted.name = "admitted";
  admitted.admit_after = 4;
  TableSpec full = plain;
  full.name = "full";
  full.capacity = 24;
  full.buckets = 2;
  TableSpec aging = plain;
  aging.name = "aging";
  aging.time_to_live = 3;
  return {plain, counted, admitted, full, aging};
}

// What a step makes of a row depends on what it is.
Result<ReplicaResult> StepOnTables(ReplicaContext& context, const data::Batch& batch) {
  const auto ids_of = [&](const char* feature) {
    const auto ids = batch[feature].data<std::int64_t>();
    return std::vector<std::uint64_t>(ids.begin(), ids.end());
  };
  float sum = 0;
  const auto train = [&](int table, const std::vector<std::uint64_t>& ids) -> Status {
    std::vector<float> rows(2 * ids.size());
    COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(table, ids, /*training=*/true, rows));
    std::vector<float> gradients;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      sum += rows[i];
      gradients.push_back(0.3F * rows[i] + static_cast<float>(ids[i / 2] % 5) - 2);
    }
    context.gradients.AddRows(table, ids, gradients);
    return {};
  };
  const std::vector<std::uint64_t> ids = ids_of("ids");
  const std::vector<std::uint64_t> more = ids_of("more");
  for (int table = 0; table < static_cast<int>(context.parameters.tables().size()); ++table) {
    COHORT_RETURN_IF_ERROR(train(table, ids));
  }
  COHORT_RETURN_IF_ERROR(train(0, more));
  COHORT_RETURN_IF_ERROR(train(1, more));
  COHORT_RETURN_IF_ERROR(train(0, {kIds + (ids[0] + more[0]) % kDerived}));  // nobody foresees
  context.gradients.Accumulator(0)[0] = sum + 0.1F * std::as_const(context.parameters).value(0)[0];
  context.gradients.Ready(0);
  return ReplicaResult{.loss_sum = 0, .weight = static_cast<double>(batch.size), .metric_sums = {}};
}

Result<Outcome> TrainOnTables(Strategy& strategy, bool late) {
  ParameterSet parameters;
  parameters.Add("bias", {1}, {});
  for (const TableSpec& table : Tables(late)) {
    parameters.AddTable(table);
  }
  parameters.Build();
  COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 0.01})));
  Trainer trainer(strategy, parameters, {.epochs = 2, .log = Log()});
  COHORT_RETURN_IF_ERROR(trainer.Fit(TwoFeatures().Batch(2), StepOnTables).status());
  return OutcomeOf(strategy, parameters, kIds + kDerived);
}

TEST(Lookahead, OneWorkerHasTheBitsOfOneProcessAtAnyDepth) {
  const Outcome alone =
      OrThrow(TrainOnTables(*OrThrow(Strategy::FromEnv("one_device", {})), /*late=*/false));
  ASSERT_EQ(alone.rows.size(), 5U);
  for (const char* consistency : {"async", "ssp:1", "sync"}) {
    const bool rounds = std::string(consistency) == "sync";
    for (const int depth : {0, 1, 2, 3, 4}) {
      SCOPED_TRACE(std::string(consistency) + ", depth " + std::to_string(depth));
      const Outcome remote = OnServers(1, 2, consistency, depth, [&](Strategy& strategy) {
        return TrainOnTables(strategy, !rounds);
      });
      EXPECT_EQ(remote.values, alone.values);
      ASSERT_EQ(remote.rows.size(), alone.rows.size());
      for (std::size_t t = 0; t < alone.rows.size(); ++t) {
        EXPECT_TRUE(remote.rows[t] == alone.rows[t]) << Tables(false)[t].name;
      }
      if (depth == 0) {
        EXPECT_EQ(remote.foreseen, 0);
      } else {
        EXPECT_GT(remote.foreseen, 2 * 60 * 7) << "of most steps the lookups of features";
      }
      if (depth > 1 && !rounds) {
        EXPECT_GT(remote.refreshed, 0);
      } else {
        EXPECT_EQ(remote.refreshed, 0);
      }
    }
  }
}

// ---- Two workers --------------------------------------------------------------------------------

struct Depth {
  std::string consistency;
  int batches = 1;
};
void PrintTo(const Depth& depth, std::ostream* out) {
  *out << depth.consistency << ", " << depth.batches;
}
class TwoWorkers : public ::testing::TestWithParam<Depth> {};

// Each counts its steps in a row and an element of its own, and looks at both rows.
TEST_P(TwoWorkers, ReadAllOfTheirOwnUpdatesAndOfOthersWhatTheDepthAllows) {
  constexpr std::int64_t kSteps = 480;  // of both, in splits of 24 and less
  const auto& [consistency, depth] = GetParam();
  // Rows are pulled behind an exchange of values under bounded staleness, else beside it.
  const std::int64_t older = depth - (consistency == "async" ? 0 : 1);
  std::atomic<int> without_own{0};
  std::atomic<int> too_old{0};
  Tensor both(DType::kInt64, {kSteps, 2});
  for (std::size_t i = 0; i < both.data<std::int64_t>().size(); ++i) {
    both.data<std::int64_t>()[i] = static_cast<std::int64_t>(i % 2);
  }
  const data::Dataset data = OrThrow(data::FromTensors({{"ids", both}}));
  const RunTask run = [&](Strategy& strategy) -> Result<Outcome> {
    ParameterSet parameters;
    parameters.Add("counts", {2}, {});
    parameters.AddTable({.name = "rows", .dim = 1, .buckets = 4});
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
    const auto own = static_cast<std::size_t>(strategy.cluster().task.index);
    std::vector<float> seen;  // by step, of the other's count
    const StepFn step = [&](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
      std::vector<float> rows(2);
      COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, std::vector<std::uint64_t>{0, 1},
                                                              /*training=*/true, rows));
      const auto steps = static_cast<std::int64_t>(seen.size());
      seen.push_back(std::as_const(context.parameters).value(0)[1 - own]);
      without_own += rows[own] != static_cast<float>(steps) ? 1 : 0;
      const std::int64_t least = std::max<std::int64_t>(0, steps - older);
      too_old += rows[1 - own] < seen[static_cast<std::size_t>(least)] ? 1 : 0;
      context.gradients.AddRows(0, std::vector<std::uint64_t>{own}, std::vector<float>{-1});
      context.gradients.Accumulator(0)[own] = -1;
      context.gradients.Ready(0);
      return ReplicaResult{.loss_sum = 0, .weight = 1, .metric_sums = {}};
    };
    Trainer trainer(strategy, parameters, {.epochs = 1, .log = Log()});
    COHORT_RETURN_IF_ERROR(trainer.Fit(data.Batch(1), step).status());
    return OutcomeOf(strategy, parameters, 2);
  };
  const Outcome outcome = OnServers(2, 2, consistency, depth, run);
  EXPECT_EQ(without_own, 0);
  EXPECT_EQ(too_old, 0);
  EXPECT_GT(outcome.foreseen, kSteps / 2);
  EXPECT_GT(outcome.refreshed, 0);
  ASSERT_EQ(outcome.rows.size(), 1U);
  ASSERT_EQ(outcome.rows[0].size(), 2U);
  EXPECT_EQ(outcome.rows[0][0], outcome.values[0]);  // which the arena pads
  EXPECT_EQ(outcome.rows[0][1], outcome.values[1]);
  EXPECT_EQ(outcome.values[0] + outcome.values[1], static_cast<float>(kSteps));
}

INSTANTIATE_TEST_SUITE_P(Lookahead, TwoWorkers,
                         ::testing::Values(Depth{"async", 2}, Depth{"async", 5}, Depth{"ssp:0", 3},
                                           Depth{"ssp:2", 4}),
                         [](const auto& of) {
                           std::string name =
                               of.param.consistency + "_" + std::to_string(of.param.batches);
                           std::ranges::replace(name, ':', '_');
                           return name;
                         });

TEST(Lookahead, ADepthThatIsOutOfRangeIsRefused) {
  const Job job(1, 1);
  for (const int depth : {-1, StrategyOptions::kMaxLookahead + 1}) {
    const Status status = job.Make({TaskType::kWorker, 0}, {.lookahead = depth}).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr("lookahead of " + std::to_string(depth)));
  }
}

}  // namespace
}  // namespace cohort::testing
