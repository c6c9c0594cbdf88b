#include <cohort/strategies/strategy.h>

#include <algorithm>
#include <utility>

#include <cohort/cluster/resolve.h>
#include <cohort/strategies/parameter_server.h>

#include "multi_worker/job.h"
#include "multi_worker/row_server.h"
#include "synchronous/synchronous_strategy.h"

namespace cohort {
namespace {

constexpr std::string_view kOneDevice = "one_device";
constexpr std::string_view kMirrored = "mirrored";
constexpr std::string_view kMultiWorker = "multi_worker_mirrored";
constexpr std::string_view kParameterServer = "parameter_server";

// An evaluator is outside of the cluster that it evaluates for.
bool InCluster(const ClusterConfig& config) {
  return !config.cluster.empty() && config.task.type != TaskType::kEvaluator;
}

std::string Describe(const ClusterConfig& config) {
  if (!InCluster(config)) {
    return config.source + " describes no cluster that this process trains in";
  }
  std::string text =
      config.source + " describes " + std::to_string(config.cluster.Tasks().size()) + " task(s):";
  for (const TaskId& task : config.cluster.Tasks()) {
    text += " " + task.ToString();
  }
  return text;
}

std::string_view KindFor(const ClusterConfig& config, const StrategyOptions& options) {
  if (!InCluster(config) || config.cluster.Tasks().size() == 1) {
    return std::max<std::size_t>(options.devices.size(),
                                 static_cast<std::size_t>(options.num_devices)) > 1
               ? kMirrored
               : kOneDevice;
  }
  return config.cluster.Count(TaskType::kPs) > 0 ? kParameterServer : kMultiWorker;
}

// Is the cluster one that the kind can train in?
Status Check(std::string_view kind, const ClusterConfig& config, const StrategyOptions& options) {
  const std::string_view fitting = KindFor(config, options);
  const std::string advice = " [use --strategy " + std::string(fitting) +
                             ", which fits, or start the processes differently]";
  const std::string name(kind);
  const std::size_t tasks = InCluster(config) ? config.cluster.Tasks().size() : 0;
  const int servers = InCluster(config) ? config.cluster.Count(TaskType::kPs) : 0;
  if (kind == kOneDevice || kind == kMirrored) {
    if (tasks > 1) {
      return FailedPrecondition(name + " trains in one process, but " + Describe(config) + advice);
    }
    if (kind == kOneDevice && options.num_devices != 1) {
      return InvalidArgument("one_device with num_devices " + std::to_string(options.num_devices) +
                             " [use mirrored]");
    }
    if (kind == kOneDevice && options.devices.size() > 1) {
      return InvalidArgument("one_device with " + std::to_string(options.devices.size()) +
                             " devices [use mirrored]");
    }
    return {};
  }
  if (kind == kMultiWorker) {
    if (tasks == 0) {
      return FailedPrecondition(name + " needs a cluster of workers, but " + Describe(config) +
                                advice);
    }
    // Servers hold the sparse tables of workers that train in step; worker:0 leads these.
    if (servers > 0 && config.cluster.Count(TaskType::kChief) > 0) {
      return FailedPrecondition(name + " with ps tasks is led by worker:0, but " +
                                Describe(config) +
                                " [start no chief, or use --strategy parameter_server]");
    }
    return {};
  }
  if (kind == kParameterServer) {
    if (servers == 0) {
      return FailedPrecondition(name + " needs a cluster with ps tasks, but " + Describe(config) +
                                advice);
    }
    return {};
  }
  return InvalidArgument("no strategy is called '" + name +
                         "' [one_device, mirrored, multi_worker_mirrored or parameter_server]");
}

// Options of parameter_server, under another kind.
Status CheckNoServers(const std::string& kind, const StrategyOptions& options) {
  const bool wire =
      options.server_wire.push != DType::kFloat32 || options.server_wire.pull != DType::kFloat32;
  const std::string option =
      options.server_loss != ServerLoss::kRollBack
          ? "server_loss " + std::string(ServerLossName(options.server_loss))
      : wire                                 ? "server_wire"
      : options.partitioner != Partitioner() ? "partitioner " + options.partitioner.ToString()
      : options.start != StartPolicy()       ? "start " + options.start.ToString()
      : options.consistency != Consistency() ? "consistency " + options.consistency.ToString()
      : options.balance_interval.count() != 0
          ? "balance_interval of " + std::to_string(options.balance_interval.count()) + " ms"
          : "";
  if (option.empty()) {
    return {};
  }
  return InvalidArgument(option + " under " + kind + ", where no server holds variables [" +
                         (wire ? "MakeCompressionHook compresses gradients; or " : "") +
                         "use parameter_server]");
}

// What FromEnv makes.
struct Choice {
  std::string kind;
  Consistency consistency;
  std::string why;  // the consistency, where nobody asked for one
};

// Of a parameter-server cluster, where nobody asked for a consistency. `model`: nullptr where it is
// not known.
void ChooseConsistency(const ParameterSet* model, bool kind_asked, const ClusterConfig& config,
                       Choice& choice) {
  const std::size_t tables = model == nullptr ? 0 : model->tables().size();
  const TaskId chief = config.cluster.Chief();
  choice.consistency = {};
  if (model == nullptr) {
    choice.why = "Strategy::FromEnv was not given the model";
  } else if (tables == 0) {
    choice.why = "the model has no sparse tables";
  } else if (kind_asked) {
    choice.why = "strategy " + choice.kind + " was asked for";
  } else if (chief.type == TaskType::kChief) {
    choice.why = "hybrid, for the model's " + std::to_string(tables) +
                 " sparse table(s), is led by worker:0, and the cluster has " + chief.ToString();
  } else {
    choice.consistency.mode = Consistency::Mode::kHybrid;
    choice.why = "the model has " + std::to_string(tables) +
                 " sparse table(s), which ps tasks hold, and no chief task leads the job";
  }
}

Status CheckHybrid(const std::string& kind, const ClusterConfig& config) {
  if (kind != kParameterServer && kind != kMultiWorker) {
    return InvalidArgument("consistency hybrid under " + kind +
                           " [it goes with parameter_server: workers and servers]");
  }
  if (config.cluster.Count(TaskType::kPs) == 0) {
    return FailedPrecondition("consistency hybrid needs ps tasks for the sparse tables, but " +
                              Describe(config));
  }
  if (config.cluster.Count(TaskType::kChief) > 0) {
    return FailedPrecondition("consistency hybrid is led by worker:0, but " + Describe(config) +
                              " [start no chief, or use another consistency]");
  }
  return {};
}

Result<Choice> Choose(const ParameterSet* model, std::string_view kind, const ClusterConfig& config,
                      const StrategyOptions& options) {
  Choice choice{.kind = std::string(kind.empty() ? KindFor(config, options) : kind),
                .consistency = options.consistency,
                .why = {}};
  COHORT_RETURN_IF_ERROR(Check(choice.kind, config, options));
  if (choice.consistency.mode == Consistency::Mode::kAuto) {
    choice.consistency = {};
    if (choice.kind == kParameterServer) {
      ChooseConsistency(model, !kind.empty(), config, choice);
    }
  }
  if (choice.consistency.mode == Consistency::Mode::kHybrid) {
    COHORT_RETURN_IF_ERROR(CheckHybrid(choice.kind, config));
    choice.kind = kMultiWorker;
  }
  return choice;
}

// As the environment says, unless the program has.
Result<ClusterConfig> ClusterOf(const StrategyOptions& options, const Log& log) {
  return options.cluster.has_value() ? Result<ClusterConfig>(*options.cluster)
                                     : ResolveCluster({}, EnvironmentOf(options), log);
}

Result<std::unique_ptr<Strategy>> Make(const ParameterSet* model, std::string_view kind,
                                       StrategyOptions options) {
  COHORT_ASSIGN_OR_RETURN(const ClusterConfig config, ClusterOf(options, options.log));
  options.cluster = config;
  COHORT_ASSIGN_OR_RETURN(const Choice choice, Choose(model, kind, config, options));
  const std::string& chosen = choice.kind;
  options.log.Info("strategy " + chosen + ", " + config.task.ToString() + ": " + Describe(config));
  if (!choice.why.empty() && config.is_chief()) {
    options.log.Info("consistency " + choice.consistency.ToString() + ": " + choice.why);
  }
  options.consistency = choice.consistency;
  if (chosen == kParameterServer) {
    auto made = ParameterServerStrategy::Make(config, options);
    COHORT_RETURN_IF_ERROR(made.status());
    return std::unique_ptr<Strategy>(std::move(made).value());
  }
  if (options.consistency.mode == Consistency::Mode::kHybrid) {
    options.consistency = {};
  }
  COHORT_RETURN_IF_ERROR(CheckNoServers(chosen, options));
  COHORT_RETURN_IF_ERROR(SynchronousStrategy::CheckOptions(
      options,
      chosen == kMultiWorker ? static_cast<int>(config.cluster.TrainingTasks().size()) : 1));
  std::unique_ptr<Membership> membership = MakeMembership(nullptr);
  if (chosen == kMultiWorker && config.task.type == TaskType::kPs) {
    return MakeRowServer(chosen, config, options);
  }
  if (chosen == kMultiWorker) {
    COHORT_ASSIGN_OR_RETURN(membership, JoinJob(config, options));
  }
  return SynchronousStrategy::Make(chosen, config, std::move(membership), std::move(options));
}

}  // namespace

Status DistributedDataset::ResumeEpoch(std::int64_t epoch, std::int64_t first_batch,
                                       const std::vector<data::EpochDivision>& begun) {
  if (!begun.empty()) {
    return FailedPrecondition("epoch " + std::to_string(epoch) + " was divided " +
                              std::string(data::DivisionName(begun.front().policy)) + " among " +
                              std::to_string(begun.front().num_workers) +
                              " processes, and cannot be gone on with in one order that all share "
                              "[end it with the strategy that began it]");
  }
  return BeginEpoch(epoch, first_batch);
}

std::string_view ServerLossName(ServerLoss loss) {
  switch (loss) {
    case ServerLoss::kRollBack:
      return "kRollBack";
    case ServerLoss::kPartial:
      return "kPartial";
    case ServerLoss::kReplica:
      return "kReplica";
  }
  return "";
}

Environment EnvironmentOf(const StrategyOptions& options) {
  return options.environment.has_value() ? *options.environment : Environment::OfProcess();
}

Result<std::unique_ptr<Strategy>> Strategy::FromEnv(std::string_view kind,
                                                    StrategyOptions options) {
  return Make(nullptr, kind, std::move(options));
}

Result<std::unique_ptr<Strategy>> Strategy::FromEnv(const ParameterSet& model,
                                                    std::string_view kind,
                                                    StrategyOptions options) {
  return Make(&model, kind, std::move(options));
}

Result<std::string> Strategy::KindFromEnv(const ParameterSet& model, std::string_view kind,
                                          const StrategyOptions& options) {
  COHORT_ASSIGN_OR_RETURN(const ClusterConfig config, ClusterOf(options, Log()));
  COHORT_ASSIGN_OR_RETURN(Choice choice, Choose(&model, kind, config, options));
  return std::move(choice.kind);
}

Status Strategy::SaveTable(int /*table*/, FileSystem& /*files*/, const std::string& /*path*/) {
  return Unimplemented(std::string(kind()) + " keeps no sparse tables");
}

Status Strategy::LoadTable(int /*table*/, FileSystem& /*files*/,
                           const std::vector<std::string>& /*chain*/) {
  return Unimplemented(std::string(kind()) + " keeps no sparse tables");
}

Status Strategy::SaveTableChanges(int /*table*/, FileSystem& /*files*/,
                                  const std::string& /*path*/) {
  return Unimplemented(std::string(kind()) + " does not know which rows have changed");
}

Result<StepResult> Strategy::Accumulate(const DistributedBatch& /*batch*/, const StepFn& /*fn*/) {
  return Unimplemented(std::string(kind()) +
                       " does not accumulate gradients over steps [use a larger global batch]");
}

}  // namespace cohort
