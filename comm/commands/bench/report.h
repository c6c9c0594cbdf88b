// What the measurement says: lines of JSON, or the table that nccl-tests prints.

#pragma once

#include <cstdint>
#include <vector>

#include "core/commands/processes.h"
#include "options.h"
#include "subject.h"

namespace cohort::bench {

// One subject at one size.
struct Row {
  std::int64_t bytes = 0;
  std::vector<double> rounds;  // seconds: each round's median
  int iterations = 0;          // of a round
  std::int64_t wrong = 0;
  double waited = 0;  // with a late rank: seconds in operations, of those that wait
  double cpu = 0;     // and of cores, meanwhile

  double cpu_per_waiting_second() const { return waited > 0 ? cpu / waited : 0; }
  double seconds() const { return Median(rounds); }
};

// What a run comes to: Internal names the first of these whose results are wrong.
Status CheckResults(const std::vector<SubjectSpec>& specs, const std::vector<Row>& rows);

class Report {
 public:
  explicit Report(const Options& options) : options_(options) {}
  void Begin() const;
  // The rows of one size, by subject, cohort first. Prints at once.
  void Print(const std::vector<SubjectSpec>& specs, const std::vector<Row>& rows) const;

 private:
  const Options& options_;
};

}  // namespace cohort::bench
