// Partitioner: into how many shards a parameter is cut among parameter servers. Checkpoints do not
// depend on it: a job may go on with another one, and with other servers. Nor do values, up to what
// rounding in 8 bits and the norm of all gradients make of other chunks.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <cohort/core/status.h>
#include <cohort/core/tensor.h>

namespace cohort {

struct Partitioner {
  enum class Kind {
    kPieces,       // equal pieces of at most 1 MiB, which may end within a row
    kFixedShards,  // `shards`
    kMinSize,      // its bytes by `bytes`, rounded up: about that size, or a little less
    kMaxSize,      // as few as have at most `bytes` each, or one row
  };
  Kind kind = Kind::kPieces;
  std::int64_t shards =
      0;  // at most; 0: kMinSize as many as there are servers, kMaxSize any number
  std::int64_t bytes = 0;

  // "pieces", "fixed:4", "min:256k", "max:1m", "min:256k:8". InvalidArgument for others.
  static Result<Partitioner> Parse(std::string_view text);
  std::string ToString() const;
  // InvalidArgument: Parse gives no such one.
  Status Check() const;
  // But for kPieces. Along the first axis, whose rows are dealt out in order, the first shards
  // getting one more where they do not come out even; never more shards than rows. Bytes are those
  // of float32.
  std::int64_t ShardsOf(const Shape& shape, int servers) const;
  friend bool operator==(const Partitioner&, const Partitioner&) = default;
};

}  // namespace cohort
