#include "testing/late_stream.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include <cohort/core/random.h>
#include <cohort/core/thread_pool.h>

namespace cohort::testing {
namespace {

class LateEvent final : public Event {
 public:
  bool done() const override {
    const std::lock_guard lock(mutex_);
    return done_;
  }
  Status Wait(Deadline deadline) override {
    std::unique_lock lock(mutex_);
    if (!happened_.wait_until(lock, deadline, [this] { return done_; })) {
      return DeadlineExceeded("an event of a late stream");
    }
    return status_;
  }
  void Happen(Status status) {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
      status_ = std::move(status);
    }
    happened_.notify_all();
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable happened_;
  bool done_ = false;
  Status status_;
};

class LateStream final : public Stream {
 public:
  LateStream(std::uint64_t seed, std::chrono::microseconds longest)
      : random_(seed, "late stream"), longest_(longest), thread_([this] { Run(); }) {}

  ~LateStream() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    fed_.notify_all();
    thread_.join();
  }

  void Enqueue(std::function<Status()> work) override {
    Feed([work = std::move(work)](const Status& before) { return before.ok() ? work() : before; });
  }

  std::shared_ptr<Event> Record() override {
    auto event = std::make_shared<LateEvent>();
    Feed([event](const Status& before) {
      event->Happen(before);
      return before;
    });
    return event;
  }

  void WaitFor(std::shared_ptr<Event> event) override {
    Feed([event = std::move(event)](const Status& before) {
      const Status waited = event->Wait(DeadlineAfter(std::chrono::minutes(1)));
      return before.ok() ? waited : before;
    });
  }

  Status Synchronize(Deadline deadline) override {
    std::unique_lock lock(mutex_);
    if (!dry_.wait_until(lock, deadline, [this] { return work_.empty() && !running_; })) {
      return DeadlineExceeded("a late stream");
    }
    return std::exchange(status_, OkStatus());
  }

 private:
  // Is given the stream's status so far and returns the one after it.
  using Item = std::function<Status(const Status& before)>;

  void Feed(Item item) {
    {
      const std::lock_guard lock(mutex_);
      work_.push_back(std::move(item));
    }
    fed_.notify_all();
  }

  void Run() {
    NameThisThread("late stream");
    std::unique_lock lock(mutex_);
    for (std::uint64_t i = 0;; ++i) {
      fed_.wait(lock, [this] { return stop_ || !work_.empty(); });
      if (work_.empty()) {
        return;
      }
      Item item = std::move(work_.front());
      work_.pop_front();
      running_ = true;
      const Status before = status_;
      lock.unlock();
      const auto delay = random_.Below(static_cast<std::uint64_t>(longest_.count()) + 1, i);
      std::this_thread::sleep_for(std::chrono::microseconds(delay));
      Status after = item(before);
      item = nullptr;  // what it holds is released before the stream counts as dry
      lock.lock();
      status_ = std::move(after);
      running_ = false;
      if (work_.empty()) {
        dry_.notify_all();
      }
    }
  }

  const Philox random_;
  const std::chrono::microseconds longest_;
  std::mutex mutex_;
  std::condition_variable fed_;
  std::condition_variable dry_;
  std::deque<Item> work_;
  bool running_ = false;
  bool stop_ = false;
  Status status_;  // the first error since the last Synchronize
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Stream> MakeLateStream(std::uint64_t seed, std::chrono::microseconds longest) {
  return std::make_unique<LateStream>(seed, longest);
}

std::function<std::unique_ptr<Stream>()> LateStreams(std::uint64_t seed,
                                                     std::chrono::microseconds longest) {
  // Owners: the copies of this function. Several strategies may make streams at once.
  auto made = std::make_shared<std::atomic<std::uint64_t>>(0);
  return [seed, longest, made] { return MakeLateStream(seed + made->fetch_add(1), longest); };
}

}  // namespace cohort::testing
