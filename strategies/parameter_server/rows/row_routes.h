// RowRoutes: where a client takes the buckets of each table to be: at first their first servers
// (table_spec.h), and what servers say since (bucket_places.h).
//
// Thread rules: one thread at a time.

#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include "parameter_server/model/table_spec.h"

namespace cohort::ps {

class RowRoutes {
 public:
  RowRoutes(const std::vector<TableSpec>& tables, int servers)
      : servers_(servers), moved_(tables.size()) {
    for (const TableSpec& table : tables) {
      buckets_.push_back(table.buckets);
    }
  }

  int servers() const { return servers_; }
  int ServerOf(int table, std::uint32_t bucket) const {
    const std::vector<std::uint32_t>& of_table = moved_[static_cast<std::size_t>(table)];
    return of_table.empty()
               ? ps::ServerOf(bucket, servers_, buckets_[static_cast<std::size_t>(table)])
               : static_cast<int>(of_table[bucket]);
  }
  // Of a reply: a bucket and its server in turns. Internal: there are no such.
  Status Learn(int table, std::span<const std::uint32_t> moved) {
    std::vector<std::uint32_t>& of_table = moved_[static_cast<std::size_t>(table)];
    const std::uint32_t buckets = buckets_[static_cast<std::size_t>(table)];
    if (of_table.empty()) {
      of_table.resize(buckets);
      for (std::uint32_t b = 0; b < buckets; ++b) {
        of_table[b] = static_cast<std::uint32_t>(ps::ServerOf(b, servers_, buckets));
      }
    }
    for (std::size_t i = 0; i + 1 < moved.size(); i += 2) {
      if (moved[i] >= buckets || moved[i + 1] >= static_cast<std::uint32_t>(servers_)) {
        return Internal("a server says that bucket " + std::to_string(moved[i]) + " of " +
                        std::to_string(buckets) + " is at ps:" + std::to_string(moved[i + 1]));
      }
      of_table[moved[i]] = moved[i + 1];
    }
    return {};
  }

 private:
  const int servers_;
  std::vector<std::uint32_t> buckets_;             // by table
  std::vector<std::vector<std::uint32_t>> moved_;  // by table and bucket; empty: none has moved
};

// How long a bucket is looked for that is on its way from one server to another.
class Patience {
 public:
  explicit Patience(std::chrono::milliseconds most) : most_(most) { Begin(); }
  void Begin() {
    deadline_ = DeadlineAfter(most_);
    next_ = std::chrono::milliseconds(0);
  }
  // Before it is asked for again. DeadlineExceeded: `what` is nowhere.
  Status Wait(const std::string& what) {
    if (std::chrono::steady_clock::now() >= deadline_) {
      return DeadlineExceeded(what + " has been at no server for " + std::to_string(most_.count()) +
                              " ms");
    }
    std::this_thread::sleep_for(next_);
    next_ = std::min(2 * next_ + std::chrono::milliseconds(1), std::chrono::milliseconds(20));
    return {};
  }

 private:
  const std::chrono::milliseconds most_;
  Deadline deadline_;
  std::chrono::milliseconds next_{0};
};

}  // namespace cohort::ps
