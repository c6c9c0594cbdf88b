// SynchronousStrategy's state as saves and programs see it: values and slots of devices, the step,
// rows of sparse tables.

#include <algorithm>

#include "synchronous/synchronous_strategy.h"

namespace cohort {

// The host's copy is the bound parameters themselves.
Status SynchronousStrategy::PullState() {
  const auto on_host = std::ranges::find_if(
      copies_, [](const std::unique_ptr<DeviceCopy>& copy) { return !copy->apart(); });
  if (copies_.empty()) {
    return {};
  }
  DeviceCopy& copy = on_host == copies_.end() ? *copies_.front() : **on_host;
  // A copy to the host's own memory blocks, without a deadline, until the stream has come there.
  COHORT_RETURN_IF_ERROR(copy.Drain(options_.communication.timeout));
  copy.Pull();
  return copy.Drain(options_.communication.timeout)
      .Annotate("the state of " + copy.device()->name());
}

Status SynchronousStrategy::PushState() {
  for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
    copy->Push();
    COHORT_RETURN_IF_ERROR(copy->Drain(options_.communication.timeout)
                               .Annotate("the state of " + copy->device()->name()));
  }
  return {};
}

Status SynchronousStrategy::SetStep(std::int64_t step) {
  if (step < 0) {
    return InvalidArgument("SetStep to " + std::to_string(step));
  }
  step_ = step;
  if (rows_ != nullptr) {
    rows_->Forget();
  }
  return {};
}

// Of an error that may be the end of a server, and of the job; of others nobody need hear.
Status SynchronousStrategy::ExplainServers(const Status& status) {
  const bool of_a_peer = status.code() == StatusCode::kUnavailable ||
                         status.code() == StatusCode::kAborted ||
                         status.code() == StatusCode::kDeadlineExceeded;
  return of_a_peer ? membership_->Explain(status) : status;
}

Status SynchronousStrategy::SaveTable(int table, FileSystem& files, const std::string& path) {
  Require(rows_ != nullptr, "a table of the bound parameters");
  const Status status = rows_->Save(table, files, path);
  return rows_->frozen() ? status : ExplainServers(status);  // the job is another thread's
}

Status SynchronousStrategy::SaveTableChanges(int table, FileSystem& files,
                                             const std::string& path) {
  Require(rows_ != nullptr, "a table of the bound parameters");
  return rows_->SaveChanges(table, files, path);
}

Result<bool> SynchronousStrategy::FreezeTables() {
  if (rows_ == nullptr) {
    return false;
  }
  const Result<bool> frozen = rows_->Freeze(step_);
  return frozen.ok() ? frozen : Result<bool>(ExplainServers(frozen.status()));
}

Status SynchronousStrategy::ThawTables(bool saved) {
  Require(rows_ != nullptr, "ThawTables after FreezeTables");
  return rows_->Thaw(saved);
}

Status SynchronousStrategy::LoadTable(int table, FileSystem& files,
                                      const std::vector<std::string>& chain) {
  Require(rows_ != nullptr, "a table of the bound parameters");
  rows_loaded_ = true;
  return ExplainServers(rows_->Load(table, files, chain));
}

}  // namespace cohort
