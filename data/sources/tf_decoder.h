// TfDecoder: the features that are asked for, out of tf.train.Example and SequenceExample messages.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/data/source.h>
#include <cohort/data/tf_record.h>

namespace cohort::data {

// Thread rules: Decode from many threads at once.
class TfDecoder {
 public:
  explicit TfDecoder(std::vector<TfFeatureSpec> specs);
  TfDecoder(const TfDecoder&) = delete;
  TfDecoder& operator=(const TfDecoder&) = delete;

  const std::vector<TfFeatureSpec>& specs() const { return specs_; }
  const std::vector<FeatureSpec>& features() const { return features_; }  // those of fixed shape
  const std::vector<RaggedSpec>& ragged() const { return ragged_; }       // and the others

  // As Source::ReadRagged. The Status says which feature does not fit, and how.
  Status Decode(std::string_view message, std::span<std::byte* const> rows,
                std::span<std::vector<std::byte>> values) const;

 private:
  // A feature as one pass over a message needs it.
  struct Column {
    std::string_view name;
    TfType type = TfType::kFloat32;
    std::size_t want = 0;  // values, of kBytes bytes
    std::int64_t buckets = 0;
    std::ptrdiff_t row = -1;  // -1: ragged, or of steps
    std::int32_t next = -1;   // of the same slot
  };

  bool StoreAll(std::string_view message, std::span<std::byte* const> rows,
                std::vector<std::string_view>& entries) const;
  Status DecodeAny(std::string_view message, std::span<std::byte* const> rows,
                   std::span<std::vector<std::byte>> values) const;
  static bool StorePlain(const Column& column, std::string_view feature, std::byte* row);

  // The column of that name, -1: none.
  std::int32_t Find(std::string_view name) const {
    std::int32_t i = slots_[SlotOf(name)];
    while (i >= 0 && columns_[static_cast<std::size_t>(i)].name != name) {
      i = columns_[static_cast<std::size_t>(i)].next;
    }
    return i;
  }
  static std::size_t SlotOf(std::string_view name) {
    return name.empty() ? 0
                        : (name.size() + static_cast<unsigned char>(name.front()) * 3 +
                           static_cast<unsigned char>(name.back()) * 7) %
                              kSlots;
  }
  static constexpr std::size_t kSlots = 64;

  std::vector<TfFeatureSpec> specs_;
  std::vector<Column> columns_;               // of specs_; names are theirs
  std::array<std::int32_t, kSlots> slots_{};  // the first column of each, -1: none
  std::vector<FeatureSpec> features_;
  std::vector<RaggedSpec> ragged_;
  bool any_steps_ = false;
};

}  // namespace cohort::data
