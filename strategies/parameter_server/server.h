// Server: a ParameterStore and a RowStore behind connections for frames (frame_listener.h), and
// behind gRPC, which is asked for what is rare. Where the model has copies, two more of them for
// the part of the server before this one: frames say which they are for.
//
// Nothing that a client sends ends the process or blocks another client's frames.

#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <cohort/core/clock.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>

#include "parameter_server/rows/row_store.h"
#include "parameter_server/variables/parameter_store.h"

namespace cohort {
class Metrics;
}

namespace cohort::ps {

class Server {
 public:
  virtual ~Server() = default;  // closes the connections; waits for the handlers at work
  virtual int port() const = 0;
  virtual ParameterStore& store() = 0;
  virtual RowStore& rows() = 0;
  virtual std::uint64_t epoch() const = 0;  // of its values; 0: it has none yet
  // Tells all what the model is; as ParameterStore::Declare.
  virtual Status Declare(const ModelSpec& spec, const std::string& who) = 0;
  // Has a client said that the job is over? Waits for it until the deadline.
  virtual bool WaitDrained(Deadline deadline) = 0;
  // Frames are counted there from now on. Once at most.
  virtual void CountIn(Metrics& metrics) = 0;

  // Listens on `address` ("0.0.0.0:2222", port 0 for any). `index`: of the ps task.
  static Result<std::unique_ptr<Server>> Start(const std::string& address, int index,
                                               const Log& log);
};

}  // namespace cohort::ps
