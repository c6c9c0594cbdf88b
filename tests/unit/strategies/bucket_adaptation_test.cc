// The size of buckets in a job that trains, over a network that a communicator plays. How sizes are
// chosen is shown by bucket_plan_test.cc. Processes are threads here.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
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

using Clock = std::chrono::steady_clock;
using testing::ExpectAllOk;
using testing::RunRanks;

constexpr int kParameters = 8;
constexpr std::int64_t kElements = std::int64_t{1} << 18;  // 1 MiB each
constexpr int kSteps = 12;                                 // sizes change behind step 11
constexpr std::chrono::duration<double> kLatency = std::chrono::milliseconds(8);
constexpr double kBytesPerSecond = 112.0 * (1 << 20);

// Over when `inner` is, and not before `end`.
class LateWork final : public Work {
 public:
  LateWork(std::unique_ptr<Work> inner, Clock::time_point end)
      : inner_(std::move(inner)), end_(end) {}

  bool done() const override { return Clock::now() >= end_ && inner_->done(); }
  Status Wait(Deadline deadline) override {
    const Status status = inner_->Wait(deadline);
    std::this_thread::sleep_until(std::min(end_, deadline));
    return !status.ok() || deadline >= end_ ? status : DeadlineExceeded("it is on its way");
  }
  Status Wait() override {
    const Status status = inner_->Wait();
    std::this_thread::sleep_until(end_);
    return status;
  }
  void Order(Stream& stream) override { inner_->Order(stream); }

 private:
  const std::unique_ptr<Work> inner_;
  const Clock::time_point end_;
};

// A link on which all-reduces travel one after the other, each as long as its bytes take.
class SlowLink final : public testing::PassingCommunicator {
 public:
  struct Seen {
    std::vector<std::int64_t> buckets;  // elements of each of the present step's
    std::vector<std::vector<std::int64_t>> steps;
  };
  SlowLink(std::unique_ptr<Communicator> inner, Seen& seen)
      : PassingCommunicator(std::move(inner)), seen_(seen) {}

  Pending AllReduce(ConstBuffer input, Buffer output, ReduceOp op,
                    const CollectiveOptions& options) override {
    if (options.name.starts_with("gradients, bucket")) {
      seen_.buckets.push_back(output.count);
    }
    Pending pending = inner().AllReduce(input, output, op, options);
    if (!pending.ok()) {
      return pending;
    }
    const std::chrono::duration<double> takes =
        kLatency +
        std::chrono::duration<double>(static_cast<double>(output.bytes()) / kBytesPerSecond);
    free_ = std::max(free_, Clock::now()) + std::chrono::duration_cast<Clock::duration>(takes);
    return std::unique_ptr<Work>(std::make_unique<LateWork>(std::move(pending).value(), free_));
  }

 private:
  Seen& seen_;
  Clock::time_point free_;
};

Result<ReplicaResult> AllOnes(ReplicaContext& context, const data::Batch& /*batch*/) {
  for (int p = 0; p < context.parameters.size(); ++p) {
    std::ranges::fill(context.gradients.Accumulator(p), context.gradients.loss_seed());
    context.gradients.Ready(p);
  }
  return ReplicaResult{.weight = 1};
}

// By process, what each step sent.
std::vector<SlowLink::Seen> Train(int processes, const StrategyOptions& options) {
  auto communicators = MakeLocalCommunicators(processes);
  std::vector<SlowLink::Seen> seen(static_cast<std::size_t>(processes));
  ExpectAllOk(RunRanks(processes, [&](int process) -> Status {
    SlowLink::Seen& mine = seen[static_cast<std::size_t>(process)];
    SynchronousParts parts;
    parts.communicator = std::make_unique<SlowLink>(
        std::move(communicators[static_cast<std::size_t>(process)]), mine);
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), options));
    ParameterSet parameters;
    for (int p = 0; p < kParameters; ++p) {
      parameters.Add("p" + std::to_string(p), {kElements}, nullptr);
    }
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({.learning_rate = 0.5})));
    DistributedBatch batch;
    batch.replicas.assign(1, {.size = 1, .features = {}});
    for (int step = 0; step < kSteps; ++step) {
      COHORT_RETURN_IF_ERROR(strategy->Step(batch, AllOnes).status());
      mine.steps.push_back(std::exchange(mine.buckets, {}));
    }
    EXPECT_NEAR(parameters.value(3)[7], -0.5 * kSteps, 1e-4);
    return strategy->Shutdown();
  }));
  return seen;
}

void ExpectEqualOnAll(const std::vector<SlowLink::Seen>& seen) {
  for (const SlowLink::Seen& of_process : seen) {
    EXPECT_EQ(of_process.steps, seen.front().steps);
  }
}

// With 8 MiB of gradients, 8 ms and 112 MiB/s buckets of 2.7 MiB are best: 25 MiB are too many.
TEST(BucketAdaptation, ChangesTheSizeOnAllProcessesAtOnce) {
  for (const int processes : {2, 3}) {
    SCOPED_TRACE(processes);
    StrategyOptions options;
    options.communication.implementation = "shared";  // in buckets, of two processes too
    const std::vector<SlowLink::Seen> seen = Train(processes, options);
    ExpectEqualOnAll(seen);
    const auto& steps = seen.front().steps;
    ASSERT_EQ(steps.size(), static_cast<std::size_t>(kSteps));
    for (int step = 0; step < kSteps - 1; ++step) {
      EXPECT_EQ(steps[static_cast<std::size_t>(step)], steps.front()) << step;
    }
    EXPECT_EQ(steps.front().size(), 2U);  // the first, of 1 MiB, and the rest
    EXPECT_GT(steps.back().size(), steps.front().size());
    EXPECT_LT(std::ranges::max(steps.back()), std::ranges::max(steps.front()));
  }
}

// Where sums depend on the cuts a clock has no say in them.
TEST(BucketAdaptation, LeavesAloneWhatWouldChangeTheBits) {
  StrategyOptions options;
  options.communication.implementation = "ring";
  const std::vector<SlowLink::Seen> seen = Train(3, options);
  ExpectEqualOnAll(seen);
  EXPECT_EQ(seen.front().steps.back(), seen.front().steps.front());
}

}  // namespace
}  // namespace cohort
