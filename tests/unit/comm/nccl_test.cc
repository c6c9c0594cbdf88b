// What is ours of a communicator over NCCL, with a fake in NCCL's place. The operations themselves
// are in tests/conformance/nccl_conformance_test.cc.
#include <cohort/comm/nccl.h>
#include <cohort/core/metrics.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <future>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

#include "nccl/nccl_communicator.h"
#include "testing/fake_nccl.h"
#include "testing/late_stream.h"
#include "testing/memory_store.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ExpectAllOk;
using testing::FakeNccl;
using ::testing::HasSubstr;
using testing::MakeFakeGpu;
using testing::RunRanks;

// The timeout of an operation that is not done in time; all others have long ones.
constexpr milliseconds kSoon{500};

// One rank's way to a store: counts what it writes there and waits for.
class CountingStore final : public KeyValueStore {
 public:
  explicit CountingStore(std::shared_ptr<KeyValueStore> store) : store_(std::move(store)) {}
  Status Insert(const std::string& key, const std::string& value) override {
    ++calls_;
    return store_->Insert(key, value);
  }
  Result<std::string> Get(const std::string& key) override { return store_->Get(key); }
  Result<std::string> Wait(const std::string& key, Deadline deadline) override {
    ++calls_;
    return store_->Wait(key, deadline);
  }
  int calls() const { return calls_; }

 private:
  const std::shared_ptr<KeyValueStore> store_;
  std::atomic<int> calls_ = 0;
};

// One rank's way to a store, lost once the rank has told the color of its group.
class CutStore final : public KeyValueStore {
 public:
  explicit CutStore(std::shared_ptr<KeyValueStore> store) : store_(std::move(store)) {}
  Status Insert(const std::string& key, const std::string& value) override {
    COHORT_RETURN_IF_ERROR(Way());
    cut_ = key.find("/split/") != std::string::npos;
    return store_->Insert(key, value);
  }
  Result<std::string> Get(const std::string& key) override {
    COHORT_RETURN_IF_ERROR(Way());
    return store_->Get(key);
  }
  Result<std::string> Wait(const std::string& key, Deadline deadline) override {
    COHORT_RETURN_IF_ERROR(Way());
    return store_->Wait(key, deadline);
  }

 private:
  Status Way() const { return cut_ ? Unavailable("the store is out of reach") : OkStatus(); }

  const std::shared_ptr<KeyValueStore> store_;
  std::atomic<bool> cut_ = false;
};

// One rank's way to a store, in which the question whether there is trouble is stuck for a while.
class StuckStore final : public KeyValueStore {
 public:
  explicit StuckStore(std::shared_ptr<KeyValueStore> store) : store_(std::move(store)) {}
  Status Insert(const std::string& key, const std::string& value) override {
    return store_->Insert(key, value);
  }
  Result<std::string> Get(const std::string& key) override {
    if (key.ends_with("/trouble")) {
      std::unique_lock lock(mutex_);
      waits_ = holds_;
      changed_.notify_all();
      changed_.wait(lock, [this] { return !holds_; });
    }
    return store_->Get(key);
  }
  Result<std::string> Wait(const std::string& key, Deadline deadline) override {
    return store_->Wait(key, deadline);
  }
  // Until a thread is stuck.
  [[nodiscard]] bool Hold() {
    std::unique_lock lock(mutex_);
    holds_ = true;
    return changed_.wait_for(lock, seconds(30), [this] { return waits_; });
  }
  void LetGo() {
    const std::lock_guard lock(mutex_);
    holds_ = false;
    changed_.notify_all();
  }

 private:
  const std::shared_ptr<KeyValueStore> store_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool holds_ = false;
  bool waits_ = false;
};

class Nccl : public ::testing::Test {
 protected:
  Nccl() {
    options_.timeout = seconds(30);
    options_.peer_name = [](int rank) { return "worker:" + std::to_string(rank); };
  }

  Result<std::unique_ptr<Communicator>> Make(int rank, int size,
                                             std::shared_ptr<KeyValueStore> store,
                                             const std::string& gpu,
                                             const CommunicatorOptions& options) {
    return MakeNcclCommunicatorOn(
        std::make_shared<FakeNccl>(world_, gpu), rank, size, std::move(store), "job",
        {.device = MakeFakeGpu(static_cast<std::uint64_t>(rank)), .connect_timeout = connect_},
        options, milliseconds(20), patience_);
  }
  Result<std::unique_ptr<Communicator>> Make(int rank, int size,
                                             std::shared_ptr<KeyValueStore> store,
                                             const std::string& gpu) {
    return Make(rank, size, std::move(store), gpu, options_);
  }
  Result<std::unique_ptr<Communicator>> Make(int rank, int size,
                                             std::shared_ptr<KeyValueStore> store) {
    return Make(rank, size, std::move(store), "GPU-" + std::to_string(rank));
  }
  Result<std::unique_ptr<Communicator>> Make(int rank, int size) {
    return Make(rank, size, store_);
  }

  std::vector<Status> Run(int size, const std::function<Status(Communicator&)>& fn) {
    return RunRanks(size, [&](int rank) -> Status {
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> mine, Make(rank, size));
      return fn(*mine);
    });
  }
  void RunAndExpect(int size, StatusCode code, const std::vector<std::string>& parts,
                    const std::function<Status(Communicator&)>& fn) {
    const std::vector<Status> statuses = Run(size, fn);
    for (const Status& status : statuses) {
      EXPECT_EQ(status.code(), code) << status.ToString();
      EXPECT_EQ(status, statuses.front());
      for (const std::string& part : parts) {
        EXPECT_THAT(status.message(), HasSubstr(part));
      }
    }
    EXPECT_EQ(world_->live, 0) << "handles of NCCL left behind";
  }

  const std::shared_ptr<FakeNccl::World> world_ = std::make_shared<FakeNccl::World>();
  const std::shared_ptr<KeyValueStore> store_ = std::make_shared<testing::MemoryStore>();
  CommunicatorOptions options_;
  milliseconds connect_ = seconds(30);
  Duration patience_ = seconds(60);
};

Status WaitFor(Communicator::Pending pending) {
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

Status Sum(Communicator& comm, const std::string& name, std::size_t count = 10,
           milliseconds timeout = milliseconds(0)) {
  std::vector<float> values(count, 1);
  COHORT_RETURN_IF_ERROR(WaitFor(
      comm.AllReduce(std::span(values), ReduceOp::kSum, {.name = name, .timeout = timeout})));
  const auto n = static_cast<float>(comm.size());
  return values.front() == n && values.back() == n ? OkStatus() : Internal("wrong sum");
}

// What a rank hears that calls nothing.
Status Failure(const Communicator& comm) {
  const Deadline deadline = DeadlineAfter(std::chrono::minutes(1));
  while (comm.status().ok() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  return comm.status();
}

TEST_F(Nccl, TwoRanksOnOneGpuAreNamedBeforeNcclHearsOfIt) {
  const std::vector<Status> statuses = RunRanks(
      3, [&](int rank) { return Make(rank, 3, store_, rank == 1 ? "GPU-a" : "GPU-b").status(); });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(),
                HasSubstr("rank 0 (worker:0) and rank 2 (worker:2) both use GPU-b"));
    EXPECT_THAT(status.message(), HasSubstr("[set CUDA_VISIBLE_DEVICES or --devices]"));
  }
  EXPECT_EQ(world_->inits, 0);
}

TEST_F(Nccl, ARankThatDoesNotComeIsNamed) {
  connect_ = milliseconds(100);
  const Status status = Make(0, 2).status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), HasSubstr("did not meet all 2 ranks within 100 ms"));
  EXPECT_THAT(status.message(), HasSubstr("missing rank 1 (worker:1)"));
}

TEST_F(Nccl, ARankThatIsLostBeforeItConnectsIsNamed) {
  connect_ = milliseconds(100);
  ASSERT_TRUE(store_->Insert("job/1/nccl/gpu/0", "GPU-0").ok());
  const Status status = Make(1, 2).status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), HasSubstr("missing rank 0 (worker:0)"));
}

TEST_F(Nccl, TwoProcessesOfOneRankAreFound) {
  connect_ = milliseconds(100);
  EXPECT_EQ(Make(0, 2).status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Make(0, 2).status().code(), StatusCode::kAlreadyExists);
}

TEST_F(Nccl, AnInitWithoutEndEndsAtTheDeadline) {
  world_->connects = false;
  connect_ = milliseconds(1000);
  for (const Status& status : Run(2, [](Communicator&) { return OkStatus(); })) {
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(status.message(), HasSubstr("did not connect to all 2 ranks through NCCL"));
  }
  EXPECT_EQ(world_->live, 0);
}

TEST_F(Nccl, AnErrorOfInitIsTold) {
  world_->errors[0] = Unavailable("NCCL: no network");
  const Status status = Make(0, 1).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(),
              HasSubstr("rank 0 (worker:0) connecting through NCCL: NCCL: no network"));
  EXPECT_EQ(world_->live, 0);
}

TEST_F(Nccl, DeterministicIsRefusedWhereItMeansSomething) {
  options_.deterministic = true;
  const Status status = Make(0, 2).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("canonical order"));
  for (const Status& alone : Run(1, [](Communicator& comm) { return Sum(comm, "x"); })) {
    EXPECT_TRUE(alone.ok()) << alone.ToString();
  }
}

TEST_F(Nccl, AnAsynchronousErrorEndsAllRanksWithOneStatus) {
  RunAndExpect(3, StatusCode::kUnavailable,
               {"during AllReduce 'b' float32[10] #2 (generation 1) on rank 1 (worker:1)",
                "remote process exited"},
               [&](Communicator& comm) -> Status {
                 COHORT_RETURN_IF_ERROR(Sum(comm, "a"));
                 std::vector<float> values(10);
                 if (comm.rank() == 2) {
                   return Failure(comm);
                 }
                 const Communicator::Pending work =
                     comm.AllReduce(std::span(values), ReduceOp::kSum, {.name = "b"});
                 if (comm.rank() == 1) {
                   const std::lock_guard lock(world_->mutex);
                   world_->errors[1] = Unavailable("NCCL: remote process exited");
                 }
                 if (!work.ok()) {
                   return work.status();
                 }
                 const Status status = work.value()->Wait();
                 EXPECT_EQ(Sum(comm, "c"), status);
                 return status;
               });
  EXPECT_EQ(world_->aborted, 3);
}

TEST_F(Nccl, DifferentCountsAreNamedBeforeAnythingMoves) {
  RunAndExpect(2, StatusCode::kInvalidArgument,
               {"rank 0 (worker:0) is in AllReduce 'fc1' float32[10], rank 1 (worker:1) is in "
                "AllReduce 'fc1' float32[12], operation #2 (generation 1)"},
               [](Communicator& comm) -> Status {
                 COHORT_RETURN_IF_ERROR(Sum(comm, "fc0"));
                 return Sum(comm, "fc1", comm.rank() == 0 ? 10 : 12);
               });
}

// Every operation, and all but one pair of them, has been seen before.
TEST_F(Nccl, AnOrderThatChangesInALaterRoundIsNamed) {
  RunAndExpect(2, StatusCode::kInvalidArgument,
               {"rank 0 (worker:0) is in AllReduce 'b' float32[10], rank 1 (worker:1) is in "
                "AllReduce 'a' float32[10], operation #8 (generation 1)"},
               [](Communicator& comm) -> Status {
                 for (int round = 0; round < 3; ++round) {
                   COHORT_RETURN_IF_ERROR(Sum(comm, "a"));
                   COHORT_RETURN_IF_ERROR(Sum(comm, "b"));
                 }
                 COHORT_RETURN_IF_ERROR(Sum(comm, "a"));
                 return Sum(comm, comm.rank() == 0 ? "b" : "a", 10, 4 * kSoon);
               });
}

TEST_F(Nccl, ALoopAsksNothingOfTheStore) {
  testing::ExpectAllOk(RunRanks(2, [&](int rank) -> Status {
    const auto store = std::make_shared<CountingStore>(store_);
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> comm, Make(rank, 2, store));
    const auto round = [&]() -> Status {
      COHORT_RETURN_IF_ERROR(Sum(*comm, "a"));
      COHORT_RETURN_IF_ERROR(Sum(*comm, "b", 1000));
      return WaitFor(comm->Barrier());
    };
    COHORT_RETURN_IF_ERROR(round());
    COHORT_RETURN_IF_ERROR(Sum(*comm, "a"));  // after the last one
    const int before = store->calls();
    COHORT_RETURN_IF_ERROR(Sum(*comm, "b", 1000));
    COHORT_RETURN_IF_ERROR(WaitFor(comm->Barrier()));
    for (int i = 0; i < 20; ++i) {
      COHORT_RETURN_IF_ERROR(round());
    }
    EXPECT_GT(before, 0);
    EXPECT_EQ(store->calls(), before);
    return {};
  }));
}

TEST_F(Nccl, AnAbsentRankIsNamedAtTheDeadline) {
  RunAndExpect(3, StatusCode::kDeadlineExceeded,
               {"AllReduce 'b' float32[10] #2 (generation 1) on rank ", "not done after 500 ms",
                "rank 1 (worker:1) has not entered it; its last is AllReduce 'a' float32[10] #1"},
               [](Communicator& comm) -> Status {
                 COHORT_RETURN_IF_ERROR(Sum(comm, "a"));
                 return comm.rank() == 1 ? Failure(comm) : Sum(comm, "b", 10, kSoon);
               });
}

// It is under way on the device, and nobody waits for it.
TEST_F(Nccl, AnOperationThatNobodyWaitsForHasADeadlineToo) {
  RunAndExpect(2, StatusCode::kDeadlineExceeded, {"rank 1 (worker:1) has not entered it"},
               [](Communicator& comm) -> Status {
                 COHORT_RETURN_IF_ERROR(Sum(comm, "a"));
                 COHORT_RETURN_IF_ERROR(Sum(comm, "a"));  // one after the other: seen
                 std::vector<float> values(10);
                 if (comm.rank() == 1) {
                   return Failure(comm);
                 }
                 const std::unique_ptr<Stream> stream = testing::MakeLateStream(9);
                 COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                                         comm.AllReduce(std::span(values), ReduceOp::kSum,
                                                        {.name = "a", .timeout = kSoon}));
                 work->Order(*stream);
                 EXPECT_FALSE(stream->Synchronize(DeadlineAfter(seconds(30))).ok());
                 return Failure(comm);
               });
}

// A thread that does not come back is left to itself. What it finds done then counts nowhere: its
// owner is gone, and the metrics may be.
TEST_F(Nccl, WhatEndsAfterTheOwnerHasLeftIsNotCounted) {
  auto metrics = std::make_unique<Metrics>();
  const auto stuck = std::make_shared<StuckStore>(store_);
  patience_ = milliseconds(50);
  std::array<std::unique_ptr<Communicator>, 2> comms;
  ExpectAllOk(RunRanks(2, [&](int rank) -> Status {
    CommunicatorOptions options = options_;
    options.metrics = rank == 0 ? metrics.get() : nullptr;
    COHORT_ASSIGN_OR_RETURN(comms[static_cast<std::size_t>(rank)],
                            rank == 0 ? Make(rank, 2, stuck, "GPU-0", options)
                                      : Make(rank, 2, store_, "GPU-1", options));
    Communicator& mine = *comms[static_cast<std::size_t>(rank)];
    COHORT_RETURN_IF_ERROR(Sum(mine, "a"));
    return Sum(mine, "a");  // one after the other: seen
  }));
  const auto counted = [&metrics] {
    return metrics
        ->AddCounter("cohort_allreduce_operations_total", "AllReduce operations done.",
                     {{"algorithm", "nccl"}})
        .value();
  };
  EXPECT_EQ(counted(), 2);
  ASSERT_TRUE(stuck->Hold());
  std::vector<float> values(10, 1);
  auto work = comms[0]->AllReduce(std::span(values), ReduceOp::kSum,
                                  {.name = "a", .timeout = milliseconds(200)});
  ASSERT_TRUE(work.ok()) << work.status().ToString();
  comms[0].reset();
  EXPECT_EQ(Sum(*comms[1], "a"), OkStatus());
  const Deadline deadline = DeadlineAfter(seconds(30));
  while (!work.value()->done() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_TRUE(work.value()->done());
  EXPECT_EQ(values, std::vector<float>(10, 2));
  EXPECT_EQ(counted(), 2);
  metrics.reset();
  work.value().reset();
  comms[1].reset();
  stuck->LetGo();  // the thread ends, and gives NCCL's handle back
  const auto live = [this] {
    const std::lock_guard lock(world_->mutex);
    return world_->live;
  };
  while (live() > 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_EQ(live(), 0);
}

TEST_F(Nccl, AbortReachesAllRanks) {
  RunAndExpect(2, StatusCode::kAborted,
               {"rank 1 (worker:1) aborted the communicator: the loss is NaN"},
               [](Communicator& comm) -> Status {
                 COHORT_RETURN_IF_ERROR(Sum(comm, "a"));
                 if (comm.rank() == 1) {
                   comm.Abort(Aborted("the loss is NaN"));
                   return Failure(comm);
                 }
                 return Sum(comm, "b");
               });
}

TEST_F(Nccl, ARankThatLeftIsNamed) {
  const std::vector<Status> statuses = Run(2, [](Communicator& comm) -> Status {
    COHORT_RETURN_IF_ERROR(Sum(comm, "a"));
    return comm.rank() == 0 ? OkStatus() : Sum(comm, "b", 10, 4 * kSoon);
  });
  EXPECT_TRUE(statuses[0].ok()) << statuses[0].ToString();
  EXPECT_EQ(statuses[1].code(), StatusCode::kUnavailable);
  EXPECT_THAT(statuses[1].message(), HasSubstr("rank 0 (worker:0) left the communicator"));
}

TEST_F(Nccl, ReceiveThatMeetsNoSendNamesItsPeer) {
  RunAndExpect(
      2, StatusCode::kDeadlineExceeded, {"Receive 'there' float32[10] #1", "rank 0 (worker:0)"},
      [](Communicator& comm) -> Status {
        std::vector<float> values(10);
        COHORT_RETURN_IF_ERROR(Sum(comm, "a"));
        return comm.rank() == 0 ? Failure(comm)
                                : WaitFor(comm.Receive(std::span(values), 0,
                                                       {.name = "there", .timeout = kSoon}));
      });
}

TEST_F(Nccl, ANewGenerationWorksAfterAFailure) {
  for (options_.generation = 1; options_.generation <= 3; ++options_.generation) {
    RunAndExpect(2, StatusCode::kCancelled, {"stop"}, [](Communicator& comm) -> Status {
      COHORT_RETURN_IF_ERROR(Sum(comm, "a"));
      if (comm.rank() == 0) {
        comm.Abort(Cancelled("stop"));
      }
      return Failure(comm);
    });
  }
}

TEST_F(Nccl, OperationsStandBetweenTheStreamsOfTheirCaller) {
  testing::ExpectAllOk(Run(2, [](Communicator& comm) -> Status {
    const std::unique_ptr<Stream> compute =
        testing::MakeLateStream(static_cast<std::uint64_t>(comm.rank()) + 100);
    std::vector<float> values(1000, -1);
    float seen = 0;
    for (int round = 1; round <= 20; ++round) {
      compute->Enqueue([&values, round] {
        std::fill(values.begin(), values.end(), static_cast<float>(round));
        return OkStatus();
      });
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                              comm.AllReduce(std::span(values), ReduceOp::kSum,
                                             {.name = "gradients", .stream = compute.get()}));
      work->Order(*compute);
      compute->Enqueue([&values, &seen] {
        seen += values.back();
        return OkStatus();
      });
    }
    COHORT_RETURN_IF_ERROR(compute->Synchronize(DeadlineAfter(seconds(30))));
    return seen == 2 * 210 ? OkStatus() : Internal("saw " + std::to_string(seen));
  }));
}

TEST_F(Nccl, AFailedStreamBeforeAnOperationFailsIt) {
  RunAndExpect(2, StatusCode::kInvalidArgument,
               {"AllReduce 'gradients' float32[10] #1 (generation 1) on rank 0 (worker:0)",
                "label 12 is not one of 10"},
               [](Communicator& comm) -> Status {
                 const std::unique_ptr<Stream> compute = testing::MakeLateStream(7);
                 std::vector<float> values(10);
                 if (comm.rank() == 0) {
                   compute->Enqueue([] { return InvalidArgument("label 12 is not one of 10"); });
                 }
                 return WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum,
                                               {.name = "gradients", .stream = compute.get()}));
               });
}

TEST_F(Nccl, AGroupFailsByItself) {
  testing::ExpectAllOk(Run(3, [](Communicator& comm) -> Status {
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> pair,
                            comm.Split(comm.rank() == 1 ? -1 : 0, 0));
    if (pair != nullptr) {
      if (pair->rank() == 0) {
        pair->Abort(Aborted("enough"));
      }
      const Status status = Failure(*pair);
      EXPECT_THAT(status.message(), HasSubstr("rank 0 (worker:0) aborted the communicator"));
    }
    return Sum(comm, "all of us");
  }));
  EXPECT_EQ(world_->inits, 3 + 2) << "a rank of no group asks nothing of NCCL";
  EXPECT_EQ(world_->ids, 2);
  EXPECT_EQ(world_->live, 0);
}

// What a communicator has under way neither waits for its groups nor holds them up.
TEST_F(Nccl, GroupsAreMadeWhileTheirCommunicatorWorks) {
  testing::ExpectAllOk(Run(4, [](Communicator& comm) -> Status {
    std::vector<float> values(10, 1);
    const std::unique_ptr<Stream> compute =
        testing::MakeLateStream(static_cast<std::uint64_t>(comm.rank()) + 100);
    std::promise<void> ready;
    compute->Enqueue([future = std::make_shared<std::future<void>>(ready.get_future())] {
      return future->wait_for(seconds(30)) == std::future_status::ready
                 ? OkStatus()
                 : DeadlineExceeded("the groups did not come");
    });
    COHORT_ASSIGN_OR_RETURN(
        const std::unique_ptr<Work> work,
        comm.AllReduce(std::span(values), ReduceOp::kSum, {.stream = compute.get()}));
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> half,
                            comm.Split(comm.rank() % 2, -comm.rank()));
    COHORT_RETURN_IF_ERROR(Sum(*half, "half"));
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> alone,
                            half->Split(half->rank(), 0));
    COHORT_RETURN_IF_ERROR(Sum(*alone, "alone"));
    EXPECT_FALSE(work->done());
    ready.set_value();
    COHORT_RETURN_IF_ERROR(work->Wait());
    EXPECT_EQ(values, std::vector<float>(10, 4));
    return Sum(comm, "all of us");
  }));
  EXPECT_EQ(world_->live, 0);
}

// Rank 0 fails before it tells NCCL's id, rank 1 after it.
TEST_F(Nccl, AMemberThatNcclRefusesIsToldToAllRanks) {
  for (const std::string refused : {"0", "1"}) {
    RunAndExpect(3, StatusCode::kUnavailable,
                 {"on rank " + refused + " (worker:" + refused +
                      ") connecting through NCCL: NCCL: "
                      "no memory",
                  "Split #2 (generation "},
                 [&](Communicator& comm) -> Status {
                   COHORT_RETURN_IF_ERROR(Sum(comm, "a"));
                   if (std::to_string(comm.rank()) == refused) {
                     const std::lock_guard lock(world_->mutex);
                     world_->refused = {{"GPU-" + refused, Unavailable("NCCL: no memory")}};
                   }
                   const Result<std::unique_ptr<Communicator>> pair =
                       comm.Split(comm.rank() == 2 ? -1 : 0, 0);
                   return pair.ok() ? Failure(comm) : pair.status();
                 });
    // Members that had the group by then would hear of it, too.
    EXPECT_TRUE(
        store_->Get("job/" + std::to_string(options_.generation++) + "/nccl/group/2.0/verdict")
            .ok());
    world_->refused.clear();
  }
}

TEST_F(Nccl, AGroupThatNcclDoesNotConnectEndsAtTheDeadline) {
  options_.timeout = kSoon;
  RunAndExpect(2, StatusCode::kDeadlineExceeded,
               {"Split #1 (generation 1) on rank ", "not done after 500 ms"},
               [&](Communicator& comm) -> Status {
                 {
                   const std::lock_guard lock(world_->mutex);
                   world_->connects = false;
                 }
                 return comm.Split(0, 0).status();
               });
}

TEST_F(Nccl, ARankThatDoesNotSplitIsNamedAtTheDeadline) {
  options_.timeout = kSoon;
  RunAndExpect(2, StatusCode::kDeadlineExceeded,
               {"Split #2 (generation 1) on rank 0 (worker:0) not done after 500 ms: rank 1 "
                "(worker:1) "},
               [](Communicator& comm) -> Status {
                 COHORT_RETURN_IF_ERROR(Sum(comm, "a", 10, seconds(30)));
                 return comm.rank() == 0 ? comm.Split(0, 0).status() : Failure(comm);
               });
}

TEST_F(Nccl, AMemberThatIsLostBeforeItConnectsIsNamedAtTheDeadline) {
  options_.timeout = kSoon;
  const std::vector<Status> statuses = RunRanks(2, [&](int rank) -> Status {
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> comm,
                            Make(rank, 2, rank == 0 ? std::make_shared<CutStore>(store_) : store_));
    return comm->Split(0, 0).status();
  });
  EXPECT_FALSE(statuses[0].ok());
  EXPECT_EQ(statuses[1].code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(statuses[1].message(),
              HasSubstr("Split #1 (generation 1) on rank 1 (worker:1) not done after 500 ms: rank "
                        "0 (worker:0) "));
  EXPECT_EQ(world_->live, 0);
}

TEST_F(Nccl, WhatIsMissingIsSaid) {
  const Result<std::string> version = NcclVersion();
  if (version.ok()) {
    EXPECT_THAT(version.value(), ::testing::ContainsRegex("^2\\.[0-9]+\\.[0-9]+$"));
  } else {
    EXPECT_EQ(version.status().code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(version.status().message(), HasSubstr("NCCL"));
  }
}

}  // namespace
}  // namespace cohort
