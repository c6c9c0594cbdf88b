// What data sets that are put together of others (combine.cc, interleave.cc) have in common.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

using Sources = std::vector<std::shared_ptr<const Source>>;

// A source whose examples have the same numbers in every epoch; else InvalidArgument, in the words
// of `what`.
Result<std::shared_ptr<const Source>> Unshuffled(const Dataset& data, const char* what);

// InvalidArgument, in the words of `what`: none, or one that is no source.
Result<Sources> SourcesOf(const std::vector<Dataset>& parts, const char* what);

// For each part, where its features stand among those of the leading one: the first that has
// examples, since what a Map makes of none is not known.
class Columns {
 public:
  // InvalidArgument: features that differ.
  static Result<Columns> Make(const Sources& sources, const char* what);

  std::size_t lead() const { return lead_; }

  // Example `index` of part `s`, its features in the order of the leading part's.
  Status Read(const Source& source, std::size_t s, std::int64_t index,
              std::span<std::byte* const> rows, std::span<std::vector<std::byte>> values) const;

 private:
  std::size_t lead_ = 0;
  std::vector<std::vector<std::size_t>> features_;  // by part
  std::vector<std::vector<std::size_t>> lists_;
};

std::uint64_t DigestOf(const std::string& what, const Sources& sources);

// Names the part where its own words, without a file, do not.
std::string WhereIn(const Sources& sources, std::size_t s, std::int64_t index);

// The parts as they read in an epoch; empty: as they are.
Sources PartsAtEpoch(const Sources& sources, std::int64_t epoch);

// A source whose every example is one of a part's; its kinds say which.
class PartsSource : public Source {
 public:
  const std::vector<FeatureSpec>& features() const override {
    return sources_[columns_.lead()]->features();
  }
  const std::vector<RaggedSpec>& ragged() const override {
    return sources_[columns_.lead()]->ragged();
  }
  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override;
  Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                    std::span<std::vector<std::byte>> values) const override;
  std::string Where(std::int64_t index) const override;

 protected:
  struct Place {
    std::size_t part = 0;
    std::int64_t example = 0;  // of the part
  };
  PartsSource(Sources sources, Columns columns)
      : sources_(std::move(sources)), columns_(std::move(columns)) {}
  virtual Place PlaceOf(std::int64_t index) const = 0;

  Sources sources_;
  Columns columns_;
};

}  // namespace cohort::data
