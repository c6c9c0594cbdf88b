#include "parameter_server/frame_listener.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>

namespace cohort::ps {
namespace {

constexpr std::size_t kFlushBytes = 64 << 10;

Status SendAll(const Socket& socket, std::span<const std::byte> head,
               std::span<const std::byte> tail) {
  while (!head.empty() || !tail.empty()) {
    iovec pieces[2] = {{const_cast<std::byte*>(head.data()), head.size()},
                       {const_cast<std::byte*>(tail.data()), tail.size()}};
    msghdr message = {};
    message.msg_iov = pieces;
    message.msg_iovlen = 2;
    const ssize_t sent = ::sendmsg(socket.fd(), &message, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EINTR) {
        continue;
      }
      return ErrnoStatus(errno, "connection");
    }
    const std::size_t of_head = std::min(head.size(), static_cast<std::size_t>(sent));
    head = head.subspan(of_head);
    tail = tail.subspan(static_cast<std::size_t>(sent) - of_head);
  }
  return {};
}

// A peer that is gone without a word is noticed within half a minute.
void KeepAlive(const Socket& socket) {
  const auto set = [&](int level, int name, int value) {
    ::setsockopt(socket.fd(), level, name, &value, sizeof(value));
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 4);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 30'000);
}

std::string PeerOf(const Socket& socket) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  char text[INET6_ADDRSTRLEN] = "?";
  if (::getpeername(socket.fd(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return text;
  }
  if (address.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    ::inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
    return "[" + std::string(text) + "]:" + std::to_string(ntohs(v6.sin6_port));
  }
  const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
  ::inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text));
  return std::string(text) + ":" + std::to_string(ntohs(v4.sin_port));
}

class Connection {
 public:
  Connection(Socket socket, const FrameHandler& handler, const Log& log)
      : socket_(std::move(socket)), handler_(handler), log_(log), peer_(PeerOf(socket_)) {
    KeepAlive(socket_);
    thread_ = std::thread([this] { Serve(); });
  }
  ~Connection() {
    ::shutdown(socket_.fd(), SHUT_RDWR);
    thread_.join();
  }
  bool over() const { return over_.load(std::memory_order_acquire); }

 private:
  void Serve() {
    Status status;
    try {
      while (status.ok()) {
        status = ServeOne();
      }
    } catch (const std::exception& error) {
      status = Internal(error.what());
    }
    if (status.code() != StatusCode::kUnavailable) {
      log_.Warning("a connection of " + peer_ + " was closed: " + status.message());
    }
    ::shutdown(socket_.fd(), SHUT_RDWR);
    over_.store(true, std::memory_order_release);
  }

  Status ServeOne() {
    FramePrefix prefix;
    COHORT_RETURN_IF_ERROR(Read(std::as_writable_bytes(std::span(&prefix, 1))));
    COHORT_RETURN_IF_ERROR(prefix.Check());
    text_.resize(prefix.header_bytes);
    COHORT_RETURN_IF_ERROR(Read(std::as_writable_bytes(std::span(text_))));
    const std::span<float> payload = payload_.Resize(prefix.payload_bytes / sizeof(float));
    COHORT_RETURN_IF_ERROR(Read(std::as_writable_bytes(payload)));
    FrameHeader header;
    if (!header.ParseFromString(text_)) {
      return InvalidArgument("frame: header cannot be parsed");
    }
    if (header.bounded() && !out_.empty()) {  // it may be parked; others are waited for
      COHORT_RETURN_IF_ERROR(Flush({}));
    }
    values_.Clear();
    FrameReply reply{.payload = &values_};
    handler_(static_cast<FrameMethod>(prefix.method), header,
             PayloadReader(Segments{std::as_bytes(std::span<const float>(payload))}), peer_,
             &reply);
    const std::span<const float> values = values_.values();
    out_ += EncodeFrame(static_cast<FrameMethod>(prefix.method), reply.header, values.size_bytes());
    // While more requests are there already, small replies wait for each other.
    if (values.size_bytes() + out_.size() > kFlushBytes || header.bounded()) {
      return Flush(std::as_bytes(values));
    }
    out_.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
    return {};
  }

  Status Read(std::span<std::byte> to) {
    for (std::size_t done = 0; done < to.size();) {
      // A whole frame need not have come: nobody waits for replies while this one does.
      if (reader_.empty() && !out_.empty()) {
        COHORT_RETURN_IF_ERROR(Flush({}));
      }
      COHORT_RETURN_IF_ERROR(reader_.ReadSome(socket_, to, &done).status());
    }
    return {};
  }

  Status Flush(std::span<const std::byte> payload) {
    const Status status = SendAll(socket_, std::as_bytes(std::span(out_)), payload);
    out_.clear();
    return status;
  }

  Socket socket_;
  const FrameHandler& handler_;
  const Log& log_;
  const std::string peer_;
  BufferedReader reader_;
  std::string text_;
  FloatBuffer payload_;
  FloatBuffer values_;
  std::string out_;
  std::atomic<bool> over_{false};
  std::thread thread_;
};

class Implementation final : public FrameListener {
 public:
  Implementation(Listener listener, FrameHandler handler, const Log& log)
      : handler_(std::move(handler)),
        log_(log),
        listener_(std::move(listener)),
        stop_(::eventfd(0, EFD_CLOEXEC)) {
    thread_ = std::thread([this] { Accept(); });
  }
  ~Implementation() override {
    const std::uint64_t one = 1;
    (void)!::write(stop_.fd(), &one, sizeof(one));
    thread_.join();
    connections_.clear();
  }
  int port() const override {
    return std::stoi(listener_.address.substr(listener_.address.rfind(':') + 1));
  }

 private:
  void Accept() {
    pollfd events[2] = {{listener_.socket.fd(), POLLIN, 0}, {stop_.fd(), POLLIN, 0}};
    for (;;) {
      ::poll(events, 2, 1'000);
      if ((events[1].revents & POLLIN) != 0) {
        return;
      }
      connections_.remove_if([](const Connection& c) { return c.over(); });
      if ((events[0].revents & POLLIN) != 0) {
        Socket socket(::accept4(listener_.socket.fd(), nullptr, nullptr, SOCK_CLOEXEC));
        bool taken = false;
        if (socket.open()) {
          try {
            connections_.emplace_back(std::move(socket), handler_, log_);
            taken = true;
          } catch (const std::system_error& error) {
            log_.Warning(std::string("a connection was refused: ") + error.what());
          }
        }
        if (!taken) {
          std::this_thread::sleep_for(std::chrono::milliseconds(50));  // nothing is left to take it
        }
      }
    }
  }

  const FrameHandler handler_;
  const Log log_;
  const Listener listener_;
  const Socket stop_;
  std::list<Connection> connections_;  // of the thread
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<FrameListener>> FrameListener::Start(const std::string& address,
                                                            FrameHandler handler, const Log& log) {
  COHORT_ASSIGN_OR_RETURN(Listener listener, Listen(address, {}));
  return std::unique_ptr<FrameListener>(
      std::make_unique<Implementation>(std::move(listener), std::move(handler), log));
}

}  // namespace cohort::ps
