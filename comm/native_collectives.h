// NativeCollectives: collectives that a backend's library brings itself.

#pragma once

#include <cohort/comm/communicator.h>

#include "exchange.h"
#include "operation.h"

namespace cohort {

// Called on the communicator's thread; each call returns when the operation is done, failed, or at
// the exchange's deadline. Only what Supports says is called.
class NativeCollectives {
 public:
  virtual ~NativeCollectives() = default;
  virtual bool Supports(OperationKind kind, DType dtype) const = 0;
  virtual Status AllReduce(Exchange& exchange, Buffer buffer, ReduceOp op) = 0;
  virtual Status Broadcast(Exchange& exchange, Buffer buffer, int root) = 0;
  virtual Status AllGather(Exchange& exchange, Buffer input, Buffer output) = 0;
};

}  // namespace cohort
