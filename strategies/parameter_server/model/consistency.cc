#include <cohort/strategies/consistency.h>

#include <charconv>

namespace cohort {
namespace {

constexpr int kMost = 1'000'000;

}  // namespace

Result<Consistency> Consistency::Parse(std::string_view text) {
  const std::size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  int number = 0;
  bool good = true;
  if (colon != std::string_view::npos) {
    const char* end = text.data() + text.size();
    const auto [at, error] = std::from_chars(text.data() + colon + 1, end, number);
    good = error == std::errc() && at == end && number >= 0 && number <= kMost;
  }
  const bool numbered = colon != std::string_view::npos;
  if (good && name == "async" && !numbered) {
    return Consistency();
  }
  if (good && name == "ssp" && numbered) {
    return Consistency{.mode = Mode::kBoundedStaleness, .staleness = number};
  }
  if (good && name == "sync") {
    return Consistency{.mode = Mode::kSynchronous, .backup_workers = number};
  }
  if (good && name == "hybrid" && !numbered) {
    return Consistency{.mode = Mode::kHybrid};
  }
  if (good && name == "auto" && !numbered) {
    return Consistency{.mode = Mode::kAuto};
  }
  return InvalidArgument("consistency '" + std::string(text) +
                         "' [async, ssp:STALENESS, sync, sync:BACKUP_WORKERS, hybrid, or auto]");
}

std::string Consistency::ToString() const {
  switch (mode) {
    case Mode::kAsynchronous:
      return "async";
    case Mode::kBoundedStaleness:
      return "ssp:" + std::to_string(staleness);
    case Mode::kHybrid:
      return "hybrid";
    case Mode::kAuto:
      return "auto";
    case Mode::kSynchronous:
      break;
  }
  return backup_workers == 0 ? "sync" : "sync:" + std::to_string(backup_workers);
}

}  // namespace cohort
