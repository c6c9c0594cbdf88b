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

const Ragged& Batch::lists(const std::string& name) const {
  const auto it = ragged.find(name);
  if (it == ragged.end()) {
    std::string known;
    for (const auto& [key, lists] : ragged) {
      known += (known.empty() ? "" : ", ") + key;
    }
    throw ContractError("a batch has no ragged feature '" + name + "'; it has: " + known);
  }
  return it->second;
}

Batch Batch::Slice(std::int64_t begin, std::int64_t end) const {
  Require(0 <= begin && begin <= end && end <= size, "a slice within the batch");
  Batch slice{end - begin, {}};
  for (const auto& [name, tensor] : features) {
    slice.features.emplace(name, tensor.Rows(begin, end));
  }
  for (const auto& [name, lists] : ragged) {
    const auto splits = lists.splits.data<std::int64_t>();
    const std::int64_t first = splits[static_cast<std::size_t>(begin)];
    Ragged& part = slice.ragged[name];
    part.values = lists.values.Rows(first, splits[static_cast<std::size_t>(end)]);
    part.splits = Tensor(DType::kInt64, {end - begin + 1});
    for (std::int64_t i = begin; i <= end; ++i) {
      part.splits.data<std::int64_t>()[static_cast<std::size_t>(i - begin)] =
          splits[static_cast<std::size_t>(i)] - first;
    }
  }
  return slice;
}

}  // namespace cohort::data
