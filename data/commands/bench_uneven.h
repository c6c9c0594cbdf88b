// What keeping the order costs where some examples take much longer than others: `cohort bench
// input --uneven`.

#pragma once

#include <cstdint>

#include <cohort/core/status.h>

namespace cohort::data {

struct BenchUnevenOptions {
  double part = 0.02;  // of the examples, that takes `times` as long as the others
  double times = 50;
  std::int64_t batch = 32;
  int threads = 2;
  double seconds = 0.5;  // for each number of batches ahead
  bool json = false;
};

// Reads epochs through a Map whose examples take that long, as fast as they come, with different
// numbers of batches ahead; prints each rate beside the limit, which is the same work shared out
// perfectly: the time that was spent in the Map, over the threads.
Status BenchUneven(const BenchUnevenOptions& options);

}  // namespace cohort::data
