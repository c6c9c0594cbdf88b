#include "synchronous/reducer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <string>
#include <utility>

#include <cohort/device/range.h>

#include "synchronous/row_exchange.h"

namespace cohort {
namespace {

constexpr std::int64_t kSumElements = std::int64_t{8} * 1024;  // stays in the cache

void AddTo(std::span<float> to, std::span<const float> from) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    to[i] += from[i];
  }
}

void Sort(std::vector<std::int64_t>& indices) {
  std::ranges::sort(indices);
  indices.erase(std::ranges::unique(indices).begin(), indices.end());
}

}  // namespace

// One bucket's way in the current pass.
struct Reducer::Flight {
  int replicas_left = 0;
  std::vector<std::shared_ptr<Event>> complete;  // by replica; owners: this and who waits for it
  std::unique_ptr<Work> header;                  // of bucket 0, where a hook has the rest
  std::unique_ptr<GradientBucket> bucket;        // what the hook was given
  std::unique_ptr<Work> work;
  Status launched;  // the launch's own error
  std::chrono::steady_clock::time_point launched_at;
};

// A replica's side: touched by that replica's thread only.
class Reducer::Sink final : public GradientSink {
 public:
  Sink(Reducer& reducer, int replica) : reducer_(reducer), replica_(replica) {}

  void StartPass() {
    ready_.clear();
    as_rows_.assign(static_cast<std::size_t>(reducer_.parameters_.size()), 0);
    dense_ = as_rows_;
  }

  // `closes`: levels whose gradients are added to this turn's. `last`: what is complete is
  // launched.
  void Begin(double weight, Stream& stream, std::vector<Arena*> closes, bool last) {
    weight_ = weight;
    stream_ = &stream;
    weight_used_ = false;
    closes_ = std::move(closes);
    last_ = last;
    if (reducer_.devices_ != nullptr) {
      kernels_ = reducer_.options_.kernels[static_cast<std::size_t>(replica_)];
      kernels_->Fill(stream, Current().values().subspan(BucketPlan::kHeaderElements), 0.0F);
    }
    ready_.clear();
    states_.assign(static_cast<std::size_t>(reducer_.parameters_.size()), State::kUntouched);
    left_.clear();
    for (const BucketPlan::Bucket& bucket : reducer_.plan_.buckets) {
      left_.push_back(static_cast<int>(bucket.parameters.size()));
    }
  }

  std::span<float> Accumulator(int parameter) override {
    Open(parameter, "Accumulator");
    const std::span<float> gradient = Touch(parameter);
    dense_[static_cast<std::size_t>(parameter)] = 1;
    if (IsRows(parameter)) {
      Touched(parameter).all = true;
    }
    return gradient;
  }

  void AddSlices(int parameter, const IndexedSlices& slices) override {
    Open(parameter, "AddSlices");
    const ParameterSet::Parameter& declared = reducer_.parameters_[parameter];
    if (kernels_ != nullptr && reducer_.devices_->copy(replica_).apart()) {
      throw StatusError(Unimplemented("AddSlices on a device: gradient of '" + declared.name +
                                      "' [write the whole gradient into its Accumulator]"));
    }
    Require(declared.shape.rank() >= 1, "AddSlices on a parameter with rows: " + declared.name);
    const std::int64_t rows = declared.shape[0];
    const std::int64_t row = rows == 0 ? 0 : declared.shape.elements() / rows;
    Require(static_cast<std::int64_t>(slices.values.size()) ==
                static_cast<std::int64_t>(slices.indices.size()) * row,
            "AddSlices with as many rows of values as indices: " + declared.name);
    const std::span<float> gradient = Touch(parameter);
    as_rows_[static_cast<std::size_t>(parameter)] = 1;
    TouchedRows* touched = IsRows(parameter) ? &Touched(parameter) : nullptr;
    stream_->Enqueue([gradient, slices, rows, row, touched, name = declared.name]() -> Status {
      for (std::size_t i = 0; i < slices.indices.size(); ++i) {
        const std::int64_t index = slices.indices[i];
        if (index < 0 || index >= rows) {
          return OutOfRange("gradient of '" + name + "': row " + std::to_string(index) + " of " +
                            std::to_string(rows));
        }
        float* to = gradient.data() + index * row;
        const float* from = slices.values.data() + static_cast<std::int64_t>(i) * row;
        for (std::int64_t k = 0; k < row; ++k) {
          to[k] += from[k];
        }
      }
      if (touched != nullptr) {
        touched->indices.insert(touched->indices.end(), slices.indices.begin(),
                                slices.indices.end());
      }
      return {};
    });
  }

  void AddRows(int table, std::span<const std::uint64_t> ids,
               std::span<const float> values) override {
    Require(stream_ != nullptr && reducer_.options_.rows != nullptr,
            "AddRows during a pass, of a model with tables");
    reducer_.options_.rows->Add(replica_, table, ids, values);
  }

  void Ready(int parameter) override {
    Open(parameter, "Ready");
    Close(parameter);
  }

  void SetWeight(double weight) override {
    Require(stream_ != nullptr && !weight_used_,
            "SetWeight before loss_seed() and before the first Ready of the pass");
    Require(std::isfinite(weight) && weight >= 0, "SetWeight with a finite weight of at least 0");
    weight_ = weight;
  }

  float loss_seed() const override {
    weight_used_ = true;
    return static_cast<float>((reducer_.options_.seed_with_weight ? weight_ : 1.0) *
                              reducer_.loss_scale_);
  }

  double weight() const { return weight_; }
  const std::vector<int>& ready() const { return ready_; }
  const std::vector<std::int32_t>& as_rows() const { return as_rows_; }
  const std::vector<std::int32_t>& dense() const { return dense_; }

  // Takes what is not Ready as it stands; returns those.
  std::vector<int> End(bool ran) {
    std::vector<int> missing;
    for (const BucketPlan::Bucket& bucket : reducer_.plan_.buckets) {
      for (const int parameter : bucket.parameters) {
        if (states_[static_cast<std::size_t>(parameter)] != State::kReady) {
          missing.push_back(parameter);
          Close(parameter);
        }
      }
    }
    if (reducer_.plan_.buckets.front().parameters.empty()) {  // nothing is trainable, or all rows
      CompleteBucket(0);
    }
    if (!ran) {
      ready_.clear();  // the order says nothing
    }
    stream_ = nullptr;
    return missing;
  }

 private:
  enum class State : std::uint8_t { kUntouched, kTouched, kReady };

  State& StateOf(int parameter) { return states_[static_cast<std::size_t>(parameter)]; }

  // Is `call` allowed?
  void Open(int parameter, const char* call) {
    Require(stream_ != nullptr, std::string(call) + " during the step function only");
    Require(parameter >= 0 && parameter < reducer_.parameters_.size(),
            std::string(call) + " with the index of a parameter");
    const std::string& name = reducer_.parameters_[parameter].name;
    Require(Place(parameter).bucket >= 0,
            std::string(call) + " for a trainable parameter; '" + name + "' is not");
    Require(StateOf(parameter) != State::kReady,
            std::string(call) + " before the parameter is Ready, which it is once in a pass; '" +
                name + "' is already");
  }

  const BucketPlan::Place& Place(int parameter) const {
    return reducer_.plan_.places[static_cast<std::size_t>(parameter)];
  }
  bool IsRows(int parameter) const {
    return reducer_.plan_.buckets[static_cast<std::size_t>(Place(parameter).bucket)].rows;
  }
  Arena& Current() const { return reducer_.stack(replica_).current; }
  TouchedRows& Touched(int parameter) const {
    return Current().touched()[static_cast<std::size_t>(parameter)];
  }
  RowTable TableOf(Arena& arena, int parameter) const { return reducer_.TableOf(arena, parameter); }
  std::span<float> GradientIn(const Arena& arena, int parameter) const {
    return arena.values(Place(parameter).offset, Place(parameter).elements);
  }

  // Its gradient, zeroed at the first touch: on the host, since the last turn is long over, and
  // whatever is written comes after this call. A device's were when the turn began.
  std::span<float> Touch(int parameter) {
    const std::span<float> gradient = GradientIn(Current(), parameter);
    if (StateOf(parameter) == State::kUntouched) {
      if (IsRows(parameter)) {
        ZeroTouched(TableOf(Current(), parameter));
      } else if (kernels_ == nullptr) {
        std::ranges::fill(gradient, 0.0F);
      }
      StateOf(parameter) = State::kTouched;
    }
    return gradient;
  }

  void Close(int parameter) {
    const std::span<float> gradient = Touch(parameter);
    StateOf(parameter) = State::kReady;
    weight_used_ = true;
    ready_.push_back(parameter);
    if (IsRows(parameter)) {
      CloseRows(parameter);
    } else {
      CloseDense(parameter, gradient);
    }
    const int bucket = Place(parameter).bucket;
    if (--left_[static_cast<std::size_t>(bucket)] == 0) {
      CompleteBucket(bucket);
    }
  }

  // A mean over nothing is often NaN, and NaN times 0 would reach every replica: what weighs 0 is
  // zeroed. Then the levels are added; on a device by whole buckets.
  void CloseDense(int parameter, std::span<float> gradient) {
    if (kernels_ != nullptr) {
      if (weight_ == 0) {
        kernels_->Fill(*stream_, gradient, 0.0F);
      }
      return;
    }
    if (weight_ == 0) {
      stream_->Enqueue([gradient]() -> Status {
        std::ranges::fill(gradient, 0.0F);
        return {};
      });
    }
    for (const Arena* level : closes_) {
      stream_->Enqueue([gradient, more = GradientIn(*level, parameter)]() -> Status {
        AddTo(gradient, more);
        return {};
      });
    }
  }

  void CloseRows(int parameter) {
    std::vector<RowTable> levels;
    for (Arena* level : closes_) {
      levels.push_back(TableOf(*level, parameter));
    }
    stream_->Enqueue([table = TableOf(Current(), parameter), levels = std::move(levels),
                      empty = weight_ == 0]() -> Status {
      Sort(table.touched->indices);
      if (empty) {
        ZeroTouched(table);
      }
      for (const RowTable& level : levels) {
        AddTouched(table, level);
      }
      return {};
    });
  }

  void CompleteBucket(int bucket) {
    if (bucket == 0) {
      const std::span<float> header = Current().header();
      std::ranges::fill(header, 0.0F);
      PackWeight(weight_, header);
      for (const Arena* level : closes_) {
        AddTo(header, level->header());
      }
    }
    if (kernels_ != nullptr) {
      const auto [begin, end] = reducer_.plan_.GradientsOf(bucket);
      const std::span<float> sum = Current().values(begin, end - begin);
      for (const Arena* level : closes_) {
        kernels_->Add(*stream_, sum, level->values(begin, end - begin), sum);
      }
    }
    if (last_) {
      reducer_.Complete(replica_, bucket, *stream_);
    }
  }

  Reducer& reducer_;
  const int replica_;
  Stream* stream_ = nullptr;    // nullptr: not in a turn
  Kernels* kernels_ = nullptr;  // nullptr: without devices
  double weight_ = 0;
  mutable bool weight_used_ = false;
  std::vector<Arena*> closes_;
  bool last_ = true;
  std::vector<State> states_;  // by parameter
  std::vector<int> left_;      // by bucket: parameters that are not Ready
  std::vector<int> ready_;
  std::vector<std::int32_t> as_rows_;
  std::vector<std::int32_t> dense_;
};

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
    reducer->sinks_.push_back(std::make_unique<Sink>(*reducer, r));
  }
  if (!options.copies.empty()) {
    try {
      reducer->devices_ =
          std::make_unique<DeviceSums>(options.copies, reducer->plan_.elements, options.way,
                                       options.communicator != nullptr && options.nccl == nullptr);
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
}

// A device's are zeroed in each turn.
void Reducer::ZeroOnHost(const Arena& arena) const {
  if (options_.copies.empty()) {
    std::ranges::fill(arena.values(), 0.0F);
  }
}

std::span<const float> Reducer::gradients() const { return stack(0).current.values(); }

// From where a bucket travels.
std::span<float> Reducer::LandingOf(int bucket) {
  const BucketPlan::Bucket& b = plan_.buckets[static_cast<std::size_t>(bucket)];
  Arena& first = stack(0).current;
  return (devices_ != nullptr ? devices_->Landing(first) : first).values(b.begin, b.end - b.begin);
}

RowTable Reducer::TableOf(Arena& arena, int parameter) const {
  const BucketPlan::Place& place = plan_.places[static_cast<std::size_t>(parameter)];
  const Shape& shape = parameters_[parameter].shape;
  return {.values = arena.values(place.offset, place.elements),
          .rows = shape[0],
          .row = shape[0] == 0 ? 0 : place.elements / shape[0],
          .touched = &arena.touched()[static_cast<std::size_t>(parameter)]};
}

// ---- A pass ----------------------------------------------------------------------------------

void Reducer::StartPass(std::int64_t step, bool sent, double loss_scale) {
  step_ = step;
  sent_ = sent;
  loss_scale_ = loss_scale;
  use_ = Use{};
  for (const std::unique_ptr<Sink>& sink : sinks_) {
    sink->StartPass();
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
  std::vector<Arena*> closes;
  if (mine.accumulated) {
    closes.push_back(&mine.levels.front());
  } else {
    for (int level = 0; level < std::countr_one(static_cast<unsigned>(shard)); ++level) {
      closes.push_back(&mine.levels[static_cast<std::size_t>(level)]);
    }
  }
  sinks_[static_cast<std::size_t>(replica)]->Begin(weight, stream, std::move(closes),
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
  for (const std::unique_ptr<Sink>& sink : sinks_) {
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

void Reducer::Complete(int replica, int bucket, Stream& stream) {
  if (!launches()) {
    return;
  }
  const bool elsewhere = options_.replicas > 1 || devices_ != nullptr;  // it is summed
  std::shared_ptr<Event> point = elsewhere ? stream.Record() : nullptr;
  std::unique_lock lock(mutex_);
  Flight& completed = flights_[static_cast<std::size_t>(bucket)];
  completed.complete[static_cast<std::size_t>(replica)] = std::move(point);
  --completed.replicas_left;
  if (bucket == 0) {
    pass_weight_ += stack(replica).weight + weight(replica);
  }
  if (launching_) {
    return;  // whoever launches looks again before it stops
  }
  launching_ = true;
  while (next_launch_ < static_cast<int>(flights_.size()) &&
         flights_[static_cast<std::size_t>(next_launch_)].replicas_left == 0) {
    const int launch = next_launch_++;
    lock.unlock();
    Launch(launch, stream);
    lock.lock();
  }
  launching_ = false;
}

CollectiveOptions Reducer::OptionsOf(const BucketPlan::Bucket& bucket) const {
  CollectiveOptions options;
  options.name = bucket.name;
  options.timeout = options_.timeout;
  options.algorithm = options_.algorithm;
  return options;
}

// The host's arenas, into that of replica 0.
void Reducer::SumReplicas(const BucketPlan::Bucket& bucket, Stream& stream) {
  if (options_.replicas > 1) {
    stream.Enqueue([this, begin = bucket.begin, end = bucket.end]() -> Status {
      SumSpan(begin, end);
      return {};
    });
  }
}

void Reducer::Launch(int index, Stream& stream) {
  const Range range(Phase::kReduce, index);
  Flight& flight = flights_[static_cast<std::size_t>(index)];
  const BucketPlan::Bucket& bucket = plan_.buckets[static_cast<std::size_t>(index)];
  for (int r = 0; r < options_.replicas; ++r) {
    if (auto& point = flight.complete[static_cast<std::size_t>(r)]; point != nullptr) {
      (devices_ != nullptr ? devices_->copy(r).stream() : stream).WaitFor(std::move(point));
    }
  }
  if (is_read(index)) {
    SumReplicas(bucket, stream);
    return;
  }
  CollectiveOptions options = OptionsOf(bucket);
  options.stream = devices_ != nullptr ? &devices_->copy(0).stream() : &stream;
  flight.launched_at = std::chrono::steady_clock::now();
  Communicator::Pending pending = bucket.rows ? LaunchRows(bucket, options)
                                  : options_.nccl != nullptr
                                      ? LaunchOnDevices(flight, index, options)
                                      : LaunchDense(flight, index, options);
  if (pending.ok()) {
    flight.work = std::move(pending).value();
  } else {
    flight.launched = pending.status();
  }
}

Communicator::Pending Reducer::LaunchDense(Flight& flight, int index,
                                           const CollectiveOptions& options) {
  const BucketPlan::Bucket& bucket = plan_.buckets[static_cast<std::size_t>(index)];
  const std::span<float> values = LandingOf(index);
  if (devices_ != nullptr) {
    if (index == 0) {
      SumHeaders();
    }
    const auto [begin, end] = plan_.GradientsOf(index);
    devices_->Sum(Arenas(), begin, end);
    devices_->Land(Arenas(), begin, end);
  } else {
    SumReplicas(bucket, *options.stream);
  }
  if (options_.hook == nullptr) {
    return options_.communicator->AllReduce(values, ReduceOp::kSum, options);
  }
  const std::size_t header = index == 0 ? BucketPlan::kHeaderElements : 0;
  if (index == 0) {
    Communicator::Pending sum = LaunchWeight(options);
    COHORT_RETURN_IF_ERROR(sum.status());
    if (bucket.parameters.empty()) {
      return sum;
    }
    flight.header = std::move(sum).value();
  }
  flight.bucket.reset(new GradientBucket{
      .index = index,
      .values = values.subspan(header),
      .parts = bucket.parts,
      .weight = options_.seed_with_weight || pass_weight_ == 0 ? pass_weight_ : 1.0,
      .step = step_,
      .communicator = *options_.communicator,
      .stream = *options.stream,
      .options = options});
  return options_.hook->Launch(*flight.bucket);
}

// Of the header of bucket 0, where the rest takes another way.
Communicator::Pending Reducer::LaunchWeight(const CollectiveOptions& options) {
  CollectiveOptions weight = options;
  weight.name = "weight of the batch";
  Arena& first = stack(0).current;
  return options_.communicator->AllReduce(
      (devices_ != nullptr ? devices_->Landing(first) : first).header(), ReduceOp::kSum, weight);
}

// The weight is known on the host; the gradients stay where they are.
Communicator::Pending Reducer::LaunchOnDevices(Flight& flight, int index,
                                               const CollectiveOptions& options) {
  if (index == 0) {
    SumHeaders();
    if (options_.communicator != nullptr) {
      CollectiveOptions weight = options;
      weight.stream = nullptr;
      COHORT_ASSIGN_OR_RETURN(flight.header, LaunchWeight(weight));
    }
  }
  const auto [begin, end] = plan_.GradientsOf(index);
  const DeviceSums::Arenas arenas = Arenas();
  devices_->Sum(arenas, begin, end);
  std::vector<std::span<float>> parts;
  for (const int first : devices_->firsts()) {
    parts.push_back(stack(first).current.values(begin, end - begin));
  }
  return options_.nccl->AllReduce(parts, options);
}

Communicator::Pending Reducer::LaunchRows(const BucketPlan::Bucket& bucket,
                                          const CollectiveOptions& options) {
  std::vector<RowTable> tables;
  for (Stack& mine : stacks_) {
    tables.push_back(TableOf(mine.current, bucket.parameters.front()));
  }
  options.stream->Enqueue([tables]() -> Status {
    for (std::size_t step = 1; step < tables.size(); step *= 2) {
      for (std::size_t r = 0; r + step < tables.size(); r += 2 * step) {
        AddTouched(tables[r], tables[r + step]);
      }
    }
    return {};
  });
  return ExchangeRows(*options_.communicator, tables.front(), options);
}

// In one tree over the replicas, whatever they are in: pairs, then pairs of pairs.
void Reducer::SumSpan(std::int64_t begin, std::int64_t end) {
  for (std::int64_t at = begin; at < end; at += kSumElements) {
    const std::int64_t elements = std::min(kSumElements, end - at);
    for (int step = 1; step < options_.replicas; step *= 2) {
      for (int r = 0; r + step < options_.replicas; r += 2 * step) {
        AddTo(stack(r).current.values(at, elements), stack(r + step).current.values(at, elements));
      }
    }
  }
}

// Of the replicas, into the one that travels.
void Reducer::SumHeaders() {
  for (int step = 1; step < options_.replicas; step *= 2) {
    for (int r = 0; r + step < options_.replicas; r += 2 * step) {
      AddTo(stack(r).current.header(), stack(r + step).current.header());
    }
  }
  const std::span<float> sum = stack(0).current.header();
  if (const std::span<float> landing = devices_->Landing(stack(0).current).header();
      landing.data() != sum.data()) {
    std::ranges::copy(sum, landing.begin());
  }
}

DeviceSums::Arenas Reducer::Arenas() const {
  DeviceSums::Arenas arenas;
  for (const Stack& mine : stacks_) {
    arenas.push_back(mine.current.values());
  }
  return arenas;
}

// ---- After a pass ----------------------------------------------------------------------------

bool Reducer::has_landed(int bucket) const {
  const Flight& flight = flights_[static_cast<std::size_t>(bucket)];
  return flight.work == nullptr || flight.work->done();
}

std::chrono::steady_clock::time_point Reducer::launched_at(int bucket) const {
  return flights_[static_cast<std::size_t>(bucket)].launched_at;
}

Status Reducer::Landed(int bucket) {
  const Range range(Phase::kWait, bucket);
  Flight& flight = flights_[static_cast<std::size_t>(bucket)];
  COHORT_RETURN_IF_ERROR(flight.launched);
  Require(flight.work != nullptr, "Landed after every replica's End");
  if (flight.header != nullptr) {
    COHORT_RETURN_IF_ERROR(flight.header->Wait());
  }
  const Status status = flight.work->Wait();
  if (status.ok() && devices_ != nullptr && options_.nccl == nullptr) {
    const auto [begin, end] = plan_.GradientsOf(bucket);
    devices_->TakeOff(Arenas(), devices_->Landing(stack(0).current), begin, end);
  }
  return status;
}

Status Reducer::Read(int index, const std::function<void()>& apply) {
  const BucketPlan::Bucket& bucket = plan_.buckets[static_cast<std::size_t>(index)];
  auto pending = options_.communicator->AllReduceRead(
      LandingOf(index), ReduceOp::kSum,
      [&](const ReducedValues& values) {
        reading_ = &values;
        reading_from_ = bucket.begin;
        if (index == 0) {
          std::array<float, BucketPlan::kHeaderElements> room;
          std::ranges::copy_n(
              static_cast<const float*>(values.Read(0, BucketPlan::kHeaderElements, room.data())),
              BucketPlan::kHeaderElements, read_header_.begin());
        }
        apply();
        reading_ = nullptr;
      },
      OptionsOf(bucket));
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

std::span<const float> Reducer::SumOf(const BucketPlan::Chunk& chunk, float* room) const {
  if (reading_ == nullptr) {
    return stack(0).current.values(chunk.gradient, chunk.elements);
  }
  return {static_cast<const float*>(
              reading_->Read(chunk.gradient - reading_from_, chunk.elements, room)),
          static_cast<std::size_t>(chunk.elements)};
}

double Reducer::total_weight() const {
  if (options_.one_pass) {
    return UnpackWeight(read_header_);
  }
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
