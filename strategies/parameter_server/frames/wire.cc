#include "parameter_server/frames/wire.h"

#include "grpc_util.h"
#include "parameter_server/frames/renewable_channel.h"

namespace cohort::ps {

Result<ReceivedFrame> Receive(const grpc::ByteBuffer& buffer) {
  ReceivedFrame received;
  if (!buffer.Valid() || !buffer.Dump(&received.slices).ok()) {
    return InvalidArgument("frame: no message");
  }
  Segments segments;
  segments.reserve(received.slices.size());
  for (const grpc::Slice& slice : received.slices) {
    segments.push_back({reinterpret_cast<const std::byte*>(slice.begin()), slice.size()});
  }
  COHORT_ASSIGN_OR_RETURN(received.frame, DecodeFrame(std::move(segments)));
  return received;
}

grpc::ByteBuffer Assemble(const FrameHeader& header, std::vector<grpc::Slice> payload) {
  std::size_t bytes = 0;
  for (const grpc::Slice& slice : payload) {
    bytes += slice.size();
  }
  payload.insert(payload.begin(), grpc::Slice(EncodeFramePrefix(header, bytes)));
  return {payload.data(), payload.size()};
}

grpc::Slice NewSlice(std::size_t floats, std::span<float>* memory) {
  grpc_slice slice = grpc_slice_malloc_large(floats * sizeof(float));
  *memory = {reinterpret_cast<float*>(GRPC_SLICE_START_PTR(slice)), floats};
  return {slice, grpc::Slice::STEAL_REF};
}

grpc::Slice BorrowSlice(std::span<const float> memory, std::shared_ptr<const void> owner) {
  using Owner = std::shared_ptr<const void>;
  return {const_cast<float*>(memory.data()), memory.size_bytes(),
          [](void* user) { delete static_cast<Owner*>(user); }, new Owner(std::move(owner))};
}

grpc::Slice OwnedSlice(std::string bytes) {
  auto* const owner = new std::string(std::move(bytes));
  return {owner->data(), owner->size(), [](void* user) { delete static_cast<std::string*>(user); },
          owner};
}

std::vector<std::string> ServerNames(const std::vector<std::string>& addresses) {
  std::vector<std::string> names;
  for (std::size_t s = 0; s < addresses.size(); ++s) {
    names.push_back("ps:" + std::to_string(s) + " (" + addresses[s] + ")");
  }
  return names;
}

std::vector<std::string> LineNames(const ModelSpec& spec,
                                   const std::vector<std::string>& addresses) {
  std::vector<std::string> names = ServerNames(addresses);
  for (int s = 0; spec.copies && s < spec.servers; ++s) {
    names.push_back(names[static_cast<std::size_t>(CopyHolder(s, spec.servers))] +
                    ", which keeps the copy of ps:" + std::to_string(s));
  }
  return names;
}

std::vector<std::shared_ptr<RenewableChannel>> DataChannels(
    const std::vector<std::string>& addresses) {
  std::vector<std::shared_ptr<RenewableChannel>> channels;
  for (const std::string& address : addresses) {
    channels.push_back(std::make_shared<RenewableChannel>(
        address, ChannelOptions{.max_message_bytes = kMaxMessageBytes}));
  }
  return channels;
}

std::string WithPort(const std::string& task_address, int port) {
  return task_address.substr(0, task_address.rfind(':')) + ":" + std::to_string(port);
}

Status StaleReply(const std::string& server, std::uint64_t epoch, std::uint64_t expected) {
  return Unavailable(server + " answers in epoch " + std::to_string(epoch) +
                     " of the servers, this process is in " + std::to_string(expected));
}

Status ToStatus(const Error& error, const std::string& server) {
  const std::string text = server + ": " + error.message();
  switch (error.kind()) {
    case Error::NOT_READY:
      return Unavailable(text +
                         " [a server that was restarted has lost its variables: restart "
                         "the job from its last checkpoint]");
    case Error::STALE_EPOCH:
      return Unavailable(text);
    case Error::NOT_NOW:
      return FailedPrecondition(text);
    case Error::SPEC_MISMATCH:
      return FailedPrecondition(text + " [start every process with the same model and options]");
    case Error::NOT_FINITE:
    case Error::BAD_ROWS:
      return InvalidArgument(text);
    case Error::NO_ROW:
      return NotFound(text);
    case Error::TABLE_FULL:
    case Error::TOO_MANY:
      return ResourceExhausted(text);
    case Error::FENCED:
      return Aborted(text + " [start the process again to join anew]");
    case Error::DAMAGED:
      return DataLoss(text);
    default:
      return Internal(text);
  }
}

}  // namespace cohort::ps
