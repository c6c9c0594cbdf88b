#include "parameter_server/frames/frame_ring.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "shm/segments.h"
#include "tcp/unix_socket.h"

namespace cohort::ps {
namespace {

constexpr std::size_t kLine = RingState::kLine;
// Stands where no frame does: the next one is at the begin of the ring.
constexpr std::uint32_t kSkipMagic = 0x31505343;  // "CSP1"
// In the place of FramePrefix::kMagic: the payload is lent.
constexpr std::uint32_t kLentMagic = 0x314E4C43;  // "CLN1"

// On the socket: a byte that wakes; or one that begins a FrameSegment.
constexpr char kWake = 0;
constexpr char kNews = 1;
constexpr std::size_t kNewsBytes = 1 + sizeof(FrameSegment);

std::size_t WholeLines(std::size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

struct Layout {
  RingState requests;
  RingState replies;
  alignas(kLine) std::atomic<std::uint32_t> refused{0};
};
static_assert(sizeof(Layout) % kLine == 0 && std::atomic<std::uint64_t>::is_always_lock_free);
constexpr std::size_t kSegmentBytes = sizeof(Layout) + 2 * kRingBytes;

}  // namespace

std::size_t RingBytesOf(std::size_t header_bytes, std::size_t payload_bytes) {
  return kLine + WholeLines(payload_bytes) + WholeLines(header_bytes);
}

// ---- Writing ------------------------------------------------------------------------------------

void FrameWriter::Skip() {
  const std::size_t offset = at_ % kRingBytes;
  std::memcpy(memory_ + offset, &kSkipMagic, sizeof(kSkipMagic));
  at_ += kRingBytes - offset;
  state_->sent.store(at_);
}

std::span<std::byte> FrameWriter::Reserve(std::size_t bytes) {
  std::size_t offset = at_ % kRingBytes;
  const bool drained = state_->taken.load() == at_;
  // Where nothing is under way the begin is used again, which is in the cache; what is never used
  // takes no memory.
  if (offset != 0 && (offset + bytes > kRingBytes || (drained && bytes <= offset))) {
    if (Free() < kRingBytes - offset) {
      return {};
    }
    Skip();
    offset = 0;
  }
  return Free() < bytes ? std::span<std::byte>() : std::span(memory_ + offset, bytes);
}

std::span<std::byte> FrameWriter::Room() {
  const std::size_t offset = at_ % kRingBytes;
  const std::size_t free = Free();
  const std::size_t here = std::min(kRingBytes - offset, free);
  // At the begin there is more.
  if (offset != 0 && free >= kRingBytes - offset && free - (kRingBytes - offset) > here) {
    Skip();
    return {memory_, free - (kRingBytes - offset)};
  }
  return {memory_ + offset, here};
}

void FrameWriter::Commit(std::size_t bytes) {
  at_ += bytes;
  state_->sent.store(at_);
}

bool FrameWriter::Sleep(std::size_t bytes) {
  state_->writer_sleeps.store(1);
  if (Reserve(bytes).empty()) {
    return true;
  }
  state_->writer_sleeps.store(0);
  return false;
}

// ---- Reading ------------------------------------------------------------------------------------

Result<std::optional<SharedFrame>> FrameReader::Peek() {
  for (;;) {
    const std::uint64_t sent = state_->sent.load();
    if (sent == at_) {
      return std::optional<SharedFrame>();
    }
    const std::size_t offset = at_ % kRingBytes;
    const std::byte* const place = memory_ + offset;
    SharedFrame frame;
    std::memcpy(&frame.prefix, place, sizeof(frame.prefix));
    const bool skips = frame.prefix.magic == kSkipMagic;
    if (sent - at_ > kRingBytes || (skips && (offset == 0 || kRingBytes - offset > sent - at_))) {
      return InvalidArgument("frame: a ring whose other end says what cannot be");
    }
    if (skips) {
      at_ += kRingBytes - offset;
      state_->taken.store(at_);
      continue;
    }
    frame.lent = frame.prefix.magic == kLentMagic;
    frame.prefix.magic = frame.lent ? FramePrefix::kMagic : frame.prefix.magic;
    COHORT_RETURN_IF_ERROR(frame.prefix.Check());
    const std::size_t bytes = RingBytesOf(frame.prefix.header_bytes, frame.prefix.payload_bytes);
    if (bytes > sent - at_ || bytes > kRingBytes - offset) {
      return InvalidArgument("frame: of more bytes than there are");
    }
    frame.payload = {place + kLine, frame.prefix.payload_bytes};
    frame.header = {
        reinterpret_cast<const char*>(place) + kLine + WholeLines(frame.prefix.payload_bytes),
        frame.prefix.header_bytes};
    shown_ = bytes;
    return std::optional(frame);
  }
}

void FrameReader::Pop() {
  at_ += std::exchange(shown_, 0);
  state_->taken.store(at_);
}

bool FrameReader::Sleep() {
  state_->reader_sleeps.store(1);
  if (state_->sent.load() == at_) {
    return true;
  }
  state_->reader_sleeps.store(0);
  return false;
}

// ---- A connection -------------------------------------------------------------------------------

FrameRings::FrameRings(int fd, Mapping memory, bool server) : fd_(fd), memory_(std::move(memory)) {
  auto& layout = *reinterpret_cast<Layout*>(memory_.data());
  refused_ = &layout.refused;
  std::byte* const requests = memory_.data() + sizeof(Layout);
  std::byte* const replies = requests + kRingBytes;
  out_ = server ? FrameWriter(layout.replies, replies) : FrameWriter(layout.requests, requests);
  in_ = server ? FrameReader(layout.requests, requests) : FrameReader(layout.replies, replies);
}

Result<FrameRings> FrameRings::Offer(const Socket& socket, Deadline deadline) {
  COHORT_ASSIGN_OR_RETURN(auto segment, MakeSegment(kSegmentBytes, /*prefault=*/false));
  COHORT_RETURN_IF_ERROR(
      SendNotice(socket, {.bytes = segment.second.bytes()}, {segment.first.fd()}, deadline));
  return FrameRings(socket.fd(), std::move(segment.second), /*server=*/true);
}

Result<FrameRings> FrameRings::Accept(const Socket& socket, Deadline deadline) {
  COHORT_ASSIGN_OR_RETURN(const ReceivedNotice received, AwaitNotice(socket, deadline));
  if (received.fds.size() != 1 || received.notice.bytes != MappedBytes(kSegmentBytes)) {
    return FailedPrecondition("shared memory of another layout [run the same version of cohort]");
  }
  COHORT_ASSIGN_OR_RETURN(Mapping memory,
                          Mapping::OfFile(received.fds[0].fd(), received.notice.bytes,
                                          Mapping::Access::kReadWrite, /*prefault=*/false));
  return FrameRings(socket.fd(), std::move(memory), /*server=*/false);
}

std::span<float> FrameRings::PayloadPlace(std::span<std::byte> place) {
  if (place.size() <= kLine) {
    return {};
  }
  return {reinterpret_cast<float*>(place.data() + kLine), (place.size() - kLine) / sizeof(float)};
}

void FrameRings::Write(std::span<std::byte> place, std::string_view head,
                       std::span<const std::span<const float>> payload) {
  std::byte* at = place.data() + kLine;
  for (const std::span<const float> piece : payload) {
    if (!piece.empty() && reinterpret_cast<const std::byte*>(piece.data()) != at) {
      std::memmove(at, piece.data(), piece.size_bytes());
    }
    at += piece.size_bytes();
  }
  FramePrefix prefix;
  std::memcpy(&prefix, head.data(), sizeof(prefix));
  std::memcpy(place.data(), &prefix, sizeof(prefix));
  std::memcpy(place.data() + kLine + WholeLines(prefix.payload_bytes), head.data() + sizeof(prefix),
              prefix.header_bytes);
  out_.Commit(RingBytesOf(prefix.header_bytes, prefix.payload_bytes));
  Wake();
}

std::size_t FrameRings::LentBytesOf(std::string_view head, std::size_t loans) {
  return RingBytesOf(head.size() - sizeof(FramePrefix), loans * sizeof(FrameLoan));
}

void FrameRings::WriteLent(std::span<std::byte> place, std::string_view head,
                           std::span<const FrameLoan> loans) {
  FramePrefix prefix;
  std::memcpy(&prefix, head.data(), sizeof(prefix));
  prefix.magic = kLentMagic;
  prefix.payload_bytes = static_cast<std::uint32_t>(loans.size_bytes());
  std::memcpy(place.data(), &prefix, sizeof(prefix));
  std::memcpy(place.data() + kLine, loans.data(), loans.size_bytes());
  std::memcpy(place.data() + kLine + WholeLines(prefix.payload_bytes), head.data() + sizeof(prefix),
              prefix.header_bytes);
  out_.Commit(RingBytesOf(prefix.header_bytes, prefix.payload_bytes));
  Wake();
}

Status FrameRings::Lend(const FrameSegment& news, const Socket* fd, Deadline deadline) {
  std::array<std::byte, kNewsBytes> bytes = {std::byte{kNews}};
  std::memcpy(bytes.data() + 1, &news, sizeof(news));
  std::vector<int> descriptors;
  if (fd != nullptr) {
    descriptors.push_back(fd->fd());
  }
  return SendWithDescriptors(fd_, bytes, descriptors, deadline);
}

Result<Segments> FrameRings::Borrow(const SharedFrame& frame) {
  Segments segments;
  bool heard = false;
  for (std::span<const std::byte> rest = frame.payload; rest.size() >= sizeof(FrameLoan);) {
    FrameLoan loan;
    std::memcpy(&loan, rest.data(), sizeof(loan));
    std::optional<std::span<const std::byte>> lent = borrowed_.Resolve(loan);
    if (!lent.has_value() && !std::exchange(heard, true)) {
      COHORT_RETURN_IF_ERROR(Hear());  // what is on the socket was sent before the frame
      lent = borrowed_.Resolve(loan);
    }
    if (!lent.has_value()) {
      return InvalidArgument("frame: " + std::to_string(loan.bytes) + " bytes lent of segment " +
                             std::to_string(loan.segment) + ", of which there is no such piece");
    }
    segments.push_back(*lent);
    rest = rest.subspan(sizeof(loan));
  }
  return segments;
}

void FrameRings::Wake() {
  const bool reader = out_.TakeSleeper();
  const bool writer = in_.TakeSleeper();
  if (reader || writer) {
    (void)!::send(fd_, &kWake, 1, MSG_NOSIGNAL | MSG_DONTWAIT);  // Hear knows who is gone
  }
}

void FrameRings::Refuse() { refused_->store(1); }

Status FrameRings::Hear() {
  for (;;) {
    std::array<std::byte, 256> bytes;
    const Result<std::size_t> got = ReceiveWithDescriptors(fd_, bytes, &descriptors_);
    if (got.status().code() == StatusCode::kUnavailable && refused_->load() != 0) {
      return Unimplemented("the server cannot go on through shared memory: its log says why");
    }
    COHORT_RETURN_IF_ERROR(got.status());
    if (*got == 0) {
      return {};
    }
    heard_.append(reinterpret_cast<const char*>(bytes.data()), *got);
    COHORT_RETURN_IF_ERROR(TakeNews());
  }
}

// Of what was heard, what is complete.
Status FrameRings::TakeNews() {
  std::size_t at = 0;
  while (at < heard_.size() && (heard_[at] == kWake || heard_.size() - at >= kNewsBytes)) {
    if (heard_[at] == kWake) {
      ++at;
      continue;
    }
    FrameSegment news;
    std::memcpy(&news, heard_.data() + at + 1, sizeof(news));
    if (heard_[at] != kNews || (news.bytes > 0 && descriptors_.empty())) {
      return InvalidArgument("frame: a socket on which comes what nobody says");
    }
    if (news.bytes == 0) {
      borrowed_.Forget(news.segment);
    } else {
      COHORT_RETURN_IF_ERROR(borrowed_.Map(news, descriptors_.front()));
      descriptors_.erase(descriptors_.begin());
    }
    at += kNewsBytes;
  }
  heard_.erase(0, at);
  return {};
}

}  // namespace cohort::ps
