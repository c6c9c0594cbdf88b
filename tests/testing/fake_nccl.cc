#include "testing/fake_nccl.h"

#include <cohort/device/kernels.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <new>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "reduction.h"
#include "testing/late_stream.h"

namespace cohort::testing {
namespace {

constexpr int kPolls = 3;  // a call goes on for so long

class FakeGpu final : public Device, public std::enable_shared_from_this<FakeGpu> {
 public:
  explicit FakeGpu(std::uint64_t seed)
      : streams_(LateStreams(seed, std::chrono::microseconds(20))) {}

  const std::string& name() const override { return name_; }
  MemorySpace memory_space() const override { return MemorySpace::kHost; }
  std::unique_ptr<Stream> MakeStream() override { return streams_(); }
  std::unique_ptr<Kernels> MakeKernels(int /*threads*/) override { return nullptr; }
  std::shared_ptr<std::byte> Allocate(std::size_t bytes, std::string_view /*what*/) override {
    return {new (std::align_val_t(256)) std::byte[bytes + 1],
            [self = shared_from_this()](std::byte* data) {
              ::operator delete[](data, std::align_val_t(256));
            }};
  }
  std::shared_ptr<std::byte> AllocateHost(std::size_t bytes, std::string_view what) override {
    return Allocate(bytes, what);
  }
  void Copy(Stream& stream, const std::byte* from, std::byte* to, std::size_t bytes) override {
    stream.Enqueue([=]() -> Status {
      std::memcpy(to, from, bytes);
      return {};
    });
  }
  std::unique_ptr<Graph> Capture(Stream& /*stream*/,
                                 const std::function<void()>& /*feed*/) override {
    return nullptr;
  }

 private:
  const std::string name_ = "fake";
  const std::function<std::unique_ptr<Stream>()> streams_;
};

enum class Kind { kAllReduce, kReduce, kReduceScatter, kAllGather, kBroadcast, kSend, kReceive };

struct Call {
  Kind kind;
  Buffer input;
  Buffer output;
  ReduceOp op;
  int peer;  // or root
  bool collective() const { return kind != Kind::kSend && kind != Kind::kReceive; }
};

struct Round {
  std::vector<std::optional<Call>> calls;
  int arrived = 0;
  bool differs = false;
  bool done = false;
};

bool Same(const Call& a, const Call& b) {
  return a.kind == b.kind && a.op == b.op && a.peer == b.peer && a.output.dtype == b.output.dtype &&
         a.output.count == b.output.count && a.input.count == b.input.count;
}

std::byte* At(const Buffer& buffer, std::size_t offset = 0) {
  return static_cast<std::byte*>(buffer.data) + offset;
}

// All ranks' buffers are there.
void Compute(const std::vector<std::optional<Call>>& calls) {
  const Call& first = *calls.front();
  const std::size_t n = calls.size();
  std::vector<std::byte> result;
  const auto add = [&](const Buffer& b) { result.insert(result.end(), At(b), At(b) + b.bytes()); };
  switch (first.kind) {
    case Kind::kAllGather:
      for (const auto& call : calls) {
        add(call->input);
      }
      break;
    case Kind::kBroadcast:
      add(calls[static_cast<std::size_t>(first.peer)]->input);
      break;
    default: {
      add(first.input);
      const Reduction reduction(first.input.dtype, first.op);
      for (std::size_t r = 1; r < n; ++r) {
        reduction.Combine(result.data(), result.data(), At(calls[r]->input), result.size());
      }
      reduction.Finish(result.data(), result.size(), static_cast<int>(n));
    }
  }
  for (std::size_t r = 0; r < n; ++r) {
    if (first.kind == Kind::kReduce && static_cast<int>(r) != first.peer) {
      continue;
    }
    const Buffer& to = calls[r]->output;
    const std::size_t offset = first.kind == Kind::kReduceScatter ? r * to.bytes() : 0;
    std::memcpy(At(to), result.data() + offset, to.bytes());
  }
}

}  // namespace

std::shared_ptr<Device> MakeFakeGpu(std::uint64_t seed) { return std::make_shared<FakeGpu>(seed); }

// All guarded by the world's mutex.
struct FakeNccl::Clique {
  explicit Clique(int n) : size(n) {}
  const int size;
  std::set<int> joined;
  std::map<std::uint64_t, Round> rounds;
  std::map<std::pair<int, int>, std::deque<std::vector<std::byte>>> mail;  // from, to
};

struct FakeNccl::Comm {
  std::shared_ptr<World> world;
  std::shared_ptr<Clique> clique;
  int rank = 0;
  std::uint64_t rounds = 0;
  bool connects = true;
  bool aborted = false;
  int polls = kPolls;          // that a call, Init at first, still goes on for
  std::function<void()> then;  // what it does in the end

  bool connected() const {
    return connects && static_cast<int>(clique->joined.size()) == clique->size;
  }
};

namespace {

using Comm = FakeNccl::Comm;

// The calls between GroupStart and GroupEnd.
struct Pending {
  std::shared_ptr<Comm> comm;
  Stream* stream = nullptr;
  std::vector<Call> calls;
};
thread_local Pending pending;

// A handle is a pointer to the owner's reference: streams hold others.
std::shared_ptr<Comm>& CommOf(NcclApi::Handle handle) {
  return *static_cast<std::shared_ptr<Comm>*>(handle);
}

NcclApi::Outcome Add(NcclApi::Handle handle, Stream& stream, const Call& call) {
  pending.comm = CommOf(handle);
  pending.stream = &stream;
  pending.calls.push_back(call);
  return {{}, true};
}

Status Meet(Comm& comm, const Call& call) {
  FakeNccl::World& world = *comm.world;
  FakeNccl::Clique& clique = *comm.clique;
  std::unique_lock lock(world.mutex);
  const auto wait = [&](const std::function<bool()>& done) -> Status {
    world.changed.wait(lock, [&] { return comm.aborted || done(); });
    return done() && !comm.aborted ? OkStatus() : Aborted("the fake NCCL was aborted");
  };
  const auto bytes = [&](const Buffer& b) { return std::vector(At(b), At(b) + b.bytes()); };
  if (call.kind == Kind::kSend) {
    clique.mail[{comm.rank, call.peer}].push_back(bytes(call.input));
    world.changed.notify_all();
    return {};
  }
  if (call.kind == Kind::kReceive) {
    auto& mail = clique.mail[{call.peer, comm.rank}];
    COHORT_RETURN_IF_ERROR(
        wait([&] { return !mail.empty() && mail.front().size() == call.output.bytes(); }));
    std::memcpy(At(call.output), mail.front().data(), mail.front().size());
    mail.pop_front();
    return {};
  }
  Round& round = clique.rounds[++comm.rounds];
  round.calls.resize(static_cast<std::size_t>(clique.size));
  for (const auto& other : round.calls) {
    round.differs = round.differs || (other && !Same(*other, call));
  }
  round.calls[static_cast<std::size_t>(comm.rank)] = call;
  if (++round.arrived == clique.size && !round.differs && !comm.aborted) {
    Compute(round.calls);
    round.done = true;
    world.changed.notify_all();
  }
  const Status status = wait([&] { return round.done; });
  if (!round.done) {
    round.differs = true;  // its buffers are gone
  }
  return status;
}

// Sends do not wait, so they come first.
Status Perform(Comm& comm, std::vector<Call> calls) {
  std::stable_sort(calls.begin(), calls.end(), [](const Call& a, const Call& b) {
    return a.kind == Kind::kSend && b.kind != Kind::kSend;
  });
  for (const Call& call : calls) {
    COHORT_RETURN_IF_ERROR(Meet(comm, call));
  }
  return {};
}

NcclApi::Handle NewComm(const std::shared_ptr<FakeNccl::World>& world,
                        std::shared_ptr<FakeNccl::Clique> clique, int rank) {
  auto comm = std::make_shared<Comm>();
  comm->world = world;
  comm->clique = std::move(clique);
  comm->rank = rank;
  comm->connects = world->connects;
  ++world->live;
  return new std::shared_ptr<Comm>(std::move(comm));
}

}  // namespace

Result<std::string> FakeNccl::UniqueId() {
  const std::lock_guard lock(world_->mutex);
  if (const auto refused = world_->refused.find(uuid_); refused != world_->refused.end()) {
    return refused->second;
  }
  return "id " + std::to_string(++world_->ids);
}

NcclApi::Outcome FakeNccl::Init(Stream& /*stream*/, int rank, int size, const std::string& id,
                                Handle* handle) {
  const std::lock_guard lock(world_->mutex);
  ++world_->inits;
  auto& clique = world_->cliques[id];
  if (clique == nullptr) {
    clique = std::make_shared<Clique>(size);
  }
  *handle = NewComm(world_, clique, rank);
  if (const auto refused = world_->refused.find(uuid_); refused != world_->refused.end()) {
    return {refused->second};
  }
  clique->joined.insert(rank);
  return {{}, true};
}

NcclApi::Outcome FakeNccl::Poll(Handle handle) {
  const std::lock_guard lock(world_->mutex);
  Comm& comm = *CommOf(handle);
  if (const auto error = world_->errors.find(comm.rank); error != world_->errors.end()) {
    return {error->second};
  }
  if (!comm.connected()) {
    return {{}, true};
  }
  if (comm.polls > 0 && --comm.polls > 0) {
    return {{}, true};
  }
  if (const auto then = std::exchange(comm.then, nullptr); then) {
    then();
  }
  return {};
}

NcclApi::Outcome FakeNccl::Finalize(Handle handle) {
  const std::lock_guard lock(world_->mutex);
  CommOf(handle)->polls = kPolls;
  return {{}, true};
}

void FakeNccl::Destroy(Handle handle) {
  {
    const std::lock_guard lock(world_->mutex);
    --world_->live;
    CommOf(handle)->then = nullptr;  // which holds it
  }
  delete &CommOf(handle);
}

void FakeNccl::Abort(Handle handle) {
  {
    const std::lock_guard lock(world_->mutex);
    --world_->live;
    ++world_->aborted;
    CommOf(handle)->aborted = true;
    CommOf(handle)->then = nullptr;  // which holds it
    world_->changed.notify_all();
  }
  delete &CommOf(handle);
}

void FakeNccl::Fail(Stream& stream, const Status& status) {
  stream.Enqueue([status] { return status; });
}

NcclApi::Outcome FakeNccl::GroupStart() {
  pending = {};
  return {};
}

NcclApi::Outcome FakeNccl::GroupEnd() {
  if (pending.calls.empty()) {
    return {};
  }
  const std::lock_guard lock(world_->mutex);
  const std::shared_ptr<Comm> comm = pending.comm;
  if (!comm->connected() || comm->polls > 0 || comm->then) {
    return {Internal("NCCL: a communicator is used before the previous operation has ended")};
  }
  comm->polls = kPolls;
  comm->then = [comm, stream = pending.stream, calls = std::move(pending.calls)] {
    // Holds it: the owner of the handle may abort it while the stream still runs this.
    stream->Enqueue([comm, calls] { return Perform(*comm, calls); });
  };
  pending = {};
  return {{}, true};
}

Buffer FakeNccl::At(const Buffer& buffer) const {
  return near_ && buffer.count > 0
             ? Buffer(near_(static_cast<std::byte*>(buffer.data), buffer.bytes()), buffer.count,
                      buffer.dtype)
             : buffer;
}

NcclApi::Outcome FakeNccl::AllReduce(Handle handle, Buffer input, Buffer output, ReduceOp op,
                                     Stream& stream) {
  return Add(handle, stream, {Kind::kAllReduce, At(input), At(output), op, 0});
}
NcclApi::Outcome FakeNccl::Reduce(Handle handle, Buffer buffer, ReduceOp op, int root,
                                  Stream& stream) {
  return Add(handle, stream, {Kind::kReduce, At(buffer), At(buffer), op, root});
}
NcclApi::Outcome FakeNccl::ReduceScatter(Handle handle, Buffer input, Buffer output, ReduceOp op,
                                         Stream& stream) {
  return Add(handle, stream, {Kind::kReduceScatter, At(input), At(output), op, 0});
}
NcclApi::Outcome FakeNccl::AllGather(Handle handle, Buffer input, Buffer output, Stream& stream) {
  return Add(handle, stream, {Kind::kAllGather, At(input), At(output), ReduceOp::kSum, 0});
}
NcclApi::Outcome FakeNccl::Broadcast(Handle handle, Buffer input, Buffer output, int root,
                                     Stream& stream) {
  return Add(handle, stream, {Kind::kBroadcast, At(input), At(output), ReduceOp::kSum, root});
}
NcclApi::Outcome FakeNccl::Send(Handle handle, Buffer buffer, int to, Stream& stream) {
  return Add(handle, stream, {Kind::kSend, At(buffer), At(buffer), ReduceOp::kSum, to});
}
NcclApi::Outcome FakeNccl::Receive(Handle handle, Buffer buffer, int from, Stream& stream) {
  return Add(handle, stream, {Kind::kReceive, At(buffer), At(buffer), ReduceOp::kSum, from});
}

}  // namespace cohort::testing
