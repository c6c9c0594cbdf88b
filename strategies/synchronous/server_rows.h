// ServerRows: sparse tables on parameter servers, of a job whose processes train in step.
//
// The processes' gradients for a step are one round (row_rounds.h): every row is updated once, with
// the sum over all processes in the order of their ranks. What is looked up has all rounds before
// it.

#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "parameter_server/row_client.h"
#include "synchronous/step_rows.h"

namespace cohort {

class ServerRows final : public StepRows {
 public:
  // `client` must outlive this. `rank` of `processes`.
  ServerRows(ps::RowClient& client, std::vector<TableSpec> tables, int threads, int rank,
             int processes)
      : StepRows(std::move(tables), threads), client_(client), rank_(rank), processes_(processes) {}

  Status Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                std::span<float> rows) override;
  Status Apply(std::int64_t step, double divisor) override;
  Status Save(int table, FileSystem& files, const std::string& path) override;
  Status Load(int table, FileSystem& files, const std::string& path) override;

 private:
  ps::RowClient& client_;
  const int rank_;
  const int processes_;
  std::mutex mutex_;         // of replicas that look up
  std::uint64_t rounds_ = 0;  // pushed
};

}  // namespace cohort
