// When a rank may show something on the board in the place of what others still read.

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <latch>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "shm/board.h"
#include "testing/run_ranks.h"
#include "threads_group.h"

namespace cohort {
namespace {

constexpr int kRanks = 3;

// Whether a rank shows something for operation `number`.
bool Shows(const testing::ThreadsGroup& group, int rank, std::uint64_t number) {
  Bells none;
  return Board(rank, group.regions(), none, nullptr, false).Look(rank, number) != nullptr;
}

// Whatever happens to a rank, who waits for it goes on.
class CountsDown {
 public:
  explicit CountsDown(std::latch& latch) : latch_(latch) {}
  ~CountsDown() { latch_.count_down(); }
  CountsDown(const CountsDown&) = delete;
  CountsDown& operator=(const CountsDown&) = delete;

 private:
  std::latch& latch_;
};

// Operation 2 is given up by two ranks while the third is late, and may still be reading what they
// showed for operation 1: operation 3, which has the same place, is shown when it has given up too.
TEST(BoardOrder, NothingTakesThePlaceOfWhatALateRankMayStillRead) {
  const testing::ThreadsGroup group(kRanks);
  std::latch looked(2);  // ranks 0 and 2
  testing::ExpectAllOk(testing::RunRanks(kRanks, [&](int rank) -> Status {
    CommunicatorOptions options;
    options.timeout = std::chrono::seconds(30);
    const std::unique_ptr<Communicator> comm =
        group.Make(rank, std::make_unique<testing::ThreadsTransport>(group.Parts(rank)), options);
    float value = 1;
    const auto sum = [&](const std::string& name) {
      value = 1;
      return comm->AllReduce(std::span(&value, 1), ReduceOp::kSum, {.name = name});
    };
    const auto finish = [](Communicator::Pending pending) {
      return pending.ok() ? pending.value()->Wait() : pending.status();
    };
    std::optional<CountsDown> counts;
    if (rank != 1) {
      counts.emplace(looked);
    }
    COHORT_RETURN_IF_ERROR(finish(sum("first")));
    EXPECT_EQ(value, 3);
    if (rank == 1) {
      looked.wait();
    }
    const Status differs = finish(sum(rank == 2 ? "other" : "second"));
    EXPECT_EQ(differs.code(), StatusCode::kInvalidArgument) << differs.ToString();
    Communicator::Pending third = sum("third");
    if (rank != 1) {
      EXPECT_TRUE(Shows(group, rank, 1));
      const Deadline deadline = DeadlineAfter(std::chrono::seconds(20));
      while (comm->progress().sequence < 3 && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::yield();  // until the communicator's own thread is in it
      }
      EXPECT_TRUE(Shows(group, rank, 1));
      counts.reset();
    }
    COHORT_RETURN_IF_ERROR(finish(std::move(third)));
    EXPECT_EQ(value, 3);
    return {};
  }));
}

}  // namespace
}  // namespace cohort
