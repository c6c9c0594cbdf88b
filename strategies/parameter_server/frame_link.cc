#include "parameter_server/frame_link.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <mutex>
#include <optional>

#include <cohort/core/clock.h>

#include "parameter_server/wire.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kFirstBackoff{20};
constexpr milliseconds kLastBackoff{500};
constexpr milliseconds kConnectTimeout{1'000};  // of one try
constexpr std::size_t kPiecesOfSend = 64;

// One request of a Run.
struct Flight {
  const FrameRequest* request = nullptr;
  std::string head;  // prefix and header
  std::size_t bytes = 0;
  std::optional<steady_clock::time_point> unanswered_since;  // asked, and told to ask again
};

// The connection to one server, and its part of a Run.
class Line {
 public:
  explicit Line(milliseconds answer_timeout) : answer_timeout_(answer_timeout) {}

  void Begin() {
    to_send_.clear();
    sent_.clear();
    backoff_ = kFirstBackoff;
    heard_ = steady_clock::now();
    retry_at_ = heard_;
    tried_ = false;
  }
  // Its silence counts from now on, whatever the other lines were waited for.
  void Try() {
    if (!tried_) {
      tried_ = true;
      heard_ = steady_clock::now();
    }
  }
  void Add(Flight* flight) { to_send_.push_back(flight); }
  bool idle() const { return to_send_.empty() && sent_.empty(); }
  bool open() const { return socket_.open(); }
  int fd() const { return socket_.fd(); }
  bool wants_to_send() const { return open() && !to_send_.empty(); }
  steady_clock::time_point heard() const { return heard_; }
  steady_clock::time_point retry_at() const { return retry_at_; }

  Status Open(const Result<std::string>& address) {
    COHORT_RETURN_IF_ERROR(address.status());
    COHORT_ASSIGN_OR_RETURN(Socket socket, Connect(*address, DeadlineAfter(kConnectTimeout)));
    COHORT_RETURN_IF_ERROR(Prepare(socket));
    socket_ = std::move(socket);
    return {};
  }

  // What was not answered is sent again, in its order, on the next connection.
  void Break(const Status& why) {
    socket_.Close();
    reader_.Reset();
    sent_bytes_ = 0;
    stage_ = Stage::kPrefix;
    done_ = 0;
    while (!sent_.empty()) {
      to_send_.push_front(sent_.back());
      sent_.pop_back();
    }
    why_ = why;
    retry_at_ = steady_clock::now() + backoff_;
    backoff_ = std::min(backoff_ * 2, kLastBackoff);
  }
  const Status& why() const { return why_; }

  Status Send() {
    while (!to_send_.empty()) {
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
      for (std::size_t f = 0; f < to_send_.size() && count < kPiecesOfSend; ++f) {
        add(to_send_[f]->head.data(), to_send_[f]->head.size());
        for (const std::span<const float> piece : to_send_[f]->request->payload) {
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
        return errno == EAGAIN ? OkStatus() : ErrnoStatus(errno, "connection");
      }
      heard_ = steady_clock::now();
      sent_bytes_ += static_cast<std::size_t>(sent);
      while (!to_send_.empty() && sent_bytes_ >= to_send_.front()->bytes) {
        sent_bytes_ -= to_send_.front()->bytes;
        sent_.push_back(to_send_.front());
        to_send_.pop_front();
      }
    }
    return {};
  }

  // Reads what is there. An error of the connection is `*broken`, an error of the job the result.
  Status Receive(int server, const std::string& name, const ReplyHandler& handler,
                 std::size_t* answered, Status* broken) {
    while (broken->ok()) {
      const Result<bool> some = ReadSome();
      if (!some.ok()) {
        *broken = some.status();
        return {};
      }
      if (!*some) {
        return {};
      }
      heard_ = steady_clock::now();
      backoff_ = kFirstBackoff;
      while (broken->ok() && done_ == target().size()) {
        COHORT_RETURN_IF_ERROR(Advance(server, name, handler, answered, broken));
      }
      if (idle()) {
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
  Result<bool> ReadSome() { return reader_.ReadSome(socket_, target(), &done_); }

  // The present target is full.
  Status Advance(int server, const std::string& name, const ReplyHandler& handler,
                 std::size_t* answered, Status* broken) {
    done_ = 0;
    switch (stage_) {
      case Stage::kPrefix:
        *broken = prefix_.Check();
        if (broken->ok() && sent_.empty()) {
          *broken = Internal("a reply that nobody asked for");
        }
        if (!broken->ok()) {
          return {};
        }
        text_.resize(prefix_.header_bytes);
        stage_ = Stage::kHeader;
        return {};
      case Stage::kHeader: {
        if (!header_.ParseFromString(text_)) {
          *broken = Internal("a reply's header cannot be parsed");
          return {};
        }
        if (header_.error().kind() == Error::NOT_YET) {
          const auto now = steady_clock::now();
          const auto since = sent_.front()->unanswered_since.value_or(now);
          sent_.front()->unanswered_since = since;
          if (now - since >= answer_timeout_) {
            return DeadlineExceeded(
                name + ": no answer for " +
                std::to_string(std::chrono::duration_cast<milliseconds>(now - since).count()) +
                " ms: " + header_.error().message());
          }
          to_send_.push_back(sent_.front());  // asked again, after those that wait already
          sent_.pop_front();
          stage_ = Stage::kPrefix;
          return {};
        }
        if (header_.has_error()) {
          return ToStatus(header_.error(), name);
        }
        COHORT_ASSIGN_OR_RETURN(places_, handler.place(server, header_));
        std::erase_if(places_, [](const auto& place) { return place.empty(); });
        std::size_t bytes = 0;
        for (const std::span<float> place : places_) {
          bytes += place.size_bytes();
        }
        if (bytes != prefix_.payload_bytes) {
          return Internal(name + ": a reply of " + std::to_string(prefix_.payload_bytes) +
                          " bytes for values of " + std::to_string(bytes));
        }
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
      sent_.pop_front();
      ++*answered;
      return handler.done(server, header_);
    }
    return {};
  }

  const milliseconds answer_timeout_;
  Socket socket_;
  BufferedReader reader_;
  std::deque<Flight*> to_send_;
  std::size_t sent_bytes_ = 0;  // of the first
  std::deque<Flight*> sent_;    // and not answered
  steady_clock::time_point heard_;
  bool tried_ = false;
  steady_clock::time_point retry_at_;
  milliseconds backoff_ = kFirstBackoff;
  Status why_;

  // The reply that is being read.
  Stage stage_ = Stage::kPrefix;
  std::size_t done_ = 0;
  FramePrefix prefix_;
  std::string text_;
  FrameHeader header_;
  Places places_;
  std::size_t place_ = 0;
};

class Implementation final : public FrameLink {
 public:
  Implementation(std::vector<std::string> names, Locate locate, milliseconds peer_timeout,
                 milliseconds answer_timeout)
      : names_(std::move(names)),
        locate_(std::move(locate)),
        peer_timeout_(peer_timeout),
        wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    for (std::size_t s = 0; s < names_.size(); ++s) {
      lines_.emplace_back(answer_timeout);
    }
  }

  Status Run(std::span<const FrameRequest> requests, const ReplyHandler& handler) override {
    std::vector<Flight> flights(requests.size());
    for (Line& line : lines_) {
      line.Begin();
    }
    for (std::size_t i = 0; i < requests.size(); ++i) {
      std::size_t payload = 0;
      for (const std::span<const float> piece : requests[i].payload) {
        payload += piece.size_bytes();
      }
      flights[i] = {.request = &requests[i],
                    .head = EncodeFrame(requests[i].method, requests[i].header, payload)};
      flights[i].bytes = flights[i].head.size() + payload;
      lines_[static_cast<std::size_t>(requests[i].server)].Add(&flights[i]);
    }
    const Status status = RunAll(requests.size(), handler);
    if (!status.ok()) {
      // Nothing of these requests may reach a server, or this memory, later.
      for (Line& line : lines_) {
        if (!line.idle()) {
          line.Break(status);
          line.Begin();
        }
      }
    }
    return status;
  }

  void Abort(const Status& why) override {
    {
      const std::lock_guard lock(mutex_);
      if (aborted_.ok()) {
        aborted_ = why;
      }
    }
    const std::uint64_t one = 1;
    (void)!::write(wake_.fd(), &one, sizeof(one));
  }
  Status aborted() const override {
    const std::lock_guard lock(mutex_);
    return aborted_;
  }

 private:
  Status RunAll(std::size_t count, const ReplyHandler& handler) {
    std::vector<pollfd> events(lines_.size() + 1);
    for (std::size_t answered = 0; answered < count;) {
      COHORT_RETURN_IF_ERROR(aborted());
      Deadline wake = steady_clock::now() + milliseconds(200);
      for (std::size_t s = 0; s < lines_.size(); ++s) {
        COHORT_RETURN_IF_ERROR(Tend(s, &wake));
        const Line& line = lines_[s];
        events[s] = {line.open() && !line.idle() ? line.fd() : -1,
                     static_cast<short>(line.wants_to_send() ? POLLIN | POLLOUT : POLLIN), 0};
      }
      events.back() = {wake_.fd(), POLLIN, 0};
      ::poll(events.data(), events.size(), PollTimeout(wake));
      for (std::size_t s = 0; s < lines_.size(); ++s) {
        if (events[s].revents == 0) {
          COHORT_RETURN_IF_ERROR(CheckSilence(s));
          continue;
        }
        Status broken;
        if ((events[s].revents & POLLOUT) != 0) {
          broken = lines_[s].Send();
        }
        if (broken.ok()) {
          COHORT_RETURN_IF_ERROR(
              lines_[s].Receive(static_cast<int>(s), names_[s], handler, &answered, &broken));
        }
        if (!broken.ok()) {
          lines_[s].Break(broken);
        }
      }
    }
    return {};
  }

  // Gives up a server that is silent: asked when nothing of it is there to be read.
  Status CheckSilence(std::size_t s) const {
    const Line& line = lines_[s];
    if (line.idle() || steady_clock::now() - line.heard() < peer_timeout_) {
      return {};
    }
    return Unavailable(names_[s] + " does not answer" +
                       (line.why().ok() ? "" : ": " + line.why().message()) +
                       " [its variables are lost if it has ended: restart the job from its last "
                       "checkpoint]");
  }

  // Connects where that is due, and sends at once what can be sent.
  Status Tend(std::size_t s, Deadline* wake) {
    Line& line = lines_[s];
    if (line.idle()) {
      return {};
    }
    const auto now = steady_clock::now();
    line.Try();
    if (!line.open()) {
      if (now < line.retry_at()) {
        *wake = std::min(*wake, line.retry_at());
        return {};
      }
      if (const Status status = line.Open(locate_(static_cast<int>(s))); !status.ok()) {
        line.Break(status);
        *wake = std::min(*wake, line.retry_at());
        return {};
      }
    }
    if (line.wants_to_send()) {
      if (const Status status = line.Send(); !status.ok()) {
        line.Break(status);
        *wake = std::min(*wake, line.retry_at());
      }
    }
    return {};
  }

  const std::vector<std::string> names_;
  const Locate locate_;
  const milliseconds peer_timeout_;
  const Socket wake_;
  std::deque<Line> lines_;
  mutable std::mutex mutex_;
  Status aborted_;
};

}  // namespace

std::unique_ptr<FrameLink> FrameLink::Make(std::vector<std::string> names, Locate locate,
                                           std::chrono::milliseconds peer_timeout,
                                           std::chrono::milliseconds answer_timeout) {
  return std::make_unique<Implementation>(std::move(names), std::move(locate), peer_timeout,
                                          answer_timeout);
}

}  // namespace cohort::ps
