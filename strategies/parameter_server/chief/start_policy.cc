#include <cohort/strategies/start_policy.h>

#include <charconv>

namespace cohort {

Result<StartPolicy> StartPolicy::Parse(std::string_view text) {
  constexpr std::string_view kQuorum = "quorum:";
  if (text == "all") {
    return StartPolicy();
  }
  if (text == "elastic") {
    return StartPolicy{.mode = Mode::kElastic};
  }
  if (text.starts_with(kQuorum)) {
    int workers = 0;
    const char* const end = text.data() + text.size();
    const auto [at, error] = std::from_chars(text.data() + kQuorum.size(), end, workers);
    if (error == std::errc() && at == end && workers > 0) {
      return StartPolicy{.mode = Mode::kQuorum, .workers = workers};
    }
  }
  return InvalidArgument("start policy '" + std::string(text) +
                         "' [all, quorum:WORKERS, or elastic]");
}

std::string StartPolicy::ToString() const {
  switch (mode) {
    case Mode::kAll:
      return "all";
    case Mode::kQuorum:
      return "quorum:" + std::to_string(workers);
    case Mode::kElastic:
      break;
  }
  return "elastic";
}

}  // namespace cohort
