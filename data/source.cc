#include <cohort/data/source.h>

#include <cstring>

namespace cohort::data {

const std::vector<RaggedSpec>& Source::ragged() const {
  static const std::vector<RaggedSpec> none;
  return none;
}

Status Source::ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                          std::span<std::vector<std::byte>> /*values*/) const {
  return ReadInto(index, rows);
}

std::shared_ptr<const Source> Source::AtEpoch(std::int64_t /*epoch*/) const { return nullptr; }

Result<Example> Source::Read(std::int64_t index) const {
  Example example;
  std::vector<std::byte*> rows;
  for (const FeatureSpec& feature : features()) {
    Tensor& tensor = example[feature.name] = Tensor(feature.dtype, feature.shape);
    rows.push_back(tensor.raw());
  }
  std::vector<std::vector<std::byte>> values(ragged().size());
  COHORT_RETURN_IF_ERROR(ReadRagged(index, rows, values));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const RaggedSpec& spec = ragged()[i];
    Tensor list(spec.dtype, {static_cast<std::int64_t>(values[i].size() / SizeOf(spec.dtype))});
    if (list.bytes() != 0) {
      std::memcpy(list.raw(), values[i].data(), list.bytes());
    }
    example[spec.name] = std::move(list);
  }
  return example;
}

}  // namespace cohort::data
