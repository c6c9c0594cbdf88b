#include "parameter_server/row_rounds.h"

#include <algorithm>
#include <string>
#include <utility>

namespace cohort::ps {
namespace {

constexpr std::uint32_t kMaxParts = 1 << 16;

}  // namespace

void RowRounds::Begin(std::span<const std::unique_ptr<RowTable>> tables) {
  const std::lock_guard lock(mutex_);
  tables_ = tables;
  round_ = 0;
  open_ = false;
  attempt_ = 0;
  parts_.clear();
  failed_ = {};
}

bool RowRounds::complete() const {
  return open_ && std::ranges::all_of(parts_, [](const Part& part) { return part.complete; });
}

Status RowRounds::Add(const Round& round, double weight, std::int64_t step, bool last, Rows rows) {
  const std::lock_guard lock(mutex_);
  COHORT_RETURN_IF_ERROR(failed_);
  if (round.parts() < 1 || round.parts() > kMaxParts || round.part() >= round.parts()) {
    return InvalidArgument("part " + std::to_string(round.part()) + " of " +
                           std::to_string(round.parts()) + " of a round");
  }
  const bool over = round.round() < round_ || (round.round() == round_ && !open_);
  if (over || (round.round() == round_ && round.attempt() < attempt_)) {
    return {};
  }
  if (open_ && round.round() > round_) {
    if (!complete()) {
      return Aborted("round " + std::to_string(round.round()) + " of rows is begun, and of round " +
                     std::to_string(round_) + " parts are missing");
    }
    COHORT_RETURN_IF_ERROR(Apply());
  }
  if (!open_ || round.attempt() > attempt_) {
    open_ = true;
    round_ = round.round();
    attempt_ = round.attempt();
    step_ = step;
    parts_.assign(round.parts(), Part());
  }
  Part& part = parts_[std::min<std::size_t>(round.part(), parts_.size() - 1)];
  if (round.parts() != parts_.size() || step != step_ || part.complete) {
    return InvalidArgument("part " + std::to_string(round.part()) + " of " +
                           std::to_string(round.parts()) + " of round " + std::to_string(round_) +
                           ", step " + std::to_string(step) +
                           (part.complete ? ": it was complete"
                                          : ": others are of " + std::to_string(parts_.size()) +
                                                " parts, step " + std::to_string(step_)));
  }
  if (!rows.ids.empty()) {
    part.frames.push_back(std::move(rows));
  }
  part.weight = weight;
  part.complete = last;
  if (complete()) {
    changed_.notify_all();
  }
  return {};
}

Result<bool> RowRounds::WaitApplied(std::uint64_t round, Deadline deadline) {
  std::unique_lock lock(mutex_);
  const auto settled = [&] { return !failed_.ok() || !open_ || round_ > round || complete(); };
  if (!changed_.wait_until(lock, deadline, settled)) {
    return false;
  }
  COHORT_RETURN_IF_ERROR(failed_);
  if (open_ && round_ <= round) {
    COHORT_RETURN_IF_ERROR(Apply());
  }
  return true;
}

Status RowRounds::Settle() {
  const std::lock_guard lock(mutex_);
  COHORT_RETURN_IF_ERROR(failed_);
  return complete() ? Apply() : OkStatus();
}

std::string RowRounds::Describe() const {
  const std::lock_guard lock(mutex_);
  std::string missing;
  for (std::size_t p = 0; p < parts_.size(); ++p) {
    if (!parts_[p].complete) {
      missing += " " + std::to_string(p);
    }
  }
  return "round " + std::to_string(round_) + " of rows waits for part(s)" + missing + " of " +
         std::to_string(parts_.size());
}

Status RowRounds::Apply() {
  double weight = 0;
  for (const Part& part : parts_) {
    weight += part.weight;
  }
  for (std::size_t t = 0; weight > 0 && t < tables_.size() && failed_.ok(); ++t) {
    Rows all;
    for (const Part& part : parts_) {
      for (const Rows& rows : part.frames) {
        if (rows.table == t && part.weight > 0) {
          all.ids.insert(all.ids.end(), rows.ids.begin(), rows.ids.end());
          all.counts.insert(all.counts.end(), rows.counts.begin(), rows.counts.end());
          all.values.insert(all.values.end(), rows.values.begin(), rows.values.end());
        }
      }
    }
    if (!all.ids.empty()) {
      failed_ = tables_[t]->Apply({.ids = all.ids,
                                   .values = all.values,
                                   .counts = all.counts,
                                   .scale = static_cast<float>(1.0 / weight),
                                   .step = step_});
    }
    if (failed_.ok()) {
      failed_ = tables_[t]->EvictWhenDue(step_).status();
    }
  }
  open_ = false;
  parts_.clear();
  changed_.notify_all();
  return failed_;
}

}  // namespace cohort::ps
