#include "config_text.h"

#include <algorithm>
#include <array>
#include <set>
#include <vector>

#include <fmt/format.h>

#include "address.h"
#include "json_document.h"
#include "topology.h"

namespace cohort {
namespace {

using Kind = JsonNode::Kind;

class Reader {
 public:
  Reader(std::string_view source, ConfigDialect dialect, Problems& problems)
      : source_(source), dialect_(dialect), problems_(problems) {
    config_.source = source;
  }

  std::optional<ConfigText> Read(const JsonNode& root) {
    if (root.kind != Kind::kObject) {
      Error("", "must be an object like {\"cluster\": ..., \"task\": ...}, not " + root.Describe());
      return std::nullopt;
    }
    if (root.items.empty()) {
      return std::nullopt;
    }
    if (dialect_ == ConfigDialect::kClusterSpec && root.Find("cluster") == nullptr &&
        root.Find("task") == nullptr) {
      ReadCluster("", root);
      return std::move(config_);
    }
    CheckKeys("", root,
              dialect_ == ConfigDialect::kTfConfig
                  ? std::vector<std::string_view>{"cluster", "task", "rpc_layer", "session_master",
                                                  "eval_session_master", "environment", "service",
                                                  "model_dir", "job", "sparseCluster"}
                  : std::vector<std::string_view>{"cluster", "task", "rendezvous"});
    const JsonNode* sparse = root.Find("sparseCluster");
    const JsonNode* cluster = root.Find("cluster");
    if (sparse != nullptr && dialect_ == ConfigDialect::kTfConfig) {
      if (cluster != nullptr) {
        Error("sparseCluster", "stands beside cluster [give one of them]");
      } else {
        Warn("sparseCluster", "is an old name [call it cluster]");
        ReadCluster("sparseCluster", *sparse);
      }
    }
    if (cluster != nullptr) {
      ReadCluster("cluster", *cluster);
    }
    if (const JsonNode* task = root.Find("task"); task != nullptr) {
      ReadTask(*task);
    }
    if (const JsonNode* layer = root.Find("rpc_layer");
        layer != nullptr && layer->text != "grpc" && dialect_ == ConfigDialect::kTfConfig) {
      Warn("rpc_layer", layer->Describe() + " is ignored");
    }
    if (const JsonNode* meet = root.Find("rendezvous");
        meet != nullptr && dialect_ != ConfigDialect::kTfConfig) {
      config_.rendezvous = ReadAddress("rendezvous", *meet);
    }
    return std::move(config_);
  }

 private:
  void Error(std::string_view path, std::string_view what) { problems_.Error(Located(path, what)); }
  void Warn(std::string_view path, std::string_view what) { problems_.Warn(Located(path, what)); }
  std::string Located(std::string_view path, std::string_view what) const {
    return path.empty() ? fmt::format("{}: {}", source_, what)
                        : fmt::format("{}: {}: {}", source_, path, what);
  }

  void CheckKeys(std::string_view path, const JsonNode& object,
                 const std::vector<std::string_view>& known) {
    for (const std::string& key : object.keys) {
      if (std::find(known.begin(), known.end(), key) != known.end()) {
        continue;
      }
      const std::string_view nearest = Nearest(key, known);
      const std::string hint = nearest.empty() ? "" : fmt::format(" [did you mean '{}'?]", nearest);
      if (dialect_ == ConfigDialect::kTfConfig) {
        Warn(MemberPath(path, key), "unknown key, ignored" + hint);
      } else {
        Error(MemberPath(path, key), "unknown key" + hint);
      }
    }
  }

  // The address, or what was written where it is wrong.
  std::string ReadAddress(const std::string& path, const JsonNode& node) {
    if (node.kind != Kind::kString) {
      Error(path, "must be a string \"host:port\", not " + node.Describe());
      return "";
    }
    AddressCheck check = CheckAddress(node.text);
    if (!check.error.empty()) {
      Error(path, check.error);
    } else if (!check.warning.empty()) {
      Warn(path, check.warning);
    }
    return check.address;
  }

  void ReadCluster(const std::string& path, const JsonNode& node) {
    if (node.kind != Kind::kObject) {
      Error(path, "must be an object from roles to addresses, not " + node.Describe());
      config_.cluster.emplace();  // given, though unreadable
      cluster_is_wrong_ = true;
    } else {
      config_.cluster.emplace();
      for (std::size_t i = 0; i < node.keys.size(); ++i) {
        ReadJob(MemberPath(path, node.keys[i]), node.keys[i], node.items[i]);
      }
    }
    if (jobs_.contains("chief") && jobs_.contains("master")) {
      Error(path, "has both a chief and a master, which are the same role [keep the chief]");
      cluster_is_wrong_ = true;
    }
    int counts[3] = {};
    for (const auto& [task, address] : *config_.cluster) {
      ++counts[static_cast<int>(task.type)];
    }
    const bool nothing = config_.cluster->empty();
    if (const std::string why = WhyNoJob(counts[0], counts[1], counts[2]);
        !why.empty() && !cluster_is_wrong_ && !nothing) {
      Error(path, why);
    }
    if (nothing && !cluster_is_wrong_) {
      config_.cluster.reset();
    }
  }

  void ReadJob(const std::string& path, const std::string& name, const JsonNode& node) {
    const RoleName role = ParseRole(name);
    if (!role.type) {
      Error(path, role.error);
      cluster_is_wrong_ = true;
      return;
    }
    if (node.kind != Kind::kArray && node.kind != Kind::kObject) {
      Error(path, "must be a list of addresses, or an object from indices to addresses, not " +
                      node.Describe());
      cluster_is_wrong_ = true;
      return;
    }
    if (node.items.empty()) {
      Warn(path, "has no tasks, dropped");
      return;
    }
    jobs_.insert(name);
    std::set<int> indices;
    for (std::size_t i = 0; i < node.items.size(); ++i) {
      std::string item_path = ItemPath(path, i);
      int index = static_cast<int>(i);
      if (node.kind == Kind::kObject) {
        item_path = MemberPath(path, node.keys[i]);
        const std::optional<int> number = ParseNumber(node.keys[i]);
        if (!number) {
          Error(item_path, "the key must be an index from 0");
          cluster_is_wrong_ = true;
          continue;
        }
        index = *number;
      }
      if (!indices.insert(index).second) {
        Error(item_path, fmt::format("index {} appears twice", index));
        continue;
      }
      AddTask(item_path, {*role.type, index}, node.items[i]);
    }
    if (role.type == TaskType::kChief && indices.size() == 1 && !indices.contains(0)) {
      Error(path, "the chief's index must be 0");
    }
  }

  void AddTask(const std::string& path, const TaskId& task, const JsonNode& node) {
    const std::string address = ReadAddress(path, node);
    if (task.type == TaskType::kEvaluator) {
      return;  // outside of the cluster: its address is nobody's business
    }
    if (!config_.cluster->emplace(task, address).second) {
      return;  // chief and master: said elsewhere
    }
    const AddressCheck check = CheckAddress(address);
    if (!check.error.empty() || check.port == 0) {
      return;
    }
    const auto [other, is_new] = owners_.emplace(JoinHostPort(check.host, check.port), path);
    if (!is_new) {
      Error(path, fmt::format("{} is also the address of {}", address, other->second));
    }
  }

  void ReadTask(const JsonNode& node) {
    if (node.kind != Kind::kObject) {
      Error("task", "must be an object {\"type\": ..., \"index\": ...}, not " + node.Describe());
      config_.task_is_wrong = true;
      return;
    }
    CheckKeys("task", node, {"type", "index", "trial", "cloud"});
    const std::optional<TaskType> type = ReadType(node.Find("type"));
    const std::optional<int> index = ReadIndex(node.Find("index"));
    if (type && index) {
      config_.task = TaskId{*type, *index};
    } else {
      config_.task_is_wrong = true;
    }
  }

  std::optional<TaskType> ReadType(const JsonNode* node) {
    if (node == nullptr) {
      Error("task.type", "is missing [one of chief, worker, ps, evaluator]");
      return std::nullopt;
    }
    if (node->kind != Kind::kString) {
      Error("task.type", "must be a string, not " + node->Describe());
      return std::nullopt;
    }
    const RoleName role = ParseRole(node->text);
    if (!role.type) {
      Error("task.type", role.error);
    }
    return role.type;
  }

  std::optional<int> ReadIndex(const JsonNode* node) {
    if (node == nullptr) {
      Error("task.index", "is missing [a number from 0]");
      return std::nullopt;
    }
    std::optional<int> index;
    if (node->kind == Kind::kInteger || node->kind == Kind::kString) {
      index = ParseNumber(node->text);
    }
    if (!index) {
      Error("task.index", "must be a whole number from 0, not " + node->Describe());
    }
    return index;
  }

  std::string source_;
  ConfigDialect dialect_;
  Problems& problems_;
  ConfigText config_;
  bool cluster_is_wrong_ = false;  // its counts say nothing
  std::set<std::string> jobs_;     // names as written, of jobs that have tasks
  std::map<std::string, std::string>
      owners_;  // canonical address to the path of the first that has it
};

}  // namespace

std::optional<ConfigText> ParseConfigText(std::string_view source, std::string_view text,
                                          ConfigDialect dialect, Problems& problems) {
  if (text.find_first_not_of(" \t\r\n") == text.npos) {
    problems.Error(fmt::format("{} is set but empty [unset it, or give it a value]", source));
    return std::nullopt;
  }
  const std::optional<JsonNode> root = ParseJson(source, text, problems);
  return root ? Reader(source, dialect, problems).Read(*root) : std::nullopt;
}

}  // namespace cohort
