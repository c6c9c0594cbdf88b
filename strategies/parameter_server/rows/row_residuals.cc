#include "parameter_server/rows/row_residuals.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "parameter_server/frames/payload.h"
#include "parameter_server/frames/row_codec.h"

namespace cohort::ps {
namespace {

constexpr std::size_t kBlockBytes = std::size_t{256} << 10;
constexpr std::size_t kFirstIndex = 1024;
constexpr std::size_t kAhead = 8;  // ids whose place in the index is fetched before it is looked at

int BlockBits(std::size_t dim) {
  return std::bit_width(std::max<std::size_t>(1, kBlockBytes / (dim * sizeof(float)))) - 1;
}

}  // namespace

RowResiduals::RowResiduals(const TableSpec& spec)
    : wire_(spec.wire),
      dim_(static_cast<std::size_t>(spec.dim)),
      mean_of_occurrences_(spec.mean_of_occurrences),
      most_(spec.wire_feedback),
      block_bits_(BlockBits(dim_)),
      index_(kFirstIndex, kNone),
      row_(dim_) {
  Require(most_ > 0 && wire_ != TableSpec::Wire::kFloat32, "a table with something to keep");
}

std::optional<std::size_t> RowResiduals::Encode(std::span<const std::uint64_t> ids,
                                                std::span<const std::uint32_t> counts,
                                                double weight, std::span<float> sums,
                                                std::span<std::byte> to) {
  const std::size_t bytes = EncodedRowBytes(wire_, dim_);
  const auto scale = static_cast<float>(1.0 / weight);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (i + kAhead < ids.size()) {
      __builtin_prefetch(&index_[Home(ids[i + kAhead])]);
    }
    if (!EncodeRow(ids[i], mean_of_occurrences_ ? scale / static_cast<float>(counts[i]) : scale,
                   sums.subspan(i * dim_, dim_), to.subspan(i * bytes, bytes))) {
      return i;
    }
  }
  std::ranges::fill(to.subspan(ids.size() * bytes), std::byte{0});
  return std::nullopt;
}

// False: the format cannot hold it. `scale`: what the server multiplies by.
bool RowResiduals::EncodeRow(std::uint64_t id, float scale, std::span<float> sum,
                             std::span<std::byte> to) {
  const float per_scale = 1 / scale;
  if (!std::isnormal(scale) || !std::isfinite(per_scale)) {
    return !EncodeRows(wire_, dim_, sum, to).has_value();  // nothing of it arrives
  }
  const std::uint32_t slot = index_[Find(id)];
  const std::span<const float> kept = slot == kNone ? std::span<const float>() : RowOf(slot);
  bool added = false;
  if (!kept.empty()) {
    for (std::size_t k = 0; k < dim_; ++k) {
      row_[k] = sum[k] + kept[k] * per_scale;
    }
    // A gradient that just fits is not refused for what an earlier one has left.
    added = AllFinite(row_) && !EncodeRows(wire_, dim_, row_, to).has_value();
  }
  if (added) {
    std::ranges::copy(row_, sum.begin());
  } else if (EncodeRows(wire_, dim_, sum, to).has_value()) {
    return false;
  }
  DecodeRows(wire_, dim_, to, row_);
  const std::size_t begin = staged_.size();
  staged_.resize(begin + dim_);
  const std::span<float> lost = std::span(staged_).subspan(begin);
  for (std::size_t k = 0; k < dim_; ++k) {
    lost[k] = (sum[k] - row_[k]) * scale;
  }
  if (!added && !kept.empty()) {
    for (std::size_t k = 0; k < dim_; ++k) {
      lost[k] += kept[k];
    }
  }
  if (AllFinite(lost)) {
    staged_ids_.push_back(id);
  } else {
    staged_.resize(begin);  // the server takes nothing of it
  }
  return true;
}

void RowResiduals::Settle() {
  // Those that are there first: of none of them what was kept is dropped to make room.
  fresh_.clear();
  for (std::size_t i = 0; i < staged_ids_.size(); ++i) {
    if (i + kAhead < staged_ids_.size()) {
      __builtin_prefetch(&index_[Home(staged_ids_[i + kAhead])]);
    }
    const std::size_t at = Find(staged_ids_[i]);
    const std::uint32_t slot = index_[at];
    const bool nothing = std::ranges::all_of(StagedRow(i), [](float value) { return value == 0; });
    if (slot == kNone && !nothing) {
      fresh_.push_back(static_cast<std::uint32_t>(i));
    } else if (slot != kNone && nothing) {
      Remove(at);
    } else if (slot != kNone) {
      Unlink(slot);
      Link(slot);
      std::ranges::copy(StagedRow(i), RowOf(slot).begin());
    }
  }
  for (const std::uint32_t i : fresh_) {
    std::ranges::copy(StagedRow(i), RowOf(Insert(staged_ids_[i])).begin());
  }
  Forget();
}

void RowResiduals::Forget() {
  staged_ids_.clear();
  staged_.clear();
}

std::uint32_t RowResiduals::Insert(std::uint64_t id) {
  if (size_ == most_) {
    Remove(Find(slots_[oldest_].id));
    ++dropped_;
  }
  if (2 * (size_ + 1) > index_.size()) {
    Grow();
  }
  std::uint32_t slot = free_;
  if (slot != kNone) {
    free_ = slots_[slot].older;
  } else {
    slot = static_cast<std::uint32_t>(slots_.size());
    if (slot >> block_bits_ == blocks_.size()) {
      blocks_.push_back(
          std::make_unique_for_overwrite<float[]>((std::size_t{1} << block_bits_) * dim_));
    }
    slots_.emplace_back();
  }
  slots_[slot].id = id;
  index_[Find(id)] = slot;
  ++size_;
  Link(slot);
  return slot;
}

void RowResiduals::Remove(std::size_t at) {
  const std::uint32_t slot = index_[at];
  Unlink(slot);
  slots_[slot].older = free_;
  free_ = slot;
  --size_;
  // Those behind it move up, that the gap would hide.
  const std::size_t mask = index_.size() - 1;
  std::size_t gap = at;
  for (std::size_t i = Next(at); index_[i] != kNone; i = Next(i)) {
    const std::size_t home = Home(slots_[index_[i]].id);
    if (((i - home) & mask) >= ((i - gap) & mask)) {
      index_[gap] = index_[i];
      gap = i;
    }
  }
  index_[gap] = kNone;
}

void RowResiduals::Grow() {
  std::vector<std::uint32_t> before(2 * index_.size(), kNone);
  before.swap(index_);
  for (const std::uint32_t slot : before) {
    if (slot != kNone) {
      index_[Find(slots_[slot].id)] = slot;
    }
  }
}

void RowResiduals::Link(std::uint32_t slot) {
  slots_[slot].newer = kNone;
  slots_[slot].older = newest_;
  (newest_ == kNone ? oldest_ : slots_[newest_].newer) = slot;
  newest_ = slot;
}

void RowResiduals::Unlink(std::uint32_t slot) {
  const auto [id, newer, older] = slots_[slot];
  (newer == kNone ? newest_ : slots_[newer].older) = older;
  (older == kNone ? oldest_ : slots_[older].newer) = newer;
}

RowClient::Residuals RowResiduals::stats() const {
  return {.rows = size_,
          .bytes = blocks_.size() * (std::size_t{1} << block_bits_) * dim_ * sizeof(float) +
                   slots_.capacity() * sizeof(Slot) + index_.size() * sizeof(std::uint32_t) +
                   staged_ids_.capacity() * sizeof(std::uint64_t) +
                   staged_.capacity() * sizeof(float) + fresh_.capacity() * sizeof(std::uint32_t),
          .dropped = dropped_};
}

RowFeedback::RowFeedback(const ModelSpec& model, bool comes_again)
    : elects_(model.consistency.backup_workers > 0), comes_again_(comes_again || model.copies) {
  for (const TableSpec& table : model.tables) {
    const bool kept = table.wire_feedback > 0 && table.wire != TableSpec::Wire::kFloat32;
    tables_.push_back(kept ? std::make_unique<RowResiduals>(table) : nullptr);
    any_ = any_ || kept;
  }
}

void RowFeedback::Begin(std::span<const std::uint64_t> numbers, const RowClient::Part* part) {
  if (!any_) {
    return;
  }
  const bool again =
      std::ranges::equal(numbers, numbers_) || (part != nullptr && part->round == part_.round);
  // With backup workers, one of which nobody has said that it was elected was late. One that is not
  // open was concluded, or was broken off by an exception.
  Conclude(open_ && !again && !(elects_ && part_.round > 0));
  numbers_.assign(numbers.begin(), numbers.end());
  part_ = part == nullptr ? RowClient::Part() : *part;
}

void RowFeedback::End(const Status& status) {
  open_ = status.ok() && (comes_again_ || part_.round > 0);
  if (!open_) {
    Conclude(status.ok());
  }
}

void RowFeedback::Elected(const Commit& commit) {
  if (open_ && commit.round() > 0 && commit.round() == part_.round) {
    Conclude(static_cast<int>(commit.attempt()) == part_.attempt &&
             std::ranges::find(commit.winners(), static_cast<std::uint32_t>(part_.part)) !=
                 commit.winners().end());
  }
}

void RowFeedback::Conclude(bool counts) {
  open_ = false;
  for (const std::unique_ptr<RowResiduals>& table : tables_) {
    if (table != nullptr) {
      counts ? table->Settle() : table->Forget();
    }
  }
}

RowClient::Residuals RowFeedback::stats() const {
  RowClient::Residuals all;
  for (const std::unique_ptr<RowResiduals>& table : tables_) {
    if (table != nullptr) {
      const RowClient::Residuals of_table = table->stats();
      all.rows += of_table.rows;
      all.bytes += of_table.bytes;
      all.dropped += of_table.dropped;
    }
  }
  return all;
}

}  // namespace cohort::ps
