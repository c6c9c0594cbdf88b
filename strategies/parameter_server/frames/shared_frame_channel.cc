// FrameChannel through memory that a server of this host shares: payloads are copied there once,
// unless they lie where the server can read them, and replies from there to where they belong.

#include <poll.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "parameter_server/frames/frame_channel.h"
#include "parameter_server/frames/frame_ring.h"

namespace cohort::ps {
namespace {

class SharedChannel final : public FrameChannel {
 public:
  SharedChannel(Socket socket, FrameRings rings, FrameMemory* memory)
      : socket_(std::move(socket)), rings_(std::move(rings)), memory_(memory) {}
  ~SharedChannel() override {
    if (std::ranges::find(lent_, true) != lent_.end()) {
      memory_->Renew();  // the server may be reading there
    }
  }

  int fd() const override { return socket_.fd(); }
  short Awaits(const Flights& flights) override {
    const bool ready =
        (flights.may_send() > 0 && !rings_.out().Sleep(BytesOf(*flights.to_send().front()))) ||
        !rings_.in().Sleep();
    if (ready) {
      return 0;
    }
    rings_.Wake();
    return POLLIN;
  }

  Result<bool> Send(Flights& flights) override {
    bool some = false;
    while (flights.may_send() > 0) {
      const Flight& flight = *flights.to_send().front();
      const bool lent = Lend(flight);
      const std::size_t bytes = BytesOf(flight);
      if (bytes > kRingBytes) {
        return Unimplemented("a frame of " + std::to_string(bytes) + " bytes in shared memory");
      }
      const std::span<std::byte> place = rings_.out().Reserve(bytes);
      if (place.empty()) {
        return some;
      }
      if (lent) {
        COHORT_RETURN_IF_ERROR(memory_->Tell(
            &told_, /*keep=*/!lent_.empty(), [this](const FrameSegment& news, const Socket* fd) {
              return rings_.Lend(news, fd, DeadlineAfter(kTellTimeout));
            }));
        rings_.WriteLent(place, flight.head, loans_);
      } else {
        rings_.Write(place, flight.head, flight.request->payload);
      }
      lent_.push_back(lent);
      flights.Sent();
      some = true;
    }
    return some;
  }

  Status Receive(Flights& flights, bool* heard, Status* broken) override {
    for (;;) {
      const Result<std::optional<SharedFrame>> frame = rings_.in().Peek();
      if (!frame.ok() || !frame->has_value()) {
        *broken = frame.status();
        break;
      }
      *heard = true;
      COHORT_RETURN_IF_ERROR(Take(**frame, flights, broken));
      rings_.in().Pop();
      rings_.Wake();
      if (!broken->ok() || flights.idle()) {
        return {};
      }
    }
    if (broken->ok()) {
      *broken = rings_.Hear();
    }
    return {};
  }

 private:
  static constexpr std::size_t kLeastLent = std::size_t{16} << 10;
  static constexpr std::chrono::seconds kTellTimeout{1};

  // Does all of its payload lie where the server can read it? Then loans_ says where.
  bool Lend(const Flight& flight) {
    loans_.clear();
    if (memory_ == nullptr || flight.bytes - flight.head.size() < kLeastLent) {
      return false;
    }
    for (const std::span<const float> piece : flight.request->payload) {
      const std::optional<FrameLoan> loan = memory_->Find(std::as_bytes(piece));
      if (!loan.has_value()) {
        loans_.clear();
        return false;
      }
      loans_.push_back(*loan);
    }
    return true;
  }

  std::size_t BytesOf(const Flight& flight) {
    if (Lend(flight)) {
      return FrameRings::LentBytesOf(flight.head, loans_.size());
    }
    const std::size_t payload = flight.bytes - flight.head.size();
    return RingBytesOf(flight.head.size() - sizeof(FramePrefix), payload);
  }

  Status Take(const SharedFrame& frame, Flights& flights, Status* broken) {
    if (!header_.ParseFromArray(frame.header.data(), static_cast<int>(frame.header.size()))) {
      *broken = Internal("a reply's header cannot be parsed");
      return {};
    }
    if (!lent_.empty()) {
      lent_.pop_front();
    }
    COHORT_ASSIGN_OR_RETURN(const std::optional<Places> places,
                            flights.Place(frame.payload.size(), header_, broken));
    if (!places.has_value()) {
      return {};
    }
    const std::byte* from = frame.payload.data();
    for (const std::span<float> place : *places) {
      std::memcpy(place.data(), from, place.size_bytes());
      from += place.size_bytes();
    }
    return flights.Done(header_);
  }

  const Socket socket_;
  FrameRings rings_;
  FrameMemory* const memory_;
  std::vector<std::uint64_t> told_;  // the server, of memory_
  std::vector<FrameLoan> loans_;     // of the frame that is looked at
  std::deque<bool> lent_;            // of those that are not answered
  FrameHeader header_;
};

}  // namespace

Result<std::unique_ptr<FrameChannel>> MakeSharedChannel(Socket socket, FrameMemory* memory,
                                                        Deadline deadline) {
  COHORT_ASSIGN_OR_RETURN(FrameRings rings, FrameRings::Accept(socket, deadline));
  return std::unique_ptr<FrameChannel>(
      std::make_unique<SharedChannel>(std::move(socket), std::move(rings), memory));
}

}  // namespace cohort::ps
