// FrameConnection over TCP.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>
#include <utility>

#include "parameter_server/frames/frame_connection.h"

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

class TcpConnection final : public FrameConnection {
 public:
  TcpConnection(Socket socket, const FrameHandler& handler, const Log& log)
      : socket_(std::move(socket)), handler_(handler), log_(log), peer_(PeerOf(socket_)) {
    KeepAlive(socket_);
    SendUnpaced(socket_);
    thread_ = std::thread([this] { Serve(); });
  }
  ~TcpConnection() override {
    ::shutdown(socket_.fd(), SHUT_RDWR);
    thread_.join();
  }
  bool over() const override { return over_.load(std::memory_order_acquire); }

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
    // Of gradients, what has come is looked at while the rest is on its way.
    bool finite = static_cast<FrameMethod>(prefix.method) == FrameMethod::kPush;
    COHORT_RETURN_IF_ERROR(Read(std::as_writable_bytes(payload), finite ? &finite : nullptr));
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
             PayloadReader(Segments{std::as_bytes(std::span<const float>(payload))}, finite), peer_,
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

  // `finite`, unless null: cleared where floats that were read are not AllFinite.
  Status Read(std::span<std::byte> to, bool* finite = nullptr) {
    std::size_t seen = 0;
    for (std::size_t done = 0; done < to.size();) {
      // A whole frame need not have come: nobody waits for replies while this one does.
      if (reader_.empty() && !out_.empty()) {
        COHORT_RETURN_IF_ERROR(Flush({}));
      }
      COHORT_RETURN_IF_ERROR(reader_.ReadSome(socket_, to, &done).status());
      if (finite != nullptr && *finite) {
        const std::size_t floats = done / sizeof(float) - seen;
        *finite = AllFinite({reinterpret_cast<const float*>(to.data()) + seen, floats});
        seen += floats;
      }
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

}  // namespace

std::unique_ptr<FrameConnection> MakeTcpConnection(Socket socket, const FrameHandler& handler,
                                                   const Log& log) {
  return std::make_unique<TcpConnection>(std::move(socket), handler, log);
}

}  // namespace cohort::ps
