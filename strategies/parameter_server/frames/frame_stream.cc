#include "parameter_server/frames/frame_stream.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

#include "parameter_server/frames/frame.h"

namespace cohort::ps {

const char* NameOf(FrameMethod method) {
  switch (method) {
    case FrameMethod::kPull:
      return "Pull";
    case FrameMethod::kPush:
      return "Push";
    case FrameMethod::kAssign:
      return "Assign";
    case FrameMethod::kPause:
      return "Pause";
    case FrameMethod::kPullRows:
      return "PullRows";
    case FrameMethod::kPushRows:
      return "PushRows";
    case FrameMethod::kEnter:
      return "Enter";
  }
  return "?";
}

Status FramePrefix::Check() const {
  if (magic != kMagic) {
    return InvalidArgument("frame: does not begin as one");
  }
  if (method < 1 || method > kFrameMethods) {
    return InvalidArgument("frame: unknown method " + std::to_string(method));
  }
  if (header_bytes > kMaxHeaderBytes || payload_bytes > kMaxMessageBytes ||
      payload_bytes % sizeof(float) != 0) {
    return InvalidArgument("frame: a header of " + std::to_string(header_bytes) +
                           " bytes and a payload of " + std::to_string(payload_bytes));
  }
  return {};
}

std::string EncodeFrame(FrameMethod method, const FrameHeader& header, std::size_t payload_bytes) {
  const FramePrefix prefix = {.method = static_cast<std::uint32_t>(method),
                              .header_bytes = static_cast<std::uint32_t>(header.ByteSizeLong()),
                              .payload_bytes = static_cast<std::uint32_t>(payload_bytes)};
  std::string out(reinterpret_cast<const char*>(&prefix), sizeof(prefix));
  header.AppendToString(&out);
  return out;
}

void FloatBuffer::Borrow(std::span<float> memory) {
  data_ = memory.data();
  capacity_ = memory.size();
  size_ = 0;
}

void FloatBuffer::Reserve(std::size_t floats) {
  if (floats <= capacity_) {
    return;
  }
  if (data_ != memory_.get() && floats <= owned_) {
    std::copy_n(data_, size_, memory_.get());
    data_ = memory_.get();
    capacity_ = owned_;
    return;
  }
  constexpr std::size_t kLine = 64;
  const std::size_t bytes = (floats * sizeof(float) + kLine - 1) / kLine * kLine;
  auto* memory = static_cast<float*>(std::aligned_alloc(kLine, bytes));
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  std::copy_n(data_, size_, memory);
  memory_.reset(memory);
  data_ = memory;
  capacity_ = owned_ = bytes / sizeof(float);
}

std::span<float> FloatBuffer::Resize(std::size_t floats) {
  size_ = 0;
  Reserve(floats);
  size_ = floats;
  return values();
}

std::span<float> FloatBuffer::Append(std::size_t floats) {
  if (size_ + floats > capacity_) {
    Reserve(std::max(size_ + floats, 2 * capacity_));
  }
  size_ += floats;
  return values().last(floats);
}

Result<bool> BufferedReader::ReadSome(const Socket& socket, std::span<std::byte> to,
                                      std::size_t* done) {
  const std::span<std::byte> rest = to.subspan(*done);
  for (;;) {
    if (!empty() || rest.empty()) {
      const std::size_t count = std::min(end_ - begin_, rest.size());
      std::memcpy(rest.data(), buffer_.data() + begin_, count);
      begin_ += count;
      *done += count;
      return true;
    }
    const bool direct = rest.size() >= buffer_.size();
    const ssize_t got = direct ? ::recv(socket.fd(), rest.data(), rest.size(), 0)
                               : ::recv(socket.fd(), buffer_.data(), buffer_.size(), 0);
    if (got > 0 && direct) {
      *done += static_cast<std::size_t>(got);
      return true;
    }
    if (got > 0) {
      begin_ = 0;
      end_ = static_cast<std::size_t>(got);
    } else if (got == 0) {
      return Unavailable("connection closed");
    } else if (errno == EAGAIN) {
      return false;
    } else if (errno != EINTR) {
      return ErrnoStatus(errno, "connection");
    }
  }
}

}  // namespace cohort::ps
