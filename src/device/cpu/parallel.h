// Loops over the threads of the OpenMP runtime that oneDNN uses too (gomp).

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace cohort::cpu {

// Sets how many threads OpenMP regions started by this thread get, and puts it back.
class OmpThreads {
 public:
  explicit OmpThreads(int threads) : before_(omp_get_max_threads()) {
    if (before_ != threads) {
      omp_set_num_threads(threads);
    }
  }
  ~OmpThreads() {
    if (before_ != omp_get_max_threads()) {
      omp_set_num_threads(before_);
    }
  }
  OmpThreads(const OmpThreads&) = delete;
  OmpThreads& operator=(const OmpThreads&) = delete;

 private:
  int before_;
};

// Calls run(body, part) for each part in [0, parts), on as many threads.
void RunParts(std::int64_t parts, void (*run)(const void* body, std::int64_t part),
              const void* body);

// body(begin, end, part) over [0, count) in at most OpenMP's number of parts, each of at least
// `grain`. Which part gets what depends on count, grain and the number of threads only.
template <typename Body>
void ParallelFor(std::int64_t count, std::int64_t grain, const Body& body) {
  const std::int64_t parts =
      std::clamp<std::int64_t>(count / std::max<std::int64_t>(grain, 1), 1, omp_get_max_threads());
  if (parts == 1) {
    body(std::int64_t{0}, count, 0);
    return;
  }
  const auto part_of = [&](std::int64_t part) {
    body(count * part / parts, count * (part + 1) / parts, static_cast<int>(part));
  };
  using PartOf = decltype(part_of);
  RunParts(
      parts,
      [](const void* part_function, std::int64_t part) {
        (*static_cast<const PartOf*>(part_function))(part);
      },
      &part_of);
}

// Below this many elements a loop stays on its thread: waking another costs microseconds.
constexpr std::int64_t kGrain = 16 * 1024;

// The grain in rows.
inline std::int64_t RowGrain(std::int64_t columns) {
  return std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(columns, 1));
}

}  // namespace cohort::cpu
