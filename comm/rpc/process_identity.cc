#include "process_identity.h"

#include <unistd.h>

#include <array>
#include <fstream>
#include <random>
#include <sstream>

namespace cohort {
namespace {

// Field 22 of /proc/self/stat is the start in clock ticks since boot; the name in field 2 may hold
// blanks and parentheses.
std::chrono::milliseconds Uptime() {
  std::ifstream stat("/proc/self/stat");
  std::string line;
  std::getline(stat, line);
  const std::size_t name_end = line.rfind(')');
  double now = 0;
  if (name_end == std::string::npos || !(std::ifstream("/proc/uptime") >> now)) {
    return {};
  }
  std::istringstream fields(line.substr(name_end + 1));
  std::string skip;
  for (int field = 3; field < 22; ++field) {
    fields >> skip;
  }
  double ticks = 0;
  if (!(fields >> ticks)) {
    return {};
  }
  const double seconds = now - ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
  return std::chrono::milliseconds(seconds > 0 ? static_cast<std::int64_t>(seconds * 1000) : 0);
}

}  // namespace

ProcessIdentity ProcessIdentity::OfThis() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) {
    name = {"unknown"};
  }
  return {.host = name.data(), .pid = ::getpid(), .uptime = Uptime()};
}

std::uint64_t NewIncarnation() {
  std::random_device random;
  std::uint64_t incarnation = 0;
  while (incarnation == 0) {
    incarnation = (std::uint64_t{random()} << 32) | random();
  }
  return incarnation;
}

}  // namespace cohort
