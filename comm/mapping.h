// Mapping: a range of this process's address space, on memory of its own or of a file.

#pragma once

#include <cohort/core/status.h>

#include <cstddef>
#include <span>
#include <utility>

namespace cohort {

class Mapping {
 public:
  // Where it is large: aligned to huge pages, which are asked for.
  static Result<Mapping> Anonymous(std::size_t bytes);
  enum class Access { kReadWrite, kRead };
  static Result<Mapping> OfFile(int fd, std::size_t bytes, Access access, bool prefault);

  // `part`, whole pages of a mapping to read, may be written to as well.
  static Status AllowWrites(std::span<std::byte> part);

  // The whole pages in `data`, wherever they are from, are replaced by anonymous ones of zeros.
  static Status ReplacePages(std::span<std::byte> data);

  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapping();

  std::byte* data() const { return base_; }
  std::size_t bytes() const { return bytes_; }

 private:
  Mapping(std::byte* base, std::size_t bytes) : base_(base), bytes_(bytes) {}
  static Result<Mapping> Map(int fd, std::size_t bytes, int protection, int flags, bool prefault);

  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
};

// What a mapping of `bytes` occupies: whole pages, or whole huge pages.
std::size_t MappedBytes(std::size_t bytes);

}  // namespace cohort
