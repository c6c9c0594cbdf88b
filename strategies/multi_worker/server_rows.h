// ServerRows: sparse tables on parameter servers, of a job whose processes train in step.
//
// The processes' gradients for a step are one round (row_rounds.h): every row is updated once, with
// the sum over all processes in the order of their ranks. What is looked up has all rounds before
// it.
//
// Two things happen behind the training thread. Gradients of rows travel while those of parameters
// are reduced. And the rows of the next batch are looked up right behind them (row_lookahead.h),
// after this step's round, while parameters are updated and the next step begins.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_lookahead.h"
#include "parameter_server/rows/rows_ahead.h"
#include "synchronous/step_rows.h"

namespace cohort {

class ServerRows final : public StepRows {
 public:
  // What saves are made with, which may go on beside `client`.
  struct Saver {
    ps::Client& servers;
    ps::RowClient& rows;
  };
  // `client` and `saver` must outlive this, which is their only user. `rank` of `processes`.
  // `looks_ahead`: are the rows of the next batch looked up before they are asked for?
  ServerRows(ps::RowClient& client, Saver saver, const std::vector<TableSpec>& tables, int threads,
             int rank, int processes, bool looks_ahead = true);
  ~ServerRows() override;

  Status Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                std::span<float> rows) override;
  Status LookupOnce(int table, std::span<const std::uint64_t> ids, bool training,
                    RowsOnce& once) override;
  Status Apply(std::int64_t step, double divisor, const DistributedBatch* next) override;
  Status Finish() override;
  Result<bool> Freeze(std::int64_t step) override;
  Status Thaw(bool saved) override;
  bool frozen() const override { return frozen_; }
  std::optional<std::int64_t> saved_at() const override;
  Status SaveChanges(int table, FileSystem& files, const std::string& path) override;
  Status Save(int table, FileSystem& files, const std::string& path) override;
  Status Load(int table, FileSystem& files, const std::vector<std::string>& chain) override;
  void Forget() override;
  bool server_failed() const override { return server_failed_; }
  std::int64_t foreseen();  // lookups that were

 protected:
  void StartBatch(const DistributedBatch& batch) override;

 private:
  struct Round {
    std::int64_t step = 1;
    double divisor = 1;
    std::vector<ps::RowGradientBuffer> gradients;  // by table
    ps::RowLookahead::Lookups ahead;               // of `next`
    std::vector<data::Batch> next;
  };

  void Work();
  void Carry(Round& round);
  Status Pull(int table, std::span<const std::uint64_t> ids, bool training, std::span<float> rows);
  Status CheckFinite(int table, const ps::RowGradientBuffer& gradients) const;

  const int rank_;
  const int processes_;
  const bool looks_ahead_;

  std::mutex client_mutex_;  // held by who uses the client; guards what follows
  ps::RowClient& client_;
  std::atomic<bool> server_failed_ = false;
  std::uint64_t rounds_ = 0;  // pushed
  ps::RowLookahead lookahead_;
  ps::RowsAhead ahead_;  // of the batch after those rounds, whose number that is

  // Of who saves, between Freeze and Thaw; of the training thread otherwise.
  struct Snapshot {
    std::int64_t step = 0;
    std::uint64_t number = 0;
  };
  const Saver saver_;
  std::atomic<bool> frozen_ = false;
  Snapshot snapshot_;              // the last one
  std::optional<Snapshot> saved_;  // whole, since which the servers know the changes

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  Round round_;  // of the worker, while one is under way
  bool under_way_ = false;
  bool pushed_ = true;
  Status push_status_;
  bool stop_ = false;
  std::thread worker_;  // last: it uses the rest
};

}  // namespace cohort
