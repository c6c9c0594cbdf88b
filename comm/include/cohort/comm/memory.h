// Memory: bytes that are made for being sent. Communicator::Allocate gives the best for one
// communicator, AllocateMemory what suits all.

#pragma once

#include <cohort/core/status.h>

#include <cstddef>
#include <memory>
#include <span>

namespace cohort {

class Memory {
 public:
  virtual ~Memory() = default;  // no operation may be using it
  virtual std::span<std::byte> bytes() const = 0;
};

// Private memory of this process: zeroed, prefaulted, aligned to pages, in huge pages where it is
// large and the kernel gives them. ResourceExhausted where there is not enough.
Result<std::unique_ptr<Memory>> AllocateMemory(std::size_t bytes);

}  // namespace cohort
