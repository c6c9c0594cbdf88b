#include "launchers.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "address.h"
#include "host_list.h"
#include "json_document.h"

namespace cohort {
namespace {

constexpr int kMostRanks = 1'000'000;

class Finder {
 public:
  Finder(const Environment& env, Problems& problems) : env_(env), problems_(problems) {}

  std::vector<RankSource> Find() {
    Torchrun();
    KubeflowNode();
    Mpi("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE", true);
    const bool hydra = env_.Has("MPI_LOCALRANKID");
    Mpi("PMI", "PMI_RANK", "PMI_SIZE", hydra ? "MPI_LOCALRANKID" : "PMI_LOCAL_RANK",
        hydra ? "MPI_LOCALNRANKS" : "PMI_LOCAL_SIZE", hydra);
    Mpi("MVAPICH2", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE", true);
    SlurmStep();
    SageMaker();
    return std::move(found_);
  }

 private:
  // The variable as a number from 0 to `limit`; an error if it is set and something else.
  std::optional<int> Number(std::string_view name, int limit = kMostRanks) {
    const std::optional<std::string> text = env_.Get(name);
    const std::optional<int> number = text ? ParseNumber(*text, limit) : std::nullopt;
    if (text && !number) {
      problems_.Error(fmt::format("{}='{}' is no number from 0 to {}", name, *text, limit));
    }
    return number;
  }

  // Fills rank and size; false, with an error, if either is missing or they do not fit.
  bool Place(RankSource& source, std::string_view rank_name, std::string_view size_name) {
    source.variables = fmt::format("{} and {}", rank_name, size_name);
    for (const std::string_view name : {rank_name, size_name}) {
      if (!env_.Has(name)) {
        problems_.Error(fmt::format("{}: {} is not set", source.name, name));
      }
    }
    const std::optional<int> rank = Number(rank_name);
    const std::optional<int> size = Number(size_name);
    if (!rank || !size) {
      return false;
    }
    source.rank = *rank;
    source.size = *size;
    if (*rank >= *size) {
      problems_.Error(fmt::format("{}: {}={} is not below {}={}", source.name, rank_name, *rank,
                                  size_name, *size));
      return false;
    }
    return true;
  }

  void LocalPlace(RankSource& source, std::string_view rank_name, std::string_view size_name) {
    const std::optional<int> rank = Number(rank_name);
    const std::optional<int> size = Number(size_name);
    if (!rank || !size) {
      return;
    }
    if (*rank >= *size || *size > source.size) {
      problems_.Error(fmt::format("{}: {}={} and {}={} do not fit a job of {}", source.name,
                                  rank_name, *rank, size_name, *size, source.size));
      return;
    }
    source.local_rank = *rank;
    source.local_size = *size;
  }

  // host and port variables to `rendezvous`.
  void MeetingPlace(RankSource& source, std::string_view host_name, std::string_view port_name,
                    int port_offset = 0) {
    const std::optional<std::string> host = env_.Get(host_name);
    const std::optional<int> port = Number(port_name, 65535 - port_offset);
    source.tells_meeting_place = host && port;
    if (!source.tells_meeting_place) {
      return;
    }
    const AddressCheck check = CheckAddress(JoinHostPort(*host, *port + port_offset));
    if (!check.error.empty() || *port == 0) {
      problems_.Error(fmt::format("{}: {} and {}: {}", source.name, host_name, port_name,
                                  *port == 0 ? "the port is 0" : check.error));
    }
    source.rendezvous = check.address;
  }

  void Torchrun() {
    const bool elastic = env_.Has("TORCHELASTIC_RUN_ID");
    // RANK alone may be anybody's.
    if (!elastic && !(env_.Has("RANK") && (env_.Has("WORLD_SIZE") || env_.Has("MASTER_ADDR")))) {
      return;
    }
    RankSource source;
    source.name = "torchrun";
    source.agent = elastic;
    if (!Place(source, "RANK", "WORLD_SIZE")) {
      return;
    }
    LocalPlace(source, "LOCAL_RANK", "LOCAL_WORLD_SIZE");
    // The agent may listen on MASTER_PORT itself; the port after it is free then.
    const bool agent_listens = env_.Get("TORCHELASTIC_USE_AGENT_STORE") == "True";
    MeetingPlace(source, "MASTER_ADDR", "MASTER_PORT", agent_listens ? 1 : 0);
    found_.push_back(std::move(source));
  }

  void KubeflowNode() {
    if (!env_.Has("PET_NODE_RANK") && !env_.Has("PET_NNODES")) {
      return;
    }
    RankSource source;
    source.name = "PET_*";
    if (!Place(source, "PET_NODE_RANK", "PET_NNODES")) {
      return;
    }
    MeetingPlace(source, "PET_MASTER_ADDR", "PET_MASTER_PORT");
    if (const auto per_node = env_.Get("PET_NPROC_PER_NODE"); per_node && *per_node != "1") {
      problems_.Note(
          fmt::format("PET_NPROC_PER_NODE={} is left to the strategy: this is the one "
                      "process of its node",
                      *per_node));
    }
    found_.push_back(std::move(source));
  }

  void Mpi(std::string name, std::string_view rank, std::string_view size,
           std::string_view local_rank, std::string_view local_size, bool agent) {
    if (!env_.Has(rank) && !env_.Has(size)) {
      return;
    }
    RankSource source;
    source.name = std::move(name);
    source.mpi = true;
    source.agent = agent;
    if (!Place(source, rank, size)) {
      return;
    }
    LocalPlace(source, local_rank, local_size);
    found_.push_back(std::move(source));
  }

  // Where Slurm put each rank of the step: node by node ("block"), or one after another around the
  // nodes ("cyclic").
  static std::vector<int> NodesOfRanks(const std::vector<int>& tasks_per_node, bool cyclic) {
    std::vector<int> nodes;
    if (!cyclic) {
      for (std::size_t node = 0; node < tasks_per_node.size(); ++node) {
        nodes.insert(nodes.end(), static_cast<std::size_t>(tasks_per_node[node]),
                     static_cast<int>(node));
      }
      return nodes;
    }
    const int most = tasks_per_node.empty()
                         ? 0
                         : *std::max_element(tasks_per_node.begin(), tasks_per_node.end());
    for (int round = 0; round < most; ++round) {
      for (std::size_t node = 0; node < tasks_per_node.size(); ++node) {
        if (round < tasks_per_node[node]) {
          nodes.push_back(static_cast<int>(node));
        }
      }
    }
    return nodes;
  }

  // The port on which the chief answers: one that Slurm reserved, else one made from the job's id,
  // so that jobs that share a node seldom meet. It lies below the ports that the kernel hands out.
  std::optional<int> SlurmPort() {
    if (env_.Has("MASTER_PORT")) {
      return Number("MASTER_PORT", 65535);
    }
    if (const auto reserved = env_.Get("SLURM_STEP_RESV_PORTS"); reserved) {
      const std::string first = reserved->substr(0, reserved->find_first_of("-,"));
      const std::optional<int> port = ParseNumber(first, 65535);
      if (!port) {
        problems_.Error(fmt::format("SLURM_STEP_RESV_PORTS='{}' has no port", *reserved));
      }
      return port;
    }
    const int job = Number("SLURM_JOB_ID", 2'000'000'000).value_or(0);
    const int step = ParseNumber(env_.Get("SLURM_STEP_ID").value_or("0")).value_or(0);
    return 10'000 + static_cast<int>((job + 1009LL * step) % 20'000);
  }

  void SlurmStep() {
    if (!env_.Has("SLURM_STEP_NUM_TASKS") || !env_.Has("SLURM_PROCID")) {
      return;
    }
    RankSource source;
    source.name = "Slurm";
    source.mpi = env_.Has("PMIX_RANK") || env_.Has("PMI_RANK");
    if (!Place(source, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")) {
      return;
    }
    source.tells_meeting_place = env_.Has("SLURM_STEP_NODELIST");
    if (source.tells_meeting_place) {
      SlurmHosts(source);
    }
    found_.push_back(std::move(source));
  }

  void SlurmHosts(RankSource& source) {
    const auto hosts = ExpandHostList(env_.Get("SLURM_STEP_NODELIST").value_or(""));
    const auto counts = ExpandTasksPerNode(env_.Get("SLURM_STEP_TASKS_PER_NODE").value_or(""));
    if (!hosts.ok() || !counts.ok()) {
      if (!hosts.ok()) {
        problems_.Error("SLURM_STEP_NODELIST: " + hosts.status().message());
      }
      if (!counts.ok()) {
        problems_.Error("SLURM_STEP_TASKS_PER_NODE: " + counts.status().message());
      }
      return;
    }
    long long total = 0;
    for (const int count : *counts) {
      total += count;
    }
    if (counts->size() != hosts->size() || total != source.size) {
      problems_.Error(fmt::format(
          "Slurm: SLURM_STEP_NODELIST names {} nodes, SLURM_STEP_TASKS_PER_NODE {} nodes with {} "
          "tasks, SLURM_STEP_NUM_TASKS {} tasks",
          hosts->size(), counts->size(), total, source.size));
      return;
    }
    const bool cyclic = env_.Get("SLURM_DISTRIBUTION").value_or("").starts_with("cyclic");
    const std::vector<int> nodes = NodesOfRanks(*counts, cyclic);
    const auto own = nodes.begin() + source.rank;
    source.local_rank = static_cast<int>(std::count(nodes.begin(), own, *own));
    source.local_size = (*counts)[static_cast<std::size_t>(*own)];
    const int node = Number("SLURM_NODEID").value_or(*own);
    const int local = Number("SLURM_LOCALID").value_or(source.local_rank);
    if (node != *own || local != source.local_rank) {
      problems_.Error(fmt::format(
          "Slurm: rank {} runs as task {} of node {}, which is neither block nor cyclic order [use "
          "srun --distribution=block]",
          source.rank, local, node));
    }
    for (const int index : nodes) {
      source.hosts.push_back((*hosts)[static_cast<std::size_t>(index)]);
    }
    source.meeting_port = SlurmPort().value_or(0);
  }

  void SageMaker() {
    const std::optional<std::string> text = env_.Get("SM_HOSTS");
    if (!text) {
      return;
    }
    const std::optional<JsonNode> list = ParseJson("SM_HOSTS", *text, problems_);
    if (!list) {
      return;
    }
    std::vector<std::string> hosts;
    bool good = list->kind == JsonNode::Kind::kArray && !list->items.empty();
    for (const JsonNode& item : list->items) {
      good = good && item.kind == JsonNode::Kind::kString &&
             CheckAddress(item.text + ":2223").error.empty();
      hosts.push_back(item.text);
    }
    std::sort(hosts.begin(), hosts.end());
    const bool distinct = std::adjacent_find(hosts.begin(), hosts.end()) == hosts.end();
    const std::string own = env_.Get("SM_CURRENT_HOST").value_or("");
    const auto place = std::find(hosts.begin(), hosts.end(), own);
    if (!good || !distinct) {
      problems_.Error(
          fmt::format("SM_HOSTS='{}' is no list of distinct host names", text->substr(0, 200)));
      return;
    }
    if (place == hosts.end()) {
      problems_.Error(
          fmt::format("SM_CURRENT_HOST='{}' is not in SM_HOSTS={}", own, text->substr(0, 200)));
      return;
    }
    RankSource source;
    source.name = "SageMaker";
    source.variables = "SM_CURRENT_HOST and SM_HOSTS";
    source.rank = static_cast<int>(place - hosts.begin());
    source.size = static_cast<int>(hosts.size());
    source.hosts = std::move(hosts);
    source.host_port = 2223;
    found_.push_back(std::move(source));
  }

  const Environment& env_;
  Problems& problems_;
  std::vector<RankSource> found_;
};

}  // namespace

std::vector<RankSource> FindLaunchers(const Environment& env, Problems& problems) {
  return Finder(env, problems).Find();
}

}  // namespace cohort
