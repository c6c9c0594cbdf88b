#include <cohort/nn/bags.h>
#include <cohort/nn/operations.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "checks.h"

namespace cohort::nn {
namespace {

// Which rows a bag has, and the factor of each.
struct Parts {
  std::vector<std::int64_t> splits;
  std::vector<float> factors;
};

Status CheckSplits(std::span<const std::int64_t> splits, std::int64_t values) {
  for (std::size_t b = 0; b + 1 < splits.size(); ++b) {
    if (splits[b + 1] < splits[b]) {
      return InvalidArgument("Combine: bag " + std::to_string(b) + " is from row " +
                             std::to_string(splits[b]) + " to " + std::to_string(splits[b + 1]));
    }
  }
  if (splits.front() != 0 || splits.back() != values) {
    return InvalidArgument("Combine: bags are of rows " + std::to_string(splits.front()) + " to " +
                           std::to_string(splits.back()) + ", there are " + std::to_string(values) +
                           " rows");
  }
  return {};
}

// The factors of bag `bag`, which are its weights so far.
Status Divide(std::size_t bag, Combiner combiner, std::span<float> factors) {
  double sum = 0;
  double squares = 0;
  for (const float w : factors) {
    if (!std::isfinite(w)) {
      return InvalidArgument("Combine: bag " + std::to_string(bag) +
                             " has a weight that is not finite");
    }
    sum += w;
    squares += static_cast<double>(w) * w;
  }
  if (combiner == Combiner::kSum || squares == 0) {
    return {};
  }
  const double divisor = combiner == Combiner::kMean ? sum : std::sqrt(squares);
  if (divisor == 0) {
    return InvalidArgument("Combine: the weights of bag " + std::to_string(bag) +
                           " add up to 0, and its mean is divided by that");
  }
  for (float& factor : factors) {
    factor = static_cast<float>(factor / divisor);
  }
  return {};
}

Status MakeParts(std::int64_t values, const Tensor& splits, Combiner combiner,
                 const Tensor& weights, Parts* parts) {
  const std::span<const std::int64_t> from = splits.data<std::int64_t>();
  COHORT_RETURN_IF_ERROR(CheckSplits(from, values));
  std::vector<float> factors(static_cast<std::size_t>(values), 1.0F);
  if (weights.raw() != nullptr) {
    std::ranges::copy(weights.data<float>(), factors.begin());
  }
  for (std::size_t b = 0; b + 1 < from.size(); ++b) {
    COHORT_RETURN_IF_ERROR(
        Divide(b, combiner,
               std::span(factors).subspan(static_cast<std::size_t>(from[b]),
                                          static_cast<std::size_t>(from[b + 1] - from[b]))));
  }
  parts->splits.assign(from.begin(), from.end());
  parts->factors = std::move(factors);
  return {};
}

// fn(bag, row, factor) for every row.
template <typename Fn>
void ForEach(const Parts& parts, const Fn& fn) {
  for (std::size_t b = 0; b + 1 < parts.splits.size(); ++b) {
    for (std::int64_t i = parts.splits[b]; i < parts.splits[b + 1]; ++i) {
      fn(b, static_cast<std::size_t>(i), parts.factors[static_cast<std::size_t>(i)]);
    }
  }
}

// On a device with memory of its own: rows times their factors, added up by bag. What travels there
// is a bag and a factor for each row.
Variable CombineThere(const Variable& rows, std::int64_t bags, const Parts& parts) {
  Tape& tape = rows.tape();
  const std::int64_t values = rows.shape()[0];
  const std::int64_t width = rows.shape()[1];
  const Tensor bag_of = tape.workspace().TakeHost(DType::kInt64, {values});
  const Tensor factor_of = tape.workspace().TakeHost(DType::kFloat32, {values});
  // Where there are splits that are none, rows are in no bag.
  std::ranges::fill(bag_of.data<std::int64_t>(), 0);
  std::ranges::fill(factor_of.data<float>(), 0.0F);
  ForEach(parts, [&](std::size_t bag, std::size_t row, float factor) {
    bag_of.data<std::int64_t>()[row] = static_cast<std::int64_t>(bag);
    factor_of.data<float>()[row] = factor;
  });
  const Tensor bags_there = tape.Place(bag_of);
  // One for each element: kernels multiply arrays of one size.
  const Tensor factors = tape.Buffer(rows.shape());
  tape.kernels().SumMiddleBackward(tape.stream(), {.outer = values, .middle = width, .inner = 1},
                                   1.0F, Floats(tape.Place(factor_of)), Floats(factors));
  const Indices into{bags_there.raw(), values, /*wide=*/true};
  const RowsOf size{bags, width};
  const Tensor scaled = tape.Buffer(rows.shape());
  const Tensor y = tape.Buffer({bags, width});
  tape.kernels().Multiply(tape.stream(), Floats(rows.tensor()), Floats(factors), Floats(scaled));
  tape.kernels().ScatterAdd(tape.stream(), into, size, Floats(scaled), Floats(y));
  return tape.Record(y, {rows}, {}, [&tape, into, size, factors](BackwardPass& pass) {
    pass.Input(0, [&](FloatSpan dx) {
      tape.kernels().Gather(tape.stream(), into, size, pass.output_gradient(), dx);
      tape.kernels().Multiply(tape.stream(), dx, Floats(factors), dx);
    });
  });
}

}  // namespace

Variable Combine(const Variable& given, const Tensor& splits, Combiner combiner,
                 const Tensor& weights) {
  const Variable rows = Cast(given, DType::kFloat32);
  Tape& tape = rows.tape();
  RequireShape(rows.shape().rank() == 2, "Combine", rows.shape(), "[values, width]");
  Require(splits.dtype() == DType::kInt64 && splits.shape().rank() == 1 && splits.elements() >= 1 &&
              splits.space() == MemorySpace::kHost,
          "Combine: splits are int64 [batch + 1] in the host's memory, not " +
              std::string(DTypeName(splits.dtype())) + " " + splits.shape().ToString());
  const std::int64_t values = rows.shape()[0];
  Require(weights.raw() == nullptr ||
              (weights.dtype() == DType::kFloat32 && weights.shape() == Shape{values} &&
               weights.space() == MemorySpace::kHost),
          "Combine: weights are float32 [" + std::to_string(values) + "] in the host's memory");
  const auto parts = std::make_shared<Parts>();
  if (Status status = MakeParts(values, splits, combiner, weights, parts.get()); !status.ok()) {
    tape.stream().Enqueue([status] { return status; });
  }
  tape.NotReplayable();
  if (rows.tensor().space() != MemorySpace::kHost) {
    return CombineThere(rows, splits.elements() - 1, *parts);
  }
  const auto width = static_cast<std::size_t>(rows.shape()[1]);
  const Tensor y = tape.Buffer({splits.elements() - 1, rows.shape()[1]});
  tape.stream().Enqueue([parts, width, x = rows.tensor(), y]() -> Status {
    const std::span<const float> from = Floats(x);
    const std::span<float> to = Floats(y);
    std::ranges::fill(to, 0.0F);
    ForEach(*parts, [&](std::size_t bag, std::size_t row, float factor) {
      const float* const in = from.data() + row * width;
      float* const out = to.data() + bag * width;
      for (std::size_t j = 0; j < width; ++j) {
        out[j] += factor * in[j];
      }
    });
    return {};
  });
  return tape.Record(y, {rows}, {}, [&tape, parts, width](BackwardPass& pass) {
    pass.Input(0, [&](FloatSpan dx) {
      const ConstFloatSpan dy = pass.output_gradient();
      tape.stream().Enqueue([parts, width, dy, dx]() -> Status {
        ForEach(*parts, [&](std::size_t bag, std::size_t row, float factor) {
          const float* const in = dy.data() + bag * width;
          float* const out = dx.data() + row * width;
          for (std::size_t j = 0; j < width; ++j) {
            out[j] = factor * in[j];
          }
        });
        return {};
      });
    });
  });
}

}  // namespace cohort::nn
