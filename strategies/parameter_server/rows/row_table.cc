#include "parameter_server/rows/row_table.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <optional>
#include <tuple>

#include <cohort/core/random.h>

#include "parameter_server/frames/payload.h"
#include "parameter_server/rows/row_bucket.h"
#include "parameter_server/rows/row_walk.h"

namespace cohort::ps {
namespace {

constexpr std::size_t kMaxIds = std::size_t{1} << 31;
constexpr std::uint32_t kMost = std::numeric_limits<std::uint32_t>::max();

std::uint32_t AddSaturated(std::uint32_t a, std::uint32_t b) {
  return a > kMost - b ? kMost : a + b;
}

void Use(RowHeader& header, std::uint32_t step) {
  header.last_step = std::max(header.last_step, step);
}

}  // namespace

// Not initialised before they are written: a call's entries are as many bytes as a row each.
struct RowTable::Entries {
  explicit Entries(std::size_t count)
      : memory(std::make_unique_for_overwrite<Entry[]>(count)), all(memory.get(), count) {}
  std::unique_ptr<Entry[]> memory;
  std::span<Entry> all;
};

// Gradients of a call that had no effect, counted when it ends.
class RowTable::Lost {
 public:
  explicit Lost(RowTable& table) : table_(table) {}
  Lost(const Lost&) = delete;
  Lost& operator=(const Lost&) = delete;
  ~Lost() {
    if (dropped > 0) {
      table_.losses_->dropped.fetch_add(dropped, std::memory_order_relaxed);
    }
    if (skipped_ > 0 &&
        table_.losses_->skipped.fetch_add(skipped_, std::memory_order_relaxed) == 0 &&
        table_.on_first_skip_) {
      table_.on_first_skip_(first_skipped_);
    }
  }
  void Skip(std::uint64_t id) {
    if (skipped_++ == 0) {
      first_skipped_ = id;
    }
  }

  std::uint64_t dropped = 0;

 private:
  RowTable& table_;
  std::uint64_t skipped_ = 0;
  std::uint64_t first_skipped_ = 0;
};

Result<std::unique_ptr<RowTable>> RowTable::Create(TableSpec spec, BucketRange range,
                                                   EvictionHook on_evict) {
  COHORT_RETURN_IF_ERROR(spec.Check());
  if (range.begin > range.end || range.end > spec.buckets) {
    return InvalidArgument("table \"" + spec.name + "\" has buckets 0 to " +
                           std::to_string(spec.buckets - 1) + ", not " +
                           std::to_string(range.begin) + " to " + std::to_string(range.end));
  }
  COHORT_ASSIGN_OR_RETURN(std::unique_ptr<RowOptimizer> rule, RowOptimizer::Make(spec.optimizer));
  return std::unique_ptr<RowTable>(
      new RowTable(std::move(spec), range, std::move(rule), std::move(on_evict)));
}

RowTable::RowTable(TableSpec spec, BucketRange range, std::unique_ptr<RowOptimizer> rule,
                   EvictionHook on_evict)
    : spec_(std::move(spec)),
      range_(range),
      rule_(std::move(rule)),
      on_evict_(std::move(on_evict)),
      dim_(static_cast<std::size_t>(spec_.dim)),
      slot_floats_(rule_->slot_floats(dim_)),
      shape_(dim_ + slot_floats_),
      candidate_shape_(0),
      bucket_capacity_(static_cast<std::uint32_t>(
          std::min<std::uint64_t>(spec_.capacity / spec_.buckets, RowSet::kMaxRows))),
      admission_(spec_.seed, spec_.name + "/admission"),
      hash_shift_(64 - std::countr_zero(spec_.buckets)),
      buckets_(std::make_unique<Bucket[]>(range.end - range.begin)) {}

RowTable::~RowTable() = default;

RowTable::Found::Found() = default;
RowTable::Found::~Found() = default;

std::span<float> RowTable::Weights(std::byte* record) const {
  return {reinterpret_cast<float*>(record + sizeof(RowHeader)), dim_};
}

std::span<float> RowTable::Slots(std::byte* record) const {
  return {reinterpret_cast<float*>(record + sizeof(RowHeader)) + dim_, slot_floats_};
}

Status RowTable::CheckCall(std::string_view what, std::size_t ids, std::int64_t step,
                           std::size_t floats, std::string_view floats_are) const {
  const std::string name = "table \"" + spec_.name + "\": " + std::string(what) + " of ";
  if (ids > kMaxIds) {
    return InvalidArgument(name + std::to_string(ids) + " ids [at most " + std::to_string(kMaxIds) +
                           " in one call]");
  }
  if (floats != ids * dim_) {
    return InvalidArgument(name + std::to_string(ids) + " ids with " + std::to_string(floats) +
                           " " + std::string(floats_are) + " [" + std::to_string(ids * dim_) +
                           ": dim is " + std::to_string(dim_) + "]");
  }
  if (step < 1 || step > std::int64_t{kMost}) {
    return InvalidArgument(name + "step " + std::to_string(step) + " [1 to " +
                           std::to_string(kMost) + "]");
  }
  return {};
}

Status RowTable::Missing(std::uint64_t id) const {
  return NotFound("table \"" + spec_.name + "\" has no row for id " + std::to_string(id) +
                  " [assign or load it, or let the table make missing rows]");
}

Status RowTable::Full(std::uint32_t bucket) const {
  return ResourceExhausted("table \"" + spec_.name + "\": bucket " + std::to_string(bucket) +
                           " is full with " + std::to_string(RowSet::kMaxRows) +
                           " rows [more buckets, or a capacity]");
}

// Equal ids as neighbours, in the order of the input, which `of_a_bucket` are in. Most often there
// are none that are equal, which a few bits of the hashes say already.
void RowTable::BringEqualTogether(std::span<Entry> of_a_bucket) {
  if (of_a_bucket.size() < 2) {
    return;
  }
  std::array<std::uint64_t, 16> seen{};
  bool twice = false;
  for (const Entry& entry : of_a_bucket) {
    std::uint64_t& word = seen[entry.hash / 64 % seen.size()];
    const std::uint64_t bit = std::uint64_t{1} << entry.hash % 64;
    twice |= (word & bit) != 0;
    word |= bit;
  }
  if (twice) {
    std::ranges::sort(of_a_bucket, {},
                      [](const Entry& entry) { return std::tie(entry.hash, entry.position); });
  }
}

// The ids by bucket, in each in the order of the input unless `equal` asks for another one: by
// counting for many, by sorting for few.
Result<RowTable::Entries> RowTable::Sort(std::span<const std::uint64_t> ids, Equal equal) const {
  const std::size_t count = range_.end - range_.begin;
  Entries unsorted(ids.size());
  const std::span<Entry> entries = unsorted.all;
  std::size_t strangers = 0;
  const auto bucket_of = [this](std::uint64_t hash) {
    return (hash_shift_ == 64 ? 0 : hash >> hash_shift_) - range_.begin;  // wraps below the range
  };
  for (std::size_t i = 0; i < ids.size(); ++i) {
    entries[i] = {HashId(ids[i]), static_cast<std::uint32_t>(i), RowSet::kNone};
    strangers += bucket_of(entries[i].hash) >= count ? 1 : 0;
  }
  if (strangers > 0) {
    const auto stranger = std::ranges::find_if(
        entries, [&](const Entry& entry) { return bucket_of(entry.hash) >= count; });
    return InvalidArgument(
        "table \"" + spec_.name + "\": id " + std::to_string(ids[stranger->position]) +
        " is of bucket " + std::to_string(BucketOf(ids[stranger->position], spec_.buckets)) +
        ", this server has " + std::to_string(range_.begin) + " to " + std::to_string(range_.end) +
        " [the sender takes another number of servers for granted]");
  }
  if (ids.size() < count / 8 || ids.size() < 64) {
    std::ranges::sort(entries, {},
                      [](const Entry& entry) { return std::tie(entry.hash, entry.position); });
    return unsorted;
  }
  std::vector<std::uint32_t> ends(count + 1);
  for (const Entry& entry : entries) {
    ++ends[bucket_of(entry.hash) + 1];
  }
  for (std::size_t b = 0; b < count; ++b) {
    ends[b + 1] += ends[b];
  }
  Entries result(ids.size());
  Entry* const sorted = result.all.data();
  std::vector<std::uint32_t> next(ends.begin(), ends.end() - 1);
  for (const Entry& entry : entries) {
    sorted[next[bucket_of(entry.hash)]++] = entry;
  }
  if (equal == Equal::kTogether) {
    for (std::size_t b = 0; b < count; ++b) {
      BringEqualTogether({sorted + ends[b], sorted + ends[b + 1]});
    }
  }
  return result;
}

std::byte* RowTable::Create(Bucket& bucket, std::uint64_t hash, std::uint64_t id,
                            std::uint32_t step) {
  std::byte* const record = bucket.rows.Insert(hash, id, shape_, memory_);
  if (record != nullptr) {
    HeaderOf(record).last_step = step;
    HeaderOf(record).changed = bucket.generation;
    InitialRow(spec_, id, Weights(record));
    rule_->Initialize(Slots(record));
    ++bucket.created;
  }
  return record;
}

// Counts the occurrences of an id without a row. True: it gets one now, with this frequency.
bool RowTable::Admit(Bucket& bucket, std::uint64_t hash, std::uint64_t id, std::uint32_t count,
                     std::uint32_t step, std::uint32_t* frequency) {
  *frequency = count;
  if (spec_.admit_probability < 1) {
    // One draw for `count` occurrences: none of them admits with (1 - p)^count.
    const double none = std::pow(1 - spec_.admit_probability, count);
    return admission_.Uniform(step, id) >= none;
  }
  const std::uint32_t row = bucket.candidates.Find(hash, id, candidate_shape_);
  if (row == RowSet::kNone) {
    if (count >= spec_.admit_after) {
      return true;
    }
    if (std::byte* const record = bucket.candidates.Insert(hash, id, candidate_shape_, memory_);
        record != nullptr) {
      HeaderOf(record).frequency = count;
      HeaderOf(record).last_step = step;
      HeaderOf(record).changed = bucket.generation;
    }
    return false;
  }
  KeepRecord(bucket, bucket.candidates, row);
  RowHeader& header = bucket.candidates.HeaderAt(row, candidate_shape_);
  header.frequency = AddSaturated(header.frequency, count);
  header.changed = bucket.generation;
  Use(header, step);
  *frequency = header.frequency;
  if (header.frequency < spec_.admit_after) {
    return false;
  }
  KeepAll(bucket, bucket.candidates);
  NoteRemoved(bucket, bucket.candidates, id);
  bucket.candidates.Remove(row, candidate_shape_, memory_);
  return true;
}

Status RowTable::Pull(std::span<const std::uint64_t> ids, std::int64_t step, Purpose purpose,
                      std::span<float> rows, std::span<std::uint32_t> updates, Found* found) {
  Require(updates.empty() || updates.size() == ids.size(), "as many counts of updates as ids");
  std::ranges::fill(updates, kNoRow);
  COHORT_RETURN_IF_ERROR(CheckCall("pull", ids.size(), step, rows.size(), "floats of room"));
  const auto now = static_cast<std::uint32_t>(step);
  const bool training = purpose == Purpose::kTraining;
  const bool creates =
      training && spec_.missing == TableSpec::Missing::kCreate && spec_.admits_at_once();
  const bool initial = spec_.missing == TableSpec::Missing::kCreate && spec_.admits_at_once();
  std::size_t missing = ids.size();
  try {
    if (found != nullptr) {
      found->ids_.clear();
    }
    COHORT_ASSIGN_OR_RETURN(Entries sorted,
                            Sort(ids, found != nullptr ? Equal::kTogether : Equal::kAnywhere));
    const std::span<Entry> entries = sorted.all;
    if (training && spec_.missing == TableSpec::Missing::kError) {
      COHORT_RETURN_IF_ERROR(CheckPresent(entries, ids));
    }
    Walk walk(*this, entries, Walk::Equal::kApart, sizeof(RowHeader) + dim_ * sizeof(float), now);
    const auto ahead = [&](const Entry& entry) {
      Walk::Prefetch<1>(rows.data() + entry.position * dim_, dim_ * sizeof(float));
    };
    while (Walk::Stop* const stop = walk.Next(ahead)) {
      const std::size_t position = stop->entries[0].position;
      const auto to = rows.subspan(position * dim_, dim_);
      std::byte* record = walk.Record(*stop);
      if (record == nullptr) {
        if (creates) {
          record = Create(*stop->bucket, stop->hash, stop->id(), now);
          if (record == nullptr) {
            return Full(BucketOf(stop->id(), spec_.buckets));
          }
          stop->row = stop->bucket->rows.size() - 1;
        } else if (initial) {
          InitialRow(spec_, stop->id(), to);
          continue;
        } else {
          missing = std::min(missing, position);
          std::ranges::fill(to, 0.0F);
          continue;
        }
      }
      stop->entries[0].row = stop->row;
      std::memcpy(to.data(), record + sizeof(RowHeader), dim_ * sizeof(float));
      if (!updates.empty()) {
        updates[position] = HeaderOf(record).updates;
      }
      if (training && HeaderOf(record).last_step < now) {
        if (stop->record != nullptr) {
          walk.Change(*stop);
        }
        HeaderOf(record).last_step = now;
      }
    }
    if (found != nullptr) {
      found->ids_.assign(ids.begin(), ids.end());
      found->entries_ = std::move(sorted.memory);
    }
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("table \"" + spec_.name + "\": no memory for a pull of " +
                             std::to_string(ids.size()) + " ids");
  }
  if (missing < ids.size() && spec_.missing == TableSpec::Missing::kError) {
    return Missing(ids[missing]);
  }
  return {};
}

// kError: no row may be missing, and none ever goes.
Status RowTable::CheckPresent(std::span<Entry> entries, std::span<const std::uint64_t> ids) {
  std::size_t missing = ids.size();
  Walk walk(*this, entries, Walk::Equal::kApart, sizeof(RowHeader), 0);
  while (Walk::Stop* const stop = walk.Next([](const Entry&) {})) {
    if (walk.Record(*stop) == nullptr) {
      missing = std::min<std::size_t>(missing, stop->entries[0].position);
    }
  }
  return missing < ids.size() ? Missing(ids[missing]) : OkStatus();
}

Status RowTable::CheckPresent(std::span<const std::uint64_t> ids) {
  if (spec_.missing != TableSpec::Missing::kError) {
    return {};
  }
  try {
    COHORT_ASSIGN_OR_RETURN(const Entries sorted, Sort(ids, Equal::kAnywhere));
    return CheckPresent(sorted.all, ids);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("table \"" + spec_.name + "\": no memory to look for " +
                             std::to_string(ids.size()) + " ids");
  }
}

Status RowTable::CheckFinite(const Gradients& gradients) const {
  if (AllFinite(gradients.values)) {
    return {};
  }
  for (std::size_t i = 0; i < gradients.ids.size(); ++i) {
    if (!AllFinite(gradients.values.subspan(i * dim_, dim_))) {
      return InvalidArgument("table \"" + spec_.name + "\": the gradient of id " +
                             std::to_string(gradients.ids[i]) +
                             " holds NaN or infinity [lower the learning rate, or look for a "
                             "division by zero in the loss]");
    }
  }
  return {};
}

Status RowTable::Check(const Gradients& gradients) const {
  const std::span<const std::uint64_t> ids = gradients.ids;
  COHORT_RETURN_IF_ERROR(
      CheckCall("gradients", ids.size(), gradients.step, gradients.values.size(), "values"));
  if (!gradients.counts.empty() && gradients.counts.size() != ids.size()) {
    return InvalidArgument("table \"" + spec_.name + "\": gradients of " +
                           std::to_string(ids.size()) + " ids with " +
                           std::to_string(gradients.counts.size()) + " counts");
  }
  if (const auto zero = std::ranges::find(gradients.counts, 0U); zero != gradients.counts.end()) {
    return InvalidArgument(
        "table \"" + spec_.name + "\": a count of 0 for id " +
        std::to_string(ids[static_cast<std::size_t>(zero - gradients.counts.begin())]));
  }
  if ((!gradients.updates.empty() && gradients.updates.size() != ids.size()) ||
      (!gradients.pulled.empty() && gradients.pulled.size() != gradients.values.size())) {
    return InvalidArgument("table \"" + spec_.name + "\": gradients of " +
                           std::to_string(ids.size()) + " ids with " +
                           std::to_string(gradients.updates.size()) + " counts of updates and " +
                           std::to_string(gradients.pulled.size()) + " floats of rows");
  }
  if (!std::isfinite(gradients.scale)) {
    return InvalidArgument("table \"" + spec_.name + "\": the scale of gradients is not finite");
  }
  return spec_.not_finite == TableSpec::NotFinite::kReject ? CheckFinite(gradients) : OkStatus();
}

Status RowTable::Apply(const Gradients& gradients) {
  COHORT_RETURN_IF_ERROR(Check(gradients));
  const std::span<const std::uint64_t> ids = gradients.ids;
  const auto now = static_cast<std::uint32_t>(gradients.step);
  try {
    const bool found = gradients.found != nullptr && std::ranges::equal(gradients.found->ids_, ids);
    if (found) {
      ++gradients.found->uses_;
    }
    COHORT_ASSIGN_OR_RETURN(const Entries sorted, found ? Entries(0) : Sort(ids, Equal::kTogether));
    const std::span<Entry> entries =
        found ? std::span(gradients.found->entries_.get(), ids.size()) : sorted.all;
    if (spec_.missing == TableSpec::Missing::kError) {
      COHORT_RETURN_IF_ERROR(CheckPresent(entries, ids));
    }
    std::vector<float> sum(dim_);
    const std::int64_t bias_step = gradients.bias_step > 0 ? gradients.bias_step : gradients.step;
    const bool bias_of_row = spec_.bias_scope == TableSpec::BiasScope::kRow;
    const std::optional<UpdateRule> rule =
        rule_->RuleAt(gradients.step, bias_of_row ? 0 : bias_step);
    const std::size_t slots = rule.has_value() ? slot_floats_ / dim_ : 0;
    Lost lost(*this);
    Walk walk(*this, entries, Walk::Equal::kAtOnce, shape_.stride, now);
    const auto ahead = [&](const Entry& entry) {
      Walk::Prefetch<0>(gradients.values.data() + entry.position * dim_, dim_ * sizeof(float));
    };
    while (Walk::Stop* const stop = walk.Next(ahead)) {
      const std::span<const Entry> same = stop->entries;
      Bucket& bucket = *stop->bucket;
      std::span<const float> gradient = gradients.values.subspan(same[0].position * dim_, dim_);
      std::uint32_t count = gradients.counts.empty() ? 1 : gradients.counts[same[0].position];
      if (same.size() > 1) {
        std::ranges::copy(gradient, sum.begin());
        for (const Entry& entry : same.subspan(1)) {
          const float* const more = gradients.values.data() + entry.position * dim_;
          for (std::size_t k = 0; k < dim_; ++k) {
            sum[k] += more[k];
          }
          count =
              AddSaturated(count, gradients.counts.empty() ? 1 : gradients.counts[entry.position]);
        }
        gradient = sum;
      }
      // Numbers that are finite may add up to infinity.
      if ((same.size() > 1 || spec_.not_finite == TableSpec::NotFinite::kSkipRow) &&
          !AllFinite(gradient)) {
        lost.Skip(stop->id());
        continue;
      }
      std::byte* record = walk.Record(*stop);
      if (record == nullptr) {
        std::uint32_t frequency = 0;
        if (!spec_.admits_at_once() &&
            !Admit(bucket, stop->hash, stop->id(), count, now, &frequency)) {
          ++lost.dropped;
          continue;
        }
        record = Create(bucket, stop->hash, stop->id(), now);
        if (record == nullptr) {
          return Full(BucketOf(stop->id(), spec_.buckets));
        }
        HeaderOf(record).frequency = frequency == 0 ? count : frequency;
      } else {
        walk.Change(*stop);
        HeaderOf(record).frequency = AddSaturated(HeaderOf(record).frequency, count);
      }
      RowHeader& header = HeaderOf(record);
      Use(header, now);
      const std::uint32_t had =
          gradients.updates.empty() ? kNoRow : gradients.updates[same[0].position];
      const std::uint32_t staleness = header.updates > had ? header.updates - had : 0;
      std::span<const float> pulled;
      if (staleness > 0 && !gradients.pulled.empty()) {
        pulled = gradients.pulled.subspan(same[0].position * dim_, dim_);
        pulled = AllFinite(pulled) ? pulled : std::span<const float>();
      }
      header.updates = AddSaturated(header.updates, 1);
      const float scale =
          spec_.mean_of_occurrences ? gradients.scale / static_cast<float>(count) : gradients.scale;
      if (rule.has_value()) {
        UpdatePart part{
            .value = Weights(record), .gradient = gradient, .slots = {}, .gradient_scale = scale};
        for (std::size_t slot = 0; slot < slots; ++slot) {
          part.slots[slot] = Slots(record).subspan(slot * dim_, dim_);
        }
        UpdateOnHost(*rule, part);
      } else {
        rule_->Apply({.weights = Weights(record),
                      .slots = Slots(record),
                      .gradient = gradient,
                      .gradient_scale = scale,
                      .step = gradients.step,
                      .bias_step = bias_of_row ? std::int64_t{header.updates} : bias_step,
                      .pulled = pulled,
                      .staleness = staleness});
      }
      ++bucket.updates;
    }
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("table \"" + spec_.name + "\": no memory for gradients of " +
                             std::to_string(ids.size()) + " ids");
  }
  return {};
}

Status RowTable::Assign(std::span<const std::uint64_t> ids, std::int64_t step,
                        std::span<const float> rows) {
  COHORT_RETURN_IF_ERROR(CheckCall("assignment", ids.size(), step, rows.size(), "values"));
  if (!AllFinite(rows)) {
    return InvalidArgument("table \"" + spec_.name + "\": an assignment with NaN or infinity");
  }
  const auto now = static_cast<std::uint32_t>(step);
  try {
    COHORT_ASSIGN_OR_RETURN(const Entries sorted, Sort(ids, Equal::kTogether));
    const std::span<Entry> entries = sorted.all;
    const auto twice = std::ranges::adjacent_find(entries, {}, &Entry::hash);
    if (twice != entries.end()) {
      return InvalidArgument("table \"" + spec_.name + "\": id " +
                             std::to_string(ids[twice->position]) + " stands twice");
    }
    Walk walk(*this, entries, Walk::Equal::kApart, shape_.stride, now);
    while (Walk::Stop* const stop = walk.Next([](const Entry&) {})) {
      Bucket& bucket = *stop->bucket;
      std::byte* record = walk.Record(*stop);
      if (record == nullptr) {
        const std::uint32_t candidate =
            bucket.candidates.Find(stop->hash, stop->id(), candidate_shape_);
        if (candidate != RowSet::kNone) {
          KeepAll(bucket, bucket.candidates);
          NoteRemoved(bucket, bucket.candidates, stop->id());
          bucket.candidates.Remove(candidate, candidate_shape_, memory_);
        }
        record = Create(bucket, stop->hash, stop->id(), now);
      } else {
        walk.Change(*stop);
      }
      if (record == nullptr) {
        return Full(BucketOf(stop->id(), spec_.buckets));
      }
      Use(HeaderOf(record), now);
      std::ranges::copy(rows.subspan(stop->entries[0].position * dim_, dim_),
                        Weights(record).begin());
    }
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("table \"" + spec_.name + "\": no memory for an assignment of " +
                             std::to_string(ids.size()) + " ids");
  }
  return {};
}

}  // namespace cohort::ps
