// FrameChannel over TCP: payloads are sent from where they lie, and read to where they belong.

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "parameter_server/frames/frame_channel.h"

namespace cohort::ps {
namespace {

constexpr std::size_t kPiecesOfSend = 64;

class TcpChannel final : public FrameChannel {
 public:
  explicit TcpChannel(Socket socket) : socket_(std::move(socket)) {}

  int fd() const override { return socket_.fd(); }
  short Awaits(const Flights& flights) override {
    return flights.may_send() == 0 ? POLLIN : POLLIN | POLLOUT;
  }

  Result<bool> Send(Flights& flights) override {
    const std::deque<Flight*>& to_send = flights.to_send();
    bool some = false;
    while (flights.may_send() > 0) {
      iovec pieces[kPiecesOfSend];
      std::size_t count = 0;
      std::size_t skip = sent_bytes_;
      const auto add = [&](const void* memory, std::size_t bytes) {
        const std::size_t skipped = std::min(skip, bytes);
        skip -= skipped;
        if (bytes > skipped && count < kPiecesOfSend) {
          pieces[count++] = {const_cast<char*>(static_cast<const char*>(memory)) + skipped,
                             bytes - skipped};
        }
      };
      for (std::size_t f = 0; f < flights.may_send() && count < kPiecesOfSend; ++f) {
        add(to_send[f]->head.data(), to_send[f]->head.size());
        for (const std::span<const float> piece : to_send[f]->request->payload) {
          add(piece.data(), piece.size_bytes());
        }
      }
      msghdr message = {};
      message.msg_iov = pieces;
      message.msg_iovlen = count;
      const ssize_t sent = ::sendmsg(socket_.fd(), &message, MSG_NOSIGNAL);
      if (sent < 0) {
        if (errno == EINTR) {
          continue;
        }
        if (errno == EAGAIN) {
          return some;
        }
        return ErrnoStatus(errno, "connection");
      }
      some = true;
      sent_bytes_ += static_cast<std::size_t>(sent);
      while (!to_send.empty() && sent_bytes_ >= to_send.front()->bytes) {
        sent_bytes_ -= to_send.front()->bytes;
        flights.Sent();
      }
    }
    return some;
  }

  Status Receive(Flights& flights, bool* heard, Status* broken) override {
    while (broken->ok()) {
      const Result<bool> some = reader_.ReadSome(socket_, target(), &done_);
      if (!some.ok()) {
        *broken = some.status();
        return {};
      }
      if (!*some) {
        return {};
      }
      *heard = true;
      while (broken->ok() && done_ == target().size()) {
        COHORT_RETURN_IF_ERROR(Advance(flights, broken));
      }
      if (flights.idle()) {
        return {};
      }
    }
    return {};
  }

 private:
  enum class Stage { kPrefix, kHeader, kPayload };

  std::span<std::byte> target() {
    switch (stage_) {
      case Stage::kPrefix:
        return std::as_writable_bytes(std::span(&prefix_, 1));
      case Stage::kHeader:
        return std::as_writable_bytes(std::span(text_));
      case Stage::kPayload:
        break;
    }
    return std::as_writable_bytes(places_[place_]);
  }

  // The present target is full.
  Status Advance(Flights& flights, Status* broken) {
    done_ = 0;
    switch (stage_) {
      case Stage::kPrefix:
        *broken = prefix_.Check();
        if (broken->ok()) {
          text_.resize(prefix_.header_bytes);
          stage_ = Stage::kHeader;
        }
        return {};
      case Stage::kHeader: {
        if (!header_.ParseFromString(text_)) {
          *broken = Internal("a reply's header cannot be parsed");
          return {};
        }
        COHORT_ASSIGN_OR_RETURN(std::optional<Places> places,
                                flights.Place(prefix_.payload_bytes, header_, broken));
        if (!places.has_value()) {
          stage_ = Stage::kPrefix;
          return {};
        }
        places_ = std::move(*places);
        place_ = 0;
        stage_ = Stage::kPayload;
        break;
      }
      case Stage::kPayload:
        ++place_;
        break;
    }
    if (place_ == places_.size()) {
      stage_ = Stage::kPrefix;
      return flights.Done(header_);
    }
    return {};
  }

  const Socket socket_;
  BufferedReader reader_;
  std::size_t sent_bytes_ = 0;  // of the first that is to be sent

  // The reply that is being read.
  Stage stage_ = Stage::kPrefix;
  std::size_t done_ = 0;
  FramePrefix prefix_;
  std::string text_;
  FrameHeader header_;
  Places places_;
  std::size_t place_ = 0;
};

}  // namespace

std::unique_ptr<FrameChannel> MakeTcpChannel(Socket socket) {
  return std::make_unique<TcpChannel>(std::move(socket));
}

}  // namespace cohort::ps
