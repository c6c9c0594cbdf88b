#include <cohort/data/combine.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include <cohort/core/random.h>

#include "parts.h"

namespace cohort::data {
namespace {

class ConcatenatedSource final : public PartsSource {
 public:
  ConcatenatedSource(Sources sources, Columns columns)
      : PartsSource(std::move(sources), std::move(columns)) {
    for (const auto& source : sources_) {
      ends_.push_back(size() + source->size());
    }
  }

  std::int64_t size() const override { return ends_.empty() ? 0 : ends_.back(); }

  std::vector<FileRange> files() const override {
    std::vector<FileRange> files;
    for (std::size_t s = 0; s < sources_.size(); ++s) {
      const std::vector<FileRange> part = sources_[s]->files();
      if (part.empty() && sources_[s]->size() > 0) {
        return {};
      }
      for (const FileRange& range : part) {
        files.push_back({range.name, range.begin + Begin(s), range.end + Begin(s), range.bytes});
      }
    }
    return files;
  }
  std::uint64_t Fingerprint() const override { return DigestOf("concatenated", sources_); }
  std::shared_ptr<const Source> AtEpoch(std::int64_t epoch) const override {
    Sources at = PartsAtEpoch(sources_, epoch);
    return at.empty() ? nullptr
                      : std::make_shared<const ConcatenatedSource>(std::move(at), columns_);
  }

 private:
  std::int64_t Begin(std::size_t s) const { return s == 0 ? 0 : ends_[s - 1]; }
  Place PlaceOf(std::int64_t index) const override {
    const auto s = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), index) -
                                            ends_.begin());
    return {s, index - Begin(s)};
  }

  std::vector<std::int64_t> ends_;
};

class ZippedSource final : public Source {
 public:
  explicit ZippedSource(Sources sources) : sources_(std::move(sources)) {
    for (const auto& source : sources_) {
      features_.insert(features_.end(), source->features().begin(), source->features().end());
      ragged_.insert(ragged_.end(), source->ragged().begin(), source->ragged().end());
    }
  }

  std::int64_t size() const override { return sources_[0]->size(); }
  const std::vector<FeatureSpec>& features() const override { return features_; }
  const std::vector<RaggedSpec>& ragged() const override { return ragged_; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    std::vector<std::vector<std::byte>> values(ragged_.size());
    return ReadRagged(index, rows, values);
  }
  Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                    std::span<std::vector<std::byte>> values) const override {
    std::size_t row = 0;
    std::size_t list = 0;
    for (const auto& source : sources_) {
      const std::size_t n = source->features().size();
      const std::size_t m = source->ragged().size();
      COHORT_RETURN_IF_ERROR(
          source->ReadRagged(index, rows.subspan(row, n), values.subspan(list, m)));
      row += n;
      list += m;
    }
    return {};
  }
  std::string Where(std::int64_t index) const override {
    std::string where;
    for (const auto& source : sources_) {
      where += (where.empty() ? "" : " with ") + source->Where(index);
    }
    return where;
  }
  std::uint64_t Fingerprint() const override { return DigestOf("zipped", sources_); }
  std::shared_ptr<const Source> AtEpoch(std::int64_t epoch) const override {
    Sources at = PartsAtEpoch(sources_, epoch);
    return at.empty() ? nullptr : std::make_shared<const ZippedSource>(std::move(at));
  }

 private:
  Sources sources_;
  std::vector<FeatureSpec> features_;
  std::vector<RaggedSpec> ragged_;
};

// Blocks of equal shares: block b has examples [b * share, (b + 1) * share) of each part, in places
// drawn by a permutation of the block. The last block has what is left of each.
class MixedSource final : public PartsSource {
 public:
  MixedSource(Sources sources, Columns columns, std::vector<std::int64_t> shares,
              std::int64_t blocks, std::vector<std::int64_t> rest, std::uint64_t seed,
              std::int64_t epoch)
      : PartsSource(std::move(sources), std::move(columns)),
        shares_(std::move(shares)),
        blocks_(blocks),
        rest_(std::move(rest)),
        seed_(seed),
        epoch_(epoch) {
    block_ = std::accumulate(shares_.begin(), shares_.end(), std::int64_t{0});
    rest_size_ = std::accumulate(rest_.begin(), rest_.end(), std::int64_t{0});
  }

  std::int64_t size() const override { return blocks_ * block_ + rest_size_; }
  std::uint64_t Fingerprint() const override {
    std::string what = "mixed " + std::to_string(seed_);
    for (std::size_t s = 0; s < shares_.size(); ++s) {
      what += " " + std::to_string(shares_[s]) + "+" + std::to_string(rest_[s]);
    }
    return DigestOf(what, sources_);
  }
  std::shared_ptr<const Source> AtEpoch(std::int64_t epoch) const override {
    Sources at = PartsAtEpoch(sources_, epoch);
    return std::make_shared<const MixedSource>(at.empty() ? sources_ : std::move(at), columns_,
                                               shares_, blocks_, rest_, seed_, epoch);
  }

 private:
  Place PlaceOf(std::int64_t index) const override {
    const std::int64_t b = block_ == 0 ? blocks_ : std::min(index / block_, blocks_);
    const std::vector<std::int64_t>& shares = b < blocks_ ? shares_ : rest_;
    const std::int64_t size = b < blocks_ ? block_ : rest_size_;
    const Philox::Block words =
        Philox(seed_, "data/mix")
            .At(static_cast<std::uint64_t>(epoch_), static_cast<std::uint64_t>(b));
    const Permutation places(static_cast<std::uint64_t>(size),
                             (std::uint64_t{words[1]} << 32) | words[0]);
    auto at = static_cast<std::int64_t>(places(static_cast<std::uint64_t>(index - b * block_)));
    std::size_t s = 0;
    while (at >= shares[s]) {
      at -= shares[s++];
    }
    return {s, b * shares_[s] + at};
  }

  std::vector<std::int64_t> shares_;  // of each part in a block
  std::int64_t blocks_;
  std::vector<std::int64_t> rest_;  // of each part behind the last block
  std::uint64_t seed_;
  std::int64_t epoch_;
  std::int64_t block_ = 0;  // examples in one
  std::int64_t rest_size_ = 0;
};

constexpr double kMostWeight = 1e300;  // sums of many stay finite

// Whole numbers in these proportions that are `block` in all: largest remainders.
std::vector<std::int64_t> SharesOf(const std::vector<double>& weights, std::int64_t block) {
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<std::int64_t> shares;
  std::vector<std::pair<double, std::size_t>> remainders;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double exact = weights[i] / total * static_cast<double>(block);
    shares.push_back(static_cast<std::int64_t>(std::floor(exact)));
    remainders.emplace_back(static_cast<double>(shares.back()) - exact, i);
  }
  std::sort(remainders.begin(), remainders.end());
  std::int64_t left = block - std::accumulate(shares.begin(), shares.end(), std::int64_t{0});
  for (std::size_t i = 0; left > 0; ++i, --left) {
    ++shares[remainders[i % remainders.size()].second];
  }
  return shares;
}

}  // namespace

Result<Dataset> Concatenate(const std::vector<Dataset>& parts) {
  COHORT_ASSIGN_OR_RETURN(Sources sources, SourcesOf(parts, "Concatenate"));
  COHORT_ASSIGN_OR_RETURN(Columns columns, Columns::Make(sources, "Concatenate"));
  return Dataset(
      std::make_shared<const ConcatenatedSource>(std::move(sources), std::move(columns)));
}

Result<Dataset> Zip(const std::vector<Dataset>& parts) {
  COHORT_ASSIGN_OR_RETURN(Sources sources, SourcesOf(parts, "Zip"));
  std::map<std::string, std::size_t> owners;
  for (std::size_t s = 0; s < sources.size(); ++s) {
    if (sources[s]->size() != sources[0]->size()) {
      return InvalidArgument("Zip: data set " + std::to_string(s) + " has " +
                             std::to_string(sources[s]->size()) + " examples, data set 0 " +
                             std::to_string(sources[0]->size()) + " [Take makes them equal]");
    }
    std::vector<std::string> names;
    for (const FeatureSpec& feature : sources[s]->features()) {
      names.push_back(feature.name);
    }
    for (const RaggedSpec& list : sources[s]->ragged()) {
      names.push_back(list.name);
    }
    for (const std::string& name : names) {
      const auto [it, is_new] = owners.emplace(name, s);
      if (!is_new) {
        return InvalidArgument("Zip: feature '" + name + "' is in data sets " +
                               std::to_string(it->second) + " and " + std::to_string(s));
      }
    }
  }
  return Dataset(std::make_shared<const ZippedSource>(std::move(sources)));
}

Result<Dataset> Mix(const std::vector<Dataset>& parts, const MixOptions& options) {
  COHORT_ASSIGN_OR_RETURN(Sources sources, SourcesOf(parts, "Mix"));
  COHORT_ASSIGN_OR_RETURN(Columns columns, Columns::Make(sources, "Mix"));
  const std::size_t n = sources.size();
  if (options.block < 1 || (!options.weights.empty() && options.weights.size() != n)) {
    return InvalidArgument("Mix: " + std::to_string(options.weights.size()) + " weights for " +
                           std::to_string(n) + " data sets, blocks of " +
                           std::to_string(options.block));
  }
  std::vector<double> weights = options.weights;
  if (weights.empty()) {
    for (const auto& source : sources) {
      weights.push_back(static_cast<double>(source->size()));
    }
    if (std::accumulate(weights.begin(), weights.end(), 0.0) == 0) {
      weights.assign(n, 1);
    }
  }
  std::vector<std::int64_t> rest(n, 0);
  std::int64_t blocks = 0;
  const auto refuse = [&](std::size_t s, const std::string& why) {
    return InvalidArgument("Mix: weight " + std::to_string(weights[s]) + " of data set " +
                           std::to_string(s) + " is " + why);
  };
  for (std::size_t s = 0; s < options.weights.size(); ++s) {
    if (!(weights[s] > 0) || !(weights[s] <= kMostWeight)) {
      return refuse(s, "not a number above 0 and up to 1e300");
    }
  }
  std::vector<std::int64_t> shares = SharesOf(weights, options.block);
  if (!options.weights.empty()) {
    for (std::size_t s = 0; s < n; ++s) {
      if (shares[s] == 0) {
        return refuse(s,
                      "none of " + std::to_string(options.block) + " examples [MixOptions.block]");
      }
      const std::int64_t most = sources[s]->size() / shares[s];
      blocks = s == 0 ? most : std::min(blocks, most);
    }
  } else {
    // Every example once: whole blocks as long as all parts fill them, the rest mixed as one.
    bool any = false;
    for (std::size_t s = 0; s < n; ++s) {
      if (shares[s] > 0) {
        const std::int64_t most = sources[s]->size() / shares[s];
        blocks = any ? std::min(blocks, most) : most;
        any = true;
      }
    }
    for (std::size_t s = 0; s < n; ++s) {
      rest[s] = sources[s]->size() - blocks * shares[s];
    }
  }
  return Dataset(std::make_shared<const MixedSource>(std::move(sources), std::move(columns),
                                                     std::move(shares), blocks, std::move(rest),
                                                     options.seed, 0));
}

}  // namespace cohort::data
