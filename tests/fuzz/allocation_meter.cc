#include "allocation_meter.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

namespace cohort::fuzz {
namespace {

std::atomic<std::ptrdiff_t> taken = 0;
std::atomic<std::ptrdiff_t> most = 0;
std::atomic<std::size_t> largest = 0;

void Count(void* memory) {
  const std::ptrdiff_t now = taken += static_cast<std::ptrdiff_t>(::malloc_usable_size(memory));
  std::ptrdiff_t before = most;
  while (before < now && !most.compare_exchange_weak(before, now)) {
  }
}

// nullptr where there is none.
void* TryTake(std::size_t size, std::size_t alignment) noexcept {
  void* memory = nullptr;
  if (alignment <= alignof(std::max_align_t)) {
    memory = std::malloc(std::max<std::size_t>(size, 1));
  } else if (::posix_memalign(&memory, alignment, std::max<std::size_t>(size, 1)) != 0) {
    memory = nullptr;
  }
  if (memory != nullptr) {
    Count(memory);
  }
  return memory;
}

void* Take(std::size_t size, std::size_t alignment) {
  void* const memory = TryTake(size, alignment);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}

void GiveBack(void* memory) {
  if (memory != nullptr) {
    taken -= static_cast<std::ptrdiff_t>(::malloc_usable_size(memory));
    std::free(memory);
  }
}

}  // namespace

AllocationMeter::AllocationMeter() {
  taken = 0;
  most = 0;
  largest = 0;
}

std::size_t AllocationMeter::Most() { return static_cast<std::size_t>(most) + largest; }

}  // namespace cohort::fuzz

// In place of the library's.
void* operator new(std::size_t size) { return cohort::fuzz::Take(size, 1); }
void* operator new[](std::size_t size) { return cohort::fuzz::Take(size, 1); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return cohort::fuzz::Take(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return cohort::fuzz::Take(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return cohort::fuzz::TryTake(size, 1);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return cohort::fuzz::TryTake(size, 1);
}
void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return cohort::fuzz::TryTake(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return cohort::fuzz::TryTake(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { cohort::fuzz::GiveBack(memory); }
void operator delete[](void* memory) noexcept { cohort::fuzz::GiveBack(memory); }
void operator delete(void* memory, std::size_t) noexcept { cohort::fuzz::GiveBack(memory); }
void operator delete[](void* memory, std::size_t) noexcept { cohort::fuzz::GiveBack(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { cohort::fuzz::GiveBack(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { cohort::fuzz::GiveBack(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  cohort::fuzz::GiveBack(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  cohort::fuzz::GiveBack(memory);
}

extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  std::size_t before = cohort::fuzz::largest;
  while (before < size && !cohort::fuzz::largest.compare_exchange_weak(before, size)) {
  }
  void* memory = nullptr;
  return ::posix_memalign(&memory, std::max(alignment, sizeof(void*)), size) == 0 ? memory
                                                                                  : nullptr;
}
