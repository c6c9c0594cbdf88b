// Shape and Tensor: a typed, dense, row-major block of memory.
//
// Tensor is a handle: copying one aliases the memory, and the memory lives as long as any handle.
// It knows nothing of gradients (nn::Variable does), and of devices only who frees the memory and
// whether the host may read it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/dtype.h>
#include <cohort/core/status.h>

namespace cohort {

class Shape {
 public:
  Shape() = default;  // rank 0: one element
  Shape(std::initializer_list<std::int64_t> dims) : Shape(std::vector<std::int64_t>(dims)) {}
  explicit Shape(std::vector<std::int64_t> dims);  // ContractError if a dimension is negative

  int rank() const { return static_cast<int>(dims_.size()); }
  std::int64_t operator[](int axis) const { return dims_.at(static_cast<std::size_t>(axis)); }
  const std::vector<std::int64_t>& dims() const { return dims_; }
  std::int64_t elements() const;  // product of the dimensions; 1 for rank 0
  std::string ToString() const;   // "[2,3]"
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::vector<std::int64_t> dims_;
};

// Whose loads and stores reach a block of memory.
enum class MemorySpace : std::uint8_t {
  kHost,    // the host's; of a device that shares the host's memory, its too
  kDevice,  // a device's only: the host has the address, and must not follow it
};

// What goes along with a tensor: a copy of its values in another memory, say. Who knows its kind
// looks for it.
class TensorTwin {
 public:
  virtual ~TensorTwin() = default;
};

class Tensor {
 public:
  Tensor() = default;  // no memory: float32, shape [0]
  // Zeroed host memory, aligned to 64 bytes.
  Tensor(DType dtype, Shape shape);
  // Memory of somebody else's; `data` keeps it alive.
  Tensor(DType dtype, Shape shape, std::shared_ptr<std::byte> data,
         MemorySpace space = MemorySpace::kHost);

  template <typename T>
  static Tensor Of(Shape shape, std::span<const T> values) {
    Tensor t(DTypeOf<T>::value, std::move(shape));
    Require(static_cast<std::size_t>(t.elements()) == values.size(),
            "as many values as the shape has elements");
    std::copy(values.begin(), values.end(), t.data<T>().begin());
    return t;
  }

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::int64_t elements() const { return shape_.elements(); }
  MemorySpace space() const { return space_; }
  std::size_t bytes() const { return static_cast<std::size_t>(elements()) * SizeOf(dtype_); }

  // The elements; ContractError if T is not the dtype. Of a device's memory, what its kernels are
  // given: not for the host to read.
  template <typename T>
  std::span<T> data() const {
    Require(DTypeOf<T>::value == dtype_, "data<T>() with the tensor's own element type");
    return {reinterpret_cast<T*>(data_.get()), static_cast<std::size_t>(elements())};
  }
  std::byte* raw() const { return data_.get(); }

  // Rows [begin, end) of the first axis, sharing memory.
  Tensor Rows(std::int64_t begin, std::int64_t end) const;
  // The same memory under another shape of as many elements.
  Tensor Reshaped(Shape shape) const;

  // The same memory, and `twin` with this handle and what is made of it by copying and Reshaped;
  // Rows are without.
  Tensor WithTwin(std::shared_ptr<const TensorTwin> twin) const;
  const TensorTwin* twin() const { return twin_.get(); }

 private:
  DType dtype_ = DType::kFloat32;
  MemorySpace space_ = MemorySpace::kHost;
  Shape shape_{0};
  std::shared_ptr<std::byte> data_;  // owners: every handle that aliases the block
  std::shared_ptr<const TensorTwin> twin_;
};

}  // namespace cohort
