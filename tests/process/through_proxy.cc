// Preloaded into a process of a test, has its TCP connections on this host go through the proxy of
// tcp_proxy.cc. Nothing that the process knows changes: addresses, and what it publishes, are its
// own.
//
//   LD_PRELOAD=.../libthrough_proxy.so COHORT_TEST_PROXY=PORT:FOLDER [COHORT_TEST_TASK=worker:1]
//
// Who connects to 127.0.0.1:P is connected to port PORT of 127.T.H.L, where T is the number of its
// task (NumberOf) and H, L are the bytes of P. The proxy listens on all of them, and so knows who
// it is and where it goes. Who listens on a port notes its task in FOLDER/P. The task is that of
// TF_CONFIG, unless COHORT_TEST_TASK names one.

#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "testing/proxied_task.h"

namespace {

using cohort::testing::NumberOf;

// What follows `key` in TF_CONFIG's "task", up to what cannot be in it.
std::string FieldOfTask(const std::string& config, const std::string& key) {
  const std::size_t task = config.find("\"task\"");
  const std::size_t at = task == std::string::npos ? task : config.find(key, task);
  if (at == std::string::npos) {
    return {};
  }
  const std::size_t begin = config.find_first_not_of(": \"", at + key.size());
  return config.substr(begin, config.find_first_of(",}\" ", begin) - begin);
}

struct Settings {
  Settings() {
    const char* const proxy = std::getenv("COHORT_TEST_PROXY");
    const char* const named = std::getenv("COHORT_TEST_TASK");
    const char* const config = std::getenv("TF_CONFIG");
    if (proxy == nullptr || (named == nullptr && config == nullptr)) {
      return;
    }
    const std::string text = proxy;
    const std::size_t colon = text.find(':');
    folder = text.substr(colon + 1);
    const std::string task =
        named != nullptr ? named
                         : FieldOfTask(config, "\"type\"") + ":" + FieldOfTask(config, "\"index\"");
    number = NumberOf(task);
    port = number == 0 ? 0 : std::atoi(text.c_str());
  }
  int port = 0;  // 0: there is no proxy
  int number = 0;
  std::string folder;
};

const Settings& TheSettings() {
  static const Settings settings;
  return settings;
}

bool IsStream(int fd) {
  int type = 0;
  socklen_t size = sizeof(type);
  return ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

// The IPv4 address and the port within; null where it has none.
std::uint32_t* HostOf(sockaddr_storage& address, in_port_t** port) {
  if (address.ss_family == AF_INET) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(address);
    *port = &v4.sin_port;
    return &v4.sin_addr.s_addr;
  }
  auto& v6 = reinterpret_cast<sockaddr_in6&>(address);
  if (address.ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
    *port = &v6.sin6_port;
    return &v6.sin6_addr.s6_addr32[3];
  }
  return nullptr;
}

template <typename Function>
Function* Real(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

void Note(int fd) {
  const Settings& settings = TheSettings();
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  if (settings.port == 0 || !IsStream(fd) ||
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return;
  }
  const bool v6 = address.ss_family == AF_INET6;
  if (!v6 && address.ss_family != AF_INET) {
    return;
  }
  const int port = ntohs(v6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                            : reinterpret_cast<sockaddr_in&>(address).sin_port);
  // There at once as a whole.
  const std::string path = settings.folder + "/" + std::to_string(port);
  const std::string draft = path + "." + std::to_string(::getpid());
  const std::string text = std::to_string(settings.number);
  const int file = ::open(draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file < 0) {
    return;
  }
  const bool written = ::write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  ::close(file);
  if (written) {
    std::rename(draft.c_str(), path.c_str());
  }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int connect(int fd, const sockaddr* address,
                                                              socklen_t size) {
  static auto* const real = Real<int(int, const sockaddr*, socklen_t)>("connect");
  const Settings& settings = TheSettings();
  sockaddr_storage changed = {};
  if (settings.port == 0 || address == nullptr || size > sizeof(changed) || !IsStream(fd)) {
    return real(fd, address, size);
  }
  std::memcpy(&changed, address, size);
  in_port_t* port = nullptr;
  std::uint32_t* const host = HostOf(changed, &port);
  if (host == nullptr || ntohl(*host) != INADDR_LOOPBACK) {
    return real(fd, address, size);
  }
  *host = htonl((127U << 24) | (static_cast<std::uint32_t>(settings.number) << 16) | ntohs(*port));
  *port = htons(static_cast<std::uint16_t>(settings.port));
  return real(fd, reinterpret_cast<const sockaddr*>(&changed), size);
}

extern "C" __attribute__((visibility("default"))) int listen(int fd, int backlog) {
  static auto* const real = Real<int(int, int)>("listen");
  const int result = real(fd, backlog);
  if (result == 0) {
    const int error = errno;
    Note(fd);
    errno = error;
  }
  return result;
}
