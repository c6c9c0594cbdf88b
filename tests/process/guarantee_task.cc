// One task of a job of three workers and two servers that looks, in every step of every worker, at
// what its consistency guarantees (strategies/README.md). What does not hold is an error, of which
// all processes end.
//
//   guarantee_task async|sync|sync:1|hybrid [GATE]
//
// An example adds 1 to values of its own on both servers, and to a row of its own, so that values
// and rows tell whose gradients are in them. Another table has a row that all share, under Adagrad,
// for which three updates are not one with their sum; and a parameter has gradients whose sums are
// those of one order of adding up.
// GATE: worker:2 does not go beyond its third step before there is such a file.
// The chief ends with "holds, digest N", N being of that parameter.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <cohort/cluster/resolve.h>
#include <cohort/core/random.h>
#include <cohort/data/memory.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <cohort/strategies/parameter_server.h>

namespace cohort {
namespace {

constexpr int kWorkers = 3;
constexpr std::int64_t kBatch = 12;  // parts of 4
constexpr std::int64_t kBatches = 40;
constexpr std::int64_t kExamples = kBatches * kBatch;
constexpr std::size_t kWide = 32;  // values of an example: a chunk is more than what TCP takes once
constexpr std::size_t kDim = 4;
constexpr double kRate = kBatch;  // an example of a whole batch counts 1
constexpr double kSharedRate = 0.5;

enum Parameter { kFirst = 0, kSecond = 1, kReal = 2 };
enum Table { kRows = 0, kShared = 1 };

using Ids = std::vector<std::uint64_t>;

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

bool Near(double value, double expected) { return std::abs(value - expected) < 1e-3; }

Ids IdsOf(const data::Batch& batch) {
  const Tensor id = batch["id"];
  const auto ids = id.data<std::int64_t>();
  return Ids(ids.begin(), ids.end());
}

data::Dataset Data() {
  std::vector<std::int64_t> id(static_cast<std::size_t>(kExamples));
  std::iota(id.begin(), id.end(), 0);
  return OrThrow(data::FromTensors({{"id", Tensor::Of<std::int64_t>({kExamples}, id)}}))
      .Shuffle(5)
      .Batch(kBatch);
}

ParameterSet Parameters() {
  ParameterSet parameters;
  const Shape shape({kExamples, static_cast<std::int64_t>(kWide)});
  parameters.Add("first", shape, {});
  parameters.Add("second", shape, {});
  parameters.Add("real", {257}, [](std::uint64_t e) { return static_cast<float>(e % 7) / 9; });
  parameters.AddTable({.name = "rows", .dim = static_cast<std::int64_t>(kDim), .buckets = 16});
  parameters.AddTable({.name = "shared",
                       .dim = 1,
                       .optimizer = Adagrad({.learning_rate = kSharedRate})->config(),
                       .buckets = 16});
  parameters.Build();
  return parameters;
}

// The shared row after so many updates, each with a mean gradient of -1.
double SharedAfter(std::int64_t updates) {
  double accumulator = AdagradOptions().initial_accumulator;
  double value = 0;
  for (std::int64_t i = 0; i < updates; ++i) {
    accumulator += 1;
    value += kSharedRate / (std::sqrt(accumulator) + AdagradOptions().epsilon);
  }
  return value;
}

class Witness {
 public:
  Witness(const Consistency& consistency, std::string self, std::string gate)
      : mode_(consistency.mode),
        backup_(consistency.backup_workers > 0),
        self_(std::move(self)),
        gate_(std::move(gate)),
        parts_(static_cast<std::size_t>(kBatches)),
        batch_of_(static_cast<std::size_t>(kExamples)) {
    for (int w = 0; w < kWorkers; ++w) {
      const auto iterator = OrThrow(Data().Iterate({.num_workers = kWorkers, .worker = w}));
      for (std::size_t b = 0; b < parts_.size(); ++b) {
        parts_[b].push_back(IdsOf(OrThrow(iterator->Next()).value()));
        for (const std::uint64_t id : parts_[b].back()) {
          batch_of_[id] = b;
        }
      }
    }
  }

  Result<ReplicaResult> Step(ReplicaContext& context, const data::Batch& part) {
    Say(fmt::format("step {} begins", ++steps_));
    if (steps_ == 3 && self_ == "worker:2") {
      AwaitGate();
    }
    const Ids ids = IdsOf(part);
    now_ = batch_of_[ids.at(0)];
    COHORT_RETURN_IF_ERROR(CheckValues(std::as_const(context.parameters)));
    COHORT_RETURN_IF_ERROR(CheckRows(context.parameters.rows(), ids));

    for (const int p : {kFirst, kSecond}) {
      const std::span<float> gradient = context.gradients.Accumulator(p);
      for (const std::uint64_t id : ids) {
        std::ranges::fill(gradient.subspan(id * kWide, kWide), -1.0F);
      }
    }
    const std::span<float> real = context.gradients.Accumulator(kReal);
    const std::span<const float> value = std::as_const(context.parameters).value(kReal);
    for (const std::uint64_t id : ids) {
      for (std::size_t e = 0; e < real.size(); ++e) {
        real[e] += 0.01F * (value[e] + random_.Normal(e, id));
      }
    }
    context.gradients.AddRows(kRows, ids, std::vector<float>(ids.size() * kDim, -1));
    context.gradients.AddRows(kShared, Ids(ids.size(), 0), std::vector<float>(ids.size(), -1));
    for (const int p : {kReal, kSecond, kFirst}) {
      context.gradients.Ready(p);
    }
    return ReplicaResult{
        .loss_sum = 0, .weight = static_cast<double>(ids.size()), .metric_sums = {}};
  }

  // This process has made a step of these.
  void Made(const Ids& ids) { own_.insert(own_.end(), ids.begin(), ids.end()); }

  // On the chief, when all is done and the values are there.
  Status CheckEnd(const ParameterSet& parameters) {
    now_ = parts_.size();
    own_.clear();  // the chief of most has made none
    COHORT_RETURN_IF_ERROR(CheckValues(parameters));
    Ids all(static_cast<std::size_t>(kExamples));
    std::iota(all.begin(), all.end(), 0);
    COHORT_RETURN_IF_ERROR(Expect(parameters.rows(), all, [&](std::uint64_t id, double level) {
      return mode_ == Consistency::Mode::kAsynchronous ? Near(level, 1)
                                                       : Near(level, levels_[kFirst][id]);
    }));
    for (std::size_t id = 0; !backup_ && id < all.size(); ++id) {
      if (!Near(levels_[kFirst][id], 1) || !Near(levels_[kSecond][id], 1)) {
        return Broken(fmt::format("example {} counts {} and {} at the end", id, levels_[kFirst][id],
                                  levels_[kSecond][id]));
      }
    }
    return CheckShared(parameters.rows(), kBatches, kBatches);
  }

 private:
  Status Broken(const std::string& what) const {
    return DataLoss(fmt::format("{}, step {}, batch {}: {}", self_, steps_, now_, what));
  }

  // The test ends this process at its deadline.
  void AwaitGate() const {
    while (!gate_.empty() && !std::filesystem::exists(gate_)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }

  bool Synchronous() const { return mode_ != Consistency::Mode::kAsynchronous; }

  Status CheckValues(const ParameterSet& parameters) {
    for (const int p : {kFirst, kSecond}) {
      const std::span<const float> values = parameters.value(p);
      levels_[p].resize(batch_of_.size());
      for (std::size_t id = 0; id < batch_of_.size(); ++id) {
        const auto of_id = values.subspan(id * kWide, kWide);
        levels_[p][id] = of_id[0];
        if (std::ranges::any_of(of_id, [&](float v) { return v != of_id[0]; })) {
          return Broken(fmt::format("example {} is in a part of a chunk only", id));
        }
      }
      for (std::size_t b = 0; b < parts_.size(); ++b) {
        COHORT_RETURN_IF_ERROR(backup_ ? CheckElected(p, b) : CheckWhole(p, b));
      }
      for (const std::uint64_t id : own_) {
        if (!backup_ && !Near(levels_[p][id], 1)) {
          return Broken(fmt::format("of its own example {} it reads {}", id, levels_[p][id]));
        }
      }
    }
    for (std::size_t b = 0; backup_ && b < now_; ++b) {
      for (const Ids& part : parts_[b]) {
        if (!Near(levels_[kFirst][part[0]], levels_[kSecond][part[0]])) {
          return Broken(fmt::format("batch {} has other parts on one server than on the other", b));
        }
      }
    }
    return {};
  }

  // A batch is in a chunk as a whole, or not at all; in step, all of those before and no other.
  Status CheckWhole(int p, std::size_t batch) const {
    const float first = levels_[p][parts_[batch][0][0]];
    for (const Ids& part : parts_[batch]) {
      for (const std::uint64_t id : part) {
        const float level = levels_[p][id];
        if (!Near(level, first) || !(Near(level, 0) || Near(level, 1))) {
          return Broken(fmt::format("of batch {} one example counts {} and another one {}", batch,
                                    first, level));
        }
      }
    }
    if ((Synchronous() && !Near(first, batch < now_ ? 1 : 0)) || (batch == now_ && first != 0)) {
      return Broken(fmt::format("batch {} counts {}", batch, first));
    }
    return {};
  }

  // Two whole parts of three, each example of which counts for 12 / 8; of what is under way, or
  // over where this worker is late, perhaps.
  Status CheckElected(int p, std::size_t batch) const {
    int counted = 0;
    for (const Ids& part : parts_[batch]) {
      const float first = levels_[p][part[0]];
      for (const std::uint64_t id : part) {
        if (!Near(levels_[p][id], first)) {
          return Broken(fmt::format("of batch {} a half of a part counts", batch));
        }
      }
      if (!Near(first, 0) && !Near(first, 1.5)) {
        return Broken(fmt::format("a part of batch {} counts {}", batch, first));
      }
      counted += Near(first, 1.5) ? 1 : 0;
    }
    if (counted != 2 && (counted != 0 || batch < now_)) {
      return Broken(fmt::format("{} parts of batch {} count", counted, batch));
    }
    return {};
  }

  // What `holds` of the level of each row, whose elements are one.
  template <typename Holds>
  Status Expect(RowSource& source, const Ids& ids, const Holds& holds,
                bool training = false) const {
    std::vector<float> rows(ids.size() * kDim);
    COHORT_RETURN_IF_ERROR(source.Lookup(kRows, ids, training, rows));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto row = std::span(rows).subspan(i * kDim, kDim);
      if (std::ranges::any_of(row, [&](float v) { return v != row[0]; })) {
        return Broken(fmt::format("row {} is updated in part", ids[i]));
      }
      if (!holds(ids[i], row[0])) {
        return Broken(fmt::format("row {} is {}", ids[i], row[0]));
      }
    }
    return {};
  }

  Status CheckRows(RowSource& source, const Ids& ids) const {
    // Of these none counts yet, but where this worker is late for their batch.
    COHORT_RETURN_IF_ERROR(Expect(
        source, ids,
        [&](std::uint64_t /*id*/, double level) {
          return Near(level, 0) || (backup_ && Near(level, 1.5));
        },
        /*training=*/true));
    // Rows of the batch before, in step, and of this worker's own ones are as far as the values.
    const std::size_t last = std::min(own_.size(), 3 * static_cast<std::size_t>(kBatch));
    Ids before(own_.end() - static_cast<std::ptrdiff_t>(last), own_.end());
    if (Synchronous() && now_ > 0) {
      for (const Ids& part : parts_[now_ - 1]) {
        before.insert(before.end(), part.begin(), part.end());
      }
    }
    if (!before.empty()) {
      COHORT_RETURN_IF_ERROR(Expect(source, before, [&](std::uint64_t id, double level) {
        return Near(level, levels_[kFirst][id]);
      }));
    }
    const auto batch = static_cast<std::int64_t>(now_);
    // Others do not wait for this worker where it is late.
    return Synchronous() ? CheckShared(source, batch, backup_ ? kBatches : batch) : OkStatus();
  }

  Status CheckShared(RowSource& source, std::int64_t least, std::int64_t most) const {
    const Ids one(1, 0);
    std::vector<float> row(1);
    COHORT_RETURN_IF_ERROR(source.Lookup(kShared, one, /*training=*/false, row));
    for (std::int64_t updates = least; updates <= most; ++updates) {
      if (Near(row[0], SharedAfter(updates))) {
        return {};
      }
    }
    return Broken(fmt::format("the row that all share is {}, after {} updates it is {}", row[0],
                              least, SharedAfter(least)));
  }

  const Consistency::Mode mode_;
  const bool backup_;
  const std::string self_;
  const std::string gate_;
  const Philox random_{11, "real"};
  std::vector<std::vector<Ids>> parts_;  // of each batch, as three workers in step have them
  std::vector<std::size_t> batch_of_;    // by id
  std::vector<float> levels_[2];         // by id: kFirst, kSecond
  Ids own_;
  std::size_t now_ = 0;  // the batch that this is a step of; all before it are over, in step
  int steps_ = 0;
};

Status Train(Strategy& strategy, DistributedDataset& data, Witness& witness) {
  COHORT_RETURN_IF_ERROR(data.BeginEpoch(0));
  const StepFn step = [&](ReplicaContext& context, const data::Batch& part) {
    return witness.Step(context, part);
  };
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const auto batch, data.Next());
    if (!batch.has_value()) {
      return {};
    }
    COHORT_RETURN_IF_ERROR(strategy.Step(*batch, step).status());
    witness.Made(IdsOf(batch->replicas.at(0)));
  }
}

Status RunWith(Strategy& strategy, const Consistency& consistency, const std::string& gate) {
  ParameterSet parameters = Parameters();
  COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = kRate})));
  if (!strategy.trains() && !strategy.is_chief()) {
    COHORT_RETURN_IF_ERROR(strategy.Serve());
    return strategy.Shutdown();
  }
  COHORT_ASSIGN_OR_RETURN(const auto data, strategy.Distribute(Data()));
  Witness witness(consistency, strategy.cluster().task.ToString(), gate);
  COHORT_RETURN_IF_ERROR(strategy.trains() ? Train(strategy, *data, witness) : strategy.Serve());
  if (strategy.is_chief()) {
    COHORT_RETURN_IF_ERROR(strategy.PullState());
    COHORT_RETURN_IF_ERROR(witness.CheckEnd(parameters));
    for (const EpochCoverage& epoch : strategy.coverage()) {
      Say(fmt::format("dropped {}", epoch.dropped));
    }
    const std::span<const float> real = std::as_const(parameters).value(kReal);
    Say(fmt::format("holds, digest {}",
                    Hash64({reinterpret_cast<const char*>(real.data()), real.size_bytes()})));
  }
  return strategy.Shutdown();
}

Status Run(const std::string& consistency, const std::string& gate) {
  COHORT_ASSIGN_OR_RETURN(const ClusterConfig config, ResolveCluster({}, Environment::OfProcess()));
  StrategyOptions options;
  COHORT_ASSIGN_OR_RETURN(options.consistency, Consistency::Parse(consistency));
  options.communication.transport = "tcp";
  options.join_timeout = std::chrono::seconds(60);
  options.communication.timeout = std::chrono::seconds(60);
  options.log = StderrLog(config.task.ToString());
  options.cluster = config;
  const Consistency asked = options.consistency;
  COHORT_ASSIGN_OR_RETURN(const auto strategy, Strategy::FromEnv("", options));
  const Status status = RunWith(*strategy, asked, gate);
  if (!status.ok()) {
    strategy->ReportError(status);
  }
  return status;
}

}  // namespace
}  // namespace cohort

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "guarantee_task CONSISTENCY [GATE]\n");
    return 2;
  }
  const cohort::Status status = cohort::Run(argv[1], argc > 2 ? argv[2] : "");
  if (!status.ok()) {
    std::fprintf(stderr, "error: %s\n", status.ToString().c_str());
  }
  return cohort::ExitCode(status);
}
