#include "sockets.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>
#include <system_error>

#include "grpc_util.h"

namespace cohort {
namespace {

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

struct FreeAddrinfo {
  void operator()(addrinfo* info) const { ::freeaddrinfo(info); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddrinfo>;

// The reason for which `host` has no address; empty when `addresses` has been filled.
std::string Resolve(const HostPort& address, int flags, Addresses* addresses) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int error =
      ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &list);
  addresses->reset(list);
  return error == 0 ? std::string()
                    : std::string("host name not known (") + ::gai_strerror(error) + ")";
}

std::string Reason(int error_number) {
  std::string text = std::generic_category().message(error_number);
  std::transform(text.begin(), text.begin() + 1, text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string ProbeOne(const addrinfo& info, std::chrono::milliseconds timeout) {
  const Socket socket(
      ::socket(info.ai_family, info.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, info.ai_protocol));
  if (socket.fd() < 0) {
    return Reason(errno);
  }
  if (::connect(socket.fd(), info.ai_addr, info.ai_addrlen) == 0) {
    return {};
  }
  if (errno != EINPROGRESS) {
    return Reason(errno);
  }
  pollfd poll{socket.fd(), POLLOUT, 0};
  if (::poll(&poll, 1, static_cast<int>(timeout.count())) != 1) {
    return "no answer within " + std::to_string(timeout.count()) + " ms";
  }
  int error = 0;
  socklen_t size = sizeof(error);
  ::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size);
  return error == 0 ? std::string() : Reason(error);
}

// The inodes of the sockets that listen on `port`, from a table of /proc/net.
void ListeningInodes(const char* table, int port, std::set<std::string>* inodes) {
  std::ifstream file(table);
  std::string line;
  std::getline(file, line);  // the heading
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    std::string slot, local, remote, state, skip, inode;
    fields >> slot >> local >> remote >> state >> skip >> skip >> skip >> skip >> skip >> inode;
    const std::size_t colon = local.rfind(':');
    int found = 0;
    if (fields && colon != std::string::npos && state == "0A") {
      std::from_chars(local.data() + colon + 1, local.data() + local.size(), found, 16);
      if (found == port) {
        inodes->insert("socket:[" + inode + "]");
      }
    }
  }
}

}  // namespace

Result<HostPort> ParseHostPort(const std::string& address) {
  HostPort parsed;
  const std::size_t colon = address.rfind(':');
  const auto malformed = [&address] {
    return InvalidArgument("\"" + address +
                           "\" is no address [write host:port, or [v6-address]:port]");
  };
  if (colon == std::string::npos || colon == 0) {
    return malformed();
  }
  parsed.host = address.substr(0, colon);
  if (parsed.host.front() == '[' && parsed.host.back() == ']') {
    parsed.host = parsed.host.substr(1, parsed.host.size() - 2);
  } else if (parsed.host.find(':') != std::string::npos) {
    return malformed();
  }
  const char* end = address.data() + address.size();
  const auto [stop, error] = std::from_chars(address.data() + colon + 1, end, parsed.port);
  if (parsed.host.empty() || error != std::errc() || stop != end || parsed.port < 0 ||
      parsed.port > 65535) {
    return malformed();
  }
  return parsed;
}

std::string ListenAddress(const std::string& address) {
  const Result<HostPort> parsed = ParseHostPort(address);
  if (!parsed.ok()) {
    return address;
  }
  const std::string port = ":" + std::to_string(parsed->port);
  if (parsed->host == "localhost") {
    return "127.0.0.1" + port;  // also where the name has an IPv6 address that cannot be bound
  }
  in_addr v4{};
  in6_addr v6{};
  const bool is_v4 = ::inet_pton(AF_INET, parsed->host.c_str(), &v4) == 1;
  const bool is_v6 = ::inet_pton(AF_INET6, parsed->host.c_str(), &v6) == 1;
  if ((is_v4 && ntohl(v4.s_addr) >> 24 == IN_LOOPBACKNET) || (is_v6 && IN6_IS_ADDR_LOOPBACK(&v6))) {
    return address;
  }
  return (address.front() == '[' ? "[::]" : "0.0.0.0") + port;
}

std::string ProbeAddress(const std::string& address, std::chrono::milliseconds timeout) {
  const Result<HostPort> parsed = ParseHostPort(address);
  if (!parsed.ok()) {
    return "no valid address";
  }
  Addresses addresses;
  std::string reason = Resolve(*parsed, 0, &addresses);
  for (const addrinfo* info = addresses.get(); info != nullptr; info = info->ai_next) {
    reason = ProbeOne(*info, timeout);
    if (reason.empty()) {
      return std::string(kAcceptsConnections);
    }
  }
  return reason;
}

Status CheckCanBind(const std::string& address) {
  COHORT_ASSIGN_OR_RETURN(const HostPort parsed, ParseHostPort(address));
  Addresses addresses;
  if (const std::string reason = Resolve(parsed, AI_PASSIVE, &addresses); !reason.empty()) {
    return NotFound("cannot listen on " + address + ": " + reason);
  }
  for (const addrinfo* info = addresses.get(); info != nullptr; info = info->ai_next) {
    const Socket socket(
        ::socket(info->ai_family, info->ai_socktype | SOCK_CLOEXEC, info->ai_protocol));
    if (socket.fd() < 0) {
      continue;  // a family that this machine lacks
    }
    const int on = 1;
    ::setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (::bind(socket.fd(), info->ai_addr, info->ai_addrlen) == 0 &&
        ::listen(socket.fd(), 1) == 0) {
      continue;
    }
    const int error = errno;
    if (error == EADDRINUSE) {
      const std::string holder = PortHolder(parsed.port);
      return AlreadyExists("cannot listen on " + address + ": the port is in use" +
                           (holder.empty() ? std::string() : " by " + holder) +
                           " [choose another port, 0 for any free one, or end that process]");
    }
    if (error == EADDRNOTAVAIL) {
      return InvalidArgument("cannot listen on " + address +
                             ": no network interface of this machine has that address");
    }
    return ErrnoStatus(error, "cannot listen on " + address);
  }
  return OkStatus();
}

std::string PortHolder(int port) {
  std::set<std::string> inodes;
  ListeningInodes("/proc/net/tcp", port, &inodes);
  ListeningInodes("/proc/net/tcp6", port, &inodes);
  std::error_code error;
  for (std::filesystem::directory_iterator process("/proc", error), end; process != end && !error;
       process.increment(error)) {
    const std::string pid = process->path().filename();
    if (!std::all_of(pid.begin(), pid.end(), [](unsigned char c) { return std::isdigit(c); })) {
      continue;
    }
    std::error_code unreadable;  // another user's process
    for (std::filesystem::directory_iterator fd(process->path() / "fd", unreadable), last;
         fd != last && !unreadable; fd.increment(unreadable)) {
      std::error_code gone;
      if (inodes.contains(std::filesystem::read_symlink(fd->path(), gone).string())) {
        std::ifstream comm(process->path() / "comm");
        std::string name;
        std::getline(comm, name);
        return "pid " + pid + (name.empty() ? std::string() : " (" + name + ")");
      }
    }
  }
  return {};
}

}  // namespace cohort
