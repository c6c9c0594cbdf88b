#include <cohort/data/batch.h>

namespace cohort::data {

const Tensor& Batch::operator[](const std::string& name) const {
  const auto it = features.find(name);
  if (it == features.end()) {
    std::string known;
    for (const auto& [key, tensor] : features) {
      known += (known.empty() ? "" : ", ") + key;
    }
    throw ContractError("a batch has no feature '" + name + "'; it has: " + known);
  }
  return it->second;
}

Batch Batch::Slice(std::int64_t begin, std::int64_t end) const {
  Require(0 <= begin && begin <= end && end <= size, "a slice within the batch");
  Batch slice{end - begin, {}};
  for (const auto& [name, tensor] : features) {
    slice.features.emplace(name, tensor.Rows(begin, end));
  }
  return slice;
}

}  // namespace cohort::data
