#include "conformance/communicator_conformance.h"

#include <gmock/gmock.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>

#include "testing/run_ranks.h"

namespace cohort::testing {

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

namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64,  DType::kInt32, DType::kInt64,
                             DType::kFloat16, DType::kBFloat16, DType::kUInt8};
constexpr ReduceOp kReduceOps[] = {ReduceOp::kSum, ReduceOp::kMean, ReduceOp::kMin, ReduceOp::kMax,
                                   ReduceOp::kProduct};

// A buffer of any element type, filled with small integers.
class Values {
 public:
  Values(DType dtype, std::int64_t count)
      : dtype_(dtype), count_(count), bytes_(static_cast<std::size_t>(count) * SizeOf(dtype)) {}

  Buffer buffer() { return {bytes_.data(), count_, dtype_}; }
  bool is_unsigned() const { return dtype_ == DType::kUInt8; }
  bool is_integer() const {
    return is_unsigned() || dtype_ == DType::kInt32 || dtype_ == DType::kInt64;
  }
  void Set(std::int64_t i, double value) {
    switch (dtype_) {
      case DType::kFloat32:
        return Put(i, static_cast<float>(value));
      case DType::kFloat64:
        return Put(i, value);
      case DType::kInt32:
        return Put(i, static_cast<std::int32_t>(value));
      case DType::kInt64:
        return Put(i, static_cast<std::int64_t>(value));
      case DType::kFloat16:
        return Put(i, Float16(static_cast<float>(value)));
      case DType::kBFloat16:
        return Put(i, BFloat16(static_cast<float>(value)));
      case DType::kUInt8:
        return Put(i, static_cast<std::uint8_t>(value));
    }
  }
  friend bool operator==(const Values& a, const Values& b) { return a.bytes_ == b.bytes_; }

 private:
  template <typename T>
  void Put(std::int64_t i, T value) {
    std::memcpy(bytes_.data() + static_cast<std::size_t>(i) * sizeof(T), &value, sizeof(T));
  }

  DType dtype_;
  std::int64_t count_;
  std::vector<std::byte> bytes_;
};

// What rank r gives at place i: small enough that every result is exact in every type.
double Given(const Values& values, ReduceOp op, int rank, std::int64_t i) {
  if (op == ReduceOp::kProduct) {
    return rank < 3 && (i + rank) % 3 == 0 ? 2 : 1;
  }
  const auto value = static_cast<double>((i * 7 + rank * 3) % 5);
  return values.is_unsigned() ? value : value - 2;
}

double Reduced(const Values& values, ReduceOp op, int ranks, std::int64_t i) {
  double result = Given(values, op, 0, i);
  for (int rank = 1; rank < ranks; ++rank) {
    const double next = Given(values, op, rank, i);
    switch (op) {
      case ReduceOp::kSum:
      case ReduceOp::kMean:
        result += next;
        break;
      case ReduceOp::kMin:
        result = std::min(result, next);
        break;
      case ReduceOp::kMax:
        result = std::max(result, next);
        break;
      case ReduceOp::kProduct:
        result *= next;
        break;
    }
  }
  if (op == ReduceOp::kMean) {
    result = values.is_integer() ? std::trunc(result / ranks) : result / ranks;
  }
  return result;
}

// What is wrong on this rank, or OK.
Status Check(bool right, const std::string& what) {
  return right ? OkStatus() : Internal("wrong result: " + what);
}

Status WaitFor(Communicator::Pending pending) {
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

// What a rank hears that calls nothing; OK if it hears nothing for a minute.
Status Failure(const Communicator& comm) {
  const Deadline deadline = DeadlineAfter(std::chrono::minutes(1));
  while (comm.status().ok() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return comm.status();
}

std::string Describe(DType dtype, ReduceOp op, std::int64_t count, const std::string& algorithm) {
  return std::string(DTypeName(dtype)) + "[" + std::to_string(count) + "] " +
         std::string(ReduceOpName(op)) + " by " + algorithm;
}

Status CheckAllReduce(Communicator& comm, DType dtype, ReduceOp op, std::int64_t count,
                      const std::string& algorithm) {
  Values values(dtype, count);
  Values expected(dtype, count);
  for (std::int64_t i = 0; i < count; ++i) {
    values.Set(i, Given(values, op, comm.rank(), i));
    expected.Set(i, Reduced(values, op, comm.size(), i));
  }
  COHORT_RETURN_IF_ERROR(
      WaitFor(comm.AllReduce(values.buffer(), op, {.name = "x", .algorithm = algorithm})));
  return Check(values == expected, Describe(dtype, op, count, algorithm));
}

Status CheckReduceScatter(Communicator& comm, DType dtype, ReduceOp op, std::int64_t count,
                          const std::string& algorithm) {
  Values input(dtype, count * comm.size());
  Values output(dtype, count);
  Values expected(dtype, count);
  for (std::int64_t i = 0; i < count * comm.size(); ++i) {
    input.Set(i, Given(input, op, comm.rank(), i));
  }
  for (std::int64_t i = 0; i < count; ++i) {
    expected.Set(i, Reduced(input, op, comm.size(), comm.rank() * count + i));
  }
  COHORT_RETURN_IF_ERROR(WaitFor(comm.ReduceScatter(input.buffer(), output.buffer(), op,
                                                    {.name = "x", .algorithm = algorithm})));
  return Check(output == expected, Describe(dtype, op, count, algorithm));
}

std::vector<std::int32_t> Numbers(int rank, std::int64_t count) {
  std::vector<std::int32_t> numbers(static_cast<std::size_t>(count));
  std::iota(numbers.begin(), numbers.end(), rank * 1000000);
  return numbers;
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
        for (const std::string algorithm : {"ring", "recursive_doubling", "direct"}) {
          COHORT_RETURN_IF_ERROR(CheckAllReduce(comm, dtype, op, 37, algorithm));
        }
      }
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, AllReduceOfEverySize) {
  Run([](Communicator& comm) -> Status {
    for (const std::string algorithm : {"auto", "ring", "recursive_doubling", "direct"}) {
      for (const std::int64_t count : {0, 1, 2, 3, 7, 8, 17, 255, 1000, 4099}) {
        COHORT_RETURN_IF_ERROR(
            CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, count, algorithm));
      }
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, AllReduceLargerThanEverySegment) {
  const std::int64_t count = GetParam().segment_bytes > 0 ? 20001 : 3'000'001;
  Run([&](Communicator& comm) -> Status {
    for (const std::string algorithm : {"auto", "ring", "recursive_doubling", "direct"}) {
      COHORT_RETURN_IF_ERROR(
          CheckAllReduce(comm, DType::kFloat32, ReduceOp::kMean, count, algorithm));
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, AllReduceGivesAllRanksTheSameBitsEveryTime) {
  Run([](Communicator& comm) -> Status {
    for (const std::string algorithm : {"ring", "recursive_doubling", "direct"}) {
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

TEST_P(CommunicatorConformance, ReduceScatter) {
  Run([](Communicator& comm) -> Status {
    for (const std::string algorithm : {"auto", "ring", "direct"}) {
      for (const std::int64_t count : {0, 1, 3, 64, 1001}) {
        COHORT_RETURN_IF_ERROR(
            CheckReduceScatter(comm, DType::kFloat32, ReduceOp::kSum, count, algorithm));
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
    for (const std::string algorithm : {"auto", "ring", "direct"}) {
      for (const std::int64_t count : {0, 1, 5, 999, 40000}) {
        const std::vector<std::int32_t> mine = Numbers(comm.rank(), count);
        std::vector<std::int32_t> all(mine.size() * static_cast<std::size_t>(comm.size()));
        std::vector<std::int32_t> expected;
        for (int r = 0; r < comm.size(); ++r) {
          const std::vector<std::int32_t> part = Numbers(r, count);
          expected.insert(expected.end(), part.begin(), part.end());
        }
        COHORT_RETURN_IF_ERROR(
            WaitFor(comm.AllGather(std::span(mine), std::span(all), {.algorithm = algorithm})));
        COHORT_RETURN_IF_ERROR(Check(all == expected, "AllGather by " + algorithm));
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
    for (const std::string algorithm : {"auto", "ring", "direct"}) {
      const std::vector<std::int32_t> mine =
          Numbers(comm.rank(), counts[static_cast<std::size_t>(comm.rank())]);
      std::vector<std::int32_t> all(expected.size());
      COHORT_RETURN_IF_ERROR(WaitFor(
          comm.AllGatherV(std::span(mine), std::span(all), counts, {.algorithm = algorithm})));
      COHORT_RETURN_IF_ERROR(Check(all == expected, "AllGatherV by " + algorithm));
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, BroadcastFromEveryRoot) {
  Run([](Communicator& comm) -> Status {
    for (int root = 0; root < comm.size(); ++root) {
      for (const std::int64_t count : {0, 1, 77, 5000}) {
        std::vector<std::int32_t> values = Numbers(comm.rank(), count);
        COHORT_RETURN_IF_ERROR(WaitFor(comm.Broadcast(std::span(values), root)));
        COHORT_RETURN_IF_ERROR(
            Check(values == Numbers(root, count), "Broadcast of " + std::to_string(root)));
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

TEST_P(CommunicatorConformance, UnknownAlgorithmIsRefusedAndHarmless) {
  Run([](Communicator& comm) -> Status {
    std::vector<float> values(10);
    const Communicator::Pending refused =
        comm.AllReduce(std::span(values), ReduceOp::kSum, {.algorithm = "rings"});
    COHORT_RETURN_IF_ERROR(
        Check(refused.status() ==
                  InvalidArgument("AllReduce has no algorithm 'rings' [choose one of auto, ring, "
                                  "recursive_doubling, direct]"),
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
    return {};
  });
}

// --- failures

TEST_P(CommunicatorFailureConformance, DifferentCountsNameBothSides) {
  RunAndExpect(options(), StatusCode::kInvalidArgument,
               {"rank 0 (worker:0) is in AllReduce 'fc1' float32[10]", "float32[12]", "worker:"},
               [](Communicator& comm) {
                 std::vector<float> values(comm.rank() == 0 ? 10 : 12);
                 return WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum, {.name = "fc1"}));
               });
}

TEST_P(CommunicatorFailureConformance, DifferentOperationsNameBothSides) {
  for (const bool broadcaster_is_root : {false, true}) {
    RunAndExpect(
        options(), StatusCode::kInvalidArgument,
        {"is in AllReduce 'fc1' float32[10]", "rank " + std::to_string(size() - 1) +
                                                  " (worker:" + std::to_string(size() - 1) +
                                                  ") is in Broadcast 'fc1' float32[12]"},
        [&](Communicator& comm) {
          std::vector<float> values(12);
          if (comm.rank() == size() - 1) {
            return WaitFor(comm.Broadcast(std::span(values), broadcaster_is_root ? comm.rank() : 0,
                                          {.name = "fc1"}));
          }
          return WaitFor(
              comm.AllReduce(std::span(values).first(10), ReduceOp::kSum, {.name = "fc1"}));
        });
  }
}

TEST_P(CommunicatorFailureConformance, DifferentTypesNamesReductionsOrRootsNameBothSides) {
  const auto differ = [&](const std::vector<std::string>& parts, auto call) {
    RunAndExpect(options(), StatusCode::kInvalidArgument, parts, [&](Communicator& comm) {
      std::vector<float> values(32, 1.0F);
      const Status status = WaitFor(call(comm, values, comm.rank() == 1));
      if (size() == 2) {  // nothing of the other side's was used
        EXPECT_THAT(values, ::testing::Each(1.0F));
      }
      return status;
    });
  };
  differ({"'w' float32[16]", "'w' float64[16]"}, [](Communicator& comm, std::vector<float>& values,
                                                    bool other) {
    return comm.AllReduce(Buffer(values.data(), 16, other ? DType::kFloat64 : DType::kFloat32),
                          ReduceOp::kSum, {.name = "w"});
  });
  differ({"AllReduce 'weight'", "AllReduce 'bias'"}, [](Communicator& comm,
                                                        std::vector<float>& values, bool other) {
    return comm.AllReduce(std::span(values), ReduceOp::kSum, {.name = other ? "bias" : "weight"});
  });
  differ({"float32[32] sum", "float32[32] mean"},
         [](Communicator& comm, std::vector<float>& values, bool other) {
           return comm.AllReduce(std::span(values), other ? ReduceOp::kMean : ReduceOp::kSum);
         });
  differ({"root 0", "root 1"}, [](Communicator& comm, std::vector<float>& values, bool other) {
    return comm.Broadcast(std::span(values), other ? 1 : 0);
  });
  differ({"by ring", "by direct"}, [](Communicator& comm, std::vector<float>& values, bool other) {
    return comm.AllReduce(std::span(values), ReduceOp::kSum,
                          {.algorithm = other ? "ring" : "direct"});
  });
}

// What follows a mismatch works as if it had not been: for small operations and for those whose
// data are under way when it is found, in every algorithm, by whichever rank, many times over.
TEST_P(CommunicatorFailureConformance, AfterAMismatchTheCommunicatorGoesOn) {
  const std::vector<std::pair<std::string, std::int64_t>> cases = {
      {"ring", 100},     {"direct", 100},     {"recursive_doubling", 100},
      {"ring", 300'000}, {"direct", 300'000}, {"recursive_doubling", 200'000},
      {"auto", 1}};
  Run([&](Communicator& comm) -> Status {
    for (int round = 0; round < 9; ++round) {
      const auto& [algorithm, most] = cases[static_cast<std::size_t>(round) % cases.size()];
      const std::int64_t count = GetParam().segment_bytes > 0 ? most % 299'999 : most;
      const bool other = comm.rank() == round % comm.size();
      std::vector<float> values(static_cast<std::size_t>(count + (other ? 1 : 0)), 1.0F);
      const Status status = WaitFor(
          comm.AllReduce(std::span(values), ReduceOp::kSum, {.name = "w", .algorithm = algorithm}));
      COHORT_RETURN_IF_ERROR(
          Check(status.code() == StatusCode::kInvalidArgument, status.ToString()));
      for (const std::string& part :
           {"float32[" + std::to_string(count) + "]", "float32[" + std::to_string(count + 1) + "]",
            std::string("the communicator goes on")}) {
        COHORT_RETURN_IF_ERROR(
            Check(status.message().find(part) != std::string::npos, status.message()));
      }
      if (status.message().find("nothing of others was taken in") != std::string::npos) {
        EXPECT_THAT(values, ::testing::Each(1.0F));
      }
      COHORT_RETURN_IF_ERROR(Check(comm.status().ok(), "the communicator is well"));
      COHORT_RETURN_IF_ERROR(
          CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, count, algorithm));
    }
    return {};
  });
}

// Operations queued behind one another: those that agree succeed, the others fail everywhere.
TEST_P(CommunicatorFailureConformance, OnlyTheOperationsThatDifferFail) {
  Run([&](Communicator& comm) -> Status {
    constexpr int kOperations = 30;
    const int n = comm.size();
    std::vector<std::vector<std::int64_t>> buffers;
    std::vector<std::unique_ptr<Work>> works;
    const auto differs = [](int i) { return i % 3 == 1 || i % 7 == 0; };
    for (int i = 0; i < kOperations; ++i) {
      const bool other = differs(i) && comm.rank() == (i * 5) % n;
      std::vector<std::int64_t>& buffer =
          buffers.emplace_back(static_cast<std::size_t>(1 + i * 997), comm.rank() + i);
      Result<std::unique_ptr<Work>> work =
          other && i % 2 == 0
              ? comm.Broadcast(std::span(buffer), 0)
              : comm.AllReduce(std::span(buffer), ReduceOp::kSum, {.name = other ? "b" : "a"});
      COHORT_RETURN_IF_ERROR(work.status());
      works.push_back(std::move(work).value());
    }
    for (int i = 0; i < kOperations; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const Status status = works[at]->Wait();
      COHORT_RETURN_IF_ERROR(
          Check(status.code() == (differs(i) ? StatusCode::kInvalidArgument : StatusCode::kOk),
                std::to_string(i) + ": " + status.ToString()));
      for (const std::int64_t value : buffers[at]) {
        COHORT_RETURN_IF_ERROR(
            Check(differs(i) || value == n * (n - 1) / 2 + n * i, "operation in flight"));
      }
    }
    return WaitFor(comm.Barrier());
  });
}

// A rank that comes late to an operation that the others have given up gets what was sent to it
// before, and goes on with them.
TEST_P(CommunicatorFailureConformance, ALateRankHearsOfTheMismatch) {
  Run([&](Communicator& comm) -> Status {
    const int last = comm.size() - 1;
    std::vector<std::int32_t> sent = Numbers(3, 20'000);
    std::vector<float> values(50'000);
    if (comm.rank() == last) {
      std::vector<std::int32_t> got(sent.size());
      if (comm.size() > 2) {  // rank 0 has entered the collective when this comes
        std::vector<std::int32_t> word(1);
        COHORT_RETURN_IF_ERROR(WaitFor(comm.Receive(std::span(word), 0)));
      }
      COHORT_RETURN_IF_ERROR(WaitFor(comm.Receive(std::span(got), 0, {.name = "before"})));
      COHORT_RETURN_IF_ERROR(Check(got == sent, "what was sent before"));
    } else if (comm.rank() == 0) {
      if (comm.size() > 2) {
        std::vector<std::int32_t> word(1);
        COHORT_RETURN_IF_ERROR(WaitFor(comm.Send(std::span(word), last)));
      }
      COHORT_RETURN_IF_ERROR(WaitFor(comm.Send(std::span(sent), last, {.name = "before"})));
    }
    const Status status = WaitFor(
        comm.AllReduce(std::span(values), comm.rank() == 0 ? ReduceOp::kMax : ReduceOp::kMin));
    COHORT_RETURN_IF_ERROR(Check(status.code() == StatusCode::kInvalidArgument, status.ToString()));
    if (comm.rank() == 0) {
      COHORT_RETURN_IF_ERROR(WaitFor(comm.Send(std::span(sent), last, {.name = "after"})));
    } else if (comm.rank() == last) {
      std::vector<std::int32_t> got(sent.size());
      COHORT_RETURN_IF_ERROR(WaitFor(comm.Receive(std::span(got), 0, {.name = "after"})));
      COHORT_RETURN_IF_ERROR(Check(got == sent, "what was sent after"));
    }
    return CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, 70'000, "auto");
  });
}

TEST_P(CommunicatorFailureConformance, AllToAllVCountsThatDisagreeNameBothSides) {
  RunAndExpect(
      options(), StatusCode::kInvalidArgument,
      {"rank 1 (worker:1) sends 4 elements to rank 0 (worker:0), which expects 3"},
      [](Communicator& comm) {
        const auto n = static_cast<std::size_t>(comm.size());
        std::vector<std::int64_t> sends(n, 3);
        const std::vector<std::int64_t> receives(n, 3);
        sends[0] = comm.rank() == 1 ? 4 : 3;
        std::vector<float> input(3 * n + (comm.rank() == 1 ? 1 : 0));
        std::vector<float> output(3 * n);
        const Status status =
            WaitFor(comm.AllToAllV(std::span(input), sends, std::span(output), receives));
        COHORT_RETURN_IF_ERROR(CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, 1000, "auto"));
        return status;
      });
}

TEST_P(CommunicatorFailureConformance, ReceiveThatMeetsAnotherSendNamesBothSides) {
  RunAndExpect(options(), StatusCode::kInvalidArgument, {"Send", "'a'", "Receive", "'b'"},
               [](Communicator& comm) {
                 std::vector<float> values(5);
                 if (comm.rank() == 0) {
                   COHORT_RETURN_IF_ERROR(WaitFor(comm.Send(std::span(values), 1, {.name = "a"})));
                 } else if (comm.rank() == 1) {
                   return WaitFor(comm.Receive(std::span(values), 0, {.name = "b"}));
                 }
                 return WaitFor(comm.Barrier());
               });
}

TEST_P(CommunicatorFailureConformance, AbsentRankIsNamedAtTheDeadline) {
  CommunicatorOptions options = this->options();
  options.timeout = std::chrono::milliseconds(300);
  const std::string absent = std::to_string(size() - 1);
  for (const std::string algorithm : {"ring", "recursive_doubling", "direct"}) {
    RunAndExpect(options, StatusCode::kDeadlineExceeded,
                 {"AllReduce 'fc1' float32[1000] #2 (generation 1)",
                  "rank " + absent + " (worker:" + absent + ")"},
                 [&](Communicator& comm) {
                   COHORT_RETURN_IF_ERROR(WaitFor(comm.Barrier()));
                   std::vector<float> values(1000);
                   if (comm.rank() == size() - 1) {
                     // Hears of it without calling anything.
                     return Failure(comm);
                   }
                   const Status status = WaitFor(comm.AllReduce(
                       std::span(values), ReduceOp::kSum, {.name = "fc1", .algorithm = algorithm}));
                   for (int r = 0; r < size() - 1; ++r) {
                     EXPECT_THAT(status.message(), ::testing::Not(::testing::HasSubstr(
                                                       "waiting for rank " + std::to_string(r))));
                   }
                   return status;
                 });
  }
}

TEST_P(CommunicatorFailureConformance, AbortReachesAllRanks) {
  RunAndExpect(options(), StatusCode::kAborted,
               {"rank 1 (worker:1) aborted the communicator: the loss is NaN"},
               [](Communicator& comm) {
                 std::vector<float> values(100000);
                 if (comm.rank() == 1) {
                   comm.Abort(Aborted("the loss is NaN"));
                 }
                 const Status status = WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum));
                 EXPECT_EQ(comm.Barrier().status(), status);  // and so does everything after
                 return status;
               });
}

TEST_P(CommunicatorFailureConformance, AbortWakesAnOperationUnderWay) {
  RunAndExpect(options(), StatusCode::kCancelled, {"stop"}, [](Communicator& comm) -> Status {
    std::vector<float> values(100000);
    if (comm.rank() == 0) {  // the others never come
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                              comm.AllReduce(std::span(values), ReduceOp::kSum));
      EXPECT_EQ(work->Wait(DeadlineAfter(std::chrono::milliseconds(20))).code(),
                StatusCode::kDeadlineExceeded);
      comm.Abort(Cancelled("stop"));
      return work->Wait();
    }
    return Failure(comm);
  });
}

TEST_P(CommunicatorFailureConformance, ARankThatLeftIsNamed) {
  RunAndExpect(options(), StatusCode::kUnavailable, {"rank 0 (worker:0) left the communicator"},
               [](Communicator& comm) {
                 if (comm.rank() == 0) {
                   return Unavailable("rank 0 (worker:0) left the communicator");
                 }
                 std::vector<float> values(1000);
                 return WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum));
               });
}

TEST_P(CommunicatorFailureConformance, ANewGenerationWorksAfterAFailure) {
  CommunicatorOptions options = this->options();
  for (std::uint64_t generation = 1; generation <= 3; ++generation) {
    options.generation = generation;
    RunAndExpect(options, StatusCode::kInvalidArgument,
                 {"generation " + std::to_string(generation)}, [&](Communicator& comm) {
                   COHORT_RETURN_IF_ERROR(
                       CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, 100, "auto"));
                   std::vector<float> values(10);
                   return WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum,
                                                 {.name = std::to_string(comm.rank())}));
                 });
  }
}

}  // namespace
}  // namespace cohort::testing
