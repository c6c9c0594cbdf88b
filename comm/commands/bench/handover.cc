// What one hand-over between cores costs at least: each rank stores its values and a number, waits
// for the others' numbers, adds their values, and calls the lines back where it will store next:
// two ranks store where they have read, in turns. No call, no record, no deadline but a hang's.

#include <fcntl.h>
#include <immintrin.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include <cohort/core/thread_pool.h>

#include "../../reduction.h"
#include "subject.h"

namespace cohort::bench {
namespace {

constexpr std::size_t kHandoverBytes = 64 << 10;
constexpr std::size_t kAtOnce = 64 * 64;  // bytes in the lines that a core asks for without waiting

// Two slots a rank, in turns: who shows operation k has seen all of k - 1. Of two ranks one each.
struct Slot {
  alignas(64) std::atomic<std::uint64_t> number;
  alignas(64) std::byte data[kHandoverBytes];
};

class HandoverLimit final : public Subject {
 public:
  HandoverLimit(Slot* slots, int rank, int size, std::chrono::milliseconds timeout)
      : slots_(slots), rank_(rank), size_(size), timeout_(timeout) {}
  ~HandoverLimit() override { ::munmap(slots_, SharedBytes(size_)); }

  static std::size_t SharedBytes(int size) {
    return 2 * sizeof(Slot) * static_cast<std::size_t>(size);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Status Barrier() override { return {}; }
  bool exact() const override { return false; }  // where the type is another than float32

  Status Run(Operation operation, const Buffers& buffers) override {
    Require(operation == Operation::kAllReduce && buffers.input.bytes() <= kHandoverBytes,
            "CheckHandover has been asked");
    ++number_;
    Slot& mine = SlotOf(rank_, number_);
    std::memcpy(mine.data, buffers.input.data, buffers.input.bytes());
    mine.number.store(number_, std::memory_order_release);
    auto* const sum = static_cast<std::byte*>(buffers.output.data);
    for (int step = 1; step < size_; ++step) {
      const Slot& other = SlotOf((rank_ + step) % size_, number_);
      COHORT_RETURN_IF_ERROR(Await(other.number));
      if (size_ == 2) {
        Claim(other, buffers.input.bytes());
      }
      for (std::size_t at = 0; size_ > 2 && at < std::min(buffers.input.bytes(), kAtOnce);
           at += 64) {
        asm volatile("prefetcht0 %0" : : "m"(other.data[at]));
      }
      add_.Combine(sum, sum, other.data, buffers.input.bytes());
    }
    if (size_ > 2) {
      Claim(SlotOf(rank_, number_ + 1), buffers.input.bytes());
    }
    return {};
  }

 private:
  static constexpr std::uint64_t kLookAtClock = 65536;  // spins

  Slot& SlotOf(int rank, std::uint64_t number) {
    const auto r = static_cast<std::uint64_t>(rank);
    return slots_[size_ == 2 ? 2 * ((r + number) % 2) : 2 * r + number % 2];
  }
  static void Claim(const Slot& slot, std::size_t bytes) {
    const auto* const lines = reinterpret_cast<const std::byte*>(&slot);
    for (std::size_t at = 0; at < 64 + std::min(bytes, kAtOnce); at += 64) {
      asm volatile("prefetchw %0" : : "m"(lines[at]));
    }
  }

  Status Await(const std::atomic<std::uint64_t>& number) const {
    Deadline deadline = Deadline::max();
    for (std::uint64_t spins = 1; number.load(std::memory_order_acquire) != number_; ++spins) {
      if (spins > patience_) {
        ::sched_yield();
      } else {
        _mm_pause();
      }
      if (spins % kLookAtClock == 0) {
        const Deadline now = std::chrono::steady_clock::now();
        deadline = spins == kLookAtClock ? now + timeout_ : deadline;
        if (now >= deadline) {
          return DeadlineExceeded("--limit handover: a rank did not come");
        }
      }
    }
    return {};
  }

  Slot* const slots_;
  const int rank_;
  const int size_;
  const std::chrono::milliseconds timeout_;
  const std::uint64_t patience_ = size_ > AvailableCores() ? 50 : 5000;
  const Reduction add_{DType::kFloat32, ReduceOp::kSum};
  std::uint64_t number_ = 0;
};

}  // namespace

Status CheckHandover(const Options& options) {
  const bool fits = std::all_of(options.sizes.begin(), options.sizes.end(), [](std::int64_t bytes) {
    return bytes <= static_cast<std::int64_t>(kHandoverBytes);
  });
  return fits && options.operation == Operation::kAllReduce
             ? OkStatus()
             : InvalidArgument("--limit handover is for allreduce, and --sizes of at most 64k");
}

Result<std::unique_ptr<Subject>> MakeHandoverLimit(const Options& options) {
  const std::string path = options.folder + "/handover";
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  const std::size_t bytes = HandoverLimit::SharedBytes(options.ranks);
  void* slots = MAP_FAILED;
  if (fd >= 0 && ::ftruncate(fd, static_cast<off_t>(bytes)) == 0) {
    slots = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  }
  const int error = errno;
  if (fd >= 0) {
    ::close(fd);
  }
  if (slots == MAP_FAILED) {
    return ErrnoStatus(error, path);
  }
  return std::make_unique<HandoverLimit>(static_cast<Slot*>(slots), options.rank, options.ranks,
                                         options.timeout);
}

}  // namespace cohort::bench
