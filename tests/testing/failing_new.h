// operator new that fails when the test wants it to. For one source file of a test that is a binary
// of its own: it replaces all of them there.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace cohort::testing {

// Whether an allocation of so many bytes, under way on this thread, is to fail. The test defines
// it; it allocates nothing.
bool AllocationFails(std::size_t bytes);

inline void* AllocateOrFail(std::size_t bytes, std::align_val_t align = std::align_val_t{16}) {
  if (AllocationFails(bytes)) {
    throw std::bad_alloc();
  }
  const auto of = static_cast<std::size_t>(align);
  const std::size_t whole = std::max(of, (bytes + of - 1) / of * of);
  if (void* const memory = std::aligned_alloc(of, whole); memory != nullptr) {
    return memory;
  }
  throw std::bad_alloc();
}

}  // namespace cohort::testing

// NOLINTBEGIN(misc-definitions-in-headers): see above
void* operator new(std::size_t bytes) { return cohort::testing::AllocateOrFail(bytes); }
void* operator new[](std::size_t bytes) { return cohort::testing::AllocateOrFail(bytes); }
void* operator new(std::size_t bytes, std::align_val_t align) {
  return cohort::testing::AllocateOrFail(bytes, align);
}
void* operator new[](std::size_t bytes, std::align_val_t align) {
  return cohort::testing::AllocateOrFail(bytes, align);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t /*bytes*/) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t /*bytes*/) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t /*align*/) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t /*align*/) noexcept { std::free(memory); }
// NOLINTEND(misc-definitions-in-headers)
