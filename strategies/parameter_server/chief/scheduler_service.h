// The scheduler over gRPC: the service in the chief's process, and every process's side of it.
//
// A call that waits is parked in the service for a second at most, and the client asks again. All
// requests may be repeated without harm, and are until the scheduler has been silent for
// `peer_timeout`.
//
// Thread rules: those of Scheduler for the service; the client's are told there.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <cohort/core/status.h>

#include "parameter_server/chief/scheduler.h"

namespace cohort::ps {

// The service; listens on `address` ("0.0.0.0:0") and serves `scheduler`, which must outlive it.
class SchedulerServer {
 public:
  virtual ~SchedulerServer() = default;
  virtual int port() const = 0;
  static Result<std::unique_ptr<SchedulerServer>> Start(const std::string& address,
                                                        Scheduler& scheduler);
};

// A process's side of it. Where its epoch is stale, calls for work are Unavailable. Waiting calls
// wait until there is an answer; they end with Abort's status, or with Unavailable when the
// scheduler has not answered for `peer_timeout`.
class SchedulerClient {
 public:
  virtual ~SchedulerClient() = default;
  virtual Result<std::uint64_t> Attach() = 0;  // as Scheduler's
  // The servers' epoch that this process is in from now on.
  virtual void SetEpoch(std::uint64_t epoch) = 0;
  // The view, when it is another one than that, or after a second or so.
  // Tells of the steps that this process has been through, besides.
  virtual Result<ServerView> AwaitView(std::uint64_t epoch, bool recovering,
                                       std::uint64_t steps) = 0;
  virtual Status OpenDataset(int dataset, const DatasetInfo& info) = 0;
  // Nothing: the epoch is over.
  struct EpochSplit : Split {
    std::int64_t epoch = 0;  // that it is of
  };
  virtual Result<std::optional<EpochSplit>> NextSplit(const EpochKey& epoch,
                                                      std::int64_t first_batch,
                                                      const FinishedSplit& finished,
                                                      bool leaves = false) = 0;
  virtual Result<std::optional<RoundPart>> JoinRound(const EpochKey& epoch,
                                                     std::int64_t first_batch) = 0;
  // The sums of the whole round. Nothing: superseded.
  virtual Result<std::optional<RoundTotal>> FinishRound(const RoundPart& part,
                                                        const RoundSums& sums) = 0;
  // kWait after a second or so. This and FinishClosure from any thread, at the same time.
  virtual Result<ClosureReply> NextClosure(std::span<const std::int64_t> has) = 0;
  virtual Status FinishClosure(std::int64_t id, const Result<std::string>& outcome) = 0;
  virtual Status Done() = 0;
  // From any thread.
  virtual void Abort(const Status& why) = 0;

  // `name`: who coordinates, "chief:0".
  static std::unique_ptr<SchedulerClient> Make(const std::string& address, const std::string& name,
                                               const Sender& self,
                                               std::chrono::milliseconds peer_timeout);
};

}  // namespace cohort::ps
