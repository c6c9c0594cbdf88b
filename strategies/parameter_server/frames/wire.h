// Between frames and gRPC's byte buffers.

#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/byte_buffer.h>

#include <cohort/core/status.h>

#include "parameter_server/frames/frame.h"
#include "parameter_server/model/layout.h"

namespace cohort::ps {

class RenewableChannel;  // renewable_channel.h

// A received frame with the memory that it borrows.
struct ReceivedFrame {
  std::vector<grpc::Slice> slices;
  DecodedFrame frame;
};
Result<ReceivedFrame> Receive(const grpc::ByteBuffer& buffer);

// A frame of `header` and the given pieces of payload.
grpc::ByteBuffer Assemble(const FrameHeader& header, std::vector<grpc::Slice> payload);

// Memory that is to be filled before it is sent: floats, and the slice that owns them.
grpc::Slice NewSlice(std::size_t floats, std::span<float>* memory);
// The memory of a string, which is not copied.
grpc::Slice OwnedSlice(std::string bytes);
// Memory of `owner`, which lives until gRPC has let go of the slice; nothing is copied.
grpc::Slice BorrowSlice(std::span<const float> memory, std::shared_ptr<const void> owner);

// What a server, so called in messages, says of a frame.
Status ToStatus(const Error& error, const std::string& server);
// Of a reply that is of another epoch than was asked.
Status StaleReply(const std::string& server, std::uint64_t epoch, std::uint64_t expected);

// What messages call the servers at `addresses`: "ps:1 (10.0.0.3:2222)".
std::vector<std::string> ServerNames(const std::vector<std::string>& addresses);
// What they call a client's lines (layout.h): the servers, and those that keep copies of others.
std::vector<std::string> LineNames(const ModelSpec& spec,
                                   const std::vector<std::string>& addresses);
// A channel to each of the servers, for messages as large as they get.
std::vector<std::shared_ptr<RenewableChannel>> DataChannels(
    const std::vector<std::string>& addresses);

// "host:40123" from "host:0": where others find a task that was bound to this port.
std::string WithPort(const std::string& task_address, int port);

}  // namespace cohort::ps
