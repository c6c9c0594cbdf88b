#include "parameter_server/remote_rows.h"

namespace cohort::ps {

RemoteRows::RemoteRows(Job& job, const std::vector<TableSpec>& tables,
                       std::function<std::uint64_t()> round, const std::int64_t& step)
    : job_(job), round_(std::move(round)), step_(step), lookahead_(tables) {
  thread_ = std::thread([this] { Run(); });
}

RemoteRows::~RemoteRows() {
  job_.rows()->Abort(Cancelled("this process leaves"));
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

Status RemoteRows::Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                          std::span<float> rows) {
  Wait();
  if (training && lookahead_.Take(table, ids, rows)) {
    return {};
  }
  RowClient& client = *job_.rows();
  client.ReadAfter(round_());
  const Status status = client.Pull(table, ids, step_ + 1, training, rows);
  broken_ = broken_ || status.code() == StatusCode::kUnavailable;
  if (training && status.ok()) {
    lookahead_.Learn(table, ids);
  }
  return status;
}

void RemoteRows::StartBatch(const data::Batch& batch) {
  Wait();
  lookahead_.SetBatch({batch});
}

void RemoteRows::Forget() {
  Wait();
  lookahead_.SetBatch({});
  lookahead_.Forget();
}

void RemoteRows::LookAhead(const data::Batch& next, std::uint64_t round, std::int64_t step) {
  Wait();
  {
    const std::lock_guard lock(mutex_);
    next_ = {next};
    lookups_ = lookahead_.Foresee(next_);
    after_ = round;
    for_step_ = step + 1;
    under_way_ = !lookups_.empty();
  }
  changed_.notify_all();
}

void RemoteRows::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !under_way_; });
}

std::int64_t RemoteRows::foreseen() {
  Wait();
  return lookahead_.foreseen();
}

void RemoteRows::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopped_ || under_way_; });
    if (!under_way_) {
      return;
    }
    lock.unlock();
    RowClient& client = *job_.rows();
    client.ReadAfter(after_);
    lookahead_.Fetch(client, lookups_, for_step_);
    lookups_.clear();
    next_.clear();
    lock.lock();
    under_way_ = false;
    changed_.notify_all();
  }
}

}  // namespace cohort::ps
