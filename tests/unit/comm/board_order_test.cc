// When a rank may show something on the board in the place of what others still read.

#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <chrono>
#include <latch>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "mapping.h"
#include "shm/board.h"
#include "shm/shared_transport.h"
#include "tcp/socket.h"
#include "testing/run_ranks.h"
#include "transport_communicator.h"

namespace cohort {
namespace {

constexpr int kRanks = 3;

class ThreadsTransport final : public SharedTransport {
 public:
  using SharedTransport::SharedTransport;
  std::string_view backend() const override { return "threads"; }
  Result<std::unique_ptr<Transport>> Join(const std::string& /*id*/,
                                          const std::vector<int>& /*members*/, int /*my_index*/,
                                          const std::vector<std::string>& /*offers*/,
                                          Deadline /*deadline*/) override {
    return Unimplemented("no groups here");
  }
};

// Communicators of threads, and their board as another one sees it.
class BoardOrder : public ::testing::Test {
 protected:
  BoardOrder() {
    layout_.ranks = kRanks;
    for (int rank = 0; rank < kRanks; ++rank) {
      memory_.push_back(OrThrow(Mapping::Anonymous(layout_.bytes())));
      MakeRegion(memory_.back().data(), rank, layout_);
      regions_.push_back(memory_.back().data());
      bells_.emplace_back(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
      bell_fds_.push_back(bells_.back().fd());
    }
  }

  std::unique_ptr<Communicator> Make(int rank) {
    SharedParts shared;
    shared.rank = rank;
    shared.layout = layout_;
    shared.regions = regions_;
    shared.bells = bell_fds_;
    TransportCommunicatorParts parts;
    parts.transport = std::make_unique<ThreadsTransport>(std::move(shared));
    parts.rank = rank;
    parts.size = kRanks;
    parts.shared_memory = true;
    CommunicatorOptions options;
    options.timeout = std::chrono::seconds(30);
    return std::make_unique<TransportCommunicator>(std::move(parts), options);
  }
  bool Shows(int rank, std::uint64_t number) {
    Bells none;
    std::vector<Region*> regions;
    for (std::byte* const memory : regions_) {
      regions.push_back(reinterpret_cast<Region*>(memory));
    }
    return Board(rank, regions, none, nullptr, false).Look(rank, number) != nullptr;
  }

 private:
  RegionLayout layout_;
  std::vector<Mapping> memory_;
  std::vector<std::byte*> regions_;
  std::vector<Socket> bells_;
  std::vector<int> bell_fds_;
};

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
TEST_F(BoardOrder, NothingTakesThePlaceOfWhatALateRankMayStillRead) {
  std::latch looked(2);  // ranks 0 and 2
  testing::ExpectAllOk(testing::RunRanks(kRanks, [&](int rank) -> Status {
    const std::unique_ptr<Communicator> comm = Make(rank);
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
      EXPECT_TRUE(Shows(rank, 1));
      const Deadline deadline = DeadlineAfter(std::chrono::seconds(20));
      while (comm->progress().sequence < 3 && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::yield();  // until the communicator's own thread is in it
      }
      EXPECT_TRUE(Shows(rank, 1));
      counts.reset();
    }
    COHORT_RETURN_IF_ERROR(finish(std::move(third)));
    EXPECT_EQ(value, 3);
    return {};
  }));
}

}  // namespace
}  // namespace cohort
