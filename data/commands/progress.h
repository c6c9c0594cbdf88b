// Progress: how far a long command is, on one line of a terminal; nothing where stderr is none.

#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace cohort::data {

class Progress {
 public:
  explicit Progress(std::string what);
  ~Progress();  // takes the line away
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // One more record of so many bytes.
  void Add(std::uint64_t bytes);
  // What is being worked on.
  void SetFile(const std::string& path) { path_ = path; }

 private:
  using Clock = std::chrono::steady_clock;
  void Print();

  std::string what_;
  std::string path_;
  bool terminal_;
  bool printed_ = false;
  std::uint64_t records_ = 0;
  std::uint64_t bytes_ = 0;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point next_ = begin_;
};

}  // namespace cohort::data
