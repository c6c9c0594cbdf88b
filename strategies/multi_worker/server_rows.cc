#include "multi_worker/server_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "parameter_server/payload.h"

namespace cohort {
namespace {

// The ids that a feature of a part of a batch holds; none where it cannot be ids.
std::span<const std::uint64_t> IdsOf(const data::Batch& part, const std::string& feature) {
  const auto found = part.features.find(feature);
  if (found == part.features.end() || found->second.dtype() != DType::kInt64) {
    return {};
  }
  const auto values = found->second.data<std::int64_t>();
  return {reinterpret_cast<const std::uint64_t*>(values.data()), values.size()};
}

}  // namespace

ServerRows::ServerRows(ps::RowClient& client, std::vector<TableSpec> tables, int threads, int rank,
                       int processes)
    : StepRows(std::move(tables), threads), rank_(rank), processes_(processes), client_(client) {
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
  batch_ = batch.replicas;
}

Status ServerRows::Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                          std::span<float> rows) {
  const std::lock_guard lock(client_mutex_);
  if (training && TakeForeseen(table, ids, rows)) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(client_.Pull(table, ids, step(), training, rows));
  if (training) {
    Learn(table, ids);
  }
  return {};
}

bool ServerRows::TakeForeseen(int table, std::span<const std::uint64_t> ids,
                              std::span<float> rows) {
  for (std::size_t i = 0; i < num_lookaheads_; ++i) {
    Lookahead& lookahead = lookaheads_[i];
    if (lookahead.table == table && std::ranges::equal(lookahead.ids, ids)) {
      std::ranges::copy(lookahead.rows.values(), rows.begin());
      ++foreseen_;
      return true;
    }
  }
  return false;
}

void ServerRows::Learn(int table, std::span<const std::uint64_t> ids) {
  for (const data::Batch& part : batch_) {
    for (const auto& [feature, values] : part.features) {
      if (!ids.empty() && std::ranges::equal(IdsOf(part, feature), ids)) {
        sources_.emplace(table, feature);
        return;
      }
    }
  }
}

// What a server would refuse, before any other process or parameter has seen this step's end.
Status ServerRows::CheckFinite(int table, const Rows& gradients) const {
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
  std::set<std::pair<int, std::string>> sources;
  {
    const std::lock_guard lock(client_mutex_);
    batch_.clear();
    sources = sources_;
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !under_way_; });  // what it does has a deadline
  round_.next = next == nullptr ? std::vector<data::Batch>() : next->replicas;
  round_.ahead.clear();
  for (const auto& [table, feature] : sources) {
    for (const data::Batch& part : round_.next) {
      if (const auto ids = IdsOf(part, feature); !ids.empty()) {
        round_.ahead.emplace_back(table, ids);
      }
    }
  }
  round_.step = step;
  round_.divisor = divisor;
  Status status;
  for (std::size_t t = 0; t < num_tables(); ++t) {
    Pending& pending = Gather(t);
    Rows& gradients = round_.gradients[t];
    std::swap(gradients.ids, pending.ids);
    std::swap(gradients.values, pending.values);
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
                           .values = round.gradients[t].values});
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
  num_lookaheads_ = 0;
  for (const auto& [table, ids] : round.ahead) {
    if (lookaheads_.size() == num_lookaheads_) {
      lookaheads_.emplace_back();
    }
    Lookahead& lookahead = lookaheads_[num_lookaheads_];
    lookahead.table = table;
    lookahead.ids.assign(ids.begin(), ids.end());
    const std::span<float> rows =
        lookahead.rows.Resize(ids.size() * static_cast<std::size_t>(SpecOf(table).dim));
    // Rows are made when their gradients come: a batch that never does leaves no trace. An error
    // is that of the lookup, if it comes to that.
    if (pushed && client_.Pull(table, ids, round.step + 1, /*training=*/false, rows).ok()) {
      ++num_lookaheads_;
    }
  }
  round.ahead.clear();
  round.next.clear();
}

void ServerRows::Forget() {
  const std::lock_guard lock(client_mutex_);
  num_lookaheads_ = 0;
}

std::int64_t ServerRows::foreseen() {
  const std::lock_guard lock(client_mutex_);
  return foreseen_;
}

Status ServerRows::Save(int table, FileSystem& files, const std::string& path) {
  const std::lock_guard lock(client_mutex_);
  return ps::SaveTable(client_, table, SpecOf(table), files, path);
}

Status ServerRows::Load(int table, FileSystem& files, const std::string& path) {
  const std::lock_guard lock(client_mutex_);
  return ps::LoadTable(client_, table, SpecOf(table), files, path);
}

}  // namespace cohort
