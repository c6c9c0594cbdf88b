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
  Buffer slice(std::int64_t begin, std::int64_t count) {
    return {bytes_.data() + static_cast<std::size_t>(begin) * SizeOf(dtype_), count, dtype_};
  }
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

// "auto" and every algorithm that the operation has here.
std::vector<std::string> Algorithms(const Communicator& comm, OperationKind kind) {
  std::vector<std::string> names = {"auto"};
  for (const std::string_view name : comm.algorithms(kind)) {
    names.emplace_back(name);
  }
  return names;
}

// Around the places where something changes: nothing, fewer elements than ranks, the segments (of
// 64 bytes in most cases), a segment for each rank, and the size from which costs are measured.
std::vector<std::int64_t> Counts(int ranks) {
  std::vector<std::int64_t> counts = {0, 1, 2, 3, 255, 1000, 4099};
  for (const std::int64_t edge : {8, 16, 32, 16 * ranks, 32 * ranks, 1024}) {
    for (const std::int64_t near : {-1, 0, 1}) {
      counts.push_back(edge + near);
    }
  }
  return counts;
}

enum class Place { kIn, kOut };

std::string Describe(DType dtype, ReduceOp op, std::int64_t count, const std::string& algorithm) {
  return std::string(DTypeName(dtype)) + "[" + std::to_string(count) + "] " +
         std::string(ReduceOpName(op)) + " by " + algorithm;
}

Status CheckAllReduce(Communicator& comm, DType dtype, ReduceOp op, std::int64_t count,
                      const std::string& algorithm, Place place = Place::kIn) {
  Values values(dtype, count);
  Values expected(dtype, count);
  for (std::int64_t i = 0; i < count; ++i) {
    values.Set(i, Given(values, op, comm.rank(), i));
    expected.Set(i, Reduced(values, op, comm.size(), i));
  }
  const CollectiveOptions options = {.name = "x", .algorithm = algorithm};
  if (place == Place::kIn) {
    COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(values.buffer(), op, options)));
    return Check(values == expected, Describe(dtype, op, count, algorithm));
  }
  Values output(dtype, count);
  const Values before = values;
  COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(values.buffer(), output.buffer(), op, options)));
  return Check(output == expected && values == before,
               Describe(dtype, op, count, algorithm) + " out of place");
}

Status CheckReduce(Communicator& comm, DType dtype, ReduceOp op, std::int64_t count, int root,
                   const std::string& algorithm) {
  Values values(dtype, count);
  Values expected(dtype, count);
  for (std::int64_t i = 0; i < count; ++i) {
    values.Set(i, Given(values, op, comm.rank(), i));
    expected.Set(i, Reduced(values, op, comm.size(), i));
  }
  COHORT_RETURN_IF_ERROR(
      WaitFor(comm.Reduce(values.buffer(), op, root, {.name = "x", .algorithm = algorithm})));
  return Check(comm.rank() != root || values == expected,
               Describe(dtype, op, count, algorithm) + " to " + std::to_string(root));
}

Status CheckReduceScatter(Communicator& comm, DType dtype, ReduceOp op, std::int64_t count,
                          const std::string& algorithm, Place place = Place::kOut) {
  Values input(dtype, count * comm.size());
  Values output(dtype, count);
  Values expected(dtype, count);
  for (std::int64_t i = 0; i < count * comm.size(); ++i) {
    input.Set(i, Given(input, op, comm.rank(), i));
  }
  for (std::int64_t i = 0; i < count; ++i) {
    expected.Set(i, Reduced(input, op, comm.size(), comm.rank() * count + i));
  }
  const Buffer slice = input.slice(comm.rank() * count, count);
  const Buffer to = place == Place::kIn ? slice : output.buffer();
  COHORT_RETURN_IF_ERROR(
      WaitFor(comm.ReduceScatter(input.buffer(), to, op, {.name = "x", .algorithm = algorithm})));
  if (count > 0 && place == Place::kIn) {
    std::memcpy(output.buffer().data, slice.data, slice.bytes());
  }
  return Check(output == expected, "scattered " + Describe(dtype, op, count, algorithm));
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
    for (const std::string& algorithm : Algorithms(comm, OperationKind::kAllGatherV)) {
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

// --- the canonical order

// Ill-conditioned: in any other order the sums come out as other bits.
template <typename T>
std::vector<T> Wild(int rank, std::size_t count) {
  std::mt19937 random(static_cast<unsigned>(rank) + 17);
  std::vector<T> values;
  for (std::size_t i = 0; i < count; ++i) {
    const float magnitude =
        std::ldexp(static_cast<float>(random() % 2048 + 1), static_cast<int>(random() % 16) - 14);
    values.push_back(static_cast<T>(random() % 2 == 0 ? magnitude : -magnitude));
  }
  return values;
}

// float16 and bfloat16 are added in float and rounded after each addition.
template <typename T>
T Add(T a, T b) {
  if constexpr (std::is_arithmetic_v<T>) {
    return a + b;
  } else {
    return T(static_cast<float>(a) + static_cast<float>(b));
  }
}

// The first ranks pair up until a power of two is left; then the numbers 2i and 2i + 1, and again.
template <typename T>
std::vector<T> CanonicalSum(int ranks, std::size_t count) {
  std::vector<std::vector<T>> parts;
  for (int rank = 0; rank < ranks; ++rank) {
    parts.push_back(Wild<T>(rank, count));
  }
  const auto combine = [&](std::size_t at) {
    for (std::size_t i = 0; i < count; ++i) {
      parts[at][i] = Add(parts[at][i], parts[at + 1][i]);
    }
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  };
  const std::size_t extra = parts.size() - std::bit_floor(parts.size());
  for (std::size_t pair = 0; pair < extra; ++pair) {
    combine(pair);
  }
  while (parts.size() > 1) {
    for (std::size_t pair = 0; pair < parts.size(); ++pair) {
      combine(pair);
    }
  }
  return parts[0];
}

template <typename T>
bool SameBits(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

// Every algorithm, whole and cut in pieces; the case's backend and segments. All are compared with
// one reference, so all are equal.
template <typename T>
Status CheckCanonical(Communicator& comm, std::size_t count) {
  const std::vector<T> expected = CanonicalSum<T>(comm.size(), count);
  const std::string type(DTypeName(DTypeOf<T>::value));
  for (const std::string& algorithm : Algorithms(comm, OperationKind::kAllReduce)) {
    for (const std::size_t cut : {count, count / 3 + 1, std::size_t{29}}) {
      std::vector<T> values = Wild<T>(comm.rank(), count);
      for (std::size_t at = 0; at < count; at += cut) {
        COHORT_RETURN_IF_ERROR(
            WaitFor(comm.AllReduce(std::span(values).subspan(at, std::min(cut, count - at)),
                                   ReduceOp::kSum, {.algorithm = algorithm})));
      }
      COHORT_RETURN_IF_ERROR(
          Check(SameBits<T>(values, expected),
                type + " AllReduce by " + algorithm + " cut by " + std::to_string(cut)));
    }
  }
  for (int root = 0; root < comm.size(); ++root) {
    std::vector<T> values = Wild<T>(comm.rank(), count);
    COHORT_RETURN_IF_ERROR(WaitFor(comm.Reduce(std::span(values), ReduceOp::kSum, root)));
    COHORT_RETURN_IF_ERROR(
        Check(comm.rank() != root || SameBits<T>(values, expected), type + " Reduce"));
  }
  const std::size_t slice = count / static_cast<std::size_t>(comm.size());
  const std::size_t even = slice * static_cast<std::size_t>(comm.size());
  for (const std::string& algorithm : Algorithms(comm, OperationKind::kReduceScatter)) {
    std::vector<T> values = Wild<T>(comm.rank(), count);
    std::vector<T> mine(slice);
    COHORT_RETURN_IF_ERROR(WaitFor(comm.ReduceScatter(
        std::span(values).first(even), std::span(mine), ReduceOp::kSum, {.algorithm = algorithm})));
    COHORT_RETURN_IF_ERROR(
        Check(SameBits<T>(mine, std::span(expected).subspan(
                                    static_cast<std::size_t>(comm.rank()) * slice, slice)),
              type + " ReduceScatter by " + algorithm));
  }
  return {};
}

TEST_P(CommunicatorConformance, DeterministicResultsHaveTheBitsOfTheCanonicalOrder) {
  if (!GetParam().deterministic) {
    return;  // the backend's own collectives: they refuse, which a test of their own shows
  }
  CommunicatorOptions options = this->options();
  options.deterministic = true;
  ExpectAllOk(GetParam().run(size(), options, [](Communicator& comm) -> Status {
    COHORT_RETURN_IF_ERROR(CheckCanonical<float>(comm, 1531));
    COHORT_RETURN_IF_ERROR(CheckCanonical<double>(comm, 203));
    COHORT_RETURN_IF_ERROR(CheckCanonical<Float16>(comm, 203));
    return CheckCanonical<BFloat16>(comm, 1531);
  }));
}

TEST_P(CommunicatorConformance, DeterministicRefusesTheRingByName) {
  CommunicatorOptions options = this->options();
  options.deterministic = true;
  if (!GetParam().deterministic) {
    for (const Status& status :
         GetParam().run(size(), options, [](Communicator& /*comm*/) { return OkStatus(); })) {
      EXPECT_TRUE(status.code() == StatusCode::kInvalidArgument || (size() == 1 && status.ok()))
          << status.ToString();
    }
    return;
  }
  ExpectAllOk(GetParam().run(size(), options, [](Communicator& comm) -> Status {
    std::vector<float> values(10);
    const Communicator::Pending refused =
        comm.AllReduce(std::span(values), ReduceOp::kSum, {.algorithm = "ring"});
    EXPECT_EQ(refused.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(refused.status().message(), ::testing::HasSubstr("canonical order"));
    EXPECT_THAT(comm.algorithms(OperationKind::kAllReduce),
                ::testing::Not(::testing::Contains("ring")));
    std::vector<float> all(10 * static_cast<std::size_t>(comm.size()));
    return WaitFor(comm.AllGather(std::span(values), std::span(all), {.algorithm = "ring"}));
  }));
}

// --- the cost model

TEST_P(CommunicatorConformance, ExplainNamesWhatAutoTakes) {
  Run([](Communicator& comm) -> Status {
    for (const OperationKind kind :
         {OperationKind::kAllReduce, OperationKind::kReduceScatter, OperationKind::kAllGather}) {
      for (const std::int64_t bytes : {8, 65536, 64 << 20}) {
        COHORT_ASSIGN_OR_RETURN(const CostEstimate estimate, comm.Explain(kind, bytes));
        if (!GetParam().reckons) {
          EXPECT_THAT(comm.algorithms(kind), ::testing::ElementsAre(estimate.chosen));
        }
        if (comm.size() == 1 || !GetParam().reckons) {
          continue;
        }
        double least = 1e9;
        std::string_view best;
        for (const AlgorithmCost& cost : estimate.algorithms) {
          EXPECT_THAT(comm.algorithms(kind), ::testing::Contains(cost.algorithm));
          if (cost.in_order && cost.seconds < least) {
            least = cost.seconds;
            best = cost.algorithm;
          }
        }
        // A way of the backend's own is taken without reckoning.
        const bool own = estimate.chosen == "mpi" || estimate.chosen == "hierarchical" ||
                         estimate.chosen == "one_shot" || estimate.chosen == "shared";
        EXPECT_TRUE(own || estimate.chosen == best) << estimate.chosen << ", not " << best;
        EXPECT_GT(estimate.parameters.latency, 0);
        // All ranks reckon with the same figures.
        double figures[2] = {estimate.parameters.latency, -estimate.parameters.latency};
        COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(std::span(figures), ReduceOp::kMax)));
        COHORT_RETURN_IF_ERROR(Check(figures[0] == -figures[1], "the ranks' figures differ"));
      }
    }
    return {};
  });
}

TEST_P(CommunicatorConformance, GivenCostsAreNotMeasured) {
  CommunicatorOptions options = this->options();
  // Latency is everything: the fewest steps. Then bytes are: the fewest bytes.
  for (const CostParameters& cost : {CostParameters{1, 0, 0, 0}, CostParameters{0, 0, 1, 1}}) {
    options.cost = cost;
    ExpectAllOk(GetParam().run(size(), options, [&](Communicator& comm) -> Status {
      COHORT_ASSIGN_OR_RETURN(const CostEstimate estimate,
                              comm.Explain(OperationKind::kAllReduce, 1000));
      if (comm.size() > 1) {
        EXPECT_EQ(estimate.parameters, cost);
        EXPECT_EQ(estimate.calibration, Duration(0));
        if (estimate.chosen == "recursive_doubling" || estimate.chosen == "direct") {
          EXPECT_EQ(estimate.chosen,
                    cost.latency > 0 && comm.size() == 2 ? "recursive_doubling" : "direct");
        }
      }
      return CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, 10000, "auto");
    }));
  }
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
    return {};
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
        for (const std::int64_t count : {1, 30'000}) {
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

// --- failures

TEST_P(CommunicatorFailureConformance, WhatAJoinedRankCannotTakePartInIsRefusedToTheCallers) {
  Run([](Communicator& comm) -> Status {
    if (comm.rank() > 0) {
      std::vector<float> values(100);
      std::vector<float> all(100 * static_cast<std::size_t>(comm.size()));
      const auto refused = [&](const Status& status) {
        return Check(status.code() == StatusCode::kInvalidArgument &&
                         status.message().find("rank 0 (worker:0) has joined") != std::string::npos,
                     status.ToString());
      };
      COHORT_RETURN_IF_ERROR(refused(WaitFor(comm.AllReduce(std::span(values), ReduceOp::kMax))));
      COHORT_RETURN_IF_ERROR(refused(WaitFor(comm.AllGather(std::span(values), std::span(all)))));
      COHORT_RETURN_IF_ERROR(refused(WaitFor(comm.Broadcast(std::span(values), 0))));
      COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum)));
    }
    COHORT_ASSIGN_OR_RETURN(const int last, comm.Join());
    COHORT_RETURN_IF_ERROR(Check(last == comm.size() - 1, "all others joined at once"));
    return CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, 1000, "auto");
  });
}

TEST_P(CommunicatorFailureConformance, AJoinThatSomeNeverReachNamesThem) {
  CommunicatorOptions options = this->options();
  options.timeout = std::chrono::milliseconds(300);
  RunAndExpect(options, StatusCode::kDeadlineExceeded, {"has joined", "not joined: ", "rank 1"},
               [](Communicator& comm) -> Status {
                 return comm.rank() == 1 ? Failure(comm) : comm.Join().status();
               });
}

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
  for (const std::string algorithm :
       {"auto", "ring", "recursive_doubling", "direct", "halving_doubling", "tree"}) {
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
