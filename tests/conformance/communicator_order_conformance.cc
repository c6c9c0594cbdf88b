// The canonical order of sums, and the cost model that chooses algorithms.

#include <gmock/gmock.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "algorithms/shared.h"
#include "conformance/communicator_checks.h"
#include "conformance/communicator_conformance.h"
#include "testing/run_ranks.h"

namespace cohort::testing {
namespace {

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

// What this rank gives, and what comes of it.
template <typename T>
struct WildSum {
  std::vector<T> given;
  std::vector<T> expected;

  WildSum(const Communicator& comm, std::size_t count)
      : given(Wild<T>(comm.rank(), count)), expected(CanonicalSum<T>(comm.size(), count)) {}
};

// Every algorithm, whole and cut in pieces, at `values`; the case's backend and segments. All are
// compared with one reference, so all are equal.
template <typename T>
Status CheckCanonical(Communicator& comm, const WildSum<T>& sum, std::span<T> values,
                      const std::vector<std::size_t>& cuts) {
  const std::size_t count = values.size();
  const std::vector<T>& expected = sum.expected;
  const std::string type(DTypeName(DTypeOf<T>::value));
  for (const std::string& algorithm : Algorithms(comm, OperationKind::kAllReduce)) {
    for (const std::size_t cut : cuts) {
      std::ranges::copy(sum.given, values.begin());
      for (std::size_t at = 0; at < count; at += cut) {
        COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(values.subspan(at, std::min(cut, count - at)),
                                                      ReduceOp::kSum, {.algorithm = algorithm})));
      }
      COHORT_RETURN_IF_ERROR(
          Check(SameBits<T>(values, expected),
                type + " AllReduce by " + algorithm + " cut by " + std::to_string(cut)));
    }
  }
  for (int root = 0; root < comm.size(); ++root) {
    std::ranges::copy(sum.given, values.begin());
    COHORT_RETURN_IF_ERROR(WaitFor(comm.Reduce(values, ReduceOp::kSum, root)));
    COHORT_RETURN_IF_ERROR(
        Check(comm.rank() != root || SameBits<T>(values, expected), type + " Reduce"));
  }
  const std::size_t slice = count / static_cast<std::size_t>(comm.size());
  const std::size_t even = slice * static_cast<std::size_t>(comm.size());
  for (const std::string& algorithm : Algorithms(comm, OperationKind::kReduceScatter)) {
    std::ranges::copy(sum.given, values.begin());
    std::vector<T> mine(slice);
    COHORT_RETURN_IF_ERROR(WaitFor(comm.ReduceScatter(values.first(even), std::span(mine),
                                                      ReduceOp::kSum, {.algorithm = algorithm})));
    COHORT_RETURN_IF_ERROR(
        Check(SameBits<T>(mine, std::span(expected).subspan(
                                    static_cast<std::size_t>(comm.rank()) * slice, slice)),
              type + " ReduceScatter by " + algorithm));
  }
  return {};
}

template <typename T>
Status CheckCanonical(Communicator& comm, std::size_t count) {
  std::vector<T> values(count);
  return CheckCanonical<T>(comm, WildSum<T>(comm, count), values, {count, count / 3 + 1, 29});
}

}  // namespace

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

// Sizes that go another way than small ones, up to several segments of each rank, in memory that is
// private, that is lent, and that some lend and some do not.
TEST_P(CommunicatorConformance, LargeDeterministicResultsHaveTheBitsOfTheCanonicalOrder) {
  constexpr int kMostRanks = 5;  // more take their time on two cores; four have a case of their own
  const bool own_segments = GetParam().segment_bytes == 0 || size() == kMostRanks;
  if (!GetParam().deterministic || !own_segments || size() > kMostRanks) {
    return;
  }
  CommunicatorOptions options = this->options();
  options.deterministic = true;
  options.segment_bytes = 0;
  ExpectAllOk(GetParam().run(size(), options, [](Communicator& comm) -> Status {
    const std::size_t segment = kStagedSegmentBytes / sizeof(float);
    const std::size_t most = 3 * segment * static_cast<std::size_t>(comm.size()) + 17;
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> lent,
                            comm.Allocate(most * sizeof(float)));
    std::vector<float> own(most);
    const std::span<float> shared(reinterpret_cast<float*>(lent->bytes().data()), most);
    const std::vector<std::string> algorithms = Algorithms(comm, OperationKind::kAllReduce);
    const bool shares = std::ranges::find(algorithms, "shared") != algorithms.end();
    for (const std::size_t count : {std::size_t{30'011}, most}) {
      const WildSum<float> sum(comm, count);
      const auto check = [&](std::span<float> room, const std::string& where) {
        return CheckCanonical<float>(comm, sum, room.first(count), {count, count / 3 + 1})
            .Annotate(where);
      };
      COHORT_RETURN_IF_ERROR(check(own, "private memory"));
      if (shares) {
        COHORT_RETURN_IF_ERROR(check(shared, "lent memory"));
        COHORT_RETURN_IF_ERROR(check(comm.rank() % 2 == 0 ? std::span(own) : shared, "mixed"));
      }
    }
    return {};
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
    EXPECT_FALSE(comm.keeps_order("ring"));
    EXPECT_TRUE(comm.keeps_order("auto"));
    for (const std::string_view offered : comm.algorithms(OperationKind::kAllReduce)) {
      EXPECT_TRUE(comm.keeps_order(offered)) << offered;
    }
    std::vector<float> all(10 * static_cast<std::size_t>(comm.size()));
    return WaitFor(comm.AllGather(std::span(values), std::span(all), {.algorithm = "ring"}));
  }));
}

TEST_P(CommunicatorConformance, SaysThatNoNameButItsOwnKeepsTheOrder) {
  Run([](Communicator& comm) -> Status {
    EXPECT_FALSE(comm.keeps_order("no such algorithm"));
    if (!GetParam().deterministic && comm.size() > 1) {
      EXPECT_FALSE(comm.keeps_order("auto"));
    }
    return {};
  });
}

// --- the cost model

TEST_P(CommunicatorConformance, ExplainNamesWhatAutoTakes) {
  Run([](Communicator& comm) -> Status {
    for (const OperationKind kind :
         {OperationKind::kAllReduce, OperationKind::kReduceScatter, OperationKind::kAllGather}) {
      for (const std::int64_t bytes : {8, 65536, 64 << 20}) {
        COHORT_ASSIGN_OR_RETURN(const CostEstimate estimate, comm.Explain(kind, bytes));
        if (comm.size() > 1) {
          EXPECT_EQ(
              std::ranges::count(estimate.algorithms, estimate.chosen, &AlgorithmCost::algorithm),
              1)
              << estimate.chosen;
        }
        if (!GetParam().reckons) {
          EXPECT_THAT(comm.algorithms(kind), ::testing::ElementsAre(estimate.chosen));
        }
        if (comm.size() == 1 || !GetParam().reckons) {
          continue;
        }
        double least = 1e9;
        std::string_view best;
        for (const AlgorithmCost& cost : estimate.algorithms) {
          // Not by name: what is for some sizes or types only.
          if (cost.algorithm != "one_shot" && cost.algorithm != "mpi") {
            EXPECT_THAT(comm.algorithms(kind), ::testing::Contains(cost.algorithm));
          }
          if (cost.in_order && cost.seconds.value_or(least) < least) {
            least = *cost.seconds;
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

// Measured at the first need, and never again: a second measurement would take another time.
TEST_P(CommunicatorConformance, CostsAreMeasuredOnce) {
  Run([&](Communicator& comm) -> Status {
    COHORT_ASSIGN_OR_RETURN(const CostEstimate first,
                            comm.Explain(OperationKind::kAllReduce, 1 << 20));
    if (comm.size() > 1 && GetParam().reckons) {
      EXPECT_GT(first.calibration, Duration(0));
    }
    COHORT_RETURN_IF_ERROR(CheckAllReduce(comm, DType::kFloat32, ReduceOp::kSum, 10'000, "auto"));
    for (const OperationKind kind : {OperationKind::kAllReduce, OperationKind::kAllGather}) {
      COHORT_ASSIGN_OR_RETURN(const CostEstimate again, comm.Explain(kind, 1 << 20));
      EXPECT_EQ(again.parameters, first.parameters);
      EXPECT_EQ(again.calibration, first.calibration);
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

}  // namespace cohort::testing
