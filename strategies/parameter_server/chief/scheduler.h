// Scheduler: hands out the data of a parameter-server job, or the calls of its functions, and knows
// when the job is over. It lives in the chief's process. What a program calls there, Coordinator
// (cohort/strategies/coordinator.h), is a view of it (remote_functions.h).
//
// When the servers are rolled back to a save, it goes back to where it was then. Workers need not:
// who asks for an epoch is given first what is left of earlier ones.
//
// What another chief would have to know is noted in a journal, and nothing that depends on it
// leaves this before the disk has it: no piece of an epoch, nor a word on a data set or on the end
// of a worker. What waits for the disk does so without the lock, so that all else is answered
// meanwhile.
//
// State without a network; the service around it, and the workers' side of it, are in
// scheduler_service.h.
//
// Thread rules: all methods from any thread. Calls that wait do so for at most the time given.

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/clock.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>

#include <cohort/strategies/parameter_server.h>

#include "parameter_server/chief/closure_queue.h"
#include "parameter_server/chief/course.h"
#include "parameter_server/chief/journal.h"
#include "parameter_server/chief/worker_table.h"

namespace cohort::ps {

// Where the servers are. Each roll-back begins another epoch of theirs (epoch_gate.h).
struct ServerView {
  std::uint64_t epoch = 0;  // 0: not known yet
  bool recovering = false;  // one is lost
  std::vector<std::string> addresses;
  std::string why;                // recovering: what became of it
  std::uint64_t rolled_back = 0;  // the last epoch that began with a roll-back
};

// A split that its worker has finished, and what its steps came to. id 0: none.
struct FinishedSplit {
  std::int64_t id = 0;
  std::int64_t epoch = -1;  // that it is of; -1: that which is asked for
  std::int64_t steps = 0;
  RoundSums sums;
};

// kStale: the servers are in another epoch than the sender, or are being rolled back.
enum class Progress { kWait, kGo, kOver, kStale };
struct SplitReply {
  Progress progress = Progress::kWait;
  Split split;
  std::int64_t epoch = 0;  // that it is of
};
struct RoundReply {
  Progress progress = Progress::kWait;
  RoundPart part;
};
struct FinishReply {
  Progress progress = Progress::kWait;  // kOver: superseded
  RoundTotal total;
};
struct ClosureReply {
  Progress progress = Progress::kWait;
  Closure closure;
};

struct SchedulerOptions {
  std::vector<TaskId> workers;
  // How long a job without any worker waits for one to come back.
  std::chrono::milliseconds rejoin_timeout{300'000};
  int backup_workers = 0;  // of rounds
  // A worker whose process lives, and which has shown no progress for so long while others wait for
  // it, is given up; 0: never. Not the one that coordinates as well.
  std::chrono::milliseconds step_timeout{0};
  std::optional<TaskId> self;
  // A client that is done, lost or replaced: nothing more of it counts. From any thread.
  std::function<void(std::uint64_t client)> on_gone;
  std::uint64_t first_client = 1;  // another scheduler's are far away
  Journal* journal = nullptr;      // where to note what another chief would have to know
  Log log;
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);

  // In the place of a scheduler that is gone, whose journal had this: before anything else.
  void Succeed(const JournalState& state);
  // From now on work is handed out; `step` updates were made before. After Succeed as RollBack,
  // where the other had come so far; `digest`: of the values, which are compared where it goes back
  // to those that training began with.
  Status Open(std::int64_t step, std::uint64_t digest = 0);

  // The job begins without this worker, unless it has come already: nobody waits for it. It may
  // come later.
  void Excuse(const TaskId& worker);
  // A new incarnation takes the place of the old one at once. Other calls of an incarnation that is
  // not, or no more, a worker's are Aborted. Returns what the servers are to know it by: clients
  // are numbered one after the other (retired_clients.h).
  Result<std::uint64_t> Attach(const Sender& sender);
  // FailedPrecondition if another process has other data under this number.
  Status OpenDataset(const std::string& who, int dataset, const DatasetInfo& info);
  // `leaves`: the worker wants no other split, kOver at once.
  Result<SplitReply> NextSplit(const Sender& sender, const EpochKey& epoch,
                               std::int64_t first_batch, const FinishedSplit& finished,
                               Duration wait, bool leaves = false);
  // What NextSplit does first: the split is finished. Repetitions, and splits of others, are
  // ignored.
  void Acknowledge(const Sender& sender, const EpochKey& epoch, const FinishedSplit& finished);
  Result<RoundReply> JoinRound(const Sender& sender, const EpochKey& epoch,
                               std::int64_t first_batch, Duration wait);
  Result<FinishReply> FinishRound(const Sender& sender, std::uint64_t round, int attempt,
                                  const RoundSums& sums, Duration wait);
  // What the worker holds beyond those that it `has`, or a further one.
  Result<ClosureReply> NextClosure(const Sender& sender, std::span<const std::int64_t> has,
                                   Duration wait);
  Status FinishClosure(const Sender& sender, std::int64_t id, Result<std::string> outcome);
  // From now on who asks for data gets this, which is an error. Within a cut: nobody has any then.
  void StopWork(const Status& why);
  // The worker needs no more data.
  Status Done(const Sender& sender);
  // What it held goes to the others.
  void Lost(const TaskId& worker, const Status& why);
  // A sign of life of the worker's training: it has been through so many steps.
  void Progressed(const Sender& sender, std::uint64_t steps);

  // Functions; what these mean is told in cohort/strategies/coordinator.h. Between OpenFunctions,
  // which FailedPrecondition refuses a second time, and the end. `recover`: where a server is lost,
  // Schedule, Join and Fetch call it, on their thread, and wait on; what it returns else is theirs,
  // as the deadline is, for what it waits for beside the servers.
  using Recover = std::function<Status(const Status& why, Deadline deadline)>;
  // `memory`: of calls that have returned since what can be gone back to.
  Status OpenFunctions(int max_attempts, int in_flight, Recover recover = {},
                       ClosureMemory memory = {});
  Result<std::shared_ptr<RemoteResult>> Schedule(std::string function, std::string argument,
                                                 std::vector<PerWorkerDataset> data,
                                                 std::size_t max_waiting, Deadline deadline);
  Status Join(Deadline deadline);
  bool Idle() const;
  Result<std::string> Fetch(const RemoteResult& result, Deadline deadline);
  // Begins no call until EndCallCut, and waits until those that were begun are over: so many, which
  // are the first ones. Else nothing is cut: nothing, where a server is lost (`recover` is not
  // called); a call's error, as of Join; or what ended the wait.
  Result<std::optional<std::int64_t>> BeginCallCut(Deadline deadline);
  void EndCallCut();
  // Until no call that had returned before a roll-back has still to run again.
  Status AwaitCallsAgain(Deadline deadline);
  std::size_t calls_again() const;  // that have
  // What waits is cancelled, but for those.
  void CloseFunctions();
  // The job has failed: Schedule, Join and Fetch no longer wait.
  void Fail(const Status& why);
  Status failure() const;  // OK: it has not

  // Servers. The first view, and what becomes of it: from ServerLost on nothing is handed out, and
  // waits in the chief end with `why`, until RollBack.
  // `why`: nothing is handed out before Open, because of that.
  void SetView(std::uint64_t epoch, std::vector<std::string> addresses, std::string why = {});
  void ServerLost(const Status& why);
  bool recovering() const;
  // Until it is another one than that, or the time is over.
  ServerView AwaitView(std::uint64_t epoch, bool recovering, Duration wait) const;
  // In a cut, where the servers' values are of `step`.
  Course CourseAt(std::int64_t step) const;
  // Values of a course's step can be gone back to, as those of Open can. Called before they are
  // saved, by one thread at a time. Work is handed out while the journal is written.
  Status Remember(Course course);
  // What was remembered last, where that is of this step: it was not saved after all. After an
  // error, of the journal, it is forgotten here.
  Status Forget(std::int64_t step);
  // Servers that were lost have the values of `step` again, the others go on; so does the work.
  Status GoOn(std::optional<std::int64_t> step, std::uint64_t epoch,
              std::vector<std::string> addresses);
  // That workers have finished since.
  std::int64_t StepsSince(std::int64_t step) const;
  // The servers have the values of `step` again. FailedPrecondition if that is not remembered, or
  // if workers have gone on to another data set since.
  Status RollBack(std::int64_t step, std::uint64_t epoch, std::vector<std::string> addresses);

  // A cut is to come when workers have finished so many steps (advance): splits get shorter as that
  // comes nearer, so that it waits for single batches, and WaitOver returns at once then. Nothing:
  // none is.
  void CutDue(std::optional<std::int64_t> steps);
  // A point between two updates: everything before (epoch, batch) is done, nothing after has begun.
  struct Cut {
    EpochKey epoch;
    std::int64_t batch = 0;
  };
  // Hands out nothing new until EndCut, and waits until what was handed out is finished. Nothing:
  // the time is over, call again.
  Result<std::optional<Cut>> BeginCut(Duration wait);
  void EndCut();
  // The longest that a worker was at a split, or a round, so far; and who is at one, for messages.
  Duration longest_piece() const;
  std::string AtWork() const;
  // Workers that have come, and are neither done nor lost.
  std::size_t workers() const;
  // Waits what a lost worker held for somebody to take it?
  bool WorkIsBack() const;
  // Are all workers done, or lost?
  bool WorkersHaveLeft() const;
  // The last synchronous round that is complete; 0: none. Servers may have to be told yet.
  std::uint64_t LastRound(RoundCommit* commit) const;
  // Steps that workers have finished, and epochs that are over.
  struct Advance {
    std::int64_t steps = 0;
    std::int64_t epochs = 0;
  };
  Advance advance() const;

  // Waits until every worker is done or lost and at least one is done (true), or the time is over,
  // or a cut is due (false). Unavailable if there has been no worker for rejoin_timeout.
  Result<bool> WaitOver(Duration wait);
  // Calls that wait, and later ones, no longer do.
  void Stop();
  std::vector<EpochCoverage> coverage() const;

 private:
  using Epoch = EpochCourse;

  // With the lock held.
  bool Pause(std::unique_lock<std::mutex>& lock, Deadline deadline);
  Result<Epoch*> FindEpoch(std::unique_lock<std::mutex>& lock, const EpochKey& key,
                           std::int64_t first_batch, bool rounds, bool* waited);
  Status NoteDataset(std::unique_lock<std::mutex>& lock, int dataset, const DatasetInfo& info);
  void Release(const TaskId& worker, const Status& why);
  // A process has the place of what the worker was `before`.
  void Welcome(const TaskId& worker, WorkerTable::Phase before);
  std::uint64_t LostNow(const TaskId& task, const Status& why);  // the client that is gone; 0: none
  std::vector<TaskId> Awaited() const;
  std::uint64_t GiveUpHanging();  // likewise
  // The client, of whom Gone is to tell: until it has, there is no cut.
  std::uint64_t Leaving(std::uint64_t client);
  // Both let go of the lock; Gone for good. `ends`: the disk has them then, also where nobody is
  // gone.
  void AwaitEnds(std::unique_lock<std::mutex>& lock);
  void Gone(std::unique_lock<std::mutex>& lock, std::uint64_t client, bool ends = false);
  template <typename Ready>
  Status Await(std::unique_lock<std::mutex>& lock, Deadline deadline, const char* what,
               const Ready& ready, bool recovers = true);
  void WarnOfForgotten();
  Status CheckRemembered(const Course& course) const;
  bool Stale(const Sender& sender) const { return recovering_ || sender.epoch != view_.epoch; }
  Result<EpochKey> Due(const EpochKey& asked, std::int64_t* first_batch);
  bool IsOver(const EpochKey& key) const;
  void FinishSplit(const TaskId& worker, const EpochKey& key, const FinishedSplit& finished);
  std::int64_t MostOf(const Epoch& epoch, std::int64_t batch_size) const;  // examples of a split
  std::int64_t StepsFinished() const;
  bool CutIsDue() const { return cut_due_.has_value() && StepsFinished() >= *cut_due_; }
  bool UnderWay() const;
  EpochCoverage CoverageOf(const EpochKey& key, const Epoch& epoch) const;
  void ReportIfOver(const EpochKey& key, Epoch& epoch);
  // The last of this step, or rend().
  std::deque<Course>::const_reverse_iterator FindCourse(std::int64_t step) const;
  Status GoBack(std::unique_lock<std::mutex>& lock, std::int64_t step);  // lets go of it
  std::vector<EpochKey> ForgetPast();
  void NoteEnd(const TaskId& worker, std::optional<JournalState::End> end);

  const SchedulerOptions options_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  WorkerTable workers_;
  std::vector<std::optional<DatasetInfo>> datasets_;
  std::map<EpochKey, Epoch> epochs_;
  // Those before, which were over at the first of courses_: what they came to, and no more.
  std::map<EpochKey, EpochCoverage> past_;
  Advance past_advance_;
  std::optional<RoundTable> rounds_;      // from Open on
  std::optional<ClosureQueue> closures_;  // from OpenFunctions on
  Recover recover_;                       // not changed from then on
  bool closures_closed_ = false;
  bool forgotten_told_ = false;  // since the last save
  bool cutting_ = false;
  int leaving_ = 0;                      // clients that are gone, which on_gone has still to hear
  std::optional<std::int64_t> cut_due_;  // at so many steps
  bool cut_told_ = false;                // WaitOver has returned for it
  std::deque<Course> courses_;           // what can be gone back to
  std::map<EpochKey, std::int64_t> again_;  // due since a roll-back, with their first batches
  ServerView view_;
  bool recovering_ = false;
  Status server_loss_;
  Status failure_;
  Status stopped_work_;
  // What the journal has been told, and what depends on it may not happen yet.
  struct NotedDataset {
    DatasetInfo info;
    Journal::Ticket ticket = 0;
  };
  std::map<int, NotedDataset> noted_datasets_;
  std::map<EpochKey, Journal::Ticket> noted_epochs_;
  Journal::Ticket noted_ends_ = 0;  // the last, of a worker
  Status journal_failure_;
  bool stopped_ = false;
};

}  // namespace cohort::ps
