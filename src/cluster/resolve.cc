#include <cohort/cluster/resolve.h>

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "address.h"
#include "config_text.h"
#include "launchers.h"
#include "problems.h"
#include "topology.h"

namespace cohort {
namespace {

std::string Place(int rank, int size) { return fmt::format("rank {} of {}", rank, size); }

class Resolver {
 public:
  Resolver(const ClusterFlags& flags, const Environment& env, FileSystem& files)
      : flags_(flags), env_(env), files_(files) {}

  ClusterReport Resolve() {
    ReadTexts();
    ReadFlags();
    launchers_ = FindLaunchers(env_, problems_);
    ClusterConfig config;
    if (const ConfigText* winner = FirstWithCluster(); winner != nullptr) {
      FromText(*winner, config);
    } else if (!launchers_.empty()) {
      FromLauncher(launchers_.front(), config);
    } else if (problems_.errors.empty()) {
      Local(config);
    }
    config.mpi = std::any_of(launchers_.begin(), launchers_.end(),
                             [](const RankSource& source) { return source.mpi; });
    ClusterReport report;
    if (problems_.errors.empty()) {
      report.config = std::move(config);
    }
    report.errors = std::move(problems_.errors);
    report.warnings = std::move(problems_.warnings);
    report.notes = std::move(problems_.notes);
    return report;
  }

 private:
  // ---- what there is ----

  void ReadTexts() {
    if (!flags_.cluster_spec.empty()) {
      std::string text = flags_.cluster_spec;
      if (text.find_first_not_of(" \t\r\n") != text.find('{')) {
        const Result<std::string> file = ReadFile(files_, text);
        if (!file.ok()) {
          problems_.Error("--cluster-spec: " + file.status().message() +
                          " [give a file, or JSON that begins with {]");
          return ReadVariables();
        }
        text = *file;
      }
      Add(ParseConfigText("--cluster-spec", text, ConfigDialect::kClusterSpec, problems_));
      if (texts_.empty() && problems_.errors.empty()) {
        problems_.Error("--cluster-spec: names no tasks");
      }
    }
    ReadVariables();
  }

  void ReadVariables() {
    for (const auto& [name, dialect] : {std::pair("COHORT_CONFIG", ConfigDialect::kCohort),
                                        std::pair("TF_CONFIG", ConfigDialect::kTfConfig)}) {
      if (const std::optional<std::string> text = env_.Get(name); text) {
        Add(ParseConfigText(name, *text, dialect, problems_));
      }
    }
  }

  void Add(std::optional<ConfigText> text) {
    if (text) {
      texts_.push_back(*std::move(text));
    }
  }

  void ReadFlags() {
    if (flags_.role.empty()) {
      if (flags_.index) {
        problems_.Error("--index is given without --role");
      }
      return;
    }
    const RoleName role = ParseRole(flags_.role);
    if (!role.type) {
      problems_.Error("--role: " + role.error);
    } else if (flags_.index && *flags_.index < 0) {
      problems_.Error(fmt::format("--index {} is below 0", *flags_.index));
    } else {
      role_ = role.type;
    }
  }

  const ConfigText* FirstWithCluster() const {
    for (const ConfigText& text : texts_) {
      if (text.cluster) {
        return &text;
      }
    }
    return nullptr;
  }

  // ---- an explicit cluster ----

  void FromText(const ConfigText& winner, ClusterConfig& config) {
    config.source = winner.source == "--cluster-spec" ? "flags" : winner.source;
    config.cluster = ClusterSpec(*winner.cluster);
    config.rendezvous = winner.rendezvous;
    const std::vector<TaskId> ranks = RanksOf(winner.source, config.cluster);
    const std::optional<TaskId> task = OwnTask(winner, ranks);
    CompareTexts(winner, task);
    if (!task) {
      return;
    }
    config.task = *task;
    CheckMember(winner.source, config.cluster, *task);
    CheckPorts(winner.source, config.cluster, *task);
    CompareLaunchers(winner.source, ranks, *task);
    CountHost(config);
  }

  // The tasks in the order of a launcher's ranks: as --topology says, else chief, workers, ps.
  std::vector<TaskId> RanksOf(const std::string& source, const ClusterSpec& cluster) {
    std::vector<TaskId> tasks = cluster.Tasks();
    if (flags_.topology.empty()) {
      return tasks;
    }
    Result<std::vector<TaskId>> ranks =
        AssignRoles(flags_.topology, static_cast<int>(tasks.size()));
    if (!ranks.ok()) {
      TopologyErrors(ranks.status());
      return tasks;
    }
    std::vector<TaskId> sorted = *ranks;
    std::sort(sorted.begin(), sorted.end());
    if (sorted != tasks) {
      problems_.Error(fmt::format("--topology {} does not fit the tasks that {} names: {}",
                                  flags_.topology, source, Names(tasks)));
      return tasks;
    }
    return *std::move(ranks);
  }

  // Which task this process is: the flags say, or the sources with a task, or a launcher's rank.
  std::optional<TaskId> OwnTask(const ConfigText& winner, const std::vector<TaskId>& ranks) {
    const ConfigText* teller = winner.task ? &winner : nullptr;
    for (const ConfigText& text : texts_) {
      if (winner.task_is_wrong || text.task_is_wrong) {
        return std::nullopt;  // said already
      }
      teller = teller == nullptr && text.task ? &text : teller;
    }
    std::optional<TaskId> task = teller != nullptr ? teller->task : std::nullopt;
    if (role_) {
      return FlagTask(task, teller, ranks);
    }
    if (task) {
      return task;
    }
    if (launchers_.empty()) {
      if (flags_.role.empty() && !flags_.index) {
        problems_.Error(
            winner.source == "--cluster-spec"
                ? "--cluster-spec: nothing says which task this process is [add --role and --index]"
                : winner.source +
                      ": task: is missing, and no launcher gives a rank [add \"task\": {\"type\": "
                      "\"worker\", \"index\": 0}]");
      }
      return std::nullopt;
    }
    const RankSource& launcher = launchers_.front();
    if (launcher.size != static_cast<int>(ranks.size())) {
      problems_.Error(fmt::format("{} names {} tasks, but {} ({}) says {}", winner.source,
                                  ranks.size(), launcher.name, launcher.variables,
                                  Place(launcher.rank, launcher.size)));
      return std::nullopt;
    }
    problems_.Note(fmt::format("the task is that of {} in {}", Place(launcher.rank, launcher.size),
                               launcher.name));
    return ranks[static_cast<std::size_t>(launcher.rank)];
  }

  std::optional<TaskId> FlagTask(const std::optional<TaskId>& told, const ConfigText* teller,
                                 const std::vector<TaskId>& ranks) {
    TaskId task{*role_, flags_.index.value_or(0)};
    if (!flags_.index) {
      const auto same_role = [&](const TaskId& other) { return other.type == *role_; };
      if (told && same_role(*told)) {
        task = *told;
      } else if (std::count_if(ranks.begin(), ranks.end(), same_role) > 1) {
        problems_.Error(fmt::format("--role {} needs --index: there are several", flags_.role));
        return std::nullopt;
      }
    }
    if (told && *told != task) {
      problems_.Error(fmt::format("--role and --index say {}, but {} says {}", task.ToString(),
                                  teller->source, told->ToString()));
      return std::nullopt;
    }
    return task;
  }

  void CheckMember(const std::string& source, const ClusterSpec& cluster, const TaskId& task) {
    if (task.type == TaskType::kEvaluator || cluster.Contains(task)) {
      return;
    }
    std::vector<std::string> members;
    std::vector<int> indices;
    for (const TaskId& other : cluster.Tasks()) {
      if (other.type == task.type) {
        indices.push_back(other.index);
        members.push_back(fmt::format("{} is {}", other.ToString(), cluster.Address(other)));
      }
    }
    const std::string_view role = TaskTypeName(task.type);
    if (indices.empty()) {
      problems_.Error(fmt::format("{}: the task is {}, but the cluster has no {} [it has {}]",
                                  source, task.ToString(), role, Names(cluster.Tasks())));
      return;
    }
    const bool dense = indices.back() + 1 == static_cast<int>(indices.size());
    constexpr std::size_t kShown = 8;
    if (members.size() > kShown) {
      members.resize(kShown);
      members.emplace_back("...");
    }
    problems_.Error(
        fmt::format("{}: task.index: {} is not in the cluster: the indices of {} are {} [{}]",
                    source, task.ToString(), role,
                    dense ? fmt::format("0 to {}", indices.back())
                          : fmt::format("{}", fmt::join(indices, ", ")),
                    fmt::join(members, ", ")));
  }

  void CheckPorts(const std::string& source, const ClusterSpec& cluster, const TaskId& own) {
    for (const TaskId& task : cluster.Tasks()) {
      const AddressCheck check = CheckAddress(cluster.Address(task));
      if (check.error.empty() && check.port == 0 && task != own) {
        problems_.Error(
            fmt::format("{}: {} has port 0, by which nobody can reach it [only this "
                        "process's own port may be 0]",
                        source, task.ToString()));
      }
    }
  }

  // ---- agreement ----

  // Other texts with a cluster or a task must tell the same place.
  void CompareTexts(const ConfigText& winner, const std::optional<TaskId>& task) {
    for (const ConfigText& text : texts_) {
      if (&text == &winner) {
        continue;
      }
      if (text.cluster && text.cluster->size() != winner.cluster->size()) {
        problems_.Error(fmt::format("{} names {} tasks, but {} names {} [unset one of them]",
                                    winner.source, winner.cluster->size(), text.source,
                                    text.cluster->size()));
      }
      if (text.task && task && *text.task != *task && winner.task) {
        problems_.Error(fmt::format("{} says {}, but {} says {} [unset one of them]", winner.source,
                                    task->ToString(), text.source, text.task->ToString()));
      }
    }
  }

  void CompareLaunchers(const std::string& source, const std::vector<TaskId>& ranks,
                        const TaskId& task) {
    const auto own = std::find(ranks.begin(), ranks.end(), task);
    if (own == ranks.end()) {
      return;  // an evaluator, or an error already
    }
    const int rank = static_cast<int>(own - ranks.begin());
    const int size = static_cast<int>(ranks.size());
    for (const RankSource& launcher : launchers_) {
      const bool shell = launcher.name == "Slurm" && launcher.size == 1;  // srun --pty bash
      if (!shell && (launcher.rank != rank || launcher.size != size)) {
        problems_.Error(
            fmt::format("{} says {}, which is {}, but {} ({}) says {} [unset one of them]", source,
                        task.ToString(), Place(rank, size), launcher.name, launcher.variables,
                        Place(launcher.rank, launcher.size)));
      }
      if (launcher.agent) {
        break;
      }
    }
  }

  // ---- bare ranks ----

  void FromLauncher(const RankSource& winner, ClusterConfig& config) {
    config.source = winner.name;
    config.local_rank = winner.local_rank;
    config.local_size = winner.local_size;
    for (std::size_t i = 1; i < launchers_.size() && !winner.agent; ++i) {
      const RankSource& other = launchers_[i];
      if (other.rank != winner.rank || other.size != winner.size) {
        problems_.Error(fmt::format("{} ({}) says {}, but {} ({}) says {} [unset one of them]",
                                    winner.name, winner.variables, Place(winner.rank, winner.size),
                                    other.name, other.variables, Place(other.rank, other.size)));
      }
      if (other.agent) {
        break;
      }
    }
    const bool mpi = std::any_of(launchers_.begin(), launchers_.end(),
                                 [](const RankSource& source) { return source.mpi; });
    if (!winner.tells_meeting_place && !mpi) {
      problems_.Error(winner.name + MissingMeetingPlace(winner));
    }
    const Result<std::vector<TaskId>> ranks = AssignRoles(flags_.topology, winner.size);
    if (!ranks.ok()) {
      TopologyErrors(ranks.status());
      return;
    }
    config.task = (*ranks)[static_cast<std::size_t>(winner.rank)];
    config.cluster = ClusterSpec(Addresses(winner, *ranks));
    CheckFlagsAgainst(winner, config.task);
    CheckTextTasks(winner, config.task);
    const auto chief = std::find(ranks->begin(), ranks->end(), config.cluster.Chief());
    if (winner.meeting_port != 0) {
      const auto rank = static_cast<std::size_t>(chief - ranks->begin());
      config.rendezvous = JoinHostPort(winner.hosts[rank], winner.meeting_port);
    } else if (!winner.rendezvous.empty()) {
      config.rendezvous = winner.rendezvous;
      if (chief != ranks->begin()) {
        problems_.Error(fmt::format(
            "--topology {}: rank 0 is {}, but {} tells the host of rank 0 only, so that must be "
            "the chief [write the chief, or the workers, first]",
            flags_.topology, ranks->front().ToString(), winner.name));
      }
    }
  }

  static std::string MissingMeetingPlace(const RankSource& winner) {
    return winner.name == "torchrun" ? ": MASTER_ADDR or MASTER_PORT is not set"
           : winner.name == "Slurm"  ? ": SLURM_STEP_NODELIST is not set"
                                     : ": PET_MASTER_ADDR or PET_MASTER_PORT is not set";
  }

  static std::map<TaskId, std::string> Addresses(const RankSource& source,
                                                 const std::vector<TaskId>& ranks) {
    std::map<TaskId, std::string> addresses;
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      addresses[ranks[rank]] =
          source.hosts.empty() ? "host:0" : JoinHostPort(source.hosts[rank], source.host_port);
    }
    return addresses;
  }

  void CheckFlagsAgainst(const RankSource& winner, const TaskId& task) {
    if (role_ && (*role_ != task.type || flags_.index.value_or(task.index) != task.index)) {
      problems_.Error(fmt::format("--role {}{} is given, but {} of {} is {} [{}]", flags_.role,
                                  flags_.index ? fmt::format(" --index {}", *flags_.index) : "",
                                  Place(winner.rank, winner.size), winner.name, task.ToString(),
                                  "tell the roles of all ranks with --topology"));
    }
  }

  void CheckTextTasks(const RankSource& winner, const TaskId& task) {
    for (const ConfigText& text : texts_) {
      if (text.task && *text.task != task) {
        problems_.Error(fmt::format("{} says {}, but {} of {} is {} [unset one of them]",
                                    text.source, text.task->ToString(),
                                    Place(winner.rank, winner.size), winner.name, task.ToString()));
      }
    }
  }

  void TopologyErrors(const Status& status) {
    std::string_view rest = status.message();
    while (!rest.empty()) {
      const std::size_t end = std::min(rest.find('\n'), rest.size());
      problems_.Error(fmt::format("--topology {}: {}", flags_.topology, rest.substr(0, end)));
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
  }

  // ---- alone ----

  void Local(ClusterConfig& config) {
    for (const ConfigText& text : texts_) {
      if (text.task && *text.task != TaskId{TaskType::kWorker, 0}) {
        problems_.Error(
            fmt::format("{}: the task is {}, but there is no cluster [add \"cluster\"; "
                        "only worker 0 can be alone]",
                        text.source, text.task->ToString()));
      }
    }
    if (role_ && (*role_ != TaskType::kWorker || flags_.index.value_or(0) != 0)) {
      problems_.Error(
          fmt::format("--role {} is given without a cluster [add --cluster-spec]", flags_.role));
    }
    if (!flags_.topology.empty()) {
      const Result<std::vector<TaskId>> ranks = AssignRoles(flags_.topology, 1);
      if (!ranks.ok()) {
        TopologyErrors(ranks.status());
      }
    }
    RefuseHalfKnownLaunchers();
    config.task = {TaskType::kWorker, 0};
    problems_.Note("no cluster is configured: a local job of one process");
  }

  // A process that something started as one of many must not run as a world of one.
  void RefuseHalfKnownLaunchers() {
    if (env_.Has("PMIX_RANK")) {
      problems_.Error(
          "PMIX_RANK is set, but no variable tells how many processes there are [start "
          "with mpirun or srun]");
    }
    for (const char* name : {"HOROVOD_SIZE", "JAX_NUM_PROCESSES", "DMLC_NUM_WORKER"}) {
      const std::optional<std::string> value = env_.Get(name);
      if (value && *value != "1") {
        problems_.Error(
            fmt::format("{}={} is set, but its launcher is not supported [use mpirun, "
                        "torchrun, srun or TF_CONFIG; unset it to run alone]",
                        name, *value));
      }
    }
    const std::optional<std::string> tasks = env_.Get("SLURM_NTASKS");
    if (tasks && *tasks != "1" && !env_.Has("SLURM_STEP_NUM_TASKS")) {
      problems_.Warn(
          fmt::format("inside a Slurm allocation of {} tasks, but in no step: running "
                      "alone [start with srun]",
                      *tasks));
    }
  }

  // ---- small things ----

  static std::string Names(const std::vector<TaskId>& tasks) {
    std::vector<std::string> names;
    for (const TaskId& task : tasks) {
      names.push_back(task.ToString());
      if (names.size() == 16 && tasks.size() > 16) {
        names.emplace_back("...");
        break;
      }
    }
    return fmt::format("{}", fmt::join(names, ", "));
  }

  // The launcher's word on this host if it speaks of the same processes, else equal host names.
  void CountHost(ClusterConfig& config) const {
    if (!launchers_.empty() && launchers_.front().local_size > 1) {
      config.local_rank = launchers_.front().local_rank;
      config.local_size = launchers_.front().local_size;
      return;
    }
    if (!config.cluster.Contains(config.task)) {
      return;
    }
    const std::string host = CheckAddress(config.cluster.Address(config.task)).host;
    config.local_size = 0;
    for (const TaskId& task : config.cluster.Tasks()) {
      if (CheckAddress(config.cluster.Address(task)).host == host) {
        config.local_rank += task < config.task ? 1 : 0;
        ++config.local_size;
      }
    }
  }

  const ClusterFlags& flags_;
  const Environment& env_;
  FileSystem& files_;
  Problems problems_;
  std::vector<ConfigText> texts_;  // in order of precedence
  std::vector<RankSource> launchers_;
  std::optional<TaskType> role_;
};

}  // namespace

ClusterReport InspectCluster(const ClusterFlags& flags, const Environment& env, FileSystem& files) {
  return Resolver(flags, env, files).Resolve();
}

Result<ClusterConfig> ResolveCluster(const ClusterFlags& flags, const Environment& env,
                                     const Log& log, FileSystem& files) {
  ClusterReport report = InspectCluster(flags, env, files);
  for (const std::string& warning : report.warnings) {
    log.Warning(warning);
  }
  for (const std::string& note : report.notes) {
    log.Info(note);
  }
  if (!report.config) {
    if (report.errors.size() == 1) {
      return InvalidArgument(report.errors.front());
    }
    return InvalidArgument(fmt::format("{} mistakes in the cluster configuration:\n  {}",
                                       report.errors.size(), fmt::join(report.errors, "\n  ")));
  }
  return *std::move(report.config);
}

bool IsLauncherVariable(std::string_view name) {
  constexpr std::array<std::string_view, 16> kPrefixes = {
      "OMPI_COMM_WORLD_", "OMPI_MCA_orte_",  "OMPI_MCA_ess",   "OMPI_MCA_pmix", "OMPI_APP_CTX_",
      "OMPI_NUM_APP_CTX", "OMPI_FIRST_",     "OMPI_UNIVERSE_", "PMIX_",         "PMI_",
      "MPI_LOCAL",        "MV2_COMM_WORLD_", "PET_",           "SLURM_",        "HOROVOD_",
      "TORCHELASTIC_"};
  constexpr std::array<std::string_view, 14> kNames = {
      "TF_CONFIG",       "COHORT_CONFIG",    "RANK",
      "WORLD_SIZE",      "MASTER_ADDR",      "MASTER_PORT",
      "LOCAL_RANK",      "LOCAL_WORLD_SIZE", "GROUP_RANK",
      "SM_HOSTS",        "SM_CURRENT_HOST",  "DMLC_ROLE",
      "DMLC_NUM_WORKER", "JAX_NUM_PROCESSES"};
  return std::any_of(kPrefixes.begin(), kPrefixes.end(),
                     [&](std::string_view prefix) { return name.starts_with(prefix); }) ||
         std::find(kNames.begin(), kNames.end(), name) != kNames.end();
}

}  // namespace cohort
