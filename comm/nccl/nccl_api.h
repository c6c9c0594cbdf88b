// NcclApi: the calls of NCCL that we make, as a table, so that all that is ours is tested without a
// GPU.
//
// As in NCCL with `blocking = 0`, a call returns at once; where it has not ended, Poll tells when
// it has. Thread rules: calls on one handle by one thread at a time. Calls on a group of handles
// that share nothing, from any threads.

#pragma once

#include <cohort/comm/communicator.h>
#include <cohort/core/status.h>
#include <cohort/device/stream.h>

#include <memory>
#include <string>
#include <utility>

namespace cohort {

class NcclApi {
 public:
  using Handle = void*;  // an ncclComm_t

  // How a call went: it failed, or goes on, or has ended well.
  struct Outcome {
    Status status;
    bool under_way = false;
  };

  virtual ~NcclApi() = default;

  virtual Result<std::string> Version() = 0;
  // "GPU-8f0c..." of the stream's device.
  virtual Result<std::string> Uuid(Stream& stream) = 0;
  virtual Result<std::string> UniqueId() = 0;

  // On the stream's device. `handle` is set even where the call goes on or Poll fails later.
  virtual Outcome Init(Stream& stream, int rank, int size, const std::string& id,
                       Handle* handle) = 0;
  virtual Outcome Poll(Handle handle) = 0;
  virtual Outcome Finalize(Handle handle) = 0;
  // The handle is of no further use after these two. Abort ends what is under way, in the
  // background and on the device.
  virtual void Destroy(Handle handle) = 0;
  virtual void Abort(Handle handle) = 0;
  // From any thread: what is on the stream, and whoever waits for it, has failed.
  virtual void Fail(Stream& stream, const Status& status) = 0;

  // Operations between these two, by one thread, are one: put on the stream, or failed, when
  // GroupEnd and Poll have ended.
  virtual Outcome GroupStart() = 0;
  virtual Outcome GroupEnd() = 0;
  virtual Outcome AllReduce(Handle handle, Buffer input, Buffer output, ReduceOp op,
                            Stream& stream) = 0;
  virtual Outcome Reduce(Handle handle, Buffer buffer, ReduceOp op, int root, Stream& stream) = 0;
  // Counts of ReduceScatter and AllGather: those of the smaller buffer.
  virtual Outcome ReduceScatter(Handle handle, Buffer input, Buffer output, ReduceOp op,
                                Stream& stream) = 0;
  virtual Outcome AllGather(Handle handle, Buffer input, Buffer output, Stream& stream) = 0;
  // `input` is read at root only.
  virtual Outcome Broadcast(Handle handle, Buffer input, Buffer output, int root,
                            Stream& stream) = 0;
  virtual Outcome Send(Handle handle, Buffer buffer, int to, Stream& stream) = 0;
  virtual Outcome Receive(Handle handle, Buffer buffer, int from, Stream& stream) = 0;
};

// NCCL itself. One for the process. FailedPrecondition says what is missing.
Result<std::shared_ptr<NcclApi>> LoadNccl();

}  // namespace cohort
