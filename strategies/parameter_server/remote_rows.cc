#include "parameter_server/remote_rows.h"

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "guarded.h"

namespace cohort::ps {

RemoteRows::RemoteRows(std::function<RowClient&()> client, const std::vector<TableSpec>& tables,
                       std::function<std::uint64_t()> round, const std::int64_t& step)
    : client_(std::move(client)),
      round_(std::move(round)),
      step_(step),
      lookahead_(tables),
      ahead_(tables) {
  thread_ = std::thread([this] { Run(); });
}

RemoteRows::~RemoteRows() {
  client_().Abort(Cancelled("this process leaves"));
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

Status RemoteRows::Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                          std::span<float> rows) {
  if (training) {
    COHORT_ASSIGN_OR_RETURN(const bool taken, TakeAhead([&] {
                              return ahead_.Take(client_(), number_, table, ids, rows);
                            }));
    if (taken) {
      return {};
    }
  }
  COHORT_RETURN_IF_ERROR(Pull(table, ids, training, rows));
  if (training) {
    lookahead_.Learn(table, ids);
  }
  return {};
}

Status RemoteRows::LookupOnce(int table, std::span<const std::uint64_t> ids, bool training,
                              RowsOnce& once) {
  if (training) {
    COHORT_ASSIGN_OR_RETURN(const bool taken, TakeAhead([&] {
                              return ahead_.TakeOnce(client_(), number_, table, ids, once);
                            }));
    if (taken) {
      return {};
    }
  }
  const std::span<float> rows = once.Find(ids);
  COHORT_RETURN_IF_ERROR(Pull(table, once.ids, training, rows));
  if (training) {
    lookahead_.Learn(table, ids);
  }
  return {};
}

// Once what the step needs is there, or known not to be.
template <typename Take>
Result<bool> RemoteRows::TakeAhead(const Take& take) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !urgent_; });
  COHORT_RETURN_IF_ERROR(failed_);
  return take();
}

Status RemoteRows::Pull(int table, std::span<const std::uint64_t> ids, bool training,
                        std::span<float> rows) {
  Wait();
  {
    const std::lock_guard lock(mutex_);
    COHORT_RETURN_IF_ERROR(failed_);
  }
  RowClient& client = client_();
  client.ReadAfter(round_());
  const Status status = client.Pull(table, ids, step_ + 1, training, rows);
  broken_ = broken_ || status.code() == StatusCode::kUnavailable;
  return status;
}

void RemoteRows::StartBatch(const data::Batch& batch, std::uint64_t number) {
  lookahead_.SetBatch({batch});
  number_ = number;
}

void RemoteRows::Forget() {
  Wait();
  lookahead_.SetBatch({});
  const std::lock_guard lock(mutex_);
  ahead_.Forget();
}

void RemoteRows::LookAhead(std::vector<NumberedBatch> next,
                           std::span<const RowClient::Gradients> pushed, std::uint64_t round,
                           std::int64_t step) {
  if (next.empty()) {
    Forget();
    return;
  }
  Wait();
  lookahead_.SetBatch({});
  {
    const std::lock_guard lock(mutex_);
    next_ = std::move(next);
    lookups_.clear();
    bool holds = false;
    for (const NumberedBatch& batch : next_) {
      lookups_.push_back(
          {.number = batch.number,
           .lookups = lookahead_.Foresee(std::span(&batch.batch, 1), lookups_.empty())});
      holds = holds || ahead_.Holds(batch.number);
    }
    pushed_.clear();
    for (const RowClient::Gradients& of_table : pushed) {
      if (holds) {
        const auto table = static_cast<std::size_t>(of_table.table);
        pushed_.resize(std::max(pushed_.size(), table + 1));
        pushed_[table].insert(pushed_[table].end(), of_table.ids.begin(), of_table.ids.end());
      }
    }
    after_ = round;
    for_step_ = step + 1;
    under_way_ = true;
    urgent_ = true;
  }
  changed_.notify_all();
}

void RemoteRows::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !under_way_; });
}

std::int64_t RemoteRows::foreseen() {
  const std::lock_guard lock(mutex_);
  return ahead_.taken();
}

std::int64_t RemoteRows::refreshed() {
  Wait();
  const std::lock_guard lock(mutex_);
  return ahead_.refreshed();
}

void RemoteRows::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopped_ || under_way_; });
    if (!under_way_) {
      return;
    }
    try {
      LookAhead(lock);
    } catch (const std::exception& error) {
      if (!lock.owns_lock()) {
        lock.lock();
      }
      ahead_.Drop();
      // Without memory for that lookups go to the servers by themselves.
      if (dynamic_cast<const std::bad_alloc*>(&error) == nullptr) {
        failed_ = StatusOf(error, "rows of the next batches, looked up ahead");
      }
    }
    lookups_.clear();
    next_.clear();
    urgent_ = false;
    under_way_ = false;
    changed_.notify_all();
  }
}

// `lock`: of the mutex; held, but while rows are pulled.
void RemoteRows::LookAhead(std::unique_lock<std::mutex>& lock) {
  if (!failed_.ok()) {
    return;
  }
  RowClient& client = client_();
  client.ReadAfter(after_);
  for (RowsAhead::Exchange& exchange : ahead_.Plan(lookups_, pushed_)) {
    lock.unlock();
    exchange.Run(client, for_step_);
    lock.lock();
    ahead_.Keep(std::move(exchange));
    urgent_ = false;
    changed_.notify_all();
  }
}

}  // namespace cohort::ps
