// ParameterStore: what it refuses, and with which words. Nothing here changes anything; a push is
// decoded here too, which checks its length.

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "parameter_server/frames/dense_codec.h"
#include "parameter_server/frames/frame.h"
#include "parameter_server/frames/frame_stream.h"
#include "parameter_server/frames/weight.h"
#include "parameter_server/variables/parameter_store.h"

namespace cohort::ps {
Status CheckServerSide(const Optimizer& optimizer, const Consistency& consistency) {
  const ServerSideOptimizer* const server_side = ServerSideOptimizer::Of(optimizer);
  if (server_side == nullptr || !consistency.synchronous()) {
    return {};
  }
  const ServerSideOptions& options = server_side->options();
  const std::string field = options.clip_norm > 0            ? "clip_norm"
                            : options.delay_compensation > 0 ? "delay_compensation"
                            : options.staleness_scaling      ? "staleness_scaling"
                                                             : "";
  return field.empty() ? OkStatus()
                       : InvalidArgument(
                             "optimizer " + std::string(optimizer.name()) + ": " + field +
                             " is for single pushes, which consistency " + consistency.ToString() +
                             " does not apply [consistency async or "
                             "ssp; " +
                             (options.clip_norm > 0 ? "or global_clip_norm]"
                                                    : "a round's gradients are not stale]"));
}

bool CarriesBase(const ModelSpec& spec) {
  if (!spec.copies || spec.consistency.synchronous()) {
    return false;
  }
  const auto optimizer = MakeOptimizer(spec.optimizer);
  const ServerSideOptimizer* const server_side =
      optimizer.ok() ? ServerSideOptimizer::Of(**optimizer) : nullptr;
  return server_side != nullptr && server_side->options().delay_compensation > 0;
}

Error ParameterStore::Check(const FrameHeader& header) const {
  if (!declared_.load(std::memory_order_acquire)) {
    return MakeError(Error::NOT_READY, "no model has been declared");
  }
  if (header.layout() != fingerprint_) {
    return MakeError(Error::SPEC_MISMATCH, "the frame is of another model than was declared");
  }
  if (header.chunks_size() != header.versions_size()) {
    return MakeError(Error::BAD_FRAME, std::to_string(header.chunks_size()) + " chunks and " +
                                           std::to_string(header.versions_size()) + " versions");
  }
  std::uint32_t next = 0;
  for (const std::uint32_t chunk : header.chunks()) {
    if (Find(chunk) == nullptr) {
      return MakeError(Error::UNKNOWN_CHUNK,
                       "chunk " + std::to_string(chunk) + " is not one of this server's");
    }
    if (chunk < next) {
      return MakeError(Error::BAD_FRAME, "chunk " + std::to_string(chunk) + " (" +
                                             NameOf(static_cast<int>(chunk)) +
                                             ") twice or out of order");
    }
    next = chunk + 1;
  }
  return {};
}

Error ParameterStore::CheckPush(const FrameHeader& header, const PayloadReader& payload) const {
  if (Error error = Check(header); error.kind() != Error::NONE) {
    return error;
  }
  if (!ready()) {
    return MakeError(Error::NOT_READY, "not all variables have been initialised");
  }
  if (!IsWeight(header.weight()) || header.sequence() == 0) {
    return MakeError(Error::BAD_FRAME, "a push needs a sequence number and a weight");
  }
  if (!(header.clip() >= 0 && header.clip() <= 1) || (rounds_ && header.clip() != 0)) {
    return MakeError(Error::BAD_FRAME, "a clipping factor of " + std::to_string(header.clip()));
  }
  if (header.has_round() != rounds_) {
    return MakeError(Error::BAD_FRAME,
                     rounds_ ? "a push without its round" : "a round under asynchronous updates");
  }
  // A part without examples has no gradient.
  const bool empty = rounds_ && header.weight() == 0 && payload.remaining() == 0;
  if (!rounds_ && header.weight() == 0) {
    return MakeError(Error::BAD_FRAME, "a push of weight 0");
  }
  const Round& round = header.round();
  if (rounds_ &&
      (round.parts() == 0 || round.parts() > kMaxParts || round.part() >= round.parts())) {
    return MakeError(Error::BAD_FRAME, "part " + std::to_string(round.part()) + " of " +
                                           std::to_string(round.parts()));
  }
  std::size_t left = payload.remaining();
  PayloadReader reader = payload;
  for (int i = 0; i < header.chunks_size(); ++i) {
    const std::uint32_t chunk = header.chunks(i);
    const Block& block = *blocks_[chunk];
    if (rounds_ && round.round() > version(static_cast<int>(chunk)) + 1) {
      return MakeError(Error::OUT_OF_ORDER, NameOf(static_cast<int>(chunk)) + ": round " +
                                                std::to_string(round.round()) + " after version " +
                                                std::to_string(version(static_cast<int>(chunk))));
    }
    if (empty) {
      continue;
    }
    const std::size_t bytes = (block.value.size() + BaseFloats(block)) * sizeof(float);
    if (left < bytes) {
      return MakeError(Error::BAD_FRAME, NameOf(static_cast<int>(chunk)) + ": " +
                                             std::to_string(left) + " bytes left of the payload, " +
                                             std::to_string(bytes) + " needed");
    }
    left -= bytes;
    if (!AllFinite(reader, block.value.size())) {
      return MakeError(Error::NOT_FINITE,
                       "the gradient of " + NameOf(static_cast<int>(chunk)) +
                           " holds NaN or infinity [lower the learning rate, or look for a "
                           "division by zero in the loss]");
    }
    if (!AllFinite(reader, BaseFloats(block))) {
      return MakeError(Error::NOT_FINITE, "the values of " + NameOf(static_cast<int>(chunk)) +
                                              " that a gradient was computed from hold NaN or "
                                              "infinity [lower the learning rate]");
    }
  }
  if (!empty && left > 0) {
    return MakeError(Error::BAD_FRAME,
                     std::to_string(left) + " bytes of the payload belong to no chunk");
  }
  return {};
}

Error ParameterStore::Decode(const FrameHeader& header, PayloadReader* payload) const {
  const std::optional<DType> wire = WireOf(header.wire());
  if (!wire.has_value()) {
    return MakeError(Error::BAD_FRAME, "values of format " + std::to_string(header.wire()));
  }
  if (*wire == DType::kFloat32 || payload->remaining() == 0) {
    return {};
  }
  if (Error error = Check(header); error.kind() != Error::NONE) {
    return error;
  }
  thread_local FloatBuffer received;
  thread_local FloatBuffer floats;
  floats.Clear();
  for (const std::uint32_t c : header.chunks()) {
    const Block& block = *blocks_[c];
    const DType of_chunk = block.chunk.trainable ? *wire : DType::kFloat32;
    const std::span<float> from = received.Resize(EncodedFloats(of_chunk, block.value.size()));
    if (!payload->Read(from.data(), from.size_bytes())) {
      return MakeError(Error::BAD_FRAME, NameOf(static_cast<int>(c)) + ": " +
                                             std::to_string(payload->remaining()) +
                                             " bytes left of the payload, " +
                                             std::to_string(from.size_bytes()) + " needed");
    }
    DecodeValues(of_chunk, from, floats.Append(block.value.size()));
    const std::span<float> base = floats.Append(BaseFloats(block));
    if (!payload->Read(base.data(), base.size_bytes())) {
      return MakeError(Error::BAD_FRAME, NameOf(static_cast<int>(c)) + ": " +
                                             std::to_string(payload->remaining()) +
                                             " bytes left of the payload, " +
                                             std::to_string(base.size_bytes()) + " needed");
    }
  }
  if (payload->remaining() > 0) {
    return MakeError(Error::BAD_FRAME, std::to_string(payload->remaining()) +
                                           " bytes of the payload belong to no chunk");
  }
  *payload = PayloadReader(Segments{std::as_bytes(floats.values())});
  return {};
}

Status ParameterStore::CheckRound(const Block& block, std::uint64_t round) const {
  return block.round.Completed(round, block.version)
             ? OkStatus()
             : FailedPrecondition("round " + std::to_string(round) +
                                  " is not complete: " + NameOf(block) + " is at version " +
                                  std::to_string(block.version));
}

}  // namespace cohort::ps
