#include "transport_communicator.h"

#include <cohort/core/file_system.h>
#include <cohort/core/thread_pool.h>

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "algorithms/algorithms.h"
#include "algorithms/one_shot.h"
#include "algorithms/shared.h"

namespace cohort {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr auto kCallerSpin = microseconds(50);  // about twice what waking a thread takes
constexpr auto kThreadSpin = microseconds(5);
constexpr int kRoleSpins = 200;  // a few microseconds: the thread holds the role briefly
constexpr Duration kNap = microseconds(500);
constexpr Duration kLongestNap = milliseconds(16);
constexpr auto kActive = milliseconds(20);  // naps go on for so long after the last call
constexpr auto kWatch = milliseconds(1000);
// A process that was away for longer, stopped for example, hears what happened before it goes on.
constexpr std::uint64_t kNewsTicks = 20'000'000;  // 5 to 10 ms

MutableBytes BytesOf(const Buffer& buffer) {
  return {static_cast<std::byte*>(buffer.data), buffer.bytes()};
}

Algorithm AlgorithmOf(const OperationRecord& record) {
  return static_cast<Algorithm>(record.algorithm);
}

void CheckBuffer(const Buffer& buffer) {
  Require(buffer.count >= 0, "a buffer's count is not negative");
  Require(buffer.data != nullptr || buffer.count == 0, "a buffer with elements has data");
}

// FNV-1a over the counts.
std::uint64_t Digest(const std::vector<std::int64_t>& counts) {
  std::uint64_t digest = 0xcbf29ce484222325U;
  for (const std::int64_t count : counts) {
    digest = (digest ^ static_cast<std::uint64_t>(count)) * 0x100000001b3U;
  }
  return digest;
}

std::int64_t Total(const std::vector<std::int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

// Consecutive pieces of `all`, counts[i] elements each.
template <typename Span>
std::vector<Span> Pieces(Span all, const std::vector<std::int64_t>& counts, std::size_t element) {
  std::vector<Span> pieces;
  std::size_t at = 0;
  for (const std::int64_t count : counts) {
    const std::size_t bytes = static_cast<std::size_t>(count) * element;
    pieces.push_back(all.subspan(at, bytes));
    at += bytes;
  }
  return pieces;
}

void Copy(MutableBytes to, Bytes from) {
  if (!from.empty() && to.data() != from.data()) {
    std::memmove(to.data(), from.data(), from.size());
  }
}

}  // namespace

struct TransportCommunicator::Task {
  OperationRecord record;
  std::chrono::milliseconds timeout;
  std::shared_ptr<Event> after;  // owners: the stream that recorded it and this task
  std::int64_t total;
  Body body;
  std::uint64_t flight = 0;  // its index in the flight record
};

TransportCommunicator::TransportCommunicator(TransportCommunicatorParts parts,
                                             CommunicatorOptions options)
    : rank_(parts.rank),
      size_(parts.size),
      shared_memory_(parts.shared_memory),
      options_(std::move(options)),
      native_(parts.transport->Native()),
      backend_(parts.transport->backend()),
      exchange_(std::move(parts.transport), rank_, size_, options_,
                [this](const Status& status) { FailWith(status); }),
      shares_(size_ > 1 && HasShared(exchange_.transport())),
      cost_(options_.cost, shared_memory_),
      nap_(kNap),
      thread_([this] { Run(); }) {}

TransportCommunicator::~TransportCommunicator() {
  stopping_ = true;
  Nudge();
  thread_.join();
}

std::string TransportCommunicator::peer_name(int rank) const {
  return options_.peer_name ? options_.peer_name(rank) : "rank " + std::to_string(rank);
}

CommunicatorStats TransportCommunicator::stats() const {
  return {begun_, exchange_.transport().bytes_sent(), exchange_.transport().bytes_received()};
}

Status TransportCommunicator::status() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

Result<std::unique_ptr<Memory>> TransportCommunicator::Allocate(std::size_t bytes) {
  return exchange_.transport().Allocate(bytes);
}

// --- driving

void TransportCommunicator::RunNext() {
  if (at_once_.under_way) {
    outcomes_->Finish(outcomes_->finished() + 1, FinishAtOnce());
    return;
  }
  Task task;
  {
    const std::lock_guard lock(mutex_);
    task = std::move(queue_.front());
    queue_.pop_front();
  }
  const Status status = RunTask(task);
  task = Task();  // a stream's event may keep much alive
  outcomes_->Finish(outcomes_->finished() + 1, status);
}

Status TransportCommunicator::RunTask(Task& task) {
  const Deadline started = std::chrono::steady_clock::now();
  if (task.record.kind == OperationKind::kJoin) {  // not one operation, but others' until all join
    return task.body(exchange_, AlgorithmOf(task.record));
  }
  const bool well = exchange_.failure().ok();
  const bool quiet = IsQuiet(AlgorithmOf(task.record));
  Status status = exchange_.Begin(std::move(task.record), started, started + task.timeout, quiet);
  if (well) {
    flight_.Started(task.flight, exchange_.record(), started);
  }
  if (status.ok() && task.after) {
    status = exchange_.WaitForStream(*task.after);
  }
  if (status.ok()) {
    const Result<Algorithm> algorithm = Settle(exchange_, task.total);
    status = algorithm.ok() ? task.body(exchange_, algorithm.value()) : algorithm.status();
  }
  return EndTask(task.flight, status);
}

// The algorithm of the operation under way; where the ranks are to choose, they do now.
Result<Algorithm> TransportCommunicator::Settle(Exchange& exchange, std::int64_t total) {
  const Algorithm algorithm = AlgorithmOf(exchange.record());
  if (algorithm != Algorithm::kAuto || size_ == 1) {
    return algorithm;
  }
  return cost_.Choose(exchange, exchange.record().kind, total);
}

Status TransportCommunicator::EndTask(std::uint64_t flight, Status status) {
  status = exchange_.End(status);
  Heard();
  flight_.Ended(flight, status.ok(), heard_);
  if (!status.ok() && exchange_.failure().ok()) {  // given up; a failure has been dumped
    DumpAfter(status);
  }
  return status;
}

void TransportCommunicator::Hear() {
  const std::uint64_t ticks = __rdtsc();  // what comes after may be news, if this is interrupted
  exchange_.Idle(std::chrono::steady_clock::now());
  Heard();
  heard_ticks_ = ticks;
}

void TransportCommunicator::Heard() {
  heard_ = std::chrono::steady_clock::now();
  heard_ticks_ = __rdtsc();
}

bool TransportCommunicator::MissedNews() const { return __rdtsc() - heard_ticks_ > kNewsTicks; }

void TransportCommunicator::Drive(std::uint64_t number) {
  for (int spins = 0; spins < kRoleSpins && !outcomes_->done(number); ++spins) {
    if (TakeRole()) {
      exchange_.transport().set_spin(kCallerSpin);
      if (MissedNews()) {
        Hear();
      }
      while (!outcomes_->done(number)) {
        RunNext();
      }
      LeaveRole();
      if (!AllDone()) {
        Nudge();
      }
      return;
    }
    _mm_pause();
  }
  if (!outcomes_->done(number)) {
    // Somebody else drives: the thread, which runs all there is, or a caller, who nudges it.
    Leave(number);
    outcomes_->WaitUntil(number, Deadline::max());  // every operation ends by its own deadline
  }
}

void TransportCommunicator::Leave(std::uint64_t /*number*/) {
  if (resting_ != Resting::kNo) {
    Nudge();
  }
}

void TransportCommunicator::Nudge() {
  {
    const std::lock_guard lock(mutex_);
    nudged_ = true;
  }
  nudge_.notify_one();
  if (resting_ == Resting::kWatches) {
    exchange_.Wake();
  }
}

void TransportCommunicator::Run() {
  NameThisThread("comm-" + std::to_string(rank_));
  for (;;) {
    const bool had_role = TakeRole();
    if (had_role) {
      exchange_.transport().set_spin(kThreadSpin);
      if (MissedNews()) {
        Hear();
      }
      while (!AllDone()) {
        RunNext();
      }
      if (stopping_) {
        break;
      }
      Hear();
      LeaveRole();
      if (!AllDone()) {
        continue;
      }
    }
    Sleep(had_role);
  }
  exchange_.Close();
}

void TransportCommunicator::Sleep(bool had_role) {
  const Deadline now = std::chrono::steady_clock::now();
  const std::uint64_t begun = begun_;
  if (begun != seen_) {
    seen_ = begun;
    active_until_ = now + kActive;
    nap_ = kNap;
  } else if (!had_role) {  // somebody drives an operation that takes long
    nap_ = std::min(2 * nap_, kLongestNap);
  }
  const bool watch = had_role && now >= active_until_;
  resting_ = watch ? Resting::kWatches : nap_ == kNap ? Resting::kNaps : Resting::kSleeps;
  if (begun_ == begun && !nudged_) {
    if (watch) {
      exchange_.transport().Watch(now + kWatch);
    } else {
      std::unique_lock lock(mutex_);
      nudge_.wait_for(lock, nap_, [this] { return nudged_.load(); });
    }
  }
  resting_ = Resting::kNo;
  nudged_ = false;
}

void TransportCommunicator::FailWith(const Status& status) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.ok()) {
      return;
    }
    failure_ = status;
  }
  DumpAfter(status);
}

OperationProgress TransportCommunicator::progress() const {
  const std::optional<FlightEntry> last = flight_.Last();
  if (!last) {
    return {.generation = options_.generation};
  }
  return {options_.generation, last->record.sequence, last->record.Brief(), last->started,
          last->state == FlightState::kStarted};
}

Result<std::string> TransportCommunicator::DumpFlightRecord(std::string_view reason) const {
  if (options_.flight_folder.empty()) {
    return FailedPrecondition(
        "this communicator has no folder for flight records [set CommunicatorOptions, or "
        "StrategyOptions, flight_folder]");
  }
  const FlightHeader header = {
      options_.name, peer_name(rank_),    std::string(backend()), rank_,
      size_,         options_.generation, std::string(reason),    status()};
  FileSystem& files = FileSystem::Local();
  COHORT_RETURN_IF_ERROR(files.CreateDirectories(options_.flight_folder));
  const std::string path = options_.flight_folder + "/" + FlightFileName(header);
  const std::string draft =  // of this thread's own
      path + "." + std::to_string(std::hash<std::thread::id>()(std::this_thread::get_id()));
  COHORT_ASSIGN_OR_RETURN(const auto file, files.OpenForWrite(draft));
  COHORT_RETURN_IF_ERROR(file->Append(AsBytes(FlightDump(header, flight_))));
  COHORT_RETURN_IF_ERROR(file->Close());
  COHORT_RETURN_IF_ERROR(files.Rename(draft, path));
  return path;
}

void TransportCommunicator::DumpAfter(const Status& failure) const {
  if (options_.flight_folder.empty()) {
    return;
  }
  const Result<std::string> path = DumpFlightRecord(failure.message());
  if (path.ok()) {
    options_.log.Info("flight record: " + path.value() +
                      " [cohort trace merges those of all ranks]");
  } else {
    options_.log.Warning("no flight record: " + path.status().ToString());
  }
}

Communicator::Pending TransportCommunicator::Enqueue(OperationRecord record, std::int64_t total,
                                                     const CollectiveOptions& options, Body body) {
  Algorithm algorithm = AlgorithmOf(record);
  if (algorithm == Algorithm::kAuto) {
    COHORT_ASSIGN_OR_RETURN(algorithm, AlgorithmFor(record, total, options.algorithm));
  }
  record.algorithm = static_cast<std::uint8_t>(algorithm);
  record.name = options.name;
  Task task{std::move(record),
            options.timeout.count() > 0 ? options.timeout : options_.timeout,
            options.stream != nullptr ? options.stream->Record() : nullptr,
            total,
            std::move(body),
            0};
  const Deadline now = std::chrono::steady_clock::now();
  std::uint64_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.ok()) {
      return failure_;
    }
    task.flight = flight_.Queued(task.record, now);
    queue_.push_back(std::move(task));
    number = ++begun_;
  }
  // A caller with one operation and no stream is about to wait for it.
  const bool patient = options.stream == nullptr && outcomes_->finished() + 1 == number;
  const Resting resting = resting_;
  if (resting != Resting::kNo && !(patient && resting == Resting::kNaps)) {
    Nudge();
  }
  return std::make_unique<OperationWork>(static_cast<Driver&>(*this), outcomes_, number,
                                         options.name);
}

// --- in one shot

std::optional<Algorithm> TransportCommunicator::Quiet(OperationKind kind, std::size_t bytes,
                                                      const std::string& algorithm) {
  Transport& transport = exchange_.transport();
  const bool any = algorithm == "auto";
  if (!shares_) {
    return std::nullopt;
  }
  const bool reduces = kind == OperationKind::kAllReduce || kind == OperationKind::kBarrier;
  if (reduces && (any || algorithm == "one_shot") && HasOneShot(transport, bytes)) {
    return Algorithm::kOneShot;
  }
  if (kind != OperationKind::kBarrier && (any || algorithm == "shared")) {
    return Algorithm::kShared;
  }
  return std::nullopt;
}

std::unique_ptr<Work> TransportCommunicator::BeginAtOnce(OperationRecord& record, Buffer buffer,
                                                         const CollectiveOptions& options) {
  if (options.stream != nullptr || !AllDone() || !TakeRole()) {
    return nullptr;
  }
  if (!exchange_.Well() || MissedNews()) {
    LeaveRole();
    return nullptr;
  }
  record.name = options.name;
  at_once_.timeout = options.timeout.count() > 0 ? options.timeout : options_.timeout;
  const Status begun = exchange_.Begin(std::move(record), heard_, heard_ + at_once_.timeout,
                                       /*quiet=*/true);
  at_once_.under_way = true;
  at_once_.data = BytesOf(buffer);
  at_once_.reduction.reset();
  if (exchange_.record().kind == OperationKind::kAllReduce) {
    at_once_.reduction.emplace(buffer.dtype, exchange_.record().reduce_op);
  }
  if (begun.ok()) {
    (AlgorithmOf(exchange_.record()) == Algorithm::kOneShot ? ShowOneShot : ShowShared)(
        exchange_, at_once_.data);
  }
  const std::uint64_t number = ++begun_;
  LeaveRole();
  if (const Resting resting = resting_;
      resting == Resting::kSleeps || resting == Resting::kWatches) {
    Nudge();
  }
  return std::make_unique<OperationWork>(static_cast<Driver&>(*this), outcomes_, number,
                                         options.name);
}

Status TransportCommunicator::FinishAtOnce() {
  at_once_.under_way = false;
  const Reduction* const reduction = at_once_.reduction ? &*at_once_.reduction : nullptr;
  const bool one_shot = AlgorithmOf(exchange_.record()) == Algorithm::kOneShot;
  Status status = exchange_.Trouble();
  if (status.ok() && one_shot && AgreeAtOnce(exchange_)) {
    status = exchange_.End(FinishOneShot(exchange_, at_once_.data, reduction));
    Heard();
    flight_.Flown(exchange_.record(), status.ok(), heard_);
    return status;
  }
  const Deadline now = std::chrono::steady_clock::now();
  exchange_.SetTimes(now, now + at_once_.timeout);
  const std::uint64_t flight = flight_.Queued(exchange_.record(), now);
  flight_.Started(flight, exchange_.record(), now);
  if (status.ok()) {
    status = one_shot ? FinishOneShot(exchange_, at_once_.data, reduction)
                      : FinishSharedAllReduce(exchange_, at_once_.data, *reduction);
  }
  return EndTask(flight, status);
}

// --- operations

Communicator::Pending TransportCommunicator::AllReduce(Buffer input, Buffer output, ReduceOp op,
                                                       const CollectiveOptions& options) {
  CheckBuffer(input);
  CheckBuffer(output);
  Require(input.dtype == output.dtype && input.count == output.count,
          "AllReduce: input and output have one element type and count");
  OperationRecord record{.kind = OperationKind::kAllReduce,
                         .dtype = output.dtype,
                         .reduce_op = op,
                         .count = output.count};
  const auto total = static_cast<std::int64_t>(output.bytes());
  if (const auto quiet = Quiet(record.kind, output.bytes(), options.algorithm)) {
    record.algorithm = static_cast<std::uint8_t>(*quiet);
    if (input.data == output.data) {
      if (std::unique_ptr<Work> work = BeginAtOnce(record, output, options)) {
        return work;
      }
    }
  }
  return Enqueue(std::move(record), total, options,
                 [=, this](Exchange& exchange, Algorithm algorithm) {
                   return RunAllReduce(exchange, input, output, op, algorithm);
                 });
}

Communicator::Pending TransportCommunicator::Reduce(Buffer buffer, ReduceOp op, int root,
                                                    const CollectiveOptions& options) {
  CheckBuffer(buffer);
  Require(root >= 0 && root < size_, "Reduce: root is a rank");
  OperationRecord record{.kind = OperationKind::kReduce,
                         .dtype = buffer.dtype,
                         .reduce_op = op,
                         .root = root,
                         .count = buffer.count};
  const auto total = static_cast<std::int64_t>(buffer.bytes());
  return Enqueue(std::move(record), total, options,
                 [=, this](Exchange& exchange, Algorithm /*algorithm*/) -> Status {
                   return size_ == 1 ? Status()
                                     : TreeReduce(exchange, BytesOf(buffer), root,
                                                  Reduction(buffer.dtype, op));
                 });
}

Status TransportCommunicator::RunAllReduce(Exchange& exchange, Buffer input, Buffer output,
                                           ReduceOp op, Algorithm algorithm) {
  const Reduction reduction(output.dtype, op);
  const Bytes from = BytesOf(input);
  const MutableBytes to = BytesOf(output);
  if (size_ == 1) {
    Copy(to, from);
    return {};
  }
  switch (algorithm) {
    case Algorithm::kOneShot:
      Copy(to, from);
      ShowOneShot(exchange, to);
      return FinishOneShot(exchange, to, &reduction);
    case Algorithm::kShared:
      Copy(to, from);
      ShowShared(exchange, to);
      return FinishSharedAllReduce(exchange, to, reduction);
    case Algorithm::kNative:
    case Algorithm::kHierarchical:
      Copy(to, from);
      return native_->AllReduce(exchange, output, op);
    case Algorithm::kRecursiveDoubling:
      return RecursiveDoublingAllReduce(exchange, from, to, reduction);
    case Algorithm::kHalvingDoubling:
      return HalvingDoublingAllReduce(exchange, from, to, reduction);
    case Algorithm::kTree:
      return TreeAllReduce(exchange, from, to, reduction);
    case Algorithm::kRing:
      return RingAllReduce(exchange, from, to, reduction);
    default:
      return DirectAllReduce(exchange, from, to, reduction);
  }
}

Communicator::Pending TransportCommunicator::ReduceScatter(Buffer input, Buffer output, ReduceOp op,
                                                           const CollectiveOptions& options) {
  CheckBuffer(input);
  CheckBuffer(output);
  Require(input.dtype == output.dtype, "ReduceScatter: input and output have one element type");
  Require(input.count == output.count * size_,
          "ReduceScatter: input has size() times the elements of output");
  OperationRecord record{.kind = OperationKind::kReduceScatter,
                         .dtype = output.dtype,
                         .reduce_op = op,
                         .count = output.count};
  const auto total = static_cast<std::int64_t>(input.bytes());
  if (const auto quiet = Quiet(record.kind, input.bytes(), options.algorithm)) {
    record.algorithm = static_cast<std::uint8_t>(*quiet);
  }
  return Enqueue(
      std::move(record), total, options,
      [=, this](Exchange& exchange, Algorithm algorithm) -> Status {
        const Reduction reduction(output.dtype, op);
        if (size_ == 1) {
          Copy(BytesOf(output), BytesOf(input));
          return {};
        }
        if (algorithm == Algorithm::kShared) {
          ShowShared(exchange, BytesOf(input));
          return FinishSharedReduceScatter(exchange, BytesOf(input), BytesOf(output), reduction);
        }
        return (algorithm == Algorithm::kRing ? RingReduceScatter
                : algorithm == Algorithm::kRecursiveHalving
                    ? RecursiveHalvingReduceScatter
                    : DirectReduceScatter)(exchange, BytesOf(input), BytesOf(output), reduction);
      });
}

Communicator::Pending TransportCommunicator::AllGather(Buffer input, Buffer output,
                                                       const CollectiveOptions& options) {
  CheckBuffer(input);
  CheckBuffer(output);
  Require(output.count == input.count * size_,
          "AllGather: output has size() times the elements of input");
  return EnqueueGather(OperationKind::kAllGather, input, output,
                       std::vector<std::int64_t>(static_cast<std::size_t>(size_), input.count),
                       options);
}

Communicator::Pending TransportCommunicator::AllGatherV(Buffer input, Buffer output,
                                                        std::span<const std::int64_t> counts,
                                                        const CollectiveOptions& options) {
  CheckBuffer(input);
  CheckBuffer(output);
  Require(static_cast<int>(counts.size()) == size_, "AllGatherV: one count for each rank");
  std::vector<std::int64_t> copy(counts.begin(), counts.end());
  Require(std::all_of(copy.begin(), copy.end(), [](std::int64_t c) { return c >= 0; }),
          "AllGatherV: counts are not negative");
  Require(copy[static_cast<std::size_t>(rank_)] == input.count,
          "AllGatherV: counts[rank()] is the count of input");
  Require(Total(copy) == output.count, "AllGatherV: output has the sum of the counts");
  return EnqueueGather(OperationKind::kAllGatherV, input, output, std::move(copy), options);
}

Communicator::Pending TransportCommunicator::EnqueueGather(OperationKind kind, Buffer input,
                                                           Buffer output,
                                                           std::vector<std::int64_t> counts,
                                                           const CollectiveOptions& options) {
  Require(input.dtype == output.dtype, "AllGather: input and output have one element type");
  const bool uneven = kind == OperationKind::kAllGatherV;
  OperationRecord record{.kind = kind,
                         .dtype = output.dtype,
                         .count = uneven ? output.count : input.count,
                         .shape = uneven ? Digest(counts) : 0};
  const auto total = static_cast<std::int64_t>(output.bytes());
  if (const auto quiet = Quiet(kind, output.bytes(), options.algorithm); quiet) {
    record.algorithm = static_cast<std::uint8_t>(*quiet);
  }
  return Enqueue(
      std::move(record), total, options,
      [=, this](Exchange& exchange, Algorithm algorithm) -> Status {
        if (algorithm == Algorithm::kNative) {
          return native_->AllGather(exchange, input, output);
        }
        const std::size_t element = SizeOf(output.dtype);
        const std::vector<MutableBytes> blocks = Pieces(BytesOf(output), counts, element);
        Copy(blocks[static_cast<std::size_t>(rank_)], BytesOf(input));
        if (size_ == 1) {
          return {};
        }
        if (algorithm == Algorithm::kShared) {
          ShowShared(exchange, blocks[static_cast<std::size_t>(rank_)]);
          return FinishSharedAllGather(exchange, blocks, element);
        }
        return (algorithm == Algorithm::kRing    ? RingAllGather
                : algorithm == Algorithm::kBruck ? BruckAllGather
                                                 : DirectAllGather)(exchange, blocks, element);
      });
}

Communicator::Pending TransportCommunicator::Broadcast(Buffer buffer, int root,
                                                       const CollectiveOptions& options) {
  CheckBuffer(buffer);
  Require(root >= 0 && root < size_, "Broadcast: root is a rank");
  OperationRecord record{.kind = OperationKind::kBroadcast,
                         .dtype = buffer.dtype,
                         .root = root,
                         .count = buffer.count};
  if (const auto quiet = Quiet(record.kind, buffer.bytes(), options.algorithm)) {
    record.algorithm = static_cast<std::uint8_t>(*quiet);
  }
  return Enqueue(std::move(record), 0, options, [=, this](Exchange& exchange, Algorithm algorithm) {
    return RunBroadcast(exchange, buffer, root, algorithm);
  });
}

Status TransportCommunicator::RunBroadcast(Exchange& exchange, Buffer buffer, int root,
                                           Algorithm algorithm) {
  if (algorithm == Algorithm::kShared) {
    ShowShared(exchange, rank_ == root ? BytesOf(buffer) : MutableBytes());
    return FinishSharedBroadcast(exchange, BytesOf(buffer), root, SizeOf(buffer.dtype));
  }
  if (algorithm == Algorithm::kNative) {
    return native_->Broadcast(exchange, buffer, root);
  }
  return TreeBroadcast(exchange, BytesOf(buffer), root, SizeOf(buffer.dtype));
}

Communicator::Pending TransportCommunicator::AllToAll(Buffer input, Buffer output,
                                                      const CollectiveOptions& options) {
  Require(input.count == output.count, "AllToAll: input and output have equal counts");
  Require(input.count % size_ == 0, "AllToAll: counts divide by size()");
  const std::vector<std::int64_t> counts(static_cast<std::size_t>(size_), input.count / size_);
  return EnqueueAllToAll(OperationKind::kAllToAll, input, counts, output, counts, options);
}

Communicator::Pending TransportCommunicator::AllToAllV(Buffer input,
                                                       std::span<const std::int64_t> send_counts,
                                                       Buffer output,
                                                       std::span<const std::int64_t> receive_counts,
                                                       const CollectiveOptions& options) {
  return EnqueueAllToAll(OperationKind::kAllToAllV, input,
                         std::vector<std::int64_t>(send_counts.begin(), send_counts.end()), output,
                         std::vector<std::int64_t>(receive_counts.begin(), receive_counts.end()),
                         options);
}

Communicator::Pending TransportCommunicator::EnqueueAllToAll(
    OperationKind kind, Buffer input, std::vector<std::int64_t> send_counts, Buffer output,
    std::vector<std::int64_t> receive_counts, const CollectiveOptions& options) {
  CheckBuffer(input);
  CheckBuffer(output);
  Require(input.dtype == output.dtype, "AllToAll: input and output have one element type");
  const auto check = [this](const std::vector<std::int64_t>& counts, std::int64_t total) {
    Require(static_cast<int>(counts.size()) == size_, "AllToAllV: one count for each rank");
    Require(std::all_of(counts.begin(), counts.end(), [](std::int64_t c) { return c >= 0; }),
            "AllToAllV: counts are not negative");
    Require(Total(counts) == total, "AllToAllV: the counts add up to the buffer's");
  };
  check(send_counts, input.count);
  check(receive_counts, output.count);
  const auto self = static_cast<std::size_t>(rank_);
  Require(send_counts[self] == receive_counts[self],
          "AllToAllV: what a rank sends to itself is what it receives from itself");
  OperationRecord record{.kind = kind,
                         .dtype = input.dtype,
                         .count = kind == OperationKind::kAllToAll ? input.count : 0};
  return Enqueue(
      std::move(record), 0, options, [=](Exchange& exchange, Algorithm /*algorithm*/) -> Status {
        const std::size_t element = SizeOf(input.dtype);
        return DirectAllToAll(exchange, Pieces(Bytes(BytesOf(input)), send_counts, element),
                              Pieces(BytesOf(output), receive_counts, element), element);
      });
}

Communicator::Pending TransportCommunicator::Send(Buffer buffer, int to,
                                                  const CollectiveOptions& options) {
  CheckBuffer(buffer);
  Require(to >= 0 && to < size_ && to != rank_, "Send: to another rank");
  OperationRecord record{
      .kind = OperationKind::kSend, .dtype = buffer.dtype, .root = to, .count = buffer.count};
  return Enqueue(std::move(record), 0, options,
                 [=](Exchange& exchange, Algorithm /*algorithm*/) -> Status {
                   return SendTo(exchange, to, BytesOf(buffer), SizeOf(buffer.dtype));
                 });
}

Communicator::Pending TransportCommunicator::Receive(Buffer buffer, int from,
                                                     const CollectiveOptions& options) {
  CheckBuffer(buffer);
  Require(from >= 0 && from < size_ && from != rank_, "Receive: from another rank");
  OperationRecord record{
      .kind = OperationKind::kReceive, .dtype = buffer.dtype, .root = from, .count = buffer.count};
  return Enqueue(std::move(record), 0, options,
                 [=](Exchange& exchange, Algorithm /*algorithm*/) -> Status {
                   return ReceiveFrom(exchange, from, BytesOf(buffer), SizeOf(buffer.dtype));
                 });
}

Communicator::Pending TransportCommunicator::Barrier(const CollectiveOptions& options) {
  OperationRecord record{.kind = OperationKind::kBarrier};
  if (const auto quiet = Quiet(record.kind, 0, options.algorithm)) {
    record.algorithm = static_cast<std::uint8_t>(*quiet);
    if (std::unique_ptr<Work> work = BeginAtOnce(record, {}, options)) {
      return work;
    }
  }
  return Enqueue(std::move(record), 0, options, RunBarrier);
}

Status TransportCommunicator::RunBarrier(Exchange& exchange, Algorithm algorithm) {
  if (algorithm != Algorithm::kOneShot) {
    return DisseminationBarrier(exchange);
  }
  ShowOneShot(exchange, {});
  return FinishOneShot(exchange, {}, nullptr);
}

Result<std::unique_ptr<Communicator>> TransportCommunicator::Split(int color, int key) {
  std::unique_ptr<Communicator> group;
  COHORT_ASSIGN_OR_RETURN(
      std::unique_ptr<Work> work,
      Enqueue({.kind = OperationKind::kSplit}, 0, {},
              [this, color, key, &group](Exchange& exchange, Algorithm /*algorithm*/) {
                return RunSplit(exchange, color, key, group);
              }));
  COHORT_RETURN_IF_ERROR(work->Wait());
  return group;
}

// All ranks tell all others their color, key and offer; each group's members then connect.
Status TransportCommunicator::RunSplit(Exchange& exchange, int color, int key,
                                       std::unique_ptr<Communicator>& group) {
  struct Entry {
    std::int32_t color;
    std::int32_t key;
    std::uint32_t offer_bytes;
    char offer[Transport::kMaxOfferBytes];
  };
  COHORT_ASSIGN_OR_RETURN(const std::string offer, exchange.transport().Offer());
  Require(offer.size() <= Transport::kMaxOfferBytes, "an offer fits its place");
  std::vector<Entry> entries(static_cast<std::size_t>(size_));
  Entry& mine = entries[static_cast<std::size_t>(rank_)];
  mine = {color, key, static_cast<std::uint32_t>(offer.size()), {}};
  std::memcpy(mine.offer, offer.data(), offer.size());
  std::vector<MutableBytes> blocks;
  for (Entry& entry : entries) {
    blocks.push_back(std::as_writable_bytes(std::span(&entry, 1)));
  }
  if (size_ > 1) {
    COHORT_RETURN_IF_ERROR(DirectAllGather(exchange, blocks, 1));
  }

  std::vector<int> members;
  for (int r = 0; r < size_ && color >= 0; ++r) {
    if (entries[static_cast<std::size_t>(r)].color == color) {
      members.push_back(r);
    }
  }
  std::stable_sort(members.begin(), members.end(), [&](int a, int b) {
    return entries[static_cast<std::size_t>(a)].key < entries[static_cast<std::size_t>(b)].key;
  });
  std::vector<std::string> offers;
  for (const int member : members) {
    const Entry& entry = entries[static_cast<std::size_t>(member)];
    offers.emplace_back(entry.offer,
                        std::min<std::size_t>(entry.offer_bytes, Transport::kMaxOfferBytes));
  }
  const auto my_index =
      static_cast<int>(std::find(members.begin(), members.end(), rank_) - members.begin());
  const std::string id = std::to_string(exchange.record().sequence) + "." + std::to_string(color);
  COHORT_ASSIGN_OR_RETURN(
      std::unique_ptr<Transport> transport,
      exchange.transport().Join(id, members, my_index, offers, exchange.deadline()));
  if (members.empty()) {
    return {};
  }
  CommunicatorOptions options = options_;
  options.name += "/" + id;
  if (options_.peer_name) {
    options.peer_name = [members, name = options_.peer_name](int r) {
      return name(members[static_cast<std::size_t>(r)]);
    };
  }
  TransportCommunicatorParts parts;
  parts.transport = std::move(transport);
  parts.rank = my_index;
  parts.size = static_cast<int>(members.size());
  parts.shared_memory = shared_memory_;
  group = std::make_unique<TransportCommunicator>(std::move(parts), std::move(options));
  return {};
}

Result<int> TransportCommunicator::Join(const CollectiveOptions& options) {
  int last = rank_;
  const auto timeout = options.timeout.count() > 0 ? options.timeout : options_.timeout;
  COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Work> work,
                          Enqueue({.kind = OperationKind::kJoin}, 0, {.name = options.name},
                                  [&](Exchange& exchange, Algorithm /*algorithm*/) {
                                    return RunJoin(exchange, timeout, last);
                                  }));
  COHORT_RETURN_IF_ERROR(work->Wait());
  return last;
}

Status TransportCommunicator::RunJoin(Exchange& exchange, std::chrono::milliseconds timeout,
                                      int& last) {
  COHORT_RETURN_IF_ERROR(exchange.BeginJoin());
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const std::optional<OperationRecord> record,
                            exchange.NextShadow(DeadlineAfter(timeout)));
    if (!record) {
      last = exchange.EndJoin();
      return {};
    }
    const Deadline now = std::chrono::steady_clock::now();
    const std::uint64_t flight = flight_.Queued(*record, now);
    Status status = exchange.Begin(*record, now, now + timeout);
    flight_.Started(flight, exchange.record(), now);
    if (status.ok()) {
      status = RunShadow(exchange, *record);
    }
    status = exchange.End(status);
    flight_.Ended(flight, status.ok(), std::chrono::steady_clock::now());
    COHORT_RETURN_IF_ERROR(exchange.failure());
    if (!status.ok()) {  // given up by all, and the callers have been told
      options_.log.Warning(exchange.Name(rank_) + ", which has joined: " + status.message());
    }
  }
}

Status TransportCommunicator::RunShadow(Exchange& exchange, const OperationRecord& record) {
  const std::int64_t total = record.count * static_cast<std::int64_t>(SizeOf(record.dtype));
  COHORT_ASSIGN_OR_RETURN(const Algorithm algorithm, Settle(exchange, total));
  const bool adds = record.reduce_op == ReduceOp::kSum || record.reduce_op == ReduceOp::kMean;
  std::vector<std::byte> zeros;
  const auto buffer = [&]() -> Buffer {
    zeros.resize(static_cast<std::size_t>(record.count) * SizeOf(record.dtype));
    return {zeros.data(), record.count, record.dtype};
  };
  if (record.kind == OperationKind::kBarrier) {
    return RunBarrier(exchange, algorithm);
  }
  if (record.kind == OperationKind::kAllReduce && adds) {
    const Buffer all = buffer();
    return RunAllReduce(exchange, all, all, record.reduce_op, algorithm);
  }
  if (record.kind == OperationKind::kBroadcast && record.root != rank_) {
    return RunBroadcast(exchange, buffer(), record.root, algorithm);
  }
  return exchange.Mismatch(InvalidArgument(
      record.Numbered() + ": " + exchange.Name(rank_) +
      " has joined [only AllReduce of sum and mean, Broadcast from a rank that has not joined, and "
      "Barrier are possible until all have]"));
}

void TransportCommunicator::Adopt(std::unique_ptr<NativeCollectives> native) {
  native_ = std::move(native);
  backend_ = AlgorithmName(native_->algorithm());
}

TransportCommunicator::Menu TransportCommunicator::MenuOf(OperationKind kind) const {
  const bool reduces = kind == OperationKind::kAllReduce || kind == OperationKind::kReduceScatter;
  Menu menu;
  for (const Algorithm algorithm : AlgorithmsOf(kind)) {
    const bool refused = options_.deterministic && reduces && !KeepsOrder(algorithm);
    (refused ? menu.refused : menu.offered).push_back(algorithm);
  }
  const bool shared_form = reduces || kind == OperationKind::kAllGather ||
                           kind == OperationKind::kAllGatherV || kind == OperationKind::kBroadcast;
  if (shares_ && shared_form) {
    menu.offered.push_back(Algorithm::kShared);
  }
  if (native_ && native_->Supports(kind, DType::kFloat16)) {  // every type
    const bool refused = options_.deterministic && reduces && !native_->keeps_order();
    (refused ? menu.refused : menu.offered).push_back(native_->algorithm());
  }
  return menu;
}

bool TransportCommunicator::Takes(const NativeCollectives& native, OperationKind kind, DType dtype,
                                  std::int64_t total) const {
  return total >= native.worth_bytes() && (native.keeps_order() || !options_.deterministic) &&
         native.Supports(kind, dtype);
}

Result<Algorithm> TransportCommunicator::AlgorithmFor(const OperationRecord& record,
                                                      std::int64_t total,
                                                      std::string_view name) const {
  if (name != "auto") {
    const Menu menu = MenuOf(record.kind);
    return AlgorithmNamed(record.kind, name, menu.offered, menu.refused);
  }
  if (native_ && Takes(*native_, record.kind, record.dtype, total)) {
    return native_->algorithm();
  }
  const std::span<const Algorithm> algorithms = AlgorithmsOf(record.kind);
  return algorithms.size() == 1 ? algorithms.front() : Algorithm::kAuto;
}

std::vector<std::string_view> TransportCommunicator::algorithms(OperationKind kind) const {
  std::vector<std::string_view> names;
  for (const Algorithm algorithm : MenuOf(kind).offered) {
    names.push_back(AlgorithmName(algorithm));
  }
  return names;
}

Result<CostEstimate> TransportCommunicator::Explain(OperationKind kind, std::int64_t bytes) {
  Result<CostEstimate> estimate = CostEstimate();
  const auto quiet = Quiet(kind, static_cast<std::size_t>(bytes), "auto");
  COHORT_ASSIGN_OR_RETURN(
      std::unique_ptr<Work> work,
      Enqueue({.kind = OperationKind::kBarrier, .count = bytes}, 0, {.name = "explain"},
              [this, kind, bytes, quiet, &estimate](Exchange& exchange, Algorithm /*algorithm*/) {
                estimate = size_ > 1 ? cost_.Estimate(exchange, kind, bytes) : CostEstimate();
                if (estimate.ok() && native_ && Takes(*native_, kind, DType::kFloat32, bytes)) {
                  estimate.value().chosen = AlgorithmName(native_->algorithm());
                }
                if (estimate.ok() && quiet) {
                  estimate.value().chosen = AlgorithmName(*quiet);
                }
                return estimate.ok() && size_ > 1 ? DisseminationBarrier(exchange)
                                                  : estimate.status();
              }));
  COHORT_RETURN_IF_ERROR(work->Wait());
  return estimate;
}

void TransportCommunicator::Abort(const Status& reason) {
  Require(!reason.ok(), "Abort: the reason is an error");
  FailWith(Status(reason.code(),
                  exchange_.Name(rank_) + " aborted the communicator: " + reason.message()));
  exchange_.RequestAbort(reason);
  Leave(0);
}

}  // namespace cohort
