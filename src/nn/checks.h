// Messages for operands that do not fit.

#pragma once

#include <cohort/core/status.h>
#include <cohort/core/tensor.h>

#include <string>

namespace cohort::nn {

// ContractError "Dense hidden/1: input [2,3], not [..., 4]".
inline void RequireShape(bool holds, const std::string& operation, const Shape& got,
                         const std::string& wanted, CallSite where = CallSite::Current()) {
  if (!holds) {
    throw ContractError(operation + ": input " + got.ToString() + ", not " + wanted, where);
  }
}

// The last axis, and the number of rows before it.
inline std::int64_t Last(const Shape& shape) {
  return shape.rank() == 0 ? 1 : shape[shape.rank() - 1];
}
inline std::int64_t RowsBeforeLast(const Shape& shape) {
  std::int64_t rows = 1;
  for (int axis = 0; axis + 1 < shape.rank(); ++axis) {
    rows *= shape[axis];
  }
  return rows;
}
// Of everything behind the first axis.
inline std::int64_t ElementsPerRow(const Shape& shape) {
  std::int64_t elements = 1;
  for (int axis = 1; axis < shape.rank(); ++axis) {
    elements *= shape[axis];
  }
  return elements;
}
inline Shape WithLast(const Shape& shape, std::int64_t last) {
  std::vector<std::int64_t> dims = shape.dims();
  dims.back() = last;
  return Shape(std::move(dims));
}

}  // namespace cohort::nn
