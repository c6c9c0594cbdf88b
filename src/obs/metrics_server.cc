// One poll loop on nonblocking sockets. A connection reads its request, writes its answer, and then
// drops what still comes until the other side has closed: closing at once would make the kernel
// throw away the answer together with what was not read.

#include <cohort/obs/metrics_server.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <cohort/core/clock.h>

namespace cohort {
namespace {

constexpr std::string_view kPlain = "text/plain; charset=utf-8";
constexpr std::string_view kPage = "text/plain; version=0.0.4; charset=utf-8";

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

struct Connection {
  enum class State { kReading, kWriting, kDraining };

  Fd fd;
  Deadline deadline;
  State state = State::kReading;
  std::string request;
  std::string answer;
  std::size_t written = 0;
};

std::string Answer(std::string_view status, std::string_view type, const std::string& body,
                   std::string_view header = "") {
  std::string answer = "HTTP/1.1 ";
  answer.append(status).append("\r\nContent-Type: ").append(type);
  answer.append("\r\nContent-Length: ").append(std::to_string(body.size())).append("\r\n");
  answer.append(header).append("Connection: close\r\n\r\n");
  return answer + body;
}

std::string ErrorAnswer(std::string_view status, std::string_view header = "") {
  return Answer(status, kPlain, std::string(status) + "\n", header);
}

// Where a request's head ends, if it does.
std::optional<std::size_t> EndOfHead(std::string_view text) {
  for (const std::string_view end : {"\r\n\r\n", "\n\n"}) {
    if (const std::size_t at = text.find(end); at != text.npos) {
      return at + end.size();
    }
  }
  return std::nullopt;
}

struct RequestLine {
  std::string_view method;
  std::string_view path;
};

// "GET /metrics?x=y HTTP/1.1"
std::optional<RequestLine> ParseRequestLine(std::string_view request) {
  std::string_view line = request.substr(0, request.find('\n'));
  if (line.ends_with('\r')) {
    line.remove_suffix(1);
  }
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  if (first == line.npos || first == last) {
    return std::nullopt;
  }
  const std::string_view method = line.substr(0, first);
  const std::string_view target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  const bool upper =
      !method.empty() && std::ranges::all_of(method, [](char c) { return c >= 'A' && c <= 'Z'; });
  if (!upper || !target.starts_with('/') || target.find(' ') != target.npos ||
      (version != "HTTP/1.1" && version != "HTTP/1.0")) {
    return std::nullopt;
  }
  return RequestLine{method, target.substr(0, target.find('?'))};
}

bool WouldBlock(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

class HttpMetricsServer final : public MetricsServer {
 public:
  HttpMetricsServer(const Metrics& metrics, MetricsServerOptions options)
      : metrics_(metrics), options_(std::move(options)) {}

  ~HttpMetricsServer() override {
    if (thread_.joinable()) {
      constexpr std::uint64_t kOne = 1;
      (void)!::write(stop_.get(), &kOne, sizeof kOne);
      thread_.join();
    }
  }

  int port() const override { return port_; }
  std::string url() const override {
    const bool v6 = options_.host.find(':') != std::string::npos;
    return "http://" + (v6 ? "[" + options_.host + "]" : options_.host) + ":" +
           std::to_string(port_) + "/metrics";
  }

  Status Listen() {
    const std::string where = options_.host + ", port " + std::to_string(options_.port);
    if (options_.port < 0 || options_.port > 65535) {
      return InvalidArgument("metrics on " + where + ": ports end at 65535 [--metrics-port]");
    }
    Require(options_.max_connections > 0, "a metrics server has room for a connection");
    addrinfo hints = {};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
    addrinfo* address = nullptr;
    if (const int error = ::getaddrinfo(options_.host.c_str(),
                                        std::to_string(options_.port).c_str(), &hints, &address);
        error != 0) {
      return InvalidArgument("metrics on " + where + ": " + ::gai_strerror(error) +
                             " [--metrics-host]");
    }
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(address, ::freeaddrinfo);
    listener_ =
        Fd(::socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
    const int yes = 1;
    ::setsockopt(listener_.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (listener_.get() < 0 ||
        ::bind(listener_.get(), address->ai_addr, address->ai_addrlen) != 0 ||
        ::listen(listener_.get(), SOMAXCONN) != 0) {
      const int error = errno;
      const Status status = ErrnoStatus(error, "metrics on " + where);
      return error == EADDRINUSE
                 ? FailedPrecondition(status.message() + " [another --metrics-port]")
                 : status;
    }
    sockaddr_storage bound = {};
    socklen_t size = sizeof bound;
    ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&bound), &size);
    std::array<char, NI_MAXSERV> port = {};
    ::getnameinfo(reinterpret_cast<sockaddr*>(&bound), size, nullptr, 0, port.data(), port.size(),
                  NI_NUMERICSERV);
    port_ = std::stoi(port.data());
    stop_ = Fd(::eventfd(0, EFD_CLOEXEC));
    if (stop_.get() < 0) {
      return ErrnoStatus(errno, "metrics: eventfd");
    }
    thread_ = std::thread([this] {
      ::pthread_setname_np(::pthread_self(), "metrics");
      Run();
    });
    return {};
  }

 private:
  void Run() {
    std::vector<pollfd> events;
    for (;;) {
      events = {{stop_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
      Deadline next = DeadlineAfter(std::chrono::hours(1));
      if (DeadlineAfter({}) < accept_from_) {
        events[1].fd = -1;
        next = accept_from_;
      }
      for (const Connection& connection : connections_) {
        const bool writes = connection.state == Connection::State::kWriting;
        events.push_back({connection.fd.get(), static_cast<short>(writes ? POLLOUT : POLLIN), 0});
        next = std::min(next, connection.deadline);
      }
      const auto wait =
          std::chrono::ceil<std::chrono::milliseconds>(next - std::chrono::steady_clock::now());
      ::poll(events.data(), events.size(),
             static_cast<int>(std::max<std::int64_t>(0, wait.count())));
      if (events[0].revents != 0) {
        return;
      }
      const Deadline now = std::chrono::steady_clock::now();
      for (std::size_t i = connections_.size(); i-- > 0;) {
        const bool ready = events[i + 2].revents != 0;
        if ((ready && !Advance(connections_[i])) || connections_[i].deadline <= now) {
          connections_.erase(connections_.begin() + static_cast<std::ptrdiff_t>(i));
        }
      }
      if (events[1].revents != 0) {
        Accept();
      }
    }
  }

  void Accept() {
    Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd.get() < 0) {
      if (!WouldBlock(errno)) {
        accept_from_ = DeadlineAfter(std::chrono::milliseconds(100));  // no more files, say
      }
      return;
    }
    if (std::ssize(connections_) >= options_.max_connections) {
      connections_.erase(connections_.begin());
    }
    connections_.push_back({std::move(fd), DeadlineAfter(options_.timeout)});
  }

  // As far as it goes now. False: the connection is done with.
  bool Advance(Connection& connection) {
    switch (connection.state) {
      case Connection::State::kReading:
        return Read(connection);
      case Connection::State::kWriting:
        return Write(connection);
      case Connection::State::kDraining:
        return Receive(connection).has_value();
    }
    return false;
  }

  bool Read(Connection& connection) {
    const std::optional<std::string_view> got = Receive(connection);
    if (!got.has_value()) {
      return false;
    }
    connection.request += *got;
    const std::optional<std::size_t> end = EndOfHead(connection.request);
    const std::size_t most = options_.max_request_bytes;
    if (end.value_or(connection.request.size()) > most) {
      connection.answer = ErrorAnswer("431 Request Header Fields Too Large");
    } else if (end.has_value()) {
      connection.answer = Respond(connection.request);
    } else {
      return true;
    }
    connection.request.clear();
    connection.state = Connection::State::kWriting;
    return Write(connection);
  }

  bool Write(Connection& connection) {
    const std::string_view left = std::string_view(connection.answer).substr(connection.written);
    const ssize_t sent = ::send(connection.fd.get(), left.data(), left.size(), MSG_NOSIGNAL);
    if (sent < 0) {
      return WouldBlock(errno);
    }
    connection.written += static_cast<std::size_t>(sent);
    if (connection.written == connection.answer.size()) {
      ::shutdown(connection.fd.get(), SHUT_WR);
      connection.state = Connection::State::kDraining;
    }
    return true;
  }

  // What came, until the next call. None: the other side has closed.
  std::optional<std::string_view> Receive(const Connection& connection) {
    const ssize_t got = ::recv(connection.fd.get(), buffer_.data(), buffer_.size(), 0);
    if (got < 0 && WouldBlock(errno)) {
      return std::string_view();
    }
    return got <= 0
               ? std::nullopt
               : std::optional(std::string_view(buffer_.data(), static_cast<std::size_t>(got)));
  }

  std::string Respond(std::string_view request) const {
    const std::optional<RequestLine> line = ParseRequestLine(request);
    if (!line.has_value()) {
      return ErrorAnswer("400 Bad Request");
    }
    std::string answer = AnswerTo(*line);
    if (line->method == "HEAD") {
      answer.resize(*EndOfHead(answer));
    }
    return answer;
  }

  std::string AnswerTo(const RequestLine& line) const {
    const bool page = line.path == "/metrics";
    const bool ready = line.path == "/readyz";
    if (!page && !ready && line.path != "/healthz") {
      return ErrorAnswer("404 Not Found");
    }
    if (line.method != "GET" && line.method != "HEAD") {
      return ErrorAnswer("405 Method Not Allowed", "Allow: GET, HEAD\r\n");
    }
    if (page) {
      return Answer("200 OK", kPage, metrics_.ToText());
    }
    return !ready || metrics_.ready()
               ? Answer("200 OK", kPlain, "ok\n")
               : Answer("503 Service Unavailable", kPlain, "training has not begun\n");
  }

  const Metrics& metrics_;
  const MetricsServerOptions options_;
  int port_ = 0;
  Fd listener_;
  Fd stop_;
  std::thread thread_;                   // what follows is its own
  std::vector<Connection> connections_;  // the oldest first
  Deadline accept_from_;
  std::array<char, 4096> buffer_;
};

}  // namespace

Result<std::unique_ptr<MetricsServer>> MetricsServer::Start(const Metrics& metrics,
                                                            MetricsServerOptions options) {
  auto server = std::make_unique<HttpMetricsServer>(metrics, std::move(options));
  COHORT_RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace cohort
