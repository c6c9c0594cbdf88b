// TcpProxy: a process (process/tcp_proxy.cc) that stands in all TCP connections between processes
// of a test, real ones, and does to them what a network may do: breaks, silences, delays, repeats.
//
//   TcpProxy proxy(cluster);
//   cluster.StartTasks(jobs, argv, proxy.Environment());   // frames by TCP: memory has no network
//   proxy.HalfOpen("worker:1", "ps:0");
//
// Processes are told nothing of it: their connections are led there (process/through_proxy.cc).
// Tasks are "chief:0", "worker:1", "ps:0"; "*" is any. What is said holds for the connections that
// there are and for later ones, until Heal, and is in effect when the method returns. Errors throw.
//
// Thread rules: one thread.

#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {

class TcpProxy {
 public:
  // Numbers of FrameMethod, of parameter servers.
  enum class Frame { kPull = 1, kPush = 2, kAssign = 3, kPullRows = 5, kPushRows = 6 };

  // Starts it, as `name` of the cluster, which ends it.
  explicit TcpProxy(ProcessCluster& cluster, const std::string& name = "proxy");

  // For processes whose connections are to pass through it. Their task is that of TF_CONFIG, or
  // `task`.
  Variables Environment(const std::string& task = "") const;

  void Reset(const std::string& a, const std::string& b) { Say("reset " + a + " " + b); }
  // Nothing passes between them, or from one to the other: it waits, as do new connections.
  void HalfOpen(const std::string& a, const std::string& b) { Say("half_open " + a + " " + b); }
  void OneWay(const std::string& from, const std::string& to) { Say("one_way " + from + " " + to); }
  // The connections that there are never pass anything again, and are not closed. New ones do.
  void Forget(const std::string& a, const std::string& b) {
    Say("half_open " + a + " " + b + " now");
  }
  void ForgetOneWay(const std::string& from, const std::string& to) {
    Say("one_way " + from + " " + to + " now");
  }
  // `fault`, "reset", "half_open" or "one_way", when so many bytes more have passed between them,
  // on the connections that there are then; struck() counts.
  void After(std::int64_t bytes, const std::string& fault, const std::string& a,
             const std::string& b) {
    Say("after " + std::to_string(bytes) + " " + fault + " " + a + " " + b + " now");
  }
  void Delay(const std::string& a, const std::string& b, std::chrono::milliseconds by) {
    Say("delay " + a + " " + b + " " + std::to_string(by.count()));
  }
  // Each piece that is read is late by a random time of at most `most`. Those of a connection stay
  // in their order; connections overtake each other.
  void DelayRandomly(const std::string& a, const std::string& b, std::chrono::milliseconds most,
                     std::uint64_t seed) {
    Say("delay_randomly " + a + " " + b + " " + std::to_string(most.count()) + " " +
        std::to_string(seed));
  }
  // Each piece that is read is lost with that probability, and its connection with it.
  void Lose(const std::string& a, const std::string& b, double probability, int seed) {
    Say("lose " + a + " " + b + " " + std::to_string(probability) + " " + std::to_string(seed));
  }
  // Pulls and pushes come to the server twice, the second time late, beside others.
  void Duplicate(const std::string& client, const std::string& server) {
    Say("duplicate " + client + " " + server);
  }
  // The next frame of that kind stops in its middle: a request, or from a server its answer. held()
  // counts.
  void Hold(const std::string& from, const std::string& to, Frame frame) {
    Say("hold " + from + " " + to + " " + std::to_string(static_cast<int>(frame)));
  }
  // The next call of that method of gRPC, "/cohort.ps.Rows/Move", with all that `from` sends behind
  // it on that connection. held() counts. Only the first one on a connection is seen.
  void HoldCall(const std::string& from, const std::string& to, const std::string& path) {
    Say("hold_call " + from + " " + to + " " + path);
  }
  void Heal() { Say("heal"); }

  // Frames that have passed.
  std::int64_t Count(const std::string& from, const std::string& to, Frame frame) {
    return Say("count " + from + " " + to + " " + std::to_string(static_cast<int>(frame)));
  }
  std::int64_t struck() { return Say("struck"); }
  std::int64_t held() { return Say("held"); }
  std::int64_t lost() { return Say("lost"); }
  std::int64_t duplicated() { return Say("duplicated"); }

 private:
  // The number that it answers, or 0.
  std::int64_t Say(const std::string& command);

  TempDir folder_;
  std::string port_;
};

}  // namespace cohort::testing
