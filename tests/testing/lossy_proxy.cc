#include "testing/lossy_proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <list>

#include <cohort/core/random.h>
#include <cohort/core/status.h>

namespace cohort::testing {
namespace {

sockaddr_in Loopback(const char* host, int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  ::inet_pton(AF_INET, host, &address.sin_addr);
  return address;
}

// One direction of a connection.
struct Pipe {
  int from;
  int to;
  std::vector<char> bytes;  // read, and not written yet
};

struct Connection {
  int client;
  int server;
  Pipe there{client, server, {}};
  Pipe back{server, client, {}};
  bool silent = false;
  bool over = false;
  void Close() {
    ::close(client);
    ::close(server);
    over = true;
  }
};

}  // namespace

struct LossyProxy::State {
  State(double loss_of, std::uint64_t seed) : loss(loss_of), random(seed, "losses") {}
  const double loss;
  const Philox random;
  std::uint64_t draws = 0;
  std::vector<int> ports;
  std::vector<int> listeners;
  std::list<Connection> connections;
};

LossyProxy::LossyProxy(const std::vector<int>& ports, double loss, std::uint64_t seed)
    : state_(std::make_unique<State>(loss, seed)) {
  for (const int port : ports) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int one = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    const sockaddr_in address = Loopback("127.0.0.2", port);
    Require(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 &&
                ::listen(fd, 64) == 0,
            "a free port at 127.0.0.2");
    state_->ports.push_back(port);
    state_->listeners.push_back(fd);
  }
  thread_ = std::thread([this] { Run(); });
}

LossyProxy::~LossyProxy() {
  stop_ = true;
  thread_.join();
  for (const int fd : state_->listeners) {
    ::close(fd);
  }
  for (Connection& connection : state_->connections) {
    connection.Close();
  }
}

void LossyProxy::Run() {
  State& s = *state_;
  std::vector<char> buffer(std::size_t{64} << 10);
  while (!stop_) {
    if (break_) {
      for (Connection& c : s.connections) {
        c.Close();
      }
      s.connections.clear();
      hold_ = false;
      break_ = false;
    }
    if (silence_.exchange(false)) {
      for (Connection& c : s.connections) {
        c.silent = true;
      }
    }
    std::vector<pollfd> events;
    for (const int fd : s.listeners) {
      events.push_back({fd, POLLIN, 0});
    }
    for (const Connection& c : s.connections) {
      // What waits to be written is before what is to be read.
      const auto wants = [](const Pipe& in, const Pipe& out) {
        return static_cast<short>((in.bytes.empty() ? POLLIN : 0) |
                                  (out.bytes.empty() ? 0 : POLLOUT));
      };
      const bool held = c.silent || hold_;  // of what a server says
      events.push_back({c.silent ? -1 : c.client, wants(c.there, c.back), 0});
      events.push_back({held && c.there.bytes.empty() ? -1 : c.server,
                        static_cast<short>(held ? POLLOUT : wants(c.back, c.there)), 0});
    }
    ::poll(events.data(), events.size(), 20);
    std::size_t at = s.listeners.size();
    for (Connection& c : s.connections) {
      const bool client_ready = events[at].revents != 0;
      const bool server_ready = events[at + 1].revents != 0;
      at += 2;
      for (Pipe* const pipe : {&c.there, &c.back}) {
        if (c.silent || (hold_ && pipe == &c.back)) {
          continue;
        }
        const bool readable = pipe == &c.there ? client_ready : server_ready;
        if (!c.over && pipe->bytes.empty() && readable) {
          const ssize_t got = ::recv(pipe->from, buffer.data(), buffer.size(), MSG_DONTWAIT);
          if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
            c.Close();
          } else if (got > 0 && losing_ && s.random.Uniform(s.draws++) < s.loss) {
            ++lost_;
            c.Close();
          } else if (got > 0) {
            pipe->bytes.assign(buffer.begin(), buffer.begin() + got);
          }
        }
        if (!c.over && !pipe->bytes.empty()) {
          const ssize_t sent =
              ::send(pipe->to, pipe->bytes.data(), pipe->bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
          if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            c.Close();
          } else if (sent > 0) {
            pipe->bytes.erase(pipe->bytes.begin(), pipe->bytes.begin() + sent);
          }
        }
      }
    }
    s.connections.remove_if([](const Connection& c) { return c.over; });
    for (std::size_t l = 0; l < s.listeners.size(); ++l) {
      if (events[l].revents == 0) {
        continue;
      }
      const int client = ::accept4(s.listeners[l], nullptr, nullptr, SOCK_CLOEXEC);
      if (client < 0) {
        continue;
      }
      const int server = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      const sockaddr_in address = Loopback("127.0.0.1", s.ports[l]);
      if (::connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
        ::close(client);
        ::close(server);
        continue;
      }
      s.connections.push_back({.client = client, .server = server});
    }
  }
}

}  // namespace cohort::testing
