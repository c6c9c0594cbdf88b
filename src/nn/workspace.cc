#include <cohort/nn/workspace.h>

#include <cstdlib>
#include <new>

namespace cohort::nn {

// Blocks by size. A block serves requests down to half its size.
struct Workspace::Pool {
  std::mutex mutex;
  std::multimap<std::size_t, std::byte*> free;
  std::int64_t bytes = 0;

  ~Pool() {
    for (const auto& [size, block] : free) {
      std::free(block);
    }
  }

  struct Block {
    std::byte* memory;
    std::size_t size;
  };
  Block Take(std::size_t wanted) {
    constexpr std::size_t kGranule = 4096;
    const std::size_t size = std::max(kGranule, (wanted + kGranule - 1) / kGranule * kGranule);
    const std::lock_guard lock(mutex);
    if (const auto it = free.lower_bound(size); it != free.end() && it->first <= 2 * size) {
      const Block block{it->second, it->first};
      free.erase(it);
      return block;
    }
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(kGranule, size));
    if (memory == nullptr) {
      throw std::bad_alloc();
    }
    bytes += static_cast<std::int64_t>(size);
    return {memory, size};
  }
  void Give(Block block) {
    const std::lock_guard lock(mutex);
    // Before its equals: the block used last is the one most likely in the cache.
    free.emplace_hint(free.lower_bound(block.size), block.size, block.memory);
  }
};

Workspace::Workspace() : pool_(std::make_shared<Pool>()) {}
Workspace::~Workspace() = default;

Tensor Workspace::Take(DType dtype, const Shape& shape) {
  const Pool::Block block = pool_->Take(static_cast<std::size_t>(shape.elements()) * SizeOf(dtype));
  return {dtype, shape, std::shared_ptr<std::byte>(block.memory, [pool = pool_, block](std::byte*) {
            pool->Give(block);
          })};
}

Kernels& Workspace::KernelsFor(int threads) {
  if (kernels_ == nullptr || threads_ != threads) {
    kernels_ = MakeCpuKernels(threads);
    threads_ = threads;
  }
  return *kernels_;
}

std::int64_t Workspace::bytes() const {
  const std::lock_guard lock(pool_->mutex);
  return pool_->bytes;
}

Workspace& Workspaces::For(int local_replica) {
  const std::lock_guard lock(mutex_);
  return workspaces_[local_replica];
}

}  // namespace cohort::nn
