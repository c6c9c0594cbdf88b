// ProgressLine: what a chief that does not train says of its job now and then: how far the epoch
// is, who is at work, and how fast.
//
// Not synchronised.

#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include <cohort/strategies/distributed_dataset.h>

namespace cohort::ps {

class ProgressLine {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr std::chrono::seconds kInterval{10};

  explicit ProgressLine(Time begun) : last_(begun) {}

  bool Due(Time now) const { return now - last_ >= kInterval; }
  // Where it is due: of the last of `epochs`, in order; nothing where that is over, or none has
  // begun. `workers`: at work. Examples a second are those since the line before, of all epochs.
  std::optional<std::string> Of(std::span<const EpochCoverage> epochs, std::size_t workers,
                                Time now) {
    std::int64_t seen = 0;
    for (const EpochCoverage& epoch : epochs) {
      seen += epoch.seen;
    }
    const double seconds = std::chrono::duration<double>(now - last_).count();
    // After a roll-back there may be fewer than before.
    const std::int64_t more = std::max<std::int64_t>(seen - seen_, 0);
    last_ = now;
    seen_ = seen;
    if (epochs.empty() || epochs.back().seen == epochs.back().examples) {
      return std::nullopt;
    }
    const EpochCoverage& epoch = epochs.back();
    return fmt::format(
        "epoch {}: {} of {} examples, {} steps, loss {:.4f}, {} {}, {:.0f} examples/s",
        epoch.epoch + 1, epoch.seen, epoch.examples, epoch.steps, epoch.loss, workers,
        workers == 1 ? "worker" : "workers", static_cast<double>(more) / std::max(seconds, 1e-3));
  }

 private:
  Time last_;  // when a line was due last
  std::int64_t seen_ = 0;
};

}  // namespace cohort::ps
