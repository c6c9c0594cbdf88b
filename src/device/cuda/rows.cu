// Rows copied, looked up, and added up by id.

#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/cuda_kernels.h"
#include "cuda/launch.cuh"

namespace cohort::cuda {
namespace {

__device__ __forceinline__ std::int64_t IdAt(const void* ids, bool wide, std::int64_t i) {
  return wide ? static_cast<const std::int64_t*>(ids)[i]
              : static_cast<std::int64_t>(static_cast<const std::int32_t*>(ids)[i]);
}

template <int V>
struct CopyRow {
  const float* from;
  float* to;
  std::int64_t from_stride, to_stride;
  __device__ void operator()(std::int64_t r, std::int64_t c) const {
    Store<V>(to + r * to_stride + c, Load<V>(from + r * from_stride + c));
  }
};

template <int V>
struct GatherRow {
  const void* ids;
  bool wide;
  const float* table;
  float* y;
  std::int64_t rows, columns;
  DataError* error;
  __device__ void operator()(std::int64_t i, std::int64_t c) const {
    const std::int64_t id = IdAt(ids, wide, i);
    Floats<V> value = {};
    if (id >= 0 && id < rows) {
      value = Load<V>(table + id * columns + c);
    } else if (c == 0) {
      ReportDataError(error, DataErrorKind::kId, i, id, rows);
    }
    Store<V>(y + i * columns + c, value);
  }
};

// keys[i] = ids[i], or `rows` where that is no row; places[i] = i.
__global__ void __launch_bounds__(kThreads)
    KeysKernel(std::int64_t n, const void* ids, bool wide, std::int64_t rows, std::uint32_t* keys,
               std::uint32_t* places, DataError* error) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += step) {
    const std::int64_t id = IdAt(ids, wide, i);
    const bool good = id >= 0 && id < rows;
    if (!good) {
      ReportDataError(error, DataErrorKind::kId, i, id, rows);
    }
    keys[i] = static_cast<std::uint32_t>(good ? id : rows);
    places[i] = static_cast<std::uint32_t>(i);
  }
}

// Where a run of equal keys begins, adds up the rows of dy at its places, in order.
template <int V>
struct AddRuns {
  static constexpr int kAtOnce = 8;
  std::int64_t n;
  const std::uint32_t* keys;
  const std::uint32_t* places;
  const float* dy;
  float* dtable;
  std::int64_t rows, columns;
  __device__ void operator()(std::int64_t p, std::int64_t c) const {
    const std::uint32_t key = keys[p];
    if (key >= rows || (p > 0 && keys[p - 1] == key)) {
      return;
    }
    Floats<V> sum = {};
    bool more = true;
    for (std::int64_t q = p; more; q += kAtOnce) {
      Floats<V> value[kAtOnce];
      bool same[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        same[j] = q + j < n && keys[q + j] == key;
        value[j] = same[j] ? Load<V>(dy + places[q + j] * columns + c) : Floats<V>{};
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (same[j]) {
#pragma unroll
          for (int k = 0; k < V; ++k) {
            sum.v[k] += value[j].v[k];
          }
        }
      }
      more = same[kAtOnce - 1];
    }
    Store<V>(dtable + key * columns + c, sum);
  }
};

}  // namespace

void CudaKernels::CopyRows(Stream& stream, RowsOf size, Strided from, Strided to) {
  const bool vectors = Aligned16(from.data, to.data) && from.stride % 4 == 0 && to.stride % 4 == 0;
  LaunchTile<CopyRow>(stream, "CopyRows", vectors, size.rows, size.columns,
                      static_cast<const float*>(from.data), to.data, from.stride, to.stride);
}

void CudaKernels::Gather(Stream& stream, Indices ids, RowsOf table_size, ConstFloatSpan table,
                         FloatSpan y) {
  LaunchTile<GatherRow>(stream, "Gather", Aligned16(table.data(), y.data()), ids.size,
                        table_size.columns, ids.data, ids.wide, table.data(), y.data(),
                        table_size.rows, table_size.columns, ErrorSlot(stream));
}

// Ids are sorted together with their places. The sort is stable, so that the places of one id stay
// in order, and one thread for each column adds up their rows.
void CudaKernels::ScatterAdd(Stream& stream, Indices ids, RowsOf table_size, ConstFloatSpan dy,
                             FloatSpan dtable) {
  const std::int64_t n = ids.size;
  const std::int64_t rows = table_size.rows;
  Require(n < std::int64_t{1} << 31 && rows < (std::int64_t{1} << 32) - 1,
          "ScatterAdd on a GPU: fewer than 2^31 ids and 2^32 - 1 rows of a table");
  const cudaStream_t native = Native(stream);
  if (!dtable.empty()) {
    Check(cudaMemsetAsync(dtable.data(), 0, dtable.size_bytes(), native), "ScatterAdd");
  }
  if (n == 0 || table_size.columns == 0) {
    return;
  }
  const int count = static_cast<int>(n);
  const int bits =
      std::max(1, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(rows))));
  std::size_t sort_bytes = 0;
  Check(cub::DeviceRadixSort::SortPairs(
            nullptr, sort_bytes, static_cast<const std::uint32_t*>(nullptr),
            static_cast<std::uint32_t*>(nullptr), static_cast<const std::uint32_t*>(nullptr),
            static_cast<std::uint32_t*>(nullptr), count, 0, bits, native),
        "the size of ScatterAdd's sort");
  // Four arrays of n words, each from a multiple of 256 bytes on, and the sort's own.
  const std::int64_t stride = CeilDiv(n, 64) * 64;
  auto* const keys = Scratch<std::uint32_t>(
      4 * stride + static_cast<std::int64_t>((sort_bytes + 3) / sizeof(std::uint32_t)));
  std::uint32_t* const places = keys + stride;
  std::uint32_t* const sorted_keys = keys + 2 * stride;
  std::uint32_t* const sorted_places = keys + 3 * stride;
  KeysKernel<<<Blocks(n, kThreads), kThreads, 0, native>>>(n, ids.data, ids.wide, rows, keys,
                                                           places, ErrorSlot(stream));
  Launched(stream, "ScatterAdd");
  Check(cub::DeviceRadixSort::SortPairs(keys + 4 * stride, sort_bytes,
                                        static_cast<const std::uint32_t*>(keys), sorted_keys,
                                        static_cast<const std::uint32_t*>(places), sorted_places,
                                        count, 0, bits, native),
        "ScatterAdd's sort");
  LaunchTile<AddRuns>(stream, "ScatterAdd", Aligned16(dy.data(), dtable.data()), n,
                      table_size.columns, n, static_cast<const std::uint32_t*>(sorted_keys),
                      static_cast<const std::uint32_t*>(sorted_places), dy.data(), dtable.data(),
                      rows, table_size.columns);
}

}  // namespace cohort::cuda
