// Synchronous strategies of several processes, which are threads here: what the processes owe each
// other. That the numbers are right is shown by tests/conformance/strategy_conformance.cc.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <mutex>
#include <utility>

#include <cohort/comm/local.h>
#include <cohort/data/memory.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/integer_model.h"
#include "testing/passing_communicator.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using testing::ExpectAllOk;
using ::testing::HasSubstr;
using testing::IntegerData;
using testing::IntegerParameters;
using testing::IntegerStep;
using ::testing::Not;
using testing::RunRanks;

class FailingWork final : public Work {
 public:
  explicit FailingWork(std::unique_ptr<Work> inner) : inner_(std::move(inner)) {}
  bool done() const override { return inner_->done(); }
  Status Wait(Deadline deadline) override {
    (void)inner_->Wait(deadline);
    return Unavailable("the network is gone");
  }
  Status Wait() override {
    (void)inner_->Wait();
    return Unavailable("the network is gone");
  }
  void Order(Stream& stream) override { inner_->Order(stream); }

 private:
  const std::unique_ptr<Work> inner_;
};

// Passes everything on; keeps the names of all-reduces; lets one of them fail when it is waited
// for.
class Watched final : public testing::PassingCommunicator {
 public:
  struct Watch {
    std::vector<std::string> all_reduces;
    std::vector<std::string> algorithms;  // of each
    int fail_at = -1;                     // which all-reduce, from 0
  };
  Watched(std::unique_ptr<Communicator> inner, Watch& watch)
      : PassingCommunicator(std::move(inner)), watch_(watch) {}

  Pending AllReduce(ConstBuffer input, Buffer output, ReduceOp op,
                    const CollectiveOptions& options) override {
    watch_.all_reduces.push_back(options.name);
    watch_.algorithms.push_back(options.algorithm);
    Pending pending = inner().AllReduce(input, output, op, options);
    if (pending.ok() && static_cast<int>(watch_.all_reduces.size()) - 1 == watch_.fail_at) {
      return std::unique_ptr<Work>(std::make_unique<FailingWork>(std::move(pending).value()));
    }
    return pending;
  }

 private:
  Watch& watch_;
};

std::vector<std::unique_ptr<Communicator>> Workers(int processes) {
  CommunicatorOptions options;
  options.peer_name = [](int rank) { return "worker:" + std::to_string(rank); };
  return MakeLocalCommunicators(processes, options);
}

// fn(process, strategy) on `processes` threads; their statuses.
std::vector<Status> Job(int processes, const StrategyOptions& options,
                        const std::function<Status(int, Strategy&)>& fn,
                        std::vector<Watched::Watch>* watches = nullptr) {
  auto communicators = Workers(processes);
  return RunRanks(processes, [&](int process) -> Status {
    SynchronousParts parts;
    parts.kind = "multi_worker_mirrored";
    parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
    if (watches != nullptr) {
      parts.communicator = std::make_unique<Watched>(
          std::move(parts.communicator), watches->at(static_cast<std::size_t>(process)));
    }
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), options));
    return fn(process, *strategy);
  });
}

std::vector<std::string> Messages(const std::vector<Status>& statuses) {
  std::vector<std::string> messages;
  for (const Status& status : statuses) {
    messages.push_back(status.ToString());
  }
  return messages;
}

DistributedBatch OneEach(int replicas) {
  DistributedBatch batch;
  batch.replicas.assign(static_cast<std::size_t>(replicas), {.size = 1, .features = {}});
  return batch;
}

std::unique_ptr<Optimizer> PlainSgd() { return Sgd({.learning_rate = 0.5}); }

// Says Ready for all parameters, in an order of the replica's own.
Result<ReplicaResult> AllReady(ReplicaContext& context, const data::Batch& batch) {
  const int count = context.parameters.size();
  for (int i = 0; i < count; ++i) {
    const int p = (i * (context.replica % 2 == 0 ? 1 : -1) + context.replica + 2 * count) % count;
    std::ranges::fill(context.gradients.Accumulator(p), 1.0F);
    context.gradients.Ready(p);
  }
  return ReplicaResult{.weight = static_cast<double>(batch.size)};
}

ParameterSet Zeros(int count, std::int64_t elements) {
  ParameterSet parameters;
  for (int p = 0; p < count; ++p) {
    parameters.Add("p" + std::to_string(p), {elements}, nullptr);
  }
  parameters.Build();
  return parameters;
}

TEST(LaunchOrder, IsTheBucketsOrderOnEveryProcess) {
  StrategyOptions options;
  options.num_devices = 3;
  options.first_bucket_bytes = 1;
  options.communication.bytes_per_pack = 1;
  std::vector<Watched::Watch> watches(2);
  ExpectAllOk(Job(
      2, options,
      [](int, Strategy& strategy) -> Status {
        ParameterSet parameters = Zeros(5, 8);
        COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
        for (int step = 0; step < 20; ++step) {
          COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(3), AllReady).status());
        }
        return strategy.Shutdown();
      },
      &watches));
  // In the first step they lie in reverse order of declaration, from then on in the order in which
  // replica 0 finished them.
  std::vector<std::string> expected;
  for (int step = 0; step < 20; ++step) {
    for (int bucket = 0; bucket < 5; ++bucket) {
      expected.push_back("gradients, bucket " + std::to_string(bucket) + " (p" +
                         std::to_string(step == 0 ? 4 - bucket : bucket) + ")");
    }
    expected.emplace_back("loss and metrics");
    if (step == 0) {
      expected.emplace_back("gradients that are rows");
    }
  }
  EXPECT_EQ(watches[0].all_reduces, expected);
  EXPECT_EQ(watches[1].all_reduces, expected);
}

TEST(Algorithm, IsThatOfTheGradients) {
  StrategyOptions options;
  options.communication.implementation = "ring";
  options.communication.bytes_per_pack = 1;
  std::vector<Watched::Watch> watches(2);
  ExpectAllOk(Job(
      2, options,
      [](int, Strategy& strategy) -> Status {
        ParameterSet parameters = Zeros(3, 8);
        COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
        COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(1), AllReady).status());
        EXPECT_EQ(parameters.value(0)[0], -0.5F);
        return strategy.Shutdown();
      },
      &watches));
  int gradients = 0;
  for (std::size_t i = 0; i < watches[0].all_reduces.size(); ++i) {
    const bool bucket = watches[0].all_reduces[i].starts_with("gradients, bucket");
    gradients += bucket ? 1 : 0;
    EXPECT_EQ(watches[0].algorithms[i], bucket ? "ring" : "auto") << watches[0].all_reduces[i];
  }
  EXPECT_GE(gradients, 1);
}

TEST(Algorithm, ThatIsNotThereIsNamedWithThoseThatAre) {
  StrategyOptions options;
  options.communication.implementation = "rings";
  const auto nothing = [](int, Strategy&) -> Status { return {}; };
  EXPECT_THAT(
      Messages(Job(2, options, nothing)),
      Each(AllOf(HasSubstr("communication.implementation is 'rings'"), HasSubstr("ring,"))));
  // Words of other options, and of tf.distribute's.
  options.communication.implementation = "tcp";
  EXPECT_THAT(Messages(Job(2, options, nothing)),
              Each(AllOf(HasSubstr("ring,"), HasSubstr("communication.transport"))));
  options.communication.implementation = "nccl";
  EXPECT_THAT(Messages(Job(2, options, nothing)),
              Each(AllOf(HasSubstr("ring,"), HasSubstr("NCCL is cross_device_ops"))));
  options.communication.implementation = "ring";
  options.virtual_shards = 4;
  EXPECT_THAT(Messages(Job(2, options, nothing)),
              Each(AllOf(HasSubstr("InvalidArgument"), HasSubstr("virtual_shards"))));
}

TEST(Bind, NamesTheFirstParameterThatDiffersAndBothTasks) {
  const auto statuses = Job(3, {}, [](int process, Strategy& strategy) -> Status {
    ParameterSet parameters;
    parameters.Add("dense/kernel", {3, 4}, nullptr);
    parameters.Add("dense/bias", {process == 2 ? 5 : 4}, nullptr);
    parameters.Build();
    return strategy.Bind(parameters, PlainSgd());
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("worker:0 and worker:2"));
    EXPECT_THAT(status.message(), HasSubstr("'dense/bias [4]' against 'dense/bias [5]'"));
  }
}

TEST(Bind, NamesAMissingParameterAndADifferentRole) {
  auto statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros(process == 0 ? 2 : 1, 3);
    return strategy.Bind(parameters, PlainSgd());
  });
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("'p1 [3]' against nothing")));
  statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    ParameterSet parameters;
    parameters.Add("mean", {2}, nullptr, /*trainable=*/process == 0);
    parameters.Build();
    return strategy.Bind(parameters, PlainSgd());
  });
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("not trainable")));
}

TEST(Bind, NamesDifferentSettings) {
  const auto statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros(1, 3);
    return strategy.Bind(parameters, Sgd({.learning_rate = process == 0 ? 0.5 : 0.25}));
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("optimizer"));
    EXPECT_THAT(status.message(), HasSubstr("0.25"));
  }
}

TEST(Distribute, NamesDifferentDatasets) {
  auto statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    return strategy.Distribute(IntegerData(20, process == 0 ? 8 : 10)).status();
  });
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("20 examples in global batches of 8")));
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("FailedPrecondition")));
  statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    return strategy.Distribute(IntegerData(20, 8).Prefetch(process)).status();
  });
  EXPECT_THAT(Messages(statuses), Each("OK"));  // how far ahead one reads is its own business
}

TEST(Distribute, NamesDatasetsThatDifferInOneValue) {
  const auto statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    const Tensor x(DType::kFloat32, {20, 3});
    x.data<float>()[41] = static_cast<float>(process);
    return strategy.Distribute(OrThrow(data::FromTensors({{"x", x}})).Shuffle(5).Batch(8)).status();
  });
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("content and order with digest")));
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("FailedPrecondition")));
}

// Two files, whose examples are 0 to 5 and 6 to 11.
class TwoFiles final : public data::Source {
 public:
  explicit TwoFiles(std::int64_t first = 6) : first_(first) {}
  std::int64_t size() const override { return 12; }
  const std::vector<data::FeatureSpec>& features() const override { return features_; }
  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    std::memcpy(rows[0], &index, sizeof(index));
    return {};
  }
  std::string Where(std::int64_t index) const override { return std::to_string(index); }
  std::vector<data::FileRange> files() const override {
    return {{"0", 0, first_}, {"1", first_, 12}};
  }
  std::uint64_t Fingerprint() const override { return 1; }

 private:
  std::int64_t first_;  // examples of the first file
  std::vector<data::FeatureSpec> features_ = {{"id", DType::kInt64, Shape()}};
};

using IdBatches = std::vector<std::vector<std::int64_t>>;

// Batches of each process, which makes its own data set.
std::vector<IdBatches> BatchesUnder(data::ShardPolicy policy, int processes,
                                    const std::function<data::Dataset(int process)>& make) {
  std::vector<IdBatches> of_process(static_cast<std::size_t>(processes));
  ExpectAllOk(Job(processes, {}, [&](int process, Strategy& strategy) -> Status {
    COHORT_ASSIGN_OR_RETURN(const auto batches,
                            strategy.Distribute(make(process), {.policy = policy}));
    COHORT_RETURN_IF_ERROR(batches->BeginEpoch(0));
    IdBatches& mine = of_process[static_cast<std::size_t>(process)];
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(const auto batch, batches->Next());
      if (!batch.has_value()) {
        EXPECT_EQ(batches->batches_per_epoch(), static_cast<std::int64_t>(mine.size()));
        return {};
      }
      const auto ids = batch->replicas.at(0)["id"].data<std::int64_t>();
      mine.emplace_back(ids.begin(), ids.end());
    }
  }));
  return of_process;
}

TEST(Distribute, DividesAsThePolicySays) {
  using data::ShardPolicy;
  const auto parts = [](ShardPolicy policy) {
    return BatchesUnder(policy, 2,
                        [](int) { return data::Dataset(std::make_shared<TwoFiles>()).Batch(4); });
  };
  // The goldens of tf.distribute's input guide.
  for (const ShardPolicy by_file : {ShardPolicy::kFile, ShardPolicy::kAuto}) {
    EXPECT_THAT(parts(by_file), ElementsAre(IdBatches{{0, 1}, {2, 3}, {4, 5}},
                                            IdBatches{{6, 7}, {8, 9}, {10, 11}}));
  }
  const std::vector<IdBatches> by_record = {{{0, 1}, {4, 5}, {8, 9}}, {{2, 3}, {6, 7}, {10, 11}}};
  EXPECT_EQ(parts(ShardPolicy::kData), by_record);
  const IdBatches all = {{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}};
  EXPECT_THAT(parts(ShardPolicy::kOff), ElementsAre(all, all));
}

TEST(Distribute, DividesAtAMark) {
  const auto marked = [](int) {
    return data::Dataset(std::make_shared<TwoFiles>())
        .Shard(data::kShardHint, data::kShardHint)
        .Batch(4);
  };
  EXPECT_THAT(BatchesUnder(data::ShardPolicy::kHint, 2, marked),
              ElementsAre(IdBatches{{0, 2}, {4, 6}, {8, 10}}, IdBatches{{1, 3}, {5, 7}, {9, 11}}));
}

// Each process has its own share, as with tf.distribute's distribute_datasets_from_function; all
// have as many batches.
TEST(Distribute, TakesSharesOfTheProcessesOwn) {
  const auto share = [](data::Remainder remainder) {
    return [remainder](int process) {
      const data::Dataset all(std::make_shared<TwoFiles>());
      return (process == 0   ? all.Take(5)
              : process == 1 ? all.Skip(5).Take(1)
                             : all.Skip(6))
          .Batch(6, remainder);
    };
  };
  EXPECT_THAT(BatchesUnder(data::ShardPolicy::kOwn, 3, share(data::Remainder::kShort)),
              ElementsAre(IdBatches{{0, 1}, {2, 3}, {4}}, IdBatches{{5}, {}, {}},
                          IdBatches{{6, 7}, {8, 9}, {10, 11}}));
  EXPECT_THAT(BatchesUnder(data::ShardPolicy::kOwn, 3, share(data::Remainder::kDrop)),
              ElementsAre(IdBatches{}, IdBatches{}, IdBatches{}));
  EXPECT_THAT(BatchesUnder(data::ShardPolicy::kOwn, 3, share(data::Remainder::kWrap)),
              ElementsAre(IdBatches{{0, 1}, {2, 3}, {4, 0}}, IdBatches{{5, 5}, {5, 5}, {5, 5}},
                          IdBatches{{6, 7}, {8, 9}, {10, 11}}));
  // Nothing to fill up from, on one of them: an error of all.
  auto statuses = Job(3, {}, [](int process, Strategy& strategy) -> Status {
    return strategy
        .Distribute(data::Dataset(std::make_shared<TwoFiles>())
                        .Take(process == 1 ? 0 : 5)
                        .Batch(6, data::Remainder::kPad),
                    {.policy = data::ShardPolicy::kOwn})
        .status();
  });
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("has no examples to fill")));
  // Other batches or remainders do not fit together.
  statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    return strategy
        .Distribute(data::Dataset(std::make_shared<TwoFiles>()).Batch(4, process == 0),
                    {.policy = data::ShardPolicy::kOwn})
        .status();
  });
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("features and remainder")));
  // A share that cannot be divided, on one of them: the others are not left waiting.
  statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    data::Dataset mine(std::make_shared<TwoFiles>());
    if (process == 1) {
      mine = mine.Shard(data::kShardHint, data::kShardHint);
    }
    return strategy.Distribute(mine.Batch(4), {.policy = data::ShardPolicy::kOwn}).status();
  });
  EXPECT_THAT(statuses[0].message(), HasSubstr("cannot be divided, see its error"));
  EXPECT_THAT(statuses[1].message(), HasSubstr("only under ShardPolicy::kHint"));
}

// In one line, on the chief.
TEST(Distribute, SaysOnceHowExamplesAreDivided) {
  std::mutex mutex;
  std::vector<std::string> lines;
  StrategyOptions options;
  options.log = Log([&](LogLevel level, std::string_view line) {
    if (level == LogLevel::kInfo && line.starts_with("input: ")) {
      const std::lock_guard lock(mutex);
      lines.emplace_back(line);
    }
  });
  ExpectAllOk(Job(3, options, [](int, Strategy& strategy) -> Status {
    const data::Dataset dataset = data::Dataset(std::make_shared<TwoFiles>()).Batch(6);
    COHORT_RETURN_IF_ERROR(strategy.Distribute(dataset).status());
    COHORT_RETURN_IF_ERROR(
        strategy.Distribute(dataset, {.policy = data::ShardPolicy::kAuto}).status());
    return strategy.Distribute(dataset, {.evaluation = true}).status();
  }));
  const std::string by_record =
      "input: 12 examples of 2 files in global batches of 6, divided by record among 3 processes";
  EXPECT_THAT(lines, ElementsAre(by_record, HasSubstr(by_record + ", since ShardPolicy::kFile: 2 "
                                                                  "files for 3 workers")));
}

TEST(Distribute, RefusesAPolicyThatCannotBe) {
  using data::ShardPolicy;
  auto statuses = Job(3, {}, [](int, Strategy& strategy) -> Status {
    return strategy
        .Distribute(data::Dataset(std::make_shared<TwoFiles>()).Batch(6),
                    {.policy = ShardPolicy::kFile})
        .status();
  });
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("2 files for 3 workers")));
  statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    return strategy
        .Distribute(data::Dataset(std::make_shared<TwoFiles>()).Batch(6),
                    {.policy = process == 0 ? ShardPolicy::kFile : ShardPolicy::kData})
        .status();
  });
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("examples divided by file")));
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("examples divided by record")));
  // The same examples in other files: each process would work out other shares.
  statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    return strategy
        .Distribute(data::Dataset(std::make_shared<TwoFiles>(6 + process)).Batch(6),
                    {.policy = ShardPolicy::kFile})
        .status();
  });
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("by file, sizes of the files with digest")));
}

TEST(Step, ValuesThatAreNotTrainableFollowTheFirstProcess) {
  StrategyOptions options;
  options.num_devices = 2;
  ExpectAllOk(Job(3, options, [](int, Strategy& strategy) -> Status {
    ParameterSet parameters;
    parameters.Add("mean", {3}, nullptr, /*trainable=*/false);
    parameters.Add("kernel", {3}, nullptr);
    parameters.Add("variance", {2}, nullptr, /*trainable=*/false);
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    for (int step = 1; step <= 3; ++step) {
      COHORT_RETURN_IF_ERROR(
          strategy
              .Step(
                  OneEach(2),
                  [&](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
                    if (context.replica % 2 == 0) {  // the first of its process
                      const auto moved = static_cast<float>(step * 10 + context.replica);
                      std::ranges::fill(context.parameters.value(0), moved);
                      std::ranges::fill(context.parameters.value(2), -moved);
                    }
                    context.gradients.Ready(1);
                    return ReplicaResult{.weight = static_cast<double>(batch.size)};
                  })
              .status());
      EXPECT_THAT(parameters.value(0), Each(step * 10));
      EXPECT_THAT(parameters.value(2), Each(-step * 10));
    }
    return strategy.Shutdown();
  }));
}

TEST(Failure, OfOneReplicaReachesEveryProcessWithItsName) {
  StrategyOptions options;
  options.num_devices = 2;
  options.communication.bytes_per_pack = 1;
  options.first_bucket_bytes = 1;
  const auto statuses = Job(3, options, [&](int, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros(4, 100);
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(2), AllReady).status());
    const float before = parameters.value(0)[0];
    const auto result = strategy.Step(
        OneEach(2), [](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
          if (context.replica == 3) {
            std::ranges::fill(context.gradients.Accumulator(3), 1.0F);
            context.gradients.Ready(3);  // the first bucket is under way everywhere
            return DataLoss("image 17 is torn");
          }
          return AllReady(context, batch);
        });
    EXPECT_EQ(parameters.value(0)[0], before);
    EXPECT_EQ(strategy.step(), 1);
    // It stays so: the processes are no longer at the same step.
    EXPECT_FALSE(strategy.Step(OneEach(2), AllReady).ok());
    return result.status();
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr("worker:1, replica 3: image 17 is torn"));
  }
}

TEST(Failure, ByAnExceptionDoesTheSame) {
  const auto statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros(2, 10);
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    try {
      return strategy
          .Step(OneEach(1),
                [](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
                  if (context.replica == 1) {
                    throw std::runtime_error("nobody expects it");
                  }
                  return AllReady(context, batch);
                })
          .status();
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(process, 1);
      return Internal(std::string("here: ") + error.what());
    }
  });
  EXPECT_THAT(statuses[0].message(),
              HasSubstr("worker:1, replica 1: exception: nobody expects it"));
  EXPECT_EQ(statuses[1].message(), "here: nobody expects it");
}

TEST(Failure, DuringEvaluateReachesEveryProcess) {
  const auto statuses = Job(2, {}, [](int, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros(1, 1);
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    return strategy
        .Evaluate(OneEach(1),
                  [](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
                    if (context.replica == 0) {
                      return NotFound("no label");
                    }
                    return ReplicaResult{.weight = 1};
                  })
        .status();
  });
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("no label")));
}

TEST(Failure, AfterABucketWasAppliedSaysSoAndStays) {
  StrategyOptions options;
  options.first_bucket_bytes = 1;
  options.communication.bytes_per_pack = 1;
  std::vector<Watched::Watch> watches(2);
  watches[1].fail_at = 2;  // of three buckets the last
  const auto statuses = Job(
      2, options,
      [&](int process, Strategy& strategy) -> Status {
        ParameterSet parameters = Zeros(3, 10);
        COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
        const Status failed = strategy.Step(OneEach(1), AllReady).status();
        if (process == 1) {
          EXPECT_EQ(parameters.value(0)[0], 0);
          EXPECT_NE(parameters.value(1)[0], 0);
          EXPECT_EQ(strategy.step(), 0);
          EXPECT_EQ(strategy.Step(OneEach(1), AllReady).status(), failed);
        }
        return failed;
      },
      &watches);
  EXPECT_EQ(statuses[1].code(), StatusCode::kUnavailable);
  EXPECT_THAT(statuses[1].message(), HasSubstr("step 1: the network is gone"));
  EXPECT_THAT(statuses[1].message(), HasSubstr("2 of 3 buckets had been applied"));
}

TEST(Failure, LeavesNothingOfAWholeUpdate) {
  StrategyOptions options;
  options.first_bucket_bytes = 1;
  options.communication.bytes_per_pack = 1;
  options.whole_updates = true;
  std::vector<Watched::Watch> watches(2);
  watches[1].fail_at = 2;  // of three buckets the last
  const auto statuses = Job(
      2, options,
      [&](int process, Strategy& strategy) -> Status {
        ParameterSet parameters = Zeros(3, 10);
        COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
        const Status failed = strategy.Step(OneEach(1), AllReady).status();
        if (process == 1) {
          EXPECT_THAT(parameters.all(), Each(0));
          EXPECT_EQ(strategy.step(), 0);
          EXPECT_TRUE(strategy.intact().ok());
        }
        return failed;
      },
      &watches);
  EXPECT_THAT(statuses[1].message(), HasSubstr("step 1: the network is gone"));
  EXPECT_THAT(statuses[1].message(), Not(HasSubstr("had been applied")));
}

TEST(Metrics, TheirNumberMayNotDifferBetweenProcesses) {
  for (const std::vector<std::size_t>& numbers : {std::vector<std::size_t>{0, 1}, {1, 3}}) {
    const auto statuses = Job(2, {}, [&numbers](int, Strategy& strategy) -> Status {
      ParameterSet parameters = Zeros(1, 1);
      COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
      return strategy
          .Step(OneEach(1),
                [&numbers](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
                  context.gradients.Ready(0);
                  ReplicaResult result{.weight = 1};
                  result.metric_sums.resize(numbers[static_cast<std::size_t>(context.replica)]);
                  return result;
                })
          .status();
    });
    EXPECT_THAT(Messages(statuses), Each(HasSubstr("different numbers of metric sums")));
  }
}

TEST(Metrics, TooManyAreRefusedWithTheirNumber) {
  const auto statuses = Job(1, {}, [](int, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros(1, 1);
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    const auto step = [&strategy](std::size_t metrics) {
      return strategy
          .Step(OneEach(1),
                [metrics](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
                  context.gradients.Ready(0);
                  ReplicaResult result{.weight = 1};
                  result.metric_sums.resize(metrics);
                  return result;
                })
          .status();
    };
    COHORT_RETURN_IF_ERROR(step(28));
    try {
      return step(29);
    } catch (const ContractError& error) {
      EXPECT_THAT(error.what(), HasSubstr("at most 28 metric sums, not 29"));
      return {};
    }
  });
  ExpectAllOk(statuses);
}

// A parameter that only one process uses: the others' gradients are 0, with their weight.
TEST(Gradients, OfAParameterThatOneProcessUsesAreTheWeightedMean) {
  for (const int user : {0, 1, 2}) {
    SCOPED_TRACE(user);
    std::mutex mutex;
    std::vector<std::string> warnings;
    StrategyOptions options;
    options.log = Log([&](LogLevel level, std::string_view message) {
      if (level == LogLevel::kWarning) {
        const std::lock_guard lock(mutex);
        warnings.emplace_back(message);
      }
    });
    ExpectAllOk(Job(3, options, [&](int process, Strategy& strategy) -> Status {
      ParameterSet parameters = Zeros(3, 2);
      COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
      const std::vector<double> weights{1, 5, 2};
      const double weight = weights[static_cast<std::size_t>(process)];
      for (int step = 1; step <= 3; ++step) {
        const auto result =
            strategy.Step(OneEach(1), [&](ReplicaContext& context, const data::Batch&) {
              context.gradients.SetWeight(weight);
              for (const int p : {2, 1, 0}) {
                if (p != 1 || process == user) {
                  std::ranges::fill(context.gradients.Accumulator(p),
                                    context.gradients.loss_seed() * 4);
                  context.gradients.Ready(p);
                }
              }
              return Result<ReplicaResult>(ReplicaResult{.weight = weight});
            });
        COHORT_RETURN_IF_ERROR(result.status());
        const auto steps = static_cast<float>(step);
        const auto share = static_cast<float>(weights[static_cast<std::size_t>(user)] / 8);
        EXPECT_THAT(parameters.value(0), Each(-0.5F * 4 * steps));
        EXPECT_THAT(parameters.value(1), Each(-0.5F * 4 * steps * share));
        EXPECT_THAT(parameters.value(2), Each(-0.5F * 4 * steps));
      }
      return strategy.Shutdown();
    }));
    // Once by each process that does without it.
    EXPECT_EQ(warnings.size(), 2U);
    EXPECT_THAT(warnings, Each(AllOf(HasSubstr("1 trainable parameter(s)"), HasSubstr("'p1'"))));
  }
}

TEST(Metrics, OfAProcessWithoutExamplesAreTheOthers) {
  ExpectAllOk(Job(2, {}, [](int process, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros(1, 1);
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    DistributedBatch batch = OneEach(1);
    batch.replicas[0].size = process == 0 ? 4 : 0;
    COHORT_ASSIGN_OR_RETURN(const StepResult result,
                            strategy.Step(batch, [](ReplicaContext& context, const data::Batch&) {
                              context.gradients.Ready(0);
                              return Result<ReplicaResult>(
                                  ReplicaResult{.loss_sum = 8, .weight = 4, .metric_sums = {2, 4}});
                            }));
    EXPECT_EQ(result.loss, 2);
    EXPECT_THAT(result.metrics, ElementsAre(0.5, 1));
    return strategy.Shutdown();
  }));
}

TEST(Scale, OfLossesBeyondWhatAFloatCounts) {
  // Weights of 2^24 + 1 and sums of losses beside them: exact on every process.
  ExpectAllOk(Job(2, {}, [](int process, Strategy& strategy) -> Status {
    ParameterSet parameters = Zeros(1, 1);
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, PlainSgd()));
    const double weight = 16'777'217 + process;
    COHORT_ASSIGN_OR_RETURN(
        const StepResult result,
        strategy.Step(OneEach(1), [&](ReplicaContext& context, const data::Batch&) {
          context.gradients.SetWeight(weight);
          context.gradients.Ready(0);
          return Result<ReplicaResult>(ReplicaResult{.loss_sum = 3 * weight, .weight = weight});
        }));
    EXPECT_EQ(result.weight, 2 * 16'777'217.0 + 1);
    EXPECT_EQ(result.loss, 3);
    return {};
  }));
}

TEST(ReduceGradients, IsTheWeightedMeanWhateverTheBuckets) {
  for (const std::int64_t bucket_bytes : {4, 12, 1 << 20}) {
    SCOPED_TRACE(bucket_bytes);
    StrategyOptions options;
    options.communication.bytes_per_pack = bucket_bytes;
    ExpectAllOk(Job(3, options, [](int process, Strategy& strategy) -> Status {
      for (int round = 0; round < 2; ++round) {
        // Weights 0, 1, 2; the first process's gradients are not numbers, and weigh nothing.
        std::vector<std::vector<float>> gradients{{0, 0, 0, 0, 0}, {}, {0}, {0, 0}};
        float next = 1;
        std::vector<std::span<float>> spans;
        for (std::vector<float>& gradient : gradients) {
          for (float& g : gradient) {
            g = process == 0 ? NAN : next++ * static_cast<float>(process == 1 ? 3 : 6);
          }
          spans.emplace_back(gradient);
        }
        COHORT_RETURN_IF_ERROR(strategy.ReduceGradients(spans, process));
        EXPECT_THAT(gradients[0], ElementsAre(5, 10, 15, 20, 25));
        EXPECT_THAT(gradients[2], ElementsAre(30));
        EXPECT_THAT(gradients[3], ElementsAre(35, 40));
      }
      std::vector<float> nothing{7, 7};
      const std::span<float> spans[] = {nothing};
      COHORT_RETURN_IF_ERROR(strategy.ReduceGradients(spans, 0));
      EXPECT_THAT(nothing, ElementsAre(0, 0));
      return strategy.Shutdown();
    }));
  }
}

TEST(ReduceGradients, NamesDifferentSizes) {
  const auto statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    std::vector<float> a(process == 0 ? 3 : 4, 1.0F);
    std::vector<float> b(process == 0 ? 4 : 3, 1.0F);
    const std::span<float> spans[] = {a, b};
    return strategy.ReduceGradients(spans, 1);
  });
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("'3 elements' against '4 elements'")));
}

TEST(ReduceAndGather, SpanProcessesAndReplicas) {
  StrategyOptions options;
  options.num_devices = 2;
  ExpectAllOk(Job(3, options, [](int process, Strategy& strategy) -> Status {
    PerReplica<Tensor> value;
    PerReplica<Tensor> rows;
    for (int local = 0; local < 2; ++local) {
      const int replica = process * 2 + local;
      const std::vector<float> one{static_cast<float>(replica), 1};
      value.values.push_back(Tensor::Of<float>({2}, one));
      // As many rows as the replica's number: the first has none.
      Tensor some(DType::kFloat64, {replica, 2});
      std::ranges::fill(some.data<double>(), replica);
      rows.values.push_back(some);
    }
    COHORT_ASSIGN_OR_RETURN(const auto sum, strategy.Reduce(ReduceOp::kSum, value));
    EXPECT_THAT(sum.value.data<float>(), ElementsAre(15, 6));
    COHORT_ASSIGN_OR_RETURN(const auto mean, strategy.Reduce(ReduceOp::kMean, value));
    EXPECT_THAT(mean.value.data<float>(), ElementsAre(2.5, 1));
    COHORT_ASSIGN_OR_RETURN(const auto max, strategy.Reduce(ReduceOp::kMax, value));
    EXPECT_THAT(max.value.data<float>(), ElementsAre(5, 1));
    COHORT_ASSIGN_OR_RETURN(const auto gathered, strategy.Gather(rows));
    EXPECT_EQ(gathered.value.shape(), Shape({15, 2}));
    std::size_t at = 0;
    for (int replica = 0; replica < 6; ++replica) {
      for (int i = 0; i < 2 * replica; ++i) {
        EXPECT_EQ(gathered.value.data<double>()[at++], replica);
      }
    }
    return strategy.Shutdown();
  }));
}

TEST(ReduceAndGather, NamesRowsThatDiffer) {
  const auto statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    PerReplica<Tensor> rows;
    rows.values.emplace_back(DType::kFloat32, Shape{1, process + 2});
    return strategy.Gather(rows).status();
  });
  EXPECT_THAT(Messages(statuses), Each(HasSubstr("'float32[1,2]' against 'float32[1,3]'")));
}

TEST(Broadcast, TakesTheFirstProcessesBytes) {
  ExpectAllOk(Job(3, {}, [](int process, Strategy& strategy) -> Status {
    std::vector<std::byte> bytes(5, static_cast<std::byte>(process + 40));
    COHORT_RETURN_IF_ERROR(strategy.Broadcast(bytes));
    EXPECT_THAT(bytes, Each(static_cast<std::byte>(40)));
    EXPECT_EQ(strategy.is_chief(), process == 0);
    EXPECT_EQ(strategy.num_replicas_in_sync(), 3);
    return strategy.Barrier("done");
  }));
}

TEST(ReportError, EndsTheOthersWithItsText) {
  const auto statuses = Job(2, {}, [](int process, Strategy& strategy) -> Status {
    if (process == 1) {
      strategy.ReportError(ResourceExhausted("worker:1: disk full"));
      return {};
    }
    return strategy.Barrier("epoch");
  });
  EXPECT_THAT(statuses[0].message(), HasSubstr("disk full"));
}

}  // namespace
}  // namespace cohort
