#include "parameter_server/chief/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace cohort::ps {

using std::chrono::steady_clock;

Scheduler::Scheduler(SchedulerOptions options)
    : options_(std::move(options)),
      workers_(options_.workers, options_.first_client, options_.rejoin_timeout,
               steady_clock::now()) {}

// Until something has changed; false at the deadline.
bool Scheduler::Pause(std::unique_lock<std::mutex>& lock, Deadline deadline) {
  return !stopped_ && changed_.wait_until(lock, deadline) == std::cv_status::no_timeout;
}

void Scheduler::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
}

Status Scheduler::OpenDataset(const std::string& who, int dataset, const DatasetInfo& info) {
  if (dataset < 0 || dataset > 1'000'000 || info.batch_size < 1 || info.examples < 0) {
    return InvalidArgument(who + ": data set " + std::to_string(dataset) + " of " +
                           std::to_string(info.examples) + " examples in batches of " +
                           std::to_string(info.batch_size));
  }
  std::unique_lock lock(mutex_);
  const auto index = static_cast<std::size_t>(dataset);
  while (index >= datasets_.size() || !datasets_[index].has_value()) {
    COHORT_RETURN_IF_ERROR(NoteDataset(lock, dataset, info));
  }
  const DatasetInfo& first = *datasets_[index];
  if (first == info) {
    return {};
  }
  const std::string what = "data set " + std::to_string(dataset) + " differs: " + who + " has ";
  if (first.examples != info.examples || first.batch_size != info.batch_size) {
    return FailedPrecondition(what + std::to_string(info.examples) + " examples in batches of " +
                              std::to_string(info.batch_size) + ", another process " +
                              std::to_string(first.examples) + " in batches of " +
                              std::to_string(first.batch_size) +
                              " [give every process the same data and flags]");
  }
  return FailedPrecondition(what +
                            "another fingerprint: files, order or seed are not the same "
                            "[give every process the same data and flags]");
}

// Lets go of the lock, to wait for the disk. The first that names a data set says what it is; who
// comes meanwhile with another waits as well, and compares it then.
Status Scheduler::NoteDataset(std::unique_lock<std::mutex>& lock, int dataset,
                              const DatasetInfo& info) {
  NotedDataset noted = {.info = info};
  if (Journal* const journal = options_.journal; journal != nullptr) {
    const auto [place, is_new] = noted_datasets_.try_emplace(dataset, noted);
    if (is_new) {
      place->second.ticket = journal->Dataset(dataset, info);
    }
    noted = place->second;
    lock.unlock();
    Status status = journal->Await(noted.ticket);
    lock.lock();
    const auto still = noted_datasets_.find(dataset);
    if (still != noted_datasets_.end() && still->second.ticket == noted.ticket) {
      noted_datasets_.erase(still);
    }
    COHORT_RETURN_IF_ERROR(status);
  }
  const auto index = static_cast<std::size_t>(dataset);
  datasets_.resize(std::max(datasets_.size(), index + 1));
  if (!datasets_[index].has_value()) {
    datasets_[index] = noted.info;
  }
  return {};
}

// Null: the epoch is long over; or, with `waited`, the lock was let go of, to wait for the disk:
// look again at all that was looked at.
Result<Scheduler::Epoch*> Scheduler::FindEpoch(std::unique_lock<std::mutex>& lock,
                                               const EpochKey& key, std::int64_t first_batch,
                                               bool rounds, bool* waited) {
  const auto index = static_cast<std::size_t>(key.dataset);
  if (key.dataset < 0 || index >= datasets_.size() || !datasets_[index].has_value()) {
    return FailedPrecondition("data set " + std::to_string(key.dataset) + " was not opened");
  }
  if (first_batch < 0) {
    return InvalidArgument("an epoch cannot begin at batch " + std::to_string(first_batch));
  }
  const auto found = epochs_.find(key);
  if (found != epochs_.end()) {
    return &found->second;
  }
  if (past_.contains(key)) {
    return static_cast<Epoch*>(nullptr);
  }
  // A worker that came back starts at the program's first epoch; what the others have left behind
  // is not trained again.
  for (const auto& [other, epoch] : epochs_) {
    if (other.dataset == key.dataset && other.epoch > key.epoch) {
      return static_cast<Epoch*>(nullptr);
    }
  }
  if (Journal* const journal = options_.journal; journal != nullptr) {
    const auto [place, is_new] = noted_epochs_.try_emplace(key);
    if (is_new) {
      place->second = journal->Begun(key, first_batch);
    }
    if (const Journal::Ticket ticket = place->second; !journal->has(ticket)) {
      *waited = true;
      lock.unlock();
      Status status = journal->Await(ticket);
      lock.lock();
      const auto still = noted_epochs_.find(key);
      if (!status.ok() && still != noted_epochs_.end() && still->second == ticket) {
        noted_epochs_.erase(still);  // who asks again notes it again
      }
      COHORT_RETURN_IF_ERROR(status);
      return static_cast<Epoch*>(nullptr);
    }
    noted_epochs_.erase(place);
  }
  const DatasetInfo& info = *datasets_[index];
  Epoch epoch;
  epoch.batches = (info.examples + info.batch_size - 1) / info.batch_size;
  epoch.first_batch = std::min(first_batch, epoch.batches);
  if (rounds) {
    rounds_->OpenEpoch(key, epoch.first_batch, epoch.batches);
  } else {
    const std::int64_t size =
        BatchesPerSplit(epoch.batches - epoch.first_batch, static_cast<int>(workers_.size()));
    epoch.splits.emplace(epoch.first_batch * info.batch_size, info.examples,
                         size * info.batch_size);
  }
  return &epochs_.emplace(key, std::move(epoch)).first->second;
}

Result<SplitReply> Scheduler::NextSplit(const Sender& sender, const EpochKey& asked,
                                        std::int64_t first_batch, const FinishedSplit& finished,
                                        Duration wait, bool leaves) {
  const Deadline deadline = DeadlineAfter(wait);
  std::unique_lock lock(mutex_);
  for (bool acknowledged = finished.id == 0;;) {
    COHORT_RETURN_IF_ERROR(workers_.Check(sender));
    workers_.Asked(sender.task, steady_clock::now());
    if (Stale(sender)) {
      return SplitReply{.progress = Progress::kStale};
    }
    if (rounds_.has_value()) {
      if (!std::exchange(acknowledged, true)) {
        FinishSplit(sender.task, asked, finished);
        changed_.notify_all();
      }
      if (leaves) {
        return SplitReply{.progress = Progress::kOver};
      }
      COHORT_RETURN_IF_ERROR(stopped_work_);
      std::int64_t first = first_batch;
      COHORT_ASSIGN_OR_RETURN(const EpochKey key, Due(asked, &first));
      bool waited = false;
      COHORT_ASSIGN_OR_RETURN(Epoch * epoch, FindEpoch(lock, key, first, false, &waited));
      if (waited) {
        continue;
      }
      if (epoch == nullptr) {
        return SplitReply{.progress = Progress::kOver};
      }
      if (!epoch->splits.has_value()) {
        return FailedPrecondition("splits of an epoch that is handed out in rounds");
      }
      // Who asks here has left the data set's other epochs.
      for (auto& [other, left] : epochs_) {
        if (other.dataset == key.dataset && other != key && left.splits.has_value()) {
          left.splits->Lost(sender.task);
        }
      }
      if (epoch->splits->over()) {
        ReportIfOver(key, *epoch);
        return SplitReply{.progress = Progress::kOver};
      }
      const std::int64_t batch_size = datasets_[static_cast<std::size_t>(key.dataset)]->batch_size;
      if (const std::optional<Split> split =
              epoch->splits->Next(sender.task, MostOf(*epoch, batch_size))) {
        workers_.Got(sender.task, key, split->id, steady_clock::now());
        return SplitReply{.progress = Progress::kGo, .split = *split, .epoch = key.epoch};
      }
    }
    if (!Pause(lock, deadline)) {
      Gone(lock, GiveUpHanging());
      return SplitReply{};
    }
  }
}

// All wait for each other at the end of the epoch, and when a cut is due.
std::int64_t Scheduler::MostOf(const Epoch& epoch, std::int64_t batch_size) const {
  if (cutting_) {
    return 0;
  }
  std::int64_t left = epoch.splits->left() / batch_size;
  if (cut_due_.has_value()) {
    const std::int64_t under_way = epoch.splits->held() / batch_size;
    left = std::min(left, *cut_due_ - StepsFinished() - under_way);
  }
  return BatchesBeforeAStop(left, static_cast<int>(workers_.attached())) * batch_size;
}

std::int64_t Scheduler::StepsFinished() const {
  std::int64_t steps = past_advance_.steps;
  for (const auto& [key, epoch] : epochs_) {
    steps += epoch.splits.has_value() ? epoch.steps : rounds_->applied(key);
  }
  return steps;
}

void Scheduler::FinishSplit(const TaskId& worker, const EpochKey& key,
                            const FinishedSplit& finished) {
  const EpochKey of = {key.dataset, finished.epoch < 0 ? key.epoch : finished.epoch};
  const auto epoch = epochs_.find(of);
  if (epoch == epochs_.end() || !epoch->second.splits.has_value()) {
    return;
  }
  if (epoch->second.splits->Finish(worker, finished.id)) {
    workers_.Finished(worker, steady_clock::now());
    epoch->second.steps += finished.steps;
    epoch->second.sums.Add(finished.sums);
  }
  ReportIfOver(of, epoch->second);
}

void Scheduler::Acknowledge(const Sender& sender, const EpochKey& key,
                            const FinishedSplit& finished) {
  {
    const std::lock_guard lock(mutex_);
    if (Stale(sender)) {
      return;
    }
    FinishSplit(sender.task, key, finished);
  }
  changed_.notify_all();
}

// After a roll-back: what is left of the epochs since comes first, in order, for all who ask for
// one of them or a later one.
Result<EpochKey> Scheduler::Due(const EpochKey& asked, std::int64_t* first_batch) {
  while (!again_.empty()) {
    const auto& [key, first] = *again_.begin();
    if (key.dataset > asked.dataset || (key.dataset == asked.dataset && key.epoch > asked.epoch)) {
      break;
    }
    if (!IsOver(key) && key.dataset != asked.dataset) {
      return FailedPrecondition(
          "the servers were rolled back to a save of another data set's epochs, and the workers "
          "have "
          "gone on to the next data set [restart the job, which goes on from that save]");
    }
    if (!IsOver(key)) {
      *first_batch = first;
      return key;
    }
    again_.erase(again_.begin());
  }
  return asked;
}

bool Scheduler::IsOver(const EpochKey& key) const {
  const auto epoch = epochs_.find(key);
  if (epoch == epochs_.end()) {
    return past_.contains(key);
  }
  return epoch->second.splits.has_value() ? epoch->second.splits->over()
                                          : rounds_->next_batch(key) >= epoch->second.batches;
}

Result<RoundReply> Scheduler::JoinRound(const Sender& sender, const EpochKey& asked,
                                        std::int64_t first_batch, Duration wait) {
  const Deadline deadline = DeadlineAfter(wait);
  std::unique_lock lock(mutex_);
  for (;;) {
    COHORT_RETURN_IF_ERROR(workers_.Check(sender));
    workers_.Asked(sender.task, steady_clock::now());
    if (Stale(sender)) {
      return RoundReply{.progress = Progress::kStale};
    }
    if (rounds_.has_value()) {
      COHORT_RETURN_IF_ERROR(stopped_work_);
      std::int64_t first = first_batch;
      COHORT_ASSIGN_OR_RETURN(const EpochKey key, Due(asked, &first));
      bool waited = false;
      COHORT_ASSIGN_OR_RETURN(Epoch * epoch, FindEpoch(lock, key, first, true, &waited));
      if (waited) {
        continue;
      }
      if (epoch == nullptr) {
        return RoundReply{.progress = Progress::kOver};
      }
      RoundReply reply;
      const RoundTable::Reply answer = rounds_->Join(sender.task, key, &reply.part);
      if (answer == RoundTable::Reply::kOver) {
        ReportIfOver(key, *epoch);
        if (key != asked) {
          continue;
        }
        reply.progress = Progress::kOver;
        return reply;
      }
      if (answer == RoundTable::Reply::kGo) {
        changed_.notify_all();  // this may have been the last that the round waited for
        // From 1, as splits.
        workers_.Got(sender.task, key, reply.part.batch + 1, steady_clock::now());
        reply.progress = Progress::kGo;
        return reply;
      }
    }
    if (!Pause(lock, deadline)) {
      Gone(lock, GiveUpHanging());
      return RoundReply{};
    }
  }
}

Result<FinishReply> Scheduler::FinishRound(const Sender& sender, std::uint64_t round, int attempt,
                                           const RoundSums& sums, Duration wait) {
  const Deadline deadline = DeadlineAfter(wait);
  std::unique_lock lock(mutex_);
  for (;;) {
    COHORT_RETURN_IF_ERROR(workers_.Check(sender));
    workers_.Asked(sender.task, steady_clock::now());
    if (Stale(sender)) {
      return FinishReply{.progress = Progress::kStale};
    }
    if (!rounds_.has_value()) {
      return FailedPrecondition("no rounds have begun");
    }
    FinishReply reply;
    const RoundTable::Reply answer =
        rounds_->Finish(sender.task, round, attempt, sums, &reply.total);
    if (answer != RoundTable::Reply::kWait) {
      workers_.Finished(sender.task, steady_clock::now());
      changed_.notify_all();
      reply.progress = answer == RoundTable::Reply::kGo ? Progress::kGo : Progress::kOver;
      return reply;
    }
    if (!Pause(lock, deadline)) {
      Gone(lock, GiveUpHanging());
      return reply;
    }
  }
}

void Scheduler::StopWork(const Status& why) {
  {
    const std::lock_guard lock(mutex_);
    stopped_work_ = why;
  }
  changed_.notify_all();
}

bool Scheduler::UnderWay() const {
  if (rounds_.has_value() && rounds_->running()) {
    return true;
  }
  // Of an epoch that everybody has left, nobody finishes the rest.
  return !epochs_.empty() && epochs_.rbegin()->second.splits.has_value() &&
         !epochs_.rbegin()->second.splits->idle();
}

void Scheduler::CutDue(std::optional<std::int64_t> steps) {
  const std::lock_guard lock(mutex_);
  cut_due_ = steps;
  cut_told_ = false;
}

Result<std::optional<Scheduler::Cut>> Scheduler::BeginCut(Duration wait) {
  const Deadline deadline = DeadlineAfter(wait);
  std::unique_lock lock(mutex_);
  Require(rounds_.has_value(), "a cut after Open");
  cutting_ = true;
  rounds_->Hold(true);
  changed_.notify_all();  // what was returned is taken at once
  while (recovering_ || leaving_ > 0 || UnderWay()) {
    COHORT_RETURN_IF_ERROR(failure_);
    COHORT_RETURN_IF_ERROR(server_loss_);
    COHORT_RETURN_IF_ERROR(workers_.CheckLonely(steady_clock::now()));
    if (!Pause(lock, deadline)) {
      Gone(lock, GiveUpHanging());
      return std::optional<Cut>();
    }
  }
  Cut cut;
  if (!epochs_.empty()) {
    const auto& [key, epoch] = *epochs_.rbegin();
    const DatasetInfo& info = *datasets_[static_cast<std::size_t>(key.dataset)];
    cut.epoch = key;
    cut.batch = epoch.splits.has_value()
                    ? (epoch.splits->position() + info.batch_size - 1) / info.batch_size
                    : rounds_->next_batch(key);
  }
  return std::optional(cut);
}

bool Scheduler::WorkIsBack() const {
  const std::lock_guard lock(mutex_);
  return !epochs_.empty() && epochs_.rbegin()->second.splits.has_value() &&
         epochs_.rbegin()->second.splits->returned();
}

void Scheduler::EndCut() {
  {
    const std::lock_guard lock(mutex_);
    cutting_ = false;
    rounds_->Hold(false);
  }
  changed_.notify_all();
}

std::uint64_t Scheduler::LastRound(RoundCommit* commit) const {
  const std::lock_guard lock(mutex_);
  if (!rounds_.has_value()) {
    return 0;
  }
  *commit = rounds_->last_total().commit;
  return rounds_->last_round();
}

Scheduler::Advance Scheduler::advance() const {
  const std::lock_guard lock(mutex_);
  Advance advance = past_advance_;
  advance.steps = StepsFinished();
  for (const auto& [key, epoch] : epochs_) {
    const EpochCoverage coverage = CoverageOf(key, epoch);
    advance.epochs += coverage.seen == coverage.examples ? 1 : 0;
  }
  return advance;
}

EpochCoverage Scheduler::CoverageOf(const EpochKey& key, const Epoch& epoch) const {
  const DatasetInfo& info = *datasets_[static_cast<std::size_t>(key.dataset)];
  const std::int64_t first = std::min(epoch.first_batch * info.batch_size, info.examples);
  EpochCoverage coverage{
      .dataset = key.dataset, .epoch = key.epoch, .examples = info.examples - first};
  RoundSums sums = epoch.sums;
  if (epoch.splits.has_value()) {
    coverage.seen = epoch.splits->seen();
    coverage.pieces = epoch.splits->splits();
    coverage.reissued = epoch.splits->reissued();
    coverage.steps = epoch.steps;
  } else {
    const std::int64_t applied = rounds_->applied(key);
    coverage.seen =
        std::min((epoch.first_batch + applied) * info.batch_size, info.examples) - first;
    coverage.pieces = applied;
    coverage.reissued = rounds_->superseded();
    coverage.dropped = rounds_->dropped();
    coverage.steps = applied;
    sums = rounds_->sums(key);
  }
  if (sums.weight > 0) {
    coverage.loss = sums.loss_sum / sums.weight;
    for (const double sum : sums.metric_sums) {
      coverage.metrics.push_back(sum / sums.weight);
    }
  }
  coverage.seconds = epoch.seconds.value_or(
      std::chrono::duration<double>(steady_clock::now() - epoch.begun).count());
  return coverage;
}

void Scheduler::ReportIfOver(const EpochKey& key, Epoch& epoch) {
  const EpochCoverage coverage = CoverageOf(key, epoch);
  if (epoch.reported || coverage.seen < coverage.examples) {
    return;
  }
  epoch.reported = true;
  epoch.seconds = coverage.seconds;
  options_.log.Info(fmt::format(
      "epoch {}: loss {:.4f}, {} of {} examples seen in {:.1f} s, {} steps, {} {}, {} handed out "
      "again",
      key.epoch + 1, coverage.loss, coverage.seen, coverage.examples, coverage.seconds,
      coverage.steps, coverage.pieces, epoch.splits.has_value() ? "splits" : "rounds",
      coverage.reissued));
}

std::vector<EpochCoverage> Scheduler::coverage() const {
  const std::lock_guard lock(mutex_);
  std::map<EpochKey, EpochCoverage> all = past_;
  for (const auto& [key, epoch] : epochs_) {
    all.emplace(key, CoverageOf(key, epoch));
  }
  std::vector<EpochCoverage> in_order;
  for (const auto& [key, coverage] : all) {
    in_order.push_back(coverage);
  }
  return in_order;
}

}  // namespace cohort::ps
