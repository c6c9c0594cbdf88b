// LossyProxy: between clients and servers of a test, and breaks their connections now and then.
//
// A server listens at 127.0.0.1, the proxy at the same port of 127.0.0.2, so a client that is given
// this address finds the server's other ports behind the proxy as well. Each piece of a stream that
// it reads is, with a given probability, not passed on: both sides are closed. So requests and
// replies are lost, whole or cut.
//
// Besides, where a test asks for it: the connections there are go silent, as behind a firewall that
// has forgotten them; or replies are held back, until the connections break.
//
// Thread rules: its own thread; the methods from any.

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace cohort::testing {

class LossyProxy {
 public:
  // For the server's ports; `loss` from 0 to 1.
  LossyProxy(const std::vector<int>& ports, double loss, std::uint64_t seed);
  ~LossyProxy();
  LossyProxy(const LossyProxy&) = delete;
  LossyProxy& operator=(const LossyProxy&) = delete;

  static std::string AddressOf(int port) { return "127.0.0.2:" + std::to_string(port); }
  std::int64_t lost() const { return lost_; }
  void Stop() { losing_ = false; }  // losing; it goes on passing
  // From now on the present connections pass nothing more, and are not closed.
  void Silence() { silence_ = true; }
  // Nothing goes from servers to clients until Break closes all connections; then all passes again.
  void HoldReplies() { hold_ = true; }
  void Break() { break_ = true; }

 private:
  struct State;
  void Run();

  std::unique_ptr<State> state_;
  std::atomic<std::int64_t> lost_{0};
  std::atomic<bool> losing_{true};
  std::atomic<bool> silence_{false};
  std::atomic<bool> hold_{false};
  std::atomic<bool> break_{false};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace cohort::testing
