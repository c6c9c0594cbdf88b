// FrameConnection: one client's connection at a FrameListener, with the thread that serves it.

#pragma once

#include <memory>

#include <cohort/core/log.h>

#include "parameter_server/frames/frame_listener.h"
#include "tcp/socket.h"

namespace cohort::ps {

class FrameConnection {
 public:
  virtual ~FrameConnection() = default;  // closes it; waits for the handler at work
  virtual bool over() const = 0;         // the client has ended it, or was no client
};

// `handler` and `log` outlive it. std::system_error: there can be no more threads.
std::unique_ptr<FrameConnection> MakeTcpConnection(Socket socket, const FrameHandler& handler,
                                                   const Log& log);
std::unique_ptr<FrameConnection> MakeSharedConnection(Socket socket, const FrameHandler& handler,
                                                      const Log& log);

}  // namespace cohort::ps
