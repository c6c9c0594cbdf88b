#include "transport_communicator.h"

#include <cohort/core/thread_pool.h>

#include <immintrin.h>

#include <algorithm>
#include <exception>
#include <new>
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
constexpr Duration kLeastPatience = microseconds(500);
constexpr Duration kLongestNap = milliseconds(16);
constexpr auto kActive = milliseconds(20);  // naps go on for so long after the last call
constexpr auto kWatch = milliseconds(1000);
// A process that was away for longer, stopped for example, hears what happened before it goes on.
constexpr std::uint64_t kNewsTicks = 20'000'000;  // 5 to 10 ms

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
      counts_(options_.metrics),
      patience_(kLeastPatience),
      nap_(kLeastPatience),
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
  return {begun_, exchange_.transport().bytes_sent(), exchange_.transport().bytes_received(),
          exchange_.told()};
}

Status TransportCommunicator::status() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

Result<std::unique_ptr<Memory>> TransportCommunicator::Allocate(std::size_t bytes) {
  return native_ ? native_->Allocate(bytes) : exchange_.transport().Allocate(bytes);
}

// --- driving

template <typename F>
Status TransportCommunicator::Contain(F f) {
  try {
    return f();
  } catch (const std::exception& error) {
    const std::string where = exchange_.record().Numbered() + " on " + exchange_.Name(rank_) + ": ";
    const auto* const reported = dynamic_cast<const StatusError*>(&error);
    const bool memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
    const Status status = reported != nullptr ? Status(reported->status().code(),
                                                       where + reported->status().message())
                          : memory            ? ResourceExhausted(where + "no memory is left")
                                              : Internal(where + error.what());
    try {
      exchange_.Fail(status);
    } catch (const std::exception& more) {  // the failure stands
      options_.log.Warning(where + "its peers may not have been told: " + more.what());
    }
    FailWith(exchange_.failure());
    return exchange_.failure();
  }
}

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
  const Status status = Contain([&] { return RunTask(task); });
  task = Task();  // a stream's event may keep much alive
  outcomes_->Finish(outcomes_->finished() + 1, status);
}

Status TransportCommunicator::RunTask(Task& task) {
  const Deadline started = std::chrono::steady_clock::now();
  if (task.record.kind == OperationKind::kJoin) {  // not one operation, but others' until all join
    return task.body(exchange_, AlgorithmOf(task.record));
  }
  const bool well = exchange_.failure().ok();
  Status status = exchange_.Begin(std::move(task.record), started, started + task.timeout);
  if (well) {
    flight_.Started(task.flight, exchange_.record(), started);
  }
  if (status.ok()) {
    status = exchange_.AwaitRejects();
  }
  if (status.ok() && task.after) {
    status = exchange_.WaitForStream(*task.after);
  }
  Result<Algorithm> algorithm = Algorithm::kAuto;
  if (status.ok()) {
    algorithm = Settle(exchange_, task.total);
    status = algorithm.ok() ? task.body(exchange_, algorithm.value()) : algorithm.status();
  }
  return EndTask(task.flight, algorithm.ok() ? algorithm.value() : Algorithm::kAuto, task.total,
                 status);
}

// The algorithm of the operation under way; where the ranks are to choose, they do now.
Result<Algorithm> TransportCommunicator::Settle(Exchange& exchange, std::int64_t total) {
  const Algorithm algorithm = AlgorithmOf(exchange.record());
  if (algorithm != Algorithm::kAuto || size_ == 1) {
    return algorithm;
  }
  return cost_.Choose(exchange, exchange.record().kind, total);
}

Status TransportCommunicator::EndTask(std::uint64_t flight, Algorithm algorithm, std::int64_t bytes,
                                      Status status) {
  status = exchange_.End(status);
  Heard();
  return Enter(flight, algorithm, bytes, status);
}

Status TransportCommunicator::Enter(std::uint64_t flight, Algorithm algorithm, std::int64_t bytes,
                                    const Status& status) {
  if (status.ok()) {
    counts_.Done(exchange_.record().kind, algorithm, static_cast<std::uint64_t>(bytes));
  }
  flight_.Ended(flight, status.ok(), heard_);
  if (!status.ok() && exchange_.failure().ok()) {  // given up; a failure has been dumped
    DumpAfter(status);
  }
  return status;
}

void TransportCommunicator::Hear() {
  const std::uint64_t ticks =
      TickClock::Ticks();  // what comes after may be news, if this is interrupted
  (void)Contain([this]() -> Status {
    exchange_.Idle(std::chrono::steady_clock::now());
    return {};
  });
  Heard();
  heard_ticks_ = ticks;
  if (at_once_.under_way) {  // it was called before this rank was away: that is not its time
    exchange_.SetTimes(heard_, heard_ + at_once_.timeout);
  }
}

void TransportCommunicator::Heard() {
  heard_ticks_ = TickClock::Ticks();
  heard_ = clock_.At(heard_ticks_);
}

bool TransportCommunicator::MissedNews(std::uint64_t ticks) const {
  return ticks - heard_ticks_ > kNewsTicks;
}

void TransportCommunicator::Drive(std::uint64_t number) {
  for (int spins = 0; spins < kRoleSpins && !outcomes_->done(number); ++spins) {
    if (TakeRole()) {
      exchange_.transport().set_spin(kCallerSpin);
      if (at_once_.under_way && outcomes_->finished() + 1 == number) {
        outcomes_->Settle(number, FinishAtOnce());
        LeaveRole();  // a full fence
        outcomes_->WakeSleepers();
      } else {
        if (MissedNews(TickClock::Ticks())) {
          Hear();
        }
        while (!outcomes_->done(number)) {
          RunNext();
        }
        LeaveRole();
      }
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
      if (MissedNews(TickClock::Ticks())) {
        Hear();
      }
      while (!AllDone()) {
        ran_ = true;
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
  (void)Contain([this]() -> Status {
    exchange_.Close();
    return {};
  });
}

void TransportCommunicator::Sleep(bool had_role) {
  const Deadline now = std::chrono::steady_clock::now();
  const std::uint64_t begun = begun_;
  if (begun != seen_) {
    seen_ = begun;
    active_until_ = now + kActive;
    patience_ = ran_ ? kLeastPatience : std::min(2 * patience_, kLongestNap);
    nap_ = patience_;
    ran_ = false;
  } else if (!had_role) {  // somebody drives an operation that takes long
    nap_ = std::min(2 * nap_, kLongestNap);
  }
  const bool watch = had_role && now >= active_until_;
  resting_ = watch ? Resting::kWatches : nap_ == patience_ ? Resting::kNaps : Resting::kSleeps;
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
  return WriteFlightRecord(options_.flight_folder,
                           {options_.name, peer_name(rank_), std::string(backend()), rank_, size_,
                            options_.generation, std::string(reason), status()},
                           flight_);
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
  if (options.stream != nullptr || !AllDone()) {
    return nullptr;
  }
  record.name = options.name;  // may throw, as nothing does from here until the role is given back
  if (!TakeRole()) {
    return nullptr;
  }
  const std::uint64_t ticks = TickClock::Ticks();
  if (!exchange_.Well() || exchange_.gave_up() || MissedNews(ticks)) {
    LeaveRole();
    return nullptr;
  }
  const Deadline called = clock_.At(ticks);
  at_once_.timeout = options.timeout.count() > 0 ? options.timeout : options_.timeout;
  const Status begun = Contain(
      [&] { return exchange_.Begin(std::move(record), called, called + at_once_.timeout); });
  at_once_.under_way = true;
  at_once_.data = BytesOf(buffer);
  if (begun.ok()) {
    if (AlgorithmOf(exchange_.record()) == Algorithm::kOneShot) {
      ShowOneShot(exchange_, at_once_.data);
    } else {
      ShowShared(exchange_, at_once_.data);
    }
  }
  // What comes after the values show costs no time while peers are awaited.
  at_once_.reduction.reset();
  if (exchange_.record().kind == OperationKind::kAllReduce) {
    at_once_.reduction.emplace(buffer.dtype, exchange_.record().reduce_op);
  }
  at_once_.flight = flight_.Begun(exchange_.record(), called);
  const std::uint64_t number = begun_.load(std::memory_order_relaxed) + 1;
  begun_.store(number, std::memory_order_relaxed);  // one thread calls at a time
  LeaveRole();                                      // a full fence
  if (const Resting resting = resting_;
      resting == Resting::kSleeps || resting == Resting::kWatches) {
    Nudge();
  }
  return std::make_unique<OperationWork>(static_cast<Driver&>(*this), outcomes_, number,
                                         options.name);
}

Status TransportCommunicator::FinishAtOnce() {
  Status status = Contain([this] { return RunAtOnce(); });
  at_once_.under_way = false;
  if (!status.ok()) {  // also where RunAtOnce was left by an exception
    flight_.Ended(at_once_.flight, false, heard_);
  }
  return status;
}

Status TransportCommunicator::RunAtOnce() {
  const Reduction* const reduction = at_once_.reduction ? &*at_once_.reduction : nullptr;
  const bool one_shot = AlgorithmOf(exchange_.record()) == Algorithm::kOneShot;
  const std::uint64_t ticks = TickClock::Ticks();
  Status status = exchange_.Trouble();
  if (status.ok() && one_shot && AgreeAtOnce(exchange_)) {
    status = exchange_.End(CombineShown(exchange_, at_once_.data, reduction));
    heard_ = clock_.At(ticks);  // all were there, or nearly so
    heard_ticks_ = ticks;
    return Enter(at_once_.flight, AlgorithmOf(exchange_.record()),
                 static_cast<std::int64_t>(at_once_.data.size()), status);
  }
  if (status.ok()) {
    if (MissedNews(ticks)) {
      Hear();
    }
    status = one_shot ? FinishOneShot(exchange_, at_once_.data, reduction)
                      : FinishSharedAllReduce(exchange_, at_once_.data, *reduction);
  }
  return EndTask(at_once_.flight, AlgorithmOf(exchange_.record()),
                 static_cast<std::int64_t>(at_once_.data.size()), status);
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
    if (name == AlgorithmName(Algorithm::kOneShot) && shares_) {  // Quiet would have taken it
      return InvalidArgument(std::string(OperationKindName(record.kind)) + " of " +
                             std::to_string(total) +
                             " bytes: one_shot is for all-reduces of at most 64 KiB of "
                             "all ranks together [choose auto or shared]");
    }
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

bool TransportCommunicator::keeps_order(std::string_view algorithm) const {
  const bool native_does = native_ == nullptr || native_->keeps_order();
  if (algorithm == AlgorithmName(Algorithm::kAuto)) {
    return native_does || options_.deterministic;
  }
  const std::vector<Algorithm> offered = MenuOf(OperationKind::kAllReduce).offered;
  const auto found = std::ranges::find(offered, algorithm, AlgorithmName);
  return found != offered.end() &&
         (native_ && *found == native_->algorithm() ? native_does : KeepsOrder(*found));
}

Result<CostEstimate> TransportCommunicator::Explain(OperationKind kind, std::int64_t bytes) {
  Result<CostEstimate> estimate = CostEstimate();
  const auto quiet = Quiet(kind, static_cast<std::size_t>(bytes), "auto");
  COHORT_ASSIGN_OR_RETURN(
      std::unique_ptr<Work> work,
      Enqueue({.kind = OperationKind::kBarrier, .count = bytes, .shape = kExplains}, 0,
              {.name = "explain"},
              [this, kind, bytes, quiet, &estimate](Exchange& exchange, Algorithm /*algorithm*/) {
                estimate = size_ > 1 ? cost_.Estimate(exchange, kind, bytes) : CostEstimate();
                if (estimate.ok() && size_ > 1) {
                  AddUnreckoned(estimate.value(), kind, bytes);
                }
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

void TransportCommunicator::AddUnreckoned(CostEstimate& estimate, OperationKind kind,
                                          std::int64_t bytes) {
  std::vector<Algorithm> all = MenuOf(kind).offered;
  if (shares_ && (kind == OperationKind::kAllReduce || kind == OperationKind::kBarrier) &&
      HasOneShot(exchange_.transport(), static_cast<std::size_t>(bytes))) {
    all.push_back(Algorithm::kOneShot);
  }
  if (native_ && Takes(*native_, kind, DType::kFloat32, bytes)) {  // also if not by name
    all.push_back(native_->algorithm());
  }
  for (const Algorithm algorithm : all) {
    const std::string_view name = AlgorithmName(algorithm);
    if (std::ranges::find(estimate.algorithms, name, &AlgorithmCost::algorithm) ==
        estimate.algorithms.end()) {
      const bool native = native_ && algorithm == native_->algorithm();
      estimate.algorithms.push_back(
          {name, std::nullopt, native ? native_->keeps_order() : KeepsOrder(algorithm)});
    }
  }
}

void TransportCommunicator::Abort(const Status& reason) {
  Require(!reason.ok(), "Abort: the reason is an error");
  FailWith(Status(reason.code(),
                  exchange_.Name(rank_) + " aborted the communicator: " + reason.message()));
  exchange_.RequestAbort(reason);
  Leave(0);
}

}  // namespace cohort
