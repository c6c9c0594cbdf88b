#include "nccl/nccl_communicator.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <numeric>
#include <thread>
#include <utility>

#include "algorithms/choose.h"
#include "buffers.h"
#include "nccl/nccl_link.h"
#include "nccl/nccl_meeting.h"
#include "thread_store.h"

namespace cohort {
namespace {

using Outcome = NcclApi::Outcome;
using Handle = NcclApi::Handle;

Buffer Slice(const Buffer& buffer, std::int64_t begin, std::int64_t count) {
  return {
      static_cast<std::byte*>(buffer.data) + static_cast<std::size_t>(begin) * SizeOf(buffer.dtype),
      count, buffer.dtype};
}

// Calls made one after the other, until one fails.
class Calls {
 public:
  void operator()(Outcome outcome) {
    if (total_.status.ok()) {
      total_.status = std::move(outcome.status);
    }
  }
  bool ok() const { return total_.status.ok(); }
  Outcome total() const { return total_; }

 private:
  Outcome total_;
};

class NcclWork final : public Work {
 public:
  NcclWork(std::shared_ptr<NcclLink> link, std::shared_ptr<NcclOperation> operation)
      : link_(std::move(link)), operation_(std::move(operation)) {}

  bool done() const override { return link_->Done(*operation_); }
  Status Wait(Deadline deadline) override { return link_->Wait(*operation_, deadline); }
  Status Wait() override { return link_->Wait(*operation_, Deadline::max()); }
  void Order(Stream& stream) override { link_->Order(*operation_, stream); }

 private:
  const std::shared_ptr<NcclLink> link_;  // owners: the communicator and its works
  const std::shared_ptr<NcclOperation> operation_;
};

class DeviceMemory final : public Memory {
 public:
  DeviceMemory(std::shared_ptr<std::byte> data, std::size_t bytes)
      : data_(std::move(data)), bytes_(bytes) {}
  std::span<std::byte> bytes() const override { return {data_.get(), bytes_}; }

 private:
  const std::shared_ptr<std::byte> data_;
  const std::size_t bytes_;
};

class NcclCommunicator final : public Communicator {
 public:
  static Result<std::unique_ptr<Communicator>> Over(const std::shared_ptr<NcclLink>& link) {
    try {
      return std::make_unique<NcclCommunicator>(link);
    } catch (const StatusError& error) {
      link->Close();
      return error.status();
    }
  }
  explicit NcclCommunicator(std::shared_ptr<NcclLink> link)
      : link_(std::move(link)),
        // Barriers' element; what it holds is of no account.
        number_(link_->device().Allocate(sizeof(std::int32_t), "NCCL's barriers")) {}
  ~NcclCommunicator() override { link_->Close(); }

  int rank() const override { return link_->rank(); }
  int size() const override { return link_->size(); }
  std::uint64_t generation() const override { return link_->options().generation; }
  std::string_view backend() const override { return "nccl"; }
  std::string peer_name(int rank) const override {
    const auto& name = link_->options().peer_name;
    return name ? name(rank) : "rank " + std::to_string(rank);
  }
  CommunicatorStats stats() const override { return {operations_, bytes_, bytes_}; }
  Status status() const override { return link_->failure(); }
  OperationProgress progress() const override {
    const std::optional<FlightEntry> last = link_->flight().Last();
    if (!last) {
      return {.generation = generation()};
    }
    return {generation(), last->record.sequence, last->record.Brief(), last->started,
            last->state == FlightState::kStarted};
  }
  Result<std::string> DumpFlightRecord(std::string_view reason) const override {
    return link_->DumpFlightRecord(reason);
  }

  using Communicator::AllReduce;
  Pending AllReduce(ConstBuffer read, Buffer output, ReduceOp op,
                    const CollectiveOptions& options) override {
    const Buffer input = OnlyRead(read);
    CheckBuffer(input);
    CheckBuffer(output);
    Require(input.dtype == output.dtype && input.count == output.count,
            "AllReduce: input and output have one element type and count");
    CheckReduceOp(op);
    return Run({.kind = OperationKind::kAllReduce,
                .dtype = output.dtype,
                .reduce_op = op,
                .count = output.count},
               2 * Others(output.bytes()), options,
               [=](NcclApi& api, Handle handle, Stream& stream) -> Outcome {
                 return output.count == 0 ? Outcome()
                                          : api.AllReduce(handle, input, output, op, stream);
               });
  }

  Pending Reduce(Buffer buffer, ReduceOp op, int root, const CollectiveOptions& options) override {
    CheckBuffer(buffer);
    Require(root >= 0 && root < size(), "Reduce: root is a rank");
    CheckReduceOp(op);
    return Run(
        {.kind = OperationKind::kReduce,
         .dtype = buffer.dtype,
         .reduce_op = op,
         .root = root,
         .count = buffer.count},
        buffer.bytes(), options, [=](NcclApi& api, Handle handle, Stream& stream) -> Outcome {
          return buffer.count == 0 ? Outcome() : api.Reduce(handle, buffer, op, root, stream);
        });
  }

  Pending ReduceScatter(Buffer input, Buffer output, ReduceOp op,
                        const CollectiveOptions& options) override {
    CheckBuffer(input);
    CheckBuffer(output);
    Require(input.dtype == output.dtype && input.count == output.count * size(),
            "ReduceScatter: input holds one output for each rank");
    CheckReduceOp(op);
    return Run({.kind = OperationKind::kReduceScatter,
                .dtype = output.dtype,
                .reduce_op = op,
                .count = output.count},
               Others(input.bytes()), options,
               [=](NcclApi& api, Handle handle, Stream& stream) -> Outcome {
                 return output.count == 0 ? Outcome()
                                          : api.ReduceScatter(handle, input, output, op, stream);
               });
  }

  Pending AllGather(ConstBuffer read, Buffer output, const CollectiveOptions& options) override {
    const Buffer input = OnlyRead(read);
    CheckBuffer(input);
    CheckBuffer(output);
    Require(input.dtype == output.dtype && output.count == input.count * size(),
            "AllGather: output holds one input for each rank");
    return Run({.kind = OperationKind::kAllGather, .dtype = input.dtype, .count = input.count},
               Others(output.bytes()), options,
               [=](NcclApi& api, Handle handle, Stream& stream) -> Outcome {
                 return input.count == 0 ? Outcome() : api.AllGather(handle, input, output, stream);
               });
  }

  Pending AllGatherV(ConstBuffer read, Buffer output, std::span<const std::int64_t> counts,
                     const CollectiveOptions& options) override {
    const Buffer input = OnlyRead(read);
    CheckBuffer(input);
    CheckBuffer(output);
    Require(static_cast<int>(counts.size()) == size(), "AllGatherV: one count for each rank");
    Require(std::all_of(counts.begin(), counts.end(), [](std::int64_t c) { return c >= 0; }),
            "AllGatherV: counts are not negative");
    Require(input.dtype == output.dtype &&
                input.count == counts[static_cast<std::size_t>(rank())] &&
                output.count == Total(counts),
            "AllGatherV: the counts are those of the buffers");
    return Run({.kind = OperationKind::kAllGatherV,
                .dtype = input.dtype,
                .count = output.count,
                .shape = Digest(counts)},
               Others(output.bytes()), options,
               [=, parts = std::vector(counts.begin(), counts.end()), self = rank()](
                   NcclApi& api, Handle handle, Stream& stream) -> Outcome {
                 Calls calls;
                 std::int64_t at = 0;
                 for (int r = 0; r < static_cast<int>(parts.size()) && calls.ok(); ++r) {
                   const std::int64_t count = parts[static_cast<std::size_t>(r)];
                   const Buffer slice = Slice(output, at, count);
                   if (count > 0) {
                     calls(api.Broadcast(handle, r == self ? input : slice, slice, r, stream));
                   }
                   at += count;
                 }
                 return calls.total();
               });
  }

  Pending Broadcast(Buffer buffer, int root, const CollectiveOptions& options) override {
    CheckBuffer(buffer);
    Require(root >= 0 && root < size(), "Broadcast: root is a rank");
    return Run({.kind = OperationKind::kBroadcast,
                .dtype = buffer.dtype,
                .root = root,
                .count = buffer.count},
               buffer.bytes(), options,
               [=](NcclApi& api, Handle handle, Stream& stream) -> Outcome {
                 return buffer.count == 0 ? Outcome()
                                          : api.Broadcast(handle, buffer, buffer, root, stream);
               });
  }

  Pending AllToAll(ConstBuffer read, Buffer output, const CollectiveOptions& options) override {
    const Buffer input = OnlyRead(read);
    Require(input.count % size() == 0 && input.count == output.count,
            "AllToAll: buffers of one count, which divides by the number of ranks");
    const std::vector<std::int64_t> counts(static_cast<std::size_t>(size()), input.count / size());
    return Exchange(OperationKind::kAllToAll, input, counts, output, counts, options);
  }
  Pending AllToAllV(ConstBuffer read, std::span<const std::int64_t> send_counts, Buffer output,
                    std::span<const std::int64_t> receive_counts,
                    const CollectiveOptions& options) override {
    const Buffer input = OnlyRead(read);
    return Exchange(OperationKind::kAllToAllV, input,
                    std::vector(send_counts.begin(), send_counts.end()), output,
                    std::vector(receive_counts.begin(), receive_counts.end()), options);
  }

  Pending Send(ConstBuffer read, int to, const CollectiveOptions& options) override {
    const Buffer buffer = OnlyRead(read);
    CheckBuffer(buffer);
    Require(to >= 0 && to < size() && to != rank(), "Send: to another rank");
    return Run(
        {.kind = OperationKind::kSend, .dtype = buffer.dtype, .root = to, .count = buffer.count},
        buffer.bytes(), options, [=](NcclApi& api, Handle handle, Stream& stream) -> Outcome {
          return buffer.count == 0 ? Outcome() : api.Send(handle, buffer, to, stream);
        });
  }
  Pending Receive(Buffer buffer, int from, const CollectiveOptions& options) override {
    CheckBuffer(buffer);
    Require(from >= 0 && from < size() && from != rank(), "Receive: from another rank");
    return Run({.kind = OperationKind::kReceive,
                .dtype = buffer.dtype,
                .root = from,
                .count = buffer.count},
               0, options, [=](NcclApi& api, Handle handle, Stream& stream) -> Outcome {
                 return buffer.count == 0 ? Outcome() : api.Receive(handle, buffer, from, stream);
               });
  }

  Pending Barrier(const CollectiveOptions& options) override {
    const Buffer number(number_.get(), 1, DType::kInt32);
    return Run({.kind = OperationKind::kBarrier}, 0, options,
               [=](NcclApi& api, Handle handle, Stream& stream) -> Outcome {
                 return api.AllReduce(handle, number, number, ReduceOp::kMax, stream);
               });
  }

  Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes) override {
    try {
      return std::make_unique<DeviceMemory>(
          link_->device().Allocate(bytes, "memory of a communicator"), bytes);
    } catch (const StatusError& error) {
      return error.status();
    }
  }

  Result<std::unique_ptr<Communicator>> Split(int color, int key) override {
    ++operations_;
    COHORT_ASSIGN_OR_RETURN(NcclLink::Group group, link_->Split(color, key));
    if (group.members.empty()) {
      return std::unique_ptr<Communicator>();
    }
    CommunicatorOptions options = link_->options();
    options.name += "/" + group.id;
    if (options.peer_name) {
      options.peer_name = [members = std::move(group.members), name = options.peer_name](int r) {
        return name(members[static_cast<std::size_t>(r)]);
      };
    }
    return Over(NcclLink::Make(std::move(group.parts), std::move(options)));
  }

  Result<int> Join(const CollectiveOptions& /*options*/) override {
    return Unimplemented(
        "NCCL has no Join: a rank without data gives zeros to the others' operations itself [or "
        "use the transport tcp or shm]");
  }
  std::vector<std::string_view> algorithms(OperationKind /*kind*/) const override {
    return {AlgorithmName(Algorithm::kNccl)};
  }
  bool keeps_order(std::string_view algorithm) const override {
    return size() == 1 && (algorithm == AlgorithmName(Algorithm::kAuto) ||
                           algorithm == AlgorithmName(Algorithm::kNccl));
  }
  Result<CostEstimate> Explain(OperationKind /*kind*/, std::int64_t /*bytes*/) override {
    CostEstimate estimate;
    estimate.parameters = link_->options().cost.value_or(CostParameters());
    estimate.chosen = AlgorithmName(Algorithm::kNccl);  // which chooses by itself, and tells nobody
    estimate.algorithms.push_back({estimate.chosen, std::nullopt, false});
    return estimate;
  }

  void Abort(const Status& reason) override {
    Require(!reason.ok(), "Abort: the reason is an error");
    link_->Abort(reason);
  }

 private:
  // `bytes`: what a ring would send.
  Pending Run(OperationRecord record, std::size_t bytes, const CollectiveOptions& options,
              const NcclLink::Calls& calls) {
    if (options.algorithm != "auto") {
      static constexpr std::array kOffered = {Algorithm::kNccl};
      COHORT_RETURN_IF_ERROR(AlgorithmNamed(record.kind, options.algorithm, kOffered, {}).status());
    }
    record.name = options.name;
    const std::size_t buffers = BuffersOf(record, bytes);
    COHORT_ASSIGN_OR_RETURN(
        std::shared_ptr<NcclOperation> operation,
        link_->Run(std::move(record), buffers,
                   options.timeout.count() > 0 ? options.timeout : link_->options().timeout,
                   options.stream != nullptr ? options.stream->Record() : nullptr, calls));
    ++operations_;
    bytes_ += bytes;
    return std::make_unique<NcclWork>(link_, std::move(operation));
  }

  Pending Exchange(OperationKind kind, Buffer input, std::vector<std::int64_t> send_counts,
                   Buffer output, std::vector<std::int64_t> receive_counts,
                   const CollectiveOptions& options) {
    CheckBuffer(input);
    CheckBuffer(output);
    Require(input.dtype == output.dtype, "AllToAll: input and output have one element type");
    const auto check = [this](const std::vector<std::int64_t>& counts, std::int64_t total) {
      Require(static_cast<int>(counts.size()) == size(), "AllToAllV: one count for each rank");
      Require(std::all_of(counts.begin(), counts.end(), [](std::int64_t c) { return c >= 0; }),
              "AllToAllV: counts are not negative");
      Require(Total(counts) == total, "AllToAllV: the counts add up to the buffer's");
    };
    check(send_counts, input.count);
    check(receive_counts, output.count);
    const auto self = static_cast<std::size_t>(rank());
    Require(send_counts[self] == receive_counts[self],
            "AllToAllV: what a rank sends to itself is what it receives from itself");
    return Run({.kind = kind,
                .dtype = input.dtype,
                .count = kind == OperationKind::kAllToAll ? input.count : 0},
               input.bytes(), options,
               [=, sends = std::move(send_counts), receives = std::move(receive_counts)](
                   NcclApi& api, Handle handle, Stream& stream) -> Outcome {
                 Calls calls;
                 std::int64_t from = 0;
                 std::int64_t to = 0;
                 for (std::size_t r = 0; r < sends.size() && calls.ok(); ++r) {
                   const int peer = static_cast<int>(r);
                   if (sends[r] > 0) {
                     calls(api.Send(handle, Slice(input, from, sends[r]), peer, stream));
                   }
                   if (receives[r] > 0 && calls.ok()) {
                     calls(api.Receive(handle, Slice(output, to, receives[r]), peer, stream));
                   }
                   from += sends[r];
                   to += receives[r];
                 }
                 return calls.total();
               });
  }

  // Bytes of all ranks' parts together. Of AllToAllV the record does not tell: `sent`.
  std::size_t BuffersOf(const OperationRecord& record, std::size_t sent) const {
    if (record.kind == OperationKind::kAllToAllV) {
      return sent;
    }
    const bool of_one =
        record.kind == OperationKind::kReduceScatter || record.kind == OperationKind::kAllGather;
    return static_cast<std::size_t>(record.count) * SizeOf(record.dtype) *
           static_cast<std::size_t>(of_one ? size() : 1);
  }

  // What a ring sends of `bytes` for each time around; NCCL does not tell what it does.
  std::size_t Others(std::size_t bytes) const {
    const auto n = static_cast<std::size_t>(size());
    return bytes / n * (n - 1);
  }

  const std::shared_ptr<NcclLink> link_;  // owners: this, its works, and the link's thread
  const std::shared_ptr<std::byte> number_;
  std::atomic<std::uint64_t> operations_ = 0;
  std::atomic<std::uint64_t> bytes_ = 0;
};

}  // namespace

Result<std::unique_ptr<Communicator>> MakeNcclCommunicatorOn(
    std::shared_ptr<NcclApi> api, int rank, int size, std::shared_ptr<KeyValueStore> store,
    const std::string& prefix, const NcclOptions& nccl, const CommunicatorOptions& options,
    Duration quiet, Duration patience) {
  Require(size >= 1 && rank >= 0 && rank < size, "MakeNcclCommunicator: rank is in [0, size)");
  Require(nccl.device != nullptr, "MakeNcclCommunicator: a rank has a device");
  if (options.deterministic && size > 1) {
    return InvalidArgument(
        "NCCL does not combine in the canonical order, which `deterministic` asks for [choose the "
        "transport tcp or shm]");
  }
  Board board(std::move(store), prefix + "/" + std::to_string(options.generation) + "/nccl", rank);
  COHORT_ASSIGN_OR_RETURN(NcclLinkParts parts,
                          MeetForNccl(std::move(api), nccl.device, std::move(board), rank, size,
                                      nccl.connect_timeout, options));
  parts.quiet = quiet;
  parts.patience = patience;
  return NcclCommunicator::Over(NcclLink::Make(std::move(parts), options));
}

namespace {

Result<std::shared_ptr<NcclApi>> ApiOf(const NcclOptions& nccl) {
  return nccl.api != nullptr ? Result<std::shared_ptr<NcclApi>>(nccl.api) : LoadNccl();
}

}  // namespace

Result<std::unique_ptr<Communicator>> MakeNcclCommunicator(int rank, int size, KeyValueStore& store,
                                                           const std::string& prefix,
                                                           const NcclOptions& nccl,
                                                           const CommunicatorOptions& options) {
  COHORT_ASSIGN_OR_RETURN(std::shared_ptr<NcclApi> api, ApiOf(nccl));
  return MakeNcclCommunicatorOn(std::move(api), rank, size,
                                {std::shared_ptr<KeyValueStore>(), &store}, prefix, nccl, options);
}

Result<std::vector<std::unique_ptr<Communicator>>> MakeNcclCommunicators(
    std::span<const NcclOptions> ranks, int first, int size, KeyValueStore* store,
    const std::string& prefix, const CommunicatorOptions& options) {
  Require(!ranks.empty(), "MakeNcclCommunicators: at least one rank");
  const std::shared_ptr<KeyValueStore> meeting =  // owners: the communicators, or nobody
      store == nullptr ? std::make_shared<ThreadStore>()
                       : std::shared_ptr<KeyValueStore>(std::shared_ptr<KeyValueStore>(), store);
  const std::size_t count = ranks.size();
  std::vector<std::unique_ptr<Communicator>> made(count);
  std::vector<Status> statuses(count);
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < count; ++r) {
    threads.emplace_back([&, r] {
      Result<std::shared_ptr<NcclApi>> api = ApiOf(ranks[r]);
      Result<std::unique_ptr<Communicator>> one =
          api.ok() ? MakeNcclCommunicatorOn(std::move(api).value(), first + static_cast<int>(r),
                                            size, meeting, prefix, ranks[r], options)
                   : Result<std::unique_ptr<Communicator>>(api.status());
      if (one.ok()) {
        made[r] = std::move(one).value();
      } else {
        statuses[r] = one.status();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const Status& status : statuses) {
    COHORT_RETURN_IF_ERROR(status);
  }
  return made;
}

Result<std::vector<std::unique_ptr<Communicator>>> MakeLocalNcclCommunicators(
    std::span<const std::shared_ptr<Device>> devices, std::chrono::milliseconds connect_timeout,
    const CommunicatorOptions& options) {
  Require(!devices.empty(), "MakeLocalNcclCommunicators: at least one device");
  std::vector<NcclOptions> ranks;
  for (const std::shared_ptr<Device>& device : devices) {
    ranks.push_back({.device = device, .connect_timeout = connect_timeout, .api = nullptr});
  }
  return MakeNcclCommunicators(ranks, 0, static_cast<int>(ranks.size()), nullptr, "process",
                               options);
}

Result<std::string> NcclGpu(const NcclOptions& nccl) {
  Require(nccl.device != nullptr, "NcclGpu of a device");
  if (nccl.api == nullptr && !nccl.device->name().starts_with("cuda:")) {
    return FailedPrecondition("NCCL takes GPUs of CUDA, and not " + nccl.device->name());
  }
  COHORT_ASSIGN_OR_RETURN(const std::shared_ptr<NcclApi> api, ApiOf(nccl));
  try {
    const std::unique_ptr<Stream> stream = nccl.device->MakeStream();
    return api->Uuid(*stream);
  } catch (const StatusError& error) {
    return error.status();
  }
}

Result<std::string> NcclVersion() {
  COHORT_ASSIGN_OR_RETURN(const std::shared_ptr<NcclApi> api, LoadNccl());
  return api->Version();
}

}  // namespace cohort
