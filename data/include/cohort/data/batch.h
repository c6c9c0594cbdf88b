// Batch: some examples, as named tensors whose first axis is the example.

#pragma once

#include <map>
#include <string>

#include <cohort/core/tensor.h>

namespace cohort::data {

// Lists of any length, one behind another (CSR): that of example i is values [splits[i], splits[i +
// 1]).
struct Ragged {
  Tensor values;  // [all values]
  Tensor splits;  // int64 [examples + 1], from 0 to the number of values
};

// A value whose tensors alias. `size` may be 0: then every tensor has 0 rows, and still its dtype
// and row shape.
struct Batch {
  std::int64_t size = 0;
  std::map<std::string, Tensor> features;
  std::map<std::string, Ragged> ragged = {};  // features of any length

  // The tensor; ContractError that lists the features there are.
  const Tensor& operator[](const std::string& name) const;
  // The lists; ContractError that names the ragged features there are.
  const Ragged& lists(const std::string& name) const;
  // Examples [begin, end), sharing memory but for splits.
  Batch Slice(std::int64_t begin, std::int64_t end) const;
};

}  // namespace cohort::data
