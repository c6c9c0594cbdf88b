// FakeNccl: NCCL's calls on memory of the host, among ranks that are threads of one test.
//
// It is as particular as NCCL: what ranks call is matched by order alone; where it differs, or
// somebody does not come, everybody waits until it aborts. Nothing is told to others. Calls go on
// after they return, for a few Polls; a call on a handle whose last one still goes on is an error.
#pragma once

#include <cohort/device/device.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "nccl/nccl_api.h"

namespace cohort::testing {

// A device whose memory is the host's and whose streams are late.
std::shared_ptr<Device> MakeFakeGpu(std::uint64_t seed);

class FakeNccl final : public NcclApi {
 public:
  struct Comm;
  struct Clique;

  // What the ranks of a test share.
  struct World {
    std::mutex mutex;
    std::condition_variable changed;
    std::map<std::string, std::shared_ptr<Clique>> cliques;  // by unique id
    int ids = 0;
    int inits = 0;
    int live = 0;                           // handles that were neither destroyed nor aborted
    int aborted = 0;                        // handles
    bool connects = true;                   // what Init begins from here on
    std::map<int, Status> errors;           // of a rank's next Polls
    std::map<std::string, Status> refused;  // of the next ids and Inits on a GPU
  };

  // Where the bytes of memory that operations are given really are.
  using Near = std::function<std::byte*(std::byte* address, std::size_t bytes)>;

  // `near` empty: where their addresses say.
  FakeNccl(std::shared_ptr<World> world, std::string uuid, Near near = {})
      : world_(std::move(world)), uuid_(std::move(uuid)), near_(std::move(near)) {}

  Result<std::string> Version() override { return std::string("2.0.0"); }
  Result<std::string> Uuid(Stream& /*stream*/) override { return uuid_; }
  Result<std::string> UniqueId() override;
  Outcome Init(Stream& stream, int rank, int size, const std::string& id, Handle* handle) override;
  Outcome Poll(Handle handle) override;
  Outcome Finalize(Handle handle) override;
  void Destroy(Handle handle) override;
  void Abort(Handle handle) override;
  void Fail(Stream& stream, const Status& status) override;
  Outcome GroupStart() override;
  Outcome GroupEnd() override;
  Outcome AllReduce(Handle handle, Buffer input, Buffer output, ReduceOp op,
                    Stream& stream) override;
  Outcome Reduce(Handle handle, Buffer buffer, ReduceOp op, int root, Stream& stream) override;
  Outcome ReduceScatter(Handle handle, Buffer input, Buffer output, ReduceOp op,
                        Stream& stream) override;
  Outcome AllGather(Handle handle, Buffer input, Buffer output, Stream& stream) override;
  Outcome Broadcast(Handle handle, Buffer input, Buffer output, int root, Stream& stream) override;
  Outcome Send(Handle handle, Buffer buffer, int to, Stream& stream) override;
  Outcome Receive(Handle handle, Buffer buffer, int from, Stream& stream) override;

 private:
  Buffer At(const Buffer& buffer) const;

  const std::shared_ptr<World> world_;
  const std::string uuid_;
  const Near near_;
};

}  // namespace cohort::testing
