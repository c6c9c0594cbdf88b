// The way of output from children to the terminal: LineSplitter makes lines, OutputQueue writes
// them without ever blocking.

#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cohort {

class LineSplitter {
 public:
  // The lines that `bytes` complete, without their newlines. A line longer than 64 KiB comes in
  // pieces.
  std::vector<std::string> Add(std::string_view bytes);
  // What is left when the stream ends; empty if it ended with a newline.
  std::string TakeRest();

 private:
  std::string rest_;
};

// Bytes on their way to a file descriptor that may be slow (a pipe to a pager). The descriptor is
// shared with other processes, so it is not made non-blocking: each write is small enough to fit
// when poll says so.
class OutputQueue {
 public:
  explicit OutputQueue(int fd) : fd_(fd) {}

  int fd() const { return fd_; }
  void Add(std::string_view text) { waiting_ += text; }
  bool empty() const { return waiting_.empty(); }
  bool full() const { return waiting_.size() > kEnough; }  // stop adding until it drains
  bool broken() const { return broken_; }                  // nobody reads any more
  // Writes as much as goes without blocking.
  void Write();

 private:
  static constexpr std::size_t kEnough = 1 << 20;

  int fd_;
  std::string waiting_;
  bool broken_ = false;
};

}  // namespace cohort
