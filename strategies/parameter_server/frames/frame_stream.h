// Frames on a TCP connection of their own: what both ends agree on.
//
// A frame is a prefix, the header as protobuf writes it, and the payload as it lies in memory.
// Replies come in the order of the requests. gRPC is not in the way of the bytes: its wake-ups cost
// more than a small frame, its buffers as much as the payload's copy (README.md has the numbers).

#pragma once

#include <sys/uio.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include <cohort/core/status.h>

#include <cohort/parameter_server.pb.h>
#include "tcp/socket.h"

namespace cohort::ps {

enum class FrameMethod : std::uint32_t {
  kPull = 1,
  kPush = 2,
  kAssign = 3,
  kPause = 4,
  kPullRows = 5,
  kPushRows = 6,
  kEnter = 7
};
inline constexpr std::uint32_t kFrameMethods = 7;  // from 1 on
const char* NameOf(FrameMethod method);

struct FramePrefix {
  static constexpr std::uint32_t kMagic = 0x31524643;  // "CFR1"
  std::uint32_t magic = kMagic;
  std::uint32_t method = 0;  // a reply's is its request's
  std::uint32_t header_bytes = 0;
  std::uint32_t payload_bytes = 0;

  // InvalidArgument for what no sender of frames writes.
  Status Check() const;
};
static_assert(sizeof(FramePrefix) == 16 && std::endian::native == std::endian::little,
              "prefixes and floats travel as they lie in memory");

// Prefix and header, to be followed by the payload.
std::string EncodeFrame(FrameMethod method, const FrameHeader& header, std::size_t payload_bytes);

// Floats that are written before they are read: memory that is kept, and not cleared.
class FloatBuffer {
 public:
  // Empties it, and lends it memory to use as long as it suffices, until the next call.
  void Borrow(std::span<float> memory);
  std::span<float> Resize(std::size_t floats);  // contents are lost
  // `floats` more; what was there before stays.
  std::span<float> Append(std::size_t floats);
  void Clear() { size_ = 0; }
  std::span<float> values() { return {data_, size_}; }
  std::span<const float> values() const { return {data_, size_}; }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  void Reserve(std::size_t floats);
  std::unique_ptr<float[], Free> memory_;  // its own
  std::size_t owned_ = 0;
  float* data_ = nullptr;  // of memory_, or borrowed
  std::size_t capacity_ = 0;
  std::size_t size_ = 0;
};

// Reads a connection with few system calls: small pieces through a buffer, the rest of large ones
// to where they belong.
class BufferedReader {
 public:
  explicit BufferedReader(std::size_t capacity = 64 << 10) : buffer_(capacity, '\0') {}
  // Moves some bytes from `socket` to `to`, of which `*done` are there already; false if a socket
  // that does not block has none now. Unavailable at the end of the connection.
  Result<bool> ReadSome(const Socket& socket, std::span<std::byte> to, std::size_t* done);
  bool empty() const { return begin_ == end_; }
  void Reset() { begin_ = end_ = 0; }

 private:
  std::string buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

}  // namespace cohort::ps
