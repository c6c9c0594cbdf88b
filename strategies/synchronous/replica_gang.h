// ReplicaGang: the threads of a process's replicas, which do one thing together.
//
// Replica 0 runs on the thread that calls Run, every other one on a thread of its own that lives as
// long as the gang. A thread that has finished looks out for the next Run for some microseconds
// before it goes to sleep: a step consists of several, close together.
//
// Thread rules: Run from one thread at a time. Run blocks until every body has returned; the
// destructor joins.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace cohort {

class ReplicaGang {
 public:
  // Threads are named `name` and a number, from `first`: that of this process's replica 0 in the
  // job.
  ReplicaGang(int size, const std::string& name, int first);
  ~ReplicaGang();
  ReplicaGang(const ReplicaGang&) = delete;
  ReplicaGang& operator=(const ReplicaGang&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }
  // body(r) for every r in [0, size()), all at the same time. `body` must not throw.
  void Run(const std::function<void(int)>& body);

 private:
  void Work(int replica);

  const bool spin_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  // Written under mutex_; read without it while looking out.
  std::atomic<std::uint64_t> round_{0};
  std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int)>* body_ = nullptr;
  std::vector<std::thread> threads_;
};

}  // namespace cohort
