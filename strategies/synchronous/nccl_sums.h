// NcclSums: sums of gradients over the GPUs of all processes by NCCL, in the GPUs' memory.
//
// A rank is a GPU with its copy of the model (device_copy.h). An operation starts behind what the
// copies' streams hold when it is called, runs on streams of its own, and is called in one order on
// all processes: the reducer's, which launches buckets by index. What it adds in which order is
// NCCL's to choose; all ranks get the same bits.
//
// A call puts the operation of each of this process's GPUs on its stream, from a thread of its own,
// and blocks until that is done: microseconds, but for the first operations of a kind and size,
// which wait for those of the other processes. A thread watches the job's communicator meanwhile:
// where that fails, so does this.
//
// Thread rules: AllReduce, Renew and Close by one thread at a time; all else from any.

#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <cohort/cluster/key_value_store.h>
#include <cohort/comm/communicator.h>
#include <cohort/comm/nccl.h>
#include <cohort/core/status.h>

#include "synchronous/device_copy.h"
#include "synchronous/replica_gang.h"

namespace cohort {

class NcclSums {
 public:
  struct Options {
    std::vector<DeviceCopy*> copies;  // of this process, one to a GPU; they outlive this
    std::vector<NcclOptions> ranks;   // theirs
    int first_rank = 0;               // of the first copy
    int size = 1;                     // GPUs of all processes
    Communicator* job = nullptr;      // among processes, outlives this; nullptr: there is one
    KeyValueStore* store = nullptr;   // where processes meet, outlives this
    std::string prefix;               // of what they say there
    CommunicatorOptions communicator;
  };

  // Blocks until all ranks have connected.
  static Result<std::unique_ptr<NcclSums>> Make(Options options);
  ~NcclSums();

  int size() const { return options_.size; }

  // Each of `parts`, by copy and in its device's memory, becomes the sum over all ranks' parts. The
  // Work is done when it has, on every GPU of this process. Errors are the job's where it knows
  // more of why: who was lost, or gave up.
  Communicator::Pending AllReduce(std::span<const Buffer> parts, const CollectiveOptions& options);
  // Operations under way, and those to come, end with `reason`.
  void Abort(const Status& reason);
  // In one process, after an error: communicators anew, since what the streams went through stays
  // with the old ones. What cannot be made is what AllReduce returns from then on.
  void Renew();
  // Leaves, when the others do: what comes after is FailedPrecondition.
  void Close();
  // As Communicator's, of each GPU; the first one's path.
  Result<std::string> DumpFlightRecord(std::string_view reason) const;

 private:
  class SumWork;

  NcclSums(Options options, std::vector<std::unique_ptr<Communicator>> communicators);
  void Watch();
  Status Explain(const Status& status) const;

  using Communicators = std::vector<std::unique_ptr<Communicator>>;
  // What is there is no more: ended by all lanes at once, as NCCL ends a communicator.
  void End();

  const Options options_;
  mutable std::mutex communicators_mutex_;  // of those who do not call AllReduce
  Communicators communicators_;             // by copy
  Status without_ = FailedPrecondition("this process has left the job");  // where there are none
  ReplicaGang lanes_;  // a thread for each, to call it on
  std::mutex mutex_;
  std::condition_variable stop_asked_;
  bool stop_ = false;
  std::thread watch_;  // where there is a job
};

}  // namespace cohort
