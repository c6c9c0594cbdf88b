// The next rank is told of a collective by who waits in it, however its algorithm sends: also when
// that one has ended it.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "testing/run_ranks.h"
#include "threads_group.h"

namespace cohort {
namespace {

constexpr int kRanks = 3;
// In a Reduce to rank 1 ranks 0 and 2 send to that one, and wait for its word: rank 0 hears of rank
// 2, whose next one it is, only if that waits.
constexpr int kRoot = 1;
constexpr int kWaits = 2;
constexpr int kNext = 0;

// Rank 2's: hears nothing until it has told the next rank, which hears of that when it is done.
class ToldLate final : public testing::ThreadsTransport {
 public:
  using ThreadsTransport::ThreadsTransport;

  // From any thread: rank 0 is done.
  void LetGo() {
    let_go_ = true;
    Wake();
  }
  bool told() const { return told_; }  // and the word is on its way

  void Control(int peer, FrameKind kind, Bytes body) override {
    if (peer == kNext && kind == FrameKind::kOpen && !asked_) {
      asked_ = true;
      held_.emplace(body.begin(), body.end());
      return;
    }
    Release();
    ThreadsTransport::Control(peer, kind, body);
  }
  void Progress(Deadline until) override {
    Release();
    if (!asked_) {
      std::this_thread::yield();
      return;
    }
    ThreadsTransport::Progress(held_ ? std::min(until, DeadlineAfter(kLook)) : until);
  }

 private:
  static constexpr auto kLook = std::chrono::milliseconds(1);

  void Release() {
    if (held_ && let_go_) {
      ThreadsTransport::Control(kNext, FrameKind::kOpen, *std::exchange(held_, std::nullopt));
      told_ = true;
    }
  }

  bool asked_ = false;  // the driver's
  std::optional<std::vector<std::byte>> held_;
  std::atomic<bool> let_go_ = false;
  std::atomic<bool> told_ = false;
};

Status Finish(Communicator::Pending pending) {
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

TEST(NextRank, MayHearOfACollectiveThatItHasEnded) {
  const testing::ThreadsGroup group(kRanks);
  CommunicatorOptions options;
  options.timeout = std::chrono::seconds(20);
  auto last = std::make_unique<ToldLate>(group.Parts(kWaits));
  ToldLate& late = *last;
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int rank = 0; rank < kWaits; ++rank) {
    communicators.push_back(
        group.Make(rank, std::make_unique<testing::ThreadsTransport>(group.Parts(rank)), options));
  }
  communicators.push_back(group.Make(kWaits, std::move(last), options));
  testing::ExpectAllOk(testing::RunRanks(kRanks, [&](int rank) -> Status {
    Communicator& comm = *communicators[static_cast<std::size_t>(rank)];
    std::vector<float> values(100, 1);
    COHORT_RETURN_IF_ERROR(Finish(comm.Reduce(std::span(values), ReduceOp::kSum, kRoot)));
    if (rank == kRoot) {
      EXPECT_EQ(values[0], kRanks);
    }
    if (rank == kNext) {  // it is idle, or in what comes next, when it hears
      late.LetGo();
    }
    const Deadline deadline = DeadlineAfter(std::chrono::seconds(10));
    while (rank == kWaits && !late.told() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();  // the communicator's own thread tells it
    }
    for (const char* const algorithm : {"ring", "auto"}) {
      std::ranges::fill(values, 1.0F);
      COHORT_RETURN_IF_ERROR(
          Finish(comm.AllReduce(std::span(values), ReduceOp::kSum, {.algorithm = algorithm})));
      EXPECT_EQ(values[99], kRanks);
    }
    return {};
  }));
  EXPECT_TRUE(late.told());
}

}  // namespace
}  // namespace cohort
