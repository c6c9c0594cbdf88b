#include "tcp/pace.h"

#include <linux/tcp.h>  // <netinet/tcp.h> does not have tcpi_min_rtt
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>

namespace cohort::tcp {
namespace {

constexpr std::uint32_t kNearMicroseconds = 50;

}  // namespace

bool IsNear(int fd) {
  tcp_info info = {};
  socklen_t bytes = sizeof(info);
  return ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) == 0 &&
         bytes >= offsetof(tcp_info, tcpi_min_rtt) + sizeof(info.tcpi_min_rtt) &&
         info.tcpi_min_rtt <= kNearMicroseconds;
}

}  // namespace cohort::tcp
