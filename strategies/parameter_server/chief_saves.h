// ChiefSaves: the saves that a job's chief makes between two updates, and the way back to them.
//
// A save is of a snapshot. The workers wait until the servers have begun to keep what they have at
// a point between two updates (Freeze), and go on while the plan's `save` reads that: what it has
// of the strategy meanwhile (PullState, SaveTable) is the snapshot's. A save that fails costs a
// warning and is counted; training goes on. Where servers are lost they get the newest save, by the
// plan's `restore`, or else what training began with, of which a copy is kept until there is a
// save.
//
// In the other processes there is no plan: tables can be saved and loaded, and that is all.
//
// Thread rules: one thread at a time; that of the strategy, but where functions are called.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/file_system.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/optim/table_spec.h>
#include <cohort/strategies/strategy.h>

#include "parameter_server/chief/course.h"
#include "parameter_server/chief/scheduler.h"
#include "parameter_server/job.h"
#include "parameter_server/remote_rows.h"

namespace cohort::ps {

class ChiefSaves {
 public:
  // What saving needs of the strategy.
  struct Hooks {
    std::function<Status()> finish_last_round;  // has servers apply it, where they may not have yet
    std::function<Status()> refresh;            // pulls the values that there are now
  };
  // `job` outlives this.
  ChiefSaves(Job& job, Log log, Hooks hooks);

  // The tables of the model, and their rows: null where there are none, or on a server.
  void Bind(std::vector<TableSpec> tables, RemoteRows* rows);
  void SetPlan(SavePlan plan);
  const SavePlan& plan() const { return plan_; }

  // ---- Saving ----

  // The next save is as far from here as the plan says.
  void CountFromHere();
  // What was saved is no base for changes any more: servers may be other ones.
  void ForgetRows() { saved_rows_.reset(); }
  // Saves, if the plan has it that as many steps or epochs are done since the last time.
  Status SaveIfDue();
  // A point between two updates, of which the servers keep what they had.
  struct Frozen {
    Scheduler::Cut cut;
    Course course;
  };
  Result<Frozen> Freeze(const Scheduler::Cut& cut);
  // The same; nullopt where it failed otherwise than by a lost process: counted, and warned of, as
  // `what` (of the job) that follows from it. The next save is as far from here as the plan says.
  Result<std::optional<Frozen>> TryFreeze(const Scheduler::Cut& cut, const std::string& what);
  // Carries out the plan for the last Freeze, which is over then. OK also where the save failed; an
  // error where a server, or this chief's place, is lost.
  Status Save(Frozen frozen);
  // Where functions are called: `save`, of a point between two calls, when so many are over. Its
  // error, or why there was no such point, is *outcome, and neither counted nor logged here. Else
  // than OK: of the servers, one of which may be lost, or this chief's place is; *outcome is there
  // where `save` was called before, and where it is OK that save is whole.
  Status SaveCalls(const std::function<Status(std::int64_t calls)>& save, Deadline deadline,
                   std::optional<Status>* outcome);
  // What the program has given to the servers at that step, while functions are called, is in no
  // save until one of a later step: there is no way back before.
  void Given(std::int64_t step) { given_at_ = step; }
  // Whoever finds the save that the program makes of `step` finds the way back to it, too.
  Status Remember(std::int64_t step);
  bool saving() const { return saving_; }  // the plan's `save` is running
  std::uint64_t failed() const { return failed_saves_; }
  // How long nothing was handed out because of saves: workers waited for as long, or less.
  struct Pauses {
    std::int64_t count = 0;
    double seconds = 0;
    double longest = 0;
  };
  const Pauses& pauses() const { return pauses_; }

  // Strategy's, of the rows of one table. InvalidArgument: there is no such table here.
  std::optional<std::int64_t> rows_saved_at() const;
  Status SaveTable(int table, FileSystem& files, const std::string& path);
  Status SaveTableChanges(int table, FileSystem& files, const std::string& path);
  // `before_training`: the rows are among those that training begins with. Sets *sent when servers
  // may have been given some.
  Status LoadTable(int table, FileSystem& files, const std::vector<std::string>& chain,
                   bool before_training, bool* sent = nullptr);

  // ---- Going back ----

  // What training begins with, beside the rows. No slots: as the optimizer has them.
  void BeginWith(std::span<const float> values, std::span<const std::span<float>> slots,
                 std::int64_t step);
  // Has all servers, or `only` those, go back to the newest save, or to what training began with;
  // its step. After an error they may have a part of it: nobody is to go on with that. It is what
  // the plan's `restore` has returned or thrown, or FailedPrecondition where that has not given the
  // servers all of a save: values of the step that it returns, and every table's rows.
  Result<std::int64_t> Restore(const Job::Lost* only);
  // To all servers; within Restore to those that are being restored, at the step of the others.
  Status Assign(std::span<const float> values, std::span<const std::span<float>> slots,
                std::int64_t step);

 private:
  void ExpectNext();
  Result<const TableSpec*> FindTable(int table) const;
  // What the plan's `restore` has given the servers so far.
  struct Restored {
    bool any = false;                  // also where that has failed
    std::optional<std::int64_t> step;  // of the values
    std::set<int> tables;              // whose rows
  };
  Result<std::int64_t> RestoreNewest();
  Result<std::int64_t> RestoreByPlan();
  Status CheckWhole(const Restored& given, std::int64_t step) const;
  void CountPause(std::chrono::steady_clock::time_point begun);
  Status Write(Frozen frozen, const std::function<Status()>& save, std::optional<Status>* outcome);
  void CountWhole();
  Status ForgetFailed();
  Status Thaw();

  Job& job_;
  const Log log_;
  const Hooks hooks_;
  std::vector<TableSpec> tables_;
  RemoteRows* rows_ = nullptr;

  SavePlan plan_;                 // in the chief
  Scheduler::Advance saved_;      // when plan_ was carried out last
  std::uint64_t snapshots_ = 0;   // so far; the number of the last one
  std::int64_t frozen_step_ = 0;  // of the last snapshot
  std::int64_t saved_step_ = -1;  // of the last one that was saved
  std::uint64_t failed_saves_ = 0;
  Pauses pauses_;
  bool saving_ = false;  // it is being carried out, of a snapshot
  // The last save whose rows are whole, and its snapshot, since which servers know the changes.
  struct SavedRows {
    std::int64_t step = 0;
    std::uint64_t snapshot = 0;
  };
  std::optional<SavedRows> saved_rows_;
  std::size_t written_tables_ = 0;  // of the save that is being carried out

  const Job::Lost* lost_ = nullptr;   // what is being restored, where that is not all
  std::optional<Restored> restored_;  // while the plan's `restore` runs
  // In the chief until the first save.
  struct Initial {
    std::vector<float> values;
    std::vector<std::vector<float>> slots;
    std::int64_t step = 0;
  };
  std::optional<Initial> initial_;
  bool rows_loaded_ = false;  // before training began
  std::optional<std::int64_t> given_at_;
};

}  // namespace cohort::ps
