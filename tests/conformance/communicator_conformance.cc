#include "conformance/communicator_conformance.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>

#include "conformance/communicator_checks.h"
#include "testing/run_ranks.h"

namespace cohort::testing {

Status RunGenerations(const CommunicatorOptions& options, const MakeCommunicator& make,
                      const std::function<Status(Communicator&)>& fn) {
  std::unique_ptr<Communicator> mine;
  CommunicatorOptions each = options;
  for (each.generation = 1; each.generation <= options.generation; ++each.generation) {
    COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> made, make(each));
    mine = std::move(made);
    COHORT_RETURN_IF_ERROR(fn(*mine));
  }
  return {};
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorConformance);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorFailureConformance);

CommunicatorOptions CommunicatorConformance::options() const {
  CommunicatorOptions options;
  options.timeout = std::chrono::seconds(30);
  options.segment_bytes = GetParam().segment_bytes;
  options.peer_name = [](int rank) { return "worker:" + std::to_string(rank); };
  return options;
}

void CommunicatorConformance::Run(const std::function<Status(Communicator&)>& fn) {
  ExpectAllOk(GetParam().run(size(), options(), fn));
}

void CommunicatorFailureConformance::RunAndExpect(const CommunicatorOptions& options,
                                                  StatusCode code,
                                                  const std::vector<std::string>& parts,
                                                  const std::function<Status(Communicator&)>& fn) {
  for (const Status& status : GetParam().run(size(), options, fn)) {
    EXPECT_EQ(status.code(), code) << status.ToString();
    for (const std::string& part : parts) {
      EXPECT_THAT(status.message(), ::testing::HasSubstr(part));
    }
  }
}

TEST_P(CommunicatorConformance, KnowsItsPlace) {
  Run([&](Communicator& comm) {
    return Check(comm.size() == size() && comm.rank() >= 0 && comm.rank() < size() &&
                     comm.generation() == 1 &&
                     comm.peer_name(comm.rank()) == "worker:" + std::to_string(comm.rank()),
                 "rank " + std::to_string(comm.rank()));
  });
}

TEST_P(CommunicatorConformance, AllReduceIsExactForEveryTypeAndReduction) {
  Run([](Communicator& comm) -> Status {
    for (const DType dtype : kDTypes) {
      for (const ReduceOp op : kReduceOps) {
        for (const std::string& algorithm : Algorithms(comm, OperationKind::kAllReduce)) {
          COHORT_RETURN_IF_ERROR(CheckAllReduce(comm, dtype, op, 37, algorithm));
          COHORT_RETURN_IF_ERROR(CheckAllReduce(comm, dtype, op, 37, algorithm, Place::kOut));
        }
      }
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, AllReduceOfEverySize) {
  Run([](Communicator& comm) -> Status {
    for (const std::string& algorithm : Algorithms(comm, OperationKind::kAllReduce)) {
      for (const std::int64_t count : Counts(comm.size())) {
        for (const Place place : {Place::kIn, Place::kOut}) {
          COHORT_RETURN_IF_ERROR(
              CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, count, algorithm, place));
        }
      }
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, AllReduceLargerThanEverySegment) {
  const std::int64_t count = GetParam().segment_bytes > 0 ? 20001 : 3'000'001;
  Run([&](Communicator& comm) -> Status {
    for (const std::string& algorithm : Algorithms(comm, OperationKind::kAllReduce)) {
      COHORT_RETURN_IF_ERROR(
          CheckAllReduce(comm, DType::kFloat32, ReduceOp::kMean, count, algorithm));
      COHORT_RETURN_IF_ERROR(
          CheckAllReduce(comm, DType::kBFloat16, ReduceOp::kMax, count, algorithm, Place::kOut));
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, AllReduceGivesAllRanksTheSameBitsEveryTime) {
  Run([](Communicator& comm) -> Status {
    for (const std::string& algorithm : Algorithms(comm, OperationKind::kAllReduce)) {
      std::vector<float> first;
      for (int round = 0; round < 3; ++round) {
        std::mt19937 random(static_cast<unsigned>(comm.rank()));
        std::vector<float> values(1531);
        for (float& value : values) {
          value = std::ldexp(static_cast<float>(random()), static_cast<int>(random() % 40) - 20);
        }
        COHORT_RETURN_IF_ERROR(
            WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum, {.algorithm = algorithm})));
        std::vector<float> all(values.size() * static_cast<std::size_t>(comm.size()));
        COHORT_RETURN_IF_ERROR(WaitFor(comm.AllGather(std::span(values), std::span(all))));
        for (std::size_t i = 0; i < all.size(); ++i) {
          COHORT_RETURN_IF_ERROR(Check(std::bit_cast<std::uint32_t>(all[i]) ==
                                           std::bit_cast<std::uint32_t>(values[i % values.size()]),
                                       "ranks differ by " + algorithm));
        }
        COHORT_RETURN_IF_ERROR(Check(round == 0 || values == first, "rounds differ"));
        first = values;
      }
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, ReduceToEveryRoot) {
  Run([](Communicator& comm) -> Status {
    for (const std::string& algorithm : Algorithms(comm, OperationKind::kReduce)) {
      for (int root = 0; root < comm.size(); ++root) {
        for (const std::int64_t count : {0, 1, 16, 17, 1000}) {
          COHORT_RETURN_IF_ERROR(
              CheckReduce(comm, DType::kFloat32, ReduceOp::kSum, count, root, algorithm));
        }
      }
      for (const DType dtype : kDTypes) {
        for (const ReduceOp op : kReduceOps) {
          COHORT_RETURN_IF_ERROR(CheckReduce(comm, dtype, op, 19, comm.size() - 1, algorithm));
        }
      }
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, ReduceScatter) {
  Run([](Communicator& comm) -> Status {
    for (const std::string& algorithm : Algorithms(comm, OperationKind::kReduceScatter)) {
      for (const std::int64_t count : Counts(comm.size())) {
        for (const Place place : {Place::kIn, Place::kOut}) {
          COHORT_RETURN_IF_ERROR(
              CheckReduceScatter(comm, DType::kFloat32, ReduceOp::kSum, count, algorithm, place));
        }
      }
      for (const DType dtype : kDTypes) {
        for (const ReduceOp op : kReduceOps) {
          COHORT_RETURN_IF_ERROR(CheckReduceScatter(comm, dtype, op, 19, algorithm));
        }
      }
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, AllGather) {
  Run([](Communicator& comm) -> Status {
    std::vector<std::int64_t> counts = Counts(comm.size());
    counts.push_back(40000);
    for (const std::string& algorithm : Algorithms(comm, OperationKind::kAllGather)) {
      for (const std::int64_t count : counts) {
        for (const Place place : {Place::kIn, Place::kOut}) {
          std::vector<std::int32_t> mine = Numbers(comm.rank(), count);
          std::vector<std::int32_t> all(mine.size() * static_cast<std::size_t>(comm.size()));
          std::vector<std::int32_t> expected;
          for (int r = 0; r < comm.size(); ++r) {
            const std::vector<std::int32_t> part = Numbers(r, count);
            expected.insert(expected.end(), part.begin(), part.end());
          }
          std::span<std::int32_t> input(mine);
          if (place == Place::kIn) {
            input = std::span(all).subspan(static_cast<std::size_t>(comm.rank()) * mine.size(),
                                           mine.size());
            std::copy(mine.begin(), mine.end(), input.begin());
          }
          COHORT_RETURN_IF_ERROR(
              WaitFor(comm.AllGather(input, std::span(all), {.algorithm = algorithm})));
          COHORT_RETURN_IF_ERROR(Check(all == expected, "AllGather by " + algorithm));
        }
      }
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, AllGatherVOfUnevenParts) {
  Run([](Communicator& comm) -> Status {
    std::vector<std::int64_t> counts;
    std::vector<std::int32_t> expected;
    for (int r = 0; r < comm.size(); ++r) {
      counts.push_back(r % 3 == 1 ? 0 : 100 * r + 1);
      const std::vector<std::int32_t> part = Numbers(r, counts.back());
      expected.insert(expected.end(), part.begin(), part.end());
    }
    const auto before =
        std::accumulate(counts.begin(), counts.begin() + comm.rank(), std::int64_t{0});
    for (const std::string& algorithm : Algorithms(comm, OperationKind::kAllGatherV)) {
      for (const Place place : {Place::kIn, Place::kOut}) {
        const std::vector<std::int32_t> mine =
            Numbers(comm.rank(), counts[static_cast<std::size_t>(comm.rank())]);
        std::vector<std::int32_t> all(expected.size());
        std::span<const std::int32_t> input(mine);
        if (place == Place::kIn) {
          std::ranges::copy(mine, all.begin() + before);
          input = std::span(all).subspan(static_cast<std::size_t>(before), mine.size());
        }
        COHORT_RETURN_IF_ERROR(
            WaitFor(comm.AllGatherV(input, std::span(all), counts, {.algorithm = algorithm})));
        COHORT_RETURN_IF_ERROR(Check(all == expected, "AllGatherV by " + algorithm));
      }
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, BroadcastFromEveryRoot) {
  Run([](Communicator& comm) -> Status {
    for (const std::string& algorithm : Algorithms(comm, OperationKind::kBroadcast)) {
      for (int root = 0; root < comm.size(); ++root) {
        for (const std::int64_t count : {0, 1, 77, 5000}) {
          std::vector<std::int32_t> values = Numbers(comm.rank(), count);
          COHORT_RETURN_IF_ERROR(
              WaitFor(comm.Broadcast(std::span(values), root, {.algorithm = algorithm})));
          COHORT_RETURN_IF_ERROR(
              Check(values == Numbers(root, count),
                    "Broadcast of " + std::to_string(root) + " by " + algorithm));
        }
      }
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, AllToAll) {
  Run([](Communicator& comm) -> Status {
    const auto n = static_cast<std::size_t>(comm.size());
    for (const std::size_t count : {0U, 1U, 300U}) {
      std::vector<std::int64_t> input(count * n);
      std::vector<std::int64_t> output(count * n, -1);
      for (std::size_t i = 0; i < input.size(); ++i) {
        input[i] = comm.rank() * 100000 + static_cast<std::int64_t>(i);
      }
      COHORT_RETURN_IF_ERROR(WaitFor(comm.AllToAll(std::span(input), std::span(output))));
      for (std::size_t i = 0; i < output.size(); ++i) {
        const auto from = static_cast<std::int64_t>(i / count);
        const auto place =
            static_cast<std::int64_t>(static_cast<std::size_t>(comm.rank()) * count + i % count);
        COHORT_RETURN_IF_ERROR(Check(output[i] == from * 100000 + place, "AllToAll"));
      }
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, AllToAllVOfUnevenParts) {
  // Rank a gives rank b (2a + 3b) % 5 * 41 elements.
  const auto count = [](int a, int b) -> std::int64_t { return (2 * a + 3 * b) % 5 * 41; };
  Run([&](Communicator& comm) -> Status {
    std::vector<std::int64_t> send_counts;
    std::vector<std::int64_t> receive_counts;
    std::vector<std::int32_t> input;
    std::vector<std::int32_t> expected;
    for (int r = 0; r < comm.size(); ++r) {
      send_counts.push_back(count(comm.rank(), r));
      receive_counts.push_back(count(r, comm.rank()));
      const auto append = [](std::vector<std::int32_t>& to, const std::vector<std::int32_t>& more) {
        to.insert(to.end(), more.begin(), more.end());
      };
      append(input, Numbers(comm.rank() * 10 + r, send_counts.back()));
      append(expected, Numbers(r * 10 + comm.rank(), receive_counts.back()));
    }
    std::vector<std::int32_t> output(expected.size());
    COHORT_RETURN_IF_ERROR(
        WaitFor(comm.AllToAllV(std::span(input), send_counts, std::span(output), receive_counts)));
    return Check(output == expected, "AllToAllV");
  });
}

TEST_P(CommunicatorConformance, SendAndReceiveBetweenCollectives) {
  Run([](Communicator& comm) -> Status {
    const int last = comm.size() - 1;
    for (const std::int64_t count : {0, 3, 30000}) {
      COHORT_RETURN_IF_ERROR(WaitFor(comm.Barrier()));
      if (last > 0 && comm.rank() == 0) {
        const std::vector<std::int32_t> mine = Numbers(7, count);
        COHORT_RETURN_IF_ERROR(WaitFor(comm.Send(std::span(mine), last, {.name = "there"})));
        std::vector<std::int32_t> back(mine.size());
        COHORT_RETURN_IF_ERROR(WaitFor(comm.Receive(std::span(back), last, {.name = "back"})));
        COHORT_RETURN_IF_ERROR(Check(back == Numbers(8, count), "Receive at 0"));
      } else if (last > 0 && comm.rank() == last) {
        std::vector<std::int32_t> theirs(static_cast<std::size_t>(count));
        COHORT_RETURN_IF_ERROR(WaitFor(comm.Receive(std::span(theirs), 0, {.name = "there"})));
        COHORT_RETURN_IF_ERROR(Check(theirs == Numbers(7, count), "Receive at last"));
        const std::vector<std::int32_t> mine = Numbers(8, count);
        COHORT_RETURN_IF_ERROR(WaitFor(comm.Send(std::span(mine), 0, {.name = "back"})));
      }
      COHORT_RETURN_IF_ERROR(CheckAllReduce(comm, DType::kInt32, ReduceOp::kSum, 11, "auto"));
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, ManyOperationsUnderWay) {
  Run([](Communicator& comm) -> Status {
    constexpr int kOperations = 40;
    std::vector<std::vector<std::int64_t>> buffers;
    std::vector<std::unique_ptr<Work>> works;
    for (int i = 0; i < kOperations; ++i) {
      buffers.emplace_back(static_cast<std::size_t>(1 + i * 97), comm.rank() + i);
    }
    for (int i = 0; i < kOperations; ++i) {
      COHORT_ASSIGN_OR_RETURN(
          std::unique_ptr<Work> work,
          comm.AllReduce(std::span(buffers[static_cast<std::size_t>(i)]), ReduceOp::kSum));
      works.push_back(std::move(work));
    }
    const int n = comm.size();
    for (int i = kOperations - 1; i >= 0; --i) {
      const auto at = static_cast<std::size_t>(i);
      COHORT_RETURN_IF_ERROR(works[at]->Wait());
      COHORT_RETURN_IF_ERROR(Check(works[at]->done(), "done after Wait"));
      for (const std::int64_t value : buffers[at]) {
        COHORT_RETURN_IF_ERROR(Check(value == n * (n - 1) / 2 + n * i, "operation in flight"));
      }
    }
    return Check(comm.stats().operations == kOperations, "operations counted");
  });
}

TEST_P(CommunicatorConformance, SplitMakesGroupsThatWorkSideBySide) {
  Run([](Communicator& comm) -> Status {
    // Even and odd ranks, each in reverse order; the last rank stays out of a second split.
    const int color = comm.rank() % 2;
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> half,
                            comm.Split(color, -comm.rank()));
    const int members = (comm.size() + 1 - color) / 2;
    COHORT_RETURN_IF_ERROR(Check(half->size() == members, "size of the half"));
    COHORT_RETURN_IF_ERROR(
        Check(half->peer_name(half->rank()) == comm.peer_name(comm.rank()), "name in the half"));
    const bool last = comm.rank() == comm.size() - 1;
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> most, comm.Split(last ? -1 : 5, 0));
    COHORT_RETURN_IF_ERROR(Check((most == nullptr) == last, "the last rank has no group"));

    for (int round = 0; round < 5; ++round) {
      std::vector<std::int32_t> order = {comm.rank()};
      std::vector<std::int32_t> all(static_cast<std::size_t>(members));
      COHORT_RETURN_IF_ERROR(WaitFor(half->AllGather(std::span(order), std::span(all))));
      for (int i = 0; i < members; ++i) {
        const int expected = 2 * (members - 1 - i) + color;
        COHORT_RETURN_IF_ERROR(
            Check(all[static_cast<std::size_t>(i)] == expected, "order of the half"));
      }
      COHORT_RETURN_IF_ERROR(CheckAllReduce(comm, DType::kInt32, ReduceOp::kSum, 100, "auto"));
      if (most) {
        COHORT_RETURN_IF_ERROR(CheckAllReduce(*most, DType::kInt32, ReduceOp::kSum, 5000, "auto"));
      }
    }
    return {};
  });
}

namespace {

// What each of a rank's groups does at its own pace: small sums, and some whose cost is measured.
Status SumInRounds(Communicator& comm, int rounds) {
  const int n = comm.size();
  for (int round = 0; round < rounds; ++round) {
    std::vector<std::int64_t> values(round % 20 == 7 ? 700 : 90, comm.rank() + round);
    COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum)));
    const std::int64_t expected = std::int64_t{n} * (n - 1) / 2 + std::int64_t{n} * round;
    COHORT_RETURN_IF_ERROR(Check(
        std::all_of(values.begin(), values.end(), [&](std::int64_t v) { return v == expected; }),
        "round " + std::to_string(round) + " of a group of " + std::to_string(n)));
  }
  return {};
}

}  // namespace

// Different communicators from different threads: two groups and the one they were made of, on each
// rank by three threads, which odd ranks start in the opposite order.
TEST_P(CommunicatorConformance, GroupsWorkFromThreadsOfTheirOwnAtTheSameTime) {
  const int rounds = GetParam().segment_bytes > 0 ? 30 : 200;
  Run([&](Communicator& comm) -> Status {
    if (comm.backend() == "nccl") {
      return {};  // of one GPU, its communicators are used in one order on all ranks: see README.md
    }
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> half,
                            comm.Split(comm.rank() % 2, comm.rank()));
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> all, comm.Split(0, -comm.rank()));
    const std::array<Communicator*, 3> groups = {half.get(), all.get(), &comm};
    std::array<Status, 3> outcomes;
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < groups.size(); ++i) {
      const std::size_t at = comm.rank() % 2 == 0 ? i : groups.size() - 1 - i;
      threads.emplace_back([&, at] { outcomes[at] = SumInRounds(*groups[at], rounds); });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    for (const Status& outcome : outcomes) {
      COHORT_RETURN_IF_ERROR(outcome);
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, UnknownAlgorithmIsRefusedAndHarmless) {
  Run([](Communicator& comm) -> Status {
    std::vector<float> values(10);
    const Communicator::Pending refused =
        comm.AllReduce(std::span(values), ReduceOp::kSum, {.algorithm = "rings"});
    std::string names;
    for (const std::string& name : Algorithms(comm, OperationKind::kAllReduce)) {
      names += (names.empty() ? "" : ", ") + name;
    }
    COHORT_RETURN_IF_ERROR(Check(
        refused.status() ==
            InvalidArgument("AllReduce has no algorithm 'rings' [choose one of " + names + "]"),
        refused.status().ToString()));
    return CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, 10, "auto");
  });
}

TEST_P(CommunicatorConformance, BreachesOfTheContractThrow) {
  Run([](Communicator& comm) -> Status {
    std::vector<float> values(10);
    EXPECT_THROW((void)comm.Broadcast(std::span(values), comm.size()), ContractError);
    EXPECT_THROW((void)comm.AllReduce(Buffer(nullptr, 3, DType::kFloat32), ReduceOp::kSum),
                 ContractError);
    EXPECT_THROW((void)comm.AllGather(std::span(values), Buffer(values.data(), 3, DType::kFloat32)),
                 ContractError);
    EXPECT_THROW((void)comm.Send(std::span(values), comm.rank()), ContractError);
    const auto unknown = static_cast<ReduceOp>(9);
    const std::span<float> part = std::span(values).first(1);
    EXPECT_THROW((void)comm.AllReduce(part, unknown), ContractError);
    EXPECT_THROW((void)comm.Reduce(part, unknown, 0), ContractError);
    std::vector<float> parts(static_cast<std::size_t>(comm.size()));
    EXPECT_THROW((void)comm.ReduceScatter(std::span(parts), part, unknown), ContractError);
    return CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, 10, "auto");  // nothing has begun
  });
}

// Ranks run out of data at different times, twice; those that have joined give zeros.
TEST_P(CommunicatorConformance, JoinedRanksTakePartInTheOthersOperations) {
  Run([](Communicator& comm) -> Status {
    if (!GetParam().joins) {
      EXPECT_EQ(comm.Join().status().code(), StatusCode::kUnimplemented);
      return CheckAllReduce(comm, DType::kFloat32, ReduceOp::kMax, 100, "auto");
    }
    const int n = comm.size();
    for (int epoch = 0; epoch < 2; ++epoch) {
      // In the second epoch in the opposite order, so that rank 0 is the last.
      const int rounds = epoch == 0 ? comm.rank() + 1 : n - comm.rank();
      for (int round = 0; round < rounds; ++round) {
        const int first = epoch == 0 ? round : 0;  // the ranks that still have data
        const int last = epoch == 0 ? n - 1 : n - 1 - round;
        double expected = 0;
        for (int r = first; r <= last; ++r) {
          expected += r + 1;
        }
        for (const std::int64_t count : {1, 33'000}) {  // from 256 KiB on hierarchical
          std::vector<double> sum(static_cast<std::size_t>(count), comm.rank() + 1);
          std::vector<double> mean(static_cast<std::size_t>(count), n * (comm.rank() + 1));
          COHORT_RETURN_IF_ERROR(
              WaitFor(comm.AllReduce(std::span(sum), ReduceOp::kSum, {.name = "sum"})));
          COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(std::span(mean), ReduceOp::kMean)));
          for (const auto* values : {&sum, &mean}) {
            COHORT_RETURN_IF_ERROR(Check(std::all_of(values->begin(), values->end(),
                                                     [&](double v) { return v == expected; }),
                                         "round " + std::to_string(round) + ": " +
                                             std::to_string(values->front()) + " instead of " +
                                             std::to_string(expected)));
          }
        }
        std::vector<std::int32_t> word(5000, comm.rank() == last ? round + 7 : 0);
        COHORT_RETURN_IF_ERROR(WaitFor(comm.Broadcast(std::span(word), last)));
        COHORT_RETURN_IF_ERROR(Check(word.back() == round + 7, "Broadcast among the rest"));
        COHORT_RETURN_IF_ERROR(WaitFor(comm.Barrier()));
      }
      COHORT_ASSIGN_OR_RETURN(const int last, comm.Join());
      COHORT_RETURN_IF_ERROR(
          Check(last == (epoch == 0 ? n - 1 : 0), "joined last: " + std::to_string(last)));
      COHORT_RETURN_IF_ERROR(CheckAllReduce(comm, DType::kFloat32, ReduceOp::kMax, 100, "auto"));
    }
    return {};
  });
}

}  // namespace cohort::testing
