#include <cohort/cluster/cluster_spec.h>

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "problems.h"

namespace cohort {

std::string_view TaskTypeName(TaskType type) {
  static constexpr std::string_view kNames[] = {"chief", "worker", "ps", "evaluator"};
  return kNames[static_cast<int>(type)];
}

std::string TaskId::ToString() const { return fmt::format("{}:{}", TaskTypeName(type), index); }

Result<TaskId> TaskId::Parse(std::string_view text) {
  const std::size_t colon = text.find(':');
  if (colon == text.npos) {
    return InvalidArgument(fmt::format("'{}' is no task [write role:index, as in worker:2]", text));
  }
  const RoleName role = ParseRole(text.substr(0, colon));
  const std::optional<int> index = ParseNumber(text.substr(colon + 1));
  if (!role.type) {
    return InvalidArgument(fmt::format("'{}': {}", text, role.error));
  }
  if (!index) {
    return InvalidArgument(
        fmt::format("'{}': the index must be a number from 0 [as in worker:2]", text));
  }
  return TaskId{*role.type, *index};
}

int ClusterSpec::Count(TaskType type) const {
  return static_cast<int>(
      std::count_if(addresses_.begin(), addresses_.end(),
                    [&](const auto& entry) { return entry.first.type == type; }));
}

const std::string& ClusterSpec::Address(const TaskId& task) const {
  const auto found = addresses_.find(task);
  Require(found != addresses_.end(), task.ToString() + " is not in the cluster " + ToJson());
  return found->second;
}

std::vector<TaskId> ClusterSpec::Tasks() const {
  std::vector<TaskId> tasks;  // the order of TaskId is chief, worker, ps, each by index
  for (const auto& [task, address] : addresses_) {
    tasks.push_back(task);
  }
  return tasks;
}

std::vector<TaskId> ClusterSpec::TrainingTasks() const {
  const bool chief_trains = Count(TaskType::kPs) == 0;
  std::vector<TaskId> tasks;
  for (const auto& [task, address] : addresses_) {
    if (task.type == TaskType::kWorker || (task.type == TaskType::kChief && chief_trains)) {
      tasks.push_back(task);
    }
  }
  return tasks;
}

TaskId ClusterSpec::Chief() const {
  const bool has_one = !empty() && addresses_.begin()->first.type <= TaskType::kWorker;
  return has_one ? addresses_.begin()->first : TaskId{TaskType::kWorker, 0};
}

std::uint64_t ClusterSpec::Fingerprint() const {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : ToJson()) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  return hash;
}

std::string ClusterSpec::ToJson() const {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const TaskType type : {TaskType::kChief, TaskType::kWorker, TaskType::kPs}) {
    const int count = Count(type);
    if (count == 0) {
      continue;
    }
    nlohmann::ordered_json& job = json[std::string(TaskTypeName(type))];
    const bool dense = addresses_.contains({type, 0}) && addresses_.contains({type, count - 1});
    for (auto i = addresses_.lower_bound({type, 0}); i != addresses_.end() && i->first.type == type;
         ++i) {
      if (dense) {
        job.push_back(i->second);
      } else {
        job[std::to_string(i->first.index)] = i->second;
      }
    }
  }
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace cohort
