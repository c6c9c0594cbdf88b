// Stream: the frames of one peer over a StripedSocket, data or control: what is to be sent, what
// has been asked for, what came before it was, and where the frame that is arriving stands.
//
// State only; TcpTransport moves it on.

#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "kept_frames.h"
#include "tcp/pace.h"
#include "tcp/striped_socket.h"
#include "transport.h"

namespace cohort::tcp {

struct Header {
  std::uint32_t magic;
  FrameKind kind;
  std::uint8_t reserved[3];
  std::uint64_t bytes;
};
static_assert(sizeof(Header) == 16);

inline constexpr std::uint32_t kMagic = 0x52464f43;  // "COFR"
inline constexpr std::size_t kStagingBytes = 64 << 10;
inline constexpr std::size_t kTurnBytes = 1 << 20;  // moved before the next peer's turn

struct OutFrame {
  Header header;
  std::vector<std::byte> owned;  // the body of control frames
  Bytes body;                    // of owned, or the caller's
  std::size_t sent = 0;          // of header and body
  std::uint64_t ticket = 0;      // 0: a control frame
  std::uint64_t mark = 0;        // of its last send in place

  std::size_t bytes() const { return sizeof(Header) + body.size(); }
};

struct Posted {
  MutableBytes data;
  CombineWith combine;
};

// Where the body of the frame that is arriving goes.
enum class Target { kHeader, kPosted, kKept, kControl, kDiscard, kStalled };

// A send whose bytes are still to be fetched.
struct Lingering {
  std::uint64_t ticket;
  std::uint64_t mark;
};

// The frames of one peer, data or control.
struct Stream {
  StripedSocket socket;
  std::size_t stride = Pace::kStride;
  bool read_closed = false;   // end of stream seen
  bool write_closed = false;  // the peer does not read any more
  bool ended = false;         // a connection of it has: all of it, or a rail of several
  Deadline ended_at;
  std::string ended_how;  // of the first: "rail 2 of 4 closed"
  std::deque<OutFrame> out;
  std::deque<Lingering> lingering;  // behind each other: sends of one peer are done in order

  std::deque<Posted> posted;
  KeptFrames kept;
  int dropping = 0;  // rejects still to come; the data before them are dropped

  std::vector<std::byte> staging = std::vector<std::byte>(kStagingBytes);
  std::size_t staged_from = 0;
  std::size_t staged_to = 0;
  Target target = Target::kHeader;
  Header header = {};
  std::size_t body_got = 0;
  std::size_t body_delivered = 0;       // by Combine, behind body_got by a split element
  std::vector<std::byte> body;          // kKept, kControl
  std::array<std::byte, 8> split = {};  // the begin of an element whose end is still to come
  std::size_t split_bytes = 0;

  std::size_t staged() const { return staged_to - staged_from; }
  bool wants_input() const { return socket.open() && !read_closed && target != Target::kStalled; }
};

}  // namespace cohort::tcp
