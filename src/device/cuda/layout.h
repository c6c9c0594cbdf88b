// Kernels that rearrange and finish the operands of products and convolutions. Dense, float32 where
// nothing else is said; an output is no input unless said so. As the table's calls, each puts work
// on the stream; errors fail it.

#pragma once

#include <cuda_runtime_api.h>

#include <cohort/device/plan.h>
#include <cohort/device/stream.h>

#include <cstdint>

namespace cohort::cuda {

// Whether this build's kernels can run on the current device: cudaSuccess if so.
cudaError_t FindKernels();

// to[b][c][r] = from[b][r][c]: of one type, or from one of 16 bits to float32.
void Transpose(Stream& stream, std::int64_t batch, std::int64_t rows, std::int64_t columns,
               const void* from, DType from_type, void* to, DType to_type);
inline void Transpose(Stream& stream, std::int64_t batch, std::int64_t rows, std::int64_t columns,
                      const float* from, float* to) {
  Transpose(stream, batch, rows, columns, from, DType::kFloat32, to, DType::kFloat32);
}

// Each row of y [rows, columns] = activation(bias), or of zeros without a bias: a product over
// nothing. Both are of `type`.
void FillRows(Stream& stream, std::int64_t rows, std::int64_t columns, const void* bias,
              Activation activation, void* y, DType type = DType::kFloat32);

// y [rows, columns] = activation(y + bias), in place. `bias` may be nullptr. Both are of `type`.
void AddBias(Stream& stream, std::int64_t rows, std::int64_t columns, const void* bias,
             Activation activation, void* y, DType type = DType::kFloat32);

// Images [batch, height, width, channels].
struct Padding {
  std::int64_t batch = 0, height = 0, width = 0, channels = 0;
  std::int64_t top = 0, bottom = 0, left = 0, right = 0;
  constexpr std::int64_t padded_height() const { return height + top + bottom; }
  constexpr std::int64_t padded_width() const { return width + left + right; }
};
// to: with zeros around each image.
void Pad(Stream& stream, const Padding& padding, const float* from, float* to);
// to: without what Pad put around.
void Crop(Stream& stream, const Padding& padding, const float* from, float* to);

}  // namespace cohort::cuda
