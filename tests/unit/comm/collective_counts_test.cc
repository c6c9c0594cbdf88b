// What communicators count for Prometheus, as the page shows it.
#include <cohort/comm/hierarchical.h>
#include <cohort/comm/local.h>
#include <cohort/comm/nccl.h>
#include <cohort/comm/tcp.h>
#include <cohort/core/metrics.h>
#include <gmock/gmock.h>

#include <numeric>
#include <vector>

#include "nccl/nccl_communicator.h"
#include "testing/fake_nccl.h"
#include "testing/memory_store.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using ::testing::AllOf;
using testing::ExpectAllOk;
using ::testing::HasSubstr;
using testing::MemoryStore;
using ::testing::Not;
using testing::RunRanks;

Status Await(Communicator::Pending pending) {
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

// Three sums of ten floats by name, and one of each of the others, of four.
Status RunAll(Communicator& comm) {
  const auto n = static_cast<std::size_t>(comm.size());
  std::vector<float> ten(10, 1.0F);
  for (int i = 0; i < 3; ++i) {
    COHORT_RETURN_IF_ERROR(
        Await(comm.AllReduce(std::span(ten), ReduceOp::kSum, {.algorithm = "ring"})));
  }
  std::vector<float> one(4);
  std::vector<float> all(4 * n);
  COHORT_RETURN_IF_ERROR(Await(comm.Broadcast(std::span(one), 0)));
  COHORT_RETURN_IF_ERROR(
      Await(comm.AllGather(std::span(one), std::span(all), {.algorithm = "direct"})));
  COHORT_RETURN_IF_ERROR(Await(
      comm.ReduceScatter(std::span(all), std::span(one), ReduceOp::kSum, {.algorithm = "direct"})));
  std::vector<float> others(4 * n);
  const std::vector<std::int64_t> counts(n, 4);
  COHORT_RETURN_IF_ERROR(Await(comm.AllToAllV(std::span(all), counts, std::span(others), counts)));
  if (comm.rank() < 2) {
    COHORT_RETURN_IF_ERROR(comm.rank() == 0 ? Await(comm.Send(std::span(one), 1))
                                            : Await(comm.Receive(std::span(one), 0)));
  }
  return Await(comm.Barrier());
}

TEST(CollectiveCounts, EveryOperationIsCountedWithItsBytes) {
  constexpr int kRanks = 3;
  std::vector<Metrics> metrics(kRanks);
  MemoryStore store;
  ExpectAllOk(RunRanks(kRanks, [&](int rank) -> Status {
    CommunicatorOptions options;
    options.metrics = &metrics[static_cast<std::size_t>(rank)];
    COHORT_ASSIGN_OR_RETURN(
        const auto comm,
        MakeTcpCommunicator(rank, kRanks, store, "job",
                            {.connect_timeout = std::chrono::seconds(20)}, options));
    return RunAll(*comm);
  }));
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_THAT(
        "\n" + metrics[static_cast<std::size_t>(rank)].ToText(),
        AllOf(HasSubstr("\n# TYPE cohort_allreduce_bytes_total counter\n"),
              HasSubstr("\ncohort_allreduce_operations_total{algorithm=\"ring\"} 3\n"),
              HasSubstr("\ncohort_allreduce_bytes_total{algorithm=\"ring\"} 120\n"),
              HasSubstr("\ncohort_broadcast_bytes_total{algorithm=\"tree\"} 16\n"),
              HasSubstr("\ncohort_allgather_bytes_total{algorithm=\"direct\"} 48\n"),
              HasSubstr("\ncohort_reducescatter_bytes_total{algorithm=\"direct\"} 48\n"),
              HasSubstr("\ncohort_alltoallv_bytes_total{algorithm=\"direct\"} 48\n"),
              HasSubstr("\ncohort_barrier_operations_total{algorithm=\"dissemination\"} 1\n"),
              Not(HasSubstr("cohort_barrier_bytes_total"))));
    const bool sent =
        metrics[static_cast<std::size_t>(rank)].ToText().find(
            "cohort_send_bytes_total{algorithm=\"direct\"} 16\n") != std::string::npos;
    EXPECT_EQ(sent, rank == 0);
  }
}

// The call itself begins and the wait ends these, past the queue.
TEST(CollectiveCounts, SmallOnesOfThreadsAreCountedToo) {
  Metrics metrics;  // of both ranks, which share a process
  CommunicatorOptions options;
  options.metrics = &metrics;
  auto communicators = MakeLocalCommunicators(2, options);
  ExpectAllOk(RunRanks(2, [&](int rank) -> Status {
    Communicator& comm = *communicators[static_cast<std::size_t>(rank)];
    for (const std::size_t count : {10U, 100'000U}) {
      std::vector<float> values(count);
      for (int i = 0; i < 50; ++i) {
        COHORT_RETURN_IF_ERROR(Await(comm.AllReduce(std::span(values), ReduceOp::kSum)));
      }
    }
    return {};
  }));
  EXPECT_THAT(metrics.ToText(),
              AllOf(HasSubstr("cohort_allreduce_operations_total{algorithm=\"one_shot\"} 100\n"),
                    HasSubstr("cohort_allreduce_bytes_total{algorithm=\"one_shot\"} 4000\n"),
                    HasSubstr("cohort_allreduce_bytes_total{algorithm=\"shared\"} 40000000\n")));
}

// What "auto" took is what is told, and what a rank gave up is not counted.
TEST(CollectiveCounts, FailuresAreNotCounted) {
  std::vector<Metrics> metrics(2);
  MemoryStore store;
  ExpectAllOk(RunRanks(2, [&](int rank) -> Status {
    CommunicatorOptions options;
    options.metrics = &metrics[static_cast<std::size_t>(rank)];
    options.cost = CostParameters();
    COHORT_ASSIGN_OR_RETURN(
        const auto comm,
        MakeTcpCommunicator(rank, 2, store, "job", {.connect_timeout = std::chrono::seconds(20)},
                            options));
    std::vector<float> values(rank == 0 ? 5 : 6);
    const Status differs = Await(comm->AllReduce(std::span(values), ReduceOp::kSum));
    EXPECT_EQ(differs.code(), StatusCode::kInvalidArgument) << differs.ToString();
    values.resize(7);
    return Await(comm->AllReduce(std::span(values), ReduceOp::kSum));
  }));
  for (const Metrics& mine : metrics) {
    const std::string page = mine.ToText();
    EXPECT_THAT(page, AllOf(HasSubstr("} 28\n"), Not(HasSubstr("algorithm=\"auto\""))));
    EXPECT_THAT(page, AllOf(HasSubstr("cohort_allreduce_operations_total{algorithm="),
                            HasSubstr("} 1\n"), Not(HasSubstr("} 2\n"))));
  }
}

// It is made of operations of two other communicators, which are not the caller's.
TEST(CollectiveCounts, AHierarchicalOneIsCountedOnce) {
  constexpr int kRanks = 4;
  std::vector<Metrics> metrics(kRanks);
  MemoryStore store;
  ExpectAllOk(RunRanks(kRanks, [&](int rank) -> Status {
    CommunicatorOptions options;
    options.metrics = &metrics[static_cast<std::size_t>(rank)];
    HierarchicalOptions hierarchical;
    hierarchical.tcp.connect_timeout = std::chrono::seconds(20);
    hierarchical.host = "host " + std::to_string(rank / 2);
    COHORT_ASSIGN_OR_RETURN(
        const auto comm,
        MakeHierarchicalCommunicator(rank, kRanks, store, "job", hierarchical, options));
    std::vector<float> values(100'000);
    return Await(comm->AllReduce(std::span(values), ReduceOp::kSum, {.algorithm = "hierarchical"}));
  }));
  for (const Metrics& mine : metrics) {
    const std::string page = mine.ToText();
    EXPECT_THAT(page,
                HasSubstr("cohort_allreduce_bytes_total{algorithm=\"hierarchical\"} 400000\n"));
    EXPECT_THAT(page, Not(HasSubstr("algorithm=\"shared\"")));
    EXPECT_THAT(page, Not(HasSubstr("algorithm=\"one_shot\"")));
  }
}

TEST(CollectiveCounts, NcclIsCountedLikewise) {
  Metrics metrics;  // of both
  auto world = std::make_shared<testing::FakeNccl::World>();
  auto store = std::make_shared<MemoryStore>();
  ExpectAllOk(RunRanks(2, [&](int rank) -> Status {
    NcclOptions nccl;
    nccl.device = testing::MakeFakeGpu(static_cast<std::uint64_t>(rank));
    CommunicatorOptions options;
    options.metrics = &metrics;
    COHORT_ASSIGN_OR_RETURN(const auto comm,
                            MakeNcclCommunicatorOn(std::make_shared<testing::FakeNccl>(
                                                       world, "GPU-" + std::to_string(rank)),
                                                   rank, 2, store, "job", nccl, options));
    std::vector<float> one(4);
    std::vector<float> all(8);
    COHORT_RETURN_IF_ERROR(Await(comm->AllReduce(std::span(one), ReduceOp::kSum)));
    return Await(comm->AllGather(std::span(one), std::span(all)));
  }));
  EXPECT_THAT(metrics.ToText(),
              AllOf(HasSubstr("cohort_allreduce_operations_total{algorithm=\"nccl\"} 2\n"),
                    HasSubstr("cohort_allreduce_bytes_total{algorithm=\"nccl\"} 32\n"),
                    HasSubstr("cohort_allgather_bytes_total{algorithm=\"nccl\"} 64\n")));
}

}  // namespace
}  // namespace cohort
