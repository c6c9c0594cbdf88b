#include "synchronous/tensors.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <string>

namespace cohort {
namespace {

std::string Describe(const Tensor& tensor) {
  return std::string(DTypeName(tensor.dtype())) + tensor.shape().ToString();
}

// fn(T{}) with the element type; false if there is no arithmetic for it.
template <typename Fn>
bool WithType(DType dtype, const Fn& fn) {
  switch (dtype) {
    case DType::kFloat32:
      return fn(float{}), true;
    case DType::kFloat64:
      return fn(double{}), true;
    case DType::kInt32:
      return fn(std::int32_t{}), true;
    case DType::kInt64:
      return fn(std::int64_t{}), true;
    default:
      return false;
  }
}

template <typename T>
void Combine(ReduceOp op, std::span<T> to, std::span<const T> from) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    switch (op) {
      case ReduceOp::kSum:
      case ReduceOp::kMean:
        to[i] += from[i];
        break;
      case ReduceOp::kMin:
        to[i] = std::min(to[i], from[i]);
        break;
      case ReduceOp::kMax:
        to[i] = std::max(to[i], from[i]);
        break;
      case ReduceOp::kProduct:
        to[i] *= from[i];
        break;
    }
  }
}

Tensor Copy(const Tensor& tensor) {
  Tensor copy(tensor.dtype(), tensor.shape());
  if (tensor.bytes() > 0) {
    std::memcpy(copy.raw(), tensor.raw(), tensor.bytes());
  }
  return copy;
}

Status CheckOnHost(const char* what, const std::vector<Tensor>& tensors) {
  for (std::size_t r = 0; r < tensors.size(); ++r) {
    if (tensors[r].space() != MemorySpace::kHost) {
      return InvalidArgument(std::string(what) + " of " + Describe(tensors[r]) +
                             " in a device's memory, on local replica " + std::to_string(r) +
                             " [Tape::Fetch it first]");
    }
  }
  return {};
}

}  // namespace

Result<Tensor> CombineTensors(ReduceOp op, const std::vector<Tensor>& tensors) {
  COHORT_RETURN_IF_ERROR(CheckOnHost("Reduce", tensors));
  std::vector<Tensor> sums{Copy(tensors.at(0))};
  const Tensor result = sums.front();  // the same memory
  for (std::size_t r = 1; r < tensors.size(); ++r) {
    if (tensors[r].dtype() != result.dtype() || tensors[r].shape() != result.shape()) {
      return InvalidArgument("Reduce of " + Describe(result) + " on local replica 0 and " +
                             Describe(tensors[r]) + " on " + std::to_string(r));
    }
    sums.push_back(Copy(tensors[r]));
  }
  const bool known = WithType(result.dtype(), [&](auto type) {
    using T = decltype(type);
    for (std::size_t step = 1; step < sums.size(); step *= 2) {
      for (std::size_t r = 0; r + step < sums.size(); r += 2 * step) {
        Combine<T>(op, sums[r].data<T>(), sums[r + step].data<T>());
      }
    }
  });
  if (!known) {
    return InvalidArgument("Reduce of " + Describe(result) +
                           " [float32, float64, int32 and int64 can be reduced]");
  }
  return result;
}

void DivideTensor(const Tensor& tensor, std::int64_t divisor) {
  WithType(tensor.dtype(), [&](auto type) {
    using T = decltype(type);
    for (T& element : tensor.data<T>()) {
      element /= static_cast<T>(divisor);
    }
  });
}

Result<Tensor> ConcatenateTensors(const std::vector<Tensor>& tensors) {
  COHORT_RETURN_IF_ERROR(CheckOnHost("Gather", tensors));
  const Tensor& first = tensors.at(0);
  std::int64_t rows = 0;
  for (const Tensor& tensor : tensors) {
    if (tensor.shape().rank() == 0) {
      return InvalidArgument("Gather of " + Describe(tensor) +
                             ", which has no first axis to gather along [reshape it to [1]]");
    }
    std::vector<std::int64_t> tail = tensor.shape().dims();
    tail[0] = first.shape()[0];
    if (tensor.dtype() != first.dtype() || Shape(tail) != first.shape()) {
      return InvalidArgument("Gather of " + Describe(first) + " on local replica 0 and " +
                             Describe(tensor) + " on another");
    }
    rows += tensor.shape()[0];
  }
  std::vector<std::int64_t> dims = first.shape().dims();
  dims[0] = rows;
  Tensor result(first.dtype(), Shape(dims));
  std::byte* to = result.raw();
  for (const Tensor& tensor : tensors) {
    if (tensor.bytes() > 0) {
      std::memcpy(to, tensor.raw(), tensor.bytes());
      to += tensor.bytes();
    }
  }
  return result;
}

}  // namespace cohort
