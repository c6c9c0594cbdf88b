#include "shm/segments.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "tcp/unix_socket.h"

namespace cohort {
namespace {

constexpr auto kAnnounce = std::chrono::seconds(1);  // a stopped peer's socket may be full

}  // namespace

Status SendNotice(const Socket& socket, const SegmentNotice& notice, const std::vector<int>& fds,
                  Deadline deadline) {
  return SendWithDescriptors(socket.fd(), std::as_bytes(std::span(&notice, 1)), fds, deadline);
}

Result<std::optional<ReceivedNotice>> ReceiveNotice(const Socket& socket) {
  ReceivedNotice received;
  COHORT_ASSIGN_OR_RETURN(
      const std::size_t got,
      ReceiveWithDescriptors(socket.fd(), std::as_writable_bytes(std::span(&received.notice, 1)),
                             &received.fds));
  if (got == 0) {
    return std::optional<ReceivedNotice>();
  }
  if (got != sizeof(received.notice)) {
    return DataLoss("a notice of " + std::to_string(got) + " bytes");
  }
  return std::optional<ReceivedNotice>(std::move(received));
}

Result<ReceivedNotice> AwaitNotice(const Socket& socket, Deadline deadline) {
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(std::optional<ReceivedNotice> received, ReceiveNotice(socket));
    if (received) {
      return std::move(*received);
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      return DeadlineExceeded("its shared memory has not come");
    }
    pollfd event = {socket.fd(), POLLIN, 0};
    ::poll(&event, 1, PollTimeout(deadline));
  }
}

Result<std::pair<Socket, Mapping>> MakeSegment(std::size_t bytes, bool prefault) {
  const std::size_t mapped = MappedBytes(bytes);
  Socket fd(::memfd_create("cohort", MFD_CLOEXEC));
  if (!fd.open() || ::ftruncate(fd.fd(), static_cast<off_t>(mapped)) != 0) {
    return ErrnoStatus(errno, "shared memory of " + std::to_string(mapped) + " bytes");
  }
  COHORT_ASSIGN_OR_RETURN(Mapping mapping,
                          Mapping::OfFile(fd.fd(), mapped, Mapping::Access::kReadWrite, prefault));
  return std::pair(std::move(fd), std::move(mapping));
}

class SharedSegments::Allocation final : public Memory {
 public:
  Allocation(std::shared_ptr<SharedSegments> owner, std::uint64_t id, Mapping mapping,
             std::size_t bytes)
      : owner_(std::move(owner)), id_(id), mapping_(std::move(mapping)), bytes_(bytes) {}
  ~Allocation() override { owner_->Release(id_); }
  std::span<std::byte> bytes() const override { return {mapping_.data(), bytes_}; }

 private:
  const std::shared_ptr<SharedSegments> owner_;  // owners: the transport, and what it allocated
  const std::uint64_t id_;
  const Mapping mapping_;
  const std::size_t bytes_;
};

SharedSegments::SharedSegments(std::vector<Socket> sockets)
    : sockets_(std::move(sockets)), theirs_(sockets_.size()) {}

SharedSegments::~SharedSegments() = default;

Status SharedSegments::Announce(const SegmentNotice& notice, const std::vector<int>& fds) {
  for (const Socket& socket : sockets_) {
    if (socket.open()) {
      const Status sent = SendNotice(socket, notice, fds, DeadlineAfter(kAnnounce));
      // One that is gone is reported where it is needed.
      if (sent.code() == StatusCode::kDeadlineExceeded) {
        return sent;
      }
    }
  }
  return {};
}

Result<std::unique_ptr<Memory>> SharedSegments::Allocate(std::size_t bytes) {
  COHORT_ASSIGN_OR_RETURN(auto segment, MakeSegment(bytes));
  const std::lock_guard lock(mutex_);
  const std::uint64_t id = next_id_++;
  COHORT_RETURN_IF_ERROR(
      Announce({.segment = id, .bytes = segment.second.bytes()}, {segment.first.fd()})
          .Annotate("announcing shared memory"));
  own_.push_back({id, segment.second.data(), segment.second.bytes()});
  return std::make_unique<Allocation>(shared_from_this(), id, std::move(segment.second), bytes);
}

void SharedSegments::Release(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  std::erase_if(own_, [id](const Own& own) { return own.id == id; });
  (void)Announce({.segment = id}, {});
}

std::optional<Loan> SharedSegments::Find(Bytes data) const {
  const std::lock_guard lock(mutex_);
  for (const Own& own : own_) {
    if (data.data() >= own.base && data.data() + data.size() <= own.base + own.bytes) {
      return Loan{own.id, static_cast<std::uint64_t>(data.data() - own.base)};
    }
  }
  return std::nullopt;
}

std::byte* SharedSegments::Resolve(int peer, const Loan& loan, std::size_t bytes) {
  auto& mappings = theirs_[static_cast<std::size_t>(peer)];
  auto at = mappings.find(loan.segment);
  if (at == mappings.end()) {
    (void)Hear(peer);  // announced before it was lent from
    at = mappings.find(loan.segment);
  }
  if (at == mappings.end() || loan.offset > at->second.bytes() ||
      bytes > at->second.bytes() - loan.offset) {
    return nullptr;
  }
  return at->second.data() + loan.offset;
}

void SharedSegments::TakeBack(MutableBytes data) {
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(own_, [data](const Own& own) {
      return data.data() >= own.base && data.data() < own.base + own.bytes;
    });
  }
  const Status replaced = Mapping::ReplacePages(data);
  Require(replaced.ok(), "memory to replace what a lost process writes to: " + replaced.message());
}

Status SharedSegments::Hear(int peer) {
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(std::optional<ReceivedNotice> received, ReceiveNotice(socket(peer)));
    if (!received) {
      return {};
    }
    auto& mappings = theirs_[static_cast<std::size_t>(peer)];
    if (received->notice.bytes == 0) {
      mappings.erase(received->notice.segment);
    } else if (!received->fds.empty()) {
      COHORT_ASSIGN_OR_RETURN(Mapping mapping,
                              Mapping::OfFile(received->fds[0].fd(), received->notice.bytes,
                                              Mapping::Access::kReadWrite, true));
      mappings.insert_or_assign(received->notice.segment, std::move(mapping));
    }
  }
}

void SharedSegments::Close() {
  const std::lock_guard lock(mutex_);
  for (Socket& socket : sockets_) {
    socket.Close();
  }
}

}  // namespace cohort
