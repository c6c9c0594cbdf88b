// MemorySource: rows of tensors. The base of sources that decode whole files when they are opened.

#pragma once

#include <vector>

#include <cohort/data/source.h>

namespace cohort::data {

class MemorySource : public Source {
 public:
  // Every tensor has `size` rows.
  MemorySource(const Example& tensors, std::int64_t size);

  std::int64_t size() const override { return size_; }
  const std::vector<FeatureSpec>& features() const override { return features_; }
  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override;
  std::string Where(std::int64_t index) const override;
  std::uint64_t Fingerprint() const override;

 private:
  std::int64_t size_;
  std::vector<FeatureSpec> features_;
  std::vector<Tensor> tensors_;
};

}  // namespace cohort::data
