// FrameListener: the server's end of the connections that frames come on: over TCP, and from
// clients of its host through memory that both share (frame_ring.h).
//
// Each connection has a thread, which reads a frame, handles it and answers, so that the memory of
// a connection is that of one frame and its reply, or of its rings, and a client that sends faster
// than it is served is held up by TCP, or by the ring. What is no frame ends its connection,
// nothing else.

#pragma once

#include <functional>
#include <memory>
#include <string>

#include <cohort/core/log.h>
#include <cohort/core/status.h>

#include "parameter_server/frames/frame_stream.h"
#include "parameter_server/frames/payload.h"

namespace cohort::ps {

struct FrameReply {
  FrameHeader header;
  FloatBuffer* payload = nullptr;  // empty; of the connection
};
// On the connection's thread. `peer`: for messages.
using FrameHandler =
    std::function<void(FrameMethod method, const FrameHeader& header, const PayloadReader& payload,
                       const std::string& peer, FrameReply* reply)>;

class FrameListener {
 public:
  virtual ~FrameListener() = default;  // closes the connections; waits for the handlers at work
  virtual int port() const = 0;
  // Of the unix socket behind which memory is shared.
  virtual const std::string& local_address() const = 0;
  // Listens on `address` ("0.0.0.0:0").
  static Result<std::unique_ptr<FrameListener>> Start(const std::string& address,
                                                      FrameHandler handler, const Log& log);
};

}  // namespace cohort::ps
