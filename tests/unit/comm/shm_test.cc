// What is special about ranks that share memory. The conformance suite has the rest.
#include <cohort/comm/local.h>
#include <cohort/comm/shm.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <future>
#include <set>
#include <thread>

#include "algorithms/shared.h"
#include "testing/memory_store.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

Status WaitFor(Communicator::Pending pending) {
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

std::vector<Status> RunShm(int size, const std::function<Status(Communicator&)>& fn) {
  testing::MemoryStore store;
  return testing::RunRanks(size, [&](int rank) -> Status {
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> mine,
                            MakeShmCommunicator(rank, size, store, "job"));
    return fn(*mine);
  });
}

std::span<float> Floats(const Memory& memory) {
  return {reinterpret_cast<float*>(memory.bytes().data()), memory.bytes().size() / sizeof(float)};
}

// Buffers in memory that is lent, in private memory, and in both: three ranks, many segments.
TEST(Shm, LentAndPrivateBuffersGiveTheSameResults) {
  constexpr std::size_t kCount = 400'001;
  for (const std::string where : {"lent", "private", "mixed"}) {
    testing::ExpectAllOk(RunShm(3, [&](Communicator& comm) -> Status {
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> memory,
                              comm.Allocate(2 * kCount * sizeof(float)));
      std::vector<float> own(2 * kCount);
      const bool lent = where == "lent" || (where == "mixed" && comm.rank() == 1);
      const std::span<float> all = lent ? Floats(*memory) : std::span(own);
      const std::span<float> values = all.subspan(7, kCount);
      for (int round = 0; round < 3; ++round) {
        for (std::size_t i = 0; i < kCount; ++i) {
          values[i] = static_cast<float>((i + static_cast<std::size_t>(comm.rank())) % 11);
        }
        COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(values, ReduceOp::kSum)));
        for (std::size_t i = 0; i < kCount; ++i) {
          if (values[i] != static_cast<float>(i % 11 + (i + 1) % 11 + (i + 2) % 11)) {
            return Internal(where + ": wrong at " + std::to_string(i));
          }
        }
        for (float& value : values) {
          value = comm.rank() == 1 ? 5.0F : 0.0F;
        }
        COHORT_RETURN_IF_ERROR(WaitFor(comm.Broadcast(values, 1)));
        EXPECT_THAT(values.first(100), Each(5.0F));
        EXPECT_THAT(values.last(100), Each(5.0F));
        const std::span<float> part = values.first(kCount / 3);
        COHORT_RETURN_IF_ERROR(WaitFor(comm.ReduceScatter(values.first(part.size() * 3),
                                                          all.last(part.size()), ReduceOp::kMean)));
        EXPECT_THAT(all.last(100), Each(5.0F));
      }
      return {};
    }));
  }
}

// Staging memory has three slots in turns: chunks of up to five segments, one more and one less
// element, and fewer elements than ranks.
TEST(Shm, PrivateBuffersOfAnyNumberOfSegments) {
  constexpr std::size_t kSegment = kStagedSegmentBytes / sizeof(float);
  for (const std::size_t ranks : {2UL, 3UL, 5UL}) {
    testing::ExpectAllOk(RunShm(static_cast<int>(ranks), [&](Communicator& comm) -> Status {
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> memory,
                              comm.Allocate((5 * ranks * kSegment + 16) * sizeof(float)));
      std::vector<float> own(5 * ranks * kSegment + 16);
      const auto rank = static_cast<std::size_t>(comm.rank());
      std::set<std::size_t> counts = {1, ranks};
      for (std::size_t segments = 1; segments <= 5; ++segments) {
        const std::size_t whole = segments * ranks * kSegment;
        counts.insert({whole - 1, whole, whole + 1});
      }
      for (const std::size_t count : counts) {
        for (const bool mixed : {false, true}) {
          const std::span<float> all =
              mixed && rank + 1 == ranks ? Floats(*memory) : std::span(own);
          std::ranges::fill(all, -1.0F);
          for (std::size_t i = 0; i < count; ++i) {
            all[i + 3] = static_cast<float>((i + rank) % 11);
          }
          COHORT_RETURN_IF_ERROR(WaitFor(
              comm.AllReduce(all.subspan(3, count), ReduceOp::kSum, {.algorithm = "shared"})));
          for (std::size_t i = 0; i < count; ++i) {
            std::size_t sum = 0;
            for (std::size_t r = 0; r < ranks; ++r) {
              sum += (i + r) % 11;
            }
            if (all[i + 3] != static_cast<float>(sum)) {
              return Internal(std::to_string(count) + ": wrong at " + std::to_string(i));
            }
          }
          EXPECT_THAT(all.first(3), Each(-1.0F));
          EXPECT_THAT(all.subspan(3 + count, 5), Each(-1.0F));
        }
      }
      return {};
    }));
  }
}

// Of buffers that begin and end within pages, and at other places in each rank's memory: others
// write there, and nowhere else.
TEST(Shm, OthersWriteToTheBufferOnly) {
  constexpr float kOther = -1;
  for (const int ranks : {2, 3}) {
    testing::ExpectAllOk(RunShm(ranks, [&](Communicator& comm) -> Status {
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> memory,
                              comm.Allocate(300'000 * sizeof(float)));
      const std::span<float> all = Floats(*memory);
      for (const std::size_t count : {5UL, 1023UL, 1024UL, 2050UL, 5000UL, 40'000UL, 200'003UL}) {
        for (const std::size_t offset : {0UL, 3UL, 1024UL, 1500UL}) {
          std::ranges::fill(all, kOther);
          const std::size_t at = offset * static_cast<std::size_t>(comm.rank() + 1);
          const std::span<float> values = all.subspan(at, count);
          for (std::size_t i = 0; i < count; ++i) {
            values[i] = static_cast<float>(i % 13 + static_cast<std::size_t>(comm.rank()));
          }
          COHORT_RETURN_IF_ERROR(
              WaitFor(comm.AllReduce(values, ReduceOp::kSum, {.algorithm = "shared"})));
          for (std::size_t i = 0; i < count; ++i) {
            if (values[i] != static_cast<float>(i % 13) * static_cast<float>(ranks) +
                                 static_cast<float>(ranks * (ranks - 1) / 2)) {
              return Internal(std::to_string(count) + " values at " + std::to_string(at) +
                              ": wrong at " + std::to_string(i));
            }
          }
          EXPECT_THAT(all.first(at), Each(kOther)) << count;
          EXPECT_THAT(all.subspan(at + count), Each(kOther)) << count;
        }
      }
      return {};
    }));
  }
}

// Of two and three ranks, whose values are on the board, in each other's memory, or pass through
// staging memory; in quick succession, with other operations between and mismatches before.
TEST(Shm, SmallLentAndPrivateBuffersGiveTheSameResults) {
  constexpr std::size_t kMost = 10000;  // more than the board takes
  for (const int ranks : {2, 3}) {
    testing::ExpectAllOk(RunShm(ranks, [&](Communicator& comm) -> Status {
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> memory,
                              comm.Allocate(kMost * sizeof(float)));
      std::vector<float> own(kMost);
      for (int round = 0; round < 300; ++round) {
        // All private, all lent, and one of each in turn.
        const int kind = round % (ranks + 2);
        const bool lent = kind == 1 || kind - 2 == comm.rank();
        const std::size_t count = round % 4 == 0   ? kMost
                                  : round % 4 == 1 ? 3000
                                  : round % 4 == 2 ? 17
                                                   : 8192;
        const std::span<float> values = (lent ? Floats(*memory) : std::span(own)).first(count);
        for (std::size_t i = 0; i < count; ++i) {
          values[i] = static_cast<float>((i + static_cast<std::size_t>(comm.rank() + round)) % 11);
        }
        const char* const algorithm = round % 3 == 0 ? "shared" : "auto";
        COHORT_RETURN_IF_ERROR(
            WaitFor(comm.AllReduce(values, ReduceOp::kSum, {.algorithm = algorithm})));
        for (std::size_t i = 0; i < count; ++i) {
          float sum = 0;
          for (int r = 0; r < ranks; ++r) {
            sum += static_cast<float>((i + static_cast<std::size_t>(r + round)) % 11);
          }
          if (values[i] != sum) {
            return Internal("round " + std::to_string(round) + ": wrong at " + std::to_string(i));
          }
        }
        if (round % 7 == 0) {
          COHORT_RETURN_IF_ERROR(WaitFor(comm.Barrier({})));
        }
        if (round % 50 == 49) {  // one comes with another count: nobody's values are used
          const std::size_t other = comm.rank() == 0 ? 100 : 200;
          const Status mismatch =
              WaitFor(comm.AllReduce(std::span(own).first(other), ReduceOp::kSum));
          EXPECT_EQ(mismatch.code(), StatusCode::kInvalidArgument) << mismatch.ToString();
        }
      }
      return {};
    }));
  }
}

TEST(Shm, MemoryOutlivesItsCommunicator) {
  std::unique_ptr<Memory> kept;
  testing::ExpectAllOk(RunShm(2, [&](Communicator& comm) -> Status {
    COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Memory> memory, comm.Allocate(1 << 20));
    const std::span<float> values = Floats(*memory);
    std::fill(values.begin(), values.end(), 2.0F);
    COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(values, ReduceOp::kSum)));
    if (comm.rank() == 0) {
      kept = std::move(memory);
    }
    return {};
  }));
  EXPECT_THAT(Floats(*kept), Each(4.0F));
  Floats(*kept)[0] = 1.0F;
}

// Freed and allocated anew many times: peers let go of what is freed.
TEST(Shm, MemoryComesAndGoes) {
  testing::ExpectAllOk(RunShm(2, [&](Communicator& comm) -> Status {
    for (int round = 0; round < 50; ++round) {
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> memory, comm.Allocate(100'000));
      const std::span<float> values = Floats(*memory);
      std::fill(values.begin(), values.end(), static_cast<float>(round));
      COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(values, ReduceOp::kSum)));
      EXPECT_THAT(values, Each(static_cast<float>(2 * round)));
    }
    return {};
  }));
}

// In memory that is "lent", "private", or "mixed": lent by rank 1 alone.
Result<std::unique_ptr<Memory>> FloatsIn(const std::string& where, Communicator& comm,
                                         std::size_t count) {
  const bool lent = where == "lent" || (where == "mixed" && comm.rank() == 1);
  return lent ? comm.Allocate(count * sizeof(float)) : AllocateMemory(count * sizeof(float));
}

bool AllAre(float value, std::span<const float> values) {
  return std::ranges::all_of(values, [value](float v) { return v == value; });
}

// Two ranks reduce right.
Status ReduceRight(Communicator& comm, std::span<float> values) {
  std::ranges::fill(values, static_cast<float>(comm.rank() + 1));
  COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(values, ReduceOp::kSum)));
  return AllAre(3, values) ? Status() : Internal("a wrong sum");
}

TEST(Shm, AMismatchOfLargeOperationsTouchesNothing) {
  for (const std::string where : {"lent", "private", "mixed"}) {
    const std::vector<Status> statuses = RunShm(2, [&](Communicator& comm) -> Status {
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> memory, FloatsIn(where, comm, 1 << 20));
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> other, FloatsIn(where, comm, 1 << 20));
      const std::span<float> values = Floats(*memory);
      std::ranges::fill(values, 1.0F);
      Status status = WaitFor(comm.AllReduce(
          values, comm.rank() == 0 ? ReduceOp::kSum : ReduceOp::kMax, {.name = "w"}));
      // The communicator goes on.
      COHORT_RETURN_IF_ERROR(ReduceRight(comm, Floats(*other)));
      EXPECT_TRUE(AllAre(1, values)) << where;
      COHORT_RETURN_IF_ERROR(ReduceRight(comm, values));
      return status;
    });
    for (const Status& status : statuses) {
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << where << status.ToString();
      EXPECT_THAT(status.message(), AllOf(HasSubstr("rank 0"), HasSubstr("rank 1"),
                                          HasSubstr("sum"), HasSubstr("max")));
    }
  }
}

// Two ranks in one generation after the other.
Status RunGenerations(std::uint64_t count, int rank, KeyValueStore& store,
                      const std::function<Status(Communicator&)>& fn) {
  for (std::uint64_t generation = 1; generation <= count; ++generation) {
    CommunicatorOptions options;
    options.generation = generation;
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> comm,
                            MakeShmCommunicator(rank, 2, store, "job", {}, options));
    COHORT_RETURN_IF_ERROR(fn(*comm).Annotate("generation " + std::to_string(generation)));
  }
  return {};
}

// Rank 0 aborts in the middle of one of many operations as a rule: they run one after the other,
// whoever waits. Each doubles all values. The error with which they end.
Status DoubleUntilAborted(Communicator& comm, std::span<float> values, Deadline abort_at) {
  std::vector<std::unique_ptr<Work>> doublings;
  for (int i = 0; i < 100; ++i) {
    Communicator::Pending pending = comm.AllReduce(values, ReduceOp::kSum);
    COHORT_RETURN_IF_ERROR(pending.status());
    doublings.push_back(std::move(pending).value());
  }
  if (comm.rank() == 0 && !doublings.back()->Wait(abort_at).ok()) {
    comm.Abort(Aborted("the loss is NaN"));
  }
  return doublings.back()->Wait();
}

// What is left in the buffers stays there, and the next generation reduces right.
TEST(Shm, NobodyWritesToTheBuffersOfAnAbortedOperation) {
  constexpr std::size_t kCount = 8 << 20;  // 32 MiB
  for (const std::string where : {"lent", "private", "mixed"}) {
    testing::MemoryStore store;
    std::atomic<int> in_the_middle = 0;
    std::barrier both(2);
    testing::ExpectAllOk(testing::RunRanks(2, [&](int rank) -> Status {
      std::unique_ptr<Memory> failed;  // of the generation before
      std::vector<float> left;
      const Status last = RunGenerations(7, rank, store, [&](Communicator& comm) -> Status {
        COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Memory> memory, FloatsIn(where, comm, kCount));
        const std::span<float> values = Floats(*memory);
        const Status reduced = ReduceRight(comm, values);
        both.arrive_and_wait();  // so that the abort is of what follows
        COHORT_RETURN_IF_ERROR(reduced);
        EXPECT_TRUE(failed == nullptr || std::ranges::equal(Floats(*failed), left)) << where;
        const Status status = DoubleUntilAborted(
            comm, values,
            DeadlineAfter(milliseconds(5) * static_cast<std::int64_t>(comm.generation())));
        EXPECT_EQ(status.ToString(), "Aborted: rank 0 aborted the communicator: the loss is NaN");
        failed = std::move(memory);
        left.assign(values.begin(), values.end());
        in_the_middle += AllAre(left.front(), left) ? 0 : 1;
        return {};
      });
      both.arrive_and_drop();
      return last;
    }));
    RecordProperty("in_the_middle_" + where, in_the_middle);
    // What is lent a rank reduces to the end of its part before it hears of anything.
    EXPECT_TRUE(where == "lent" || in_the_middle > 0) << where;
  }
}

// Rank 1 comes to an operation when the deadline has passed: nobody writes to either's buffer any
// more, and the next generation reduces right.
TEST(Shm, NobodyWritesToTheBuffersOfAnOperationThatCameTooLate) {
  constexpr std::size_t kCount = 1 << 20;
  for (const std::string where : {"lent", "private", "mixed"}) {
    testing::MemoryStore store;
    std::promise<void> given_up;
    testing::ExpectAllOk(testing::RunRanks(2, [&](int rank) -> Status {
      std::unique_ptr<Memory> failed;
      return RunGenerations(2, rank, store, [&](Communicator& comm) -> Status {
        COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Memory> memory, FloatsIn(where, comm, kCount));
        COHORT_RETURN_IF_ERROR(ReduceRight(comm, Floats(*memory)));
        if (failed != nullptr) {
          EXPECT_TRUE(AllAre(static_cast<float>(rank + 1), Floats(*failed))) << where;
          return {};
        }
        std::ranges::fill(Floats(*memory), static_cast<float>(rank + 1));
        if (rank == 1) {
          given_up.get_future().wait_for(std::chrono::seconds(20));
        }
        const Status status = WaitFor(comm.AllReduce(Floats(*memory), ReduceOp::kSum,
                                                     {.name = "w", .timeout = milliseconds(200)}));
        if (rank == 0) {
          given_up.set_value();
        }
        EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded) << status.ToString();
        EXPECT_THAT(status.message(), AllOf(HasSubstr("AllReduce 'w'"), HasSubstr("rank 1")));
        failed = std::move(memory);
        return {};
      });
    }));
  }
}

TEST(OneShot, SaysHowMuchItTakes) {
  auto communicators = MakeLocalCommunicators(2);
  std::vector<float> large(1 << 20);
  const auto pending =
      communicators[0]->AllReduce(std::span(large), ReduceOp::kSum, {.algorithm = "one_shot"});
  EXPECT_EQ(pending.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(pending.status().message(), HasSubstr("at most 64 KiB of all ranks"));
  testing::ExpectAllOk(
      testing::RunRanks(2, [&](int rank) {  // harmless, and small ones are possible
        std::vector<float> small(10, 1.0F);
        return WaitFor(communicators[static_cast<std::size_t>(rank)]->AllReduce(
            std::span(small), ReduceOp::kSum, {.algorithm = "one_shot"}));
      }));
}

}  // namespace
}  // namespace cohort
