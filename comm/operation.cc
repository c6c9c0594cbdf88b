#include "operation.h"

#include <algorithm>
#include <cstring>

#include "algorithms/choose.h"

namespace cohort {
namespace {

struct Fixed {  // the wire form, followed by the name; both sides are little-endian x86-64
  std::uint8_t version;
  std::uint8_t kind;
  std::uint8_t dtype;
  std::uint8_t reduce_op;
  std::uint8_t algorithm;
  std::uint8_t reserved;
  std::uint16_t joins;
  std::int32_t root;
  std::uint32_t name_bytes;
  std::int64_t count;
  std::uint64_t shape;
  std::int64_t segment_bytes;
  std::uint64_t generation;
  std::uint64_t sequence;
  std::uint64_t pair_sequence;
};
static_assert(sizeof(Fixed) == 64);

constexpr std::uint8_t kVersion = 2;
constexpr std::size_t kMaxNameBytes = 1024;

bool Reduces(OperationKind kind) {
  return kind == OperationKind::kAllReduce || kind == OperationKind::kReduceScatter ||
         kind == OperationKind::kReduce;
}

}  // namespace

std::string_view OperationKindName(OperationKind kind) {
  switch (kind) {
    case OperationKind::kAllReduce:
      return "AllReduce";
    case OperationKind::kReduceScatter:
      return "ReduceScatter";
    case OperationKind::kAllGather:
      return "AllGather";
    case OperationKind::kAllGatherV:
      return "AllGatherV";
    case OperationKind::kBroadcast:
      return "Broadcast";
    case OperationKind::kAllToAll:
      return "AllToAll";
    case OperationKind::kAllToAllV:
      return "AllToAllV";
    case OperationKind::kBarrier:
      return "Barrier";
    case OperationKind::kSend:
      return "Send";
    case OperationKind::kReceive:
      return "Receive";
    case OperationKind::kSplit:
      return "Split";
    case OperationKind::kJoin:
      return "Join";
    case OperationKind::kReduce:
      return "Reduce";
  }
  return "unknown operation";
}

bool OperationRecord::Matches(const OperationRecord& peer) const {
  const OperationKind expected = kind == OperationKind::kReceive ? OperationKind::kSend : kind;
  return expected == peer.kind && dtype == peer.dtype && reduce_op == peer.reduce_op &&
         algorithm == peer.algorithm && (point_to_point() || root == peer.root) &&
         count == peer.count && shape == peer.shape && segment_bytes == peer.segment_bytes &&
         generation == peer.generation && sequence == peer.sequence &&
         pair_sequence == peer.pair_sequence &&
         name.substr(0, kMaxNameBytes) == peer.name.substr(0, kMaxNameBytes);
}

std::uint64_t OperationRecord::Fingerprint() const {
  const auto mix = [](std::uint64_t value, std::uint64_t factor) {
    value *= factor;
    return value ^ value >> 32U;
  };
  // Each with a factor of its own, so that none waits for another; large odd ones without a small
  // ratio, so that small differences of two fields do not make up for each other.
  std::uint64_t print =
      mix(static_cast<std::uint64_t>(kind) | static_cast<std::uint64_t>(dtype) << 8U |
              static_cast<std::uint64_t>(reduce_op) << 16U |
              static_cast<std::uint64_t>(algorithm) << 24U |
              static_cast<std::uint64_t>(static_cast<std::uint32_t>(root)) << 32U,
          0x9e3779b97f4a7c15U) +
      mix(static_cast<std::uint64_t>(count), 0xbf58476d1ce4e5b9U) +
      mix(shape, 0x94d049bb133111ebU) +
      mix(static_cast<std::uint64_t>(segment_bytes), 0xd6e8feb86659fd93U);
  const auto add = [&](std::uint64_t value) { print = mix(print ^ value, 0x9e3779b97f4a7c15U); };
  const std::size_t bytes = std::min(name.size(), kMaxNameBytes);
  add(bytes);
  for (std::size_t at = 0; at < bytes; at += sizeof(std::uint64_t)) {
    std::uint64_t word = 0;
    std::memcpy(&word, name.data() + at, std::min(bytes - at, sizeof(word)));
    add(word);
  }
  return print;
}

std::vector<std::byte> OperationRecord::Encode() const {
  Fixed fixed = {};
  fixed.version = kVersion;
  fixed.kind = static_cast<std::uint8_t>(kind);
  fixed.dtype = static_cast<std::uint8_t>(dtype);
  fixed.reduce_op = static_cast<std::uint8_t>(reduce_op);
  fixed.algorithm = algorithm;
  fixed.joins = joins;
  fixed.root = root;
  fixed.name_bytes = static_cast<std::uint32_t>(std::min(name.size(), kMaxNameBytes));
  fixed.count = count;
  fixed.shape = shape;
  fixed.segment_bytes = segment_bytes;
  fixed.generation = generation;
  fixed.sequence = sequence;
  fixed.pair_sequence = pair_sequence;
  std::vector<std::byte> bytes(sizeof(Fixed) + fixed.name_bytes);
  std::memcpy(bytes.data(), &fixed, sizeof(Fixed));
  if (fixed.name_bytes > 0) {
    std::memcpy(bytes.data() + sizeof(Fixed), name.data(), fixed.name_bytes);
  }
  return bytes;
}

std::optional<OperationRecord> OperationRecord::Decode(std::span<const std::byte> bytes) {
  Fixed fixed;
  if (bytes.size() < sizeof(Fixed)) {
    return std::nullopt;
  }
  std::memcpy(&fixed, bytes.data(), sizeof(Fixed));
  if (fixed.version != kVersion || bytes.size() != sizeof(Fixed) + fixed.name_bytes) {
    return std::nullopt;
  }
  OperationRecord record;
  record.kind = static_cast<OperationKind>(fixed.kind);
  record.dtype = static_cast<DType>(fixed.dtype);
  record.reduce_op = static_cast<ReduceOp>(fixed.reduce_op);
  record.algorithm = fixed.algorithm;
  record.joins = fixed.joins;
  record.root = fixed.root;
  record.count = fixed.count;
  record.shape = fixed.shape;
  record.segment_bytes = fixed.segment_bytes;
  record.generation = fixed.generation;
  record.sequence = fixed.sequence;
  record.pair_sequence = fixed.pair_sequence;
  record.name.assign(reinterpret_cast<const char*>(bytes.data()) + sizeof(Fixed), fixed.name_bytes);
  return record;
}

std::string OperationRecord::Brief() const {
  std::string text(OperationKindName(kind));
  if (!name.empty()) {
    text += " '" + name + "'";
  }
  if (kind != OperationKind::kBarrier && kind != OperationKind::kSplit &&
      kind != OperationKind::kJoin) {
    text += " " + std::string(DTypeName(dtype));
    if (kind != OperationKind::kAllToAllV) {  // there each rank has its own
      text += "[" + std::to_string(count) + "]";
    }
  }
  return text;
}

std::string OperationRecord::Numbered() const {
  const std::uint64_t number = point_to_point() ? pair_sequence : sequence;
  return Brief() + " #" + std::to_string(number) + " (generation " + std::to_string(generation) +
         ")";
}

std::string OperationRecord::Full() const {
  std::string text = Brief();
  if (Reduces(kind)) {
    text += " " + std::string(ReduceOpName(reduce_op));
  }
  if (root >= 0 && !point_to_point()) {
    text += " root " + std::to_string(root);
  }
  if (kind == OperationKind::kBarrier && count != 0) {  // an Explain
    text += " of " + std::to_string(count) + " bytes";
  }
  text += " #" + std::to_string(sequence);
  if (point_to_point()) {
    text += "." + std::to_string(pair_sequence);
  }
  text += " generation " + std::to_string(generation);
  text += " by " + std::string(AlgorithmName(static_cast<Algorithm>(algorithm))) + " segments of " +
          std::to_string(segment_bytes) + " bytes";
  if (shape != 0) {
    text += " counts digest " + std::to_string(shape);
  }
  return text;
}

}  // namespace cohort
