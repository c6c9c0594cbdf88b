// What our element types and reductions are called in MPI.

#pragma once

#include <cohort/core/dtype.h>
#include <mpi.h>

#include <cstdint>
#include <optional>

namespace cohort {

inline constexpr std::int64_t kMaxMpiElements = std::int64_t{1}
                                                << 30;  // of one call: counts are int

// Nothing for float16 and bfloat16, which MPI cannot add.
inline std::optional<MPI_Datatype> MpiTypeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return MPI_FLOAT;
    case DType::kFloat64:
      return MPI_DOUBLE;
    case DType::kInt32:
      return MPI_INT32_T;
    case DType::kInt64:
      return MPI_INT64_T;
    case DType::kUInt8:
      return MPI_UINT8_T;
    default:
      return std::nullopt;
  }
}

}  // namespace cohort
