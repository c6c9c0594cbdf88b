// Problems: everything that is wrong or remarkable in a configuration, gathered so that all of it
// is reported at once.

#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/cluster/cluster_spec.h>

namespace cohort {

struct Problems {
  std::vector<std::string> errors;
  std::vector<std::string> warnings;
  std::vector<std::string> notes;  // worth a line in the log, nothing wrong

  void Error(std::string text) { errors.push_back(std::move(text)); }
  void Warn(std::string text) { warnings.push_back(std::move(text)); }
  void Note(std::string text) { notes.push_back(std::move(text)); }
};

// The least number of characters to insert, delete or replace that make `a` from `b`.
int EditDistance(std::string_view a, std::string_view b);

// The candidate that `word` most likely is a misspelling of; empty if none is near.
std::string_view Nearest(std::string_view word, const std::vector<std::string_view>& candidates);

// The role of that name ("master" is chief), or why there is none, with what was probably meant.
struct RoleName {
  std::optional<TaskType> type;
  std::string error;
};
RoleName ParseRole(std::string_view name);

// A decimal number without sign, space or fraction, at most `limit`.
std::optional<int> ParseNumber(std::string_view text, int limit = 1'000'000'000);

}  // namespace cohort
