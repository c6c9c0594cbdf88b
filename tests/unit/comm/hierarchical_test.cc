#include <cohort/comm/hierarchical.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "testing/memory_store.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::Each;
using testing::ExpectAllOk;
using ::testing::HasSubstr;
using testing::MemoryStore;
using ::testing::Not;
using testing::RunRanks;

// fn on every rank of a group whose rank r is on the host that hosts[r] names; "" is this machine.
void RunOn(const std::string& hosts, const CommunicatorOptions& options,
           const std::function<Status(Communicator&)>& fn) {
  MemoryStore store;
  const auto size = static_cast<int>(hosts.size());
  ExpectAllOk(RunRanks(size, [&](int rank) -> Status {
    HierarchicalOptions hierarchical;
    hierarchical.tcp.connect_timeout = std::chrono::seconds(20);
    const char host = hosts[static_cast<std::size_t>(rank)];
    hierarchical.host = host == '-' ? std::string() : std::string(1, host);
    COHORT_ASSIGN_OR_RETURN(
        const std::unique_ptr<Communicator> mine,
        MakeHierarchicalCommunicator(rank, size, store, "job", hierarchical, options));
    return fn(*mine);
  }));
}

constexpr OperationKind kAllReduce = OperationKind::kAllReduce;

TEST(Hierarchical, OnlyWhereHostsHaveSeveralRanks) {
  RunOn("aabb", {}, [](Communicator& comm) -> Status {
    EXPECT_EQ(comm.backend(), "hierarchical");
    EXPECT_THAT(comm.algorithms(kAllReduce), Contains("hierarchical"));
    EXPECT_THAT(comm.algorithms(OperationKind::kAllGather), Not(Contains("hierarchical")));
    return {};
  });
  for (const std::string hosts : {"abc", "--"}) {  // each on its own; both here
    RunOn(hosts, {}, [](Communicator& comm) -> Status {
      EXPECT_NE(comm.backend(), "hierarchical");
      EXPECT_THAT(comm.algorithms(kAllReduce), Not(Contains("hierarchical")));
      return {};
    });
  }
}

// Several blocks, the last one short, and a rest that no slice holds; the mean divides once.
Status CheckBlocks(Communicator& comm, std::span<float> values) {
  const int n = comm.size();
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(n * (static_cast<int>(i % 5) + comm.rank()));
  }
  COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                          comm.AllReduce(values, ReduceOp::kMean));
  COHORT_RETURN_IF_ERROR(work->Wait());
  int wrong = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const int expected = n * static_cast<int>(i % 5) + n * (n - 1) / 2;
    wrong += values[i] == static_cast<float>(expected) ? 0 : 1;
  }
  EXPECT_EQ(wrong, 0);
  return {};
}

// In memory that only its process has, that the host's others read where it lies, and where one
// rank's is such.
TEST(Hierarchical, LargeBuffersGoInBlocks) {
  constexpr std::size_t kElements = 2'300'001;
  for (const std::string hosts : {"aabb", "aab", "abba", "aaabbb"}) {
    SCOPED_TRACE(hosts);
    RunOn(hosts, {}, [&](Communicator& comm) -> Status {
      std::vector<float> own(kElements);
      COHORT_RETURN_IF_ERROR(CheckBlocks(comm, own));
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> memory,
                              comm.Allocate(kElements * sizeof(float)));
      const std::span lent(reinterpret_cast<float*>(memory->bytes().data()), kElements);
      COHORT_RETURN_IF_ERROR(CheckBlocks(comm, lent));
      return CheckBlocks(comm, comm.rank() == 1 ? lent : std::span(own));
    });
  }
}

// The communicator's end, and that of the peers.
TEST(Hierarchical, MemoryOutlivesTheCommunicator) {
  std::vector<std::unique_ptr<Memory>> kept(4);
  RunOn("aabb", {}, [&](Communicator& comm) -> Status {
    constexpr std::size_t kElements = 100'000;
    COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Memory> memory,
                            comm.Allocate(kElements * sizeof(float)));
    COHORT_RETURN_IF_ERROR(
        CheckBlocks(comm, std::span(reinterpret_cast<float*>(memory->bytes().data()), kElements)));
    kept[static_cast<std::size_t>(comm.rank())] = std::move(memory);
    return {};
  });
  for (const std::unique_ptr<Memory>& memory : kept) {
    EXPECT_EQ(*reinterpret_cast<const float*>(memory->bytes().data()), 6);
  }
}

// Of one that says late where it is, and then does not come, all are told in the time for one.
TEST(Hierarchical, AllThatIsConnectedHasOneDeadline) {
  constexpr std::chrono::milliseconds kConnect{4000};
  MemoryStore store;
  const auto begun = std::chrono::steady_clock::now();
  const std::vector<Status> statuses = RunRanks(4, [&](int rank) -> Status {
    if (rank == 3) {
      std::this_thread::sleep_until(begun + kConnect / 2);
      COHORT_RETURN_IF_ERROR(store.Insert("job/1/host/3", "b"));
      return DeadlineExceeded("missing rank 3 (has not published an address)");
    }
    HierarchicalOptions hierarchical;
    hierarchical.tcp.connect_timeout = kConnect;
    hierarchical.host = rank < 2 ? "a" : "b";
    return MakeHierarchicalCommunicator(rank, 4, store, "job", hierarchical).status();
  });
  // A second deadline, counted from the late word, would be over at 6 s.
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::milliseconds(5800));
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(status.message(), HasSubstr("missing rank 3 (has not published an address)"));
  }
}

TEST(Hierarchical, DeterministicRefusesLayoutsThatDoNotKeepTheOrder) {
  CommunicatorOptions options;
  options.deterministic = true;
  for (const std::string hosts : {"abab", "aab", "aaabbb"}) {
    RunOn(hosts, options, [](Communicator& comm) -> Status {
      std::vector<float> values(10);
      EXPECT_THAT(comm.AllReduce(std::span(values), ReduceOp::kSum, {.algorithm = "hierarchical"})
                      .status()
                      .message(),
                  HasSubstr("canonical order"));
      return {};
    });
  }
  RunOn("aabbcc", options, [](Communicator& comm) -> Status {
    EXPECT_THAT(comm.algorithms(kAllReduce), Contains("hierarchical"));
    return {};
  });
}

TEST(Hierarchical, SaysWhetherAutoKeepsTheOrder) {
  for (const bool deterministic : {false, true}) {
    CommunicatorOptions options;
    options.deterministic = deterministic;
    for (const std::string hosts : {"abab", "aab", "aaabbb"}) {
      RunOn(hosts, options, [&](Communicator& comm) -> Status {
        EXPECT_EQ(comm.keeps_order("auto"), deterministic) << hosts;
        EXPECT_FALSE(comm.keeps_order("hierarchical")) << hosts;
        EXPECT_TRUE(comm.keeps_order("direct")) << hosts;
        return {};
      });
    }
    RunOn("aabbcc", options, [](Communicator& comm) -> Status {
      EXPECT_TRUE(comm.keeps_order("auto"));
      EXPECT_TRUE(comm.keeps_order("hierarchical"));
      EXPECT_FALSE(comm.keeps_order("ring"));
      return {};
    });
  }
}

TEST(Hierarchical, GoesAcrossHostsByTheAlgorithmThatIsAskedFor) {
  const auto make = [](const std::string& across, bool deterministic,
                       const std::function<Status(Communicator&)>& fn) {
    MemoryStore store;
    return RunRanks(6, [&](int rank) -> Status {
      HierarchicalOptions hierarchical;
      hierarchical.tcp.connect_timeout = std::chrono::seconds(20);
      hierarchical.host = std::to_string(rank / 2);
      hierarchical.across = across;
      CommunicatorOptions options;
      options.deterministic = deterministic;
      COHORT_ASSIGN_OR_RETURN(
          const std::unique_ptr<Communicator> mine,
          MakeHierarchicalCommunicator(rank, 6, store, "job", hierarchical, options));
      return fn(*mine);
    });
  };
  // The sums of the hosts are 1e8, -1e8 and 1: in this order 1, from the next one on 0.
  constexpr std::array<float, 6> kGiven = {1e8F, 0, -1e8F, 0, 1, 0};
  for (const std::string across : {"ring", "halving_doubling", "auto"}) {
    ExpectAllOk(make(across, false, [&](Communicator& comm) -> Status {
      EXPECT_EQ(comm.keeps_order("hierarchical"), across != "ring");
      std::vector<float> values(600'000, kGiven[static_cast<std::size_t>(comm.rank())]);
      COHORT_ASSIGN_OR_RETURN(const auto work, comm.AllReduce(std::span(values), ReduceOp::kSum,
                                                              {.algorithm = "hierarchical"}));
      COHORT_RETURN_IF_ERROR(work->Wait());
      EXPECT_EQ(std::ranges::count(values, 0.0F) > 0, across == "ring") << across;
      EXPECT_THAT(values, Each(AnyOf(1.0F, 0.0F)));
      return {};
    }));
  }
  const auto never = [](Communicator&) { return OkStatus(); };
  for (const auto& [across, deterministic, why] :
       {std::tuple("rings", false, "AllReduce has no algorithm 'rings'"),
        std::tuple("ring", true, "AllReduce by 'ring' does not combine in the canonical order")}) {
    for (const Status& status : make(across, deterministic, never)) {
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
      EXPECT_THAT(status.message(), HasSubstr(std::string("across hosts: ") + why));
      EXPECT_THAT(status.message(), HasSubstr("[choose one of auto, "));
    }
  }
}

// What one rank learns inside its host, or across, all ranks hear.
TEST(Hierarchical, AFailureInsideAHostReachesAllRanks) {
  for (const std::string hosts : {"aabb", "aaab"}) {
    MemoryStore store;
    const auto size = static_cast<int>(hosts.size());
    const std::vector<Status> statuses = RunRanks(size, [&](int rank) -> Status {
      HierarchicalOptions hierarchical;
      hierarchical.host = std::string(1, hosts[static_cast<std::size_t>(rank)]);
      std::vector<float> values(3'000'000);
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> comm,
                              MakeHierarchicalCommunicator(rank, size, store, "job", hierarchical));
      for (int round = 0; round < 3; ++round) {
        if (rank == 1 && round == 2) {
          comm->Abort(Aborted("the loss is NaN"));
        }
        Communicator::Pending pending = comm->AllReduce(std::span(values), ReduceOp::kSum);
        COHORT_RETURN_IF_ERROR(pending.status());
        COHORT_RETURN_IF_ERROR(pending.value()->Wait());
      }
      return {};
    });
    for (const Status& status : statuses) {
      EXPECT_EQ(status.code(), StatusCode::kAborted) << status.ToString();
      EXPECT_THAT(status.message(), HasSubstr("rank 1 aborted the communicator: the loss is NaN"));
    }
  }
}

}  // namespace
}  // namespace cohort
