#include "host_list.h"

#include <algorithm>

#include <fmt/format.h>

#include "problems.h"

namespace cohort {
namespace {

constexpr std::size_t kMostHosts = 100'000;

// Splits at commas outside of brackets.
Result<std::vector<std::string_view>> SplitOutsideBrackets(std::string_view text) {
  std::vector<std::string_view> parts;
  std::size_t begin = 0;
  bool inside = false;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    const char c = i < text.size() ? text[i] : ',';
    if ((c == '[' && inside) || (c == ']' && !inside) || (i == text.size() && inside)) {
      return InvalidArgument(fmt::format("unbalanced brackets at character {}", i + 1));
    }
    inside = c == '[' || (inside && c != ']');
    if (c == ',' && !inside) {
      parts.push_back(text.substr(begin, i - begin));
      begin = i + 1;
    }
  }
  return parts;
}

// "001-003,7" to 001 002 003 7.
Result<std::vector<std::string>> ExpandGroup(std::string_view group) {
  std::vector<std::string> result;
  std::size_t begin = 0;
  while (begin <= group.size()) {
    const std::size_t end = std::min(group.find(',', begin), group.size());
    const std::string_view item = group.substr(begin, end - begin);
    begin = end + 1;
    const std::size_t dash = item.find('-');
    const std::string_view low = item.substr(0, dash);
    const std::string_view high = dash == item.npos ? low : item.substr(dash + 1);
    if (dash == item.npos && !item.empty()) {
      result.emplace_back(item);
      continue;
    }
    const std::optional<int> first = ParseNumber(low);
    const std::optional<int> last = ParseNumber(high);
    if (!first || !last || *first > *last) {
      return InvalidArgument(fmt::format("'{}' is no range", item));
    }
    if (result.size() + static_cast<std::size_t>(*last - *first) >= kMostHosts) {
      return InvalidArgument(fmt::format("'{}' makes more than {} hosts", item, kMostHosts));
    }
    for (int i = *first; i <= *last; ++i) {
      result.push_back(fmt::format("{:0{}}", i, low.size()));
    }
  }
  return result;
}

Result<std::vector<std::string>> ExpandPattern(std::string_view pattern) {
  std::vector<std::string> result = {""};
  std::size_t begin = 0;
  while (begin < pattern.size()) {
    const std::size_t open = std::min(pattern.find('[', begin), pattern.size());
    std::vector<std::string> group = {""};
    std::size_t next = open;
    if (open < pattern.size()) {
      const std::size_t close = pattern.find(']', open);
      COHORT_ASSIGN_OR_RETURN(group, ExpandGroup(pattern.substr(open + 1, close - open - 1)));
      next = close + 1;
    }
    if (result.size() * group.size() > kMostHosts) {
      return InvalidArgument(fmt::format("'{}' makes more than {} hosts", pattern, kMostHosts));
    }
    std::vector<std::string> longer;
    for (const std::string& prefix : result) {
      for (const std::string& item : group) {
        longer.push_back(prefix + std::string(pattern.substr(begin, open - begin)) + item);
      }
    }
    result = std::move(longer);
    begin = next;
  }
  return result;
}

}  // namespace

Result<std::vector<std::string>> ExpandHostList(std::string_view text) {
  std::vector<std::string> result;
  COHORT_ASSIGN_OR_RETURN(const std::vector<std::string_view> parts, SplitOutsideBrackets(text));
  for (const std::string_view part : parts) {
    if (part.empty()) {
      return InvalidArgument("a host name is empty");
    }
    COHORT_ASSIGN_OR_RETURN(std::vector<std::string> hosts, ExpandPattern(part));
    if (result.size() + hosts.size() > kMostHosts) {
      return InvalidArgument(fmt::format("more than {} hosts", kMostHosts));
    }
    result.insert(result.end(), hosts.begin(), hosts.end());
  }
  return result;
}

Result<std::vector<int>> ExpandTasksPerNode(std::string_view text) {
  std::vector<int> result;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    std::string_view item = text.substr(begin, end - begin);
    begin = end + 1;
    std::optional<int> times = 1;
    if (const std::size_t open = item.find("(x"); open != item.npos && item.ends_with(')')) {
      times = ParseNumber(item.substr(open + 2, item.size() - open - 3));
      item = item.substr(0, open);
    }
    const std::optional<int> tasks = ParseNumber(item);
    if (!tasks || !times || result.size() + static_cast<std::size_t>(*times) > kMostHosts) {
      return InvalidArgument(fmt::format("'{}' is no count like 2 or 2(x3)", item));
    }
    result.insert(result.end(), static_cast<std::size_t>(*times), *tasks);
  }
  return result;
}

}  // namespace cohort
