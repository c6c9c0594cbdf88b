// Operands of 16 bits on the CPU, whose kernels compute in float32: what they read is widened into
// scratch memory first, what they wrote there is rounded when they are done. Operands of float32
// stay where they are.
//
// This is the arithmetic that other devices are compared with; it is no faster than float32.

#pragma once

#include <cohort/core/tensor.h>
#include <cohort/device/elements.h>

#include <cstdint>

namespace cohort::cpu {

void Widen(ConstElements from, float* to);
void Round(const float* from, Elements to);

// Scratch memory of so many floats. Aligned as tensors are: in which order a kernel adds up may
// depend on that.
inline Tensor Scratch(std::size_t size) {
  return {DType::kFloat32, Shape{static_cast<std::int64_t>(size)}};
}

// What a kernel reads.
class Widened {
 public:
  explicit Widened(ConstElements from) : elements_(from) {
    if (IsHalf(from.dtype())) {
      floats_ = Scratch(from.size());
      Widen(from, Floats());
    }
  }
  Widened(const Widened&) = delete;
  Widened& operator=(const Widened&) = delete;
  const float* data() const { return IsHalf(elements_.dtype()) ? Floats() : elements_.floats(); }
  ConstFloatSpan span() const { return {data(), elements_.size()}; }

 private:
  float* Floats() const { return floats_.data<float>().data(); }

  const ConstElements elements_;
  Tensor floats_;
};

// What a kernel writes; with `reads`, over what stands there. Rounded by the destructor, after all
// reads: it may be what another operand is.
class Rounded {
 public:
  explicit Rounded(Elements to, bool reads = false) : elements_(to) {
    if (IsHalf(to.dtype())) {
      floats_ = Scratch(to.size());
      if (reads) {
        Widen(to, Floats());
      }
    }
  }
  ~Rounded() {
    if (IsHalf(elements_.dtype())) {
      Round(Floats(), elements_);
    }
  }
  Rounded(const Rounded&) = delete;
  Rounded& operator=(const Rounded&) = delete;
  float* data() { return IsHalf(elements_.dtype()) ? Floats() : elements_.floats(); }

 private:
  float* Floats() const { return floats_.data<float>().data(); }

  const Elements elements_;
  Tensor floats_;
};

}  // namespace cohort::cpu
