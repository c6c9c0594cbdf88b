// The header of a .npy file.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <cohort/core/dtype.h>
#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>

namespace cohort::data {

inline constexpr std::string_view kNpyMagic("\x93NUMPY", 6);

// An element as it is stored, and as what it is read.
struct NpyType {
  std::string_view code;  // of numpy: "f4"
  DType dtype;
  std::size_t stored_bytes;
  // `count` elements from stored to dtype; null: they are the same.
  void (*widen)(const std::byte* in, std::size_t count, std::byte* out);
};

struct NpyHeader {
  const NpyType* type = nullptr;
  Shape shape;
  std::uint64_t data_begin = 0;  // byte of the file
};

// Header and size of the file agree when this returns. Errors name the path.
Result<NpyHeader> ReadNpyHeader(const RandomAccessFile& file, const std::string& path);
// The bytes before the data.
std::string EncodeNpyHeader(DType dtype, const Shape& shape);

}  // namespace cohort::data
