#include "testing/tcp_proxy.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <thread>

#include <cohort/core/status.h>
#include "tcp/socket.h"

namespace cohort::testing {
namespace {

constexpr std::chrono::seconds kPatience{20};

}  // namespace

TcpProxy::TcpProxy(ProcessCluster& cluster, const std::string& name) {
  cluster.Start(name, {COHORT_BIN_DIR "/../tests/tcp_proxy", folder_.path()});
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (port_.empty()) {
    std::ifstream(folder_ / "proxy") >> port_;
    if (port_.empty() && std::chrono::steady_clock::now() >= deadline) {
      throw std::runtime_error("tcp_proxy does not begin: " + cluster.Stderr(name));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

Variables TcpProxy::Environment(const std::string& task) const {
  Variables variables = {{"LD_PRELOAD", COHORT_BIN_DIR "/../tests/libthrough_proxy.so"},
                         {"COHORT_TEST_PROXY", port_ + ":" + folder_.path()}};
  if (!task.empty()) {
    variables["COHORT_TEST_TASK"] = task;
  }
  return variables;
}

std::int64_t TcpProxy::Say(const std::string& command) {
  const Socket socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const std::string path = folder_ / "control";
  std::memcpy(address.sun_path, path.c_str(), std::min(path.size(), sizeof(address.sun_path) - 1));
  const std::string line = command + "\n";
  if (::connect(socket.fd(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      ::send(socket.fd(), line.data(), line.size(), MSG_NOSIGNAL) !=
          static_cast<ssize_t>(line.size())) {
    OrThrow(ErrnoStatus(errno, "tcp_proxy: " + command));
  }
  std::string answer;
  char buffer[512];
  while (answer.find('\n') == std::string::npos) {
    pollfd event = {socket.fd(), POLLIN, 0};
    const ssize_t n = ::poll(&event, 1, std::chrono::milliseconds(kPatience).count()) > 0
                          ? ::recv(socket.fd(), buffer, sizeof(buffer), 0)
                          : 0;
    if (n <= 0) {
      throw std::runtime_error("tcp_proxy does not answer to: " + command);
    }
    answer.append(buffer, static_cast<std::size_t>(n));
  }
  if (!answer.starts_with("ok")) {
    throw std::runtime_error("tcp_proxy: " + answer);
  }
  return answer.starts_with("ok ") ? std::atoll(answer.c_str() + 3) : 0;
}

}  // namespace cohort::testing
