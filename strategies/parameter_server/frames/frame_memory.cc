#include "parameter_server/frames/frame_memory.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "shm/segments.h"

namespace cohort::ps {

class FrameMemory::Allocation final : public Memory {
 public:
  Allocation(std::shared_ptr<FrameMemory> owner, Mapping mapping, std::size_t bytes)
      : owner_(std::move(owner)), mapping_(std::move(mapping)), bytes_(bytes) {}
  ~Allocation() override {
    std::erase_if(owner_->segments_, [this](const Segment& segment) {
      return segment.memory.data() == mapping_.data();
    });
  }
  std::span<std::byte> bytes() const override { return {mapping_.data(), bytes_}; }

 private:
  const std::shared_ptr<FrameMemory> owner_;  // owners: links, and what it allocated
  const Mapping mapping_;
  const std::size_t bytes_;
};

Result<std::unique_ptr<Memory>> FrameMemory::Allocate(std::size_t bytes) {
  COHORT_ASSIGN_OR_RETURN(auto made, MakeSegment(bytes));
  auto& [fd, mapping] = made;
  segments_.push_back(
      {.id = next_id_++, .fd = std::move(fd), .memory = {mapping.data(), mapping.bytes()}});
  return std::unique_ptr<Memory>(
      std::make_unique<Allocation>(shared_from_this(), std::move(mapping), bytes));
}

std::optional<FrameLoan> FrameMemory::Find(std::span<const std::byte> data) const {
  for (const Segment& segment : segments_) {
    const std::byte* const begin = segment.memory.data();
    if (data.data() >= begin && data.data() + data.size() <= begin + segment.memory.size()) {
      return FrameLoan{.segment = segment.id,
                       .offset = static_cast<std::uint64_t>(data.data() - begin),
                       .bytes = data.size()};
    }
  }
  return {};
}

Status FrameMemory::Tell(std::vector<std::uint64_t>* told, bool keep, const Send& send) const {
  for (const Segment& segment : segments_) {
    if (std::ranges::find(*told, segment.id) == told->end()) {
      COHORT_RETURN_IF_ERROR(
          send({.segment = segment.id, .bytes = segment.memory.size()}, &segment.fd));
      told->push_back(segment.id);
    }
  }
  for (std::size_t i = 0; !keep && told->size() > segments_.size() && i < told->size();) {
    const std::uint64_t id = (*told)[i];
    if (std::ranges::find(segments_, id, &Segment::id) != segments_.end()) {
      ++i;
      continue;
    }
    COHORT_RETURN_IF_ERROR(send({.segment = id}, nullptr));
    told->erase(told->begin() + static_cast<std::ptrdiff_t>(i));
  }
  return {};
}

void FrameMemory::Renew() {
  for (Segment& segment : segments_) {
    if (Status status = Renew(segment); !status.ok() && status_.ok()) {
      status_ = status.Annotate("memory that a server may still be reading cannot be replaced");
    }
  }
}

Status FrameMemory::Renew(Segment& segment) {
  COHORT_ASSIGN_OR_RETURN(auto made, MakeSegment(segment.memory.size()));
  auto& [fd, mapping] = made;
  std::memcpy(mapping.data(), segment.memory.data(), segment.memory.size());
  if (::mmap(segment.memory.data(), segment.memory.size(), PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_FIXED, fd.fd(), 0) == MAP_FAILED) {
    return ErrnoStatus(errno, "mapping " + std::to_string(segment.memory.size()) + " bytes");
  }
  (void)::madvise(segment.memory.data(), segment.memory.size(), MADV_HUGEPAGE);  // a wish
  segment.id = next_id_++;
  segment.fd = std::move(fd);
  return {};
}

Status BorrowedMemory::Map(const FrameSegment& news, const Socket& fd) {
  // A file that is shorter than what is mapped of it ends the process that reads there.
  struct stat file = {};
  if (::fstat(fd.fd(), &file) != 0 || file.st_size < 0 ||
      static_cast<std::uint64_t>(file.st_size) < MappedBytes(news.bytes)) {
    return InvalidArgument("frame: lent memory of " + std::to_string(news.bytes) +
                           " bytes, in a file of " + std::to_string(file.st_size));
  }
  COHORT_ASSIGN_OR_RETURN(
      Mapping mapping,
      Mapping::OfFile(fd.fd(), news.bytes, Mapping::Access::kRead, /*prefault=*/true));
  segments_.insert_or_assign(news.segment, std::move(mapping));
  return {};
}

std::optional<std::span<const std::byte>> BorrowedMemory::Resolve(const FrameLoan& loan) const {
  const auto found = segments_.find(loan.segment);
  if (found == segments_.end() || loan.offset > found->second.bytes() ||
      loan.bytes > found->second.bytes() - loan.offset) {
    return {};
  }
  return std::span<const std::byte>(found->second.data() + loan.offset, loan.bytes);
}

}  // namespace cohort::ps
