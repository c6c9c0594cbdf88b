#include "line_output.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <utility>

namespace cohort {

std::vector<std::string> LineSplitter::Add(std::string_view bytes) {
  constexpr std::size_t kLongest = 64 << 10;
  std::vector<std::string> lines;
  while (!bytes.empty()) {
    const std::size_t newline = bytes.find('\n');
    const std::size_t taken = std::min({newline, bytes.size(), kLongest - rest_.size()});
    rest_ += bytes.substr(0, taken);
    if (taken == newline || rest_.size() == kLongest) {
      lines.push_back(std::exchange(rest_, {}));
    }
    bytes.remove_prefix(taken + (taken == newline ? 1 : 0));
  }
  return lines;
}

std::string LineSplitter::TakeRest() { return std::exchange(rest_, {}); }

void OutputQueue::Write() {
  std::size_t begin = 0;
  while (begin < waiting_.size() && !broken_) {
    pollfd ready = {fd_, POLLOUT, 0};
    if (::poll(&ready, 1, 0) <= 0) {
      break;
    }
    const std::size_t size = std::min<std::size_t>(waiting_.size() - begin, PIPE_BUF);
    const ssize_t written = ::write(fd_, waiting_.data() + begin, size);
    if (written >= 0) {
      begin += static_cast<std::size_t>(written);
    } else if (errno == EAGAIN) {
      break;
    } else if (errno != EINTR) {
      broken_ = true;
    }
  }
  waiting_.erase(0, broken_ ? waiting_.size() : begin);
}

}  // namespace cohort
