// Journal: the file in which the chief of a job notes, before it happens, what another process in
// its place must know to go on with the job.
//
// Records in the TFRecord framing, of JournalRecord (parameter_server.proto). What requests depend
// on is noted at once, under whatever lock its order depends on, and waited for without: one write
// of the disk takes all that was noted until it began. A save replaces the file, whole or not at
// all, by what still counts; so does the first write after one that failed. What a crash has left
// of a last record is dropped.
//
// A chief that was replaced appends to a file that is no more, its successor having replaced it,
// and replaces or removes none of a later epoch: Aborted. What is noted before Begin is written by
// it.
//
// Thread rules: all methods from any thread. Those that note, and has, block for no disk; all
// others do, and nobody who notes waits for them.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/io/record_file.h>

#include "parameter_server/chief/course.h"

namespace cohort::ps {

struct JournalState {
  std::uint64_t epoch = 0;  // of the servers, the last that was begun, if it was; 0: no job
  std::vector<std::optional<DatasetInfo>> datasets;
  std::map<EpochKey, std::int64_t> begun;  // epochs of the data, with their first batches
  enum class End { kDone, kLost };
  std::map<TaskId, End> ended;  // workers
  std::deque<Course> courses;   // what can be gone back to, in order
};

class Journal {
 public:
  static constexpr std::size_t kMaxCourses = 8;

  // The state of the job whose chief kept the file last; nothing is written yet. DataLoss: the file
  // is damaged elsewhere than in what was appended last. `backup_workers`: of rounds.
  static Result<std::unique_ptr<Journal>> Open(FileSystem& files, const std::string& folder,
                                               int backup_workers);

  const std::string& path() const { return path_; }
  JournalState state() const;

  // Begins the file anew, of a job that goes on (with all that is known) or of another.
  Status Begin(bool goes_on, std::uint64_t epoch);
  Status Epoch(std::uint64_t epoch);

  // What was noted, in order: nothing that depends on it may happen before the disk has it.
  using Ticket = std::uint64_t;
  Ticket Dataset(int dataset, const DatasetInfo& info);
  Ticket Begun(const EpochKey& epoch, std::int64_t first_batch);
  Ticket Worker(const TaskId& task, std::optional<JournalState::End> end);
  // Whether the disk has it. Before Begin, which will write it, and after Remove: true.
  bool has(Ticket ticket) const;
  // Until the disk has it. An error: it may not have; the next write of any ticket tries again.
  Status Await(Ticket ticket);

  // The way back to it is there before the save is. After an error it is not remembered. `past`:
  // epochs of the data that are over in all that is remembered, and not in `course`.
  Status Remember(const Course& course, std::span<const EpochKey> past = {});
  // What was remembered since that step no longer counts, also where the file still has it for want
  // of room. FailedPrecondition: the step is not remembered; nothing has changed.
  Status GoBack(std::int64_t step);
  // The job is over.
  Status Remove();

 private:
  Journal(FileSystem& files, std::string path, int backup_workers)
      : files_(files), path_(std::move(path)), backup_workers_(backup_workers) {}

  // The file is one thread's at a time, which lets go of the lock while it reads and writes.
  class Turn;

  Status Read();
  std::string Folder() const;
  bool Take(std::string_view record);  // false: none of these records
  // With the lock held.
  Ticket Note(std::string record);
  bool OnDisk(Ticket ticket) const;
  // In a turn, with the lock held, which they let go of.
  Status Write(std::unique_lock<std::mutex>& lock);
  Status Replace(std::unique_lock<std::mutex>& lock);
  // In a turn, without the lock.
  Result<std::unique_ptr<io::RecordWriter>> WriteAnew(const JournalState& state,
                                                      bool replaces_mine) const;
  Status CheckMine(std::uint64_t epoch) const;
  Status RemoveTemporaries();

  FileSystem& files_;
  const std::string path_;
  const int backup_workers_;
  mutable std::mutex mutex_;
  JournalState state_;
  Ticket noted_ = 0;                // the last
  std::vector<std::string> queue_;  // what was noted since the last write began
  Ticket on_disk_ = 0;              // up to this one
  bool turn_taken_ = false;
  std::uint64_t turns_ = 0;  // that are over
  std::condition_variable turn_over_;
  std::unique_ptr<io::RecordWriter> writer_;  // from Begin on; used by who has the turn
  Status failure_;                            // of the last write; none follows, but a replacement
  bool over_ = false;
};

}  // namespace cohort::ps
