#include "parameter_server/frames/frame_channel.h"

#include <algorithm>
#include <utility>

#include "parameter_server/frames/wire.h"
#include "tcp/unix_socket.h"

namespace cohort::ps {

using std::chrono::steady_clock;

void Flights::Begin(const ReplyHandler* handler, std::size_t* answered) {
  to_send_.clear();
  sent_.clear();
  handler_ = handler;
  answered_ = answered;
}

void Flights::Sent() {
  sent_.push_back(to_send_.front());
  to_send_.pop_front();
}

bool Flights::may_overtake() const {
  return std::ranges::all_of(
      sent_, [](const Flight* flight) { return flight->request->method != FrameMethod::kAssign; });
}

void Flights::Again() {
  while (!sent_.empty()) {
    to_send_.push_front(sent_.back());
    sent_.pop_back();
  }
}

Result<std::optional<Places>> Flights::Place(std::size_t payload_bytes, const FrameHeader& header,
                                             Status* broken) {
  if (sent_.empty()) {
    *broken = Internal("a reply that nobody asked for");
    return std::optional<Places>();
  }
  if (header.error().kind() == Error::NOT_YET) {
    const auto now = steady_clock::now();
    const auto since = sent_.front()->unanswered_since.value_or(now);
    sent_.front()->unanswered_since = since;
    if (now - since >= answer_timeout_) {
      const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(now - since);
      return DeadlineExceeded(name_ + ": no answer for " + std::to_string(waited.count()) +
                              " ms: " + header.error().message());
    }
    // Asked again, after those that wait already; of a push a server must still know the number
    // (push_ledger.h), so that only what may be half sent goes before it.
    const FrameMethod method = sent_.front()->request->method;
    const bool push = method == FrameMethod::kPush || method == FrameMethod::kPushRows;
    to_send_.insert(push && !to_send_.empty() ? to_send_.begin() + 1 : to_send_.end(),
                    sent_.front());
    sent_.pop_front();
    return std::optional<Places>();
  }
  if (header.has_error()) {
    return ToStatus(header.error(), name_);
  }
  COHORT_ASSIGN_OR_RETURN(Places places, handler_->place(server_, header));
  std::erase_if(places, [](const auto& place) { return place.empty(); });
  std::size_t bytes = 0;
  for (const std::span<float> place : places) {
    bytes += place.size_bytes();
  }
  if (bytes != payload_bytes) {
    return Internal(name_ + ": a reply of " + std::to_string(payload_bytes) +
                    " bytes for values of " + std::to_string(bytes));
  }
  return std::optional(std::move(places));
}

Status Flights::Done(const FrameHeader& header) {
  sent_.pop_front();
  ++*answered_;
  return handler_->done(server_, header);
}

Result<std::unique_ptr<FrameChannel>> OpenChannel(const std::string& address, FrameMemory* memory,
                                                  Deadline deadline) {
  if (IsUnixAddress(address)) {
    COHORT_ASSIGN_OR_RETURN(Socket socket, ConnectUnix(address, deadline));
    return MakeSharedChannel(std::move(socket), memory, deadline);
  }
  COHORT_ASSIGN_OR_RETURN(Socket socket, Connect(address, deadline));
  COHORT_RETURN_IF_ERROR(Prepare(socket));
  return MakeTcpChannel(std::move(socket));
}

}  // namespace cohort::ps
