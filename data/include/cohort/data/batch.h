// Batch: some examples, as named tensors whose first axis is the example.

#pragma once

#include <map>
#include <string>

#include <cohort/core/tensor.h>

namespace cohort::data {

// A value whose tensors alias. `size` may be 0: then every tensor has 0 rows, and still its dtype
// and row shape.
struct Batch {
  std::int64_t size = 0;
  std::map<std::string, Tensor> features;

  // The tensor; ContractError that lists the features there are.
  const Tensor& operator[](const std::string& name) const;
  // Examples [begin, end), sharing memory.
  Batch Slice(std::int64_t begin, std::int64_t end) const;
};

}  // namespace cohort::data
