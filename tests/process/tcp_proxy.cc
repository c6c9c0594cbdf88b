// Stands in all TCP connections between the processes of a test, and does to them what a network
// may do, when the test says so (testing/tcp_proxy.h).
//
//   tcp_proxy FOLDER
//
// Processes come here by through_proxy.cc; who listens where is in FOLDER. Its port is in
// FOLDER/proxy as soon as it listens. The test writes a line to the unix socket FOLDER/control, and
// reads one, "ok" and perhaps a number, or "error" and why. A and B are tasks ("worker:1"), or "*".
//
//   reset A B               the connections between them that there are break, for both ends
//   half_open A B [now]     nothing passes between them, and nothing is closed
//   one_way A B [now]       nothing passes from A to B
//   after N reset|half_open|one_way A B [now]    when N more bytes have passed between them
//   delay A B MS            each piece is so late
//   delay_randomly A B MS SEED    each piece is late by a random time, up to that
//   lose A B P SEED         each piece that is read breaks its connection, with probability P
//   duplicate A B           requests of A for rows and values come to the server B twice, the
//   second
//                           time on a connection of their own: late, and beside others
//   hold A B METHOD         of the next such frame from A to B only a half passes, then nothing
//   hold_call A B PATH      nothing passes any more on the connection from A to B on which this
//                           stands next, which is no connection for frames
//   heal                    nothing of this any more; what waited goes on
//   count A B METHOD        frames that have passed
//   struck|held|lost|duplicated    how often that has been
//
// What is held up by half_open and one_way is not lost: it passes after `heal`, as TCP sends again
// what was dropped on the way; new connections are made then. With `now` the connections that there
// are are forgotten instead, as by a firewall: they never pass anything again, and new ones are
// well. METHOD is a number of FrameMethod (frame_stream.h), PATH a method of gRPC
// ("/cohort.ps.Rows/Move"): which stands in a connection as it is written when it is called there
// for the first time only.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <list>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <cohort/core/random.h>

#include "testing/proxied_task.h"

namespace cohort::testing {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::size_t kBuffer = 64 << 10;
constexpr std::size_t kMostOfShadow = 4 << 20;
constexpr int kAny = 0;  // "*"

// Of a frame of parameter servers (frame_stream.h), by which its connection begins.
constexpr std::uint32_t kMagic = 0x31524643;
constexpr std::size_t kPrefix = 16;
enum Method { kPull = 1, kPush = 2, kPullRows = 5, kPushRows = 6 };

struct Between {
  int a = kAny;
  int b = kAny;
  bool From(int from, int to) const { return (a == kAny || a == from) && (b == kAny || b == to); }
  bool Has(int from, int to) const { return From(from, to) || From(to, from); }
};

enum class Fault { kReset, kHalfOpen, kOneWay };

struct Cut {
  Fault fault = Fault::kHalfOpen;
  Between link;
  bool now = false;
  bool Silences(int from, int to) const {
    return fault == Fault::kOneWay ? link.From(from, to) : link.Has(from, to);
  }
};

struct Piece {
  steady_clock::time_point due;
  std::string bytes;
  std::size_t at = 0;  // so much of it is written
};

// One direction of a connection.
struct Pipe {
  int fd = -1;
  int to_fd = -1;
  int from = 0;  // tasks
  int to = 0;
  std::deque<Piece> pieces;  // read, and not yet written
  std::size_t waiting = 0;   // bytes of them
  bool ended = false;        // `fd` has ended
  bool shut = false;         // and `to_fd` has been told
  bool forgotten = false;    // never passes anything again
  bool held = false;         // no more than it has passed, until it is healed
  std::string rest;          // what was read behind that

  // Where it is in a stream of frames.
  std::string head;          // of the prefix
  std::size_t frame = 0;     // bytes of the present one, 0: not known yet
  std::size_t of_frame = 0;  // read of it
  std::uint32_t method = 0;
  std::int64_t read = 0;
  std::int64_t written = 0;
  std::deque<std::pair<std::int64_t, std::uint32_t>> ends;  // of frames: place, method
  std::string copy;  // of the present one, where it is to come twice
  std::string tail;  // what was read last, where a path may have begun
};

struct Connection {
  int port = 0;
  bool made = false;  // to the listener
  std::optional<bool> frames;
  Pipe there;  // from who has connected
  Pipe back;
  // Beside it, where frames come twice.
  int shadow = -1;
  std::string to_shadow;
  bool dead = false;
};

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

int ConnectTo(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_in address = Loopback(port);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    ::close(fd);
    return -1;
  }
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  return fd;
}

[[noreturn]] void Fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

class Proxy {
 public:
  explicit Proxy(std::string folder) : folder_(std::move(folder)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;  // any address: who connects, and where to, stands in it
    socklen_t size = sizeof(address);
    if (::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        ::listen(listener_, 256) != 0 ||
        ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      Fail("tcp_proxy");
    }
    control_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    sockaddr_un local = {};
    local.sun_family = AF_UNIX;
    const std::string path = folder_ + "/control";
    if (path.size() >= sizeof(local.sun_path)) {
      errno = ENAMETOOLONG;
      Fail(path.c_str());
    }
    std::memcpy(local.sun_path, path.c_str(), path.size());
    if (::bind(control_, reinterpret_cast<sockaddr*>(&local), sizeof(local)) != 0 ||
        ::listen(control_, 16) != 0) {
      Fail(path.c_str());
    }
    std::ofstream(folder_ + "/proxy.draft") << ntohs(address.sin_port);
    if (std::rename((folder_ + "/proxy.draft").c_str(), (folder_ + "/proxy").c_str()) != 0) {
      Fail("tcp_proxy");
    }
  }

  [[noreturn]] void Run() {
    for (;;) {
      PollOnce();
      connections_.remove_if([](const Connection& c) { return c.dead; });
    }
  }

 private:
  // ---- The connections --------------------------------------------------------------------------

  void Accept() {
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    sockaddr_in address = {};
    socklen_t size = sizeof(address);
    if (fd < 0) {
      return;
    }
    if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      ::close(fd);
      return;
    }
    const int one = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    const std::uint32_t host = ntohl(address.sin_addr.s_addr);
    Connection& c = connections_.emplace_back();
    c.port = static_cast<int>(host & 0xffff);
    int listens = 0;  // none that is known
    std::ifstream(folder_ + "/" + std::to_string(c.port)) >> listens;
    c.there = {.fd = fd, .from = static_cast<int>(host >> 16 & 0xff), .to = listens};
    c.back = {.to_fd = fd, .from = c.there.to, .to = c.there.from};
    Make(c);
  }

  // As soon as a handshake could pass.
  void Make(Connection& c) {
    const bool unreachable = std::ranges::any_of(cuts_, [&](const Cut& cut) {
      return !cut.now && cut.link.Has(c.there.from, c.there.to) &&
             (cut.fault == Fault::kHalfOpen || cut.Silences(c.there.from, c.there.to) ||
              cut.Silences(c.there.to, c.there.from));
    });
    if (c.made || c.dead || unreachable) {
      return;
    }
    const int fd = ConnectTo(c.port);
    if (fd < 0) {
      return Close(c, /*reset=*/true);
    }
    c.made = true;
    c.there.to_fd = fd;
    c.back.fd = fd;
  }

  static void Close(Connection& c, bool reset) {
    for (const int fd : {c.there.fd, c.there.to_fd}) {
      if (reset && fd >= 0) {
        const linger at_once = {1, 0};
        ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
      }
      if (fd >= 0) {
        ::close(fd);
      }
    }
    if (c.shadow >= 0) {
      ::close(c.shadow);
    }
    c.dead = true;
  }

  static void Finish(Connection& c) {
    for (Pipe* pipe : {&c.there, &c.back}) {
      if (pipe->ended && pipe->pieces.empty() && !pipe->shut && pipe->to_fd >= 0) {
        pipe->shut = true;
        ::shutdown(pipe->to_fd, SHUT_WR);
      }
    }
    if (c.there.shut && c.back.shut) {
      Close(c, /*reset=*/false);
    }
  }

  bool Silent(const Pipe& pipe) const {
    return pipe.forgotten || std::ranges::any_of(cuts_, [&](const Cut& cut) {
             return !cut.now && cut.Silences(pipe.from, pipe.to);
           });
  }

  bool Twice(const Pipe& pipe) const {
    return std::ranges::any_of(duplicated_links_,
                               [&](const Between& link) { return link.From(pipe.from, pipe.to); });
  }

  void PollOnce() {
    struct Waiter {
      Connection* connection;
      Pipe* pipe;  // null: the shadow
    };
    std::vector<pollfd> events = {{listener_, POLLIN, 0}, {control_, POLLIN, 0}};
    const std::size_t first = events.size();
    std::vector<Waiter> waiters;
    const auto now = steady_clock::now();
    auto wake = now + milliseconds(1000);
    for (Connection& c : connections_) {
      Make(c);
      for (Pipe* pipe : {&c.there, &c.back}) {
        if (!c.made || c.dead || Silent(*pipe)) {
          continue;
        }
        if (pipe->held) {  // who has ended is told
          events.push_back({pipe->fd, POLLRDHUP, 0});
          waiters.push_back({&c, pipe});
        } else if (!pipe->ended && pipe->waiting < kBuffer && c.to_shadow.size() < kMostOfShadow) {
          events.push_back({pipe->fd, POLLIN, 0});
          waiters.push_back({&c, pipe});
        }
        if (!pipe->pieces.empty() && pipe->pieces.front().due <= now) {
          events.push_back({pipe->to_fd, POLLOUT, 0});
          waiters.push_back({&c, pipe});
        } else if (!pipe->pieces.empty()) {
          wake = std::min(wake, pipe->pieces.front().due);
        }
      }
      if (c.shadow >= 0 && !c.dead) {
        const short wanted = c.to_shadow.empty() ? POLLIN : POLLIN | POLLOUT;
        events.push_back({c.shadow, wanted, 0});
        waiters.push_back({&c, nullptr});
      }
    }
    const auto patience = std::chrono::ceil<milliseconds>(wake - now).count();
    if (::poll(events.data(), events.size(), static_cast<int>(patience)) <= 0) {
      return;
    }
    for (std::size_t i = first; i < events.size(); ++i) {
      auto [c, pipe] = waiters[i - first];
      if (events[i].revents == 0 || c->dead) {
        continue;
      }
      if (pipe == nullptr) {
        TendShadow(*c);
      } else if (events[i].events == POLLRDHUP) {
        Close(*c, /*reset=*/false);
      } else if (events[i].events == POLLIN) {
        Read(*c, *pipe);
      } else {
        Write(*c, *pipe);
      }
    }
    if (events[1].revents != 0) {
      TakeCommand();
    }
    if (events[0].revents != 0) {
      Accept();
    }
  }

  void Read(Connection& c, Pipe& pipe) {
    char buffer[kBuffer];
    const ssize_t n = ::recv(pipe.fd, buffer, kBuffer - pipe.waiting, MSG_DONTWAIT);
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
    if (Loses(pipe)) {
      ++lost_;
      return Close(c, /*reset=*/true);
    }
    Take(c, pipe, std::string(buffer, buffer + n));
  }

  // What was read is to be written, all that may pass.
  void Take(Connection& c, Pipe& pipe, std::string bytes) {
    const std::size_t passes = Follow(c, pipe, bytes);
    pipe.rest = bytes.substr(passes);
    bytes.resize(passes);
    if (bytes.empty()) {
      return;
    }
    pipe.read += static_cast<std::int64_t>(bytes.size());
    pipe.waiting += bytes.size();
    pipe.pieces.push_back({.due = steady_clock::now() + DelayOf(pipe), .bytes = std::move(bytes)});
  }

  // Of the next piece. What is random is a function of the seed, the two tasks and how many pieces
  // have passed from the one to the other.
  microseconds DelayOf(const Pipe& pipe) {
    microseconds late{0};
    for (const auto& [link, delay] : delays_) {
      late = link.Has(pipe.from, pipe.to) ? std::max<microseconds>(late, delay) : late;
    }
    for (const RandomDelay& delay : random_delays_) {
      if (delay.link.Has(pipe.from, pipe.to)) {
        const auto most = static_cast<std::uint64_t>(microseconds(delay.most).count());
        const auto link = static_cast<std::uint64_t>(pipe.from << 8 | pipe.to);
        const std::uint64_t drawn =
            delay.random.Below(most + 1, pieces_[{pipe.from, pipe.to}]++, link);
        late = std::max(late, microseconds(drawn));
      }
    }
    return late;
  }

  void Write(Connection& c, Pipe& pipe) {
    Piece& piece = pipe.pieces.front();
    const ssize_t n = ::send(pipe.to_fd, piece.bytes.data() + piece.at,
                             piece.bytes.size() - piece.at, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
      return;
    }
    if (n < 0) {
      return Close(c, /*reset=*/true);
    }
    piece.at += static_cast<std::size_t>(n);
    pipe.waiting -= static_cast<std::size_t>(n);
    pipe.written += n;
    if (piece.at == piece.bytes.size()) {
      pipe.pieces.pop_front();
    }
    for (; !pipe.ends.empty() && pipe.ends.front().first <= pipe.written; pipe.ends.pop_front()) {
      ++counts_[{pipe.from, pipe.to, pipe.ends.front().second}];
    }
    if (later_.has_value() && later_->link.Has(pipe.from, pipe.to) && (bytes_left_ -= n) <= 0) {
      ++struck_;
      Strike(*std::exchange(later_, std::nullopt));
    }
    if (!c.dead) {
      Finish(c);
    }
  }

  bool Loses(const Pipe& pipe) {
    return loss_.has_value() && loss_->link.Has(pipe.from, pipe.to) &&
           loss_->random.Uniform(draws_++) < loss_->probability;
  }

  // ---- Frames -----------------------------------------------------------------------------------

  // How much of what was read may pass.
  std::size_t Follow(Connection& c, Pipe& pipe, const std::string& bytes) {
    const bool request = &pipe == &c.there;
    if (c.frames == false || (!request && !c.frames.has_value())) {
      return request ? FollowCalls(pipe, bytes) : bytes.size();
    }
    std::size_t at = 0;
    while (at < bytes.size()) {
      if (pipe.frame == 0) {
        const std::size_t more = std::min(kPrefix - pipe.head.size(), bytes.size() - at);
        pipe.head.append(bytes, at, more);
        at += more;
        if (pipe.head.size() < kPrefix) {
          break;
        }
        std::uint32_t prefix[4];
        std::memcpy(prefix, pipe.head.data(), sizeof(prefix));
        c.frames = prefix[0] == kMagic;
        if (!*c.frames) {
          return request ? FollowCalls(pipe, bytes) : bytes.size();
        }
        pipe.method = prefix[1];
        pipe.frame = kPrefix + prefix[2] + prefix[3];
        pipe.of_frame = kPrefix;
        const bool twice = request && Twice(pipe) &&
                           (pipe.method == kPull || pipe.method == kPush ||
                            pipe.method == kPullRows || pipe.method == kPushRows);
        pipe.copy = twice ? pipe.head : "";
        if (hold_.has_value() && hold_->first.From(pipe.from, pipe.to) &&
            hold_->second == pipe.method) {
          hold_.reset();
          ++held_;
          pipe.held = true;
        }
      }
      const std::size_t passes = pipe.held ? std::max(pipe.frame / 2, kPrefix) : pipe.frame;
      const std::size_t more = std::min(passes - pipe.of_frame, bytes.size() - at);
      if (!pipe.copy.empty()) {
        pipe.copy.append(bytes, at, more);
      }
      at += more;
      pipe.of_frame += more;
      if (pipe.held) {
        return at;  // what comes behind is followed when it passes
      }
      if (pipe.of_frame == pipe.frame) {
        pipe.ends.emplace_back(pipe.read + static_cast<std::int64_t>(at), pipe.method);
        pipe.frame = 0;
        pipe.head.clear();
        if (!pipe.copy.empty()) {
          Repeat(c, std::exchange(pipe.copy, ""));
        }
      }
    }
    return bytes.size();
  }

  // The same of a connection for anything else. What is held has its beginning there, perhaps.
  std::size_t FollowCalls(Pipe& pipe, const std::string& bytes) {
    if (!hold_call_.has_value() || !hold_call_->first.From(pipe.from, pipe.to)) {
      pipe.tail.clear();
      return bytes.size();
    }
    const std::string& path = hold_call_->second;
    pipe.tail += bytes;
    if (pipe.tail.find(path) == std::string::npos) {
      pipe.tail.erase(0, pipe.tail.size() - std::min(pipe.tail.size(), path.size() - 1));
      return bytes.size();
    }
    pipe.tail.clear();
    hold_call_.reset();
    ++held_;
    pipe.held = true;
    return 0;
  }

  void Repeat(Connection& c, const std::string& frame) {
    if (c.shadow < 0) {
      c.shadow = ConnectTo(c.port);
    }
    if (c.shadow >= 0) {
      c.to_shadow += frame;
      ++duplicated_;
    }
  }

  // Answers to what came twice are nobody's.
  static void TendShadow(Connection& c) {
    char buffer[kBuffer];
    const ssize_t got = ::recv(c.shadow, buffer, sizeof(buffer), MSG_DONTWAIT);
    bool over = got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
    if (!over && !c.to_shadow.empty()) {
      const ssize_t n =
          ::send(c.shadow, c.to_shadow.data(), c.to_shadow.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      over = n < 0 && errno != EAGAIN && errno != EINTR;
      c.to_shadow.erase(0, n > 0 ? static_cast<std::size_t>(n) : 0);
    }
    if (over) {
      ::close(c.shadow);
      c.shadow = -1;
      c.to_shadow.clear();
    }
  }

  // ---- What the test says -----------------------------------------------------------------------

  void TakeCommand() {
    const int fd = ::accept4(control_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) {
      return;
    }
    std::string line;
    char buffer[512];
    while (line.find('\n') == std::string::npos) {
      pollfd event = {fd, POLLIN, 0};
      const ssize_t n = ::poll(&event, 1, 5000) > 0 ? ::recv(fd, buffer, sizeof(buffer), 0) : 0;
      if (n <= 0) {
        break;
      }
      line.append(buffer, static_cast<std::size_t>(n));
    }
    const std::string answer = Execute(line) + "\n";
    (void)!::send(fd, answer.data(), answer.size(), MSG_NOSIGNAL);
    ::close(fd);
  }

  std::string Execute(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    if (verb == "reset" || verb == "half_open" || verb == "one_way") {
      Cut cut;
      if (!ReadCut(verb, words, &cut)) {
        return "error " + line;
      }
      Strike(cut);
    } else if (verb == "after") {
      Cut cut;
      words >> bytes_left_ >> verb;
      if (!ReadCut(verb, words, &cut)) {
        return "error " + line;
      }
      later_ = cut;
    } else if (verb == "heal") {
      Heal();
    } else if (const std::map<std::string, std::int64_t> numbers = {{"struck", struck_},
                                                                    {"held", held_},
                                                                    {"lost", lost_},
                                                                    {"duplicated", duplicated_}};
               numbers.contains(verb)) {
      return "ok " + std::to_string(numbers.at(verb));
    } else {
      return ExecuteOn(verb, words, line);
    }
    return "ok";
  }

  std::string ExecuteOn(const std::string& verb, std::istringstream& words,
                        const std::string& line) {
    Between link;
    if (!ReadLink(words, &link)) {
      return "error " + line;
    }
    int number = 0;
    if (verb == "duplicate") {
      duplicated_links_.push_back(link);
    } else if (verb == "delay" && words >> number) {
      delays_.emplace_back(link, milliseconds(number));
    } else if (std::uint64_t seed = 0; verb == "delay_randomly" && words >> number >> seed) {
      random_delays_.push_back({link, milliseconds(number), Philox(seed, "delays")});
    } else if (verb == "hold" && words >> number) {
      hold_ = {link, static_cast<std::uint32_t>(number)};
    } else if (std::string path; verb == "hold_call" && words >> path) {
      hold_call_ = {link, path};
    } else if (verb == "count" && words >> number) {
      std::int64_t sum = 0;
      for (const auto& [what, count] : counts_) {
        const auto& [from, to, method] = what;
        sum += link.From(from, to) && method == static_cast<std::uint32_t>(number) ? count : 0;
      }
      return "ok " + std::to_string(sum);
    } else if (double probability = 0; verb == "lose" && words >> probability >> number) {
      loss_.emplace(Loss{link, probability, Philox(static_cast<std::uint64_t>(number), "losses")});
      draws_ = 0;
    } else {
      return "error " + line;
    }
    return "ok";
  }

  static bool ReadLink(std::istringstream& words, Between* link) {
    for (int* const task : {&link->a, &link->b}) {
      std::string name;
      words >> name;
      *task = name == "*" ? kAny : NumberOf(name);
      if (*task == kAny && name != "*") {
        return false;
      }
    }
    return true;
  }

  static bool ReadCut(const std::string& verb, std::istringstream& words, Cut* cut) {
    const std::map<std::string, Fault> faults = {
        {"reset", Fault::kReset}, {"half_open", Fault::kHalfOpen}, {"one_way", Fault::kOneWay}};
    if (!faults.contains(verb) || !ReadLink(words, &cut->link)) {
      return false;
    }
    cut->fault = faults.at(verb);
    std::string word;
    words >> word;
    cut->now = word == "now";
    return true;
  }

  void Strike(const Cut& cut) {
    for (Connection& c : connections_) {
      if (c.dead || !cut.link.Has(c.there.from, c.there.to)) {
        continue;
      }
      if (cut.fault == Fault::kReset) {
        Close(c, /*reset=*/true);
      }
      for (Pipe* pipe : {&c.there, &c.back}) {
        pipe->forgotten = pipe->forgotten || (cut.now && cut.Silences(pipe->from, pipe->to));
      }
    }
    if (cut.fault != Fault::kReset && !cut.now) {
      cuts_.push_back(cut);
    }
  }

  void Heal() {
    cuts_.clear();
    later_.reset();
    hold_.reset();
    hold_call_.reset();
    loss_.reset();
    delays_.clear();
    random_delays_.clear();
    duplicated_links_.clear();
    for (Connection& c : connections_) {
      for (Pipe* pipe : {&c.there, &c.back}) {
        if (pipe->held) {
          pipe->held = false;
          Take(c, *pipe, std::exchange(pipe->rest, ""));
        }
      }
    }
  }

  struct Loss {
    Between link;
    double probability;
    Philox random;
  };
  struct RandomDelay {
    Between link;
    milliseconds most;
    Philox random;
  };

  const std::string folder_;
  int listener_ = -1;
  int control_ = -1;
  std::list<Connection> connections_;
  std::vector<Cut> cuts_;
  std::optional<Cut> later_;  // when so many bytes have passed:
  std::int64_t bytes_left_ = 0;
  std::vector<std::pair<Between, milliseconds>> delays_;
  std::vector<RandomDelay> random_delays_;
  std::map<std::pair<int, int>, std::uint64_t> pieces_;  // that were delayed so, from and to
  std::vector<Between> duplicated_links_;
  std::optional<Loss> loss_;
  std::uint64_t draws_ = 0;
  std::optional<std::pair<Between, std::uint32_t>> hold_;
  std::optional<std::pair<Between, std::string>> hold_call_;
  std::map<std::tuple<int, int, std::uint32_t>, std::int64_t> counts_;
  std::int64_t struck_ = 0;
  std::int64_t held_ = 0;
  std::int64_t lost_ = 0;
  std::int64_t duplicated_ = 0;
};

}  // namespace
}  // namespace cohort::testing

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "tcp_proxy FOLDER\n");
    return 2;
  }
  cohort::testing::Proxy(argv[1]).Run();
}
