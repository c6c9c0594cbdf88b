// Frames in memory that a client and a server of one host share: a ring for each direction, and a
// unix socket beside them.
//
// A frame lies in a ring as a whole: its prefix, the payload, the header, each from the begin of a
// cache line on. The reader uses it where it lies, and gives the place back afterwards; a writer
// that finds no room waits, as on a full socket. Who has nothing to do says that it sleeps, looks
// once more, and polls the socket; who has written, or given back, what it sleeps for sends a byte
// there. Both store before they look (sequentially consistent), so that one of them sees the other.
//
// When a process ends, however it does, its end of the socket does, which the other polls; the
// memory (a memfd) goes with the last of them. What was not committed is never seen.
//
// A client's payload that lies in a FrameMemory stays there: in the ring is where, and the server
// reads it in the client's memory, of which the descriptor comes over the socket.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include "mapping.h"
#include "parameter_server/frames/frame_memory.h"
#include "parameter_server/frames/frame_stream.h"
#include "parameter_server/frames/payload.h"
#include "tcp/socket.h"

namespace cohort::ps {

// Of one direction. A frame that is larger finds no room in it, and must travel otherwise.
inline constexpr std::size_t kRingBytes = std::size_t{4} << 20;
// What a frame takes in a ring.
std::size_t RingBytesOf(std::size_t header_bytes, std::size_t payload_bytes);

// What both ends of one direction know; zeros at first.
struct RingState {
  static constexpr std::size_t kLine = 64;
  alignas(kLine) std::atomic<std::uint64_t> sent{0};   // by the writer, in bytes since the begin
  alignas(kLine) std::atomic<std::uint64_t> taken{0};  // by the reader
  alignas(kLine) std::atomic<std::uint32_t> reader_sleeps{0};
  std::atomic<std::uint32_t> writer_sleeps{0};
};

class FrameWriter {
 public:
  FrameWriter() = default;
  FrameWriter(RingState& state, std::byte* memory) : state_(&state), memory_(memory) {}

  // Room for `bytes` in one piece, a whole number of lines; empty: there is none now.
  std::span<std::byte> Reserve(std::size_t bytes);
  // Whatever room there is in one piece, where the next frame would begin.
  std::span<std::byte> Room();
  // What the reader sees now: a frame at the begin of what was reserved last.
  void Commit(std::size_t bytes);
  // Does the reader sleep? Once for each sleep, to wake it.
  bool TakeSleeper() {
    return state_->reader_sleeps.load() != 0 && state_->reader_sleeps.exchange(0) != 0;
  }
  // This end is going to sleep until there is room for `bytes`; false: there is now.
  bool Sleep(std::size_t bytes);

 private:
  // None where the other end says what cannot be.
  std::size_t Free() const {
    const std::uint64_t used = at_ - state_->taken.load();
    return used > kRingBytes ? 0 : kRingBytes - used;
  }
  void Skip();

  RingState* state_ = nullptr;
  std::byte* memory_ = nullptr;
  std::uint64_t at_ = 0;
};

struct SharedFrame {
  FramePrefix prefix;
  std::span<const std::byte> payload;
  std::string_view header;
  bool lent = false;  // `payload` is FrameLoans: Borrow has what it stands for
};

class FrameReader {
 public:
  FrameReader() = default;
  FrameReader(RingState& state, const std::byte* memory) : state_(&state), memory_(memory) {}

  // The next frame, which stays until Pop. Nothing: there is none now. InvalidArgument: what lies
  // there is none.
  Result<std::optional<SharedFrame>> Peek();
  void Pop();
  bool TakeSleeper() {
    return state_->writer_sleeps.load() != 0 && state_->writer_sleeps.exchange(0) != 0;
  }
  // This end is going to sleep until there is a frame; false: there is one now.
  bool Sleep();

 private:
  RingState* state_ = nullptr;
  const std::byte* memory_ = nullptr;
  std::uint64_t at_ = 0;
  std::size_t shown_ = 0;  // bytes of the frame that Peek showed
};

// One end of a connection, whose socket outlives it.
class FrameRings {
 public:
  // The server's end, of a connection that it has taken: makes the memory, and sends it.
  static Result<FrameRings> Offer(const Socket& socket, Deadline deadline);
  // The client's end, of a connection that it has made.
  static Result<FrameRings> Accept(const Socket& socket, Deadline deadline);

  FrameWriter& out() { return out_; }
  FrameReader& in() { return in_; }

  // Puts a frame into its place and commits it. `head`: EncodeFrame's. The payload may lie there
  // already, in PayloadPlace.
  void Write(std::span<std::byte> place, std::string_view head,
             std::span<const std::span<const float>> payload);
  static std::span<float> PayloadPlace(std::span<std::byte> place);
  // The same of a frame whose payload is lent, of news of which the server has been told before.
  static std::size_t LentBytesOf(std::string_view head, std::size_t loans);
  void WriteLent(std::span<std::byte> place, std::string_view head,
                 std::span<const FrameLoan> loans);
  Status Lend(const FrameSegment& news, const Socket* fd, Deadline deadline);
  // The payload of a frame that is lent, where it lies. InvalidArgument: in nothing that the client
  // has told of.
  Result<Segments> Borrow(const SharedFrame& frame);
  // Wakes the other end, if it sleeps for what this one has done. To be called before this one
  // sleeps, and after Pop.
  void Wake();
  // Takes what the other says from the socket. Unavailable: the other has ended; Unimplemented: it
  // has, because it could not go on this way: a reply is larger than a ring, or what is lent cannot
  // be mapped.
  Status Hear();
  // This end is going to close for that reason.
  void Refuse();

 private:
  FrameRings(int fd, Mapping memory, bool server);
  Status TakeNews();

  int fd_;  // of the socket
  Mapping memory_;
  FrameWriter out_;
  FrameReader in_;
  std::atomic<std::uint32_t>* refused_ = nullptr;
  BorrowedMemory borrowed_;
  std::string heard_;                // of the socket, begins with what is not complete
  std::vector<Socket> descriptors_;  // that came, of what is still to be read
};

}  // namespace cohort::ps
