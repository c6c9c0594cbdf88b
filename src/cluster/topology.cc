#include "topology.h"

#include <algorithm>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "problems.h"

namespace cohort {
namespace {

constexpr int kRest = -1;

struct Share {
  TaskType type;
  int count;  // or kRest
};

std::vector<Share> ParseShares(std::string_view text, Problems& problems) {
  std::vector<Share> shares;
  std::set<TaskType> seen;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view item = text.substr(begin, end - begin);
    begin = end + 1;
    const std::size_t equals = item.find('=');
    if (equals == item.npos) {
      problems.Error(fmt::format("'{}' is not role=count", item));
      continue;
    }
    const RoleName role = ParseRole(item.substr(0, equals));
    const std::string_view count = item.substr(equals + 1);
    const std::optional<int> number = count == "rest" ? kRest : ParseNumber(count, 1'000'000);
    if (!role.type) {
      problems.Error(role.error);
    } else if (*role.type == TaskType::kEvaluator) {
      problems.Error("an evaluator is outside of the cluster [start it as a process of its own]");
    } else if (!seen.insert(*role.type).second) {
      problems.Error(fmt::format("{} appears twice", TaskTypeName(*role.type)));
    } else if (!number) {
      problems.Error(fmt::format("'{}': the count must be a number or 'rest'", item));
    } else {
      shares.push_back({*role.type, *number});
    }
  }
  const auto rests = std::count_if(shares.begin(), shares.end(),
                                   [](const Share& share) { return share.count == kRest; });
  if (rests > 1) {
    problems.Error("only one role can take the rest");
  }
  return shares;
}

}  // namespace

std::string WhyNoJob(int chiefs, int workers, int servers) {
  if (chiefs > 1) {
    return fmt::format("{} chiefs, there can be one at most", chiefs);
  }
  if (chiefs + workers == 0) {
    return "no worker and no chief, so nobody trains";
  }
  if (servers > 0 && workers == 0) {
    return "parameter servers but no worker, so nobody trains [the chief only coordinates then]";
  }
  return "";
}

Result<std::vector<TaskId>> AssignRoles(std::string_view topology, int size) {
  Problems problems;
  std::vector<Share> shares = {{TaskType::kWorker, kRest}};
  if (!topology.empty()) {
    shares = ParseShares(topology, problems);
  }
  int asked = 0;
  for (const Share& share : shares) {
    asked += std::max(share.count, 0);
  }
  const bool has_rest = std::any_of(shares.begin(), shares.end(),
                                    [](const Share& share) { return share.count == kRest; });
  if (problems.errors.empty() && (asked > size || (!has_rest && asked != size))) {
    problems.Error(fmt::format("asks for {}{} processes, there {} {}", has_rest ? "at least " : "",
                               asked, size == 1 ? "is" : "are", size));
  }
  std::vector<TaskId> tasks;
  if (problems.errors.empty()) {
    int counts[3] = {};
    for (const Share& share : shares) {
      const int count = share.count == kRest ? size - asked : share.count;
      counts[static_cast<int>(share.type)] += count;
      for (int index = 0; index < count; ++index) {
        tasks.push_back({share.type, index});
      }
    }
    if (const std::string why = WhyNoJob(counts[0], counts[1], counts[2]); !why.empty()) {
      problems.Error(fmt::format("with {} processes: {}", size, why));
    }
  }
  if (!problems.errors.empty()) {
    return InvalidArgument(fmt::format("{}", fmt::join(problems.errors, "\n")));
  }
  return tasks;
}

}  // namespace cohort
