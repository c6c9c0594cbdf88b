#include "progress.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace cohort::data {
namespace {

constexpr std::chrono::milliseconds kTerminalEvery(200);
constexpr std::chrono::seconds kLinesEvery(10);

std::string TimeText(double seconds) {
  const auto whole = std::llround(seconds);
  std::array<char, 64> text{};
  if (whole < 60) {
    std::snprintf(text.data(), text.size(), "%lld s", whole);
  } else if (whole < 3600) {
    std::snprintf(text.data(), text.size(), "%lld min %lld s", whole / 60, whole % 60);
  } else {
    std::snprintf(text.data(), text.size(), "%lld h %lld min", whole / 3600, whole % 3600 / 60);
  }
  return text.data();
}

}  // namespace

ProgressOutput ProgressOutput::ToStderr() {
  return {.write =
              [](std::string_view text) {
                std::fwrite(text.data(), 1, text.size(), stderr);
                std::fflush(stderr);
              },
          .terminal = ::isatty(STDERR_FILENO) == 1};
}

Progress::Progress(std::string what, std::uint64_t total, ProgressOutput output)
    : what_(std::move(what)),
      total_(total),
      output_(std::move(output)),
      begin_(output_.clock->Now()),
      next_(output_.terminal ? begin_ : begin_ + kLinesEvery) {}

Progress::~Progress() {
  if (printed_ && output_.terminal) {
    output_.write("\r\033[K");
  }
}

void Progress::Add(std::int64_t records, std::uint64_t bytes) {
  constexpr std::int64_t kLook = 64;  // records between looks at the clock
  const std::int64_t before = records_.fetch_add(records, std::memory_order_relaxed);
  bytes_.fetch_add(bytes, std::memory_order_relaxed);
  if (records == 1 && bytes < kLook * 1024 && before % kLook != 0) {
    return;
  }
  const Time now = output_.clock->Now();
  if (now >= next_.load(std::memory_order_relaxed)) {
    Print(now);
  }
}

void Progress::Name(const std::string& path) {
  const std::lock_guard lock(mutex_);
  path_ = path;
}

void Progress::SetFile(const std::string& path, std::uint64_t bytes) {
  Name(path);
  Advance(0, 1);
  file_bytes_ = bytes;
  file_done_ = 0;
}

void Progress::Advance(std::int64_t records, double part) {
  const double known = part >= 0 ? std::min(part, 1.0) : 0;  // nor of an empty file
  const auto done = static_cast<std::uint64_t>(known * static_cast<double>(file_bytes_));
  const std::uint64_t more = done > file_done_ ? done - file_done_ : 0;
  file_done_ += more;
  Add(records, more);
}

void Progress::Print(Time now) {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock() || now < next_.load(std::memory_order_relaxed)) {
    return;  // another thread does
  }
  const double seconds = std::chrono::duration<double>(now - begin_).count();
  const auto bytes = static_cast<double>(bytes_.load(std::memory_order_relaxed));
  const double rate = seconds > 0 ? bytes / seconds : 0;
  std::array<char, 160> numbers{};
  const auto records = static_cast<long long>(records_.load(std::memory_order_relaxed));
  const auto total = static_cast<double>(total_);
  if (total_ == 0) {
    std::snprintf(numbers.data(), numbers.size(), "%lld records, %.1f MB, %.1f MB/s", records,
                  bytes / 1e6, rate / 1e6);
  } else {
    std::snprintf(numbers.data(), numbers.size(),
                  "%lld records, %.1f of %.1f MB (%d %%), %.1f MB/s", records, bytes / 1e6,
                  total / 1e6, static_cast<int>(std::min(1.0, bytes / total) * 100), rate / 1e6);
  }
  std::string line = what_ + (path_.empty() ? "" : " " + path_) + ": " + numbers.data();
  if (total_ != 0 && rate > 0 && bytes < total) {
    line += ", " + TimeText((total - bytes) / rate) + " left";
  }
  output_.write(output_.terminal ? "\r\033[K" + line : line + "\n");
  printed_ = true;
  next_ = output_.terminal ? now + Duration(kTerminalEvery) : now + Duration(kLinesEvery);
}

}  // namespace cohort::data
