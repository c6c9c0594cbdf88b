#include "parameter_server/chief/round_table.h"

#include <algorithm>

namespace cohort::ps {

void RoundSums::Add(const RoundSums& other) {
  loss_sum += other.loss_sum;
  weight += other.weight;
  metric_sums.resize(std::max(metric_sums.size(), other.metric_sums.size()));
  for (std::size_t m = 0; m < other.metric_sums.size(); ++m) {
    metric_sums[m] += other.metric_sums[m];
  }
}

RoundTable::Kept RoundTable::Keep() const {
  Require(!running_, "a round table between two rounds");
  return {.epochs = epochs_,
          .round = round_,
          .last_round = last_round_,
          .last_total = last_total_,
          .superseded = superseded_,
          .dropped = dropped_};
}

RoundTable::RoundTable(Kept kept, int backup_workers)
    : backup_(backup_workers),
      epochs_(std::move(kept.epochs)),
      round_(kept.round),
      last_round_(kept.last_round),
      last_total_(std::move(kept.last_total)),
      superseded_(kept.superseded),
      dropped_(kept.dropped) {}

void RoundTable::OpenEpoch(const EpochKey& epoch, std::int64_t first_batch,
                           std::int64_t end_batch) {
  epochs_.try_emplace(epoch, Epoch{.first = first_batch, .next = first_batch, .end = end_batch});
}

RoundTable::Reply RoundTable::Join(const TaskId& worker, const EpochKey& epoch, RoundPart* part) {
  if (running_) {
    const auto member = members_.find(worker);
    if (member != members_.end() && !member->second.finished && epoch == epoch_) {
      *part = {.round = round_,
               .attempt = attempt_,
               .part = member->second.part,
               .parts = parts_,
               .epoch = epoch_,
               .batch = epochs_[epoch_].next,
               .previous = last_total_.commit};
      return Reply::kGo;
    }
  }
  const auto found = epochs_.find(epoch);
  if (found == epochs_.end() || found->second.next >= found->second.end) {
    return Reply::kOver;
  }
  asking_[worker] = epoch;
  FormIfComplete();
  return running_ && members_.contains(worker) && !members_[worker].finished
             ? Join(worker, epoch, part)
             : Reply::kWait;
}

void RoundTable::FormIfComplete() {
  // Who asked for an epoch that has ended meanwhile is told so when it asks again.
  std::erase_if(asking_, [this](const auto& entry) {
    const Epoch& epoch = epochs_[entry.second];
    return epoch.next >= epoch.end;
  });
  if (running_ || held_ || asking_.empty() || !MayForm()) {
    return;
  }
  // All ask for the same epoch, but for one that came back and is still on its way there.
  epoch_ = std::min_element(asking_.begin(), asking_.end(), [](const auto& a, const auto& b) {
             return a.second < b.second;
           })->second;
  members_.clear();
  left_behind_.clear();
  if (backup_ > 0) {
    for (const TaskId& task : expected_) {
      if (!asking_.contains(task)) {
        members_[task] = {};  // on its way here, or too late for this round
      }
    }
  }
  for (auto entry = asking_.begin(); entry != asking_.end();) {
    if (entry->second == epoch_) {
      members_[entry->first] = {};
      entry = asking_.erase(entry);
    } else {
      ++entry;
    }
  }
  NumberParts();
  expected_.clear();
  for (const auto& [task, member] : members_) {
    expected_.insert(task);
  }
  running_ = true;
}

bool RoundTable::MayForm() const {
  const bool first = last_round_ == 0;
  return (backup_ > 0 && !first) ||
         std::all_of(expected_.begin(), expected_.end(),
                     [this](const TaskId& task) { return asking_.contains(task); });
}

void RoundTable::NumberParts() {
  parts_ = 0;
  for (auto& [task, member] : members_) {
    member = {.part = parts_++};
  }
  needed_ = static_cast<std::size_t>(std::max(parts_ - backup_, std::min(parts_, 1)));
}

std::size_t RoundTable::Finished() const {
  return left_behind_.size() +
         static_cast<std::size_t>(std::count_if(members_.begin(), members_.end(),
                                                [](const auto& m) { return m.second.finished; }));
}

RoundTable::Reply RoundTable::Finish(const TaskId& worker, std::uint64_t round, int attempt,
                                     const RoundSums& sums, RoundTotal* total) {
  if (round == last_round_ && last_round_ != 0) {
    *total = last_total_;
    return Reply::kGo;
  }
  if (const auto counted = counted_.find(worker); counted != counted_.end() &&
                                                  counted->second.commit.round == round &&
                                                  counted->second.commit.attempt == attempt) {
    *total = counted->second;
    return Reply::kGo;
  }
  const auto member = members_.find(worker);
  if (!running_ || round != round_ || attempt != attempt_ || member == members_.end()) {
    return Reply::kOver;
  }
  if (!member->second.finished) {
    member->second.finished = true;
    member->second.sums = sums;
    CompleteIfFinished();
  }
  if (round == last_round_) {
    *total = last_total_;
    return Reply::kGo;
  }
  return Reply::kWait;
}

void RoundTable::CompleteIfFinished() {
  if (!running_ || Finished() < needed_) {
    return;
  }
  std::map<int, const RoundSums*> winners;  // in the order of the parts
  for (const auto& [task, member] : members_) {
    if (member.finished) {
      winners[member.part] = &member.sums;
    }
  }
  for (const Left& left : left_behind_) {
    winners[left.part] = &left.sums;
  }
  last_total_ = {};
  last_total_.commit = {.round = round_, .attempt = attempt_};
  for (const auto& [part, sums] : winners) {
    last_total_.Add(*sums);
    last_total_.commit.winners.push_back(part);
  }
  for (const auto& [task, member] : members_) {
    if (backup_ > 0 && member.finished) {
      counted_[task] = last_total_;
    }
  }
  dropped_ += parts_ - static_cast<int>(winners.size());
  last_round_ = round_++;
  attempt_ = 0;
  running_ = false;
  Epoch& epoch = epochs_[epoch_];
  ++epoch.next;
  epoch.sums.Add(last_total_);
  FormIfComplete();
}

void RoundTable::CutAnew() {
  ++superseded_;
  ++attempt_;
  left_behind_.clear();
  NumberParts();
  running_ = parts_ > 0;  // with nobody left, the batch waits for those who come
}

void RoundTable::Leave(const TaskId& worker) {
  asking_.erase(worker);
  expected_.erase(worker);
  counted_.erase(worker);
  if (const auto member = members_.find(worker); running_ && member != members_.end()) {
    const bool finished = member->second.finished;
    if (finished) {
      left_behind_.push_back({member->second.part, member->second.sums});
    }
    members_.erase(member);
    if (finished) {
      CompleteIfFinished();  // its part stands in the servers
    } else if (left_behind_.size() + members_.size() < needed_) {
      CutAnew();
    }
  }
  FormIfComplete();
}

std::vector<TaskId> RoundTable::awaited() const {
  std::vector<TaskId> awaited;
  for (const auto& [task, member] : members_) {
    if (running_ && !member.finished) {
      awaited.push_back(task);
    }
  }
  for (const TaskId& task : expected_) {
    if (!running_ && !held_ && !MayForm() && !asking_.contains(task)) {
      awaited.push_back(task);
    }
  }
  return awaited;
}

void RoundTable::Restart(std::set<TaskId> expected) {
  Require(!running_, "a round table between two rounds");
  last_total_.commit = {};  // servers were given what it came to, and know nothing of its parts
  expected_ = std::move(expected);
  asking_.clear();
  members_.clear();
  left_behind_.clear();
  counted_.clear();
  held_ = false;
}

void RoundTable::Hold(bool held) {
  held_ = held;
  FormIfComplete();
}

std::int64_t RoundTable::next_batch(const EpochKey& epoch) const {
  const auto found = epochs_.find(epoch);
  return found == epochs_.end() ? 0 : found->second.next;
}

std::int64_t RoundTable::applied(const EpochKey& epoch) const {
  const auto found = epochs_.find(epoch);
  return found == epochs_.end() ? 0 : found->second.next - found->second.first;
}

RoundSums RoundTable::sums(const EpochKey& epoch) const {
  const auto found = epochs_.find(epoch);
  return found == epochs_.end() ? RoundSums() : found->second.sums;
}

}  // namespace cohort::ps
