// BucketBalancer: moves what is asked for on the busiest server to the idlest, a few buckets of
// each table at a time, now and then, in the process whose client may move them.
//
// Costs a call to every server for each table and interval; a move as much as its bucket's rows
// take twice on the wire.
//
// Thread rules: one thread, which is the client's while Balance runs.

#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/optim/table_spec.h>

#include "parameter_server/rows/bucket_balance.h"
#include "parameter_server/rows/row_client.h"

namespace cohort::ps {

class BucketBalancer {
 public:
  // An interval of 0: never.
  BucketBalancer(std::chrono::milliseconds interval, int servers, Log log);

  // Is it time again? If so, the next time is an interval from now.
  bool Due();
  // Between two updates or not; not while a snapshot is saved. Unavailable: a server does not
  // answer. What else goes wrong with a table costs a warning, and its buckets stay.
  Status Balance(RowClient& rows, std::span<const TableSpec> tables);
  std::int64_t moved() const { return moved_; }  // buckets, so far

 private:
  Status BalanceTable(RowClient& rows, int table, const std::string& name);

  const std::chrono::milliseconds interval_;
  const int servers_;
  const Log log_;
  std::chrono::steady_clock::time_point due_;
  std::vector<LoadMeter> loads_;  // of each table
  std::int64_t moved_ = 0;
};

}  // namespace cohort::ps
