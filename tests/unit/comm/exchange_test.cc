// What the conformance suite cannot see from outside: the log, and who is blamed.
#include <cohort/comm/local.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "testing/run_ranks.h"
#include "threads_group.h"

namespace cohort {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

// A log, and when its first line came.
class Lines {
 public:
  Log log() {
    return Log([this](LogLevel, std::string_view line) {
      const std::lock_guard lock(mutex_);
      first_ = text_.empty() ? std::chrono::steady_clock::now() : first_;
      text_ += std::string(line) + "\n";
    });
  }
  std::string text() const {
    const std::lock_guard lock(mutex_);
    return text_;
  }
  Deadline first() const {
    const std::lock_guard lock(mutex_);
    return first_;
  }

 private:
  mutable std::mutex mutex_;
  std::string text_;
  Deadline first_;
};

// One all-reduce of two ranks. Rank 1 comes when `late` says so; returns when rank 0 began.
Deadline ReduceLate(const CommunicatorOptions& options,
                    const std::function<bool(const Communicator& waiting)>& late) {
  auto communicators = MakeLocalCommunicators(2, options);
  Deadline begun;
  testing::ExpectAllOk(testing::RunRanks(2, [&](int rank) -> Status {
    while (rank == 1 && !late(*communicators[0])) {
      std::this_thread::yield();
    }
    if (rank == 0) {
      begun = std::chrono::steady_clock::now();
    }
    std::vector<float> values(10);
    auto work = communicators[static_cast<std::size_t>(rank)]->AllReduce(
        std::span(values), ReduceOp::kSum, {.name = "fc1"});
    COHORT_RETURN_IF_ERROR(work.status());
    return work.value()->Wait();
  }));
  return begun;
}

TEST(Exchange, SlowPeersAreNamedInTheLog) {
  Lines lines;
  CommunicatorOptions options;
  options.slow_peer_warning = std::chrono::seconds(1);
  options.log = lines.log();
  const Deadline begun =  // rank 1 comes when rank 0 has complained
      ReduceLate(options, [&](const Communicator& /*waiting*/) { return !lines.text().empty(); });
  EXPECT_THAT(lines.text(),
              AllOf(HasSubstr("AllReduce 'fc1' float32[10] #1"), HasSubstr("on rank 0 has waited"),
                    HasSubstr(": rank 1 has not entered it")));
  EXPECT_GE(lines.first() - begun, options.slow_peer_warning);
}

// By all others, most of whom wait for somebody else.
TEST(Exchange, TheLateRankIsWarnedOfNotTheNeighbour) {
  Lines lines;
  CommunicatorOptions options;
  options.slow_peer_warning = std::chrono::seconds(2);
  options.log = lines.log();
  auto communicators = MakeLocalCommunicators(5, options);
  std::barrier all_but_one(4);
  testing::ExpectAllOk(testing::RunRanks(5, [&](int rank) -> Status {
    const auto complaints = [&] {
      const std::string text = lines.text();
      return std::ranges::count(text, '\n');
    };
    while (rank == 3 && complaints() < 4) {
      std::this_thread::yield();
    }
    std::vector<float> values(1000);
    if (rank != 3) {
      all_but_one.arrive_and_wait();
    }
    auto work = communicators[static_cast<std::size_t>(rank)]->AllReduce(
        std::span(values), ReduceOp::kSum, {.algorithm = "ring"});
    COHORT_RETURN_IF_ERROR(work.status());
    return work.value()->Wait();
  }));
  std::istringstream text(lines.text());
  for (std::string line; std::getline(text, line);) {
    EXPECT_THAT(line, EndsWith(" s: rank 3 has not entered it, nor any operation before"));
  }
}

// One that has joined names those who have not.
TEST(Exchange, WhoHasJoinedWarnsToo) {
  Lines lines;
  CommunicatorOptions options;
  options.slow_peer_warning = std::chrono::milliseconds(30);
  options.log = lines.log();
  auto communicators = MakeLocalCommunicators(2, options);
  testing::ExpectAllOk(testing::RunRanks(2, [&](int rank) -> Status {
    while (rank == 1 && lines.text().empty()) {
      std::this_thread::yield();
    }
    return communicators[static_cast<std::size_t>(rank)]->Join().status();
  }));
  EXPECT_EQ(lines.text(),
            "rank 0 has joined, and nothing came before the first operation (generation 1); not "
            "joined: rank 1\n");
}

TEST(Exchange, WhoWaitsForLessThanTheWarningSaysNothing) {
  EXPECT_EQ(CommunicatorOptions().slow_peer_warning, std::chrono::seconds(10));
  Lines lines;
  CommunicatorOptions options;
  options.slow_peer_warning = std::chrono::minutes(1);
  options.log = lines.log();
  ReduceLate(options, [](const Communicator& waiting) {
    const OperationProgress at = waiting.progress();
    return at.under_way &&
           std::chrono::steady_clock::now() - at.since > std::chrono::milliseconds(100);
  });
  EXPECT_EQ(lines.text(), "");
}

// In a ring everyone waits for the neighbour; the one who never came is not everyone's neighbour.
TEST(Exchange, TheAbsentRankIsBlamedNotTheNeighbour) {
  CommunicatorOptions options;
  options.timeout = std::chrono::milliseconds(2000);
  auto communicators = MakeLocalCommunicators(5, options);
  const std::vector<Status> statuses = testing::RunRanks(5, [&](int rank) -> Status {
    Communicator& comm = *communicators[static_cast<std::size_t>(rank)];
    if (rank == 3) {
      while (comm.status().ok()) {
        std::this_thread::yield();
      }
      return comm.status();
    }
    std::vector<float> values(1000);
    auto work = comm.AllReduce(std::span(values), ReduceOp::kSum, {.algorithm = "ring"});
    COHORT_RETURN_IF_ERROR(work.status());
    return work.value()->Wait();
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("rank 3 has not entered it, nor any operation before"),
                      Not(HasSubstr("rank 2 has")), Not(HasSubstr("rank 4 has"))));
  }
}

// Stands still for a while when it has asked where others are.
class StandsStill final : public testing::ThreadsTransport {
 public:
  StandsStill(SharedParts parts, std::chrono::milliseconds pause)
      : ThreadsTransport(std::move(parts)), pause_(pause) {}

  void Control(int peer, FrameKind kind, Bytes body) override {
    has_asked_ |= kind == FrameKind::kStalled;
    ThreadsTransport::Control(peer, kind, body);
  }
  void Progress(Deadline until) override {
    if (has_asked_ && !has_paused_) {
      has_paused_ = true;
      std::this_thread::sleep_until(until + pause_);
    }
    ThreadsTransport::Progress(until);
  }

 private:
  const std::chrono::milliseconds pause_;
  bool has_asked_ = false;
  bool has_paused_ = false;
};

class AnswersLate final : public testing::ThreadsTransport {
 public:
  AnswersLate(SharedParts parts, std::chrono::milliseconds by)
      : ThreadsTransport(std::move(parts)), by_(by) {}

  void Control(int peer, FrameKind kind, Bytes body) override {
    if (kind == FrameKind::kStalled) {
      std::this_thread::sleep_for(by_);
    }
    ThreadsTransport::Control(peer, kind, body);
  }

 private:
  const std::chrono::milliseconds by_;
};

// Who answers later than it had to, but was asked by one that stood still itself, is not to blame.
TEST(Exchange, TheTimeThatTheAskerStoodStillIsNotHeldAgainstOthers) {
  constexpr int kRanks = 3;
  constexpr std::chrono::milliseconds kTimeout{5000};  // 500 for answers, 750 at the most
  testing::ThreadsGroup group(kRanks);
  CommunicatorOptions options;
  options.timeout = std::chrono::seconds(60);
  std::vector<std::unique_ptr<Communicator>> communicators;
  communicators.push_back(group.Make(
      0, std::make_unique<StandsStill>(group.Parts(0), std::chrono::milliseconds(300)), options));
  communicators.push_back(group.Make(
      1, std::make_unique<AnswersLate>(group.Parts(1), std::chrono::milliseconds(600)), options));
  communicators.push_back(
      group.Make(2, std::make_unique<testing::ThreadsTransport>(group.Parts(2)), options));
  const std::vector<Status> statuses = testing::RunRanks(kRanks, [&](int rank) -> Status {
    Communicator& comm = *communicators[static_cast<std::size_t>(rank)];
    if (rank == 2) {
      while (comm.status().ok()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      return comm.status();
    }
    std::vector<float> values(1000);
    auto work = comm.AllReduce(
        std::span(values), ReduceOp::kSum,
        {.name = "fc1", .timeout = rank == 0 ? kTimeout : std::chrono::milliseconds(0)});
    COHORT_RETURN_IF_ERROR(work.status());
    return work.value()->Wait();
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("on rank 0 not done after 5 s: rank 2 has not entered it"),
                      Not(HasSubstr("rank 1"))));
  }
}

}  // namespace
}  // namespace cohort
