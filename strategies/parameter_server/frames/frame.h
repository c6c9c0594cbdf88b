// Frames by hand: the message Frame of parameter_server.proto, written as a small prefix that is
// followed by payload memory, and read without copying the payload.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <cohort/core/status.h>

#include <cohort/parameter_server.pb.h>
#include "parameter_server/frames/payload.h"

namespace cohort::ps {

// Of what processes of a job say to each other: another one is refused by Declare, which comes
// first. To be raised with every change that the other side must know of.
inline constexpr std::uint32_t kProtocol = 8;

// Of payload, where it may be cut: a server reads a frame while the next one is on its way, and
// uses it out of its cache.
inline constexpr std::size_t kFrameBytes = std::size_t{1} << 20;
inline constexpr std::int64_t kMaxPayloadBytes = std::int64_t{4} << 20;
inline constexpr std::size_t kMaxHeaderBytes = std::size_t{4} << 20;
// What a receiver accepts: payloads with the slots of a chunk, and the header.
inline constexpr int kMaxMessageBytes = 64 << 20;
inline constexpr int kMaxParts = 1 << 16;  // of a round

// The bytes before the payload.
std::string EncodeFramePrefix(const FrameHeader& header, std::size_t payload_bytes);

struct DecodedFrame {
  FrameHeader header;
  PayloadReader payload;  // borrows the memory of the message
};

// InvalidArgument for anything that EncodeFramePrefix and a payload do not make. Never reads beyond
// the segments, whatever they hold.
Result<DecodedFrame> DecodeFrame(Segments message);

// What is wrong with a frame.
inline Error MakeError(Error::Kind kind, std::string message) {
  Error error;
  error.set_kind(kind);
  error.set_message(std::move(message));
  return error;
}

}  // namespace cohort::ps
