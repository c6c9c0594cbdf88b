// The communicator suite over MPI_COMM_WORLD: one process of `mpirun` each, all of them run every
// test.
//
//   mpi_conformance [--funneled] LIBRARY
//
// LIBRARY: what MPI must be, "Open MPI" or "MPICH". --funneled: cohort initialises MPI, with
// MPI_THREAD_FUNNELED only; otherwise this program does, with MPI_THREAD_SERIALIZED.
#include <cohort/comm/mpi.h>
#include <gtest/gtest.h>
#include <mpi.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "conformance/communicator_conformance.h"
#include "mpi/mpi_runtime.h"
#include "mpi/mpi_transport.h"

namespace {
std::atomic<int> sends = 0;  // of messages, by this process
}

extern "C" {
int MPI_Isend(const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
              MPI_Request* request) {
  ++sends;
  return PMPI_Isend(data, count, type, to, tag, comm, request);
}
int MPI_Issend(const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
               MPI_Request* request) {
  ++sends;
  return PMPI_Issend(data, count, type, to, tag, comm, request);
}
}

namespace cohort::testing {
namespace {

struct Job {  // of this process
  bool funneled = false;
  int size = 1;
};
Job& ThisJob() {
  static Job job;
  return job;
}

RunGroup RunMpi(const std::string& implementation) {
  return [implementation](int /*size*/, const CommunicatorOptions& options,
                          const std::function<Status(Communicator&)>& fn) -> std::vector<Status> {
    const auto make = [&](const CommunicatorOptions& o) {
      return MakeMpiCommunicator({.implementation = implementation, .funneled = ThisJob().funneled},
                                 o);
    };
    return {RunGenerations(options, make, fn)};
  };
}

std::vector<CommunicatorCase> Cases(int least) {
  const int size = ThisJob().size;
  if (size < least) {
    return {};
  }
  return {{"mpi", RunMpi("cohort"), size, 64},
          {"mpi", RunMpi("cohort"), size, 0},
          {"mpi_native", RunMpi("mpi"), size, 0, /*deterministic=*/false}};
}

INSTANTIATE_TEST_SUITE_P(Mpi, CommunicatorConformance, ::testing::ValuesIn(Cases(1)),
                         CommunicatorCaseName);
INSTANTIATE_TEST_SUITE_P(Mpi, CommunicatorFailureConformance, ::testing::ValuesIn(Cases(2)),
                         CommunicatorCaseName);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorFailureConformance);

TEST(MpiCommunicator, SegmentsLargerThanAMessageAreRefused) {
  CommunicatorOptions options;
  options.segment_bytes = std::int64_t{1} << 31;
  const Status refused = MakeMpiCommunicator({.funneled = ThisJob().funneled}, options).status();
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(refused.message().find("segments of 2147483648 bytes"), std::string::npos)
      << refused.ToString();
}

// The quietest of many rounds: where a rank waits for 2 ms, it tells the next.
TEST(MpiCommunicator, SendsNothingBesidesWhatItsAlgorithmSends) {
  const int size = ThisJob().size;
  const auto comm = OrThrow(MakeMpiCommunicator({.funneled = ThisJob().funneled}));
  for (const char* const algorithm : {"ring", "direct"}) {
    int least = INT32_MAX;
    for (int round = 0; round < 300; ++round) {
      const int before = sends;
      std::vector<float> values(1'000, 1.0F);
      const auto work =
          OrThrow(comm->AllReduce(std::span(values), ReduceOp::kSum, {.algorithm = algorithm}));
      ASSERT_TRUE(work->Wait().ok());
      least = std::min(least, sends - before);
    }
    EXPECT_EQ(least, 2 * (size - 1)) << algorithm;
  }
}

std::chrono::microseconds ProcessorTime() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto of = [](const timeval& time) {
    return std::chrono::seconds(time.tv_sec) + std::chrono::microseconds(time.tv_usec);
  };
  return of(usage.ru_utime) + of(usage.ru_stime);
}

// Rank 0 comes a second late: nobody takes the core meanwhile, in an operation or outside. 2 % of
// it for each communicator; the program keeps another where cohort has initialised MPI.
TEST(MpiCommunicator, WaitingRanksTakeNoCore) {
  constexpr std::chrono::milliseconds kWait{1000};
  const auto most = kWait / 50 * (ThisJob().funneled ? 2 : 1);
  const auto comm = OrThrow(MakeMpiCommunicator({.funneled = ThisJob().funneled}));
  for (const std::size_t count : {std::size_t{100}, std::size_t{1} << 20}) {
    std::vector<float> values(count, 1.0F);
    const auto reduce = [&](ReduceOp op) {
      return OrThrow(comm->AllReduce(std::span(values), op))->Wait().ok();
    };
    float much = 1;  // on some rank; once again then, since others may have disturbed it
    for (int attempt = 0; attempt < 5 && much != 0; ++attempt) {
      ASSERT_TRUE(reduce(ReduceOp::kMax));
      const bool late = comm->rank() == 0;
      const auto before = ProcessorTime();
      if (late) {
        std::this_thread::sleep_for(kWait);
      }
      auto used = ProcessorTime() - before;
      ASSERT_TRUE(reduce(ReduceOp::kMax));
      if (!late) {
        used = ProcessorTime() - before;
      }
      RecordProperty((late ? "outside_us_" : "inside_us_") + std::to_string(count),
                     static_cast<int>(used.count()));
      much = used < most ? 0 : 1;
      ASSERT_TRUE(OrThrow(comm->AllReduce(std::span(&much, 1), ReduceOp::kMax))->Wait().ok());
    }
    EXPECT_EQ(much, 0) << count << " elements";
  }
}

class Heard final : public TransportListener {
 public:
  bool OnControl(int /*peer*/, FrameKind /*kind*/, Bytes /*body*/) override { return true; }
  void OnLost(int peer, const Status& why) override {
    ADD_FAILURE() << "rank " << peer << ": " << why.ToString();
  }
  void OnWrongSize(int peer, std::size_t sent, std::size_t expected) override {
    ADD_FAILURE() << "rank " << peer << ": " << sent << " for " << expected;
  }
};

// Rank 1 comes to its group when rank 0 has it. What goes within the group and outside is told
// apart. Ranks 0 and 1; the others only make the communicator.
TEST(MpiTransport, AGroupIsMadeWithoutWaitingForItsMembers) {
  if (ThisJob().size < 2) {
    GTEST_SKIP() << "one rank";
  }
  constexpr int kGoTag = 20012;  // on MPI_COMM_WORLD
  using namespace std::chrono_literals;
  const std::shared_ptr<MpiRuntime> runtime =
      OrThrow(MpiRuntime::Get(ThisJob().funneled ? MPI_THREAD_FUNNELED : MPI_THREAD_SERIALIZED));
  int rank = 0;
  MPI_Comm comm = MPI_COMM_NULL;
  runtime->Call([&] {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  });
  if (rank > 1) {
    return;
  }
  Heard heard;
  const std::unique_ptr<Transport> all = MakeMpiTransport(runtime, comm, /*native=*/false);
  all->Attach(&heard);
  const Deadline deadline = DeadlineAfter(20s);
  const std::string mine = OrThrow(all->Offer());
  int offers[2] = {};
  offers[rank] = std::stoi(mine);
  runtime->Call([&] {
    MPI_Sendrecv(&offers[rank], 1, MPI_INT, 1 - rank, kGoTag, &offers[1 - rank], 1, MPI_INT,
                 1 - rank, kGoTag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  });
  for (int told = 0; rank == 1 && told == 0;) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "rank 0 waits for rank 1";
    all->Progress(DeadlineAfter(1ms));
    runtime->Call([&] { MPI_Iprobe(0, kGoTag, MPI_COMM_WORLD, &told, MPI_STATUS_IGNORE); });
  }
  const std::unique_ptr<Transport> group = OrThrow(all->Join(
      "1.0", {1, 0}, 1 - rank, {std::to_string(offers[1]), std::to_string(offers[0])}, deadline));
  group->Attach(&heard);
  if (rank == 0) {
    runtime->Call([&] { MPI_Send(nullptr, 0, MPI_BYTE, 1, kGoTag, MPI_COMM_WORLD); });
    const std::vector<float> within(10, 1.0F);
    const std::vector<float> outside(10, 2.0F);
    group->Send(0, std::as_bytes(std::span(within)));
    all->Send(1, std::as_bytes(std::span(outside)));
  } else {
    runtime->Call(
        [&] { MPI_Recv(nullptr, 0, MPI_BYTE, 0, kGoTag, MPI_COMM_WORLD, MPI_STATUS_IGNORE); });
    std::vector<float> values(10);
    const auto receive = [&](Transport& from, int peer) {
      const Ticket ticket =
          from.Receive(peer, std::as_writable_bytes(std::span(values)), CombineWith{});
      while (!from.Done(ticket) && std::chrono::steady_clock::now() < deadline) {
        from.Progress(DeadlineAfter(1ms));
      }
      return from.Done(ticket) ? values[9] : -1.0F;
    };
    EXPECT_EQ(receive(*all, 0), 2.0F);
    EXPECT_EQ(receive(*group, 1), 1.0F);
  }
  group->Close(deadline);
  all->Close(deadline);
}

// Frames that nobody asks for, one after the other: the peer is stopped, and goes on as they are
// asked for. Ranks 0 and 1; the others only make the communicator.
TEST(MpiTransport, WhatNobodyAsksForIsKeptUpToABound) {
  if (ThisJob().size < 2) {
    GTEST_SKIP() << "one rank";
  }
  constexpr std::size_t kFrames = 4096;
  constexpr std::size_t kElements = 1024;  // 4 KiB: a frame that holds its body
  constexpr int kGoTag = 20012;            // on MPI_COMM_WORLD
  using namespace std::chrono_literals;
  const std::shared_ptr<MpiRuntime> runtime =
      OrThrow(MpiRuntime::Get(ThisJob().funneled ? MPI_THREAD_FUNNELED : MPI_THREAD_SERIALIZED));
  int rank = 0;
  MPI_Comm comm = MPI_COMM_NULL;
  runtime->Call([&] {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  });
  if (rank > 1) {
    return;
  }
  Heard heard;
  const std::unique_ptr<Transport> transport = MakeMpiTransport(runtime, comm, /*native=*/false);
  transport->Attach(&heard);
  const Deadline deadline = DeadlineAfter(60s);
  const auto await = [&](const Ticket& ticket) {
    while (!transport->Done(ticket) && std::chrono::steady_clock::now() < deadline) {
      transport->Progress(DeadlineAfter(10ms));
    }
    return transport->Done(ticket);
  };
  if (rank == 0) {
    std::vector<std::vector<float>> sent;
    std::vector<Ticket> tickets;
    for (std::size_t i = 0; i < kFrames; ++i) {
      sent.emplace_back(kElements, static_cast<float>(i));
      tickets.push_back(transport->Send(1, std::as_bytes(std::span(sent.back()))));
    }
    std::size_t done = 0;
    for (int quiet = 0; done < kFrames && quiet < (done < 100 ? 5'000 : 300); ++quiet) {
      transport->Progress(DeadlineAfter(1ms));
      for (; done < kFrames && transport->Done(tickets[done]); ++done) {
        quiet = 0;
      }
    }
    EXPECT_LT(done, kFrames / 2) << "who asks for none of them has taken 8 MiB";
    EXPECT_GE(done, 100U) << "small ones are kept";
    runtime->Call([&] { MPI_Send(nullptr, 0, MPI_BYTE, 1, kGoTag, MPI_COMM_WORLD); });
    EXPECT_TRUE(await(tickets.back())) << "what is asked for does not arrive";
  } else {
    int told = 0;
    while (told == 0) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline);
      transport->Progress(DeadlineAfter(1ms));
      runtime->Call([&] { MPI_Iprobe(0, kGoTag, MPI_COMM_WORLD, &told, MPI_STATUS_IGNORE); });
    }
    runtime->Call(
        [&] { MPI_Recv(nullptr, 0, MPI_BYTE, 0, kGoTag, MPI_COMM_WORLD, MPI_STATUS_IGNORE); });
    for (std::size_t i = 0; i < kFrames; ++i) {
      std::vector<float> values(kElements, -1.0F);
      const Ticket ticket =
          transport->Receive(0, std::as_writable_bytes(std::span(values)), CombineWith{});
      ASSERT_TRUE(await(ticket)) << "stuck at frame " << i;
      ASSERT_EQ(values, std::vector<float>(kElements, static_cast<float>(i)));
    }
  }
  transport->Close(deadline);
}

}  // namespace
}  // namespace cohort::testing

namespace cohort::testing {
namespace {

int Main(int argc, char** argv) {
  Job& job = ThisJob();
  job.funneled = argc > 2 && std::string(argv[argc - 2]) == "--funneled";
  const std::string library = argv[argc - 1];
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(version, &length);
  if (argc < 2 || std::string(version).rfind(library, 0) != 0) {
    std::fprintf(stderr, "this program has %s, not '%s'\n", version, library.c_str());
    return 1;
  }
  std::unique_ptr<Communicator> keep;  // cohort's MPI ends with its last communicator
  if (job.funneled) {
    keep = OrThrow(MakeMpiCommunicator({.funneled = true}));
    job.size = keep->size();
  } else {
    int level = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
    MPI_Comm_size(MPI_COMM_WORLD, &job.size);
  }
  ::testing::InitGoogleTest(&argc, argv);  // which asks for the cases
  const int result = RUN_ALL_TESTS();
  if (job.funneled) {
    keep.reset();
  } else {
    MPI_Finalize();
  }
  return result;
}

}  // namespace
}  // namespace cohort::testing

int main(int argc, char** argv) { return cohort::testing::Main(argc, argv); }
