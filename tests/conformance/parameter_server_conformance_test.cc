// The strategy suite for the parameter server: with one worker, and with synchronous application
// for any number of them.
#include "conformance/strategy_conformance.h"

#include <cohort/strategies/parameter_server.h>

#include <cohort/optim/optimizers.h>
#include <cohort/optim/server_side.h>

#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <future>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "testing/integer_model.h"
#include "testing/process_cluster.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;

// Workers, of which worker:0 coordinates, and servers on threads of their own.
class Job {
 public:
  Job(int workers, int servers, const Partitioner& partitioner = {})
      : workers_(workers), servers_(servers), partitioner_(partitioner) {}

  void Start() {
    std::map<TaskId, std::string> addresses;
    for (int w = 0; w < workers_; ++w) {
      addresses[{TaskType::kWorker, w}] = "127.0.0.1:0";
    }
    addresses[{TaskType::kWorker, 0}] = "127.0.0.1:" + std::to_string(UnusedPorts(1)[0]);
    for (int s = 0; s < servers_; ++s) {
      addresses[{TaskType::kPs, s}] = "127.0.0.1:0";
    }
    cluster_ = ClusterSpec(std::move(addresses));
    for (int s = 0; s < servers_; ++s) {
      serving_.push_back(std::async(std::launch::async, [this, s]() -> Status {
        COHORT_ASSIGN_OR_RETURN(const auto strategy, Make({TaskType::kPs, s}, {}));
        COHORT_RETURN_IF_ERROR(strategy->Serve());
        return strategy->Shutdown();
      }));
    }
  }
  void Stop() {
    for (std::future<Status>& served : serving_) {
      EXPECT_EQ(served.get(), OkStatus());
    }
    serving_.clear();
  }
  Result<std::unique_ptr<ParameterServerStrategy>> Make(const TaskId& task,
                                                        const StrategyOptions& options) const {
    ClusterConfig config;
    config.cluster = cluster_;
    config.task = task;
    return ParameterServerStrategy::Make(config, options, partitioner_);
  }

 private:
  const int workers_;
  const int servers_;
  const Partitioner partitioner_;
  ClusterSpec cluster_;
  std::vector<std::future<Status>> serving_;
};

StrategyWorld ParameterServers(int workers, int servers, const std::string& consistency) {
  StrategyWorld world;
  world.name = consistency + std::to_string(workers) + "x" + std::to_string(servers);
  std::erase(world.name, ':');
  world.processes = workers;
  world.parameter_server = true;
  const auto job = std::make_shared<Job>(workers, servers);
  world.start = [job] { job->Start(); };
  world.stop = [job] { job->Stop(); };
  world.make = [job, consistency](int process,
                                  StrategyOptions options) -> Result<std::unique_ptr<Strategy>> {
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

// IntegerData in its order, of which every example takes so long to read.
class SlowSource final : public data::Source {
 public:
  SlowSource(std::int64_t examples, std::chrono::milliseconds each)
      : all_(IntegerData(examples, 1)), each_(each) {}
  std::int64_t size() const override { return all_.source().size(); }
  const std::vector<data::FeatureSpec>& features() const override {
    return all_.source().features();
  }
  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    std::this_thread::sleep_for(each_);
    return all_.source().ReadInto(index, rows);
  }
  std::string Where(std::int64_t index) const override { return all_.source().Where(index); }
  std::uint64_t Fingerprint() const override { return all_.source().Fingerprint(); }

 private:
  const data::Dataset all_;
  const std::chrono::milliseconds each_;
};

// ---- Saving in the middle of training ----------------------------------------------------------

struct Saved {
  std::int64_t epoch = 0;
  std::int64_t batch = 0;
  std::int64_t step = 0;
  std::vector<float> values;
  std::vector<std::vector<float>> slots;
  std::uint64_t failed_saves = 0;  // of the end
};

constexpr std::int64_t kSaveExamples = 203;
constexpr std::int64_t kSaveBatch = 10;
constexpr std::int64_t kSaveBatches = 21;
constexpr int kSaveEpochs = 3;

Saved StateOf(Strategy& strategy, const ParameterSet& parameters) {
  OrThrow(strategy.PullState());
  Saved state{.step = strategy.step(),
              .values = {parameters.all().begin(), parameters.all().end()}};
  for (const std::span<float> slot : strategy.slots()) {
    state.slots.emplace_back(slot.begin(), slot.end());
  }
  return state;
}

// Trains three epochs, from `from` on if that is given. Returns the saves, and the end's state
// last.
std::vector<Saved> TrainAndSave(int workers, int servers, const std::string& consistency,
                                std::int64_t every_steps, const Saved* from, double clip = 0,
                                const std::function<Status(std::int64_t epoch)>& disk = {},
                                const std::string& partitioner = "pieces") {
  Job job(workers, servers, OrThrow(Partitioner::Parse(partitioner)));
  job.Start();
  std::vector<Saved> saves;
  const data::Dataset dataset = IntegerData(kSaveExamples, kSaveBatch);
  std::vector<std::future<void>> running;
  for (int w = 0; w < workers; ++w) {
    running.push_back(std::async(std::launch::async, [&, w] {
      StrategyOptions options;
      options.consistency = OrThrow(Consistency::Parse(consistency));
      const auto strategy = OrThrow(job.Make({TaskType::kWorker, w}, options));
      ParameterSet parameters = IntegerParameters();
      OrThrow(strategy->Bind(
          parameters, Sgd({.learning_rate = 0.0625, .momentum = 0.5, .global_clip_norm = clip})));
      if (from != nullptr && strategy->is_chief()) {
        std::copy(from->values.begin(), from->values.end(), parameters.all().begin());
        for (std::size_t s = 0; s < from->slots.size(); ++s) {
          std::copy(from->slots[s].begin(), from->slots[s].end(), strategy->slots()[s].begin());
        }
        OrThrow(strategy->SetStep(from->step));
        OrThrow(strategy->PushState());
      }
      for (const auto policy : {data::ShardPolicy::kFile, data::ShardPolicy::kOff,
                                data::ShardPolicy::kHint, data::ShardPolicy::kOwn}) {
        EXPECT_EQ(strategy->Distribute(dataset, {.policy = policy}).status().code(),
                  StatusCode::kInvalidArgument);
      }
      ASSERT_TRUE(strategy->SaveBetweenUpdates(
          {.every_steps = every_steps, .save = [&](std::int64_t epoch, std::int64_t batch) {
             Saved state = StateOf(*strategy, parameters);
             COHORT_RETURN_IF_ERROR(disk ? disk(epoch) : OkStatus());
             state.epoch = epoch;
             state.batch = batch;
             saves.push_back(std::move(state));
             return OkStatus();
           }}));
      const auto data = OrThrow(strategy->Distribute(dataset));
      const std::int64_t first = from == nullptr ? 0 : from->epoch;
      for (std::int64_t epoch = first; epoch < kSaveEpochs; ++epoch) {
        OrThrow(data->BeginEpoch(epoch, from != nullptr && epoch == first ? from->batch : 0));
        while (const auto batch = OrThrow(data->Next())) {
          OrThrow(strategy->Step(*batch, IntegerStep()).status());
        }
      }
      if (strategy->is_chief()) {
        saves.push_back(StateOf(*strategy, parameters));
        saves.back().failed_saves = OrThrow(strategy->stats()).failed_saves;
        saves.back().epoch = kSaveEpochs;
      }
      OrThrow(strategy->Shutdown());
    }));
  }
  for (std::future<void>& worker : running) {
    worker.get();
  }
  job.Stop();
  return saves;
}

TEST(SavesOfParameterServers, ASaveIsAPointBetweenTwoUpdates) {
  for (const auto& [consistency, clip] : {std::pair("async", 0.0),
                                          {"ssp:1", 0.0},
                                          {"sync", 0.0},
                                          {"sync", 3.0},
                                          {"sync:1", 0.0},
                                          {"sync:1", 3.0}}) {
    const std::vector<Saved> saves = TrainAndSave(3, 2, consistency, 6, nullptr, clip);
    EXPECT_GT(saves.size(), 3U) << consistency;
    for (const Saved& save : saves) {
      const bool end = &save == &saves.back();
      EXPECT_EQ(save.step,
                end ? kSaveEpochs * kSaveBatches : save.epoch * kSaveBatches + save.batch)
          << consistency << " " << clip << ": as many updates as there are batches before it";
    }
  }
}

// F13: a disk that is full for a while. The newest whole save counts, training goes on.
TEST(SavesOfParameterServers, ASaveThatFailsEndsNothing) {
  int failed = 0;
  const std::vector<Saved> saves =
      TrainAndSave(2, 2, "sync", 6, nullptr, 0, [&failed](std::int64_t epoch) {
        if (epoch != 1) {
          return OkStatus();
        }
        ++failed;
        return ResourceExhausted("write part-0: no space left on device");
      });
  EXPECT_GT(failed, 1);
  EXPECT_EQ(saves.back().failed_saves, static_cast<std::uint64_t>(failed));
  EXPECT_EQ(saves.back().step, kSaveEpochs * kSaveBatches);
  std::set<std::int64_t> epochs;
  for (const Saved& save : saves) {
    epochs.insert(save.epoch);
  }
  EXPECT_TRUE(epochs.contains(2)) << "it saves again when there is room";
  EXPECT_FALSE(epochs.contains(1));
}

TEST(SavesOfParameterServers, AResumedJobEndsWithTheBitsOfOneThatWentOn) {
  const std::vector<Saved> saves = TrainAndSave(2, 2, "sync", 10, nullptr);
  ASSERT_GT(saves.size(), 2U);
  for (const std::size_t from : {std::size_t{0}, saves.size() / 2}) {
    // On another number of servers.
    const std::vector<Saved> again = TrainAndSave(2, 3, "sync", 0, &saves[from]);
    ASSERT_EQ(again.size(), 1U);
    EXPECT_EQ(again.back().values, saves.back().values) << "from save " << from;
    EXPECT_EQ(again.back().slots, saves.back().slots);
    EXPECT_EQ(again.back().step, saves.back().step);
  }
}

// Neither values nor saves depend on how parameters are cut, or among how many servers.
TEST(SavesOfParameterServers, AnyPartitionerAndNumberOfServersGivesTheSameBits) {
  const std::vector<Saved> whole = TrainAndSave(2, 1, "sync", 10, nullptr);
  ASSERT_GT(whole.size(), 2U);
  int servers = 2;
  for (const char* partitioner : {"fixed:3", "min:8:5", "max:4"}) {
    const std::vector<Saved> cut =
        TrainAndSave(2, servers, "sync", 10, nullptr, 0, {}, partitioner);
    EXPECT_EQ(cut.back().values, whole.back().values) << partitioner;
    EXPECT_EQ(cut.back().slots, whole.back().slots) << partitioner;
    const std::vector<Saved> again =
        TrainAndSave(2, 5 - servers, "sync", 0, &whole[whole.size() / 2], 0, {}, partitioner);
    EXPECT_EQ(again.back().values, whole.back().values) << partitioner;
    EXPECT_EQ(again.back().slots, whole.back().slots) << partitioner;
    servers = 5 - servers;
  }
}

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
        values = StateOf(*strategy, parameters).values;
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
Late SendLate(const ServerSideOptions& options, const std::string& consistency, int others) {
  Job job(2, 2);
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

TEST(ServerSideOfParameterServers, IsForParameterServers) {
  ParameterSet parameters = IntegerParameters();
  const auto strategy = OrThrow(Strategy::FromEnv("one_device", {}));
  const Status status = strategy->Bind(parameters, ServerSide(Sgd(), {.clip_value = 1}));
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              HasSubstr("optimizer sgd has options of the server side under one_device"));
}

// ---- What is waited for ------------------------------------------------------------------------

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
        const data::Dataset dataset =
            data::Dataset(std::make_shared<SlowSource>(80, w == 1 ? kEach : 0 * kEach)).Batch(8);
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

}  // namespace
}  // namespace cohort::testing
