// The bits of what is trained: the same whatever the buckets, the algorithm and the transport, and
// what cannot keep to that is refused. Processes are threads here.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cohort/comm/local.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>
#include <cohort/data/dataset.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/integer_model.h"
#include "testing/memory_store.h"
#include "testing/passing_communicator.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using ::testing::AllOf;
using testing::ExpectAllOk;
using ::testing::HasSubstr;
using testing::RunRanks;

constexpr int kProcesses = 3;  // the fewest whose sums have more than one order
constexpr std::int64_t kSmall = 300;
constexpr std::int64_t kLarge = std::int64_t{1} << 20;

enum class Over { kLocal, kShm, kTcp };
std::string NameOf(Over over) {
  return over == Over::kLocal ? "local" : over == Over::kShm ? "shm" : "tcp";
}

// Parameters smaller and larger than a small bucket, than what is sent in one shot (64 KiB of all),
// and than a segment (256 KiB).
ParameterSet RealParameters() {
  ParameterSet parameters;
  const std::vector<Shape> shapes{{50, 3}, {40}, {7}, {120, 90}, {70'001}};
  for (std::size_t p = 0; p < shapes.size(); ++p) {
    parameters.Add("p" + std::to_string(p), shapes[p], [p](std::uint64_t i) {
      return std::sin(0.7F * static_cast<float>(i % 1009) + static_cast<float>(p));
    });
  }
  parameters.Build();
  return parameters;
}

// Its parts differ by two orders of magnitude between the processes: another order of addition is
// another sum.
Result<ReplicaResult> RealStep(ReplicaContext& context, const data::Batch& /*batch*/) {
  constexpr std::array<float, kProcesses> kScales{1.0F, 0.037F, 3.7F};
  const double weight = 1 + context.replica;
  context.gradients.SetWeight(weight);
  const float scale =
      context.gradients.loss_seed() * kScales.at(static_cast<std::size_t>(context.replica));
  double loss = 0;
  for (int p = context.parameters.size() - 1; p >= 0; --p) {
    const std::span<const float> values = std::as_const(context.parameters).value(p);
    const std::span<float> gradient = context.gradients.Accumulator(p);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float slope = std::sin(1.3F * values[i] + 0.1F * static_cast<float>(i % 97) +
                                   static_cast<float>(context.replica));
      gradient[i] = scale * slope;
      loss += slope * weight;
    }
    context.gradients.Ready(p);
  }
  return ReplicaResult{.loss_sum = loss, .weight = weight};
}

Result<std::unique_ptr<Communicator>> Connect(Over over, int process, testing::MemoryStore& store,
                                              std::vector<std::unique_ptr<Communicator>>& local,
                                              const CommunicatorOptions& options) {
  switch (over) {
    case Over::kShm:
      return MakeShmCommunicator(process, kProcesses, store, "job", {}, options);
    case Over::kTcp:
      return MakeTcpCommunicator(process, kProcesses, store, "job", {}, options);
    case Over::kLocal:
      break;
  }
  return std::move(local[static_cast<std::size_t>(process)]);
}

struct Trained {
  std::vector<float> values;
  std::vector<double> losses;
};

// After five steps, on process 0; the same on the others.
Trained TrainReal(Over over, const StrategyOptions& options) {
  constexpr int kSteps = 5;
  CommunicatorOptions communicator;
  communicator.deterministic = options.deterministic;
  testing::MemoryStore store;
  std::vector<std::unique_ptr<Communicator>> local;
  if (over == Over::kLocal) {
    local = MakeLocalCommunicators(kProcesses, communicator);
  }
  std::vector<Trained> results(kProcesses);
  ExpectAllOk(RunRanks(kProcesses, [&](int process) -> Status {
    SynchronousParts parts;
    COHORT_ASSIGN_OR_RETURN(parts.communicator, Connect(over, process, store, local, communicator));
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), options));
    ParameterSet parameters = RealParameters();
    COHORT_RETURN_IF_ERROR(
        strategy->Bind(parameters, Sgd({.learning_rate = 0.3, .momentum = 0.9})));
    DistributedBatch batch;
    batch.replicas.assign(1, {.size = 1, .features = {}});
    Trained& mine = results[static_cast<std::size_t>(process)];
    for (int step = 0; step < kSteps; ++step) {
      COHORT_ASSIGN_OR_RETURN(const StepResult result, strategy->Step(batch, RealStep));
      mine.losses.push_back(result.loss);
    }
    const std::span<const float> values = std::as_const(parameters).all();
    mine.values.assign(values.begin(), values.end());
    return strategy->Shutdown();
  }));
  for (const Trained& result : results) {
    EXPECT_TRUE(std::ranges::equal(std::as_bytes(std::span(result.values)),
                                   std::as_bytes(std::span(results.front().values))));
    EXPECT_EQ(result.losses, results.front().losses);
  }
  return results.front();
}

StrategyOptions With(const std::string& implementation, std::int64_t bucket_bytes) {
  StrategyOptions options;
  options.communication.implementation = implementation;
  options.communication.bytes_per_pack = bucket_bytes;
  options.first_bucket_bytes = bucket_bytes;
  return options;
}

bool SameBits(const Trained& a, const Trained& b) {
  return std::ranges::equal(std::as_bytes(std::span(a.values)),
                            std::as_bytes(std::span(b.values))) &&
         a.losses == b.losses;
}

class Bits : public ::testing::TestWithParam<Over> {};

TEST_P(Bits, AreTheSameWhateverTheBucketsTheAlgorithmAndTheTransport) {
  const Trained expected = TrainReal(Over::kLocal, With("direct", kLarge));
  ASSERT_GE(expected.values.size(), 150U + 40 + 7 + 5400 + 70'001);
  for (const std::int64_t bucket_bytes : {kSmall, kLarge}) {
    for (const char* const implementation :
         {"direct", "recursive_doubling", "tree", "halving_doubling", "auto"}) {
      for (const bool deterministic : {false, true}) {
        StrategyOptions options = With(implementation, bucket_bytes);
        options.deterministic = deterministic;
        EXPECT_TRUE(SameBits(TrainReal(GetParam(), options), expected))
            << implementation << ", " << bucket_bytes << " bytes, deterministic " << deterministic;
      }
    }
  }
}

// So the test above could tell.
TEST_P(Bits, OfTheRingAreOthers) {
  EXPECT_FALSE(SameBits(TrainReal(GetParam(), With("ring", kLarge)),
                        TrainReal(GetParam(), With("auto", kLarge))));
}

INSTANTIATE_TEST_SUITE_P(Transports, Bits, ::testing::Values(Over::kLocal, Over::kShm, Over::kTcp),
                         [](const auto& transport) { return NameOf(transport.param); });

// One that does not keep the order under any name.
class Disorderly final : public testing::PassingCommunicator {
 public:
  using PassingCommunicator::PassingCommunicator;
  bool keeps_order(std::string_view /*algorithm*/) const override { return false; }
};

Status Refusal(const StrategyOptions& options, bool orderly = true) {
  auto communicators = MakeLocalCommunicators(2);
  SynchronousParts parts;
  parts.communicator = std::move(communicators[0]);
  if (!orderly) {
    parts.communicator = std::make_unique<Disorderly>(std::move(parts.communicator));
  }
  return MakeSynchronousStrategy(std::move(parts), options).status();
}

TEST(Deterministic, RefusesByBothNamesWhatHasAnOrderOfItsOwn) {
  StrategyOptions options;
  options.deterministic = true;
  EXPECT_TRUE(Refusal(options).ok());
  const auto refused = [&](const std::string& other) {
    const Status status = Refusal(options);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr("deterministic with " + other));
    EXPECT_THAT(Strategy::FromEnv("one_device", options).status().message(),
                HasSubstr("deterministic with " + other));
  };
  options.environment.emplace();
  options.communication.implementation = "ring";
  refused("communication.implementation 'ring'");
  options.communication.implementation = "auto";
  options.mpi_implementation = "mpi";
  refused("mpi_implementation 'mpi'");
  options.mpi_implementation = "cohort";
  options.cross_device_ops = "nccl";
  refused("cross_device_ops 'nccl'");
}

TEST(Deterministic, RefusesACommunicatorThatDoesNotKeepTheOrder) {
  StrategyOptions options;
  EXPECT_TRUE(Refusal(options, /*orderly=*/false).ok());
  options.deterministic = true;
  const Status status = Refusal(options, /*orderly=*/false);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("deterministic with communication.implementation 'auto' over local"),
                    HasSubstr("CommunicatorOptions::deterministic")));
}

TEST(Deterministic, KnowsWhichNamesKeepTheOrder) {
  for (const bool deterministic : {false, true}) {
    CommunicatorOptions options;
    options.deterministic = deterministic;
    const auto communicators = MakeLocalCommunicators(2, options);
    for (const char* const name : {"auto", "direct", "tree", "shared"}) {
      EXPECT_TRUE(communicators[1]->keeps_order(name)) << name;
    }
    for (const char* const name : {"ring", "hierarchical", "rings"}) {
      EXPECT_FALSE(communicators[1]->keeps_order(name)) << name;
    }
  }
}

TEST(Deterministic, RefusesExamplesAsTheyAreReady) {
  StrategyOptions options;
  options.deterministic = true;
  auto communicators = MakeLocalCommunicators(2);
  const std::vector<Status> statuses = RunRanks(2, [&](int process) -> Status {
    SynchronousParts parts;
    parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), options));
    COHORT_RETURN_IF_ERROR(strategy->Distribute(testing::IntegerData(20, 8)).status());
    return strategy->Distribute(testing::IntegerData(20, 8).Deterministic(false)).status();
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr("deterministic with a dataset"));
  }
}

TEST(Deterministic, IsEqualOnAllProcesses) {
  auto communicators = MakeLocalCommunicators(2);
  const std::vector<Status> statuses = RunRanks(2, [&](int process) -> Status {
    StrategyOptions options;
    options.deterministic = process == 1;
    SynchronousParts parts;
    parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), options));
    ParameterSet parameters = RealParameters();
    return strategy->Bind(parameters, Sgd({}));
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("'deterministic: no' against 'deterministic: yes'"));
  }
}

}  // namespace
}  // namespace cohort
