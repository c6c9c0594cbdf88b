// Flight records of a job's ranks, as `cohort trace` reads them.

#pragma once

#include <cohort/core/status.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace cohort::trace {

struct Operation {
  std::string op;
  std::string name;
  std::string dtype;
  std::string algorithm;
  std::string state;
  std::int64_t count = 0;
  std::int64_t bytes = 0;
  std::uint64_t sequence = 0;  // 0: not begun
  std::int64_t peer = -1;      // of Send and Receive
  std::int64_t queued_us = 0;  // microseconds since 1970
  std::int64_t started_us = 0;
  std::int64_t ended_us = 0;

  bool begun() const { return started_us != 0; }
  // Ranks whose operations are equal here are in the same one.
  std::string What() const;
  std::string Numbered() const;
};

struct FlightRecord {
  std::string path;
  std::string group;
  std::uint64_t generation = 0;
  int rank = 0;
  int size = 0;
  std::string task;
  std::string reason;
  std::string status;
  std::int64_t dumped_us = 0;
  std::vector<Operation> operations;

  // The operation that this rank entered last; nullptr: none.
  const Operation* Last() const;
  std::int64_t EndOf(const Operation& operation) const {
    return operation.ended_us != 0 ? operation.ended_us : dumped_us;
  }
};

// "rank 3 (worker:3)"
std::string RankName(int rank, const std::string& task);

// The records of one group and generation, by rank.
using Ranks = std::map<int, FlightRecord>;
using Groups = std::map<std::pair<std::string, std::uint64_t>, Ranks>;

Result<FlightRecord> ParseFlightRecord(const std::string& path, const std::string& text);
// InvalidArgument: of another job, or of a rank that is there.
Status AddTo(Groups& groups, FlightRecord record);
// Where each rank is, and who is behind.
void Print(const Ranks& ranks);

}  // namespace cohort::trace
