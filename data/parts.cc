#include "parts.h"

#include <algorithm>
#include <utility>

#include <cohort/core/random.h>

namespace cohort::data {

Result<std::shared_ptr<const Source>> Unshuffled(const Dataset& data, const char* what) {
  COHORT_ASSIGN_OR_RETURN(auto source, data.AsSource());
  if (source->AtEpoch(1) != nullptr) {
    return InvalidArgument(std::string(what) +
                           ": the data set is shuffled, or mixed, anew in each epoch [Shuffle "
                           "after it]");
  }
  return source;
}

Result<Sources> SourcesOf(const std::vector<Dataset>& parts, const char* what) {
  if (parts.empty()) {
    return InvalidArgument(std::string(what) + ": no data sets");
  }
  Sources sources;
  for (const Dataset& part : parts) {
    Result<std::shared_ptr<const Source>> source = part.AsSource();
    if (!source.ok()) {
      return source.status().Annotate(std::string(what) + ", data set " +
                                      std::to_string(sources.size()));
    }
    sources.push_back(std::move(source).value());
  }
  return sources;
}

namespace {

std::string Describe(const Source& source) {
  std::string text;
  for (const FeatureSpec& feature : source.features()) {
    text += (text.empty() ? "" : ", ") + feature.name + " " +
            std::string(DTypeName(feature.dtype)) + feature.shape.ToString();
  }
  for (const RaggedSpec& list : source.ragged()) {
    text +=
        (text.empty() ? "" : ", ") + list.name + " " + std::string(DTypeName(list.dtype)) + "[any]";
  }
  return text;
}

template <typename Spec>
bool Match(const std::vector<Spec>& mine, const std::vector<Spec>& first,
           std::vector<std::size_t>& places) {
  for (const Spec& spec : mine) {
    const auto it = std::find(first.begin(), first.end(), spec);
    if (it == first.end()) {
      return false;
    }
    places.push_back(static_cast<std::size_t>(it - first.begin()));
  }
  return mine.size() == first.size();
}

}  // namespace

Result<Columns> Columns::Make(const Sources& sources, const char* what) {
  Columns columns;
  while (columns.lead_ + 1 < sources.size() && sources[columns.lead_]->size() == 0) {
    ++columns.lead_;
  }
  const Source& lead = *sources[columns.lead_];
  for (std::size_t s = 0; s < sources.size(); ++s) {
    std::vector<std::size_t> features;
    std::vector<std::size_t> lists;
    if (sources[s]->size() > 0 && (!Match(sources[s]->features(), lead.features(), features) ||
                                   !Match(sources[s]->ragged(), lead.ragged(), lists))) {
      return InvalidArgument(std::string(what) + ": data set " + std::to_string(s) + " has " +
                             Describe(*sources[s]) + "; data set " + std::to_string(columns.lead_) +
                             " has " + Describe(lead));
    }
    columns.features_.push_back(std::move(features));
    columns.lists_.push_back(std::move(lists));
  }
  return columns;
}

Status Columns::Read(const Source& source, std::size_t s, std::int64_t index,
                     std::span<std::byte* const> rows,
                     std::span<std::vector<std::byte>> values) const {
  std::vector<std::byte*> own(rows.size());
  for (std::size_t i = 0; i < own.size(); ++i) {
    own[i] = rows[features_[s][i]];
  }
  if (lists_[s].empty()) {
    return source.ReadInto(index, own);
  }
  std::vector<std::vector<std::byte>> lists(values.size());
  for (std::size_t i = 0; i < lists.size(); ++i) {
    lists[i].swap(values[lists_[s][i]]);
  }
  const Status status = source.ReadRagged(index, own, lists);
  for (std::size_t i = 0; i < lists.size(); ++i) {
    lists[i].swap(values[lists_[s][i]]);
  }
  return status;
}

std::uint64_t DigestOf(const std::string& what, const Sources& sources) {
  std::uint64_t digest = Hash64(what);
  for (const auto& source : sources) {
    digest = Hash64(std::to_string(source->Fingerprint()) + "/" + std::to_string(source->size()),
                    digest);
  }
  return digest;
}

std::string WhereIn(const Sources& sources, std::size_t s, std::int64_t index) {
  return (sources[s]->files().empty() ? "data set " + std::to_string(s) + ", " : "") +
         sources[s]->Where(index);
}

Sources PartsAtEpoch(const Sources& sources, std::int64_t epoch) {
  Sources at = sources;
  bool changed = false;
  for (auto& source : at) {
    if (auto other = source->AtEpoch(epoch)) {
      source = std::move(other);
      changed = true;
    }
  }
  return changed ? at : Sources();
}

Status PartsSource::ReadInto(std::int64_t index, std::span<std::byte* const> rows) const {
  std::vector<std::vector<std::byte>> values(ragged().size());
  return ReadRagged(index, rows, values);
}

Status PartsSource::ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                               std::span<std::vector<std::byte>> values) const {
  const Place place = PlaceOf(index);
  return columns_.Read(*sources_[place.part], place.part, place.example, rows, values);
}

std::string PartsSource::Where(std::int64_t index) const {
  const Place place = PlaceOf(index);
  return WhereIn(sources_, place.part, place.example);
}

}  // namespace cohort::data
