// What the machine allows at best: the loads and stores of an operation without any peer, and its
// bytes as raw TCP streams.

#include <cohort/cluster/folder_store.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "../../reduction.h"
#include "../../tcp/socket.h"
#include "subject.h"

namespace cohort::bench {
namespace {

// --- memory

// target = sum over `slices` slices of `bytes` that lie one after the other, and into each of them
// if `spread`. Each slice is read once, and written once where it is, by the loops that we use.
void AddSlices(std::byte* first, std::size_t slices, std::size_t bytes, std::byte* target,
               bool spread) {
  static const Reduction sum(DType::kFloat32, ReduceOp::kSum);
  constexpr std::size_t kTile = 32 << 10;  // is in the cache when it is copied
  std::vector<const std::byte*> sources(slices);
  for (std::size_t at = 0; at < bytes; at += kTile) {
    const std::size_t n = std::min(kTile, bytes - at);
    for (std::size_t s = 0; s < slices; ++s) {
      sources[s] = first + s * bytes + at;
    }
    std::byte* const to = spread ? first + at : target + at;
    sum.CombineAll(to, sources, n);
    for (std::size_t s = 1; s < slices && spread; ++s) {
      std::memcpy(first + s * bytes + at, to, n);
    }
  }
}

// The n ranks' slices of a direct algorithm in shared memory, all of them in this process's own
// memory: the same traffic, with neither a peer nor a hand-over.
class MemoryLimit final : public Subject {
 public:
  MemoryLimit(int rank, int size) : rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Status Barrier() override { return {}; }
  bool exact() const override { return false; }

  Status Run(Operation operation, const Buffers& buffers) override {
    const std::size_t bytes = std::max(buffers.input.bytes(), buffers.output.bytes());
    if (operation == Operation::kAllGather || operation == Operation::kBroadcast) {
      if (operation == Operation::kAllGather || rank_ != 0) {
        other_.resize(bytes);
        std::memcpy(buffers.output.data, other_.data(), buffers.output.bytes());
      }
      return {};
    }
    const auto slices = static_cast<std::size_t>(size_);
    AddSlices(static_cast<std::byte*>(buffers.input.data), slices,
              bytes / sizeof(float) / slices * sizeof(float),
              static_cast<std::byte*>(buffers.output.data), operation == Operation::kAllReduce);
    return {};
  }

 private:
  const int rank_;
  const int size_;
  std::vector<std::byte> other_;
};

// --- loopback

// A ring of plain connections: each rank sends to the next while it receives from the one before.
class LoopbackLimit final : public Subject {
 public:
  LoopbackLimit(int rank, int size, Socket next, Socket previous)
      : rank_(rank), size_(size), next_(std::move(next)), previous_(std::move(previous)) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Status Barrier() override { return {}; }
  bool exact() const override { return false; }

  Status Run(Operation operation, const Buffers& buffers) override {
    const std::size_t all = std::max(buffers.input.bytes(), buffers.output.bytes());
    const auto n = static_cast<std::size_t>(size_);
    std::size_t send = all * (n - 1) / n * (operation == Operation::kAllReduce ? 2 : 1);
    std::size_t receive = send;
    if (operation == Operation::kBroadcast) {
      send = rank_ + 1 < size_ ? all : 0;
      receive = rank_ > 0 ? all : 0;
    }
    into_.resize(all);
    return Stream(static_cast<std::byte*>(buffers.input.data), buffers.input.bytes(), send,
                  receive);
  }

 private:
  static constexpr std::size_t kChunk = 1 << 20;

  Status Stream(std::byte* from, std::size_t from_bytes, std::size_t send, std::size_t receive) {
    std::size_t sent = 0;
    std::size_t received = 0;
    int idle = 0;
    while (sent < send || received < receive) {
      bool moved = false;
      if (sent < send) {
        const std::size_t at = sent % from_bytes;
        const std::size_t n = std::min({kChunk, send - sent, from_bytes - at});
        moved |= Moved(::send(next_.fd(), from + at, n, MSG_DONTWAIT | MSG_NOSIGNAL), sent);
      }
      if (received < receive) {
        const std::size_t at = received % into_.size();
        const std::size_t n = std::min({kChunk, receive - received, into_.size() - at});
        moved |= Moved(::recv(previous_.fd(), into_.data() + at, n, MSG_DONTWAIT), received);
      }
      if (failed_ != 0) {
        return ErrnoStatus(failed_, "loopback");
      }
      idle = moved ? 0 : idle + 1;
      if (idle > 20) {  // a few microseconds
        std::array<pollfd, 2> events = {
            pollfd{next_.fd(), static_cast<short>(sent < send ? POLLOUT : 0), 0},
            pollfd{previous_.fd(), static_cast<short>(received < receive ? POLLIN : 0), 0}};
        ::poll(events.data(), events.size(), 1000);
      }
    }
    return {};
  }

  bool Moved(ssize_t n, std::size_t& total) {
    if (n > 0) {
      total += static_cast<std::size_t>(n);
      return true;
    }
    failed_ = n == 0 ? EPIPE : errno == EAGAIN || errno == EINTR ? 0 : errno;
    return false;
  }

  const int rank_;
  const int size_;
  const Socket next_;
  const Socket previous_;
  std::vector<std::byte> into_;
  int failed_ = 0;
};

}  // namespace

std::unique_ptr<Subject> MakeMemoryLimit(const Options& options) {
  return std::make_unique<MemoryLimit>(options.rank, options.ranks);
}

Result<std::unique_ptr<Subject>> MakeLoopbackLimit(const Options& options) {
  const Deadline deadline = DeadlineAfter(options.timeout);
  FolderStore store(options.folder);
  const auto key = [](int rank) { return "loopback/" + std::to_string(rank); };
  COHORT_ASSIGN_OR_RETURN(const Listener listener, Listen(":0", options.rendezvous_host));
  COHORT_RETURN_IF_ERROR(store.Insert(key(options.rank), listener.address));
  COHORT_ASSIGN_OR_RETURN(const std::string address,
                          store.Wait(key((options.rank + 1) % options.ranks), deadline));
  COHORT_ASSIGN_OR_RETURN(Socket next, Connect(address, deadline));
  Socket previous;
  while (!previous.open()) {
    pollfd event = {listener.socket.fd(), POLLIN, 0};
    ::poll(&event, 1, PollTimeout(deadline));
    previous = Socket(::accept4(listener.socket.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!previous.open() && std::chrono::steady_clock::now() >= deadline) {
      return DeadlineExceeded("loopback: the previous rank did not connect");
    }
  }
  COHORT_RETURN_IF_ERROR(Prepare(next));
  COHORT_RETURN_IF_ERROR(Prepare(previous));
  return std::make_unique<LoopbackLimit>(options.rank, options.ranks, std::move(next),
                                         std::move(previous));
}

}  // namespace cohort::bench
