// NativeCollectives: collectives that do not run over the Exchange: those of a backend's library,
// or made of other communicators.

#pragma once

#include <cohort/comm/communicator.h>

#include <memory>

#include "algorithms/choose.h"
#include "exchange.h"
#include "operation.h"

namespace cohort {

// Called on the communicator's thread; each call returns when the operation is done, failed, or at
// the exchange's deadline. Only what Supports says is called. What does not run over the exchange
// is not compared: before it each call makes sure there, by a barrier, that all ranks are in the
// same operation.
class NativeCollectives {
 public:
  virtual ~NativeCollectives() = default;
  virtual Algorithm algorithm() const = 0;  // its name
  // Whether it combines in the canonical order.
  virtual bool keeps_order() const = 0;
  // "auto" takes it for buffers from this size on.
  virtual std::int64_t worth_bytes() const { return 0; }
  virtual bool Supports(OperationKind kind, DType dtype) const = 0;
  // See Communicator::Allocate. From any thread.
  virtual Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes) {
    return AllocateMemory(bytes);
  }
  virtual Status AllReduce(Exchange& exchange, Buffer buffer, ReduceOp op) = 0;
  virtual Status Broadcast(Exchange& /*exchange*/, Buffer /*buffer*/, int /*root*/) {
    return Unimplemented("Broadcast");
  }
  virtual Status AllGather(Exchange& /*exchange*/, Buffer /*input*/, Buffer /*output*/) {
    return Unimplemented("AllGather");
  }
};

}  // namespace cohort
