// Filter and FlatMap: what is there is found by one pass, so that every example has a number.

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include <cohort/core/random.h>
#include <cohort/core/thread_pool.h>
#include <cohort/data/combine.h>

#include "parts.h"
#include "record_counts.h"
#include "sources/guarded.h"

namespace cohort::data {
namespace {

// `count` of every example of the source, or of why there is none, on so many threads; the first
// error by index.
Result<std::vector<std::int64_t>> CountEach(
    const Source& source, int threads,
    const std::function<Status(const Result<Example>& example, std::int64_t index,
                               std::int64_t& count)>& count) {
  Require(threads >= 1, "at least 1 thread");
  std::vector<std::int64_t> counts(static_cast<std::size_t>(source.size()));
  std::mutex mutex;
  Status first_error;
  std::int64_t first_place = std::numeric_limits<std::int64_t>::max();
  const auto one = [&](std::int64_t index) -> Status {
    return count(source.Read(index), index, counts[static_cast<std::size_t>(index)]);
  };
  ThreadPool pool(threads, "select");
  pool.ParallelFor(source.size(), 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      if (Status status = Guarded(one, i); !status.ok()) {
        std::lock_guard lock(mutex);
        if (i < first_place) {
          first_place = i;
          first_error = std::move(status);
        }
        return;
      }
    }
  });
  COHORT_RETURN_IF_ERROR(first_error);
  return counts;
}

// The same of examples that must be there; errors of `count` are given their place.
Result<std::vector<std::int64_t>> CountAll(
    const Source& source, int threads,
    const std::function<Status(const Example& example, std::int64_t& count)>& count) {
  return CountEach(
      source, threads,
      [&](const Result<Example>& example, std::int64_t index, std::int64_t& counted) -> Status {
        COHORT_RETURN_IF_ERROR(example.status());
        const Status status = Guarded(count, *example, counted);
        return status.ok() ? status : status.Annotate(source.Where(index));
      });
}

std::vector<std::int64_t> PlacesOfOnes(const std::vector<std::int64_t>& counts) {
  std::vector<std::int64_t> places;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 1) {
      places.push_back(static_cast<std::int64_t>(i));
    }
  }
  return places;
}

class FilteredSource final : public Source {
 public:
  FilteredSource(std::shared_ptr<const Source> source, std::vector<std::int64_t> kept)
      : source_(std::move(source)), kept_(std::move(kept)) {}

  std::int64_t size() const override { return static_cast<std::int64_t>(kept_.size()); }
  const std::vector<FeatureSpec>& features() const override { return source_->features(); }
  const std::vector<RaggedSpec>& ragged() const override { return source_->ragged(); }
  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    return source_->ReadInto(At(index), rows);
  }
  Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                    std::span<std::vector<std::byte>> values) const override {
    return source_->ReadRagged(At(index), rows, values);
  }
  std::string Where(std::int64_t index) const override { return source_->Where(At(index)); }
  std::vector<FileRange> files() const override {
    std::vector<FileRange> files = source_->files();
    for (FileRange& file : files) {
      file.begin = std::lower_bound(kept_.begin(), kept_.end(), file.begin) - kept_.begin();
      file.end = std::lower_bound(kept_.begin(), kept_.end(), file.end) - kept_.begin();
    }
    return files;
  }
  std::uint64_t Fingerprint() const override {
    return Hash64({reinterpret_cast<const char*>(kept_.data()), kept_.size() * sizeof(kept_[0])},
                  source_->Fingerprint());
  }

 private:
  std::int64_t At(std::int64_t index) const { return kept_[static_cast<std::size_t>(index)]; }

  std::shared_ptr<const Source> source_;  // owners: this and data sets
  std::vector<std::int64_t> kept_;        // ascending
};

class FlatSource final : public Source {
 public:
  using Make = std::function<Status(const Example&, std::vector<Example>&)>;

  FlatSource(std::shared_ptr<const Source> source, Make make, std::vector<std::int64_t> ends)
      : source_(std::move(source)), make_(std::move(make)), ends_(std::move(ends)) {}

  // Of the first example that it has.
  Status Describe(const std::vector<std::string>& lists) {
    if (size() == 0) {
      return {};
    }
    COHORT_ASSIGN_OR_RETURN(const Example first, MakeOne(0));
    std::set<std::string> names(lists.begin(), lists.end());
    for (const std::string& name : names) {
      if (!first.contains(name)) {
        return InvalidArgument("FlatMap of " + Where(0) + ": there is no list '" + name + "'");
      }
    }
    for (const RaggedSpec& list : source_->ragged()) {
      names.insert(list.name);
    }
    for (const auto& [name, tensor] : first) {
      if (names.contains(name)) {
        ragged_.push_back({name, tensor.dtype()});
      } else {
        features_.push_back({name, tensor.dtype(), tensor.shape()});
      }
    }
    return {};
  }

  std::int64_t size() const override { return ends_.empty() ? 0 : ends_.back(); }
  const std::vector<FeatureSpec>& features() const override { return features_; }
  const std::vector<RaggedSpec>& ragged() const override { return ragged_; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    std::vector<std::vector<std::byte>> values(ragged_.size());
    return ReadRagged(index, rows, values);
  }
  Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                    std::span<std::vector<std::byte>> values) const override {
    COHORT_ASSIGN_OR_RETURN(const Example example, MakeOne(index));
    const auto other = [&](const std::string& name, const std::string& first) {
      return InvalidArgument("FlatMap of " + Where(index) + ": feature '" + name +
                             "' is not as in the first example, " + first +
                             ", or there are others");
    };
    const bool as_many = example.size() == features_.size() + ragged_.size();
    for (std::size_t i = 0; i < features_.size(); ++i) {
      const FeatureSpec& feature = features_[i];
      const auto it = example.find(feature.name);
      if (it == example.end() || it->second.dtype() != feature.dtype ||
          it->second.shape() != feature.shape || !as_many) {
        return other(feature.name,
                     std::string(DTypeName(feature.dtype)) + feature.shape.ToString());
      }
      if (it->second.bytes() != 0) {
        std::memcpy(rows[i], it->second.raw(), it->second.bytes());
      }
    }
    for (std::size_t i = 0; i < ragged_.size(); ++i) {
      const auto it = example.find(ragged_[i].name);
      if (it == example.end() || it->second.dtype() != ragged_[i].dtype ||
          it->second.shape().rank() != 1 || !as_many) {
        return other(ragged_[i].name,
                     "a list of " + std::string(DTypeName(ragged_[i].dtype)) + " of one axis");
      }
      const std::byte* const list = it->second.raw();
      values[i].insert(values[i].end(), list, list + it->second.bytes());
    }
    return {};
  }
  std::string Where(std::int64_t index) const override {
    const std::int64_t from = From(index);
    return source_->Where(from) + ", example " + std::to_string(index - Begin(from)) + " of it";
  }
  std::vector<FileRange> files() const override {
    std::vector<FileRange> files = source_->files();
    for (FileRange& file : files) {
      file.begin = Begin(file.begin);
      file.end = Begin(file.end);
    }
    return files;
  }
  std::uint64_t Fingerprint() const override {
    return Hash64({reinterpret_cast<const char*>(ends_.data()), ends_.size() * sizeof(ends_[0])},
                  source_->Fingerprint());
  }

 private:
  std::int64_t Begin(std::int64_t from) const {
    return from == 0 ? 0 : ends_[static_cast<std::size_t>(from) - 1];
  }
  // Which example of the source it is made of.
  std::int64_t From(std::int64_t index) const {
    return std::upper_bound(ends_.begin(), ends_.end(), index) - ends_.begin();
  }
  Result<Example> MakeOne(std::int64_t index) const {
    const std::int64_t from = From(index);
    COHORT_ASSIGN_OR_RETURN(const Example example, source_->Read(from));
    std::vector<Example> made;
    Status status = Guarded(make_, example, made);
    const std::int64_t count = ends_[static_cast<std::size_t>(from)] - Begin(from);
    if (status.ok() && made.size() != static_cast<std::size_t>(count)) {
      status = InvalidArgument("makes " + std::to_string(made.size()) + " examples, and made " +
                               std::to_string(count) + " before [it must be a function]");
    }
    if (!status.ok()) {
      return status.Annotate("FlatMap of " + source_->Where(from));
    }
    return std::move(made[static_cast<std::size_t>(index - Begin(from))]);
  }

  std::shared_ptr<const Source> source_;  // owners: this and data sets
  Make make_;
  std::vector<std::int64_t> ends_;  // of each example of the source: made of it and those before
  std::vector<FeatureSpec> features_;
  std::vector<RaggedSpec> ragged_;
};

}  // namespace

Result<Dataset> Filter(const Dataset& data,
                       const std::function<Result<bool>(const Example&)>& holds, int threads) {
  Require(holds != nullptr, "Filter has a function");
  COHORT_ASSIGN_OR_RETURN(auto source, Unshuffled(data, "Filter"));
  COHORT_ASSIGN_OR_RETURN(
      const std::vector<std::int64_t> counts,
      CountAll(*source, threads, [&holds](const Example& example, std::int64_t& count) -> Status {
        COHORT_ASSIGN_OR_RETURN(const bool kept, holds(example));
        count = kept ? 1 : 0;
        return {};
      }));
  return Dataset(std::make_shared<const FilteredSource>(std::move(source), PlacesOfOnes(counts)));
}

Result<Dataset> SkipCorrupt(const Dataset& data, std::int64_t max_corrupt, CorruptExamples* corrupt,
                            int threads, Metrics* metrics) {
  COHORT_ASSIGN_OR_RETURN(auto source, Unshuffled(data, "SkipCorrupt"));
  std::mutex mutex;
  std::map<std::int64_t, std::string> messages;  // the first 20 by index; guarded by mutex
  COHORT_ASSIGN_OR_RETURN(
      const std::vector<std::int64_t> counts,
      CountEach(
          *source, threads,
          [&](const Result<Example>& example, std::int64_t index, std::int64_t& count) -> Status {
            count = example.ok() ? 1 : 0;
            if (example.ok() || example.status().code() != StatusCode::kDataLoss) {
              return example.status();
            }
            constexpr std::size_t kKept = 20;
            std::lock_guard lock(mutex);
            messages.emplace(index, example.status().message());
            if (messages.size() > kKept) {
              messages.erase(std::prev(messages.end()));
            }
            return {};
          }));
  std::vector<std::int64_t> kept = PlacesOfOnes(counts);
  const std::int64_t lost = source->size() - static_cast<std::int64_t>(kept.size());
  if (lost > max_corrupt) {
    return DataLoss(std::to_string(lost) + " corrupt examples, at most " +
                    std::to_string(max_corrupt) +
                    " are skipped; the first: " + messages.begin()->second);
  }
  if (corrupt != nullptr) {
    corrupt->examples = lost;
    corrupt->messages.clear();
    for (auto& [index, message] : messages) {
      corrupt->messages.push_back(std::move(message));
    }
  }
  CountRecords(metrics, std::ssize(kept), lost);
  return Dataset(std::make_shared<const FilteredSource>(std::move(source), std::move(kept)));
}

Result<Dataset> FlatMap(const Dataset& data,
                        std::function<Status(const Example&, std::vector<Example>&)> make,
                        int threads, const std::vector<std::string>& lists) {
  Require(make != nullptr, "FlatMap has a function");
  COHORT_ASSIGN_OR_RETURN(auto source, Unshuffled(data, "FlatMap"));
  COHORT_ASSIGN_OR_RETURN(
      std::vector<std::int64_t> ends,
      CountAll(*source, threads, [&make](const Example& example, std::int64_t& count) -> Status {
        std::vector<Example> made;
        COHORT_RETURN_IF_ERROR(make(example, made));
        count = static_cast<std::int64_t>(made.size());
        return {};
      }));
  for (std::size_t i = 1; i < ends.size(); ++i) {
    ends[i] += ends[i - 1];
  }
  auto flat = std::make_shared<FlatSource>(std::move(source), std::move(make), std::move(ends));
  COHORT_RETURN_IF_ERROR(flat->Describe(lists));
  return Dataset(std::move(flat));
}

}  // namespace cohort::data
