#include "algorithms/cost_model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstring>

#include "algorithms/algorithms.h"
#include "algorithms/canonical_order.h"

namespace cohort {
namespace {

using Steady = std::chrono::steady_clock;

// Figures of an ordinary machine: ranks that are threads, and processes over a network.
constexpr CostParameters kSharedMemory = {8e-6, 0.5e-6, 1 / 20e9, 1 / 40e9};
constexpr CostParameters kNetwork = {25e-6, 4e-6, 1 / 2.5e9, 1 / 20e9};

// No core combines faster, whatever the difference of two measured times says: at 0 algorithms that
// combine everything twice would be chosen for the largest buffers.
constexpr double kLeastPerReducedByte = 1 / 40e9;

// Below this size the figures above choose as well as measured ones, and small jobs start at once.
constexpr std::int64_t kWorthMeasuring = 4096;

// What an algorithm does to a buffer of one byte, and on its critical path.
struct Load {
  double steps = 0;
  double messages = 0;  // that one rank sends
  double bytes = 0;
  double reduced = 0;
};

Load AllReduceLoad(Algorithm algorithm, int n) {
  const CanonicalOrder order(n);
  const double folds = order.extra() > 0 ? 1 : 0;  // to the partner; and back
  const double doublings = std::countr_zero(static_cast<unsigned>(order.power()));
  const double p = order.power();
  switch (algorithm) {
    case Algorithm::kRecursiveDoubling: {
      const double steps = doublings + 2 * folds;
      return {steps, steps, steps, doublings + folds};
    }
    case Algorithm::kHalvingDoubling: {
      const double steps = 2 * doublings + 2 * folds;
      return {steps, steps, 2 * (p - 1) / p + 2 * folds, (p - 1) / p + folds};
    }
    case Algorithm::kTree: {
      const double levels = doublings + folds;
      return {2 * levels, 2 * levels, 2 * levels, levels};
    }
    case Algorithm::kDirect:
      return {2, 2.0 * (n - 1), 2.0 * (n - 1) / n, 1.0 * (n - 1) / n};
    default:
      return {2.0 * (n - 1), 2.0 * (n - 1), 2.0 * (n - 1) / n, 1.0 * (n - 1) / n};
  }
}

// `bytes` is all ranks' input together.
Load ReduceScatterLoad(Algorithm algorithm, int n) {
  const CanonicalOrder order(n);
  const double folds = order.extra() > 0 ? 1 : 0;
  const double doublings = std::countr_zero(static_cast<unsigned>(order.power()));
  const double p = order.power();
  const double others = 1.0 * (n - 1) / n;
  switch (algorithm) {
    case Algorithm::kRecursiveHalving: {  // and a copy of the whole input, taken for a combination
      const double steps = doublings + 2 * folds;
      return {steps, steps, (p - 1) / p + folds * (1 + 1.0 / n), (p - 1) / p + folds + 1};
    }
    case Algorithm::kDirect:
      return {1, 1.0 * (n - 1), others, others};
    default:
      return {1.0 * (n - 1), 1.0 * (n - 1), others, others};
  }
}

Load AllGatherLoad(Algorithm algorithm, int n) {
  const double others = 1.0 * (n - 1) / n;
  switch (algorithm) {
    case Algorithm::kBruck: {  // and two copies of what is sent, each taken for a combination
      const double steps = std::bit_width(static_cast<unsigned>(n - 1));
      return {steps, steps, others, 2 * others};
    }
    case Algorithm::kDirect:
      return {1, 1.0 * (n - 1), others, 0};
    default:
      return {1.0 * (n - 1), 1.0 * (n - 1), others, 0};
  }
}

// Shifts data around the ring of ranks: each sends to the next and receives from the one before.
class Shift {
 public:
  explicit Shift(Exchange& exchange)
      : exchange_(exchange),
        next_((exchange.rank() + 1) % exchange.size()),
        previous_((exchange.rank() + exchange.size() - 1) % exchange.size()),
        room_(exchange.Scratch(2 * kBulkBytes)) {
    std::memset(room_.data(), 0, room_.size());
  }

  static constexpr std::size_t kBulkBytes = 128 << 10;

  // The median of `rounds` rounds of `messages` messages, the first of them not counted.
  Status Time(int rounds, int messages, std::size_t bytes, const Reduction* reduction,
              double& seconds) {
    const Bytes from = room_.first(bytes);
    const MutableBytes to = room_.subspan(kBulkBytes, bytes);
    std::vector<double> times;
    for (int round = 0; round <= rounds; ++round) {
      const auto start = Steady::now();
      for (int i = 0; i < messages; ++i) {
        exchange_.Receive(previous_, to, {reduction, to.data(), true});
      }
      for (int i = 0; i < messages; ++i) {
        exchange_.Send(next_, from);
      }
      COHORT_RETURN_IF_ERROR(exchange_.WaitAll());
      if (round > 0) {
        times.push_back(std::chrono::duration<double>(Steady::now() - start).count());
      }
    }
    std::nth_element(times.begin(), times.begin() + rounds / 2, times.end());
    seconds = times[static_cast<std::size_t>(rounds / 2)];
    return {};
  }

 private:
  Exchange& exchange_;
  const int next_;
  const int previous_;
  const MutableBytes room_;
};

}  // namespace

double PredictedSeconds(const CostParameters& parameters, OperationKind kind, Algorithm algorithm,
                        std::int64_t bytes, int ranks) {
  if (ranks < 2) {
    return 0;
  }
  Load load;
  switch (kind) {
    case OperationKind::kAllReduce:
      load = AllReduceLoad(algorithm, ranks);
      break;
    case OperationKind::kReduceScatter:
      load = ReduceScatterLoad(algorithm, ranks);
      break;
    case OperationKind::kAllGather:
    case OperationKind::kAllGatherV:
      load = AllGatherLoad(algorithm, ranks);
      break;
    default:
      return 0;
  }
  const auto size = static_cast<double>(bytes);
  return load.steps * parameters.latency + (load.messages - load.steps) * parameters.per_message +
         size * load.bytes * parameters.per_byte +
         size * load.reduced * parameters.per_reduced_byte;
}

Algorithm BestAlgorithm(const CostParameters& parameters, OperationKind kind, std::int64_t bytes,
                        int ranks) {
  Algorithm best = AlgorithmsOf(kind).front();
  double least = PredictedSeconds(parameters, kind, best, bytes, ranks);
  for (const Algorithm algorithm : AlgorithmsOf(kind)) {
    const double seconds = PredictedSeconds(parameters, kind, algorithm, bytes, ranks);
    if (KeepsOrder(algorithm) && seconds < least) {
      best = algorithm;
      least = seconds;
    }
  }
  return best;
}

CostModel::CostModel(const std::optional<CostParameters>& given, bool shared_memory)
    : parameters_(given.value_or(shared_memory ? kSharedMemory : kNetwork)),
      measured_(given.has_value()) {}

Result<Algorithm> CostModel::Choose(Exchange& exchange, OperationKind kind, std::int64_t bytes) {
  if (!measured_ && bytes >= kWorthMeasuring) {
    COHORT_RETURN_IF_ERROR(Measure(exchange));
  }
  return BestAlgorithm(parameters_, kind, bytes, exchange.size());
}

Result<CostEstimate> CostModel::Estimate(Exchange& exchange, OperationKind kind,
                                         std::int64_t bytes) {
  if (!measured_) {
    COHORT_RETURN_IF_ERROR(Measure(exchange));
  }
  CostEstimate estimate;
  estimate.parameters = parameters_;
  estimate.calibration = calibration_;
  for (const Algorithm algorithm : AlgorithmsOf(kind)) {
    estimate.algorithms.push_back(
        {AlgorithmName(algorithm),
         PredictedSeconds(parameters_, kind, algorithm, bytes, exchange.size()),
         KeepsOrder(algorithm)});
  }
  estimate.chosen = AlgorithmName(BestAlgorithm(parameters_, kind, bytes, exchange.size()));
  return estimate;
}

// A shift of small messages takes the latency; of several at once, that and so many times what one
// more costs; of large ones also the bytes; and combined, also the combining.
Status CostModel::Measure(Exchange& exchange) {
  constexpr std::size_t kSmallBytes = 8;
  constexpr int kBurst = 5;
  const auto start = Steady::now();
  const Reduction reduction(DType::kFloat32, ReduceOp::kSum);
  double small = 0;
  double burst = 0;
  double bulk = 0;
  double combined = 0;
  Shift shift(exchange);
  COHORT_RETURN_IF_ERROR(shift.Time(7, 1, kSmallBytes, nullptr, small));
  COHORT_RETURN_IF_ERROR(shift.Time(3, kBurst, kSmallBytes, nullptr, burst));
  COHORT_RETURN_IF_ERROR(shift.Time(3, 1, Shift::kBulkBytes, nullptr, bulk));
  COHORT_RETURN_IF_ERROR(shift.Time(3, 1, Shift::kBulkBytes, &reduction, combined));
  constexpr double kBytes = Shift::kBulkBytes;
  std::array<double, 4> figures = {small, std::max(burst - small, 0.0) / (kBurst - 1),
                                   std::max(bulk - small, 0.0) / kBytes,
                                   std::max((combined - bulk) / kBytes, kLeastPerReducedByte)};
  const MutableBytes bytes = std::as_writable_bytes(std::span(figures));
  COHORT_RETURN_IF_ERROR(RecursiveDoublingAllReduce(exchange, bytes, bytes,
                                                    Reduction(DType::kFloat64, ReduceOp::kMax)));
  parameters_ = {figures[0], figures[1], figures[2], figures[3]};
  measured_ = true;
  calibration_ = Steady::now() - start;
  return {};
}

}  // namespace cohort
