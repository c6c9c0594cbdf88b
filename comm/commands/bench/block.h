// One turn of a subject: an operation, again and again, with its buffers used as training uses
// them: the owner rewrites the input before each operation and reads the whole result after it. A
// loop that does neither reduces what already lies in the cache of the core that needs it.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "subject.h"

namespace cohort::bench {

// Lets the ranks of a group start an operation together, in a page that they share, so that what a
// barrier costs in one library or another is not measured.
class StartLine {
 public:
  virtual ~StartLine() = default;
  virtual Status Meet() = 0;
};
Result<std::unique_ptr<StartLine>> MakeSharedStartLine(const std::string& path, int ranks,
                                                       std::chrono::milliseconds timeout);
// By the subject's own barrier: for ranks on several hosts.
std::unique_ptr<StartLine> MakeBarrierStartLine(Subject& subject);

// The memory of one operation and size. Rank r gives (i + r + k) % 4 at place i of operation k, so
// that every result differs from the one before it, and every sum is exact in every type.
class Workload {
 public:
  // In memory that `subject` gives.
  static Result<Workload> Make(Subject& subject, Operation operation, DType dtype,
                               std::int64_t bytes);

  std::int64_t bytes() const { return bytes_; }  // what nccl-tests calls the size
  const Buffers& buffers() const { return buffers_; }
  void Rewrite(std::uint64_t k);
  void Read() const;                               // all of the output, as whoever uses it does
  std::int64_t CountWrong(std::uint64_t k) const;  // of its elements

 private:
  Workload(const Subject& subject, Operation operation, DType dtype);

  // A few KiB of the pattern, at each of its four phases.
  using Tile = std::vector<std::byte>;
  static void Fill(std::span<std::byte> to, const Tile& tile);
  std::int64_t Compare(std::span<const std::byte> bytes, const Tile& tile) const;

  Operation operation_;
  int rank_;
  int size_;
  std::size_t element_;
  std::int64_t bytes_ = 0;
  std::unique_ptr<Memory> input_;
  std::unique_ptr<Memory> output_;
  Buffers buffers_;
  std::vector<Tile> given_;     // by phase: one rank's values
  std::vector<Tile> expected_;  // by phase: the sum over ranks
};

struct Block {
  std::vector<double> seconds;  // of each operation, on this rank: see Options::read
  std::int64_t wrong = 0;       // elements, over all operations
  // Where a rank is late: seconds in the operations of one that waits, and of cores, by all of its
  // process's threads.
  double waited = 0;
  double cpu = 0;
};

// `k` counts a subject's operations over its blocks, alike on all ranks.
Result<Block> RunBlock(Subject& subject, StartLine& start, Workload& workload, int iterations,
                       std::uint64_t& k, const Options& options);

}  // namespace cohort::bench
