#include "progress.h"

#include <unistd.h>

#include <cstdio>

namespace cohort::data {

Progress::Progress(std::string what)
    : what_(std::move(what)), terminal_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (printed_) {
    std::fprintf(stderr, "\r\033[K");
  }
}

void Progress::Add(std::uint64_t bytes) {
  ++records_;
  bytes_ += bytes;
  constexpr std::uint64_t kLook = 64;  // records between looks at the clock
  if (terminal_ && (bytes > kLook * 1024 || records_ % kLook == 0) && Clock::now() >= next_) {
    Print();
  }
}

void Progress::Print() {
  const Clock::time_point now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - begin_).count();
  const double megabytes = static_cast<double>(bytes_) / 1e6;
  std::fprintf(stderr, "\r\033[K%s %s: %llu records, %.1f MB, %.1f MB/s", what_.c_str(),
               path_.c_str(), static_cast<unsigned long long>(records_), megabytes,
               seconds > 0 ? megabytes / seconds : 0.0);
  std::fflush(stderr);
  printed_ = true;
  next_ = now + std::chrono::milliseconds(200);
}

}  // namespace cohort::data
