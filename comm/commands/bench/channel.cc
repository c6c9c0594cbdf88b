#include "channel.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

namespace cohort::bench {
namespace {

Result<sockaddr_un> AddressIn(const std::string& folder) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const std::string path = folder + "/orders";
  if (path.size() >= sizeof(address.sun_path)) {
    return InvalidArgument("the path " + path + " is too long for a socket [set TMPDIR]");
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

}  // namespace

Result<Socket> ListenIn(const std::string& folder) {
  COHORT_ASSIGN_OR_RETURN(const sockaddr_un address, AddressIn(folder));
  Socket socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.open() ||
      ::bind(socket.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(socket.fd(), SOMAXCONN) != 0) {
    return ErrnoStatus(errno, "cannot listen in " + folder);
  }
  return socket;
}

Result<Channel> Channel::Connect(const std::string& folder) {
  COHORT_ASSIGN_OR_RETURN(const sockaddr_un address, AddressIn(folder));
  Socket socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.open() ||
      ::connect(socket.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoStatus(errno, "cannot reach who gives the orders, in " + folder);
  }
  ::fcntl(socket.fd(), F_SETFL, O_NONBLOCK);
  return Channel(std::move(socket));
}

Status Channel::Send(const nlohmann::json& message, Deadline deadline) {
  const std::string text = message.dump();
  const std::uint64_t bytes = text.size();
  COHORT_RETURN_IF_ERROR(WriteAll(socket_, &bytes, sizeof(bytes), deadline));
  return WriteAll(socket_, text.data(), text.size(), deadline);
}

Result<nlohmann::json> Channel::Receive(Deadline deadline) {
  std::uint64_t bytes = 0;
  COHORT_RETURN_IF_ERROR(ReadAll(socket_, &bytes, sizeof(bytes), deadline));
  std::string text(bytes, '\0');
  COHORT_RETURN_IF_ERROR(ReadAll(socket_, text.data(), text.size(), deadline));
  nlohmann::json message = nlohmann::json::parse(text, nullptr, false);
  if (message.is_discarded()) {
    return DataLoss("what came from a rank's process is no JSON");
  }
  return message;
}

}  // namespace cohort::bench
