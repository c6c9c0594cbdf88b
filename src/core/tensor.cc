#include <cohort/core/tensor.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace cohort {

Shape::Shape(std::vector<std::int64_t> dims) : dims_(std::move(dims)) {
  for (const std::int64_t d : dims_) {
    Require(d >= 0, "dimensions are not negative");
  }
}

std::int64_t Shape::elements() const {
  std::int64_t n = 1;
  for (const std::int64_t d : dims_) {
    n *= d;
  }
  return n;
}

std::string Shape::ToString() const {
  std::string s = "[";
  for (std::size_t i = 0; i < dims_.size(); ++i) {
    s += (i == 0 ? "" : ",") + std::to_string(dims_[i]);
  }
  return s + "]";
}

Tensor::Tensor(DType dtype, Shape shape) : dtype_(dtype), shape_(std::move(shape)) {
  constexpr std::size_t kAlignment = 64;
  const std::size_t size = (bytes() + kAlignment - 1) / kAlignment * kAlignment;
  auto* memory =
      static_cast<std::byte*>(std::aligned_alloc(kAlignment, size == 0 ? kAlignment : size));
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  std::memset(memory, 0, size);
  data_ = std::shared_ptr<std::byte>(memory, [](std::byte* p) { std::free(p); });
}

Tensor::Tensor(DType dtype, Shape shape, std::shared_ptr<std::byte> data, MemorySpace space)
    : dtype_(dtype), space_(space), shape_(std::move(shape)), data_(std::move(data)) {}

Tensor Tensor::Rows(std::int64_t begin, std::int64_t end) const {
  Require(shape_.rank() >= 1 && 0 <= begin && begin <= end && end <= shape_[0],
          "rows within the first axis");
  std::vector<std::int64_t> dims = shape_.dims();
  const std::size_t row_bytes = dims[0] == 0 ? 0 : bytes() / static_cast<std::size_t>(dims[0]);
  dims[0] = end - begin;
  return {
      dtype_, Shape(std::move(dims)),
      std::shared_ptr<std::byte>(data_, data_.get() + static_cast<std::size_t>(begin) * row_bytes),
      space_};
}

Tensor Tensor::Reshaped(Shape shape) const {
  Require(shape.elements() == elements(), "a reshape keeps the number of elements");
  Tensor reshaped = *this;
  reshaped.shape_ = std::move(shape);
  return reshaped;
}

Tensor Tensor::WithTwin(std::shared_ptr<const TensorTwin> twin) const {
  Tensor tensor = *this;
  tensor.twin_ = std::move(twin);
  return tensor;
}

}  // namespace cohort
