// Progress: how far a long command is: on one line of a terminal; elsewhere, where it takes longer
// than 10 s, on a line of its own every 10 s.

#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>

#include <cohort/core/clock.h>

namespace cohort::data {

// Where it is shown.
struct ProgressOutput {
  std::function<void(std::string_view text)> write;
  bool terminal = false;
  Clock* clock = &Clock::Real();

  static ProgressOutput ToStderr();
};

// Thread rules: Add and Name from many threads; SetFile and Advance from one.
class Progress {
 public:
  // Of `total` bytes of files; 0: not known.
  Progress(std::string what, std::uint64_t total,
           ProgressOutput output = ProgressOutput::ToStderr());
  ~Progress();  // takes the terminal's line away
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // So many more records, of so many bytes of a file.
  void Add(std::int64_t records, std::uint64_t bytes);
  void Name(const std::string& path);  // what is worked on

  // The file that is read next, and its bytes; the one before is done.
  void SetFile(const std::string& path, std::uint64_t bytes);
  // `records` more of it; so much of it is read, from 0 to 1.
  void Advance(std::int64_t records, double part);

 private:
  using Time = std::chrono::steady_clock::time_point;
  void Print(Time now);

  std::string what_;
  std::uint64_t total_;
  ProgressOutput output_;
  Time begin_;
  std::atomic<std::int64_t> records_ = 0;
  std::atomic<std::uint64_t> bytes_ = 0;
  std::uint64_t file_bytes_ = 0;  // of the file of SetFile
  std::uint64_t file_done_ = 0;

  std::mutex mutex_;  // of what follows
  std::string path_;
  bool printed_ = false;
  std::atomic<Time> next_;
};

}  // namespace cohort::data
