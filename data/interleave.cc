// Interleave: so many parts open at once, a block of each in turn.

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <cohort/data/combine.h>

#include "parts.h"

namespace cohort::data {
namespace {

// The order, found by going through it from one opening or end of a part to the next; what is
// between them is rounds that are alike.
class Rounds {
 public:
  struct Place {
    std::size_t part = 0;
    std::int64_t example = 0;
  };

  Rounds(const std::vector<std::int64_t>& sizes, std::int64_t cycle, std::int64_t block) {
    struct Slot {
      std::optional<std::size_t> part;
      std::int64_t done = 0;
    };
    std::vector<Slot> slots(
        static_cast<std::size_t>(std::min(cycle, static_cast<std::int64_t>(sizes.size()))));
    std::size_t next = 0;  // part to open
    while (!slots.empty()) {
      Run run{.begin = size_};
      // Alike for as long as no slot opens or comes to an end.
      constexpr std::int64_t kMany = std::numeric_limits<std::int64_t>::max();
      std::int64_t rounds = kMany;
      for (const Slot& slot : slots) {
        rounds =
            std::min(rounds, slot.part.has_value() ? (sizes[*slot.part] - slot.done) / block : 0);
      }
      const std::int64_t times = std::max<std::int64_t>(rounds, 1);
      for (Slot& slot : slots) {
        if (!slot.part.has_value() && next < sizes.size()) {
          slot = {next++, 0};
        }
        if (!slot.part.has_value()) {
          continue;
        }
        const std::int64_t length = std::min(block, sizes[*slot.part] - slot.done);
        if (length > 0) {
          run.turns.push_back({run.size, *slot.part, slot.done, length});
          run.size += length;
        }
        slot.done += times * length;
        if (length < block) {
          slot.part.reset();  // its turn is over; the next one opens another part
        }
      }
      size_ += times * run.size;
      if (run.size > 0) {
        runs_.push_back(std::move(run));
      }
      if (next == sizes.size()) {
        std::erase_if(slots, [](const Slot& slot) { return !slot.part.has_value(); });
      }
    }
  }

  std::int64_t size() const { return size_; }

  Place At(std::int64_t position) const {
    const auto run =
        std::upper_bound(runs_.begin(), runs_.end(), position,
                         [](std::int64_t at, const Run& other) { return at < other.begin; }) -
        1;
    const std::int64_t round = (position - run->begin) / run->size;
    const std::int64_t at = (position - run->begin) % run->size;
    const auto turn =
        std::upper_bound(run->turns.begin(), run->turns.end(), at,
                         [](std::int64_t p, const Turn& other) { return p < other.at; }) -
        1;
    return {turn->part, turn->done + round * turn->length + at - turn->at};
  }

 private:
  struct Turn {
    std::int64_t at = 0;  // in its round
    std::size_t part = 0;
    std::int64_t done = 0;  // of the part, before the first round
    std::int64_t length = 0;
  };
  // Rounds that differ only in how far the parts are.
  struct Run {
    std::int64_t begin = 0;  // in the whole order
    std::int64_t size = 0;   // of one round
    std::vector<Turn> turns = {};
  };

  std::int64_t size_ = 0;
  std::vector<Run> runs_;
};

class InterleavedSource final : public PartsSource {
 public:
  InterleavedSource(Sources sources, Columns columns, const InterleaveOptions& options)
      : PartsSource(std::move(sources), std::move(columns)), options_(options) {
    std::vector<std::int64_t> sizes;
    for (const auto& source : sources_) {
      sizes.push_back(source->size());
    }
    rounds_ = std::make_shared<const Rounds>(sizes, options.cycle_length, options.block_length);
  }

  std::int64_t size() const override { return rounds_->size(); }
  std::uint64_t Fingerprint() const override {
    return DigestOf("interleaved " + std::to_string(options_.cycle_length) + " " +
                        std::to_string(options_.block_length),
                    sources_);
  }
  std::shared_ptr<const Source> AtEpoch(std::int64_t epoch) const override {
    Sources at = PartsAtEpoch(sources_, epoch);
    if (at.empty()) {
      return nullptr;
    }
    auto other = std::make_shared<InterleavedSource>(*this);  // shares rounds_
    other->sources_ = std::move(at);
    return other;
  }

 private:
  Place PlaceOf(std::int64_t index) const override {
    const Rounds::Place place = rounds_->At(index);
    return {place.part, place.example};
  }

  InterleaveOptions options_;
  std::shared_ptr<const Rounds> rounds_;  // owners: this and those of other epochs
};

}  // namespace

Result<Dataset> Interleave(const std::vector<Dataset>& parts, const InterleaveOptions& options) {
  if (options.cycle_length < 1 || options.block_length < 1) {
    return InvalidArgument("Interleave: " + std::to_string(options.cycle_length) +
                           " open parts and blocks of " + std::to_string(options.block_length) +
                           ", at least 1 is expected of both");
  }
  COHORT_ASSIGN_OR_RETURN(Sources sources, SourcesOf(parts, "Interleave"));
  COHORT_ASSIGN_OR_RETURN(Columns columns, Columns::Make(sources, "Interleave"));
  return Dataset(
      std::make_shared<const InterleavedSource>(std::move(sources), std::move(columns), options));
}

}  // namespace cohort::data
