#include "block.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <thread>
#include <utility>

#include <cohort/core/thread_pool.h>

namespace cohort::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kWarm = 2;  // operations at the start of a block that are checked but not timed
constexpr std::size_t kTileBytes = 4096;

// --- the start line

struct Page {
  std::atomic<std::uint32_t> arrived;
  std::atomic<std::uint32_t> turn;
  std::atomic<Clock::rep> start;  // of this turn; processes of one host have one clock
};

class SharedStartLine final : public StartLine {
 public:
  SharedStartLine(Page* page, int ranks, std::chrono::milliseconds timeout)
      : page_(page), ranks_(static_cast<std::uint32_t>(ranks)), timeout_(timeout) {}
  ~SharedStartLine() override { ::munmap(page_, sizeof(Page)); }

  Status Meet() override {
    const std::uint32_t turn = page_->turn.load();
    if (page_->arrived.fetch_add(1) + 1 == ranks_) {
      page_->arrived.store(0);
      page_->start.store((Clock::now() + run_up_).time_since_epoch().count());
      page_->turn.store(turn + 1);
      return AwaitStart();
    }
    const Deadline deadline = DeadlineAfter(timeout_);
    for (std::uint64_t spins = 1; page_->turn.load(std::memory_order_acquire) == turn; ++spins) {
      if (spins > patience_) {
        ::sched_yield();
      } else {
        __builtin_ia32_pause();
      }
      if (spins % 4096 == 0 && Clock::now() >= deadline) {
        return DeadlineExceeded("a rank did not come to the start of an operation");
      }
    }
    return AwaitStart();
  }

 private:
  // Who comes last knows it first, by as much as a small operation takes: all start at a time that
  // it sets, when all know.
  Status AwaitStart() const {
    const Clock::time_point start{Clock::duration(page_->start.load())};
    while (Clock::now() < start) {
    }
    return {};
  }

  Page* const page_;
  const std::uint32_t ranks_;
  const std::chrono::milliseconds timeout_;
  // A library's own thread may need this core to end the operation before; so may a rank, where
  // there are more of them than cores.
  const bool crowded_ = ranks_ > static_cast<std::uint32_t>(AvailableCores());
  const std::uint64_t patience_ = crowded_ ? 50 : 500;
  const Clock::duration run_up_ = std::chrono::microseconds(crowded_ ? 0 : 2);
};

class BarrierStartLine final : public StartLine {
 public:
  explicit BarrierStartLine(Subject& subject) : subject_(subject) {}
  Status Meet() override { return subject_.Barrier(); }

 private:
  Subject& subject_;
};

// Of all threads of this process.
double CpuSeconds() {
  timespec time = {};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// --- values

void StoreElement(std::byte* to, DType dtype, int value) {
  const auto store = [to](auto element) { std::memcpy(to, &element, sizeof(element)); };
  switch (dtype) {
    case DType::kFloat32:
      return store(static_cast<float>(value));
    case DType::kFloat64:
      return store(static_cast<double>(value));
    case DType::kInt32:
      return store(static_cast<std::int32_t>(value));
    case DType::kInt64:
      return store(static_cast<std::int64_t>(value));
    case DType::kFloat16:
      return store(Float16(static_cast<float>(value)));
    case DType::kBFloat16:
      return store(BFloat16(static_cast<float>(value)));
    case DType::kUInt8:
      return store(static_cast<std::uint8_t>(value));
  }
}

}  // namespace

Result<std::unique_ptr<StartLine>> MakeSharedStartLine(const std::string& path, int ranks,
                                                       std::chrono::milliseconds timeout) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0 || ::ftruncate(fd, sizeof(Page)) != 0) {
    return ErrnoStatus(errno, path);
  }
  void* page = ::mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  const int error = errno;
  ::close(fd);
  if (page == MAP_FAILED) {
    return ErrnoStatus(error, path);
  }
  return std::make_unique<SharedStartLine>(static_cast<Page*>(page), ranks, timeout);
}

std::unique_ptr<StartLine> MakeBarrierStartLine(Subject& subject) {
  return std::make_unique<BarrierStartLine>(subject);
}

Result<Workload> Workload::Make(Subject& subject, Operation operation, DType dtype,
                                std::int64_t bytes) {
  Workload w(subject, operation, dtype);
  const bool one_buffer = operation == Operation::kAllReduce || operation == Operation::kBroadcast;
  const int size = subject.size();
  std::int64_t count = std::max<std::int64_t>(1, bytes / static_cast<std::int64_t>(w.element_));
  if (!one_buffer) {
    count = std::max<std::int64_t>(1, count / size) * size;
  }
  w.bytes_ = count * static_cast<std::int64_t>(w.element_);
  const auto all = static_cast<std::size_t>(w.bytes_);
  const std::size_t part = all / static_cast<std::size_t>(size);
  const bool gathers = operation == Operation::kAllGather;
  COHORT_ASSIGN_OR_RETURN(w.input_, subject.Allocate(gathers ? part : all));
  w.buffers_.input = Buffer(w.input_->bytes().data(), gathers ? count / size : count, dtype);
  w.buffers_.output = w.buffers_.input;
  if (operation == Operation::kReduceScatter && subject.scatters_in_place()) {
    w.buffers_.output.count = count / size;
  } else if (!one_buffer) {
    COHORT_ASSIGN_OR_RETURN(w.output_, subject.Allocate(gathers ? all : part));
    w.buffers_.output = Buffer(w.output_->bytes().data(), gathers ? count : count / size, dtype);
  }
  COHORT_RETURN_IF_ERROR(subject.Prepare(operation, w.buffers_));
  return w;
}

Workload::Workload(const Subject& subject, Operation operation, DType dtype)
    : operation_(operation), rank_(subject.rank()), size_(subject.size()), element_(SizeOf(dtype)) {
  for (int phase = 0; phase < 4; ++phase) {
    Tile& given = given_.emplace_back(kTileBytes);
    Tile& expected = expected_.emplace_back(kTileBytes);
    for (std::size_t i = 0; i < kTileBytes / element_; ++i) {
      int sum = 0;
      for (int r = 0; r < size_; ++r) {
        sum += static_cast<int>((i + static_cast<std::size_t>(phase + r)) % 4);
      }
      StoreElement(given.data() + i * element_, dtype,
                   static_cast<int>((i + static_cast<std::size_t>(phase)) % 4));
      StoreElement(expected.data() + i * element_, dtype, sum);
    }
  }
}

void Workload::Fill(std::span<std::byte> to, const Tile& tile) {
  for (std::size_t at = 0; at < to.size(); at += kTileBytes) {
    std::memcpy(to.data() + at, tile.data(), std::min(kTileBytes, to.size() - at));
  }
}

std::int64_t Workload::Compare(std::span<const std::byte> bytes, const Tile& tile) const {
  std::int64_t wrong = 0;
  for (std::size_t at = 0; at < bytes.size(); at += kTileBytes) {
    const std::size_t n = std::min(kTileBytes, bytes.size() - at);
    if (std::memcmp(bytes.data() + at, tile.data(), n) != 0) {
      for (std::size_t i = 0; i < n; i += element_) {
        wrong += std::memcmp(bytes.data() + at + i, tile.data() + i, element_) != 0 ? 1 : 0;
      }
    }
  }
  return wrong;
}

void Workload::Rewrite(std::uint64_t k) {
  Fill({static_cast<std::byte*>(buffers_.input.data), buffers_.input.bytes()},
       given_[(k + static_cast<std::uint64_t>(rank_)) % 4]);
}

std::int64_t Workload::CountWrong(std::uint64_t k) const {
  const std::span<const std::byte> output(static_cast<const std::byte*>(buffers_.output.data),
                                          buffers_.output.bytes());
  switch (operation_) {
    case Operation::kAllReduce:
      return Compare(output, expected_[k % 4]);
    case Operation::kReduceScatter: {
      const auto first = static_cast<std::uint64_t>(rank_ * buffers_.output.count);
      return Compare(output, expected_[(k + first) % 4]);
    }
    case Operation::kAllGather: {
      std::int64_t wrong = 0;
      const std::size_t part = buffers_.input.bytes();
      for (int r = 0; r < size_; ++r) {
        const auto at = static_cast<std::size_t>(r);
        wrong += Compare(output.subspan(at * part, part), given_[(k + at) % 4]);
      }
      return wrong;
    }
    case Operation::kBroadcast:
      return Compare(output, given_[k % 4]);
  }
  return 0;
}

void Workload::Read() const {
  // As fast as a core loads: all implementations pay for it.
  using Words [[gnu::vector_size(32), gnu::may_alias, gnu::aligned(1)]] = std::uint64_t;
  constexpr std::size_t kWords = 4;
  const auto* at = static_cast<const std::byte*>(buffers_.output.data);
  std::size_t left = buffers_.output.bytes();
  Words sums[kWords] = {};
  for (; left >= sizeof(sums); left -= sizeof(sums), at += sizeof(sums)) {
    const auto* const words = reinterpret_cast<const Words*>(at);
    for (std::size_t i = 0; i < kWords; ++i) {
      sums[i] += words[i];
    }
  }
  for (; left > 0; --left, ++at) {
    sums[0][0] += static_cast<std::uint64_t>(*at);
  }
  asm volatile("" : : "r"(sums) : "memory");  // they are used
}

Result<Block> RunBlock(Subject& subject, StartLine& start, Workload& workload, int iterations,
                       std::uint64_t& k, const Options& options) {
  const std::chrono::milliseconds late = options.late;
  Block block;
  const bool is_late =
      late.count() > 0 && subject.size() > 1 && subject.rank() == subject.size() - 1;
  block.seconds.reserve(static_cast<std::size_t>(iterations));
  for (int i = -kWarm; i < iterations; ++i, ++k) {
    workload.Rewrite(k);
    COHORT_RETURN_IF_ERROR(start.Meet());
    if (is_late) {
      std::this_thread::sleep_for(late);
    }
    const double cpu = late.count() > 0 ? CpuSeconds() : 0;
    const auto begin = Clock::now();
    COHORT_RETURN_IF_ERROR(subject.Run(options.operation, workload.buffers()));
    if (late.count() > 0 && !is_late && i >= 0) {
      block.waited += std::chrono::duration<double>(Clock::now() - begin).count();
      block.cpu += CpuSeconds() - cpu;
    }
    if (options.read) {
      workload.Read();
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (i >= 0) {
      block.seconds.push_back(seconds);
    }
    block.wrong += subject.exact() ? workload.CountWrong(k) : 0;
  }
  return block;
}

}  // namespace cohort::bench
