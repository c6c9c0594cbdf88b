// Channel: messages between a rank's process and the one that gives it orders, over a Unix socket
// in a folder: it works under mpirun and in other network namespaces alike.

#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include "../../tcp/socket.h"

namespace cohort::bench {

Result<Socket> ListenIn(const std::string& folder);

class Channel {
 public:
  explicit Channel(Socket socket) : socket_(std::move(socket)) {}
  static Result<Channel> Connect(const std::string& folder);

  int fd() const { return socket_.fd(); }
  Status Send(const nlohmann::json& message, Deadline deadline);
  // Unavailable when the other side is gone.
  Result<nlohmann::json> Receive(Deadline deadline);

 private:
  Socket socket_;
};

}  // namespace cohort::bench
