// Stands between the ranks of a TCP group, and breaks their connections after so many bytes.
//
//   tcp_proxy FOLDER RANKS FAULT RANK OTHER BYTES
//
// Ranks publish their addresses in FOLDER under a name with ".real" at its end; the proxy publishes
// its own under the name that the others look for, and passes on what comes. When BYTES have passed
// on the connections between RANK and OTHER (-1: any other) since it got SIGUSR1, it breaks them,
// says "struck", and goes on with the rest:
//
//   reset       both ends see the connection reset
//   half_open   nothing passes any more, in either direction; the connections stay open
//   one_way     nothing passes any more towards RANK
#include <cohort/cluster/folder_store.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <arpa/inet.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <list>
#include <string>
#include <vector>

namespace cohort::testing {

volatile std::sig_atomic_t armed = 0;  // SIGUSR1 has come

namespace {

constexpr std::size_t kBuffer = 64 << 10;
constexpr std::size_t kHello = 32;  // the first bytes of a connection, by the one who connects
constexpr std::size_t kRankInHello = 24;

// One direction of a connection.
struct Pipe {
  int from = -1;
  int to = -1;
  std::vector<char> bytes;  // read, and not yet written
  bool ended = false;       // `from` has ended
  bool shut = false;        // and `to` has been told
};

struct Connection {
  int listener_rank = 0;
  int connector_rank = -1;  // known from the hello
  Pipe there;               // from the connector
  Pipe back;
  bool struck = false;
  bool dead = false;
};

class Proxy {
 public:
  Proxy(std::string folder, int ranks, std::string fault, int rank, int other, std::int64_t bytes)
      : store_(folder),
        ranks_(ranks),
        fault_(std::move(fault)),
        rank_(rank),
        other_(other),
        left_(bytes) {}

  void Run() {
    for (int rank = 0; rank < ranks_; ++rank) {
      Listen(rank);
    }
    for (;;) {
      PollOnce();
      connections_.remove_if([](const Connection& c) { return c.dead; });
    }
  }

 private:
  static std::string Key(int rank) { return "job/1/rank/" + std::to_string(rank); }

  void Listen(int rank) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    if (::bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(fd, 64) != 0 ||
        ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      std::perror("tcp_proxy");
      std::exit(1);
    }
    listeners_.push_back(fd);
    (void)store_.Insert(Key(rank), "127.0.0.1:" + std::to_string(ntohs(address.sin_port)));
  }

  void Accept(int rank) {
    const int from = ::accept4(listeners_[static_cast<std::size_t>(rank)], nullptr, nullptr, 0);
    if (from < 0) {
      return;
    }
    const Result<std::string> real =
        store_.Wait(Key(rank) + ".real", DeadlineAfter(std::chrono::seconds(20)));
    const int port = real.ok() ? std::atoi(real->substr(real->rfind(':') + 1).c_str()) : 0;
    const int to = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(to, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
      ::close(from);
      ::close(to);
      return;
    }
    for (const int fd : {from, to}) {
      const int one = 1;
      ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    Connection& connection = connections_.emplace_back();
    connection.listener_rank = rank;
    connection.there = {.from = from, .to = to};
    connection.back = {.from = to, .to = from};
  }

  bool Concerned(const Connection& c) const {
    const bool mine = c.listener_rank == rank_ || c.connector_rank == rank_;
    return mine && c.connector_rank >= 0 &&
           (other_ < 0 || c.listener_rank == other_ || c.connector_rank == other_);
  }

  void PollOnce() {
    std::vector<pollfd> events;
    std::vector<std::pair<Connection*, Pipe*>> pipes;
    for (const int listener : listeners_) {
      events.push_back({listener, POLLIN, 0});
    }
    for (Connection& c : connections_) {
      for (Pipe* pipe : {&c.there, &c.back}) {
        const bool silent =
            c.struck && (fault_ == "half_open" || (&c.there == pipe) == (c.listener_rank == rank_));
        if (silent) {
          continue;
        }
        if (!pipe->ended && pipe->bytes.size() < kBuffer) {
          events.push_back({pipe->from, POLLIN, 0});
          pipes.emplace_back(&c, pipe);
        }
        if (!pipe->bytes.empty()) {
          events.push_back({pipe->to, POLLOUT, 0});
          pipes.emplace_back(&c, pipe);
        }
      }
    }
    if (::poll(events.data(), events.size(), 1000) <= 0) {
      return;
    }
    const std::size_t first = listeners_.size();
    for (std::size_t i = first; i < events.size(); ++i) {
      auto [connection, pipe] = pipes[i - first];
      if (events[i].revents == 0 || connection->dead) {
        continue;
      }
      if (events[i].events == POLLIN) {
        Read(*connection, *pipe);
      } else {
        Write(*connection, *pipe);
      }
    }
    for (std::size_t i = 0; i < first; ++i) {
      if (events[i].revents != 0) {
        Accept(static_cast<int>(i));
      }
    }
  }

  void Read(Connection& c, Pipe& pipe) {
    char buffer[kBuffer];
    const ssize_t n = ::recv(pipe.from, buffer, kBuffer - pipe.bytes.size(), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
      return;
    }
    if (n < 0) {
      return Close(c, /*reset=*/true);
    }
    if (n == 0) {
      pipe.ended = true;
      return Finish(c);
    }
    pipe.bytes.insert(pipe.bytes.end(), buffer, buffer + n);
    if (&pipe == &c.there && c.connector_rank < 0 && pipe.bytes.size() >= kHello) {
      std::uint32_t rank = 0;
      std::memcpy(&rank, pipe.bytes.data() + kRankInHello, sizeof(rank));
      c.connector_rank = static_cast<int>(rank);
    }
  }

  void Write(Connection& c, Pipe& pipe) {
    const ssize_t n =
        ::send(pipe.to, pipe.bytes.data(), pipe.bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
      return;
    }
    if (n < 0) {
      return Close(c, /*reset=*/true);
    }
    pipe.bytes.erase(pipe.bytes.begin(), pipe.bytes.begin() + n);
    if (armed != 0 && Concerned(c) && left_ > 0 && (left_ -= n) <= 0) {
      return Strike();
    }
    Finish(c);
  }

  void Strike() {
    for (Connection& c : connections_) {
      if (Concerned(c) && !c.dead) {
        c.struck = true;
        if (fault_ == "reset") {
          Close(c, /*reset=*/true);
        }
      }
    }
    std::printf("struck\n");
    std::fflush(stdout);
  }

  static void Finish(Connection& c) {
    for (Pipe* pipe : {&c.there, &c.back}) {
      if (pipe->ended && pipe->bytes.empty() && !pipe->shut) {
        pipe->shut = true;
        ::shutdown(pipe->to, SHUT_WR);
      }
    }
    if (c.there.shut && c.back.shut) {
      Close(c, /*reset=*/false);
    }
  }

  static void Close(Connection& c, bool reset) {
    for (const int fd : {c.there.from, c.there.to}) {
      if (reset) {
        const linger now = {1, 0};
        ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
      }
      ::close(fd);
    }
    c.dead = true;
  }

  FolderStore store_;
  const int ranks_;
  const std::string fault_;
  const int rank_;
  const int other_;
  std::int64_t left_;
  std::vector<int> listeners_;
  std::list<Connection> connections_;
};

}  // namespace
}  // namespace cohort::testing

int main(int /*argc*/, char** argv) {
  ::signal(SIGUSR1, [](int) { cohort::testing::armed = 1; });
  cohort::testing::Proxy(argv[1], std::atoi(argv[2]), argv[3], std::atoi(argv[4]),
                         std::atoi(argv[5]), std::atoll(argv[6]))
      .Run();
}
