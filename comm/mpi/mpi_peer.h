// MPI's collectives as they are, as the peer in benchmarks.

#pragma once

#include <memory>
#include <string>

#include <cohort/comm/communicator.h>

namespace cohort {

// "Open MPI v4.1.4, ...": which MPI this build has; empty for none.
std::string MpiLibrary();

// Sums over MPI_COMM_WORLD. While it lives, it alone may call MPI in this process: communicators
// made by MakeMpiCommunicator stand still. Calls end when MPI says so, without a deadline.
class MpiPeer {
 public:
  virtual ~MpiPeer() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual Status AllReduce(Buffer buffer) = 0;
  virtual Status ReduceScatter(Buffer input, Buffer output) = 0;
  virtual Status AllGather(Buffer input, Buffer output) = 0;
  virtual Status Broadcast(Buffer buffer) = 0;
  virtual Status Barrier() = 0;
};

// Initialises MPI if nobody has. Unimplemented in a build without MPI.
Result<std::unique_ptr<MpiPeer>> MakeMpiPeer();

}  // namespace cohort
