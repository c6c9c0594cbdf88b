// OperationRecord: what a rank is doing, as its peers see it. Equal records mean that two ranks are
// in the same operation; the text of two unequal ones is the error that everybody gets.

#pragma once

#include <cohort/comm/communicator.h>
#include <cohort/comm/operation_kind.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace cohort {

struct OperationRecord {
  OperationKind kind = OperationKind::kBarrier;
  DType dtype = DType::kUInt8;
  ReduceOp reduce_op = ReduceOp::kSum;
  std::uint8_t algorithm = 0;  // Algorithm
  std::int32_t root = -1;
  std::int64_t count = 0;
  std::uint64_t shape = 0;  // digest of what else must agree: the counts of AllGatherV
  std::int64_t segment_bytes = 0;
  std::uint64_t generation = 0;
  // Of collectives: their number. Of Send and Receive: the number of the collective before them.
  std::uint64_t sequence = 0;
  std::uint64_t pair_sequence = 0;  // Send and Receive: their number between the two ranks
  // That its rank had taken part in when it began, modulo 2^16: who has joined tells by them what
  // is still to be taken part in from what comes after. Not compared.
  std::uint16_t joins = 0;
  std::string name;

  bool point_to_point() const {
    return kind == OperationKind::kSend || kind == OperationKind::kReceive;
  }
  // Whether a rank in this operation and one in `peer` (sent by that one) are in the same one.
  bool Matches(const OperationRecord& peer) const;

  // Differs, but for one chance in 2^64, where Matches is false between two collectives.
  std::uint64_t Fingerprint() const;

  std::vector<std::byte> Encode() const;
  static std::optional<OperationRecord> Decode(std::span<const std::byte> bytes);

  // "AllReduce 'fc1' float32[10]"
  std::string Brief() const;
  // "AllReduce 'fc1' float32[10] #12 (generation 1)"
  std::string Numbered() const;
  // Everything that is compared: for records whose brief texts are equal.
  std::string Full() const;
};

}  // namespace cohort
