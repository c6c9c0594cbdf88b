// BucketPlan: which parameter's gradient lies where, and with which others it travels.
//
// A gradient arena holds the gradients of the trainable parameters bucket after bucket, so that a
// bucket is one span of it and nothing is copied to be sent. Parameters are taken in the order in
// which a backward pass finishes them: at first a guess, reverse declaration order; later the one
// that was seen. A bucket is closed before it would exceed its limit; a parameter larger than the
// limit gets one of its own. The first limit is small, so that communication starts early.
//
// ROWS parameters, whose gradients come as rows, stand behind all others, one to a bucket: they
// are exchanged in another way (row_exchange.h).
//
// A pure function of the parameters, the order, and the limits: equal on every process where these
// are. An arena has as many elements under every plan of the same parameters.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/bucket_hook.h>

namespace cohort {

struct BucketLimits {
  std::int64_t first_bytes = 0;
  std::int64_t bytes = 0;  // of those behind the first
  friend bool operator==(const BucketLimits&, const BucketLimits&) = default;
};

// The trainable parameters in launch order.
struct BucketOrder {
  std::vector<int> parameters;
  std::vector<bool> rows;  // by parameter: exchanged as rows. Empty: none are

  // Reverse declaration order, no rows.
  static BucketOrder Declared(const ParameterSet& parameters);
};

struct BucketPlan {
  // Elements at the start of bucket 0 that belong to no parameter: the replica's weight travels
  // there.
  static constexpr std::int64_t kHeaderElements = 16;

  struct Place {
    int bucket = -1;  // -1: not trainable, has no gradient
    std::int64_t offset = 0;
    std::int64_t elements = 0;
  };
  struct Bucket {
    std::int64_t begin = 0;  // elements [begin, end) of a gradient arena
    std::int64_t end = 0;
    std::vector<int> parameters;
    bool rows = false;            // of one parameter, exchanged as rows
    std::size_t first_chunk = 0;  // its chunks: [first_chunk, last_chunk)
    std::size_t last_chunk = 0;
    std::string name;               // what errors call it
    std::vector<BucketPart> parts;  // the same parameters, as hooks see them
  };
  // A run of one parameter's elements that fits in a core's cache with its optimizer state: the
  // grain in which gradients are summed and applied. Never split among threads.
  struct Chunk {
    std::int64_t gradient = 0;  // offset in a gradient arena
    std::int64_t value = 0;     // offset in the parameters' arena
    std::int64_t elements = 0;
    std::size_t ordinal = 0;  // the chunk's place in declaration order, the same under every plan
  };

  std::vector<Place> places;    // by parameter
  std::vector<Bucket> buckets;  // at least one, also where nothing is trainable
  std::vector<Chunk> chunks;    // in bucket order
  std::int64_t elements = 0;    // of a gradient arena

  static BucketPlan Make(const ParameterSet& parameters, const BucketOrder& order,
                         const BucketLimits& limits);
  // Elements [first, second) of a gradient arena: a bucket without its header.
  std::pair<std::int64_t, std::int64_t> GradientsOf(int bucket) const {
    const Bucket& b = buckets[static_cast<std::size_t>(bucket)];
    return {b.begin + (bucket == 0 ? kHeaderElements : 0), b.end};
  }
  // What must be equal on every process: a line for each bucket.
  std::vector<std::string> Lines() const;
};

// A weight in the two floats of a bucket's header. Their sums over replicas are exact for integer
// weights while the total stays below 2^36 and the replicas below 4096.
void PackWeight(double weight, std::span<float> header);
double UnpackWeight(std::span<const float> header);

}  // namespace cohort
