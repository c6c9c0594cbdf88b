#include "synchronous/server_rows.h"

namespace cohort {

Status ServerRows::Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                          std::span<float> rows) {
  const std::lock_guard lock(mutex_);
  return client_.Pull(table, ids, step(), training, rows);
}

Status ServerRows::Apply(std::int64_t step, double divisor) {
  std::vector<ps::RowClient::Gradients> gradients;
  for (std::size_t t = 0; t < num_tables(); ++t) {
    const Pending& pending = Gather(t);
    if (!pending.ids.empty()) {
      gradients.push_back(
          {.table = static_cast<int>(t), .ids = pending.ids, .values = pending.values});
    }
  }
  const std::lock_guard lock(mutex_);
  const Status status = client_.PushPart(gradients, step, divisor,
                                         {.round = ++rounds_, .part = rank_, .parts = processes_});
  client_.ReadAfter(rounds_);
  Drop();
  return status;
}

Status ServerRows::Save(int table, FileSystem& files, const std::string& path) {
  const std::lock_guard lock(mutex_);
  return ps::SaveTable(client_, table, SpecOf(table), files, path);
}

Status ServerRows::Load(int table, FileSystem& files, const std::string& path) {
  const std::lock_guard lock(mutex_);
  return ps::LoadTable(client_, table, SpecOf(table), files, path);
}

}  // namespace cohort
