#include "parameter_server/frames/frame_link.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <mutex>
#include <utility>

#include <cohort/core/clock.h>

#include "parameter_server/frames/frame_channel.h"
#include "parameter_server/frames/frame_memory.h"
#include "parameter_server/model/layout.h"
#include "tcp/unix_socket.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kFirstBackoff{20};
constexpr milliseconds kLastBackoff{500};
constexpr milliseconds kConnectTimeout{1'000};  // of one try

// The connection to one server, and its part of a Run.
class Line {
 public:
  Line(int server, const std::string& name, milliseconds answer_timeout)
      : server_(server), flights_(server, name, answer_timeout) {}

  void Begin(const ReplyHandler* handler, std::size_t* answered) {
    flights_.Begin(handler, answered);
    backoff_ = kFirstBackoff;
    heard_ = steady_clock::now();
    retry_at_ = heard_;
    tried_ = false;
    renewed_ = false;
  }
  // Its silence counts from now on, whatever the other lines were waited for.
  void Try() {
    if (!tried_) {
      tried_ = true;
      heard_ = steady_clock::now();
    }
  }
  void Add(Flight* flight) { flights_.Add(flight); }
  bool idle() const { return flights_.idle(); }
  bool open() const { return channel_ != nullptr; }
  int fd() const { return channel_->fd(); }
  short Awaits() { return channel_->Awaits(flights_); }
  bool wants_to_send() const { return open() && !flights_.to_send().empty(); }
  steady_clock::time_point heard() const { return heard_; }
  steady_clock::time_point retry_at() const { return retry_at_; }

  // Who would tell the address may be silent in the same way as the connection, and time is short:
  // another connection in a silent one's place is made to where that was.
  Status Open(const FrameLink::Locate& locate, FrameMemory* memory) {
    std::string address = std::exchange(again_, "");
    if (address.empty()) {
      const Result<std::string> told = locate(server_, may_share_);
      if (!told.ok() && !(renewed_ && !address_.empty())) {
        return told.status();
      }
      address = told.ok() ? *told : address_;
    }
    Result<std::unique_ptr<FrameChannel>> channel =
        OpenChannel(address, memory, DeadlineAfter(kConnectTimeout));
    if (!channel.ok()) {
      may_share_ = may_share_ && !IsUnixAddress(address);
      return channel.status();
    }
    channel_ = std::move(channel).value();
    address_ = address;
    return {};
  }

  // What was not answered is sent again, in its order, on the next connection.
  void Break(const Status& why) {
    may_share_ = may_share_ && why.code() != StatusCode::kUnimplemented;
    channel_.reset();
    flights_.Again();
    why_ = why;
    retry_at_ = steady_clock::now() + backoff_;
    backoff_ = std::min(backoff_ * 2, kLastBackoff);
  }
  const Status& why() const { return why_; }

  // What is to be sent, and what has been, and the connection with it; needs no memory.
  void Forget() {
    channel_.reset();
    flights_.Begin(nullptr, nullptr);
  }

  Status Send() {
    COHORT_ASSIGN_OR_RETURN(const bool some, channel_->Send(flights_));
    if (some && !renewed_) {
      heard_ = steady_clock::now();
    }
    return {};
  }

  // A connection, of TCP, may be dead and nobody say so. Once in a silence, before that is too
  // long, another one is tried, where all that was not answered is sent again.
  void RenewIfSilent(milliseconds patience) {
    if (open() && !renewed_ && !IsUnixAddress(address_) && flights_.may_overtake() &&
        steady_clock::now() - heard_ >= patience) {
      renewed_ = true;
      again_ = address_;
      Break(Unavailable("nothing comes on a connection, nor on another one in its place"));
      retry_at_ = steady_clock::now();
    }
  }

  // Reads what is there. An error of the connection is `*broken`, an error of the job the result.
  Status Receive(Status* broken) {
    bool heard = false;
    const Status status = channel_->Receive(flights_, &heard, broken);
    if (heard) {
      heard_ = steady_clock::now();
      renewed_ = false;
      backoff_ = kFirstBackoff;
    }
    return status;
  }

 private:
  const int server_;
  Flights flights_;
  std::unique_ptr<FrameChannel> channel_;
  std::string address_;    // of the last one
  std::string again_;      // where the next one is made, without asking
  bool may_share_ = true;  // memory with the server
  steady_clock::time_point heard_;
  bool tried_ = false;
  bool renewed_ = false;  // since
  steady_clock::time_point retry_at_;
  milliseconds backoff_ = kFirstBackoff;
  Status why_;
};

class LinesOfServers final : public FrameLink {
 public:
  LinesOfServers(std::vector<std::string> names, Locate locate, milliseconds peer_timeout,
                 milliseconds answer_timeout, std::shared_ptr<FrameMemory> memory)
      : names_(std::move(names)),
        locate_(std::move(locate)),
        peer_timeout_(peer_timeout),
        memory_(std::move(memory)),
        wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    for (std::size_t s = 0; s < names_.size(); ++s) {
      lines_.emplace_back(static_cast<int>(s), names_[s], answer_timeout);
    }
  }

  Status Run(std::span<const FrameRequest> requests, const ReplyHandler& handler) override {
    std::vector<Flight> flights(requests.size());
    std::size_t answered = 0;
    try {
      return Run(requests, handler, flights, &answered);
    } catch (...) {  // no memory, or a handler's
      for (Line& line : lines_) {
        line.Forget();
      }
      throw;
    }
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
  Status Run(std::span<const FrameRequest> requests, const ReplyHandler& handler,
             std::vector<Flight>& flights, std::size_t* answered) {
    for (Line& line : lines_) {
      line.Begin(&handler, answered);
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
    const Status status = RunAll(requests.size(), answered);
    if (!status.ok()) {
      // Nothing of these requests may reach a server, or this memory, later.
      for (Line& line : lines_) {
        if (!line.idle()) {
          line.Break(Cancelled(status.message()));
          line.Begin(nullptr, nullptr);
        }
      }
    }
    return status;
  }

  Status RunAll(std::size_t count, const std::size_t* answered) {
    std::vector<pollfd> events(lines_.size() + 1);
    while (*answered < count) {
      COHORT_RETURN_IF_ERROR(aborted());
      COHORT_RETURN_IF_ERROR(memory_ == nullptr ? OkStatus() : memory_->status());
      Deadline wake = steady_clock::now() + milliseconds(200);
      std::vector<std::size_t>& ready = ready_;  // without being waited for
      ready.clear();
      for (std::size_t s = 0; s < lines_.size(); ++s) {
        COHORT_RETURN_IF_ERROR(Tend(s, &wake));
        Line& line = lines_[s];
        const bool at_work = line.open() && !line.idle();
        events[s] = {at_work ? line.fd() : -1, at_work ? line.Awaits() : short{0}, 0};
        if (at_work && events[s].events == 0) {
          wake = steady_clock::now();
          ready.push_back(s);
        }
      }
      events.back() = {wake_.fd(), POLLIN, 0};
      if (ready.size() < lines_.size()) {  // one line alone that is ready need not ask
        ::poll(events.data(), events.size(), PollTimeout(wake));
      }
      for (const std::size_t s : ready) {
        events[s].revents |= POLLIN;
      }
      for (std::size_t s = 0; s < lines_.size(); ++s) {
        if (events[s].revents == 0) {
          COHORT_RETURN_IF_ERROR(CheckSilence(s));
          if (!lines_[s].idle()) {
            lines_[s].RenewIfSilent(peer_timeout_ / 2);
          }
          continue;
        }
        Status broken;
        if ((events[s].revents & POLLOUT) != 0) {
          broken = lines_[s].Send();
        }
        if (broken.ok()) {
          COHORT_RETURN_IF_ERROR(lines_[s].Receive(&broken));
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
      if (const Status status = line.Open(locate_, memory_.get()); !status.ok()) {
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
  const std::shared_ptr<FrameMemory> memory_;  // shared with who sends from there
  const Socket wake_;
  std::deque<Line> lines_;
  std::vector<std::size_t> ready_;
  mutable std::mutex mutex_;
  Status aborted_;
};

}  // namespace

void AddCopies(int servers, std::vector<FrameRequest>* requests) {
  const std::size_t count = requests->size();
  requests->reserve(2 * count);
  for (std::size_t i = 0; i < count; ++i) {
    if ((*requests)[i].method == FrameMethod::kPull) {
      continue;
    }
    FrameRequest& copy = requests->emplace_back((*requests)[i]);
    copy.server = LineOf(copy.server, servers, /*copy=*/true);
    copy.header.set_copy(true);
    copy.header.set_pull(false);
  }
}

std::unique_ptr<FrameLink> FrameLink::Make(std::vector<std::string> names, Locate locate,
                                           std::chrono::milliseconds peer_timeout,
                                           std::chrono::milliseconds answer_timeout,
                                           std::shared_ptr<FrameMemory> memory) {
  return std::make_unique<LinesOfServers>(std::move(names), std::move(locate), peer_timeout,
                                          answer_timeout, std::move(memory));
}

}  // namespace cohort::ps
