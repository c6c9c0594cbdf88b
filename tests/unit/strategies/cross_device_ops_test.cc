// How gradients of several GPUs meet: what is chosen when, what is said, and what becomes of it
// when something goes wrong. Processes are threads, GPUs are far devices, and a fake is in NCCL's
// place. That the numbers are right is shown by tests/conformance/strategy_conformance_test.cc.
#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <limits>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cohort/comm/local.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/fake_nccl.h"
#include "testing/far_device.h"
#include "testing/memory_store.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using testing::BytesOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using testing::ExpectAllOk;
using testing::FakeNccl;
using ::testing::HasSubstr;
using testing::MakeFarDevices;
using testing::RunRanks;

constexpr int kCpu = -1;
constexpr int kParameters = 4;
constexpr std::int64_t kElements = 1024;  // without padding behind them

ParameterSet Zeros() {
  ParameterSet parameters;
  for (int p = 0; p < kParameters; ++p) {
    parameters.Add("p" + std::to_string(p), {kElements}, nullptr);
  }
  parameters.Build();
  return parameters;
}

std::unique_ptr<Optimizer> PlainSgd() { return Sgd({.learning_rate = 0.5}); }

DistributedBatch OneEach(int replicas) {
  DistributedBatch batch;
  batch.replicas.assign(static_cast<std::size_t>(replicas), {.size = 1, .features = {}});
  return batch;
}

// Gradients of ones, in an order of the replica's own.
Result<ReplicaResult> Ones(ReplicaContext& context, const data::Batch& batch) {
  const auto kernels = context.device->MakeKernels(1);
  for (int i = 0; i < kParameters; ++i) {
    const int p = (i + context.replica) % kParameters;
    kernels->Fill(context.stream, context.gradients.Accumulator(p), 1.0F);
    context.gradients.Ready(p);
  }
  COHORT_RETURN_IF_ERROR(context.stream.Synchronize(DeadlineAfter(seconds(30))));
  return ReplicaResult{.weight = static_cast<double>(batch.size)};
}

class CrossDevice : public ::testing::Test {
 protected:
  // By process: the far device of each of its replicas, or the CPU.
  using Places = std::vector<std::vector<int>>;

  CrossDevice() {
    options_.first_bucket_bytes = 1;  // a bucket for each parameter
    options_.communication.bytes_per_pack = 1;
    options_.communication.timeout = seconds(30);
    options_.join_timeout = seconds(30);
    options_.log = Log([this](LogLevel, std::string_view text) {
      const std::lock_guard lock(mutex_);
      log_.emplace_back(text);
    });
  }

  // fn(process, strategy) on a thread for each process; their statuses.
  std::vector<Status> Job(const Places& places, const std::function<Status(int, Strategy&)>& fn) {
    const int processes = static_cast<int>(places.size());
    CommunicatorOptions names;
    names.generation = generation_;
    names.peer_name = [](int rank) { return "worker:" + std::to_string(rank); };
    auto communicators = MakeLocalCommunicators(processes, names);
    std::vector<Status> statuses = RunRanks(processes, [&](int process) -> Status {
      const auto p = static_cast<std::size_t>(process);
      StrategyOptions mine = options_;
      const auto far = MakeFarDevices(4);
      for (const int place : places[p]) {
        mine.devices.push_back(place == kCpu ? CpuDevice() : far[static_cast<std::size_t>(place)]);
      }
      mine.make_nccl = [this, process](const Device& device) { return Fake(process, device); };
      if (adapt_) {
        adapt_(process, mine);
      }
      SynchronousParts parts;
      if (processes > 1) {
        communicators_[p] = communicators[p].get();
        parts.communicator = std::move(communicators[p]);
        parts.store = with_store_ ? &store_ : nullptr;
      }
      COHORT_ASSIGN_OR_RETURN(const auto strategy,
                              MakeSynchronousStrategy(std::move(parts), std::move(mine)));
      return fn(process, *strategy);
    });
    EXPECT_EQ(world_->live, 0) << "handles of NCCL left behind";
    return statuses;
  }

  std::shared_ptr<NcclApi> Fake(int process, const Device& device) {
    const std::string gpu =
        one_gpu_ ? "GPU-one" : "GPU-" + std::to_string(process) + "-" + device.name();
    return std::make_shared<FakeNccl>(world_, gpu,
                                      [&device](std::byte* address, std::size_t bytes) {
                                        return BytesOf(device, address, bytes);
                                      });
  }

  // Two steps of ones, and what they come to.
  static Status TwoSteps(Strategy& strategy) {
    ParameterSet parameters = Zeros();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    for (int step = 0; step < 2; ++step) {
      COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(strategy.num_local_replicas()), Ones).status());
    }
    COHORT_RETURN_IF_ERROR(strategy.PullState());
    EXPECT_THAT(parameters.all(), Each(-1.0F));
    return strategy.Shutdown();
  }

  // "auto" trains without NCCL and says `why` once; "nccl" is refused everywhere with the same.
  void ExpectWithoutNccl(const Places& places, const std::string& why) {
    SCOPED_TRACE(why);
    log_.clear();
    options_.cross_device_ops = "auto";
    ExpectAllOk(Job(places, [](int, Strategy& strategy) { return TwoSteps(strategy); }));
    EXPECT_THAT(log_, Contains(AllOf(HasSubstr("hierarchical_copy"), HasSubstr("not by NCCL"),
                                     HasSubstr(why)))
                          .Times(1));
    options_.cross_device_ops = "nccl";
    for (const Status& status :
         Job(places, [](int, Strategy& strategy) { return TwoSteps(strategy); })) {
      EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
      EXPECT_THAT(status.message(), AllOf(HasSubstr("'nccl'"), HasSubstr(why)));
    }
    EXPECT_EQ(world_->inits, 0);
  }

  StrategyOptions options_;
  std::function<void(int process, StrategyOptions& options)> adapt_;
  std::uint64_t generation_ = 1;
  bool one_gpu_ = false;
  bool with_store_ = true;
  testing::MemoryStore store_;
  const std::shared_ptr<FakeNccl::World> world_ = std::make_shared<FakeNccl::World>();
  std::array<Communicator*, 4> communicators_{};
  std::mutex mutex_;
  std::vector<std::string> log_;
};

TEST_F(CrossDevice, AutoIsNcclAmongGpusAndSaysSoOnce) {
  const auto train = [](int, Strategy& strategy) { return TwoSteps(strategy); };
  ExpectAllOk(Job({{0, 1, 0}}, train));
  EXPECT_THAT(log_, ElementsAre("gradients of 2 GPU(s) are summed by NCCL"));
  EXPECT_EQ(world_->inits, 2);
  log_.clear();
  ExpectAllOk(Job({{0}, {0}, {0}}, train));
  EXPECT_THAT(log_, ElementsAre("gradients of 3 GPU(s) are summed by NCCL"));
  log_.clear();
  ++generation_;
  ExpectAllOk(Job({{0, 1}, {0, 0}}, train));
  EXPECT_THAT(log_, ElementsAre("gradients of 3 GPU(s) are summed by NCCL"));
}

TEST_F(CrossDevice, OneGpuNeedsNothing) {
  ExpectAllOk(Job({{0, 0}}, [](int, Strategy& strategy) { return TwoSteps(strategy); }));
  EXPECT_THAT(log_, ElementsAre());
  EXPECT_EQ(world_->inits, 0);
}

TEST_F(CrossDevice, GradientsDoNotPassTheHost) {
  ExpectAllOk(Job({{0, 1}, {0, 1}}, [this](int process, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(2), Ones).status());
    const Communicator& job = *communicators_[static_cast<std::size_t>(process)];
    const std::uint64_t before = job.stats().bytes_sent;
    COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(2), Ones).status());
    // The weight, the loss and metrics, and the next step's messages to come.
    EXPECT_LT(job.stats().bytes_sent - before, kElements * sizeof(float));
    return strategy.Shutdown();
  }));
}

TEST_F(CrossDevice, NcclIsNotForAReplicaOnTheCpu) {
  ExpectWithoutNccl({{0, kCpu}}, "a replica is on the CPU");
  ExpectWithoutNccl({{0, 1}, {0, kCpu}}, "worker:1: a replica is on the CPU");
}

TEST_F(CrossDevice, NcclIsNotForVirtualShards) {
  options_.virtual_shards = 4;
  const auto steps = [this](const Places& places) {
    return Job(places, [](int, Strategy& strategy) -> Status {
      ParameterSet parameters = Zeros();
      return strategy.Bind(parameters, PlainSgd());
    });
  };
  ExpectAllOk(steps({{0, 1}}));
  EXPECT_THAT(log_, Contains(HasSubstr("not by NCCL: virtual_shards promise the same bits")));
  options_.cross_device_ops = "nccl";
  for (const Status& status : steps({{0, 1}, {0, 1}})) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("virtual_shards promise the same bits"));
  }
  options_.cross_device_ops = "reduction_to_one_device";
  for (const Status& status : steps({{0, 1}, {0, 1}})) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr("reduction_to_one_device"));
  }
  EXPECT_EQ(world_->inits, 0);
}

TEST_F(CrossDevice, NcclIsNotDeterministic) {
  options_.deterministic = true;
  const auto train = [](int, Strategy& strategy) { return TwoSteps(strategy); };
  for (const Places& places : {Places{{0, 1}}, Places{{0}, {0}}}) {
    log_.clear();
    options_.cross_device_ops = "auto";
    ExpectAllOk(Job(places, train));
    EXPECT_THAT(log_,
                Contains(AllOf(HasSubstr("not by NCCL"), HasSubstr("deterministic asks for"))));
    options_.cross_device_ops = "nccl";
    for (const Status& status : Job(places, train)) {
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
      EXPECT_THAT(status.message(), HasSubstr("deterministic with cross_device_ops 'nccl'"));
    }
  }
  EXPECT_EQ(world_->inits, 0);
}

TEST_F(CrossDevice, NcclIsNotForWhatIsDoneOnTheHost) {
  options_.make_bucket_hook = [] { return MakePowerSgdHook(); };
  ExpectWithoutNccl({{0}, {0}}, "takes sums in the host's memory");
  options_.make_bucket_hook = nullptr;
  options_.communication.implementation = "ring";
  ExpectWithoutNccl({{0}, {0}}, "communication.implementation is 'ring'");
}

// Gradients of 1 + 2^-9 travel as 16 bits, of which bfloat16 has 8 of mantissa: a step sends 1, or
// what several lost at once, 2^-7. Nobody but the devices sees them.
TEST_F(CrossDevice, WhatOnlyRoundsIsDoneOnTheDevices) {
  const auto almost_one = [](ReplicaContext& context,
                             const data::Batch& batch) -> Result<ReplicaResult> {
    const auto kernels = context.device->MakeKernels(1);
    for (int p = 0; p < kParameters; ++p) {
      kernels->Fill(context.stream, context.gradients.Accumulator(p), 1 + 0x1p-9F);
      context.gradients.Ready(p);
    }
    COHORT_RETURN_IF_ERROR(context.stream.Synchronize(DeadlineAfter(seconds(30))));
    return ReplicaResult{.weight = static_cast<double>(batch.size)};
  };
  // By element, after four steps.
  const auto trained = [&](const CompressionOptions& compression, const Places& places) {
    options_.make_bucket_hook = [compression] { return MakeCompressionHook(compression); };
    log_.clear();
    float value = 0;
    ExpectAllOk(Job(places, [&](int process, Strategy& strategy) -> Status {
      ParameterSet parameters = Zeros();
      COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
      const Communicator& job = *communicators_[static_cast<std::size_t>(process)];
      const std::uint64_t before = job.stats().bytes_sent;
      for (int step = 0; step < 4; ++step) {
        COHORT_RETURN_IF_ERROR(
            strategy.Step(OneEach(strategy.num_local_replicas()), almost_one).status());
      }
      // Half of what the host's memory would have been sent in these steps.
      EXPECT_LT(job.stats().bytes_sent - before, kParameters * kElements * sizeof(float));
      COHORT_RETURN_IF_ERROR(strategy.PullState());
      EXPECT_THAT(parameters.all(), Each(parameters.all()[0]));
      if (process == 0) {
        value = parameters.all()[0];
      }
      return strategy.Shutdown();
    }));
    EXPECT_THAT(log_, Contains(HasSubstr("GPU(s) are summed by NCCL")));
    ++generation_;
    return value;
  };
  for (const std::string ops : {"auto", "nccl"}) {
    options_.cross_device_ops = ops;
    for (const Places& places : {Places{{0}, {0}}, Places{{0, 0}, {0, 0}}}) {
      EXPECT_EQ(trained({.dtype = DType::kBFloat16}, places), -2 - 0x1p-8F);
      EXPECT_EQ(trained({.dtype = DType::kBFloat16, .error_feedback = false}, places), -2);
      EXPECT_EQ(trained({.dtype = DType::kFloat16}, places), -2 - 0x1p-8F) << "has 11 bits";
    }
  }
}

// Between two gradients that are rounded lies nothing that is left from other buckets.
TEST_F(CrossDevice, WhatIsRoundedMovesWithTheBuckets) {
  options_.cross_device_ops = "nccl";
  options_.make_bucket_hook = [] { return MakeCompressionHook({.dtype = DType::kFloat16}); };
  for (const std::int64_t bytes :
       {std::int64_t{1}, std::int64_t{3} * 4096, std::int64_t{1} << 20}) {
    options_.first_bucket_bytes = options_.communication.bytes_per_pack = bytes;
    // Replicas finish in orders of their own, the plan is made anew behind the first step.
    ExpectAllOk(
        Job({{0, 1, 0}, {1, 0, 1}}, [](int, Strategy& strategy) { return TwoSteps(strategy); }));
    ++generation_;
  }
}

TEST_F(CrossDevice, NcclTakesEachGpuOnce) {
  one_gpu_ = true;
  ExpectWithoutNccl({{0}, {0}}, "worker:0's far:0 and worker:1's far:0 are one GPU, GPU-one");
  ExpectWithoutNccl({{0, 1}}, "far:0 and far:1 are one GPU, GPU-one");
}

TEST_F(CrossDevice, ProcessesNeedAStore) {
  with_store_ = false;
  ExpectWithoutNccl({{0}, {0}}, "no store");
}

TEST_F(CrossDevice, NcclMustBeThereOnEveryProcess) {
  adapt_ = [](int process, StrategyOptions& options) {
    if (process == 1) {
      options.make_nccl = nullptr;  // NCCL itself, which knows no far devices, if it is here at all
    }
  };
  ExpectWithoutNccl({{0}, {0}}, "worker:1: ");
}

TEST_F(CrossDevice, NcclIsRefusedInTheHostsMemory) {
  options_.cross_device_ops = "nccl";
  const auto statuses = Job({{kCpu, kCpu}}, [](int, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros();
    return strategy.Bind(parameters, PlainSgd());
  });
  EXPECT_EQ(statuses[0].code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(statuses[0].message(), HasSubstr("gradients are in the host's memory"));
}

TEST_F(CrossDevice, UnknownNamesAndDifferencesAreNamed) {
  options_.cross_device_ops = "ncll";
  auto statuses = Job({{0}}, [](int, Strategy&) { return OkStatus(); });
  EXPECT_EQ(statuses[0].code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(statuses[0].message(), AllOf(HasSubstr("'ncll'"), HasSubstr("hierarchical_copy")));
  options_.cross_device_ops = "auto";
  adapt_ = [](int process, StrategyOptions& options) {
    options.cross_device_ops = process == 0 ? "auto" : "nccl";
  };
  statuses = Job({{0}, {0}}, [](int, Strategy& strategy) { return TwoSteps(strategy); });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("cross-device ops: nccl"));
  }
}

TEST_F(CrossDevice, NcclThatDoesNotStartOnOneIsUsedOnNone) {
  options_.join_timeout = milliseconds(1500);
  world_->refused["GPU-1-far:0"] = Unavailable("/dev/shm is too small");
  ExpectAllOk(Job({{0}, {0}}, [](int, Strategy& strategy) { return TwoSteps(strategy); }));
  EXPECT_THAT(log_, Contains(AllOf(HasSubstr("hierarchical_copy"), HasSubstr("does not start"))));
  ++generation_;
  options_.cross_device_ops = "nccl";
  for (const Status& status :
       Job({{0}, {0}}, [](int, Strategy& strategy) { return TwoSteps(strategy); })) {
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.message(), HasSubstr("'nccl'"));
  }
}

// ---- When something goes wrong -----------------------------------------------------------------

TEST_F(CrossDevice, AnErrorOfOneReplicaReachesEveryProcessWithItsName) {
  options_.cross_device_ops = "nccl";
  const auto statuses = Job({{0, 1}, {0, 1}, {0, 1}}, [](int, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(2), Ones).status());
    const Status failed =
        strategy
            .Step(OneEach(2),
                  [](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
                    if (context.replica == 3) {
                      context.gradients.Ready(0);  // the first bucket is under way everywhere
                      return DataLoss("image 17 is torn");
                    }
                    return Ones(context, batch);
                  })
            .status();
    EXPECT_FALSE(strategy.Step(OneEach(2), Ones).ok());
    COHORT_RETURN_IF_ERROR(strategy.PullState());
    EXPECT_THAT(parameters.all(), Each(-0.5F));
    EXPECT_EQ(strategy.step(), 1);
    return failed;
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr("worker:1, replica 3: image 17 is torn"));
  }
}

// Whether it goes in the first step, in which ranks wait for each other while they put operations
// on their streams, or later.
TEST_F(CrossDevice, ALostProcessEndsTheStepOfTheOthersAtOnce) {
  options_.cross_device_ops = "nccl";
  for (const int lost_in : {1, 2}) {
    generation_ = static_cast<std::uint64_t>(lost_in);
    const auto begin = std::chrono::steady_clock::now();
    const auto statuses = Job({{0, 1}, {0, 0}}, [&](int process, Strategy& strategy) -> Status {
      ParameterSet parameters = Zeros();
      const int replicas = strategy.num_local_replicas();
      COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
      if (lost_in == 2) {
        COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(replicas), Ones).status());
      }
      if (process == 1) {
        strategy.ReportError(Unavailable("worker:1 was killed"));
        return {};
      }
      const Status failed = strategy.Step(OneEach(replicas), Ones).status();
      COHORT_RETURN_IF_ERROR(strategy.PullState());
      EXPECT_THAT(parameters.all(), Each(lost_in == 2 ? -0.5F : 0.0F));
      return failed;
    });
    EXPECT_EQ(statuses[0].code(), StatusCode::kUnavailable) << statuses[0].ToString();
    EXPECT_THAT(statuses[0].message(), HasSubstr("worker:1 was killed"));
    EXPECT_LT(std::chrono::steady_clock::now() - begin, options_.communication.timeout);
  }
}

TEST_F(CrossDevice, ALateProcessIsNamedAtTheDeadline) {
  options_.cross_device_ops = "nccl";
  std::atomic<bool> over = false;
  adapt_ = [](int process, StrategyOptions& options) {
    options.communication.timeout = process == 0 ? milliseconds(3'000) : milliseconds(30'000);
  };
  const auto statuses = Job({{0}, {0}}, [&](int process, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros();
    Status status = strategy.Bind(parameters, PlainSgd());
    if (status.ok()) {
      status = strategy.Step(OneEach(1), Ones).status();
    }
    while (process == 1 && status.ok() && !over) {
      std::this_thread::yield();
    }
    if (status.ok()) {
      status = strategy.Step(OneEach(1), Ones).status();
    }
    over = true;
    return status;
  });
  EXPECT_EQ(statuses[0].code(), StatusCode::kDeadlineExceeded) << statuses[0].ToString();
  EXPECT_THAT(statuses[0].message(), HasSubstr("worker:1"));
  EXPECT_EQ(statuses[1].code(), StatusCode::kDeadlineExceeded) << statuses[1].ToString();
}

TEST_F(CrossDevice, AnErrorOfNcclEndsTheStepOnEveryProcess) {
  options_.cross_device_ops = "nccl";
  const auto statuses = Job({{0}, {0}}, [this](int process, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(1), Ones).status());
    COHORT_RETURN_IF_ERROR(strategy.Barrier("both have made a step"));
    if (process == 1) {
      const std::lock_guard lock(world_->mutex);
      world_->errors[1] = Unavailable("NCCL: a link is down");
    }
    const Status failed = strategy.Step(OneEach(1), Ones).status();
    COHORT_RETURN_IF_ERROR(strategy.PullState());
    EXPECT_THAT(parameters.all(), Each(-0.5F));
    return failed;
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr("a link is down"));
  }
}

TEST_F(CrossDevice, ANewGenerationMeetsAnewInTheSameStore) {
  options_.cross_device_ops = "nccl";
  const auto failed = Job({{0}, {0}}, [](int process, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    if (process == 1) {
      strategy.ReportError(Unavailable("worker:1 was killed"));
    }
    return strategy.Step(OneEach(1), Ones).status();
  });
  EXPECT_FALSE(failed[0].ok());
  ++generation_;
  ExpectAllOk(Job({{0}, {0}, {0}}, [](int, Strategy& strategy) { return TwoSteps(strategy); }));
}

// ---- With what else a step does ----------------------------------------------------------------

TEST_F(CrossDevice, AnOverflowOnOneGpuSkipsTheStepOnAll) {
  options_.cross_device_ops = "nccl";
  options_.grad_scaler.emplace();
  ExpectAllOk(Job({{0, 1}, {0, 0}}, [](int, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    for (int step = 1; step <= 3; ++step) {
      COHORT_ASSIGN_OR_RETURN(
          const StepResult result,
          strategy.Step(
              OneEach(2),
              [&](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
                const auto kernels = context.device->MakeKernels(1);
                const float seed = context.gradients.loss_seed();
                for (int p = 0; p < kParameters; ++p) {
                  const bool bad = step == 2 && context.replica == 1 && p == 2;
                  kernels->Fill(context.stream, context.gradients.Accumulator(p),
                                bad ? std::numeric_limits<float>::infinity() : seed);
                  context.gradients.Ready(p);
                }
                COHORT_RETURN_IF_ERROR(context.stream.Synchronize(DeadlineAfter(seconds(30))));
                return ReplicaResult{.weight = static_cast<double>(batch.size)};
              }));
      EXPECT_EQ(result.skipped, step == 2);
    }
    COHORT_RETURN_IF_ERROR(strategy.PullState());
    EXPECT_THAT(parameters.all(), Each(-1.0F));
    return strategy.Shutdown();
  }));
}

TEST_F(CrossDevice, AStepWithoutWeightUpdatesNothing) {
  options_.cross_device_ops = "nccl";
  for (const Places& places : {Places{{0, 1}}, Places{{0, 1}, {1, 1}}}) {
    ExpectAllOk(Job(places, [](int, Strategy& strategy) -> Status {
      ParameterSet parameters = Zeros();
      COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
      DistributedBatch empty = OneEach(strategy.num_local_replicas());
      for (data::Batch& part : empty.replicas) {
        part.size = 0;
      }
      COHORT_RETURN_IF_ERROR(strategy.Step(empty, Ones).status());
      EXPECT_EQ(strategy.step(), 0);
      COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(strategy.num_local_replicas()), Ones).status());
      COHORT_RETURN_IF_ERROR(strategy.PullState());
      EXPECT_THAT(parameters.all(), Each(-0.5F));
      return strategy.Shutdown();
    }));
    ++generation_;
  }
}

TEST_F(CrossDevice, OneProcessGoesOnAfterAnError) {
  options_.cross_device_ops = "nccl";
  ExpectAllOk(Job({{0, 1}}, [](int, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    const auto torn = [](ReplicaContext& context,
                         const data::Batch& batch) -> Result<ReplicaResult> {
      COHORT_ASSIGN_OR_RETURN(ReplicaResult result, Ones(context, batch));
      if (context.replica == 1) {
        return DataLoss("image 17 is torn");
      }
      return result;
    };
    EXPECT_EQ(strategy.Step(OneEach(2), torn).status().code(), StatusCode::kDataLoss);
    COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(2), Ones).status());
    COHORT_RETURN_IF_ERROR(strategy.PullState());
    EXPECT_THAT(parameters.all(), Each(-0.5F));
    return strategy.Shutdown();
  }));
}

// As a label out of range does: the stream fails behind what the buckets wait for.
TEST_F(CrossDevice, OneProcessGoesOnAfterAnErrorOfAStream) {
  options_.cross_device_ops = "nccl";
  ExpectAllOk(Job({{0, 1}}, [](int, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    const auto torn = [](ReplicaContext& context,
                         const data::Batch& batch) -> Result<ReplicaResult> {
      if (context.replica == 1) {
        context.stream.Enqueue([]() -> Status { return DataLoss("label 17 is none"); });
      }
      return Ones(context, batch);
    };
    EXPECT_EQ(strategy.Step(OneEach(2), torn).status().code(), StatusCode::kDataLoss);
    for (int step = 0; step < 2; ++step) {
      COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(2), Ones).status());
    }
    COHORT_RETURN_IF_ERROR(strategy.PullState());
    EXPECT_THAT(parameters.all(), Each(-1.0F));
    return strategy.Shutdown();
  }));
}

}  // namespace
}  // namespace cohort
