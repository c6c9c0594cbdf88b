// FrameChannel: a client's connection to one server, as FrameLink uses it: over TCP, or through
// memory that both share.

#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include "parameter_server/frames/frame_link.h"
#include "parameter_server/frames/frame_memory.h"
#include "parameter_server/frames/sequence_window.h"

namespace cohort::ps {

// One request of a Run.
struct Flight {
  const FrameRequest* request = nullptr;
  std::string head;  // prefix and header
  std::size_t bytes = 0;
  // Asked, and told to ask again.
  std::optional<std::chrono::steady_clock::time_point> unanswered_since;
};

// The requests to one server, and what becomes of their replies, which come in their order.
class Flights {
 public:
  static constexpr std::size_t kMostUnanswered = SequenceWindow::kSize / 2;

  Flights(int server, std::string name, std::chrono::milliseconds answer_timeout)
      : server_(server), name_(std::move(name)), answer_timeout_(answer_timeout) {}

  void Begin(const ReplyHandler* handler, std::size_t* answered);
  void Add(Flight* flight) { to_send_.push_back(flight); }
  bool idle() const { return to_send_.empty() && sent_.empty(); }
  // Those that are to be sent, the first of them first; how many of them now: a server must know,
  // when what was not answered comes again, what became of the first (push_ledger.h).
  const std::deque<Flight*>& to_send() const { return to_send_; }
  std::size_t may_send() const {
    return std::min(to_send_.size(), kMostUnanswered - std::min(kMostUnanswered, sent_.size()));
  }
  // May what was sent arrive a second time while the first is still being served? Values that are
  // assigned would take the place of what was pushed since.
  bool may_overtake() const;
  void Sent();  // the first
  // What was not answered is sent again, in its order, on the next connection.
  void Again();

  // A reply begins. `broken`: the connection's fault; the result is the job's. Where its payload
  // goes: pieces, none of them empty; nothing: it is asked again.
  Result<std::optional<Places>> Place(std::size_t payload_bytes, const FrameHeader& header,
                                      Status* broken);
  // It is there.
  Status Done(const FrameHeader& header);

 private:
  const int server_;
  const std::string name_;
  const std::chrono::milliseconds answer_timeout_;
  std::deque<Flight*> to_send_;
  std::deque<Flight*> sent_;  // and not answered
  const ReplyHandler* handler_ = nullptr;
  std::size_t* answered_ = nullptr;
};

class FrameChannel {
 public:
  virtual ~FrameChannel() = default;
  virtual int fd() const = 0;
  // What fd() is to be polled for before Send, or Receive, can do more; 0: nothing, they can.
  virtual short Awaits(const Flights& flights) = 0;
  // Sends what there is room for; true: some bytes went.
  virtual Result<bool> Send(Flights& flights) = 0;
  // Reads what is there; sets `heard` where that is anything. An error of the connection is
  // `broken`, one of the job the result.
  virtual Status Receive(Flights& flights, bool* heard, Status* broken) = 0;
};

// By the address: TCP, or the unix socket ("unix:...") of a server on this host. Unimplemented, of
// the latter: what is to be sent does not go that way.
// `memory`: of what is sent, what servers of this host may read where it lies; null: nothing.
// Outlives the channel.
Result<std::unique_ptr<FrameChannel>> OpenChannel(const std::string& address, FrameMemory* memory,
                                                  Deadline deadline);
std::unique_ptr<FrameChannel> MakeTcpChannel(Socket socket);
Result<std::unique_ptr<FrameChannel>> MakeSharedChannel(Socket socket, FrameMemory* memory,
                                                        Deadline deadline);

}  // namespace cohort::ps
