#include "parameter_server/frames/frame.h"

#include <optional>

namespace cohort::ps {
namespace {

constexpr unsigned char kHeaderTag = (1 << 3) | 2;  // field 1, length-delimited
constexpr unsigned char kPayloadTag = (15 << 3) | 2;

void AppendVarint(std::string& out, std::uint64_t value) {
  while (value >= 0x80) {
    out.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out.push_back(static_cast<char>(value));
}

std::optional<std::uint64_t> ReadVarint(PayloadReader& reader) {
  std::uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    unsigned char byte = 0;
    if (!reader.Read(&byte, 1)) {
      return std::nullopt;
    }
    value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
    if ((byte & 0x80) == 0) {
      return value;
    }
  }
  return std::nullopt;
}

bool ReadTag(PayloadReader& reader, unsigned char expected) {
  unsigned char tag = 0;
  return reader.Read(&tag, 1) && tag == expected;
}

}  // namespace

std::string EncodeFramePrefix(const FrameHeader& header, std::size_t payload_bytes) {
  std::string out;
  out.push_back(static_cast<char>(kHeaderTag));
  AppendVarint(out, header.ByteSizeLong());
  header.AppendToString(&out);
  if (payload_bytes > 0) {
    out.push_back(static_cast<char>(kPayloadTag));
    AppendVarint(out, payload_bytes);
  }
  return out;
}

Result<DecodedFrame> DecodeFrame(Segments message) {
  DecodedFrame frame{.header = {}, .payload = PayloadReader(std::move(message))};
  PayloadReader& reader = frame.payload;
  if (!ReadTag(reader, kHeaderTag)) {
    return InvalidArgument("frame: does not begin with a header");
  }
  const std::optional<std::uint64_t> header_bytes = ReadVarint(reader);
  if (!header_bytes || *header_bytes > kMaxHeaderBytes || *header_bytes > reader.remaining()) {
    return InvalidArgument("frame: header is cut short or too long");
  }
  std::string header(*header_bytes, '\0');
  reader.Read(header.data(), header.size());
  if (!frame.header.ParseFromString(header)) {
    return InvalidArgument("frame: header cannot be parsed");
  }
  if (reader.remaining() == 0) {
    return frame;
  }
  if (!ReadTag(reader, kPayloadTag)) {
    return InvalidArgument("frame: unknown field after the header");
  }
  const std::optional<std::uint64_t> payload_bytes = ReadVarint(reader);
  if (!payload_bytes || *payload_bytes != reader.remaining()) {
    return InvalidArgument("frame: payload of " + std::to_string(reader.remaining()) +
                           " bytes, the frame says " +
                           (payload_bytes ? std::to_string(*payload_bytes) : "nothing"));
  }
  return frame;
}

}  // namespace cohort::ps
