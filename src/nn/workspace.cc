#include <cohort/nn/workspace.h>

#include <algorithm>
#include <utility>

namespace cohort::nn {

// Blocks by size. A block serves requests down to half its size.
struct Workspace::Pool {
  Pool(std::shared_ptr<Device> from, bool on_host)
      : device(std::move(from)),
        host(on_host),
        space(on_host ? MemorySpace::kHost : device->memory_space()) {}

  const std::shared_ptr<Device> device;
  const bool host;
  const MemorySpace space;
  std::mutex mutex;
  std::multimap<std::size_t, std::shared_ptr<std::byte>> free;
  std::int64_t bytes = 0;

  struct Block {
    std::shared_ptr<std::byte> memory;
    std::size_t size = 0;
  };
  Block Take(std::size_t wanted) {
    constexpr std::size_t kGranule = 4096;
    const std::size_t size = std::max(kGranule, (wanted + kGranule - 1) / kGranule * kGranule);
    const std::lock_guard lock(mutex);
    if (const auto it = free.lower_bound(size); it != free.end() && it->first <= 2 * size) {
      Block block{std::move(it->second), it->first};
      free.erase(it);
      return block;
    }
    Block block{host ? device->AllocateHost(size, "copies between host and device")
                     : device->Allocate(size, "activations"),
                size};
    bytes += static_cast<std::int64_t>(size);
    return block;
  }
  void Give(Block block) {
    const std::lock_guard lock(mutex);
    // Before its equals: the block used last is the one most likely in the cache.
    free.emplace_hint(free.lower_bound(block.size), block.size, std::move(block.memory));
  }
  std::int64_t taken() {
    const std::lock_guard lock(mutex);
    return bytes;
  }
  static Tensor TakeTensor(const std::shared_ptr<Pool>& pool, DType dtype, const Shape& shape) {
    Block block = pool->Take(static_cast<std::size_t>(shape.elements()) * SizeOf(dtype));
    std::byte* const memory = block.memory.get();
    return {dtype, shape,
            std::shared_ptr<std::byte>(memory,
                                       [pool, block = std::move(block)](std::byte*) mutable {
                                         pool->Give(std::move(block));
                                       }),
            pool->space};
  }
};

Workspace::Workspace(std::shared_ptr<Device> device)
    : device_(std::move(device)),
      pool_(std::make_shared<Pool>(device_, false)),
      host_pool_(device_->memory_space() == MemorySpace::kHost
                     ? pool_
                     : std::make_shared<Pool>(device_, true)) {}
Workspace::~Workspace() = default;

Tensor Workspace::Take(DType dtype, const Shape& shape) {
  return Pool::TakeTensor(pool_, dtype, shape);
}

Tensor Workspace::TakeHost(DType dtype, const Shape& shape) {
  return Pool::TakeTensor(host_pool_, dtype, shape);
}

Kernels& Workspace::KernelsFor(int threads) {
  // A device apart has no use for threads, and graphs recorded with its table use that one's
  // memory.
  const int wanted = device_->memory_space() == MemorySpace::kHost ? threads : 0;
  if (kernels_ == nullptr || threads_ != wanted) {
    kernels_ = device_->MakeKernels(wanted);
    threads_ = wanted;
  }
  return *kernels_;
}

std::int64_t Workspace::bytes() const {
  return pool_->taken() + (host_pool_ == pool_ ? 0 : host_pool_->taken());
}

Workspace& Workspaces::For(int local_replica, const std::shared_ptr<Device>& device) {
  const std::lock_guard lock(mutex_);
  Workspace& workspace = workspaces_.try_emplace(local_replica, device).first->second;
  Require(
      &workspace.device() == device.get(),
      "a replica's workspace is asked for with the device it was made on; other strategies take "
      "other Workspaces");
  return workspace;
}

}  // namespace cohort::nn
