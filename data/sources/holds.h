// Whether an element type holds a number that a user has named for it.

#pragma once

#include <cmath>
#include <limits>

#include <cohort/core/dtype.h>

namespace cohort::data {

// Of integers: as it is. Of floats: rounded, but not beyond their range; infinity is of them.
inline bool Holds(DType dtype, double value) {
  const auto whole = [value](double least, double behind) {
    return value >= least && value < behind && value == std::trunc(value);
  };
  switch (dtype) {
    case DType::kUInt8:
      return whole(0, 256);
    case DType::kInt32:
      return whole(-0x1p31, 0x1p31);
    case DType::kInt64:
      return whole(-0x1p63, 0x1p63);
    case DType::kFloat32:
      return !std::isfinite(value) || std::fabs(value) <= std::numeric_limits<float>::max();
    default:
      return true;
  }
}

}  // namespace cohort::data
