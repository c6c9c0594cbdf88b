#include "parameter_server/rows/bucket_balancer.h"

#include <string>
#include <utility>

namespace cohort::ps {
namespace {

// Buckets of a table, between two looks.
constexpr int kMovesAtATime = 8;

}  // namespace

BucketBalancer::BucketBalancer(std::chrono::milliseconds interval, int servers, Log log)
    : interval_(interval), servers_(servers), log_(std::move(log)) {}

bool BucketBalancer::Due() {
  const auto now = std::chrono::steady_clock::now();
  if (interval_.count() <= 0 || servers_ < 2 || now < due_) {
    return false;
  }
  due_ = now + interval_;
  return true;
}

Status BucketBalancer::Balance(RowClient& rows, std::span<const TableSpec> tables) {
  loads_.resize(tables.size());
  for (std::size_t t = 0; t < tables.size(); ++t) {
    const Status status = BalanceTable(rows, static_cast<int>(t), tables[t].name);
    if (status.code() == StatusCode::kUnavailable) {
      return status;
    }
    if (!status.ok()) {
      log_.Warning("buckets of table \"" + tables[t].name +
                   "\" stay where they are: " + status.ToString());
    }
  }
  return {};
}

Status BucketBalancer::BalanceTable(RowClient& rows, int table, const std::string& name) {
  COHORT_ASSIGN_OR_RETURN(const std::vector<BucketLoad> counts, rows.Loads(table));
  LoadMeter& load = loads_[static_cast<std::size_t>(table)];
  for (const BucketMoveTo& move : PlanMoves(load.Since(counts), servers_, kMovesAtATime)) {
    log_.Info("bucket " + std::to_string(move.bucket) + " of table \"" + name +
              "\" moves to ps:" + std::to_string(move.to));
    COHORT_RETURN_IF_ERROR(rows.Move(table, move.bucket, move.to));
    ++moved_;
  }
  return {};
}

}  // namespace cohort::ps
