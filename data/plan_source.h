// PlanSource: what a data set does before Batch, as a source.

#pragma once

#include <memory>
#include <vector>

#include "batch_builder.h"
#include "shard.h"

namespace cohort::data {

class PlanSource final : public Source {
 public:
  // Where there are maps, the first example is read to know what they make.
  static Result<std::shared_ptr<const Source>> Make(std::shared_ptr<const Source> source,
                                                    std::vector<OrderStage> order, Recipe recipe,
                                                    std::uint64_t fingerprint);

  std::int64_t size() const override { return order_.size(); }
  const std::vector<FeatureSpec>& features() const override { return features_; }
  const std::vector<RaggedSpec>& ragged() const override { return ragged_; }
  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override;
  Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                    std::span<std::vector<std::byte>> values) const override;
  std::string Where(std::int64_t index) const override { return source_->Where(order_.At(index)); }
  std::vector<FileRange> files() const override;
  std::uint64_t Fingerprint() const override { return fingerprint_; }
  std::shared_ptr<const Source> AtEpoch(std::int64_t epoch) const override;

 private:
  PlanSource(std::shared_ptr<const Source> source, std::vector<OrderStage> stages, Recipe recipe,
             std::uint64_t fingerprint, std::int64_t epoch);
  Status Describe();  // features_ and ragged_
  Status Store(const Example& example, std::span<std::byte* const> rows,
               std::span<std::vector<std::byte>> values) const;

  std::shared_ptr<const Source> source_;  // owners: this, data sets and other sources
  std::vector<OrderStage> stages_;
  Recipe recipe_;
  std::uint64_t fingerprint_;
  EpochOrder order_;
  std::vector<FeatureSpec> features_;
  std::vector<RaggedSpec> ragged_;
};

}  // namespace cohort::data
