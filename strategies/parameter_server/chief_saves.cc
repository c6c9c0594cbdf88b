#include "parameter_server/chief_saves.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <utility>

#include "parameter_server/chief/caught.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/variables/client.h"

namespace cohort::ps {
namespace {

constexpr const char* kPutOff =
    "the save that is due is put off until the next one is, training goes on: ";

// Of a server that is lost, or silent, or of another chief in this one's place.
bool IsOfALostProcess(const Status& status) {
  return status.code() == StatusCode::kUnavailable || status.code() == StatusCode::kAborted;
}

}  // namespace

ChiefSaves::ChiefSaves(Job& job, Log log, Hooks hooks)
    : job_(job), log_(std::move(log)), hooks_(std::move(hooks)) {}

void ChiefSaves::Bind(std::vector<TableSpec> tables, RemoteRows* rows) {
  tables_ = std::move(tables);
  rows_ = rows;
}

void ChiefSaves::SetPlan(SavePlan plan) {
  plan_ = std::move(plan);
  ExpectNext();
}

// ---- Saving -------------------------------------------------------------------------------------

void ChiefSaves::CountFromHere() {
  saved_ = job_.scheduler()->advance();
  ExpectNext();
}

void ChiefSaves::ExpectNext() {
  if (job_.scheduler() != nullptr) {
    const bool due = plan_.save && plan_.every_steps > 0;
    job_.scheduler()->CutDue(due ? std::optional(saved_.steps + plan_.every_steps) : std::nullopt);
  }
}

Status ChiefSaves::SaveIfDue() {
  if (!plan_.save) {
    return {};
  }
  const Scheduler::Advance now = job_.scheduler()->advance();
  const bool steps = plan_.every_steps > 0 && now.steps - saved_.steps >= plan_.every_steps;
  const bool epochs = plan_.every_epochs > 0 && now.epochs - saved_.epochs >= plan_.every_epochs;
  if (!steps && !epochs) {
    return {};
  }
  std::optional<Frozen> frozen;
  const auto freeze = [this, &frozen](const Scheduler::Cut& cut) -> Status {
    COHORT_ASSIGN_OR_RETURN(frozen, TryFreeze(cut, kPutOff));
    return {};
  };
  const auto late = [this, &now](const std::string& why) {
    saved_ = now;
    ExpectNext();
    ++failed_saves_;
    log_.Warning(kPutOff + why);
  };
  const auto begun = std::chrono::steady_clock::now();
  COHORT_RETURN_IF_ERROR(job_.BetweenUpdates(freeze, late));
  if (!frozen.has_value()) {
    return {};
  }
  CountPause(begun);
  return Save(std::move(*frozen));
}

void ChiefSaves::CountPause(std::chrono::steady_clock::time_point begun) {
  const std::chrono::duration<double> pause = std::chrono::steady_clock::now() - begun;
  ++pauses_.count;
  pauses_.seconds += pause.count();
  pauses_.longest = std::max(pauses_.longest, pause.count());
}

Status ChiefSaves::SaveCalls(const std::function<Status(std::int64_t calls)>& save,
                             Deadline deadline, std::optional<Status>* outcome) {
  Result<Frozen> frozen = Unavailable("a server was lost when the job was to be saved");
  std::int64_t over = 0;
  const auto begun = std::chrono::steady_clock::now();
  const Result<bool> cut = job_.BetweenCalls(
      [&](std::int64_t calls) {
        over = calls;
        frozen = Freeze({});
      },
      deadline);
  if (!cut.ok()) {
    *outcome = cut.status();
    return {};
  }
  if (!frozen.ok() && !IsOfALostProcess(frozen.status())) {
    *outcome = frozen.status();
    return Thaw();
  }
  COHORT_RETURN_IF_ERROR(frozen.status());
  CountPause(begun);
  const std::int64_t before = std::max(saved_step_, given_at_.value_or(-1));
  const std::optional<std::int64_t> given = std::exchange(given_at_, std::nullopt);
  const Status status = Write(
      *std::move(frozen), [&] { return save(over); }, outcome);
  // A save of a step that was saved before may have found its step there already.
  // Without `restore` there is no way back to any.
  const bool whole = outcome->has_value() && (*outcome)->ok();
  if (!whole || !plan_.restore || frozen_step_ <= before) {
    given_at_ = given_at_.has_value() ? given_at_ : given;
  }
  return status;
}

// The servers keep what they have at a point between two updates; the rest is done while the
// workers go on.
Result<ChiefSaves::Frozen> ChiefSaves::Freeze(const Scheduler::Cut& cut) {
  COHORT_RETURN_IF_ERROR(hooks_.finish_last_round());
  const Result<std::uint64_t> version = job_.client()->Freeze(++snapshots_);
  COHORT_RETURN_IF_ERROR(job_.Explain(version.status()));
  frozen_step_ = static_cast<std::int64_t>(*version);
  CountFromHere();
  return Frozen{.cut = cut, .course = job_.scheduler()->CourseAt(frozen_step_)};
}

Result<std::optional<ChiefSaves::Frozen>> ChiefSaves::TryFreeze(const Scheduler::Cut& cut,
                                                                const std::string& what) {
  Result<Frozen> frozen = Freeze(cut);
  if (frozen.ok()) {
    return std::optional<Frozen>(*std::move(frozen));
  }
  if (IsOfALostProcess(frozen.status())) {
    return frozen.status();
  }
  COHORT_RETURN_IF_ERROR(Thaw());
  CountFromHere();
  ++failed_saves_;
  log_.Warning(what + frozen.status().ToString());
  return std::optional<Frozen>();
}

// Where a server will not hear of that, the next snapshot takes the place of its own.
Status ChiefSaves::Thaw() {
  const Status thawed = job_.Explain(job_.client()->Thaw().status());
  return IsOfALostProcess(thawed) ? thawed : OkStatus();
}

Status ChiefSaves::Save(Frozen frozen) {
  const Scheduler::Cut cut = frozen.cut;
  std::optional<Status> outcome;
  COHORT_RETURN_IF_ERROR(Write(
      std::move(frozen), [&] { return plan_.save(cut.epoch.epoch, cut.batch); }, &outcome));
  if (!outcome->ok()) {
    ++failed_saves_;
    log_.Warning(
        "the save of step " + std::to_string(frozen_step_) +
        " has failed, training goes on, and the save before it counts: " + outcome->ToString());
  }
  return {};
}

// OK also where `save` failed, which is *outcome. That is there, too, where servers are lost behind
// it: what is whole on the disk counts, also if not all of them have been told that it is.
Status ChiefSaves::Write(Frozen frozen, const std::function<Status()>& save,
                         std::optional<Status>* outcome) {
  // Before the save has its name.
  Status saved = plan_.restore ? job_.scheduler()->Remember(std::move(frozen.course)) : OkStatus();
  if (saved.code() == StatusCode::kAborted) {
    return saved;  // another chief has taken this one's place
  }
  if (rows_ != nullptr) {
    rows_->Wait();
    job_.rows()->ReadSnapshot(snapshots_);
  }
  saving_ = true;
  written_tables_ = 0;
  if (saved.ok()) {
    saved = save();
  }
  saving_ = false;
  if (rows_ != nullptr) {
    job_.rows()->ReadSnapshot(0);
  }
  *outcome = saved;
  if (saved.ok()) {
    CountWhole();
  }
  // Files fail with the codes of servers, too: whether one is lost, the servers tell.
  COHORT_RETURN_IF_ERROR(Thaw());
  if (job_.trains()) {  // on the values that there are now, not on those that were saved
    COHORT_RETURN_IF_ERROR(hooks_.refresh());
  }
  return saved.ok() ? OkStatus() : ForgetFailed();
}

void ChiefSaves::CountWhole() {
  saved_step_ = frozen_step_;
  // Not of a save that found its step there already: rows may be other than they were then.
  if (rows_ != nullptr && written_tables_ == tables_.size()) {
    saved_rows_ = SavedRows{.step = frozen_step_, .snapshot = snapshots_};
  }
  if (plan_.restore) {
    initial_.reset();
  }
}

Status ChiefSaves::ForgetFailed() {
  if (!plan_.restore || saved_step_ == frozen_step_) {
    return {};
  }
  // In the journal the way back to no save does no harm, and is gone when it is written next.
  const Status forgotten = job_.scheduler()->Forget(frozen_step_);
  return forgotten.code() == StatusCode::kAborted ? forgotten : OkStatus();
}

Status ChiefSaves::Remember(std::int64_t step) {
  return plan_.restore ? job_.scheduler()->Remember(job_.scheduler()->CourseAt(step)) : OkStatus();
}

std::optional<std::int64_t> ChiefSaves::rows_saved_at() const {
  return saving_ && saved_rows_.has_value() ? std::optional(saved_rows_->step) : std::nullopt;
}

Result<const TableSpec*> ChiefSaves::FindTable(int table) const {
  if (rows_ == nullptr || table < 0 || static_cast<std::size_t>(table) >= tables_.size()) {
    return InvalidArgument("table " + std::to_string(table) + ": the bound parameters have " +
                           std::to_string(rows_ == nullptr ? 0 : tables_.size()) +
                           " here [a table of theirs, in the chief]");
  }
  return &tables_[static_cast<std::size_t>(table)];
}

Status ChiefSaves::SaveTable(int table, FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const TableSpec* const spec, FindTable(table));
  rows_->Wait();
  const Status status = ps::SaveTable(*job_.rows(), table, *spec, files, path);
  written_tables_ += status.ok() ? 1 : 0;
  return job_.Explain(status);
}

Status ChiefSaves::SaveTableChanges(int table, FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const TableSpec* const spec, FindTable(table));
  if (!rows_saved_at().has_value()) {
    return FailedPrecondition("table \"" + spec->name +
                              "\": there is no save whose changes these would be [SaveTable, or "
                              "where rows_saved_at says a step]");
  }
  job_.rows()->ReadSnapshot(snapshots_, saved_rows_->snapshot);
  const Status status =
      ps::SaveTable(*job_.rows(), table, *spec, files, path, RowFileKind::kChanges);
  job_.rows()->ReadSnapshot(snapshots_);
  written_tables_ += status.ok() ? 1 : 0;
  return job_.Explain(status);
}

Status ChiefSaves::LoadTable(int table, FileSystem& files, const std::vector<std::string>& chain,
                             bool before_training, bool* sent) {
  COHORT_ASSIGN_OR_RETURN(const TableSpec* const spec, FindTable(table));
  rows_->Forget();
  rows_loaded_ = rows_loaded_ || before_training;
  bool reached = false;
  const Status status = ps::LoadTable(*job_.rows(), table, *spec, files, chain,
                                      lost_ == nullptr ? nullptr : &lost_->servers, &reached);
  if (reached && sent != nullptr) {
    *sent = true;
  }
  if (reached && restored_.has_value()) {
    restored_->any = true;
    if (status.ok()) {
      restored_->tables.insert(table);
    } else {
      restored_->tables.erase(table);  // it may have been whole before
    }
  }
  return job_.Explain(status);
}

// ---- Going back ---------------------------------------------------------------------------------

void ChiefSaves::BeginWith(std::span<const float> values, std::span<const std::span<float>> slots,
                           std::int64_t step) {
  initial_ = Initial{.step = step};
  initial_->values.assign(values.begin(), values.end());
  for (const std::span<float> slot : slots) {
    initial_->slots.emplace_back(slot.begin(), slot.end());
  }
}

Result<std::int64_t> ChiefSaves::Restore(const Job::Lost* only) {
  lost_ = only;
  const Result<std::int64_t> step = RestoreNewest();
  lost_ = nullptr;
  return step;
}

Result<std::int64_t> ChiefSaves::RestoreNewest() {
  if (given_at_.has_value() && lost_ == nullptr) {
    return FailedPrecondition(
        "values or rows that the chief gave to the servers between two calls (PushState, "
        "LoadTable) are in no save, and lost [Coordinator::Save after that; restart the job, which "
        "goes on from its last save]");
  }
  Status none;
  if (plan_.restore) {
    const Result<std::int64_t> step = RestoreByPlan();
    if (step.status().code() != StatusCode::kNotFound) {
      return step;
    }
    none = step.status();
  }
  if (!initial_.has_value()) {
    return FailedPrecondition("the save that the job would go back to is gone" +
                              (none.message().empty() ? "" : ": " + none.message()));
  }
  if (rows_loaded_) {
    return FailedPrecondition(
        "the rows that were loaded before training began are lost, and there "
        "is no save of them [save while training]");
  }
  std::vector<std::span<float>> slots(initial_->slots.begin(), initial_->slots.end());
  COHORT_RETURN_IF_ERROR(Assign(initial_->values, slots, initial_->step));
  return initial_->step;
}

// NotFound: the plan has no save, and the servers have been given nothing. OK: all of one.
Result<std::int64_t> ChiefSaves::RestoreByPlan() {
  const auto restore = [this]() -> Result<std::int64_t> {
    try {
      return plan_.restore();
    } catch (const std::logic_error& error) {  // which would be thrown again
      return FailedPrecondition(std::string("SavePlan::restore has thrown: ") + error.what());
    }
  };
  restored_.emplace();
  const Result<std::int64_t> step = CaughtAsStatus(restore);
  const Restored given = *std::exchange(restored_, std::nullopt);
  if (!step.ok()) {
    return step.status().code() == StatusCode::kNotFound && given.any
               ? FailedPrecondition(
                     "SavePlan::restore has given the servers a part of a save, and then returned "
                     "NotFound: " +
                     step.status().message() + " [NotFound only where there is no save]")
               : step.status();
  }
  COHORT_RETURN_IF_ERROR(CheckWhole(given, *step));
  return *step;
}

// Servers without values would have the workers wait for them; tables without rows begin anew.
Status ChiefSaves::CheckWhole(const Restored& given, std::int64_t step) const {
  const std::string returned = "SavePlan::restore has returned step " + std::to_string(step);
  if (!given.step.has_value()) {
    return FailedPrecondition(returned + ", and given the servers no values [PushState in it]");
  }
  if (*given.step != step) {
    return FailedPrecondition(returned + ", and given the servers the values of step " +
                              std::to_string(*given.step) +
                              " [SetStep before PushState, and return that step]");
  }
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    if (!given.tables.contains(static_cast<int>(t))) {
      return FailedPrecondition(returned + ", and given the servers no rows of table \"" +
                                tables_[t].name + "\" [LoadTable of each table in it]");
    }
  }
  return {};
}

Status ChiefSaves::Assign(std::span<const float> values, std::span<const std::span<float>> slots,
                          std::int64_t step) {
  const auto version = static_cast<std::uint64_t>(step);
  const Status status = lost_ == nullptr
                            ? job_.client()->Assign(values, slots, version)
                            : job_.client()->AssignTo(lost_->servers, values, slots,
                                                      std::max(version, lost_->version));
  if (restored_.has_value()) {
    restored_->any = true;
    restored_->step = status.ok() ? std::optional(step) : std::nullopt;
  }
  return status;
}

}  // namespace cohort::ps
