// LookedUp: which rows of a table a lookup on a device had, and which was where.

#pragma once

#include <cstdint>
#include <vector>

#include <cohort/core/tensor.h>
#include <cohort/device/kernels.h>

namespace cohort::nn {

struct LookedUp {
  int table = 0;
  std::int64_t width = 0;
  std::vector<std::uint64_t> ids;  // the different ones
  Tensor places;                   // int32, in `ids`, of each that was asked for: on the host
  Tensor placed;                   // the same on the device

  std::int64_t asked() const { return places.elements(); }
  Indices indices() const { return {placed.raw(), asked(), /*wide=*/false}; }
  RowsOf rows() const { return {static_cast<std::int64_t>(ids.size()), width}; }
  std::size_t floats() const { return ids.size() * static_cast<std::size_t>(width); }
};

}  // namespace cohort::nn
