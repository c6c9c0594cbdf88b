#include <cohort/core/thread_pool.h>

#include <pthread.h>
#include <sched.h>

#include <cohort/core/status.h>
#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace cohort {

void NameThisThread(const std::string& name) {
  pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
}

int AvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) {
    return std::max(1U, std::thread::hardware_concurrency());
  }
  return std::max(1, CPU_COUNT(&set));
}

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::function<void()>> queue;  // guarded by mutex
  bool stopping = false;                    // guarded by mutex
  std::vector<std::thread> threads;         // constant after construction

  void Run() {
    std::unique_lock lock(mutex);
    for (;;) {
      wake.wait(lock, [this] { return stopping || !queue.empty(); });
      if (queue.empty()) {
        return;
      }
      auto task = std::move(queue.front());
      queue.pop_front();
      lock.unlock();
      task();
      task = nullptr;
      lock.lock();
    }
  }
};

ThreadPool::ThreadPool(int threads, const std::string& name) : state_(std::make_unique<State>()) {
  Require(threads >= 1, "a pool has at least one thread");
  for (int i = 0; i < threads; ++i) {
    state_->threads.emplace_back([state = state_.get(), label = name + "/" + std::to_string(i)] {
      NameThisThread(label);
      state->Run();
    });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->wake.notify_all();
  for (std::thread& thread : state_->threads) {
    thread.join();
  }
}

int ThreadPool::size() const { return static_cast<int>(state_->threads.size()); }

void ThreadPool::Submit(std::function<void()> task) {
  {
    std::lock_guard lock(state_->mutex);
    state_->queue.push_back(std::move(task));
  }
  state_->wake.notify_one();
}

void ThreadPool::ParallelFor(std::int64_t count, std::int64_t grain,
                             const std::function<void(std::int64_t, std::int64_t)>& body) {
  if (count <= 0) {
    return;
  }
  const std::int64_t pieces =
      std::clamp<std::int64_t>(count / std::max<std::int64_t>(grain, 1), 1, size() + 1);
  if (pieces == 1) {
    body(0, count);
    return;
  }
  std::mutex mutex;
  std::condition_variable all_done;
  std::int64_t left = pieces - 1;
  for (std::int64_t i = 1; i < pieces; ++i) {
    Submit([&, i] {
      body(count * i / pieces, count * (i + 1) / pieces);
      std::lock_guard lock(mutex);
      if (--left == 0) {
        all_done.notify_one();
      }
    });
  }
  body(0, count / pieces);
  std::unique_lock lock(mutex);
  all_done.wait(lock, [&] { return left == 0; });
}

}  // namespace cohort
