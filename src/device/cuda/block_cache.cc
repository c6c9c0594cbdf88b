#include "cuda/block_cache.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cuda/byte_count.h"

namespace cohort::cuda {
namespace {

constexpr std::size_t kGranule = 512;
// Blocks above this are mapped in pages of this size anyway.
constexpr std::size_t kPage = std::size_t{2} << 20;

std::size_t SizeClass(std::size_t bytes) {
  const std::size_t granule = bytes > kPage ? kPage : kGranule;
  const std::size_t size = (std::max<std::size_t>(bytes, 1) + granule - 1) / granule * granule;
  return size < bytes ? bytes : size;  // past the largest number: let the source refuse it
}

}  // namespace

BlockCache::~BlockCache() {
  for (const auto& [size, kept] : kept_) {
    source_->Return(kept.block);
  }
}

std::shared_ptr<std::byte> BlockCache::Allocate(std::size_t bytes, std::string_view what) {
  std::size_t size = SizeClass(bytes);
  std::byte* block = Reuse(size, size);
  if (block == nullptr) {
    block = TakeNew(size);
  }
  if (block == nullptr) {
    throw StatusError(Exhausted(bytes, what));
  }
  auto drop = [cache = shared_from_this(), size, name = std::string(what)](std::byte* p) {
    cache->Drop(p, size, name);
  };
  try {
    Hold(size, what);
  } catch (...) {
    source_->Return(block);
    throw;
  }
  return {block, std::move(drop)};
}

// The smallest kept block that is large enough and not much larger; nullptr if there is none.
std::byte* BlockCache::Reuse(std::size_t size, std::size_t& actual) {
  std::unique_lock lock(mutex_);
  const auto found = kept_.lower_bound(size);
  if (found == kept_.end() || found->first > size + size / 8) {
    return nullptr;
  }
  if (found->second.dropped > drained_) {
    // Taken out first: nobody else may get it while this waits.
    auto node = kept_.extract(found);
    const std::uint64_t drops = drops_;
    lock.unlock();
    bool idle = false;
    try {
      idle = source_->Drain(false);
    } catch (...) {
      lock.lock();
      kept_.insert(std::move(node));
      throw;
    }
    lock.lock();
    if (!idle) {
      kept_.insert(std::move(node));
      return nullptr;
    }
    drained_ = std::max(drained_, drops);
    use_.kept -= node.key();
    actual = node.key();
    return node.mapped().block;
  }
  std::byte* const block = found->second.block;
  actual = found->first;
  use_.kept -= actual;
  kept_.erase(found);
  return block;
}

// From the source; where it has none, once more after everything kept went back to it.
std::byte* BlockCache::TakeNew(std::size_t size) {
  std::byte* const block = source_->Take(size);
  if (block != nullptr) {
    return block;
  }
  std::uint64_t drops = 0;
  {
    const std::lock_guard lock(mutex_);
    if (kept_.empty()) {
      return nullptr;
    }
    drops = drops_;
  }
  if (!source_->Drain(true)) {
    return nullptr;
  }
  std::vector<std::byte*> idle;
  {
    const std::lock_guard lock(mutex_);
    drained_ = std::max(drained_, drops);
    for (auto it = kept_.begin(); it != kept_.end();) {
      if (it->second.dropped > drops) {
        ++it;
        continue;
      }
      idle.push_back(it->second.block);
      use_.kept -= it->first;
      it = kept_.erase(it);
    }
  }
  for (std::byte* const one : idle) {
    source_->Return(one);
  }
  return source_->Take(size);
}

void BlockCache::Hold(std::size_t size, std::string_view what) {
  const std::lock_guard lock(mutex_);
  const auto holder = holders_.find(what);
  if (holder != holders_.end()) {
    holder->second += size;
  } else {
    holders_.emplace(what, size);
  }
  use_.held += size;
  use_.most = std::max(use_.most, use_.held);
}

void BlockCache::Drop(std::byte* block, std::size_t size, const std::string& what) {
  const std::lock_guard lock(mutex_);
  use_.held -= size;
  const auto holder = holders_.find(what);
  holder->second -= size;
  if (holder->second == 0) {
    holders_.erase(holder);
  }
  kept_.emplace(size, Kept{block, ++drops_});
  use_.kept += size;
}

BlockCache::Use BlockCache::use() const {
  const std::lock_guard lock(mutex_);
  return use_;
}

Status BlockCache::Exhausted(std::size_t bytes, std::string_view what) const {
  constexpr std::size_t kNamed = 3;
  std::vector<std::pair<std::size_t, std::string>> holders;
  Use use;
  {
    const std::lock_guard lock(mutex_);
    use = use_;
    for (const auto& [name, held] : holders_) {
      holders.emplace_back(held, name);
    }
  }
  std::sort(holders.begin(), holders.end(), std::greater<>());
  std::string text = name_ + " has no " + std::to_string(bytes) + " bytes (" + ByteCount(bytes) +
                     ") for " + std::string(what) + ": this process holds " + ByteCount(use.held) +
                     " of it";
  for (std::size_t i = 0; i < std::min(kNamed, holders.size()); ++i) {
    text += (i == 0 ? " (" : ", ") + ByteCount(holders[i].first) + " " + holders[i].second;
  }
  text += holders.empty() ? "" : ")";
  text += ", at most " + ByteCount(use.most) + " so far";
  const std::string left = source_->Left();
  text += left.empty() ? "" : "; " + left + " are left";
  return ResourceExhausted(text +
                           " [a smaller batch, fewer replicas on it, or end what else uses it]");
}

}  // namespace cohort::cuda
