// Scheduler: what a job begins with, where it can go back to, and where the servers are that do.

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "parameter_server/chief/scheduler.h"

namespace cohort::ps {

using std::chrono::steady_clock;

namespace {

Status NotBeenThere(std::int64_t step) {
  return FailedPrecondition("the last whole save is of step " + std::to_string(step) +
                            ", where this job has not been [restart the job, which goes on from "
                            "that save]");
}

}  // namespace

void Scheduler::Succeed(const JournalState& state) {
  std::unique_lock lock(mutex_);
  datasets_ = state.datasets;
  again_ = state.begun;
  courses_ = state.courses;
  for (const TaskId& back : workers_.Succeed(state.ended, steady_clock::now())) {
    NoteEnd(back, std::nullopt);
  }
  AwaitEnds(lock);
}

Status Scheduler::Open(std::int64_t step, std::uint64_t digest) {
  {
    std::unique_lock lock(mutex_);
    if (rounds_.has_value()) {
      return {};
    }
    COHORT_RETURN_IF_ERROR(workers_.CheckStranger());
    if (courses_.empty()) {
      Course course = {
          .step = step, .digest = digest, .epochs = {}, .rounds = {}, .again = {}, .calls = 0};
      course.rounds.emplace(static_cast<std::uint64_t>(step), workers_.Expected(),
                            options_.backup_workers);
      if (options_.journal != nullptr) {
        lock.unlock();
        const Status noted = options_.journal->Remember(course);
        lock.lock();
        COHORT_RETURN_IF_ERROR(noted);
        course.rounds->Restart(workers_.Expected());  // some may have ended meanwhile
      }
      rounds_ = course.rounds;
      courses_.push_back(std::move(course));
    } else {
      const auto course = FindCourse(step);
      if (course != courses_.rend() && course->digest != 0 && course->digest != digest) {
        return FailedPrecondition(
            "the job would begin anew with other values than the chief before this one had given "
            "it, and there is no save [give it the same seed and flags, or restart the job]");
      }
      COHORT_RETURN_IF_ERROR(GoBack(lock, step));
    }
    workers_.Moved(steady_clock::now());
    if (server_loss_.ok()) {  // else one was lost meanwhile
      recovering_ = false;
      view_.recovering = false;
      view_.why.clear();
    }
  }
  changed_.notify_all();
  return {};
}

void Scheduler::SetView(std::uint64_t epoch, std::vector<std::string> addresses, std::string why) {
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

void Scheduler::ServerLost(const Status& why) {
  {
    const std::lock_guard lock(mutex_);
    recovering_ = true;
    server_loss_ = why;
    view_.recovering = true;
    view_.why = why.message();
    if (closures_.has_value()) {
      closures_->ServerLost();
    }
  }
  changed_.notify_all();
}

bool Scheduler::recovering() const {
  const std::lock_guard lock(mutex_);
  return recovering_;
}

ServerView Scheduler::AwaitView(std::uint64_t epoch, bool recovering, Duration wait) const {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, DeadlineAfter(wait), [&] {
    return stopped_ || view_.epoch != epoch || view_.recovering != recovering;
  });
  return view_;
}

Course Scheduler::CourseAt(std::int64_t step) const {
  const std::lock_guard lock(mutex_);
  return {.step = step,
          .digest = 0,
          .epochs = epochs_,
          .rounds = rounds_,
          .again = again_,
          .calls = closures_.has_value() ? closures_->begun() : 0};
}

Status Scheduler::Remember(Course course) {
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
  if (closures_.has_value()) {
    closures_->Forget(courses_.front().calls);
    forgotten_told_ = false;
  }
  return {};
}

// An epoch that is over wherever the job can go back to is so for good: of it there is no more to
// copy, and to note, than what it came to. The last one of a course is what is under way there.
std::vector<EpochKey> Scheduler::ForgetPast() {
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

Status Scheduler::Forget(std::int64_t step) {
  std::int64_t before = 0;
  {
    const std::lock_guard lock(mutex_);
    if (courses_.size() < 2 || courses_.back().step != step) {
      return {};
    }
    courses_.pop_back();
    before = courses_.back().step;
  }
  return options_.journal == nullptr ? OkStatus() : options_.journal->GoBack(before);
}

Status Scheduler::RollBack(std::int64_t step, std::uint64_t epoch,
                           std::vector<std::string> addresses) {
  {
    std::unique_lock lock(mutex_);
    COHORT_RETURN_IF_ERROR(GoBack(lock, step));
    recovering_ = false;
    server_loss_ = OkStatus();
    workers_.Moved(steady_clock::now());
    view_ = {.epoch = epoch,
             .recovering = false,
             .addresses = std::move(addresses),
             .why = {},
             .rolled_back = epoch};
  }
  changed_.notify_all();
  return {};
}

Status Scheduler::GoOn(std::optional<std::int64_t> step, std::uint64_t epoch,
                       std::vector<std::string> addresses) {
  {
    const std::lock_guard lock(mutex_);
    if (step.has_value() && std::ranges::find(courses_, *step, &Course::step) == courses_.end()) {
      return NotBeenThere(*step);
    }
    recovering_ = false;
    server_loss_ = OkStatus();
    workers_.Moved(steady_clock::now());
    view_.epoch = epoch;
    view_.recovering = false;
    view_.addresses = std::move(addresses);
    view_.why.clear();
  }
  changed_.notify_all();
  return {};
}

std::int64_t Scheduler::StepsSince(std::int64_t step) const {
  const auto steps_of = [this](const std::map<EpochKey, Epoch>& epochs,
                               const std::optional<RoundTable>& rounds) {
    std::int64_t steps = 0;
    for (const auto& [key, epoch] : epochs) {
      if (!past_.contains(key)) {
        steps +=
            epoch.splits.has_value() || !rounds.has_value() ? epoch.steps : rounds->applied(key);
      }
    }
    return steps;
  };
  const std::lock_guard lock(mutex_);
  const auto course = std::ranges::find(courses_, step, &Course::step);
  return steps_of(epochs_, rounds_) -
         (course == courses_.end() ? 0 : steps_of(course->epochs, course->rounds));
}

std::deque<Course>::const_reverse_iterator Scheduler::FindCourse(std::int64_t step) const {
  return std::find_if(courses_.rbegin(), courses_.rend(),
                      [step](const Course& course) { return course.step == step; });
}

// Are the calls that run again from there on known?
Status Scheduler::CheckRemembered(const Course& course) const {
  if (!closures_.has_value() || closures_->CanRollBack(course.calls)) {
    return {};
  }
  return Unavailable(
      "calls that have returned since the save of step " + std::to_string(course.step) +
      " are not remembered any more, and cannot run again [Coordinator::Save more often, or raise "
      "ScheduleOptions::max_kept_calls and max_kept_bytes; the job itself, started again, goes on "
      "from that save]");
}

// What refuses it changes nothing; an error of the journal, or of calls that returned while it was
// written, what was remembered since. Meanwhile nothing is handed out: the servers are being rolled
// back.
Status Scheduler::GoBack(std::unique_lock<std::mutex>& lock, std::int64_t step) {
  const auto found = FindCourse(step);
  if (found == courses_.rend()) {
    return NotBeenThere(step);
  }
  const Course course = *found;
  COHORT_RETURN_IF_ERROR(CheckRemembered(course));
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
  courses_.erase(found.base(), courses_.end());
  if (options_.journal != nullptr) {
    lock.unlock();
    const Status noted = options_.journal->GoBack(step);
    lock.lock();
    COHORT_RETURN_IF_ERROR(noted);
    COHORT_RETURN_IF_ERROR(
        CheckRemembered(course));  // calls that were held have returned meanwhile
  }
  epochs_ = course.epochs;
  rounds_ = course.rounds;
  for (const auto& [key, of_key] : course.epochs) {
    if (past_.contains(key)) {
      epochs_.erase(key);
      rounds_->Forget(key);
    }
  }
  rounds_->Restart(workers_.Expected());
  again_ = std::move(again);
  cutting_ = false;
  if (closures_.has_value()) {
    if (const std::size_t calls = closures_->RollBack(course.calls); calls > 0) {
      options_.log.Warning(std::to_string(calls) +
                           " calls that had returned since run again, their results stay");
    }
  }
  return {};
}

}  // namespace cohort::ps
