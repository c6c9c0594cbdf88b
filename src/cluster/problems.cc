#include "problems.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <utility>

#include <fmt/format.h>

namespace cohort {

int EditDistance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    int diagonal = std::exchange(row[0], static_cast<int>(i));
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const int replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

std::string_view Nearest(std::string_view word, const std::vector<std::string_view>& candidates) {
  std::string_view nearest;
  if (word.size() > 64) {
    return nearest;
  }
  int least = static_cast<int>(word.size()) / 3 + 1;  // at most; "pss" may be "ps", "a" is nothing
  for (const std::string_view candidate : candidates) {
    const int distance = EditDistance(word, candidate);
    if (distance < least || (distance == least && nearest.empty() && word.size() > 2)) {
      least = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

RoleName ParseRole(std::string_view name) {
  // What other systems call the same things is a better hint than the nearest spelling.
  static const std::vector<std::pair<std::string_view, TaskType>> kMeanings = {
      {"chief", TaskType::kChief},
      {"worker", TaskType::kWorker},
      {"ps", TaskType::kPs},
      {"evaluator", TaskType::kEvaluator},
      {"master", TaskType::kChief},
      {"coordinator", TaskType::kChief},
      {"scheduler", TaskType::kChief},
      {"trainer", TaskType::kWorker},
      {"replica", TaskType::kWorker},
      {"server", TaskType::kPs},
      {"parameter_server", TaskType::kPs}};
  constexpr std::size_t kAccepted = 5;
  for (std::size_t i = 0; i < kAccepted; ++i) {
    if (kMeanings[i].first == name) {
      return {kMeanings[i].second, ""};
    }
  }
  std::string lower(name);
  for (char& c : lower) {
    c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  std::vector<std::string_view> names;
  names.reserve(kMeanings.size());
  for (const auto& meaning : kMeanings) {
    names.push_back(meaning.first);
  }
  std::string hint = "use chief, worker, ps or evaluator";
  const std::string_view nearest = Nearest(lower, names);
  for (const auto& [spelling, type] : kMeanings) {
    if (spelling == nearest && !nearest.empty()) {
      hint = fmt::format("did you mean '{}'? {}", TaskTypeName(type),
                         lower == spelling && lower != name ? "names are in lower case" : hint);
      break;
    }
  }
  return {std::nullopt, fmt::format("unknown role '{}' [{}]", name.substr(0, 80), hint)};
}

std::optional<int> ParseNumber(std::string_view text, int limit) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole && text[0] != '-' && value <= limit ? std::optional(value) : std::nullopt;
}

}  // namespace cohort
