#include "parameter_server/chief/coordinator.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

namespace cohort::ps {
namespace {

Status NotBeenThere(std::int64_t step) {
  return FailedPrecondition("the last whole save is of step " + std::to_string(step) +
                            ", where this job has not been [restart the job, which goes on from "
                            "that save]");
}

}  // namespace

Coordinator::Coordinator(CoordinatorOptions options)
    : options_(std::move(options)), next_client_(options_.first_client) {
  for (const TaskId& worker : options_.workers) {
    workers_[worker] = {};
  }
}

void Coordinator::Succeed(const JournalState& state) {
  const std::lock_guard lock(mutex_);
  succeeds_ = true;
  excused_until_ = DeadlineAfter(options_.rejoin_timeout);
  datasets_ = state.datasets;
  again_ = state.begun;
  courses_ = state.courses;
  for (const auto& [task, end] : state.ended) {
    const auto worker = workers_.find(task);
    if (worker != workers_.end() && worker->second.phase == Phase::kExpected) {
      worker->second.phase = end == JournalState::End::kDone ? Phase::kDone : Phase::kLost;
      worker->second.end = last_loss_ = Aborted(task.ToString() + " was lost before the chief was");
    } else if (worker != workers_.end() && worker->second.phase == Phase::kAttached) {
      NoteEnd(task, std::nullopt);  // it is back
    }
  }
  StartLoneliness();
}

// What a worker has done of an earlier chief's job, this one cannot know without its journal.
Status Coordinator::CheckStranger(const TaskId& worker) const {
  return succeeds_
             ? OkStatus()
             : FailedPrecondition(
                   worker.ToString() +
                   " comes from a job whose chief and servers are gone [restart the job, workers "
                   "too, which goes on from its last save]");
}

void Coordinator::Excuse(const TaskId& worker) {
  const std::lock_guard lock(mutex_);
  if (Worker& excused = workers_.at(worker); excused.phase == Phase::kExpected) {
    excused.phase = Phase::kExcused;
    StartLoneliness();
  }
}

void Coordinator::StartLoneliness() {
  if (std::all_of(workers_.begin(), workers_.end(), [](const auto& w) {
        return w.second.phase == Phase::kLost || w.second.phase == Phase::kExcused;
      })) {
    lonely_since_ = std::chrono::steady_clock::now();
  }
}

Status Coordinator::Open(std::int64_t step, std::uint64_t digest) {
  {
    const std::lock_guard lock(mutex_);
    if (rounds_.has_value()) {
      return {};
    }
    if (stranger_.has_value()) {
      COHORT_RETURN_IF_ERROR(CheckStranger(*stranger_));
    }
    if (courses_.empty()) {
      Course course = {.step = step, .digest = digest, .epochs = {}, .rounds = {}, .again = {}};
      course.rounds.emplace(static_cast<std::uint64_t>(step), ExpectedWorkers(),
                            options_.backup_workers);
      if (options_.journal != nullptr) {
        COHORT_RETURN_IF_ERROR(options_.journal->Remember(course));
      }
      rounds_ = course.rounds;
      courses_.push_back(std::move(course));
    } else {
      COHORT_RETURN_IF_ERROR(GoBack(step));
      if (const std::uint64_t before = courses_.back().digest; before != 0 && before != digest) {
        return FailedPrecondition(
            "the job would begin anew with other values than the chief before this one had given "
            "it, and there is no save [give it the same seed and flags, or restart the job]");
      }
    }
    recovering_ = false;
    Moved();
    view_.recovering = false;
    view_.why.clear();
  }
  changed_.notify_all();
  return {};
}

std::set<TaskId> Coordinator::ExpectedWorkers() const {
  std::set<TaskId> expected;
  for (const auto& [task, worker] : workers_) {
    if (worker.phase == Phase::kExpected || worker.phase == Phase::kAttached) {
      expected.insert(task);
    }
  }
  return expected;
}

// Whether another chief would have to wait for the worker.
void Coordinator::NoteEnd(const TaskId& worker, std::optional<JournalState::End> end) {
  if (options_.journal != nullptr && journal_failure_.ok()) {
    journal_failure_ = options_.journal->Worker(worker, end);
  }
}

void Coordinator::Gone(std::uint64_t client) const {
  if (options_.on_gone && client != 0) {
    options_.on_gone(client);
  }
}

Result<std::uint64_t> Coordinator::Attach(const Sender& sender) {
  std::uint64_t gone = 0;
  std::unique_lock lock(mutex_);
  const auto found = workers_.find(sender.task);
  if (found == workers_.end()) {
    return FailedPrecondition(sender.task.ToString() + " is not a worker of this job");
  }
  Worker& worker = found->second;
  if (sender.epoch > 0 && worker.incarnation == 0) {
    if (view_.epoch != 0) {
      COHORT_RETURN_IF_ERROR(CheckStranger(sender.task));
    }
    stranger_ = sender.task;  // if it is one, Open will know
  }
  if (worker.incarnation != sender.incarnation) {
    if (worker.phase == Phase::kAttached) {
      Release(sender.task, Aborted("another process has taken its place"));
    }
    if (worker.phase != Phase::kExpected) {
      options_.log.Info(sender.task.ToString() +
                        (worker.phase == Phase::kExcused ? " has come" : " is back"));
    }
    if (worker.phase == Phase::kDone || worker.phase == Phase::kLost) {
      NoteEnd(sender.task, std::nullopt);
    }
    gone = worker.client;
    worker = {.phase = Phase::kAttached,
              .incarnation = sender.incarnation,
              .client = next_client_ == 0 ? ++next_client_ : next_client_};
    ++next_client_;
  }
  const std::uint64_t client = worker.client;
  lonely_since_.reset();
  changed_.notify_all();
  lock.unlock();
  Gone(gone);
  return client;
}

// Until something has changed; false at the deadline.
bool Coordinator::Pause(std::unique_lock<std::mutex>& lock, Deadline deadline) {
  return !stopped_ && changed_.wait_until(lock, deadline) == std::cv_status::no_timeout;
}

void Coordinator::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
}

Status Coordinator::CheckSender(const Sender& sender) const {
  const auto worker = workers_.find(sender.task);
  if (worker == workers_.end() || worker->second.incarnation != sender.incarnation) {
    return Aborted(sender.task.ToString() + ": another process has taken this task's place");
  }
  if (worker->second.phase == Phase::kLost) {
    return Aborted(sender.task.ToString() + " was given up as lost, its data went to others (" +
                   worker->second.end.message() + ") [start it again to join anew]");
  }
  return {};
}

Status Coordinator::OpenDataset(const std::string& who, int dataset, const DatasetInfo& info) {
  if (dataset < 0 || dataset > 1'000'000 || info.batch_size < 1 || info.examples < 0) {
    return InvalidArgument(who + ": data set " + std::to_string(dataset) + " of " +
                           std::to_string(info.examples) + " examples in batches of " +
                           std::to_string(info.batch_size));
  }
  const std::lock_guard lock(mutex_);
  const auto index = static_cast<std::size_t>(dataset);
  if (datasets_.size() <= index) {
    datasets_.resize(index + 1);
  }
  if (!datasets_[index].has_value()) {
    if (options_.journal != nullptr) {
      COHORT_RETURN_IF_ERROR(options_.journal->Dataset(dataset, info));
    }
    datasets_[index] = info;
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

// Null: the epoch is long over.
Result<Coordinator::Epoch*> Coordinator::FindEpoch(const EpochKey& key, std::int64_t first_batch,
                                                   bool rounds) {
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
  const DatasetInfo& info = *datasets_[index];
  if (options_.journal != nullptr) {
    COHORT_RETURN_IF_ERROR(options_.journal->Begun(key, first_batch));
  }
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

Result<SplitReply> Coordinator::NextSplit(const Sender& sender, const EpochKey& asked,
                                          std::int64_t first_batch, const FinishedSplit& finished,
                                          Duration wait, bool leaves) {
  const Deadline deadline = DeadlineAfter(wait);
  std::unique_lock lock(mutex_);
  for (bool acknowledged = finished.id == 0;;) {
    COHORT_RETURN_IF_ERROR(CheckSender(sender));
    workers_[sender.task].moved = std::chrono::steady_clock::now();
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
      COHORT_ASSIGN_OR_RETURN(Epoch * epoch, FindEpoch(key, first, false));
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
      if (const std::optional<Split> split = epoch->splits->Next(sender.task, cutting_)) {
        Got(sender.task, key, split->id);
        return SplitReply{.progress = Progress::kGo, .split = *split, .epoch = key.epoch};
      }
    }
    if (!Pause(lock, deadline)) {
      const std::uint64_t gone = GiveUpHanging();
      lock.unlock();
      Gone(gone);
      return SplitReply{};
    }
  }
}

void Coordinator::FinishSplit(const TaskId& worker, const EpochKey& key,
                              const FinishedSplit& finished) {
  const EpochKey of = {key.dataset, finished.epoch < 0 ? key.epoch : finished.epoch};
  const auto epoch = epochs_.find(of);
  if (epoch == epochs_.end() || !epoch->second.splits.has_value()) {
    return;
  }
  if (epoch->second.splits->Finish(worker, finished.id)) {
    Finished(worker);
    epoch->second.steps += finished.steps;
    epoch->second.sums.Add(finished.sums);
  }
  ReportIfOver(of, epoch->second);
}

void Coordinator::Acknowledge(const Sender& sender, const EpochKey& key,
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
Result<EpochKey> Coordinator::Due(const EpochKey& asked, std::int64_t* first_batch) {
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

bool Coordinator::IsOver(const EpochKey& key) const {
  const auto epoch = epochs_.find(key);
  if (epoch == epochs_.end()) {
    return past_.contains(key);
  }
  return epoch->second.splits.has_value() ? epoch->second.splits->over()
                                          : rounds_->next_batch(key) >= epoch->second.batches;
}

Result<RoundReply> Coordinator::JoinRound(const Sender& sender, const EpochKey& asked,
                                          std::int64_t first_batch, Duration wait) {
  const Deadline deadline = DeadlineAfter(wait);
  std::unique_lock lock(mutex_);
  for (;;) {
    COHORT_RETURN_IF_ERROR(CheckSender(sender));
    workers_[sender.task].moved = std::chrono::steady_clock::now();
    if (Stale(sender)) {
      return RoundReply{.progress = Progress::kStale};
    }
    if (rounds_.has_value()) {
      COHORT_RETURN_IF_ERROR(stopped_work_);
      std::int64_t first = first_batch;
      COHORT_ASSIGN_OR_RETURN(const EpochKey key, Due(asked, &first));
      COHORT_ASSIGN_OR_RETURN(Epoch * epoch, FindEpoch(key, first, true));
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
        Got(sender.task, key, reply.part.batch + 1);  // from 1, as splits
        reply.progress = Progress::kGo;
        return reply;
      }
    }
    if (!Pause(lock, deadline)) {
      const std::uint64_t gone = GiveUpHanging();
      lock.unlock();
      Gone(gone);
      return RoundReply{};
    }
  }
}

Result<FinishReply> Coordinator::FinishRound(const Sender& sender, std::uint64_t round, int attempt,
                                             const RoundSums& sums, Duration wait) {
  const Deadline deadline = DeadlineAfter(wait);
  std::unique_lock lock(mutex_);
  for (;;) {
    COHORT_RETURN_IF_ERROR(CheckSender(sender));
    workers_[sender.task].moved = std::chrono::steady_clock::now();
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
      Finished(sender.task);
      changed_.notify_all();
      reply.progress = answer == RoundTable::Reply::kGo ? Progress::kGo : Progress::kOver;
      return reply;
    }
    if (!Pause(lock, deadline)) {
      const std::uint64_t gone = GiveUpHanging();
      lock.unlock();
      Gone(gone);
      return reply;
    }
  }
}

void Coordinator::Release(const TaskId& worker, const Status& why) {
  for (auto& [key, epoch] : epochs_) {
    if (epoch.splits.has_value()) {
      epoch.splits->Lost(worker);
    }
  }
  if (rounds_.has_value()) {
    rounds_->Leave(worker);
  }
  if (closures_.has_value()) {
    closures_->Lost(worker, why);
  }
}

void Coordinator::StopWork(const Status& why) {
  {
    const std::lock_guard lock(mutex_);
    stopped_work_ = why;
  }
  changed_.notify_all();
}

Status Coordinator::Done(const Sender& sender) {
  std::unique_lock lock(mutex_);
  COHORT_RETURN_IF_ERROR(CheckSender(sender));
  workers_[sender.task].phase = Phase::kDone;
  NoteEnd(sender.task, JournalState::End::kDone);
  Release(sender.task, Aborted("it has left"));
  changed_.notify_all();
  const std::uint64_t gone = workers_[sender.task].client;
  lock.unlock();
  Gone(gone);
  return {};
}

void Coordinator::Lost(const TaskId& task, const Status& why) {
  std::unique_lock lock(mutex_);
  const std::uint64_t gone = LostNow(task, why);
  lock.unlock();
  Gone(gone);
}

std::uint64_t Coordinator::LostNow(const TaskId& task, const Status& why) {
  const auto worker = workers_.find(task);
  if (worker == workers_.end() || worker->second.phase == Phase::kDone ||
      worker->second.phase == Phase::kLost) {
    return 0;
  }
  options_.log.Warning("the job goes on without " + task.ToString() + ": " + why.message());
  worker->second.phase = Phase::kLost;
  worker->second.end = why;
  NoteEnd(task, JournalState::End::kLost);
  last_loss_ = why;
  Release(task, why);
  StartLoneliness();
  changed_.notify_all();
  return worker->second.client;
}

bool Coordinator::UnderWay() const {
  if (rounds_.has_value() && rounds_->running()) {
    return true;
  }
  // Of an epoch that everybody has left, nobody finishes the rest.
  return !epochs_.empty() && epochs_.rbegin()->second.splits.has_value() &&
         !epochs_.rbegin()->second.splits->idle();
}

Result<std::optional<Coordinator::Cut>> Coordinator::BeginCut(Duration wait) {
  const Deadline deadline = DeadlineAfter(wait);
  std::unique_lock lock(mutex_);
  Require(rounds_.has_value(), "a cut after Open");
  cutting_ = true;
  rounds_->Hold(true);
  changed_.notify_all();  // what was returned is taken at once
  while (recovering_ || UnderWay()) {
    COHORT_RETURN_IF_ERROR(failure_);
    COHORT_RETURN_IF_ERROR(server_loss_);
    COHORT_RETURN_IF_ERROR(CheckLonely());
    if (!Pause(lock, deadline)) {
      const std::uint64_t gone = GiveUpHanging();
      lock.unlock();
      Gone(gone);
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

bool Coordinator::WorkIsBack() const {
  const std::lock_guard lock(mutex_);
  return !epochs_.empty() && epochs_.rbegin()->second.splits.has_value() &&
         epochs_.rbegin()->second.splits->returned();
}

bool Coordinator::WorkersHaveLeft() const {
  const std::lock_guard lock(mutex_);
  return std::ranges::all_of(workers_, [](const auto& worker) {
    return worker.second.phase == Phase::kDone || worker.second.phase == Phase::kLost;
  });
}

void Coordinator::SetView(std::uint64_t epoch, std::vector<std::string> addresses,
                          std::string why) {
  {
    const std::lock_guard lock(mutex_);
    recovering_ = !why.empty();
    view_ = {.epoch = epoch,
             .recovering = recovering_,
             .addresses = std::move(addresses),
             .why = std::move(why),
             .rolled_back = epoch};
  }
  changed_.notify_all();
}

void Coordinator::ServerLost(const Status& why) {
  {
    const std::lock_guard lock(mutex_);
    recovering_ = true;
    server_loss_ = why;
    view_.recovering = true;
    view_.why = why.message();
  }
  changed_.notify_all();
}

bool Coordinator::recovering() const {
  const std::lock_guard lock(mutex_);
  return recovering_;
}

ServerView Coordinator::AwaitView(std::uint64_t epoch, bool recovering, Duration wait) const {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, DeadlineAfter(wait), [&] {
    return stopped_ || view_.epoch != epoch || view_.recovering != recovering;
  });
  return view_;
}

Course Coordinator::CourseAt(std::int64_t step) const {
  const std::lock_guard lock(mutex_);
  return {.step = step, .digest = 0, .epochs = epochs_, .rounds = rounds_, .again = again_};
}

Status Coordinator::Remember(Course course) {
  std::vector<EpochKey> past;
  {
    const std::lock_guard lock(mutex_);
    if (!courses_.empty() && courses_.back().step == course.step) {
      return {};
    }
    past = ForgetPast();
  }
  for (const EpochKey& key : past) {
    course.epochs.erase(key);
    course.rounds->Forget(key);
  }
  if (options_.journal != nullptr) {
    COHORT_RETURN_IF_ERROR(options_.journal->Remember(course, past));
  }
  const std::lock_guard lock(mutex_);
  courses_.push_back(std::move(course));
  if (courses_.size() > Journal::kMaxCourses) {
    courses_.pop_front();
  }
  return {};
}

// An epoch that is over wherever the job can go back to is so for good: of it there is no more to
// copy, and to note, than what it came to. The last one of a course is what is under way there.
std::vector<EpochKey> Coordinator::ForgetPast() {
  std::vector<EpochKey> past;
  if (courses_.empty() || courses_.front().epochs.empty()) {
    return past;
  }
  const EpochKey last = courses_.front().epochs.rbegin()->first;
  for (const auto& [key, then] : courses_.front().epochs) {
    const auto now = epochs_.find(key);
    if (key == last || now == epochs_.end() || !then.reported || !IsOver(key)) {
      continue;
    }
    const EpochCoverage coverage = CoverageOf(key, now->second);
    past_advance_.steps += coverage.steps;
    past_advance_.epochs += 1;
    past_.emplace(key, coverage);
    past.push_back(key);
  }
  for (const EpochKey& key : past) {
    epochs_.erase(key);
    rounds_->Forget(key);
  }
  return past;
}

Status Coordinator::Forget(std::int64_t step) {
  const std::lock_guard lock(mutex_);
  if (courses_.size() < 2 || courses_.back().step != step) {
    return {};
  }
  courses_.pop_back();
  return options_.journal == nullptr ? OkStatus() : options_.journal->GoBack(courses_.back().step);
}

Status Coordinator::RollBack(std::int64_t step, std::uint64_t epoch,
                             std::vector<std::string> addresses) {
  {
    const std::lock_guard lock(mutex_);
    COHORT_RETURN_IF_ERROR(GoBack(step));
    recovering_ = false;
    server_loss_ = OkStatus();
    Moved();
    view_ = {.epoch = epoch,
             .recovering = false,
             .addresses = std::move(addresses),
             .why = {},
             .rolled_back = epoch};
  }
  changed_.notify_all();
  return {};
}

Status Coordinator::GoOn(std::optional<std::int64_t> step, std::uint64_t epoch,
                         std::vector<std::string> addresses) {
  {
    const std::lock_guard lock(mutex_);
    if (step.has_value() && std::ranges::find(courses_, *step, &Course::step) == courses_.end()) {
      return NotBeenThere(*step);
    }
    recovering_ = false;
    server_loss_ = OkStatus();
    Moved();
    view_.epoch = epoch;
    view_.recovering = false;
    view_.addresses = std::move(addresses);
    view_.why.clear();
  }
  changed_.notify_all();
  return {};
}

std::int64_t Coordinator::StepsSince(std::int64_t step) const {
  const auto steps_of = [this](const std::map<EpochKey, Epoch>& epochs) {
    std::int64_t steps = 0;
    for (const auto& [key, epoch] : epochs) {
      steps += past_.contains(key) ? 0 : epoch.steps;
    }
    return steps;
  };
  const std::lock_guard lock(mutex_);
  const auto course = std::ranges::find(courses_, step, &Course::step);
  return steps_of(epochs_) - (course == courses_.end() ? 0 : steps_of(course->epochs));
}

Status Coordinator::GoBack(std::int64_t step) {
  const auto found = std::find_if(courses_.rbegin(), courses_.rend(),
                                  [&](const Course& course) { return course.step == step; });
  if (found == courses_.rend()) {
    return NotBeenThere(step);
  }
  courses_.erase(found.base(), courses_.end());
  const Course& course = courses_.back();
  std::map<EpochKey, std::int64_t> again = course.again;
  const auto add = [&](const EpochKey& key, std::int64_t first) {
    if (!course.epochs.contains(key)) {
      again.emplace(key, first);
    }
  };
  for (const auto& [key, of_key] : epochs_) {
    add(key, of_key.first_batch);
  }
  for (const auto& [key, first] : again_) {
    add(key, first);
  }
  if (!course.epochs.empty()) {  // the one that was under way; if it is over, Due drops it
    again.emplace(course.epochs.rbegin()->first, course.epochs.rbegin()->second.first_batch);
  }
  if (!again.empty() && again.begin()->first.dataset != again.rbegin()->first.dataset) {
    return FailedPrecondition(
        "the last save is of another data set's epochs than the workers are at, and they cannot "
        "go back there [restart the job, which goes on from that save]");
  }
  if (options_.journal != nullptr) {
    COHORT_RETURN_IF_ERROR(options_.journal->GoBack(step));
  }
  epochs_ = course.epochs;
  rounds_ = course.rounds;
  for (const auto& [key, of_key] : course.epochs) {
    if (past_.contains(key)) {
      epochs_.erase(key);
      rounds_->Forget(key);
    }
  }
  rounds_->Restart(ExpectedWorkers());
  again_ = std::move(again);
  cutting_ = false;
  return {};
}

void Coordinator::EndCut() {
  {
    const std::lock_guard lock(mutex_);
    cutting_ = false;
    rounds_->Hold(false);
  }
  changed_.notify_all();
}

std::uint64_t Coordinator::LastRound(RoundCommit* commit) const {
  const std::lock_guard lock(mutex_);
  if (!rounds_.has_value()) {
    return 0;
  }
  *commit = rounds_->last_total().commit;
  return rounds_->last_round();
}

Coordinator::Advance Coordinator::advance() const {
  const std::lock_guard lock(mutex_);
  Advance advance = past_advance_;
  for (const auto& [key, epoch] : epochs_) {
    const EpochCoverage coverage = CoverageOf(key, epoch);
    advance.steps += coverage.steps;
    advance.epochs += coverage.seen == coverage.examples ? 1 : 0;
  }
  return advance;
}

bool Coordinator::OverLocked() const {
  bool any_done = false;
  const bool others_may_come = succeeds_ && std::chrono::steady_clock::now() < excused_until_;
  for (const auto& [task, worker] : workers_) {
    if (worker.phase == Phase::kExpected || worker.phase == Phase::kAttached ||
        (worker.phase == Phase::kExcused && others_may_come)) {
      return false;
    }
    any_done = any_done || worker.phase == Phase::kDone;
  }
  return any_done;
}

Status Coordinator::CheckLonely() const {
  if (lonely_since_.has_value() &&
      std::chrono::steady_clock::now() - *lonely_since_ > options_.rejoin_timeout) {
    const auto seconds =
        std::chrono::duration_cast<std::chrono::seconds>(options_.rejoin_timeout).count();
    if (last_loss_.ok()) {
      std::string names;
      for (const auto& [task, worker] : workers_) {
        names += (names.empty() ? "" : ", ") + task.ToString();
      }
      return Unavailable(
          fmt::format("no worker has come for {} s: not {} [start one of them]", seconds, names));
    }
    return Unavailable(
        fmt::format("no worker is left, and none has come back for {} s; the last: {} [start a "
                    "worker again]",
                    seconds, last_loss_.message()));
  }
  return {};
}

Result<bool> Coordinator::WaitOver(Duration wait) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, DeadlineAfter(wait), [this] { return recovering_ || OverLocked(); });
  COHORT_RETURN_IF_ERROR(server_loss_);
  COHORT_RETURN_IF_ERROR(journal_failure_);
  if (OverLocked()) {
    const bool left = std::any_of(again_.begin(), again_.end(),
                                  [this](const auto& due) { return !IsOver(due.first); });
    return left ? Result<bool>(Unavailable(
                      "the servers were rolled back when the workers had ended, and nobody is left "
                      "to train the steps since again [restart the job, which goes on from its "
                      "last save]"))
                : Result<bool>(true);
  }
  COHORT_RETURN_IF_ERROR(CheckLonely());
  return false;
}

EpochCoverage Coordinator::CoverageOf(const EpochKey& key, const Epoch& epoch) const {
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
      std::chrono::duration<double>(std::chrono::steady_clock::now() - epoch.begun).count());
  return coverage;
}

void Coordinator::ReportIfOver(const EpochKey& key, Epoch& epoch) {
  const EpochCoverage coverage = CoverageOf(key, epoch);
  if (epoch.reported || coverage.seen < coverage.examples) {
    return;
  }
  epoch.reported = true;
  epoch.seconds = coverage.seconds;
  options_.log.Info(fmt::format(
      "epoch {}: loss {:.4f}, {} of {} examples seen in {:.1f} s, {} steps, {} {}, {} handed out "
      "again",
      key.epoch, coverage.loss, coverage.seen, coverage.examples, coverage.seconds, coverage.steps,
      coverage.pieces, epoch.splits.has_value() ? "splits" : "rounds", coverage.reissued));
}

std::vector<EpochCoverage> Coordinator::coverage() const {
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
