// Which buckets of a sparse table should move, so that servers get equal numbers of gradients.

#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "parameter_server/rows/bucket_client.h"

namespace cohort::ps {

struct BucketMoveTo {
  std::uint32_t bucket = 0;
  int to = 0;
  friend bool operator==(const BucketMoveTo&, const BucketMoveTo&) = default;
};

// At most `most` moves, each from the server with the most to the one with the fewest, and of the
// bucket that brings these closest to each other; none where the busiest has at most a tenth more
// than the mean, or where no single bucket would help. A pure function.
std::vector<BucketMoveTo> PlanMoves(std::vector<BucketLoad> loads, int servers, int most);

// What each bucket has got between two looks at its count.
class LoadMeter {
 public:
  // A bucket that is seen for the first time on a server has got nothing yet.
  std::vector<BucketLoad> Since(const std::vector<BucketLoad>& counts);

 private:
  std::map<std::uint32_t, BucketLoad> last_;  // by bucket
};

}  // namespace cohort::ps
