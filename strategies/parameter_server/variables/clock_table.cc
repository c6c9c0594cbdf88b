#include "parameter_server/variables/clock_table.h"

#include <algorithm>

namespace cohort::ps {

std::uint64_t ClockTable::Least(bool paused) const {
  std::uint64_t least = kNobody;
  for (const auto& [id, worker] : workers_) {
    if (worker.live || paused) {
      least = std::min(least, worker.clock);
    }
  }
  return least;
}

ClockTable::Worker& ClockTable::Live(std::uint64_t worker, std::uint64_t clock,
                                     const std::string& name) {
  Worker& entry = workers_[worker];
  entry.clock = std::max(entry.clock, clock);
  entry.live = true;
  if (entry.name.empty()) {
    entry.name = name;
  }
  return entry;
}

bool ClockTable::Overtaken(std::uint64_t worker, const ClockTurn& turn) const {
  const auto found = workers_.find(worker);
  return turn.number != 0 && found != workers_.end() && turn <= found->second.turn;
}

std::uint64_t ClockTable::Enter(std::uint64_t worker, std::uint64_t clock, const std::string& name,
                                const ClockTurn& turn) {
  {
    const std::lock_guard lock(mutex_);
    if (retired_.contains(worker)) {
      return clock;
    }
    if (Overtaken(worker, turn)) {
      return workers_[worker].clock;
    }
    std::uint64_t least = Least();
    if (least == kNobody && !workers_.contains(worker)) {
      least = Least(/*paused=*/true);
    }
    Worker& entered = Live(worker, std::max(clock, least == kNobody ? 0 : least), name);
    entered.turn = std::max(entered.turn, turn);
    clock = entered.clock;
  }
  changed_.notify_all();
  return clock;
}

void ClockTable::Advance(std::uint64_t worker, std::uint64_t clock, const std::string& name,
                         const ClockTurn& turn) {
  {
    const std::lock_guard lock(mutex_);
    if (retired_.contains(worker) || Overtaken(worker, turn)) {
      return;
    }
    Worker& advanced = Live(worker, clock, name);
    advanced.turn = std::max(advanced.turn, turn);
  }
  changed_.notify_all();
}

void ClockTable::Pause(std::uint64_t worker, const ClockTurn& turn) {
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = workers_.find(worker);
        found != workers_.end() && !Overtaken(worker, turn)) {
      found->second.live = false;
      found->second.turn = std::max(found->second.turn, turn);
    }
  }
  changed_.notify_all();
}

void ClockTable::Retire(std::uint64_t first, std::uint64_t last) {
  {
    const std::lock_guard lock(mutex_);
    workers_.erase(workers_.lower_bound(first), workers_.upper_bound(last));
    retired_.Add(first, last);
  }
  changed_.notify_all();
}

void ClockTable::Reset() {
  {
    const std::lock_guard lock(mutex_);
    workers_.clear();
  }
  changed_.notify_all();
}

void ClockTable::Tell(Clocks* clocks) const {
  const std::lock_guard lock(mutex_);
  for (const auto& [id, worker] : workers_) {
    WorkerClock* const told = clocks->Add();
    told->set_client(id);
    told->set_clock(worker.clock);
    told->set_live(worker.live);
    told->set_name(worker.name);
  }
}

void ClockTable::Learn(const Clocks& clocks) {
  {
    const std::lock_guard lock(mutex_);
    workers_.clear();
    for (const WorkerClock& told : clocks) {
      if (!retired_.contains(told.client())) {
        workers_[told.client()] = {.clock = told.clock(), .live = told.live(), .name = told.name()};
      }
    }
  }
  changed_.notify_all();
}

std::string ClockTable::Slowest(std::uint64_t worker) const {
  const std::lock_guard lock(mutex_);
  const auto self = workers_.find(worker);
  const Worker* slowest = nullptr;
  for (const auto& [id, other] : workers_) {
    if (other.live && id != worker && (slowest == nullptr || other.clock < slowest->clock)) {
      slowest = &other;
    }
  }
  if (self == workers_.end() || slowest == nullptr || slowest->clock >= self->second.clock) {
    return "no worker is behind any more";
  }
  return (slowest->name.empty() ? "a worker" : slowest->name) + " is " +
         std::to_string(self->second.clock - slowest->clock) + " steps behind this one";
}

bool ClockTable::Await(std::uint64_t worker, std::uint64_t clock, Deadline deadline,
                       const std::string& name) {
  std::unique_lock lock(mutex_);
  if (retired_.contains(worker)) {
    return true;
  }
  clock = Live(worker, clock, name).clock;
  const auto fresh = [&] {
    // A worker that is retired while it waits gets its answer; its next frame is refused.
    const std::uint64_t least = Least();
    return !workers_.contains(worker) || least >= clock || clock - least <= staleness_;
  };
  if (!fresh()) {
    ++stats_.parked;
    if (!changed_.wait_until(lock, deadline, fresh)) {
      return false;
    }
  }
  const std::uint64_t least = Least();
  stats_.max_lead = std::max(stats_.max_lead, least < clock ? clock - least : 0);
  return true;
}

ClockTable::Stats ClockTable::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

}  // namespace cohort::ps
