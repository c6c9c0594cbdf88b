// When buckets of gradients are on their way: while the backward pass goes on, or behind it.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cohort/comm/local.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/passing_communicator.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using ::testing::Each;
using testing::ExpectAllOk;
using testing::RunRanks;
using ::testing::StartsWith;

constexpr int kProcesses = 2;
constexpr std::int64_t kElements = 5000;

// One that the test may ask, too.
class SharedWork final : public Work {
 public:
  explicit SharedWork(std::shared_ptr<Work> work) : work_(std::move(work)) {}
  bool done() const override { return work_->done(); }
  Status Wait(Deadline deadline) override { return work_->Wait(deadline); }
  Status Wait() override { return work_->Wait(); }
  void Order(Stream& stream) override { work_->Order(stream); }

 private:
  const std::shared_ptr<Work> work_;  // owners: this and the test
};

struct Launch {
  std::string name;
  std::shared_ptr<Work> work;
};

// Keeps what becomes of gradients.
class Watched final : public testing::PassingCommunicator {
 public:
  Watched(std::unique_ptr<Communicator> inner, std::vector<Launch>& launches)
      : PassingCommunicator(std::move(inner)), launches_(launches) {}

  Pending AllReduce(ConstBuffer input, Buffer output, ReduceOp op,
                    const CollectiveOptions& options) override {
    COHORT_ASSIGN_OR_RETURN(std::shared_ptr<Work> work,
                            inner().AllReduce(input, output, op, options));
    if (options.name.starts_with("gradients, bucket")) {
      launches_.push_back({options.name, work});
    }
    return std::unique_ptr<Work>(std::make_unique<SharedWork>(std::move(work)));
  }

 private:
  std::vector<Launch>& launches_;
};

// Three steps of two processes, of one replica each; `launches` of a step are those of its process.
using Step = std::function<void(ReplicaContext& context, std::vector<Launch>& launches)>;
void Train(const StrategyOptions& options, const Step& step, std::size_t buckets) {
  auto communicators = MakeLocalCommunicators(kProcesses);
  ExpectAllOk(RunRanks(kProcesses, [&](int process) -> Status {
    std::vector<Launch> launches;
    SynchronousParts parts;
    parts.communicator = std::make_unique<Watched>(
        std::move(communicators[static_cast<std::size_t>(process)]), launches);
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), options));
    ParameterSet parameters;
    parameters.Add("first", {kElements}, nullptr);
    parameters.Add("last", {kElements}, nullptr);
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({.learning_rate = 1})));
    DistributedBatch batch;
    batch.replicas.assign(1, {.size = 1, .features = {}});
    for (int number = 1; number <= 3; ++number) {
      launches.clear();
      COHORT_RETURN_IF_ERROR(
          strategy
              ->Step(batch,
                     [&](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
                       step(context, launches);
                       return ReplicaResult{.loss_sum = 0, .weight = 1};
                     })
              .status());
      EXPECT_EQ(launches.size(), buckets);
      // The mean of what replicas 0 and 1 give.
      EXPECT_THAT(parameters.value(0), Each(-1.5F * static_cast<float>(number)));
      EXPECT_THAT(parameters.value(1), Each(-1.5F * static_cast<float>(number)));
    }
    return strategy->Shutdown();
  }));
}

std::span<float> Give(ReplicaContext& context, int parameter) {
  const std::span<float> gradient = context.gradients.Accumulator(parameter);
  std::ranges::fill(gradient, static_cast<float>(context.replica + 1));
  context.gradients.Ready(parameter);
  return gradient;
}

// Bucket 0 is launched by the Ready that completes it, and the sum over the processes is there
// before either has given the rest.
TEST(BucketLaunch, ABucketIsReducedWhileTheBackwardPassGoesOn) {
  StrategyOptions options;
  options.first_bucket_bytes = 1;
  options.communication.bytes_per_pack = 1;  // a bucket for each parameter
  Train(
      options,
      [](ReplicaContext& context, std::vector<Launch>& launches) {
        EXPECT_TRUE(launches.empty());
        const std::span<const float> sum = Give(context, 1);
        ASSERT_EQ(launches.size(), 1U);
        EXPECT_THAT(launches[0].name, StartsWith("gradients, bucket 0 (last)"));
        const Deadline deadline = DeadlineAfter(std::chrono::seconds(20));
        while (!launches[0].work->done() && std::chrono::steady_clock::now() < deadline) {
          std::this_thread::yield();
        }
        ASSERT_TRUE(launches[0].work->done());
        EXPECT_THAT(sum, Each(3.0F));
        Give(context, 0);
        ASSERT_EQ(launches.size(), 2U);
        EXPECT_THAT(launches[1].name, StartsWith("gradients, bucket 1 (first)"));
      },
      2);
}

// Where there is no core for it: nothing is under way before the pass has ended.
TEST(BucketLaunch, OneBucketFollowsThePass) {
  StrategyOptions options;
  options.communication.implementation = "one_bucket";
  Train(
      options,
      [](ReplicaContext& context, std::vector<Launch>& launches) {
        Give(context, 1);
        Give(context, 0);
        EXPECT_TRUE(launches.empty());
      },
      1);
}

}  // namespace
}  // namespace cohort
