#include <cohort/data/source.h>

namespace cohort::data {

Result<Example> Source::Read(std::int64_t index) const {
  Example example;
  std::vector<std::byte*> rows;
  for (const FeatureSpec& feature : features()) {
    Tensor& tensor = example[feature.name] = Tensor(feature.dtype, feature.shape);
    rows.push_back(tensor.raw());
  }
  COHORT_RETURN_IF_ERROR(ReadInto(index, rows));
  return example;
}

}  // namespace cohort::data
