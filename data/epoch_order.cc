#include <algorithm>
#include <numeric>

#include "shard.h"

namespace cohort::data {
namespace {

using Kind = OrderStage::Kind;

// A key of its own for each use, pass and number.
std::uint64_t KeyOf(const OrderStage& stage, const char* use, std::int64_t pass,
                    std::int64_t number = 0) {
  const Philox::Block words = Philox(stage.seed, use)
                                  .At(stage.reshuffle ? static_cast<std::uint64_t>(pass) : 0,
                                      static_cast<std::uint64_t>(number));
  return (std::uint64_t{words[1]} << 32) | words[0];
}

std::int64_t Permuted(std::int64_t position, std::int64_t size, std::uint64_t key) {
  return static_cast<std::int64_t>(
      Permutation(static_cast<std::uint64_t>(size), key)(static_cast<std::uint64_t>(position)));
}

// Examples in an epoch of `size` after one stage.
std::int64_t SizeAfter(std::int64_t size, const OrderStage& stage) {
  switch (stage.kind) {
    case Kind::kTake:
      return std::min(size, stage.count);
    case Kind::kSkip:
      return std::max<std::int64_t>(size - stage.count, 0);
    case Kind::kRepeat:
      return size * stage.count;
    case Kind::kShard:
      if (stage.IsHint()) {
        return size;  // not divided yet
      }
      return size / stage.count + (size % stage.count > stage.number ? 1 : 0);
    default:
      return size;
  }
}

// Blocks of `count` examples change places, then examples within each `number` neighbouring blocks.
// The last, short block is in a place of its own drawing, so that all others have one size.
std::int64_t BlockShuffled(const OrderStage& stage, std::int64_t size, std::int64_t position,
                           std::int64_t pass) {
  const std::int64_t block = stage.count;
  const std::int64_t full = size / block;
  const std::int64_t tail = size % block;
  const std::int64_t blocks = full + (tail == 0 ? 0 : 1);
  // The place of the short block; behind all where there is none.
  const std::int64_t short_place =
      tail == 0 ? blocks
                : static_cast<std::int64_t>(KeyOf(stage, "data/short_block", pass) %
                                            static_cast<std::uint64_t>(blocks));
  const auto begin = [&](std::int64_t place) {
    return place * block - (place > short_place ? block - tail : 0);
  };
  const auto place_of = [&](std::int64_t at) {
    const std::int64_t place = at / block;
    return place > short_place || (place == short_place && at >= begin(place) + tail)
               ? (at + block - tail) / block
               : place;
  };
  const std::int64_t group = place_of(position) / stage.number;
  const std::int64_t first = begin(group * stage.number);
  const std::int64_t last = begin(std::min((group + 1) * stage.number, blocks));
  const std::int64_t mixed =
      first + Permuted(position - first, last - first, KeyOf(stage, "data/in_blocks", pass, group));
  const std::int64_t place = place_of(mixed);
  const std::int64_t within = mixed - begin(place);
  if (place == short_place) {
    return full * block + within;
  }
  const std::int64_t among_full = place - (place > short_place ? 1 : 0);
  return Permuted(among_full, full, KeyOf(stage, "data/blocks", pass)) * block + within;
}

}  // namespace

std::int64_t EpochSize(std::int64_t records, const std::vector<OrderStage>& stages) {
  for (const OrderStage& stage : stages) {
    records = SizeAfter(records, stage);
  }
  return records;
}

EpochOrder::EpochOrder(std::vector<Range> ranges, const std::vector<OrderStage>& stages,
                       std::int64_t epoch, Remainder remainder)
    : ranges_(std::move(ranges)), epoch_(epoch), wraps_(remainder == Remainder::kWrap) {
  for (const Range& range : ranges_) {
    starts_.push_back(size_);
    size_ += range.size();
  }
  for (const OrderStage& stage : stages) {
    stages_.push_back({stage, size_});
    if (stage.kind == Kind::kShuffle) {
      stages_.back().permutation.emplace(static_cast<std::uint64_t>(size_),
                                         KeyOf(stage, "data/shuffle", epoch));
    }
    if (stage.kind == Kind::kBufferShuffle && size_ > 0) {
      stages_.back().buffer =
          std::make_shared<BufferShuffle>(size_, std::min(stage.count, size_), stage.seed);
    }
    size_ = SizeAfter(size_, stage);
    if (stage.kind == Kind::kBucket) {
      windows_ = std::make_shared<Windows>();
    }
  }
}

std::int64_t EpochOrder::At(std::int64_t position) const {
  if (position >= size_) {
    position = wraps_ ? position % size_ : size_ - 1;
  }
  return Walk(position, stages_.size(), epoch_);
}

std::int64_t EpochOrder::Walk(std::int64_t position, std::size_t stages, std::int64_t pass) const {
  // A stage's output position p is its input position f(p): so the last stage first.
  std::int64_t p = position;
  for (std::size_t s = stages; s-- > 0;) {
    const OrderStage& stage = stages_[s].spec;
    const std::int64_t size = stages_[s].size;
    switch (stage.kind) {
      case Kind::kTake:
        break;
      case Kind::kSkip:
        p += stage.count;
        break;
      case Kind::kShard:
        p = p * stage.count + stage.number;
        break;
      case Kind::kRepeat:
        // Each pass is an epoch of its own for what is before.
        pass = pass * stage.count + p / size;
        p %= size;
        break;
      case Kind::kShuffle:
        p = pass == epoch_ || !stage.reshuffle
                ? static_cast<std::int64_t>(
                      (*stages_[s].permutation)(static_cast<std::uint64_t>(p)))
                : Permuted(p, size, KeyOf(stage, "data/shuffle", pass));
        break;
      case Kind::kBlockShuffle:
        p = BlockShuffled(stage, size, p, pass);
        break;
      case Kind::kBufferShuffle:
        // The rest, and where the buffer holds everything all of it, as Shuffle has it.
        p = stages_[s].buffer->At(p, stage.reshuffle ? pass : 0,
                                  KeyOf(stage, "data/shuffle", pass));
        break;
      case Kind::kBucket:
        return Bucketed(stages_[s], p, s, pass);
    }
  }
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), p);
  const auto i = static_cast<std::size_t>(after - starts_.begin()) - 1;
  return ranges_[i].begin + (p - starts_[i]);
}

std::int64_t EpochOrder::Bucketed(const Stage& stage, std::int64_t position, std::size_t before,
                                  std::int64_t pass) const {
  const std::int64_t batch = stage.spec.number;
  const std::int64_t window = position / (batch * stage.spec.count);
  const std::int64_t begin = window * batch * stage.spec.count;
  const std::int64_t size = std::min(batch * stage.spec.count, stage.size - begin);
  std::shared_ptr<const std::vector<std::int64_t>> sorted;
  {
    std::lock_guard lock(windows_->mutex);
    const auto it = windows_->sorted.find(window);
    if (it != windows_->sorted.end()) {
      sorted = it->second;
    }
  }
  if (sorted == nullptr) {
    std::vector<std::int64_t> indexes(static_cast<std::size_t>(size));
    for (std::int64_t i = 0; i < size; ++i) {
      indexes[static_cast<std::size_t>(i)] = Walk(begin + i, before, pass);
    }
    std::stable_sort(indexes.begin(), indexes.end(), [&stage](std::int64_t a, std::int64_t b) {
      return (*stage.spec.lengths)[static_cast<std::size_t>(a)] <
             (*stage.spec.lengths)[static_cast<std::size_t>(b)];
    });
    sorted = std::make_shared<const std::vector<std::int64_t>>(std::move(indexes));
    std::lock_guard lock(windows_->mutex);
    constexpr std::size_t kKept = 4;
    while (windows_->sorted.size() >= kKept) {
      windows_->sorted.erase(windows_->sorted.begin());  // readers go forward
    }
    windows_->sorted[window] = sorted;
  }
  // Whole batches change places; the rest of the last window stays at its end.
  const std::int64_t batches = size / batch;
  std::int64_t at = position - begin;
  if (at / batch < batches) {
    at = Permuted(at / batch, batches, KeyOf(stage.spec, "data/bucket", pass, window)) * batch +
         at % batch;
  }
  return (*sorted)[static_cast<std::size_t>(at)];
}

}  // namespace cohort::data
