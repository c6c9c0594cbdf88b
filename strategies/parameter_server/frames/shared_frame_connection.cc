// FrameConnection through shared memory: a frame is handled where the client has put it, and its
// reply is written where the client reads it.

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <optional>
#include <thread>
#include <utility>

#include "parameter_server/frames/frame_connection.h"
#include "parameter_server/frames/frame_ring.h"

namespace cohort::ps {
namespace {

constexpr std::chrono::seconds kOfferTimeout{5};
constexpr int kLookMs = 1'000;

class SharedConnection final : public FrameConnection {
 public:
  SharedConnection(Socket socket, const FrameHandler& handler, const Log& log)
      : socket_(std::move(socket)), handler_(handler), log_(log) {
    thread_ = std::thread([this] { Serve(); });
  }
  ~SharedConnection() override {
    stop_.store(true);
    ::shutdown(socket_.fd(), SHUT_RDWR);
    thread_.join();
  }
  bool over() const override { return over_.load(std::memory_order_acquire); }

 private:
  void Serve() {
    Status status;
    try {
      status = ServeAll();
    } catch (const std::exception& error) {
      status = Internal(error.what());
    }
    if (!status.ok() && status.code() != StatusCode::kUnavailable) {
      log_.Warning(std::string("a connection of ") + kPeer + " was closed: " + status.message());
    }
    ::shutdown(socket_.fd(), SHUT_RDWR);  // the client hears of it
    over_.store(true, std::memory_order_release);
  }

  Status ServeAll() {
    COHORT_ASSIGN_OR_RETURN(FrameRings rings,
                            FrameRings::Offer(socket_, DeadlineAfter(kOfferTimeout)));
    rings_.emplace(std::move(rings));
    while (!stop_.load()) {
      if (const Status status = ServeOne(); !status.ok()) {
        if (status.code() != StatusCode::kUnavailable) {
          rings_->Refuse();  // it would be no better the next time
        }
        return status;
      }
    }
    return {};
  }

  Status ServeOne() {
    COHORT_ASSIGN_OR_RETURN(const SharedFrame frame, Next());
    FrameHeader header;
    if (!header.ParseFromArray(frame.header.data(), static_cast<int>(frame.header.size()))) {
      return InvalidArgument("frame: header cannot be parsed");
    }
    const std::span<std::byte> room = rings_->out().Room();
    const std::span<float> place = FrameRings::PayloadPlace(room);
    values_.Borrow(place);
    FrameReply reply{.payload = &values_};
    const auto method = static_cast<FrameMethod>(frame.prefix.method);
    Segments payload{frame.payload};
    if (frame.lent) {
      COHORT_ASSIGN_OR_RETURN(payload, rings_->Borrow(frame));
    }
    handler_(method, header, PayloadReader(std::move(payload)), kPeer, &reply);
    rings_->in().Pop();
    const std::span<const float> values = values_.values();
    const std::string head = EncodeFrame(method, reply.header, values.size_bytes());
    const std::size_t bytes = RingBytesOf(head.size() - sizeof(FramePrefix), values.size_bytes());
    if (bytes > kRingBytes) {
      return Unimplemented("a reply of " + std::to_string(bytes) +
                           " bytes is larger than the shared memory; the client asks again, over "
                           "TCP");
    }
    const std::array pieces = {values};
    const bool lies_there = values.empty() || values.data() == place.data();
    if (lies_there && bytes <= room.size()) {
      rings_->Write(room, head, pieces);
      return {};
    }
    COHORT_ASSIGN_OR_RETURN(const std::span<std::byte> elsewhere, Reserve(bytes));
    rings_->Write(elsewhere, head, pieces);
    return {};
  }

  Result<SharedFrame> Next() {
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(const std::optional<SharedFrame> frame, rings_->in().Peek());
      if (frame.has_value()) {
        return *frame;
      }
      if (rings_->in().Sleep()) {
        COHORT_RETURN_IF_ERROR(Await());
      }
    }
  }
  Result<std::span<std::byte>> Reserve(std::size_t bytes) {
    for (;;) {
      const std::span<std::byte> place = rings_->out().Reserve(bytes);
      if (!place.empty()) {
        return place;
      }
      if (rings_->out().Sleep(bytes)) {
        COHORT_RETURN_IF_ERROR(Await());
      }
    }
  }
  // Until the client has said something.
  Status Await() {
    rings_->Wake();
    pollfd event = {socket_.fd(), POLLIN, 0};
    ::poll(&event, 1, kLookMs);
    if (stop_.load()) {
      return Unavailable("this server ends");
    }
    return rings_->Hear();
  }

  static constexpr char kPeer[] = "a process of this host";

  const Socket socket_;
  const FrameHandler& handler_;
  const Log& log_;
  std::optional<FrameRings> rings_;
  FloatBuffer values_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> over_{false};
  std::thread thread_;
};

}  // namespace

std::unique_ptr<FrameConnection> MakeSharedConnection(Socket socket, const FrameHandler& handler,
                                                      const Log& log) {
  return std::make_unique<SharedConnection>(std::move(socket), handler, log);
}

}  // namespace cohort::ps
