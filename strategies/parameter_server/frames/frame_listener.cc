#include "parameter_server/frames/frame_listener.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <list>
#include <system_error>
#include <thread>

#include "parameter_server/frames/frame_connection.h"
#include "tcp/unix_socket.h"

namespace cohort::ps {
namespace {

class ThreadedFrameListener final : public FrameListener {
 public:
  ThreadedFrameListener(Listener listener, Listener local, FrameHandler handler, const Log& log)
      : handler_(std::move(handler)),
        log_(log),
        listener_(std::move(listener)),
        local_(std::move(local)),
        stop_(::eventfd(0, EFD_CLOEXEC)) {
    thread_ = std::thread([this] { Accept(); });
  }
  ~ThreadedFrameListener() override {
    const std::uint64_t one = 1;
    (void)!::write(stop_.fd(), &one, sizeof(one));
    thread_.join();
    connections_.clear();
  }
  int port() const override {
    return std::stoi(listener_.address.substr(listener_.address.rfind(':') + 1));
  }
  const std::string& local_address() const override { return local_.address; }

 private:
  void Accept() {
    std::array<pollfd, 3> events = {{{listener_.socket.fd(), POLLIN, 0},
                                     {local_.socket.fd(), POLLIN, 0},
                                     {stop_.fd(), POLLIN, 0}}};
    for (;;) {
      ::poll(events.data(), events.size(), 1'000);
      if ((events[2].revents & POLLIN) != 0) {
        return;
      }
      connections_.remove_if([](const auto& c) { return c->over(); });
      if ((events[0].revents & POLLIN) != 0) {
        Take(listener_, MakeTcpConnection);
      }
      if ((events[1].revents & POLLIN) != 0) {
        Take(local_, MakeSharedConnection);
      }
    }
  }

  template <typename Make>
  void Take(const Listener& from, const Make& make) {
    Socket socket(::accept4(from.socket.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    bool taken = false;
    if (socket.open()) {
      try {
        connections_.push_back(make(std::move(socket), handler_, log_));
        taken = true;
      } catch (const std::system_error& error) {
        log_.Warning(std::string("a connection was refused: ") + error.what());
      }
    }
    if (!taken) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));  // nothing is left to take it
    }
  }

  const FrameHandler handler_;
  const Log log_;
  const Listener listener_;
  const Listener local_;
  const Socket stop_;
  std::list<std::unique_ptr<FrameConnection>> connections_;  // of the thread
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<FrameListener>> FrameListener::Start(const std::string& address,
                                                            FrameHandler handler, const Log& log) {
  COHORT_ASSIGN_OR_RETURN(Listener listener, Listen(address, {}));
  COHORT_ASSIGN_OR_RETURN(Listener local, ListenUnix());
  return std::unique_ptr<FrameListener>(std::make_unique<ThreadedFrameListener>(
      std::move(listener), std::move(local), std::move(handler), log));
}

}  // namespace cohort::ps
