// Joins that some ranks know to be over before others do: what those that know call next is no
// operation to take part in.

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <latch>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "testing/run_ranks.h"
#include "threads_group.h"

namespace cohort {
namespace {

constexpr int kRanks = 3;
// Rank 2's word that it has joined comes late to rank 1, as over a network it may.
constexpr int kLate = 1;
constexpr int kHolder = 2;

class HoldsItsJoin final : public testing::ThreadsTransport {
 public:
  using ThreadsTransport::ThreadsTransport;

  // From any thread.
  void Release() {
    released_ = true;
    Wake();
  }
  void Control(int peer, FrameKind kind, Bytes body) override {
    LetGo();
    if (peer == kLate && kind == FrameKind::kJoin && !released_) {
      held_.emplace_back(body.begin(), body.end());
    } else {
      ThreadsTransport::Control(peer, kind, body);
    }
  }
  void Progress(Deadline until) override {
    LetGo();
    ThreadsTransport::Progress(until);
  }

 private:
  void LetGo() {
    if (released_) {
      for (const std::vector<std::byte>& body : std::exchange(held_, {})) {
        ThreadsTransport::Control(kLate, FrameKind::kJoin, body);
      }
    }
  }

  std::atomic<bool> released_ = false;
  std::vector<std::vector<std::byte>> held_;
};

// Counts what its communicator has heard.
class Counts final : public testing::ThreadsTransport, private TransportListener {
 public:
  using ThreadsTransport::ThreadsTransport;

  int heard(FrameKind kind) const { return heard_.at(static_cast<std::size_t>(kind)); }
  void Attach(TransportListener* listener) override {
    listener_ = listener;
    ThreadsTransport::Attach(this);
  }

 private:
  bool OnControl(int peer, FrameKind kind, Bytes body) override {
    const bool more = listener_->OnControl(peer, kind, body);
    ++heard_.at(static_cast<std::size_t>(kind));
    return more;
  }
  void OnLost(int peer, const Status& why) override { listener_->OnLost(peer, why); }
  void OnWrongSize(int peer, std::size_t sent, std::size_t expected) override {
    listener_->OnWrongSize(peer, sent, expected);
  }

  TransportListener* listener_ = nullptr;
  std::array<std::atomic<int>, 8> heard_{};
};

class JoinOrder : public ::testing::Test {
 protected:
  // On each rank, which has joined once; rank 1 comes behind the others.
  void Run(const std::function<Status(Communicator&)>& fn) {
    std::vector<std::unique_ptr<Transport>> transports;
    transports.push_back(std::make_unique<testing::ThreadsTransport>(group_.Parts(0)));
    transports.push_back(std::make_unique<Counts>(group_.Parts(kLate)));
    transports.push_back(std::make_unique<HoldsItsJoin>(group_.Parts(kHolder)));
    late_ = static_cast<Counts*>(transports[kLate].get());
    holder_ = static_cast<HoldsItsJoin*>(transports[kHolder].get());
    CommunicatorOptions options;
    options.timeout = std::chrono::seconds(20);
    std::vector<std::unique_ptr<Communicator>> communicators;
    for (int rank = 0; rank < kRanks; ++rank) {
      const auto r = static_cast<std::size_t>(rank);
      communicators.push_back(group_.Make(rank, std::move(transports[r]), options));
    }
    testing::ExpectAllOk(testing::RunRanks(kRanks, [&](int rank) -> Status {
      Communicator& comm = *communicators[static_cast<std::size_t>(rank)];
      COHORT_RETURN_IF_ERROR(comm.Join().status());
      return fn(comm);
    }));
  }
  // Rank 2 tells rank 1 that it has joined, when that has heard of something else.
  void ReleaseAfter(FrameKind kind) {
    const Deadline deadline = DeadlineAfter(std::chrono::seconds(10));
    while (late_->heard(kind) == 0 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    EXPECT_GT(late_->heard(kind), 0);
    holder_->Release();
  }

 private:
  testing::ThreadsGroup group_{kRanks};
  Counts* late_ = nullptr;
  HoldsItsJoin* holder_ = nullptr;
};

Communicator::Pending Sum(Communicator& comm, float& value, const std::string& name) {
  return comm.AllReduce(std::span(&value, 1), ReduceOp::kSum, {.name = name});
}
Status Finish(Communicator::Pending pending) {
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

// Rank 0 joins again at once, and takes part in what rank 2 calls; rank 1, which hears of it, does
// so with its own values when it has come that far.
TEST_F(JoinOrder, TheNextOnesOperationsAreNotOfTheOneBefore) {
  Run([&](Communicator& comm) -> Status {
    if (comm.rank() > 0) {
      float value = comm.rank() == kLate ? 2 : 4;
      Communicator::Pending sum = Sum(comm, value, "x");
      if (comm.rank() == kHolder) {
        ReleaseAfter(FrameKind::kOpen);
      }
      COHORT_RETURN_IF_ERROR(Finish(std::move(sum)));
      EXPECT_EQ(value, 6) << "rank " << comm.rank();
    }
    COHORT_ASSIGN_OR_RETURN(const int last, comm.Join());
    EXPECT_EQ(last, 2);
    return {};
  });
}

TEST_F(JoinOrder, AMessageBehindItIsReceived) {
  Run([&](Communicator& comm) -> Status {
    float value = comm.rank() == 0 ? 5 : 0;
    if (comm.rank() == 0) {
      COHORT_RETURN_IF_ERROR(Finish(comm.Send(std::span(&value, 1), kLate)));
    } else if (comm.rank() == kHolder) {
      ReleaseAfter(FrameKind::kOpen);
    } else {
      COHORT_RETURN_IF_ERROR(Finish(comm.Receive(std::span(&value, 1), 0)));
      EXPECT_EQ(value, 5);
    }
    return Finish(comm.Barrier());
  });
}

// Ranks 0 and 2 give up an operation, and rank 1 hears of that before it knows that its join is
// over.
TEST_F(JoinOrder, WhatIsGivenUpBehindItIsNotOfIt) {
  std::latch given_up(2);
  Run([&](Communicator& comm) -> Status {
    float value = 1;
    const Status differs = Finish(Sum(comm, value, comm.rank() == kHolder ? "y" : "x"));
    EXPECT_EQ(differs.code(), StatusCode::kInvalidArgument)
        << "rank " << comm.rank() << ": " << differs.ToString();
    value = 1;
    Communicator::Pending sum = Sum(comm, value, "z");
    if (comm.rank() != kLate) {
      given_up.count_down();
    }
    if (comm.rank() == kHolder) {
      given_up.wait();
      ReleaseAfter(FrameKind::kReject);
    }
    COHORT_RETURN_IF_ERROR(Finish(std::move(sum)));
    EXPECT_EQ(value, 3) << "rank " << comm.rank();
    return {};
  });
}

}  // namespace
}  // namespace cohort
