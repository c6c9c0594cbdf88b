#include "synchronous/reducer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <string>
#include <utility>

#include <cohort/device/range.h>

#include "synchronous/replica_sink.h"

namespace cohort {

// ---- Arenas and plans ------------------------------------------------------------------------

Result<std::unique_ptr<Reducer>> Reducer::Make(const ParameterSet& parameters,
                                               const Options& options) {
  Require(std::has_single_bit(static_cast<unsigned>(options.shards)),
          "a power of two of shards to a replica");
  std::unique_ptr<Reducer> reducer(new Reducer(parameters, options));
  const int levels = std::bit_width(static_cast<unsigned>(options.shards)) - 1;
  for (int r = 0; r < options.replicas; ++r) {
    reducer->stacks_.emplace_back();
    COHORT_ASSIGN_OR_RETURN(reducer->stack(r).current, reducer->MakeArena(r));
    for (int level = 0; level < levels; ++level) {
      COHORT_RETURN_IF_ERROR(reducer->AddLevel(r));
    }
    reducer->sinks_.push_back(reducer->MakeSink(r));
  }
  if (!options.copies.empty()) {
    try {
      reducer->devices_ =
          std::make_unique<DeviceSums>(options.copies, reducer->plan_.elements, options.way,
                                       options.communicator != nullptr && options.nccl == nullptr);
      reducer->MakeCompression();
    } catch (const StatusError& error) {
      return error.status();
    }
  }
  reducer->Rebuild(BucketOrder::Declared(parameters), options.limits);
  return reducer;
}

Reducer::Reducer(const ParameterSet& parameters, const Options& options)
    : parameters_(parameters),
      options_(options),
      plan_(BucketPlan::Make(parameters, BucketOrder::Declared(parameters), options.limits)) {}

Reducer::~Reducer() = default;

// Where a hook would be asked, and gradients do not come to the host.
void Reducer::MakeCompression() {
  if (options_.nccl == nullptr || options_.communicator == nullptr || options_.hook == nullptr) {
    return;
  }
  const std::optional<CompressionOptions> compression = options_.hook->on_devices();
  Require(compression.has_value(), "a hook that devices can stand in for, with NCCL");
  std::vector<DeviceCopy*> copies;
  for (const int first : devices_->firsts()) {
    copies.push_back(&devices_->copy(first));
  }
  compression_ = std::make_unique<DeviceCompression>(std::move(copies), parameters_, plan_.elements,
                                                     *compression);
}

Result<Arena> Reducer::MakeArena(int replica) {
  if (options_.copies.empty()) {
    return Arena::Make(options_.communicator, plan_.elements);
  }
  const DeviceCopy& copy = *options_.copies[static_cast<std::size_t>(replica)];
  if (!copy.apart()) {
    // From which the sums travel, if it is replica 0's.
    return Arena::Make(replica == 0 ? options_.communicator : nullptr, plan_.elements);
  }
  try {
    return Arena::MakeOn(*copy.device(), plan_.elements);
  } catch (const StatusError& error) {
    return error.status();
  }
}

Status Reducer::AddLevel(int replica) {
  COHORT_ASSIGN_OR_RETURN(Arena arena, MakeArena(replica));
  arena.touched().assign(static_cast<std::size_t>(parameters_.size()),
                         {.all = true, .indices = {}});
  stack(replica).levels.push_back(std::move(arena));
  return {};
}

std::unique_ptr<ReplicaSink> Reducer::MakeSink(int replica) {
  const auto r = static_cast<std::size_t>(replica);
  const bool on_device = !options_.copies.empty();
  return std::make_unique<ReplicaSink>(
      ReplicaSink::Parts{.parameters = parameters_,
                         .plan = plan_,
                         .replica = replica,
                         .kernels = on_device ? options_.kernels[r] : nullptr,
                         .apart = on_device && options_.copies[r]->apart(),
                         .rows = options_.rows,
                         .seed_with_weight = options_.seed_with_weight,
                         .early_bytes = launches() ? options_.limits.first_bytes : 0,
                         .complete = [this, replica](int bucket, Stream& stream) {
                           Complete(replica, bucket, stream);
                         }});
}

void Reducer::Rebuild(const BucketOrder& order, const BucketLimits& limits) {
  plan_ = BucketPlan::Make(parameters_, order, limits);
  flights_.clear();
  flights_.resize(plan_.buckets.size());
  // Gradients now lie elsewhere: what is there is of no use, and between them lie zeros.
  const std::vector<TouchedRows> anything(static_cast<std::size_t>(parameters_.size()),
                                          {.all = true, .indices = {}});
  for (Stack& mine : stacks_) {
    mine.current.touched() = anything;
    for (Arena& level : mine.levels) {
      level.touched() = anything;
      ZeroOnHost(level);
    }
    ZeroOnHost(mine.current);
  }
  if (compression_ != nullptr) {
    compression_->Rebuild();
  }
}

// A device's are zeroed in each turn.
void Reducer::ZeroOnHost(const Arena& arena) const {
  if (options_.copies.empty()) {
    std::ranges::fill(arena.values(), 0.0F);
  }
}

std::span<const float> Reducer::gradients() const { return stack(0).current.values(); }

// ---- A pass ----------------------------------------------------------------------------------

void Reducer::StartPass(std::int64_t step, bool sent, double loss_scale) {
  step_ = step;
  sent_ = sent;
  use_ = Use{};
  for (const std::unique_ptr<ReplicaSink>& sink : sinks_) {
    sink->StartPass(loss_scale);
  }
  const std::lock_guard lock(mutex_);
  for (Flight& flight : flights_) {
    flight = Flight{};
    flight.replicas_left = options_.replicas;
    flight.complete.resize(static_cast<std::size_t>(options_.replicas));
  }
  next_launch_ = 0;
  launching_ = false;
  pass_weight_ = 0;
}

void Reducer::Begin(int replica, int shard, double weight, Stream& stream) {
  Stack& mine = stack(replica);
  ReplicaSink::TurnArenas arenas{.current = &mine.current, .closes = {}};
  if (mine.accumulated) {
    arenas.closes.push_back(&mine.levels.front());
  } else {
    for (int level = 0; level < std::countr_one(static_cast<unsigned>(shard)); ++level) {
      arenas.closes.push_back(&mine.levels[static_cast<std::size_t>(level)]);
    }
  }
  sinks_[static_cast<std::size_t>(replica)]->Begin(weight, stream, std::move(arenas),
                                                   sent_ && shard == options_.shards - 1);
}

GradientSink& Reducer::sink(int replica) { return *sinks_[static_cast<std::size_t>(replica)]; }

double Reducer::weight(int replica) const {
  return sinks_[static_cast<std::size_t>(replica)]->weight();
}

void Reducer::End(int replica, bool ran) {
  const std::vector<int> missing = sinks_[static_cast<std::size_t>(replica)]->End(ran);
  if (!ran || missing.empty()) {
    return;
  }
  const std::lock_guard lock(mutex_);
  if (!std::exchange(warned_, true)) {
    std::string text = "gradients of " + std::to_string(missing.size()) +
                       " trainable parameter(s) were not Ready when the step function returned and "
                       "count as they stand, zero if nothing was written:";
    for (const int p : missing) {
      text += " '" + parameters_[p].name + "'";
    }
    options_.log.Warning(text + " [said once]");
  }
}

void Reducer::CloseTurn(int replica, int shard) {
  Stack& mine = stack(replica);
  mine.weight += weight(replica);
  if (shard < options_.shards - 1) {
    // The levels that this turn closed are free, and the one above them is.
    const auto level = static_cast<std::size_t>(std::countr_one(static_cast<unsigned>(shard)));
    std::swap(mine.current, mine.levels[level]);
  }
}

Status Reducer::FinishPass() {
  use_.ready = sinks_.front()->ready();
  use_.as_rows.assign(static_cast<std::size_t>(parameters_.size()), 0);
  use_.dense = use_.as_rows;
  for (const std::unique_ptr<ReplicaSink>& sink : sinks_) {
    for (std::size_t p = 0; p < use_.dense.size(); ++p) {
      use_.as_rows[p] |= sink->as_rows()[p];
      use_.dense[p] |= sink->dense()[p];
    }
  }
  if (devices_ != nullptr) {
    use_.dense.assign(use_.dense.size(), 1);
  }
  for (int r = 0; r < options_.replicas; ++r) {
    Stack& mine = stack(r);
    if (sent_) {
      mine.accumulated = false;
      mine.weight = 0;
      continue;
    }
    if (mine.levels.empty()) {
      COHORT_RETURN_IF_ERROR(AddLevel(r));
    }
    std::swap(mine.current, mine.levels.front());
    mine.accumulated = true;
  }
  return {};
}

// ---- After a pass ----------------------------------------------------------------------------

bool Reducer::has_landed(int bucket) const {
  const Flight& flight = flights_[static_cast<std::size_t>(bucket)];
  return flight.work == nullptr || flight.work->done();
}

std::chrono::steady_clock::time_point Reducer::launched_at(int bucket) const {
  return flights_[static_cast<std::size_t>(bucket)].launched_at;
}

bool Reducer::launched_alone(int bucket) const {
  return flights_[static_cast<std::size_t>(bucket)].alone;
}

Status Reducer::Landed(int bucket) {
  const Range range(Phase::kWait, bucket);
  Flight& flight = flights_[static_cast<std::size_t>(bucket)];
  COHORT_RETURN_IF_ERROR(flight.launched);
  if (launches_late(bucket) && flight.work == nullptr) {
    COHORT_RETURN_IF_ERROR(LaunchLate(flight, bucket));
  }
  Require(flight.work != nullptr, "Landed after every replica's End");
  if (flight.header != nullptr) {
    COHORT_RETURN_IF_ERROR(flight.header->Wait());
  }
  const Status status = flight.work->Wait();
  if (status.ok() && devices_ != nullptr && options_.nccl == nullptr) {
    const auto [begin, end] = plan_.GradientsOf(bucket);
    devices_->TakeOff(Arenas(), devices_->Landing(stack(0).current), begin, end);
  }
  if (status.ok() && compression_ != nullptr) {
    Expand(bucket);
  }
  return status;
}

double Reducer::total_weight() const {
  if (devices_ != nullptr && launches()) {
    return UnpackWeight(devices_->Landing(stack(0).current).header());
  }
  std::vector<std::array<float, 2>> headers;
  for (const Stack& mine : stacks_) {
    headers.push_back({mine.current.header()[0], mine.current.header()[1]});
  }
  if (options_.communicator == nullptr) {
    for (std::size_t step = 1; step < headers.size(); step *= 2) {
      for (std::size_t r = 0; r + step < headers.size(); r += 2 * step) {
        AddTo(headers[r], headers[r + step]);
      }
    }
  }
  return UnpackWeight(headers.front());
}

void Reducer::Sum(const BucketPlan::Chunk& chunk) {
  if (options_.communicator == nullptr) {
    SumSpan(chunk.gradient, chunk.gradient + chunk.elements);
  }
}

std::span<const float> Reducer::gradients(const DeviceCopy& copy) const {
  return stack(devices_->FirstOn(copy)).current.values();
}

void Reducer::SumOnDevices() {
  devices_->Sum(Arenas(), BucketPlan::kHeaderElements, plan_.elements);
  devices_->Spread(Arenas(), BucketPlan::kHeaderElements, plan_.elements);
}

void Reducer::GiveUp() {
  if (options_.nccl != nullptr && options_.communicator != nullptr) {
    options_.nccl->Abort(Aborted("the step was given up"));  // the others may not call what is left
  }
  bool clean = true;
  for (Flight& flight : flights_) {
    for (std::unique_ptr<Work>* work : {&flight.header, &flight.work}) {
      if (*work != nullptr) {
        clean &= (*work)->Wait().ok();
        work->reset();
      }
    }
  }
  for (DeviceCopy* copy : options_.copies) {
    clean &= copy->Drain(options_.timeout).ok();
  }
  if (!clean && options_.nccl != nullptr && options_.communicator == nullptr) {
    options_.nccl->Renew();
  }
  for (Stack& mine : stacks_) {
    mine.accumulated = false;
    mine.weight = 0;
  }
}

}  // namespace cohort
