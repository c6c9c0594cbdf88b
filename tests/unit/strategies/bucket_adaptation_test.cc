// The size of buckets in a job that trains, over a network that a communicator plays. How sizes are
// chosen is shown by bucket_plan_test.cc. Processes are threads here.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cohort/comm/hierarchical.h>
#include <cohort/comm/local.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/bucket_hook.h>
#include <cohort/strategies/synchronous.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/memory_store.h"
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

// A link on which all-reduces and all-gathers travel one after the other, each as long as its bytes
// take.
class SlowLink final : public testing::PassingCommunicator {
 public:
  struct Nature {
    double speed = 1;
    // Sums are added in an order that depends on their place in the buffer, and the link says so.
    bool by_place = false;
  };
  struct Seen {
    std::vector<std::int64_t> buckets;  // elements of each of the present step's
    std::vector<std::vector<std::int64_t>> steps;
  };
  SlowLink(std::unique_ptr<Communicator> inner, const Nature& nature, Seen& seen)
      : PassingCommunicator(std::move(inner)), nature_(nature), seen_(seen) {}

  Pending AllReduce(ConstBuffer input, Buffer output, ReduceOp op,
                    const CollectiveOptions& options) override {
    if (options.name.starts_with("gradients, bucket")) {
      seen_.buckets.push_back(output.count);
    }
    CollectiveOptions how = options;
    if (nature_.by_place) {
      how.algorithm = "ring";
    }
    return Late(inner().AllReduce(input, output, op, how), output.bytes());
  }
  Pending AllGather(ConstBuffer input, Buffer output, const CollectiveOptions& options) override {
    return Late(inner().AllGather(input, output, options), output.bytes());
  }
  bool keeps_order(std::string_view algorithm) const override {
    return !nature_.by_place && inner().keeps_order(algorithm);
  }

 private:
  Pending Late(Pending pending, std::size_t bytes) {
    if (!pending.ok()) {
      return pending;
    }
    const std::chrono::duration<double> takes =
        (kLatency + std::chrono::duration<double>(static_cast<double>(bytes) / kBytesPerSecond)) /
        nature_.speed;
    free_ = std::max(free_, Clock::now()) + std::chrono::duration_cast<Clock::duration>(takes);
    return std::unique_ptr<Work>(std::make_unique<LateWork>(std::move(pending).value(), free_));
  }

  const Nature nature_;
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

// Others in each process, step and element, whose sums depend on their order.
Result<ReplicaResult> Uneven(ReplicaContext& context, const data::Batch& /*batch*/) {
  for (int p = 0; p < context.parameters.size(); ++p) {
    auto drawn = static_cast<std::uint32_t>(context.replica * 7919 + context.step * 104729 + p);
    for (float& gradient : context.gradients.Accumulator(p)) {
      drawn = drawn * 1664525U + 1013904223U;
      gradient = static_cast<float>(drawn >> 8) / static_cast<float>(1 << 24) - 0.5F;
    }
    context.gradients.Ready(p);
  }
  return ReplicaResult{.weight = 1};
}

// What a hook was given at a Launch.
struct Launched {
  std::int64_t step = 0;
  int index = 0;
  std::size_t elements = 0;
  std::vector<int> parameters;
  friend bool operator==(const Launched&, const Launched&) = default;
};

// Looks at each bucket, and lets `inner` have it; without one it is all-reduced.
class LookingHook final : public BucketHook {
 public:
  LookingHook(std::unique_ptr<BucketHook> inner, std::vector<Launched>& seen)
      : inner_(std::move(inner)), seen_(seen) {}

  std::string name() const override { return inner_ == nullptr ? "looks" : inner_->name(); }
  Status Bind(const ParameterSet& parameters, Communicator& communicator) override {
    parameters_ = &parameters;
    return inner_ == nullptr ? OkStatus() : inner_->Bind(parameters, communicator);
  }
  Communicator::Pending Launch(const GradientBucket& bucket) override {
    Launched launched{.step = bucket.step,
                      .index = bucket.index,
                      .elements = bucket.values.size(),
                      .parameters = {}};
    std::int64_t end = 0;
    for (const BucketPart& part : bucket.parts) {
      EXPECT_GE(part.begin, end) << "parts overlap";
      EXPECT_EQ(part.shape, (*parameters_)[part.parameter].shape);
      EXPECT_EQ(part.offset, (*parameters_)[part.parameter].offset);
      end = part.begin + part.shape.elements();
      launched.parameters.push_back(part.parameter);
    }
    EXPECT_LE(end, std::ssize(bucket.values)) << "a part is cut";
    seen_.push_back(std::move(launched));
    return inner_ == nullptr ? AllReduceBucket(bucket) : inner_->Launch(bucket);
  }

 private:
  const std::unique_ptr<BucketHook> inner_;
  std::vector<Launched>& seen_;
  const ParameterSet* parameters_ = nullptr;
};

struct Job {
  int processes = 2;
  StepFn step = Uneven;
  StrategyOptions options;
  SlowLink::Nature link;
  std::function<std::unique_ptr<BucketHook>()> hook;  // a LookingHook has it, nullptr as well
  std::string hosts;  // hierarchical among processes on these; empty: threads of one
};

// Of one process.
struct Outcome {
  std::vector<std::vector<std::int64_t>> steps;  // elements of the buckets that each all-reduced
  std::vector<Launched> launched;
  std::vector<float> values;
};

// By process.
std::vector<Outcome> Train(const Job& job) {
  std::vector<std::unique_ptr<Communicator>> local(static_cast<std::size_t>(job.processes));
  if (job.hosts.empty()) {
    local = MakeLocalCommunicators(job.processes);
  }
  testing::MemoryStore store;
  std::vector<Outcome> outcomes(static_cast<std::size_t>(job.processes));
  ExpectAllOk(RunRanks(job.processes, [&](int process) -> Status {
    const auto at = static_cast<std::size_t>(process);
    Outcome& mine = outcomes[at];
    std::unique_ptr<Communicator> communicator = std::move(local[at]);
    if (!job.hosts.empty()) {
      HierarchicalOptions hierarchical;
      hierarchical.host = job.hosts.substr(at, 1);
      COHORT_ASSIGN_OR_RETURN(
          communicator,
          MakeHierarchicalCommunicator(process, job.processes, store, "job", hierarchical));
    }
    SlowLink::Seen seen;
    SynchronousParts parts;
    parts.communicator = std::make_unique<SlowLink>(std::move(communicator), job.link, seen);
    StrategyOptions options = job.options;
    if (job.hook) {
      options.make_bucket_hook = [&] {
        return std::make_unique<LookingHook>(job.hook(), mine.launched);
      };
    }
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), std::move(options)));
    ParameterSet parameters;
    for (int p = 0; p < kParameters; ++p) {
      parameters.Add("p" + std::to_string(p), {kElements}, nullptr);
    }
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({.learning_rate = 0.5})));
    DistributedBatch batch;
    batch.replicas.assign(1, {.size = 1, .features = {}});
    for (int step = 0; step < kSteps; ++step) {
      COHORT_RETURN_IF_ERROR(strategy->Step(batch, job.step).status());
      mine.steps.push_back(std::exchange(seen.buckets, {}));
    }
    const auto values = std::as_const(parameters).all();
    mine.values.assign(values.begin(), values.end());
    return strategy->Shutdown();
  }));
  return outcomes;
}

// (A comparison of vectors would print millions of floats.)
bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Buckets and values.
void ExpectEqualOnAll(const std::vector<Outcome>& outcomes) {
  for (const Outcome& of_process : outcomes) {
    EXPECT_EQ(of_process.steps, outcomes.front().steps);
    EXPECT_EQ(of_process.launched, outcomes.front().launched);
    EXPECT_TRUE(SameBits(of_process.values, outcomes.front().values));
  }
}

// Every step has every parameter, whole and once, in buckets by index. How many each step has.
std::vector<int> BucketsOfSteps(const std::vector<Launched>& launched) {
  std::vector<int> buckets(kSteps, 0);
  std::vector<std::vector<int>> parameters(kSteps);
  for (const Launched& one : launched) {
    const auto step = static_cast<std::size_t>(one.step - 1);
    EXPECT_EQ(one.index, buckets.at(step)++) << "step " << one.step;
    parameters[step].insert(parameters[step].end(), one.parameters.begin(), one.parameters.end());
  }
  for (std::vector<int>& of_step : parameters) {
    std::ranges::sort(of_step);
    EXPECT_EQ(of_step, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7}));
  }
  return buckets;
}

// In buckets, of two processes too.
StrategyOptions InBuckets() {
  StrategyOptions options;
  options.communication.implementation = "shared";
  return options;
}
// The size that buckets begin with, and keep.
StrategyOptions OfOneSize(StrategyOptions options) {
  options.communication.bytes_per_pack = std::int64_t{25} << 20;
  return options;
}

// With 8 MiB of gradients, 8 ms and 112 MiB/s buckets of 2.7 MiB are best: 25 MiB are too many.
TEST(BucketAdaptation, ChangesTheSizeOnAllProcessesAtOnce) {
  for (const int processes : {2, 3}) {
    SCOPED_TRACE(processes);
    const std::vector<Outcome> outcomes =
        Train({.processes = processes, .step = AllOnes, .options = InBuckets()});
    ExpectEqualOnAll(outcomes);
    const auto& steps = outcomes.front().steps;
    ASSERT_EQ(steps.size(), static_cast<std::size_t>(kSteps));
    for (int step = 0; step < kSteps - 1; ++step) {
      EXPECT_EQ(steps[static_cast<std::size_t>(step)], steps.front()) << step;
    }
    EXPECT_EQ(steps.front().size(), 2U);  // the first, of 1 MiB, and the rest
    EXPECT_GT(steps.back().size(), steps.front().size());
    EXPECT_LT(std::ranges::max(steps.back()), std::ranges::max(steps.front()));
    EXPECT_NEAR(outcomes.front().values.at(3 * kElements + 7), -0.5 * kSteps, 1e-4);
  }
}

// Also where the first bucket has long landed when the only other one is launched, as it is where
// nothing is hidden.
TEST(BucketAdaptation, LearnsFromABucketThatHasTheLinkForItself) {
  const StepFn late = [](ReplicaContext& context, const data::Batch& /*batch*/) {
    for (int p = 0; p < context.parameters.size(); ++p) {
      std::ranges::fill(context.gradients.Accumulator(p), context.gradients.loss_seed());
      context.gradients.Ready(p);
      if (p == 0) {  // longer than its bucket takes
        std::this_thread::sleep_for(std::chrono::milliseconds(60));
      }
    }
    return Result<ReplicaResult>(ReplicaResult{.weight = 1});
  };
  const std::vector<Outcome> outcomes = Train({.step = late, .options = InBuckets()});
  ExpectEqualOnAll(outcomes);
  const auto& steps = outcomes.front().steps;
  ASSERT_EQ(steps.size(), static_cast<std::size_t>(kSteps));
  EXPECT_EQ(steps[1].size(), 2U);
  EXPECT_GT(steps.back().size(), 2U);
}

// Where sums depend on the cuts a clock has no say in them.
TEST(BucketAdaptation, LeavesAloneWhatWouldChangeTheBits) {
  StrategyOptions options;
  options.communication.implementation = "ring";
  const std::vector<Outcome> outcomes = Train({.processes = 3, .options = options});
  ExpectEqualOnAll(outcomes);
  EXPECT_EQ(outcomes.front().steps.back(), outcomes.front().steps.front());
}

// The same where it is the communicator that adds so.
TEST(BucketAdaptation, LeavesAloneThoseOfACommunicatorWithoutAnOrder) {
  const auto train = [](double speed) {
    return Train(
        {.processes = 3, .options = InBuckets(), .link = {.speed = speed, .by_place = true}});
  };
  const std::vector<Outcome> slow = train(1);
  const std::vector<Outcome> fast = train(8);
  ExpectEqualOnAll(slow);
  ExpectEqualOnAll(fast);
  EXPECT_EQ(slow.front().steps.back(), slow.front().steps.front());
  EXPECT_EQ(slow.front().steps, fast.front().steps);
  EXPECT_TRUE(SameBits(slow.front().values, fast.front().values));
}

// Two summands have one order, whatever the communicator says.
TEST(BucketAdaptation, OfTwoProcessesChangesNoBitWhereTheCommunicatorHasNoOrder) {
  Job job{.options = InBuckets(), .link = {.by_place = true}};
  const std::vector<Outcome> adapted = Train(job);
  ExpectEqualOnAll(adapted);
  EXPECT_GT(adapted.front().steps.back().size(), adapted.front().steps.front().size());
  job.options = OfOneSize(InBuckets());
  job.link.speed = 8;
  const std::vector<Outcome> fixed = Train(job);
  EXPECT_EQ(fixed.front().steps.back(), fixed.front().steps.front());
  EXPECT_TRUE(SameBits(adapted.front().values, fixed.front().values));
}

// Hosts of two and of one rank: sums inside hosts come first.
TEST(BucketAdaptation, LeavesAloneThoseOfUnequalHosts) {
  const auto train = [](double speed) {
    return Train({.processes = 3, .link = {.speed = speed}, .hosts = "aab"});
  };
  const std::vector<Outcome> slow = train(1);
  const std::vector<Outcome> fast = train(8);
  ExpectEqualOnAll(slow);
  ExpectEqualOnAll(fast);
  EXPECT_EQ(slow.front().steps.back(), slow.front().steps.front());
  EXPECT_TRUE(SameBits(slow.front().values, fast.front().values));
}

// Hosts of two ranks each keep the canonical order: the bits of threads, in buckets of any size.
TEST(BucketAdaptation, OfEqualHostsChangesNoBit) {
  const std::vector<Outcome> adapted = Train({.processes = 4, .hosts = "aabb"});
  ExpectEqualOnAll(adapted);
  EXPECT_GT(adapted.front().steps.back().size(), adapted.front().steps.front().size());
  const std::vector<Outcome> threads =
      Train({.processes = 4, .options = OfOneSize(InBuckets()), .link = {.speed = 8}});
  EXPECT_TRUE(SameBits(adapted.front().values, threads.front().values));
}

// Buckets that are cut anew reach the hook whole, the same on both processes, and what it keeps
// from step to step is by parameter: the bits are those of buckets of one size.
TEST(BucketAdaptation, OfTwoProcessesWithAHookChangesNoBit) {
  const std::vector<std::function<std::unique_ptr<BucketHook>()>> hooks = {
      [] { return nullptr; },
      [] { return MakeCompressionHook({.dtype = DType::kBFloat16, .error_feedback = true}); }};
  for (std::size_t h = 0; h < hooks.size(); ++h) {
    SCOPED_TRACE(h == 0 ? "all-reduced" : "compressed, with feedback");
    Job job{.options = InBuckets(), .hook = hooks[h]};
    const std::vector<Outcome> adapted = Train(job);
    ExpectEqualOnAll(adapted);
    const std::vector<int> buckets = BucketsOfSteps(adapted.front().launched);
    EXPECT_GT(buckets.back(), buckets.front());
    EXPECT_EQ(buckets[kSteps - 2], buckets.front());

    job.options = OfOneSize(InBuckets());
    job.link.speed = 8;
    const std::vector<Outcome> fixed = Train(job);
    ExpectEqualOnAll(fixed);
    EXPECT_EQ(BucketsOfSteps(fixed.front().launched), std::vector<int>(kSteps, buckets.front()));
    EXPECT_TRUE(SameBits(adapted.front().values, fixed.front().values));
  }
}

// Among more processes, and where bits were promised, nobody knows how a hook adds.
TEST(BucketAdaptation, LeavesAloneThoseOfAHookThatMayAddAnyhow) {
  StrategyOptions deterministic = InBuckets();
  deterministic.deterministic = true;
  const auto nothing = []() -> std::unique_ptr<BucketHook> { return nullptr; };
  for (const Job& job : {Job{.processes = 3, .options = InBuckets(), .hook = nothing},
                         Job{.processes = 2, .options = deterministic, .hook = nothing}}) {
    SCOPED_TRACE(job.processes);
    const std::vector<Outcome> outcomes = Train(job);
    ExpectEqualOnAll(outcomes);
    EXPECT_EQ(BucketsOfSteps(outcomes.front().launched), std::vector<int>(kSteps, 2));
  }
}

}  // namespace
}  // namespace cohort
