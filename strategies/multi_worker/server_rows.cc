#include "multi_worker/server_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "parameter_server/frames/payload.h"

namespace cohort {

ServerRows::ServerRows(ps::RowClient& client, Saver saver, const std::vector<TableSpec>& tables,
                       int threads, int rank, int processes, bool looks_ahead)
    : StepRows(tables, threads),
      rank_(rank),
      processes_(processes),
      looks_ahead_(looks_ahead),
      client_(client),
      lookahead_(tables),
      ahead_(tables),
      saver_(saver) {
  round_.gradients.resize(num_tables());
  worker_ = std::thread([this] { Work(); });
}

ServerRows::~ServerRows() {
  client_.Abort(Cancelled("this process leaves"));
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  worker_.join();
}

void ServerRows::StartBatch(const DistributedBatch& batch) {
  const std::lock_guard lock(client_mutex_);
  lookahead_.SetBatch(batch.replicas);
}

Status ServerRows::Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                          std::span<float> rows) {
  const std::lock_guard lock(client_mutex_);
  if (training && ahead_.Take(client_, rounds_, table, ids, rows)) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(Pull(table, ids, training, rows));
  if (training) {
    lookahead_.Learn(table, ids);
  }
  return {};
}

Status ServerRows::LookupOnce(int table, std::span<const std::uint64_t> ids, bool training,
                              RowsOnce& once) {
  const std::lock_guard lock(client_mutex_);
  if (training && ahead_.TakeOnce(client_, rounds_, table, ids, once)) {
    return {};
  }
  const std::span<float> rows = once.Find(ids);
  COHORT_RETURN_IF_ERROR(Pull(table, once.ids, training, rows));
  if (training) {
    lookahead_.Learn(table, ids);
  }
  return {};
}

// By who holds client_mutex_.
Status ServerRows::Pull(int table, std::span<const std::uint64_t> ids, bool training,
                        std::span<float> rows) {
  if (const Status pulled = client_.Pull(table, ids, step(), training, rows); !pulled.ok()) {
    server_failed_ = server_failed_ || pulled.code() == StatusCode::kUnavailable ||
                     pulled.code() == StatusCode::kAborted;
    return pulled;
  }
  return {};
}

// What a server would refuse, before any other process or parameter has seen this step's end.
Status ServerRows::CheckFinite(int table, const ps::RowGradientBuffer& gradients) const {
  const TableSpec& spec = SpecOf(table);
  ps::PayloadReader values(ps::Segments{std::as_bytes(std::span(gradients.values))});
  if (spec.not_finite != TableSpec::NotFinite::kReject ||
      ps::AllFinite(values, gradients.values.size())) {
    return {};
  }
  for (std::size_t i = 0; i < gradients.values.size(); ++i) {
    if (!std::isfinite(gradients.values[i])) {
      return InvalidArgument("table \"" + spec.name + "\": the gradient of id " +
                             std::to_string(gradients.ids[i / static_cast<std::size_t>(spec.dim)]) +
                             " holds NaN or infinity [lower the learning rate, or look for a "
                             "division by zero in the loss]");
    }
  }
  return {};
}

Status ServerRows::Apply(std::int64_t step, double divisor, const DistributedBatch* next) {
  std::vector<data::Batch> parts;
  if (next != nullptr && looks_ahead_) {
    parts = next->replicas;
  }
  ps::RowLookahead::Lookups ahead;
  {
    const std::lock_guard lock(client_mutex_);
    lookahead_.SetBatch({});
    ahead = lookahead_.Foresee(parts);
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !under_way_; });  // what it does has a deadline
  round_.next = std::move(parts);
  round_.ahead = std::move(ahead);
  round_.step = step;
  round_.divisor = divisor;
  Status status;
  for (std::size_t t = 0; t < num_tables(); ++t) {
    ps::RowGradientBuffer& gradients = round_.gradients[t];
    std::swap(gradients, Gather(t));
    if (status.ok()) {
      status = CheckFinite(static_cast<int>(t), gradients);
    }
  }
  Drop();
  COHORT_RETURN_IF_ERROR(status);
  under_way_ = true;
  pushed_ = false;
  changed_.notify_all();
  return {};
}

Status ServerRows::Finish() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return pushed_; });
  return push_status_;
}

void ServerRows::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || under_way_; });
    if (!under_way_) {
      return;
    }
    lock.unlock();
    Status status;
    try {
      Carry(round_);
    } catch (const std::exception& error) {
      status = Internal(std::string("rows of a step: ") + error.what());
    }
    lock.lock();
    if (!status.ok()) {
      push_status_ = status;
      pushed_ = true;
    }
    under_way_ = false;
    changed_.notify_all();
  }
}

// Lookups wait for the end of this: until then the client is in use.
void ServerRows::Carry(Round& round) {
  const std::lock_guard client_lock(client_mutex_);
  std::vector<ps::RowClient::Gradients> gradients;
  for (std::size_t t = 0; t < round.gradients.size(); ++t) {
    if (!round.gradients[t].ids.empty()) {
      gradients.push_back({.table = static_cast<int>(t),
                           .ids = round.gradients[t].ids,
                           .values = round.gradients[t].values,
                           .counts = round.gradients[t].counts});
    }
  }
  Status status = client_.PushPart(gradients, round.step, round.divisor,
                                   {.round = ++rounds_, .part = rank_, .parts = processes_});
  client_.ReadAfter(rounds_);
  const bool pushed = status.ok();
  {
    const std::lock_guard lock(mutex_);
    push_status_ = std::move(status);
    pushed_ = true;
  }
  changed_.notify_all();
  ps::RowsAhead::Batch after{.number = rounds_};
  if (pushed) {
    after.lookups = std::move(round.ahead);
  }
  ahead_.Fetch(client_, std::span(&after, 1), {}, round.step + 1);
  round.ahead.clear();
  round.next.clear();
}

void ServerRows::Forget() {
  const std::lock_guard lock(client_mutex_);
  ahead_.Forget();
}

std::int64_t ServerRows::foreseen() {
  const std::lock_guard lock(client_mutex_);
  return ahead_.taken();
}

Result<bool> ServerRows::Freeze(std::int64_t step) {
  {
    const std::lock_guard lock(client_mutex_);
    COHORT_RETURN_IF_ERROR(client_.AwaitRounds());
  }
  snapshot_ = {.step = step, .number = snapshot_.number + 1};
  COHORT_RETURN_IF_ERROR(saver_.servers.Freeze(snapshot_.number).status());
  saver_.rows.ReadSnapshot(snapshot_.number);
  frozen_ = true;
  return true;
}

Status ServerRows::Thaw(bool saved) {
  saver_.rows.ReadSnapshot(0);
  if (saved) {
    saved_ = snapshot_;
  }
  frozen_ = false;
  return saver_.servers.Thaw().status();
}

std::optional<std::int64_t> ServerRows::saved_at() const {
  return frozen_ && saved_.has_value() ? std::optional(saved_->step) : std::nullopt;
}

Status ServerRows::SaveChanges(int table, FileSystem& files, const std::string& path) {
  Require(saved_at().has_value(), "SaveChanges where there is a save that they are since");
  saver_.rows.ReadSnapshot(snapshot_.number, saved_->number);
  Status status =
      ps::SaveTable(saver_.rows, table, SpecOf(table), files, path, ps::RowFileKind::kChanges);
  saver_.rows.ReadSnapshot(snapshot_.number);
  return status;
}

Status ServerRows::Save(int table, FileSystem& files, const std::string& path) {
  if (frozen_) {
    return ps::SaveTable(saver_.rows, table, SpecOf(table), files, path);
  }
  const std::lock_guard lock(client_mutex_);
  return ps::SaveTable(client_, table, SpecOf(table), files, path);
}

Status ServerRows::Load(int table, FileSystem& files, const std::vector<std::string>& chain) {
  const std::lock_guard lock(client_mutex_);
  saved_.reset();
  return ps::LoadTable(client_, table, SpecOf(table), files, chain);
}

}  // namespace cohort
