// Elements, ConstElements: a run of elements of float32, bfloat16 or float16 in a device's memory.
//
// A span of floats is one. It becomes a span of floats again where it is one: otherwise a
// ContractError. Kernels that take Elements compute in float32: what they read is widened, and what
// they write is rounded once, to nearest even.

#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <cohort/core/dtype.h>
#include <cohort/core/status.h>

namespace cohort {

using FloatSpan = std::span<float>;
using ConstFloatSpan = std::span<const float>;

// One of the two types of 16 bits.
inline bool IsHalf(DType dtype) { return dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

class Elements {
 public:
  Elements() = default;
  Elements(FloatSpan floats) : data_(floats.data()), size_(floats.size()) {}  // NOLINT: is one
  Elements(void* data, std::size_t size, DType dtype) : data_(data), size_(size), dtype_(dtype) {
    Require(dtype == DType::kFloat32 || IsHalf(dtype),
            "elements of float32, bfloat16 or float16, not of " + std::string(DTypeName(dtype)));
  }

  operator FloatSpan() const { return {floats(), size_}; }       // NOLINT: see above
  operator ConstFloatSpan() const { return {floats(), size_}; }  // NOLINT

  DType dtype() const { return dtype_; }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * SizeOf(dtype_); }
  bool empty() const { return size_ == 0; }
  void* raw() const { return data_; }
  float* floats() const {
    Require(dtype_ == DType::kFloat32,
            "elements of float32, not of " + std::string(DTypeName(dtype_)));
    return static_cast<float*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
  DType dtype_ = DType::kFloat32;
};

class ConstElements {
 public:
  ConstElements() = default;
  ConstElements(const Elements& e)  // NOLINT: as spans
      : data_(e.raw()), size_(e.size()), dtype_(e.dtype()) {}
  template <typename Floats>
  requires(std::convertible_to<const Floats&, ConstFloatSpan> && !std::same_as<Floats, Elements> &&
           !std::same_as<Floats, ConstElements>)
      ConstElements(const Floats& floats) {  // NOLINT: is one
    const ConstFloatSpan span = floats;
    data_ = span.data();
    size_ = span.size();
  }
  ConstElements(const void* data, std::size_t size, DType dtype)
      : ConstElements(Elements(const_cast<void*>(data), size, dtype)) {}

  operator ConstFloatSpan() const { return {floats(), size_}; }  // NOLINT: see above

  DType dtype() const { return dtype_; }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * SizeOf(dtype_); }
  bool empty() const { return size_ == 0; }
  const void* raw() const { return data_; }
  const float* floats() const {
    Require(dtype_ == DType::kFloat32,
            "elements of float32, not of " + std::string(DTypeName(dtype_)));
    return static_cast<const float*>(data_);
  }

 private:
  const void* data_ = nullptr;
  std::size_t size_ = 0;
  DType dtype_ = DType::kFloat32;
};

}  // namespace cohort
