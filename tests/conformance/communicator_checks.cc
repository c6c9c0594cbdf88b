#include "conformance/communicator_checks.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <thread>

namespace cohort::testing {

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

Status Check(bool right, const std::string& what) {
  return right ? OkStatus() : Internal("wrong result: " + what);
}

Status WaitFor(Communicator::Pending pending) {
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

Status Failure(const Communicator& comm) {
  const Deadline deadline = DeadlineAfter(std::chrono::minutes(1));
  while (comm.status().ok() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return comm.status();
}

std::vector<std::string> Algorithms(const Communicator& comm, OperationKind kind) {
  std::vector<std::string> names = {"auto"};
  for (const std::string_view name : comm.algorithms(kind)) {
    names.emplace_back(name);
  }
  return names;
}

std::vector<std::int64_t> Counts(int ranks) {
  std::vector<std::int64_t> counts = {0, 1, 2, 3, 255, 1000, 4099};
  for (const std::int64_t edge : {8, 16, 32, 16 * ranks, 32 * ranks, 1024}) {
    for (const std::int64_t near : {-1, 0, 1}) {
      counts.push_back(edge + near);
    }
  }
  return counts;
}

std::string Describe(DType dtype, ReduceOp op, std::int64_t count, const std::string& algorithm) {
  return std::string(DTypeName(dtype)) + "[" + std::to_string(count) + "] " +
         std::string(ReduceOpName(op)) + " by " + algorithm;
}

namespace {

// What this rank gives, and what comes of it.
void Fill(const Communicator& comm, ReduceOp op, Values& values, Values& expected) {
  for (std::int64_t i = 0; i < values.buffer().count; ++i) {
    values.Set(i, Given(values, op, comm.rank(), i));
    expected.Set(i, Reduced(values, op, comm.size(), i));
  }
}

}  // namespace

Status CheckAllReduce(Communicator& comm, DType dtype, ReduceOp op, std::int64_t count,
                      const std::string& algorithm, Place place) {
  Values values(dtype, count);
  Values expected(dtype, count);
  Fill(comm, op, values, expected);
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
  Fill(comm, op, values, expected);
  COHORT_RETURN_IF_ERROR(
      WaitFor(comm.Reduce(values.buffer(), op, root, {.name = "x", .algorithm = algorithm})));
  return Check(comm.rank() != root || values == expected,
               Describe(dtype, op, count, algorithm) + " to " + std::to_string(root));
}

Status CheckReduceScatter(Communicator& comm, DType dtype, ReduceOp op, std::int64_t count,
                          const std::string& algorithm, Place place) {
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

}  // namespace cohort::testing
