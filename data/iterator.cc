#include "iterator.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include <cohort/core/thread_pool.h>
#include <cohort/data/stop_scope.h>

namespace cohort::data {
namespace {

class DirectIterator final : public BatchIterator {
 public:
  explicit DirectIterator(IteratorPlan plan) : plan_(std::move(plan)), next_(plan_.first_batch) {}

  Result<std::optional<Batch>> Next() override {
    if (!error_.ok()) {
      return error_;
    }
    if (next_ == plan_.shard.num_batches()) {
      return std::optional<Batch>();
    }
    Result<Batch> batch =
        plan_.builder.Build(plan_.shard.order(), plan_.shard.Batch(next_), never_);
    if (!batch.ok()) {
      return error_ = batch.status();
    }
    ++next_;
    return std::optional<Batch>(std::move(batch).value());
  }

 private:
  const IteratorPlan plan_;
  const std::atomic<bool> never_ = false;
  std::int64_t next_;
  Status error_;
};

// Batches are claimed in order and handed out in order; in between they are built by whichever
// thread claimed them. Batch b goes through slot b % ahead, which is free because b is claimed only
// when batch b - ahead has been handed out.
class PrefetchIterator final : public BatchIterator {
 public:
  PrefetchIterator(IteratorPlan plan, int ahead, std::int64_t max_bytes)
      : plan_(std::move(plan)),
        max_bytes_(max_bytes),
        claimed_(plan_.first_batch),
        delivered_(plan_.first_batch),
        slots_(static_cast<std::size_t>(ahead)) {}

  ~PrefetchIterator() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    space_.notify_all();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }

  // Throws std::system_error.
  void Start(int threads) {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this, i] {
        NameThisThread("data/" + std::to_string(i));
        Work();
      });
    }
  }

  Result<std::optional<Batch>> Next() override {
    std::unique_lock lock(mutex_);
    if (delivered_ == plan_.shard.num_batches()) {
      return std::optional<Batch>();
    }
    std::optional<Result<Batch>>& slot = SlotOf(delivered_);
    // A thread has claimed this batch or will: there is space for it, and no earlier one failed.
    ready_.wait(lock, [&slot] { return slot.has_value(); });
    if (!slot->ok()) {
      return slot->status();
    }
    std::optional<Batch> batch = std::move(*slot).value();
    slot.reset();
    ++delivered_;
    ready_bytes_ -= BytesOf(*batch);
    lock.unlock();
    // Where bytes bound what is claimed, one batch may make room for several.
    max_bytes_ == 0 ? space_.notify_one() : space_.notify_all();
    return batch;
  }

 private:
  std::optional<Result<Batch>>& SlotOf(std::int64_t batch) {
    return slots_[static_cast<std::size_t>(batch) % slots_.size()];
  }

  static std::int64_t BytesOf(const Batch& batch) {
    std::size_t bytes = 0;
    for (const auto& [name, tensor] : batch.features) {
      bytes += tensor.bytes();
    }
    for (const auto& [name, lists] : batch.ragged) {
      bytes += lists.values.bytes() + lists.splits.bytes();
    }
    return static_cast<std::int64_t>(bytes);
  }

  // Whether a batch may be built; the one that comes next always may.
  bool HasSpace() const {
    const auto ahead = static_cast<std::int64_t>(slots_.size());
    return claimed_ < delivered_ + ahead &&
           (max_bytes_ == 0 || claimed_ == delivered_ ||
            ready_bytes_ + (building_ + 1) * largest_ <= max_bytes_);
  }

  void Work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      space_.wait(lock, [&] { return stop_ || Exhausted() || HasSpace(); });
      if (stop_ || Exhausted()) {
        return;
      }
      const std::int64_t batch = claimed_++;
      ++building_;
      lock.unlock();
      Result<Batch> built = Build(batch);
      lock.lock();
      --building_;
      if (built.ok()) {
        const std::int64_t bytes = BytesOf(*built);
        ready_bytes_ += bytes;
        largest_ = std::max(largest_, bytes);
      }
      failed_ = failed_ || !built.ok();
      SlotOf(batch) = std::move(built);
      ready_.notify_one();
      if (Exhausted()) {
        space_.notify_all();
      }
    }
  }

  bool Exhausted() const { return failed_ || claimed_ == plan_.shard.num_batches(); }

  Result<Batch> Build(std::int64_t batch) const {
    try {
      const StopScope scope(stop_);
      return plan_.builder.Build(plan_.shard.order(), plan_.shard.Batch(batch), stop_);
    } catch (const std::exception& error) {  // out of memory, or a source that throws
      return Internal("batch " + std::to_string(batch) + ": exception: " + error.what());
    }
  }

  const IteratorPlan plan_;
  const std::int64_t max_bytes_;
  std::mutex mutex_;
  std::condition_variable space_;   // a batch may be claimed, or there is none any more
  std::condition_variable ready_;   // a batch has been built
  std::atomic<bool> stop_ = false;  // written under mutex_
  bool failed_ = false;             // guarded by mutex_
  std::int64_t claimed_;            // guarded by mutex_
  std::int64_t delivered_;          // guarded by mutex_
  std::int64_t building_ = 0;       // batches; guarded by mutex_
  std::int64_t ready_bytes_ = 0;    // guarded by mutex_
  std::int64_t largest_ = 0;        // bytes of a batch so far; guarded by mutex_
  std::vector<std::optional<Result<Batch>>> slots_;  // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<BatchIterator> MakeDirectIterator(IteratorPlan plan) {
  return std::make_unique<DirectIterator>(std::move(plan));
}

Result<std::unique_ptr<BatchIterator>> MakePrefetchIterator(IteratorPlan plan, int ahead,
                                                            int threads, std::int64_t max_bytes) {
  auto iterator = std::make_unique<PrefetchIterator>(std::move(plan), ahead, max_bytes);
  try {
    iterator->Start(std::min(threads, ahead));
  } catch (const std::system_error& error) {
    return ResourceExhausted(std::string("start of the input threads: ") + error.what());
  }
  return iterator;
}

}  // namespace cohort::data
