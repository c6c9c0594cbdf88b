#include <cohort/comm/memory.h>

#include <sys/mman.h>

#include <cerrno>
#include <string>

#include "mapping.h"

namespace cohort {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kHugePage = 2 << 20;

std::size_t RoundUp(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

class PrivateMemory final : public Memory {
 public:
  PrivateMemory(Mapping mapping, std::size_t bytes) : mapping_(std::move(mapping)), bytes_(bytes) {}
  std::span<std::byte> bytes() const override { return {mapping_.data(), bytes_}; }

 private:
  const Mapping mapping_;
  const std::size_t bytes_;
};

}  // namespace

std::size_t MappedBytes(std::size_t bytes) {
  return RoundUp(bytes == 0 ? 1 : bytes, bytes >= kHugePage ? kHugePage : kPage);
}

Mapping::~Mapping() {
  if (base_ != nullptr) {
    ::munmap(base_, bytes_);
  }
}

Result<Mapping> Mapping::Anonymous(std::size_t bytes) {
  return Map(-1, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, true);
}

Result<Mapping> Mapping::OfFile(int fd, std::size_t bytes, Access access, bool prefault) {
  const int write = access == Access::kReadWrite ? PROT_WRITE : 0;
  return Map(fd, bytes, PROT_READ | write, MAP_SHARED, prefault);
}

Status Mapping::AllowWrites(std::span<std::byte> part) {
  if (::mprotect(part.data(), part.size(), PROT_READ | PROT_WRITE) != 0) {
    return ErrnoStatus(errno, "writing to " + std::to_string(part.size()) + " bytes of memory");
  }
  return {};
}

Status Mapping::ReplacePages(std::span<std::byte> data) {
  const auto at = reinterpret_cast<std::size_t>(data.data());
  const std::size_t first = RoundUp(at, kPage);
  const std::size_t last = (at + data.size()) / kPage * kPage;
  if (first < last && ::mmap(data.data() + (first - at), last - first, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
    return ErrnoStatus(errno, "replacing " + std::to_string(last - first) + " bytes of memory");
  }
  return {};
}

// Reserves one huge page more than needed, and gives back what stands over.
Result<Mapping> Mapping::Map(int fd, std::size_t bytes, int protection, int flags, bool prefault) {
  const std::size_t mapped = MappedBytes(bytes);
  const std::size_t unit = mapped >= kHugePage ? kHugePage : kPage;
  const auto fail = [&] {
    return ErrnoStatus(errno, "mapping " + std::to_string(mapped) + " bytes of memory");
  };
  void* reserved = ::mmap(nullptr, mapped + unit, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (reserved == MAP_FAILED) {
    return fail();
  }
  auto* const begin = static_cast<std::byte*>(reserved);
  const std::size_t skip =
      RoundUp(reinterpret_cast<std::size_t>(begin), unit) - reinterpret_cast<std::size_t>(begin);
  std::byte* const base = begin + skip;
  if (skip > 0) {
    ::munmap(begin, skip);
  }
  if (skip < unit) {
    ::munmap(base + mapped, unit - skip);
  }
  Mapping mapping(base, mapped);
  if (::mmap(base, mapped, protection, flags | MAP_FIXED, fd, 0) == MAP_FAILED) {
    return fail();
  }
  if (unit == kHugePage) {
    (void)::madvise(base, mapped, MADV_HUGEPAGE);  // a wish
  }
  if (prefault) {
    const bool write = (protection & PROT_WRITE) != 0;
    if (::madvise(base, mapped, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) != 0 &&
        errno != EINVAL) {  // EINVAL: a kernel before 5.14; the pages come with their first use
      return fail();
    }
  }
  return mapping;
}

Result<std::unique_ptr<Memory>> AllocateMemory(std::size_t bytes) {
  COHORT_ASSIGN_OR_RETURN(Mapping mapping, Mapping::Anonymous(bytes));
  return std::make_unique<PrivateMemory>(std::move(mapping), bytes);
}

}  // namespace cohort
