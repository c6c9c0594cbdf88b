// The strategy suite for the parameter server: with one worker, and with synchronous application
// for any number of them.
#include "conformance/strategy_conformance.h"

#include <cohort/strategies/parameter_server.h>

#include <cohort/optim/optimizers.h>
#include <cohort/optim/server_side.h>

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "conformance/parameter_server_job.h"
#include "testing/far_device.h"
#include "testing/integer_model.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;

// Makes the device of a worker; none: it is on the CPU.
using MakeDevice = std::function<std::shared_ptr<Device>(const StrategyOptions&)>;

StrategyWorld ParameterServers(int workers, int servers, const std::string& consistency,
                               const MakeDevice& make_device = {}) {
  StrategyWorld world;
  world.name = consistency + std::to_string(workers) + "x" + std::to_string(servers);
  std::erase(world.name, ':');
  world.processes = workers;
  world.parameter_server = true;
  const auto job = std::make_shared<Job>(workers, servers);
  world.start = [job] { job->Start(); };
  world.stop = [job] { job->Stop(); };
  world.make = [job, consistency, make_device](
                   int process, StrategyOptions options) -> Result<std::unique_ptr<Strategy>> {
    if (make_device) {
      options.devices = {make_device(options)};
    }
    options.consistency = OrThrow(Consistency::Parse(consistency));
    COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Strategy> strategy,
                            job->Make({TaskType::kWorker, process}, options));
    return strategy;
  };
  return world;
}

INSTANTIATE_TEST_SUITE_P(
    ParameterServer, StrategyConformance,
    ::testing::Values(ParameterServers(1, 1, "async"), ParameterServers(1, 2, "async"),
                      ParameterServers(1, 2, "ssp:0"), ParameterServers(1, 2, "sync"),
                      ParameterServers(2, 1, "sync"), ParameterServers(3, 2, "sync"),
                      ParameterServers(4, 3, "sync")),
    [](const ::testing::TestParamInfo<StrategyWorld>& world) { return world.param.name; });

// On a device of which only its kernels reach the memory. Its streams are those that `options` asks
// for.
StrategyWorld OnFarDevices(int workers, int servers, const std::string& consistency) {
  return ParameterServers(workers, servers, consistency, [](const StrategyOptions& options) {
    return MakeFarDevice(
        "far:0", options.make_stream ? options.make_stream : [] { return MakeInlineStream(); });
  });
}

INSTANTIATE_TEST_SUITE_P(ParameterServerFarDevices, StrategyConformance,
                         ::testing::Values(OnFarDevices(1, 2, "async"), OnFarDevices(1, 1, "ssp:0"),
                                           OnFarDevices(1, 2, "sync"), OnFarDevices(2, 1, "sync"),
                                           OnFarDevices(3, 2, "sync")),
                         [](const ::testing::TestParamInfo<StrategyWorld>& world) {
                           return world.param.name;
                         });

// On the first GPU, where there is one.
std::vector<StrategyWorld> OnTheGpu() {
  const auto gpu = OpenDevices("cuda:0");
  if (!gpu.ok()) {
    return {};
  }
  const MakeDevice make = [device = gpu->front()](const StrategyOptions&) { return device; };
  return {ParameterServers(1, 2, "async", make), ParameterServers(1, 2, "ssp:0", make),
          ParameterServers(1, 2, "sync", make), ParameterServers(2, 1, "sync", make)};
}

INSTANTIATE_TEST_SUITE_P(ParameterServerGpu, StrategyConformance, ::testing::ValuesIn(OnTheGpu()),
                         [](const ::testing::TestParamInfo<StrategyWorld>& world) {
                           return world.param.name;
                         });

// ---- Parameters that travel in 16 bits
// -----------------------------------------------------------

// The values of two workers' synchronous job, which goes towards 0.1, 0.2, ...
std::vector<float> TrainTowardsTargets(const ServerWire& wire) {
  Job job(2, 2);
  job.Start();
  std::vector<float> values;
  const data::Dataset dataset = IntegerData(100, 10);
  std::vector<std::future<void>> running;
  for (int w = 0; w < 2; ++w) {
    running.push_back(std::async(std::launch::async, [&, w] {
      StrategyOptions options;
      options.consistency = OrThrow(Consistency::Parse("sync"));
      options.server_wire = wire;
      const auto strategy = OrThrow(job.Make({TaskType::kWorker, w}, options));
      ParameterSet parameters;
      parameters.Add("w", {33}, {});
      parameters.Build();
      OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = 0.5})));
      const StepFn step = [](ReplicaContext& context,
                             const data::Batch& batch) -> Result<ReplicaResult> {
        const auto weight = static_cast<double>(batch.size);
        const std::span<const float> now = std::as_const(context.parameters).value(0);
        const std::span<float> gradient = context.gradients.Accumulator(0);
        for (std::size_t i = 0; i < gradient.size(); ++i) {
          gradient[i] = (now[i] - 0.1F * static_cast<float>(i + 1)) * static_cast<float>(weight);
        }
        context.gradients.Ready(0);
        return ReplicaResult{.loss_sum = 0, .weight = weight, .metric_sums = {}};
      };
      const auto data = OrThrow(strategy->Distribute(dataset));
      for (int epoch = 0; epoch < 2; ++epoch) {
        OrThrow(data->BeginEpoch(epoch));
        while (const auto batch = OrThrow(data->Next())) {
          OrThrow(strategy->Step(*batch, step).status());
        }
      }
      if (strategy->is_chief()) {
        OrThrow(strategy->PullState());
        values.assign(parameters.all().begin(), parameters.all().end());
      }
      OrThrow(strategy->Shutdown());
    }));
  }
  for (std::future<void>& worker : running) {
    worker.get();
  }
  job.Stop();
  return values;
}

TEST(WireOfParameterServers, TheEndIsThatOfFloat32ButForRounding) {
  const std::vector<float> exact = TrainTowardsTargets({});
  EXPECT_NEAR(exact[0], 0.1F, 1e-4);
  for (const DType wire : {DType::kFloat16, DType::kBFloat16, DType::kUInt8}) {
    const std::vector<float> pushed = TrainTowardsTargets({.push = wire});
    const std::vector<float> both = TrainTowardsTargets({.push = wire, .pull = wire});
    EXPECT_NE(pushed, exact) << "it did travel so";
    for (std::size_t i = 0; i < 33; ++i) {
      const float rounding = wire == DType::kFloat16    ? std::abs(exact[i]) * 0x1p-11F
                             : wire == DType::kBFloat16 ? std::abs(exact[i]) * 0x1p-8F
                                                        : exact[32] / 254;
      // Gradients vanish at the end, and their rounding with them; that of values does not.
      EXPECT_NEAR(pushed[i], exact[i], rounding * 0.1) << i;
      EXPECT_NEAR(both[i], exact[i], rounding * 2) << i;
    }
  }
}

// ---- What servers do to gradients beside the rule ----------------------------------------------

// Of an asynchronous job of two workers: worker:1 computes a gradient of 2s while worker:0 sends
// `others` gradients of 1s. All values are 4 at first, and the rate is 1.
struct Late {
  std::vector<float> values;  // at the end
  std::int64_t staleness = 0;
};
Late SendLate(const ServerSideOptions& options, const std::string& consistency, int others,
              ServerLoss loss = ServerLoss::kRollBack) {
  Job job(2, 2, {}, {.server_loss = loss});
  job.Start();
  std::promise<void> computing;
  std::promise<void> sent;
  std::future<void> is_computing = computing.get_future();
  std::future<void> is_sent = sent.get_future();
  const auto there = [](std::future<void>& event) {
    return event.wait_for(std::chrono::seconds(60)) == std::future_status::ready
               ? OkStatus()
               : DeadlineExceeded("the other worker");
  };
  Late late;
  const auto run = [&](int w) {
    StrategyOptions strategy_options;
    strategy_options.consistency = OrThrow(Consistency::Parse(consistency));
    strategy_options.server_loss = loss;
    const auto strategy = OrThrow(job.Make({TaskType::kWorker, w}, strategy_options));
    ParameterSet parameters;
    const auto four = [](std::uint64_t) { return 4.0F; };
    parameters.Add("a", {5}, four);
    parameters.Add("b", {300'001}, four);  // two chunks, on two servers
    parameters.Build();
    OrThrow(strategy->Bind(parameters, ServerSide(Sgd({.learning_rate = 1}), options)));
    DistributedBatch batch;
    batch.replicas = {data::Batch{.size = 1}};
    const StepFn step = [&](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
      if (w == 1) {
        computing.set_value();
        COHORT_RETURN_IF_ERROR(there(is_sent));
      }
      for (int p = 0; p < parameters.size(); ++p) {
        std::ranges::fill(context.gradients.Accumulator(p), w == 1 ? 2.0F : 1.0F);
        context.gradients.Ready(p);
      }
      return ReplicaResult{.loss_sum = 0, .weight = 1, .metric_sums = {}};
    };
    if (w == 1) {
      late.staleness = OrThrow(strategy->Step(batch, step)).staleness;
    } else {
      OrThrow(there(is_computing));
      for (int i = 0; i < others; ++i) {
        EXPECT_EQ(OrThrow(strategy->Step(batch, step)).staleness, 0);
      }
      sent.set_value();
    }
    OrThrow(strategy->Shutdown());
    if (w == 1) {
      late.values.assign(parameters.all().begin(), parameters.all().begin() + 5);
      for (const float value : std::as_const(parameters).value(1)) {
        ASSERT_EQ(value, late.values[0]) << "whatever the chunk";
      }
    }
  };
  auto other = std::async(std::launch::async, run, 1);
  run(0);
  other.get();
  job.Stop();
  return late;
}

TEST(ServerSideOfParameterServers, StalenessReachesTheRule) {
  for (const char* consistency : {"async", "ssp:3"}) {
    const Late plain = SendLate({}, consistency, 2);
    EXPECT_EQ(plain.staleness, 2);
    EXPECT_EQ(plain.values, std::vector<float>(5, 4 - 1 - 1 - 2));
    const Late scaled = SendLate({.staleness_scaling = true}, consistency, 2);
    EXPECT_EQ(scaled.values, std::vector<float>(5, 4 - 1 - 1 - 2.0F / 2));
    // 2 + 0.25 * 4 * (2 - 4) = 0
    const Late compensated = SendLate({.delay_compensation = 0.25}, consistency, 2);
    EXPECT_EQ(compensated.values, std::vector<float>(5, 4 - 1 - 1));
    // 2 + 4 * (3 - 4) = -2, of which 1.5 are left
    const Late clipped = SendLate({.clip_value = 1.5, .delay_compensation = 1}, consistency, 1);
    EXPECT_EQ(clipped.values, std::vector<float>(5, 4 - 1 + 1.5F));
    // Where there are copies pushes carry what they were computed from: 0 / 2.
    const Late carried = SendLate({.delay_compensation = 0.25, .staleness_scaling = true},
                                  consistency, 2, ServerLoss::kReplica);
    EXPECT_EQ(carried.values, std::vector<float>(5, 4 - 1 - 1));
    const Late halved = SendLate({.staleness_scaling = true}, consistency, 2, ServerLoss::kReplica);
    EXPECT_EQ(halved.values, std::vector<float>(5, 4 - 1 - 1 - 2.0F / 2));
  }
}

TEST(ServerSideOfParameterServers, TheNormOfEachParameterIsClipped) {
  for (const char* consistency : {"async", "ssp:1"}) {
    Job job(1, 2);
    job.Start();
    StrategyOptions options;
    options.consistency = OrThrow(Consistency::Parse(consistency));
    const auto strategy = OrThrow(job.Make({TaskType::kWorker, 0}, options));
    ParameterSet parameters;
    parameters.Add("a", {2}, {});
    parameters.Add("b", {640'000}, {});  // three chunks
    parameters.Add("c", {2}, {});
    parameters.Build();
    OrThrow(strategy->Bind(parameters, ServerSide(Sgd({.learning_rate = 1}), {.clip_norm = 4})));
    DistributedBatch batch;
    batch.replicas = {data::Batch{.size = 2}};
    OrThrow(strategy
                ->Step(batch,
                       [](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
                         const std::span<float> a = context.gradients.Accumulator(0);
                         a[0] = 12;  // the mean of two: a norm of 10
                         a[1] = -16;
                         std::ranges::fill(context.gradients.Accumulator(1), 2.0F);  // 800
                         const std::span<float> c = context.gradients.Accumulator(2);
                         c[0] = 2;
                         c[1] = 4;
                         for (int p = 0; p < 3; ++p) {
                           context.gradients.Ready(p);
                         }
                         return ReplicaResult{.loss_sum = 0, .weight = 2, .metric_sums = {}};
                       })
                .status());
    EXPECT_NEAR(std::as_const(parameters).value(0)[0], -2.4, 1e-6);
    EXPECT_NEAR(std::as_const(parameters).value(0)[1], 3.2, 1e-6);
    for (const float value : std::as_const(parameters).value(1)) {
      ASSERT_NEAR(value, -0.005, 1e-8);
    }
    EXPECT_EQ(std::as_const(parameters).value(2)[0], -1) << "a norm below";
    EXPECT_EQ(std::as_const(parameters).value(2)[1], -2);
    OrThrow(strategy->Shutdown());
    job.Stop();
  }
}

// The bits of the rule in one process, in rounds too, and whatever chunks and parts there are.
TEST(ServerSideOfParameterServers, WeightsDecayBesideTheRule) {
  constexpr int kEpochs = 2;
  const data::Dataset dataset = IntegerData(43, 10);
  const auto decays = [](double decay) {
    return ServerSide(Sgd({.learning_rate = 0.0625, .momentum = 0.5}), {.weight_decay = decay});
  };
  const Trained expected = TrainOnOneThread(dataset, *decays(0.5), kEpochs);
  EXPECT_NE(expected.values, TrainOnOneThread(dataset, *decays(0), kEpochs).values);
  for (const auto& [consistency, workers] :
       {std::pair("async", 1), {"ssp:1", 1}, {"sync", 1}, {"sync", 2}}) {
    Job job(workers, 2);
    job.Start();
    std::vector<std::future<Trained>> running;
    for (int w = 0; w < workers; ++w) {
      running.push_back(std::async(std::launch::async, [&, w, name = consistency] {
        StrategyOptions options;
        options.consistency = OrThrow(Consistency::Parse(name));
        const auto strategy = OrThrow(job.Make({TaskType::kWorker, w}, options));
        Trained trained = TrainWith(*strategy, dataset, decays(0.5), kEpochs, IntegerStep());
        OrThrow(strategy->Shutdown());
        return trained;
      }));
    }
    for (std::future<Trained>& trained : running) {
      EXPECT_EQ(trained.get().values, expected.values) << consistency << " " << workers;
    }
    job.Stop();
  }
}

TEST(ServerSideOfParameterServers, IsForParameterServers) {
  ParameterSet parameters = IntegerParameters();
  const auto strategy = OrThrow(Strategy::FromEnv("one_device", {}));
  const Status status = strategy->Bind(parameters, ServerSide(Sgd(), {.clip_value = 1}));
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              HasSubstr("optimizer sgd has options of the server side under one_device"));
}

// ---- What is waited for ------------------------------------------------------------------------

// IntegerData in its order; before each example is read, `before` is called.
class WatchedSource final : public data::Source {
 public:
  WatchedSource(std::int64_t examples, std::function<Status()> before)
      : all_(IntegerData(examples, 1)), before_(std::move(before)) {}
  std::int64_t size() const override { return all_.source().size(); }
  const std::vector<data::FeatureSpec>& features() const override {
    return all_.source().features();
  }
  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    COHORT_RETURN_IF_ERROR(before_());
    return all_.source().ReadInto(index, rows);
  }
  std::string Where(std::int64_t index) const override { return all_.source().Where(index); }
  std::uint64_t Fingerprint() const override { return all_.source().Fingerprint(); }

 private:
  const data::Dataset all_;
  const std::function<Status()> before_;
};

// Worker 1's examples take long, and in rounds worker 0 waits for it: not for its own input.
TEST(InputOfParameterServers, IsWaitedForByWhoeverReadsIt) {
  constexpr std::chrono::milliseconds kEach{4};
  for (const char* consistency : {"sync", "async"}) {
    Job job(2, 1);
    job.Start();
    std::vector<std::future<std::pair<double, std::int64_t>>> running;
    for (int w = 0; w < 2; ++w) {
      running.push_back(std::async(std::launch::async, [&, w] {
        StrategyOptions options;
        options.consistency = OrThrow(Consistency::Parse(consistency));
        const auto strategy = OrThrow(job.Make({TaskType::kWorker, w}, options));
        ParameterSet parameters = IntegerParameters();
        OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = 0.0625})));
        const auto take_long = [w, kEach] {
          std::this_thread::sleep_for(w == 1 ? kEach : 0 * kEach);  // its work
          return OkStatus();
        };
        const data::Dataset dataset =
            data::Dataset(std::make_shared<WatchedSource>(80, take_long)).Batch(8);
        const auto data = OrThrow(strategy->Distribute(dataset));
        EXPECT_EQ(data->batches_per_epoch(), 10);
        std::int64_t examples = 0;
        OrThrow(data->BeginEpoch(0));
        while (const auto batch = OrThrow(data->Next())) {
          OrThrow(strategy->Step(*batch, IntegerStep()).status());
          examples += batch->replicas[0].size;
        }
        OrThrow(strategy->Shutdown());
        return std::pair(data->input_seconds(), examples);
      }));
    }
    const auto [fast, fast_examples] = running[0].get();
    const auto [slow, slow_examples] = running[1].get();
    job.Stop();
    EXPECT_EQ(fast_examples + slow_examples, 80);
    EXPECT_GE(slow,
              std::chrono::duration<double>(kEach).count() * static_cast<double>(slow_examples));
    if (std::string(consistency) == "sync") {
      EXPECT_EQ(fast_examples, 40);
      EXPECT_LT(fast, slow / 2) << "it waited as long in all, in rounds of both";
    }
  }
}

// Worker 1 has its first piece of work until worker 0 has done nearly all that there is.
TEST(InputOfParameterServers, ASlowWorkerGetsLess) {
  constexpr std::int64_t kBatches = 20;
  Job job(2, 1);
  job.Start();
  std::atomic<std::int64_t> done_by_0 = 0;
  std::vector<std::future<std::int64_t>> running;
  for (int w = 0; w < 2; ++w) {
    running.push_back(std::async(std::launch::async, [&, w] {
      const auto strategy = OrThrow(job.Make({TaskType::kWorker, w}, {}));
      ParameterSet parameters = IntegerParameters();
      OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = 0.0625})));
      const auto until_the_rest_is_done = [&, w]() -> Status {
        const auto give_up = std::chrono::steady_clock::now() + std::chrono::minutes(1);
        while (w != 0 && done_by_0 < kBatches - 1) {
          if (std::chrono::steady_clock::now() > give_up) {
            return DeadlineExceeded("the other worker has not trained on the rest");
          }
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        return {};
      };
      const auto data = OrThrow(strategy->Distribute(
          data::Dataset(std::make_shared<WatchedSource>(kBatches * 4, until_the_rest_is_done))
              .Batch(4)));
      std::int64_t batches = 0;
      OrThrow(data->BeginEpoch(0));
      while (const auto batch = OrThrow(data->Next())) {
        OrThrow(strategy->Step(*batch, IntegerStep()).status());
        ++batches;
        done_by_0 += w == 0 ? 1 : 0;
      }
      OrThrow(strategy->Shutdown());
      return batches;
    }));
  }
  const std::int64_t fast = running[0].get();
  const std::int64_t slow = running[1].get();
  job.Stop();
  EXPECT_EQ(fast + slow, kBatches) << "nothing is left out";
  EXPECT_LE(slow, 1);
}

}  // namespace
}  // namespace cohort::testing
