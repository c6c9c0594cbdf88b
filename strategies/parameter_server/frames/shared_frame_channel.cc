// FrameChannel through memory that a server of this host shares: payloads are copied there once,
// and replies from there to where they belong.

#include <poll.h>

#include <cstring>
#include <utility>

#include "parameter_server/frames/frame_channel.h"
#include "parameter_server/frames/frame_ring.h"

namespace cohort::ps {
namespace {

class SharedChannel final : public FrameChannel {
 public:
  SharedChannel(Socket socket, FrameRings rings)
      : socket_(std::move(socket)), rings_(std::move(rings)) {}

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
      const std::size_t bytes = BytesOf(flight);
      if (bytes > kRingBytes) {
        return Unimplemented("a frame of " + std::to_string(bytes) + " bytes in shared memory");
      }
      const std::span<std::byte> place = rings_.out().Reserve(bytes);
      if (place.empty()) {
        return some;
      }
      rings_.Write(place, flight.head, flight.request->payload);
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
  static std::size_t BytesOf(const Flight& flight) {
    const std::size_t payload = flight.bytes - flight.head.size();
    return RingBytesOf(flight.head.size() - sizeof(FramePrefix), payload);
  }

  Status Take(const SharedFrame& frame, Flights& flights, Status* broken) {
    if (!header_.ParseFromArray(frame.header.data(), static_cast<int>(frame.header.size()))) {
      *broken = Internal("a reply's header cannot be parsed");
      return {};
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
  FrameHeader header_;
};

}  // namespace

Result<std::unique_ptr<FrameChannel>> MakeSharedChannel(Socket socket, Deadline deadline) {
  COHORT_ASSIGN_OR_RETURN(FrameRings rings, FrameRings::Accept(socket, deadline));
  return std::unique_ptr<FrameChannel>(
      std::make_unique<SharedChannel>(std::move(socket), std::move(rings)));
}

}  // namespace cohort::ps
