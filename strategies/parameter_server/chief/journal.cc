#include "parameter_server/chief/journal.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <cohort/core/temporary_name.h>
#include <cohort/io/crc32c.h>

#include <cohort/parameter_server.pb.h>

namespace cohort::ps {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr char kName[] = "chief.journal";

DueMessage ToMessage(const EpochKey& key, std::int64_t first_batch) {
  DueMessage message;
  message.set_dataset(static_cast<std::uint32_t>(key.dataset));
  message.set_epoch(key.epoch);
  message.set_first_batch(first_batch);
  return message;
}

EpochKey KeyOf(const DueMessage& message) {
  return {.dataset = static_cast<int>(message.dataset()), .epoch = message.epoch()};
}

SumsMessage ToMessage(const RoundSums& sums) {
  SumsMessage message;
  message.set_loss_sum(sums.loss_sum);
  message.set_weight(sums.weight);
  message.mutable_metric_sums()->Assign(sums.metric_sums.begin(), sums.metric_sums.end());
  return message;
}

RoundSums SumsOf(const SumsMessage& message) {
  return {.loss_sum = message.loss_sum(),
          .weight = message.weight(),
          .metric_sums = {message.metric_sums().begin(), message.metric_sums().end()}};
}

SplitsMessage ToMessage(const SplitQueue::Kept& kept) {
  SplitsMessage message;
  message.set_begin(kept.begin);
  message.set_end(kept.end);
  message.set_size(kept.size);
  message.set_next(kept.next);
  message.set_seen(kept.seen);
  message.set_reissued(kept.reissued);
  message.set_splits(kept.splits);
  for (const Split& split : kept.returned) {
    SplitMessage* const to = message.add_returned();
    to->set_id(split.id);
    to->set_begin(split.begin);
    to->set_end(split.end);
  }
  return message;
}

SplitQueue QueueOf(const SplitsMessage& message) {
  SplitQueue::Kept kept = {.begin = message.begin(),
                           .end = message.end(),
                           .size = std::max<std::int64_t>(message.size(), 1),
                           .next = message.next(),
                           .returned = {},
                           .seen = message.seen(),
                           .reissued = message.reissued(),
                           .splits = message.splits()};
  for (const SplitMessage& split : message.returned()) {
    kept.returned.push_back({.id = split.id(), .begin = split.begin(), .end = split.end()});
  }
  return SplitQueue(kept);
}

EpochMessage ToMessage(const EpochKey& key, const EpochCourse& epoch) {
  EpochMessage message;
  *message.mutable_of() = ToMessage(key, epoch.first_batch);
  message.set_batches(epoch.batches);
  message.set_steps(epoch.steps);
  *message.mutable_sums() = ToMessage(epoch.sums);
  message.set_over(epoch.seconds.has_value());
  message.set_seconds(epoch.seconds.value_or(
      std::chrono::duration<double>(SteadyClock::now() - epoch.begun).count()));
  message.set_reported(epoch.reported);
  if (epoch.splits.has_value()) {
    *message.mutable_splits() = ToMessage(epoch.splits->Keep());
  }
  return message;
}

EpochCourse EpochOf(const EpochMessage& message) {
  EpochCourse epoch = {
      .splits = {},
      .first_batch = message.of().first_batch(),
      .batches = message.batches(),
      .steps = message.steps(),
      .sums = SumsOf(message.sums()),
      .begun = SteadyClock::now() - std::chrono::duration_cast<SteadyClock::duration>(
                                        std::chrono::duration<double>(message.seconds())),
      .seconds = message.over() ? std::optional(message.seconds()) : std::nullopt,
      .reported = message.reported()};
  if (message.has_splits()) {
    epoch.splits.emplace(QueueOf(message.splits()));
  }
  return epoch;
}

RoundsMessage ToMessage(const RoundTable::Kept& kept) {
  RoundsMessage message;
  message.set_round(kept.round);
  message.set_last_round(kept.last_round);
  *message.mutable_last_total() = ToMessage(static_cast<const RoundSums&>(kept.last_total));
  const RoundCommit& commit = kept.last_total.commit;
  message.mutable_last_commit()->set_round(commit.round);
  message.mutable_last_commit()->set_attempt(static_cast<std::uint32_t>(commit.attempt));
  message.mutable_last_commit()->mutable_winners()->Assign(commit.winners.begin(),
                                                           commit.winners.end());
  message.set_superseded(kept.superseded);
  message.set_dropped(kept.dropped);
  for (const auto& [key, epoch] : kept.epochs) {
    RoundsMessage::Epoch* const to = message.add_epochs();
    *to->mutable_of() = ToMessage(key, epoch.first);
    to->set_next(epoch.next);
    to->set_end(epoch.end);
    *to->mutable_sums() = ToMessage(epoch.sums);
  }
  return message;
}

RoundTable RoundsOf(const RoundsMessage& message, int backup_workers) {
  RoundTable::Kept kept = {.epochs = {},
                           .round = message.round(),
                           .last_round = message.last_round(),
                           .last_total = {},
                           .superseded = message.superseded(),
                           .dropped = message.dropped()};
  static_cast<RoundSums&>(kept.last_total) = SumsOf(message.last_total());
  kept.last_total.commit = {
      .round = message.last_commit().round(),
      .attempt = static_cast<int>(message.last_commit().attempt()),
      .winners = {message.last_commit().winners().begin(), message.last_commit().winners().end()}};
  for (const RoundsMessage::Epoch& epoch : message.epochs()) {
    kept.epochs[KeyOf(epoch.of())] = {.first = epoch.of().first_batch(),
                                      .next = epoch.next(),
                                      .end = epoch.end(),
                                      .sums = SumsOf(epoch.sums())};
  }
  return {std::move(kept), backup_workers};
}

CourseMessage ToMessage(const Course& course) {
  CourseMessage message;
  message.set_step(course.step);
  message.set_digest(course.digest);
  for (const auto& [key, epoch] : course.epochs) {
    *message.add_epochs() = ToMessage(key, epoch);
  }
  if (course.rounds.has_value()) {
    *message.mutable_rounds() = ToMessage(course.rounds->Keep());
  }
  for (const auto& [key, first_batch] : course.again) {
    *message.add_again() = ToMessage(key, first_batch);
  }
  return message;
}

Course CourseOf(const CourseMessage& message, int backup_workers) {
  Course course = {.step = message.step(),
                   .digest = message.digest(),
                   .epochs = {},
                   .rounds = {},
                   .again = {},
                   .calls = 0};
  for (const EpochMessage& epoch : message.epochs()) {
    course.epochs.emplace(KeyOf(epoch.of()), EpochOf(epoch));
  }
  course.rounds.emplace(RoundsOf(message.rounds(), backup_workers));
  for (const DueMessage& due : message.again()) {
    course.again[KeyOf(due)] = due.first_batch();
  }
  return course;
}

std::string EpochRecord(std::uint64_t epoch) {
  JournalRecord record;
  record.set_epoch(epoch);
  return record.SerializeAsString();
}

std::string DatasetRecord(int dataset, const DatasetInfo& info) {
  JournalRecord record;
  OpenDatasetRequest* const to = record.mutable_dataset();
  to->set_dataset(static_cast<std::uint32_t>(dataset));
  to->set_fingerprint(info.fingerprint);
  to->set_examples(info.examples);
  to->set_batch_size(info.batch_size);
  return record.SerializeAsString();
}

std::string BegunRecord(const EpochKey& epoch, std::int64_t first_batch) {
  JournalRecord record;
  *record.mutable_begun() = ToMessage(epoch, first_batch);
  return record.SerializeAsString();
}

std::string WorkerRecord(const TaskId& task, std::optional<JournalState::End> end) {
  JournalRecord record;
  record.mutable_worker()->set_task(task.ToString());
  record.mutable_worker()->set_done(end == JournalState::End::kDone);
  record.mutable_worker()->set_lost(end == JournalState::End::kLost);
  return record.SerializeAsString();
}

std::string CourseRecord(const Course& course) {
  JournalRecord record;
  *record.mutable_course() = ToMessage(course);
  return record.SerializeAsString();
}

// Whether a sound header of a record (record_file.h) lies behind that byte.
bool RecordBeginsBehind(std::string_view bytes, std::uint64_t begin) {
  constexpr std::size_t kHeader = 12;
  for (std::size_t at = begin + 1; at + kHeader <= bytes.size(); ++at) {
    std::uint32_t sum = 0;
    std::memcpy(&sum, bytes.data() + at + 8, sizeof(sum));
    if (sum == io::MaskCrc(io::Crc32c(bytes.substr(at, 8)))) {
      return true;
    }
  }
  return false;
}

}  // namespace

Result<std::unique_ptr<Journal>> Journal::Open(FileSystem& files, const std::string& folder,
                                               int backup_workers) {
  std::unique_ptr<Journal> journal(new Journal(files, folder + "/" + kName, backup_workers));
  COHORT_RETURN_IF_ERROR(files.CreateDirectories(folder));
  if (files.Exists(journal->path_)) {
    COHORT_RETURN_IF_ERROR(journal->Read());
  }
  return journal;
}

// While it lives, the file is the calling thread's. Made and ended with the lock held.
class Journal::Turn {
 public:
  Turn(Journal& journal, std::unique_lock<std::mutex>& lock) : journal_(journal) {
    journal.turn_over_.wait(lock, [&journal] { return !journal.turn_taken_; });
    journal.turn_taken_ = true;
  }
  ~Turn() {
    journal_.turn_taken_ = false;
    ++journal_.turns_;
    journal_.turn_over_.notify_all();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Journal& journal_;
};

// What a crash has left is of one record, and reaches the end of the file: behind it no record
// begins, at whatever byte. Replace's part of the file was whole when it got its name.
Status Journal::Read() {
  const auto damaged = [this](const Status& why) {
    return DataLoss("the chief's journal is damaged: " + why.message() + " [end the job, delete " +
                    path_ + ", and start the job again, which goes on from its last save]");
  };
  COHORT_ASSIGN_OR_RETURN(const auto reader,
                          io::RecordReader::Open(files_, path_, io::Compression::kNone));
  for (;;) {
    const std::uint64_t begin = reader->offset();
    const std::int64_t ordinal = reader->ordinal();
    const Result<std::optional<std::string_view>> next = reader->Next();
    if (!next.ok()) {
      if (next.status().code() != StatusCode::kDataLoss) {
        return next.status();
      }
      COHORT_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(files_, path_));
      if (state_.epoch == 0 || RecordBeginsBehind(bytes, begin)) {
        return damaged(next.status());
      }
      return {};
    }
    if (!next->has_value()) {
      return state_.epoch == 0 ? damaged(DataLoss(path_ + " has no record of a job")) : OkStatus();
    }
    if (!Take(**next)) {
      return damaged(DataLoss(path_ + ", record " + std::to_string(ordinal) +
                              ": no record of a chief's journal"));
    }
  }
}

bool Journal::Take(std::string_view bytes) {
  JournalRecord record;
  if (!record.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return false;
  }
  if (record.has_dataset()) {
    const std::size_t index = record.dataset().dataset();
    if (index > 1'000'000) {
      return false;
    }
    state_.datasets.resize(std::max(state_.datasets.size(), index + 1));
    state_.datasets[index] = {.fingerprint = record.dataset().fingerprint(),
                              .examples = record.dataset().examples(),
                              .batch_size = record.dataset().batch_size()};
  } else if (record.has_begun()) {
    state_.begun.emplace(KeyOf(record.begun()), record.begun().first_batch());
  } else if (record.has_worker()) {
    const Result<TaskId> task = TaskId::Parse(record.worker().task());
    if (!task.ok()) {
      return false;
    }
    if (record.worker().done() || record.worker().lost()) {
      state_.ended[*task] =
          record.worker().done() ? JournalState::End::kDone : JournalState::End::kLost;
    } else {
      state_.ended.erase(*task);
    }
  } else if (record.has_course()) {
    state_.courses.push_back(CourseOf(record.course(), backup_workers_));
  } else if (record.epoch() != 0) {
    state_.epoch = record.epoch();
  } else {
    return false;
  }
  return true;
}

JournalState Journal::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

// Another chief's file has a later epoch; or is no more, where its job is over.
Status Journal::CheckMine(std::uint64_t epoch) const {
  if (!files_.Exists(path_)) {
    return Aborted(path_ + " is gone: another chief has taken this one's place, and its job is " +
                   "over, or somebody has deleted it");
  }
  Journal there(files_, path_, backup_workers_);
  COHORT_RETURN_IF_ERROR(there.Read());
  return there.state_.epoch > epoch
             ? Aborted(path_ + " is that of another chief, which has taken this one's place")
             : OkStatus();
}

// The writer writes into the file that has taken the place of the one before.
Result<std::unique_ptr<io::RecordWriter>> Journal::WriteAnew(const JournalState& state,
                                                             bool replaces_mine) const {
  const std::string temporary = TemporaryName(path_);
  std::unique_ptr<io::RecordWriter> writer;
  const auto write = [&]() -> Status {
    COHORT_ASSIGN_OR_RETURN(writer, io::RecordWriter::Create(files_, temporary));
    COHORT_RETURN_IF_ERROR(writer->Write(EpochRecord(state.epoch)));
    for (std::size_t d = 0; d < state.datasets.size(); ++d) {
      if (state.datasets[d].has_value()) {
        COHORT_RETURN_IF_ERROR(
            writer->Write(DatasetRecord(static_cast<int>(d), *state.datasets[d])));
      }
    }
    for (const auto& [epoch, first_batch] : state.begun) {
      COHORT_RETURN_IF_ERROR(writer->Write(BegunRecord(epoch, first_batch)));
    }
    for (const auto& [task, end] : state.ended) {
      COHORT_RETURN_IF_ERROR(writer->Write(WorkerRecord(task, end)));
    }
    for (const Course& course : state.courses) {
      COHORT_RETURN_IF_ERROR(writer->Write(CourseRecord(course)));
    }
    COHORT_RETURN_IF_ERROR(writer->Sync());
    if (replaces_mine) {
      COHORT_RETURN_IF_ERROR(CheckMine(state.epoch));
    }
    COHORT_RETURN_IF_ERROR(files_.Rename(temporary, path_));
    return files_.SyncDirectory(Folder());
  };
  if (const Status status = write(); !status.ok()) {
    (void)files_.RemoveAll(temporary);  // the error is the one before
    return status;
  }
  return writer;
}

Status Journal::Replace(std::unique_lock<std::mutex>& lock) {
  const JournalState state = state_;  // what is queued is in it
  const Ticket to = noted_;
  const bool replaces_mine = writer_ != nullptr;
  queue_.clear();
  lock.unlock();
  Result<std::unique_ptr<io::RecordWriter>> writer = WriteAnew(state, replaces_mine);
  lock.lock();
  failure_ = writer.status();
  if (writer.ok()) {
    writer_ = std::move(writer).value();
    on_disk_ = to;
  }
  return failure_;
}

// All that is queued, in one write. Behind half a record no other may follow.
Status Journal::Write(std::unique_lock<std::mutex>& lock) {
  if (!failure_.ok()) {
    return Replace(lock);
  }
  const std::vector<std::string> records = std::exchange(queue_, {});
  const Ticket to = noted_;
  io::RecordWriter& writer = *writer_;
  lock.unlock();
  Status status;
  for (const std::string& record : records) {
    if (status.ok()) {
      status = writer.Write(record);
    }
  }
  if (status.ok()) {
    status = writer.Sync();
  }
  lock.lock();
  failure_ = status;
  if (status.ok()) {
    on_disk_ = to;
  }
  return status;
}

Journal::Ticket Journal::Note(std::string record) {
  if (!over_) {
    Require(Take(record), "a record of this journal");
    queue_.push_back(std::move(record));
  }
  return ++noted_;
}

bool Journal::OnDisk(Ticket ticket) const {
  return over_ || ticket <= on_disk_ || (writer_ == nullptr && failure_.ok());
}

bool Journal::has(Ticket ticket) const {
  const std::lock_guard lock(mutex_);
  return OnDisk(ticket);
}

// Whoever finds nobody at the file writes for all who have noted something by then.
Status Journal::Await(Ticket ticket) {
  std::unique_lock lock(mutex_);
  while (!OnDisk(ticket)) {
    if (!turn_taken_) {
      const Turn turn(*this, lock);
      // Where Begin failed there is no file.
      return writer_ == nullptr ? failure_ : Write(lock);
    }
    turn_over_.wait(lock, [this, turns = turns_] { return turns_ != turns; });
  }
  return {};
}

std::string Journal::Folder() const { return path_.substr(0, path_.find_last_of('/')); }

// What a chief that was killed in Replace has left.
Status Journal::RemoveTemporaries() {
  const std::string prefix = std::string(kName) + ".tmp-";
  COHORT_ASSIGN_OR_RETURN(const std::vector<std::string> names, files_.List(Folder()));
  for (const std::string& name : names) {
    if (name.starts_with(prefix)) {
      COHORT_RETURN_IF_ERROR(files_.RemoveAll(Folder() + "/" + name));
    }
  }
  return {};
}

Status Journal::Begin(bool goes_on, std::uint64_t epoch) {
  std::unique_lock lock(mutex_);
  const Turn turn(*this, lock);
  if (!goes_on) {
    state_ = {};
    for (const std::string& record : queue_) {
      Require(Take(record), "a record that was taken before");
    }
  }
  state_.epoch = epoch;
  lock.unlock();
  const Status removed = RemoveTemporaries();
  lock.lock();
  COHORT_RETURN_IF_ERROR(removed);
  COHORT_RETURN_IF_ERROR(Replace(lock));
  // Who has noted something meanwhile was told that this writes it.
  return queue_.empty() ? OkStatus() : Write(lock);
}

Status Journal::Epoch(std::uint64_t epoch) {
  Ticket ticket = 0;
  {
    const std::lock_guard lock(mutex_);
    ticket = Note(EpochRecord(epoch));
  }
  return Await(ticket);
}

Journal::Ticket Journal::Dataset(int dataset, const DatasetInfo& info) {
  const std::lock_guard lock(mutex_);
  return Note(DatasetRecord(dataset, info));
}

Journal::Ticket Journal::Begun(const EpochKey& epoch, std::int64_t first_batch) {
  const std::lock_guard lock(mutex_);
  return Note(BegunRecord(epoch, first_batch));
}

Journal::Ticket Journal::Worker(const TaskId& task, std::optional<JournalState::End> end) {
  const std::lock_guard lock(mutex_);
  return Note(WorkerRecord(task, end));
}

Status Journal::Remember(const Course& course, std::span<const EpochKey> past) {
  std::unique_lock lock(mutex_);
  const Turn turn(*this, lock);
  for (const EpochKey& key : past) {
    state_.begun.erase(key);  // else a successor would take it for due
  }
  std::deque<Course> before = state_.courses;
  state_.courses.push_back(course);
  if (state_.courses.size() > kMaxCourses) {
    state_.courses.pop_front();
  }
  const Status status = over_ ? OkStatus() : Replace(lock);
  if (!status.ok()) {
    state_.courses = std::move(before);  // nothing is saved there, and older ones may be needed
  }
  return status;
}

Status Journal::GoBack(std::int64_t step) {
  std::unique_lock lock(mutex_);
  const Turn turn(*this, lock);
  const auto found = std::find_if(state_.courses.rbegin(), state_.courses.rend(),
                                  [step](const Course& course) { return course.step == step; });
  if (found == state_.courses.rend()) {
    return FailedPrecondition(path_ + " knows no way back to step " + std::to_string(step));
  }
  state_.courses.erase(found.base(), state_.courses.end());
  return over_ ? OkStatus() : Replace(lock);
}

Status Journal::Remove() {
  std::unique_lock lock(mutex_);
  const Turn turn(*this, lock);
  const std::uint64_t epoch = state_.epoch;
  lock.unlock();
  const bool there = files_.Exists(path_);
  const Status mine = there ? CheckMine(epoch) : OkStatus();
  lock.lock();
  COHORT_RETURN_IF_ERROR(mine);
  over_ = true;
  writer_.reset();
  lock.unlock();
  Status removed = there ? files_.RemoveAll(path_) : OkStatus();
  lock.lock();
  return removed;
}

}  // namespace cohort::ps
