#include "iterator.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include <cohort/core/thread_pool.h>
#include <cohort/data/stop_scope.h>

#include "prefetch_tuner.h"

namespace cohort::data {
namespace {

// What is thrown is an error like others: out of memory, a source or memory that throws.
Result<Batch> BuildBatch(const IteratorPlan& plan, std::int64_t batch,
                         const std::atomic<bool>& stop) {
  try {
    return plan.builder.Build(plan.shard.Examples(batch), stop);
  } catch (const StatusError& error) {
    return error.status().Annotate("batch " + std::to_string(batch));
  } catch (const std::exception& error) {
    return Internal("batch " + std::to_string(batch) + ": exception: " + error.what());
  }
}

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
    Result<Batch> batch = BuildBatch(plan_, next_, never_);
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

PrefetchTuner TunerOf(const PrefetchSize& size) {
  const int processors = static_cast<int>(std::thread::hardware_concurrency());
  const bool grows = size.threads == kAutotune;
  PrefetchTuner::Size first{.threads = grows ? 1 : size.threads, .ahead = size.ahead};
  PrefetchTuner::Size most{.threads = grows ? std::max(8, processors) : size.threads,
                           .ahead = size.ahead};
  if (size.ahead == kAutotune) {
    first.ahead = first.threads + 1;
    most.ahead = std::max(64, first.ahead);
  }
  first.threads = std::min(first.threads, first.ahead);
  most.threads = std::min(most.threads, most.ahead);
  return {first, most};
}

// Batches are claimed in order and handed out in order, or as they are ready; in between they are
// built by whichever thread claimed them.
class PrefetchIterator final : public BatchIterator {
 public:
  PrefetchIterator(IteratorPlan plan, const PrefetchSize& size)
      : plan_(std::move(plan)),
        max_bytes_(BytesBound(size)),
        claimed_(plan_.first_batch),
        delivered_(plan_.first_batch),
        next_(plan_.first_batch),
        tuner_(TunerOf(size)) {
    if (const auto bytes = plan_.builder.BytesOf(plan_.shard.SizeOf(plan_.first_batch))) {
      largest_ = *bytes;
      sized_ = true;
    }
  }

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

  // Threads up to the tuner's number. Throws std::system_error. On the consumer's thread.
  void Start() {
    while (static_cast<int>(threads_.size()) < tuner_.size().threads) {
      threads_.emplace_back([this, i = threads_.size()] {
        NameThisThread("data/" + std::to_string(i));
        Work();
      });
    }
  }

  Result<std::optional<Batch>> Next() override {
    std::unique_lock lock(mutex_);
    if (!error_.ok()) {
      return error_;
    }
    if (delivered_ == plan_.shard.num_batches()) {
      return std::optional<Batch>();
    }
    // In order: a thread has claimed this batch or will, there is space for it, and no earlier one
    // failed. Else one that is being built will do, and there is one.
    const auto found = [this] { return plan_.in_order ? built_.find(delivered_) : built_.begin(); };
    const bool waited = found() == built_.end();
    const bool idle = building_ < static_cast<std::int64_t>(threads_.size());
    ready_.wait(lock, [&] { return found() != built_.end(); });
    const auto slot = found();
    if (!slot->second.ok()) {
      return error_ = slot->second.status();
    }
    if (!plan_.in_order) {
      Deliver(slot->first);
    }
    const bool bytes_bound = !HasBytes();
    std::optional<Batch> batch = std::move(slot->second).value();
    built_.erase(slot);
    ++delivered_;
    ready_bytes_ -= BytesOf(*batch);
    const bool grown = tuner_.Took(waited, idle);
    lock.unlock();
    if (grown) {
      More();
    }
    // Where bytes bound what is claimed, one batch may make room for several.
    bytes_bound || grown ? space_.notify_all() : space_.notify_one();
    return batch;
  }

  std::vector<std::int64_t> Overtaken() const override {
    return plan_.shard.LeftOf(overtaken_, next_);
  }

 private:
  // What cannot be started is done without: there is one thread at least.
  void More() {
    try {
      Start();
    } catch (const std::system_error&) {
    }
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

  // The first batch tells how large they are, and is built alone.
  bool HasBytes() const {
    return sized_ && ready_bytes_ + (building_ + 1) * largest_ <= max_bytes_;
  }
  // Keeps what is overtaken. On the consumer's thread.
  void Deliver(std::int64_t batch) {
    for (; next_ <= batch; ++next_) {
      overtaken_.push_back(next_);
    }
    overtaken_.erase(std::ranges::find(overtaken_, batch));
  }

  // Whether a batch may be built; the one that comes next always may.
  bool HasSpace() const {
    return claimed_ < delivered_ + tuner_.size().ahead && (claimed_ == delivered_ || HasBytes());
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
      built_.emplace(batch, std::move(built));
      ready_.notify_one();
      if (!std::exchange(sized_, true) || Exhausted()) {
        space_.notify_all();
      }
    }
  }

  bool Exhausted() const { return failed_ || claimed_ == plan_.shard.num_batches(); }

  Result<Batch> Build(std::int64_t batch) const {
    const StopScope scope(stop_);
    return BuildBatch(plan_, batch, stop_);
  }

  const IteratorPlan plan_;
  const std::int64_t max_bytes_;
  std::mutex mutex_;
  std::condition_variable space_;        // a batch may be claimed, or there is none any more
  std::condition_variable ready_;        // a batch has been built
  std::atomic<bool> stop_ = false;       // written under mutex_
  bool failed_ = false;                  // guarded by mutex_
  std::int64_t claimed_;                 // guarded by mutex_
  std::int64_t delivered_;               // so many before this number; guarded by mutex_
  std::int64_t next_;                    // behind the last one delivered: the consumer's
  std::vector<std::int64_t> overtaken_;  // before next_, not delivered: the consumer's
  std::int64_t building_ = 0;            // batches; guarded by mutex_
  std::int64_t ready_bytes_ = 0;         // guarded by mutex_
  std::int64_t largest_ = 0;             // bytes of a batch so far; guarded by mutex_
  bool sized_ = false;                   // whether that is known; guarded by mutex_
  Status error_;                         // the consumer's
  PrefetchTuner tuner_;                  // guarded by mutex_, but for the consumer's reads
  std::map<std::int64_t, Result<Batch>> built_;  // by number; guarded by mutex_
  std::vector<std::thread> threads_;             // the consumer's
};

}  // namespace

std::int64_t BytesBound(const PrefetchSize& size) {
  if (size.max_bytes != 0) {
    return size.max_bytes;
  }
  if (size.ahead == kAutotune || size.threads == kAutotune) {
    return std::int64_t{256} << 20;
  }
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  const std::int64_t pages = ::sysconf(_SC_PHYS_PAGES);
  return pages > 0 ? std::min(kMost, pages / 4 * ::sysconf(_SC_PAGESIZE)) : kMost;
}

std::unique_ptr<BatchIterator> MakeDirectIterator(IteratorPlan plan) {
  return std::make_unique<DirectIterator>(std::move(plan));
}

Result<std::unique_ptr<BatchIterator>> MakePrefetchIterator(IteratorPlan plan,
                                                            const PrefetchSize& size) {
  auto iterator = std::make_unique<PrefetchIterator>(std::move(plan), size);
  try {
    iterator->Start();
  } catch (const std::system_error& error) {
    return ResourceExhausted(std::string("start of the input threads: ") + error.what());
  }
  return iterator;
}

}  // namespace cohort::data
