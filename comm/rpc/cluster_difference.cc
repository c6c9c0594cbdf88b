#include "cluster_difference.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>
#include <optional>

namespace cohort {
namespace {

using Fields = std::map<std::string, std::map<int, std::string>>;  // job, index, address

std::optional<Fields> Parse(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return std::nullopt;
  }
  Fields fields;
  for (const auto& [job, tasks] : json.items()) {
    int position = 0;
    for (const auto& [index, address] : tasks.items()) {
      const int number = tasks.is_object() ? std::atoi(index.c_str()) : position++;
      fields[job][number] = address.dump();
    }
  }
  return fields;
}

std::string Value(const Fields& fields, const std::string& job, int index) {
  const auto tasks = fields.find(job);
  if (tasks == fields.end()) {
    return "absent";
  }
  const auto address = tasks->second.find(index);
  return address == tasks->second.end() ? "absent" : address->second;
}

}  // namespace

std::string FirstClusterDifference(const std::string& mine, const std::string& my_name,
                                   const std::string& theirs, const std::string& their_name) {
  if (mine == theirs) {
    return {};
  }
  const std::optional<Fields> a = Parse(mine);
  const std::optional<Fields> b = Parse(theirs);
  if (a && b) {
    Fields keys = *a;
    for (const auto& [job, tasks] : *b) {
      keys[job].insert(tasks.begin(), tasks.end());
    }
    for (const auto& [job, tasks] : keys) {
      for (const auto& [index, unused] : tasks) {
        const std::string x = Value(*a, job, index);
        const std::string y = Value(*b, job, index);
        if (x != y) {
          return fmt::format("cluster.{}[{}] is {} at {} and {} at {}", job, index, x, my_name, y,
                             their_name);
        }
      }
    }
  }
  return fmt::format("the cluster is {} at {} and {} at {}", mine, my_name, theirs, their_name);
}

}  // namespace cohort
