// ThreadPool: a fixed number of named threads and one queue.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace cohort {

// Names the calling thread for debuggers and top(1); at most 15 characters are kept.
void NameThisThread(const std::string& name);

// The number of cores this process may run on (its affinity mask, not the machine's count). At
// least 1.
int AvailableCores();

// Thread rules: all methods from any thread, Submit also from tasks. The destructor runs what is
// queued, then joins.
class ThreadPool {
 public:
  ThreadPool(int threads, const std::string& name);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;
  // Queues `task`, which must not throw.
  void Submit(std::function<void()> task);
  // Runs body(begin, end) over [0, count) in pieces of at least `grain`, on the pool and the
  // calling thread; returns when all have run. Must not be called from a task of the same pool.
  void ParallelFor(std::int64_t count, std::int64_t grain,
                   const std::function<void(std::int64_t begin, std::int64_t end)>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace cohort
