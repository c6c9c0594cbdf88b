// RemoteRows: the sparse tables of a model to its replica, their rows on the servers.
//
// The rows of batches to come are pulled behind a step's push, on a thread of its own, while
// parameters are exchanged and the next steps begin: first what the next one needs, for which its
// lookups wait, then the others', for which the next push waits. What is looked up is copied to the
// caller's memory, so that rows that are on their way to a device from there are not written again.
//
// Thread rules: Lookup where the replica's stream runs; the others from the strategy's thread,
// while no lookup is running.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include <cohort/data/dataset.h>
#include <cohort/optim/row_source.h>
#include <cohort/optim/table_spec.h>

#include "parameter_server/dataset.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_lookahead.h"
#include "parameter_server/rows/rows_ahead.h"

namespace cohort::ps {

class RemoteRows final : public RowSource {
 public:
  // `round`: what is looked up has all rounds up to it; 0: where steps are not rounds. `step`: the
  // strategy's. `client`: of the rows at the moment, on any thread.
  RemoteRows(std::function<RowClient&()> client, const std::vector<TableSpec>& tables,
             std::function<std::uint64_t()> round, const std::int64_t& step);
  ~RemoteRows() override;

  // Internal, of all of them, once looking ahead has thrown: a bug, of which it says what it was.
  // For want of memory to look ahead they ask the servers themselves.
  Status Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                std::span<float> rows) override;
  Status LookupOnce(int table, std::span<const std::uint64_t> ids, bool training,
                    RowsOnce& once) override;
  // Was a server not there, since the last call?
  bool TakeBroken() { return std::exchange(broken_, false); }

  // The batch that is trained on now, by its number where it has one.
  void StartBatch(const data::Batch& batch, std::uint64_t number);
  // It is over; and what was looked up ahead has been used, or is void.
  void Forget();
  // It is over, and these are the next ones: pulls their rows, with every round up to `round`, for
  // the steps from the one after `step` on. What is there of them already stays, but for rows that
  // have got the gradients `pushed`, by this process since the last call, which are pulled again.
  void LookAhead(std::vector<NumberedBatch> next, std::span<const RowClient::Gradients> pushed,
                 std::uint64_t round, std::int64_t step);
  // Until nobody uses the client of the rows but the caller's thread. What is waited for has a
  // deadline, and ends where the client is aborted.
  void Wait();
  std::int64_t foreseen();
  std::int64_t refreshed();

 private:
  void Run();
  void LookAhead(std::unique_lock<std::mutex>& lock);
  template <typename Take>
  Result<bool> TakeAhead(const Take& take);
  Status Pull(int table, std::span<const std::uint64_t> ids, bool training, std::span<float> rows);

  const std::function<RowClient&()> client_;
  const std::function<std::uint64_t()> round_;
  bool broken_ = false;
  const std::int64_t& step_;

  RowLookahead lookahead_;
  std::uint64_t number_ = 0;  // of the batch that is trained on

  std::mutex mutex_;  // guards the flags and ahead_; the rest is its who may use it by them
  std::condition_variable changed_;
  bool under_way_ = false;
  bool urgent_ = false;  // and what the next step needs is not there yet
  bool stopped_ = false;
  Status failed_;  // looking ahead, by a bug: what the client holds then is not known
  RowsAhead ahead_;
  std::vector<NumberedBatch> next_;
  std::vector<RowsAhead::Batch> lookups_;  // in `next_`
  RowsAhead::Pushed pushed_;
  std::uint64_t after_ = 0;
  std::int64_t for_step_ = 1;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace cohort::ps
