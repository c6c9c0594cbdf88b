// Cache: examples in memory.

#include <array>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include <cohort/data/combine.h>

#include "parts.h"

namespace cohort::data {
namespace {

class CachedSource final : public Source {
 public:
  explicit CachedSource(std::shared_ptr<const Source> source)
      : source_(std::move(source)), slots_(static_cast<std::size_t>(source_->size())) {
    for (const FeatureSpec& feature : features()) {
      constexpr std::size_t kAlignment = alignof(std::max_align_t);  // of any element
      row_begins_.push_back(row_bytes_);
      row_bytes_ += (feature.bytes() + kAlignment - 1) / kAlignment * kAlignment;
    }
  }

  std::int64_t size() const override { return source_->size(); }
  const std::vector<FeatureSpec>& features() const override { return source_->features(); }
  const std::vector<RaggedSpec>& ragged() const override { return source_->ragged(); }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    std::vector<std::vector<std::byte>> values(ragged().size());
    return ReadRagged(index, rows, values);
  }
  Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                    std::span<std::vector<std::byte>> values) const override {
    const auto slot = static_cast<std::size_t>(index);
    std::mutex& mutex = mutexes_[slot % mutexes_.size()];
    std::shared_ptr<const Kept> kept;
    {
      std::lock_guard lock(mutex);
      kept = slots_[slot];
    }
    if (kept == nullptr) {
      COHORT_ASSIGN_OR_RETURN(kept, Load(index));
      std::lock_guard lock(mutex);
      slots_[slot] = kept;  // where two threads read it at once, both have the same
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (const std::size_t bytes = features()[i].bytes(); bytes != 0) {
        std::memcpy(rows[i], kept->rows.data() + row_begins_[i], bytes);
      }
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i].insert(values[i].end(), kept->values[i].begin(), kept->values[i].end());
    }
    return {};
  }
  std::string Where(std::int64_t index) const override { return source_->Where(index); }
  std::vector<FileRange> files() const override { return source_->files(); }
  std::uint64_t Fingerprint() const override { return source_->Fingerprint(); }

 private:
  struct Kept {
    std::vector<std::byte> rows;  // feature i from row_begins_[i]
    std::vector<std::vector<std::byte>> values;
  };

  Result<std::shared_ptr<const Kept>> Load(std::int64_t index) const {
    auto kept = std::make_shared<Kept>();
    kept->rows.resize(row_bytes_);
    kept->values.resize(ragged().size());
    std::vector<std::byte*> rows;
    for (const std::size_t begin : row_begins_) {
      rows.push_back(kept->rows.data() + begin);
    }
    COHORT_RETURN_IF_ERROR(source_->ReadRagged(index, rows, kept->values));
    return std::shared_ptr<const Kept>(std::move(kept));
  }

  std::shared_ptr<const Source> source_;  // owners: this and data sets
  std::vector<std::size_t> row_begins_;
  std::size_t row_bytes_ = 0;
  mutable std::array<std::mutex, 64> mutexes_;  // of the slots of equal remainder
  mutable std::vector<std::shared_ptr<const Kept>> slots_;
};

}  // namespace

Result<Dataset> Cache(const Dataset& data) {
  COHORT_ASSIGN_OR_RETURN(auto source, Unshuffled(data, "Cache"));
  return Dataset(std::make_shared<const CachedSource>(std::move(source)));
}

}  // namespace cohort::data
