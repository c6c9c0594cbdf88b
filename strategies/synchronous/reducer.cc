#include "synchronous/reducer.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace cohort {

// One bucket's way in the current pass.
struct Reducer::Flight {
  int replicas_left = 0;
  std::vector<std::shared_ptr<Event>> complete;  // by replica; owners: this and who waits for it
  std::unique_ptr<Work> work;
  Status launched;  // the launch's own error
};

// A replica's side: touched by that replica's thread only.
class Reducer::Sink final : public GradientSink {
 public:
  Sink(Reducer& reducer, int replica)
      : reducer_(reducer),
        replica_(replica),
        states_(static_cast<std::size_t>(reducer.parameters_.size())),
        left_(reducer.plan_.buckets.size()) {}

  void Begin(double weight, Stream& stream) {
    weight_ = weight;
    stream_ = &stream;
    weight_used_ = false;
    std::fill(states_.begin(), states_.end(), State::kUntouched);
    for (std::size_t b = 0; b < left_.size(); ++b) {
      left_[b] = static_cast<int>(reducer_.plan_.buckets[b].parameters.size());
    }
  }

  std::span<float> Accumulator(int parameter) override {
    State& state = Open(parameter, "Accumulator");
    const std::span<float> gradient = GradientOf(parameter);
    if (state == State::kUntouched) {
      // On the host: the last pass is long over, and whatever is written comes after this call.
      std::fill(gradient.begin(), gradient.end(), 0.0F);
      state = State::kTouched;
    }
    return gradient;
  }

  void AddSlices(int parameter, const IndexedSlices& slices) override {
    const std::span<float> gradient = Accumulator(parameter);
    const ParameterSet::Parameter& declared = reducer_.parameters_[parameter];
    Require(declared.shape.rank() >= 1, "AddSlices on a parameter with rows: " + declared.name);
    const std::int64_t rows = declared.shape[0];
    const std::int64_t row = rows == 0 ? 0 : declared.shape.elements() / rows;
    Require(static_cast<std::int64_t>(slices.values.size()) ==
                static_cast<std::int64_t>(slices.indices.size()) * row,
            "AddSlices with as many rows of values as indices: " + declared.name);
    stream_->Enqueue([gradient, slices, rows, row, name = declared.name]() -> Status {
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
      return {};
    });
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
    return reducer_.options_.seed_with_weight ? static_cast<float>(weight_) : 1.0F;
  }

  double weight() const { return weight_; }

  // Takes what is not Ready as it stands; returns those.
  std::vector<int> End() {
    std::vector<int> missing;
    for (const BucketPlan::Bucket& bucket : reducer_.plan_.buckets) {
      for (const int parameter : bucket.parameters) {
        if (states_[static_cast<std::size_t>(parameter)] != State::kReady) {
          missing.push_back(parameter);
          Close(parameter);
        }
      }
    }
    if (reducer_.plan_.buckets.front().parameters.empty()) {  // nothing is trainable
      CompleteBucket(0);
    }
    stream_ = nullptr;
    return missing;
  }

 private:
  enum class State : std::uint8_t { kUntouched, kTouched, kReady };

  // The parameter's state, once it is known that `call` is allowed.
  State& Open(int parameter, const char* call) {
    Require(stream_ != nullptr, std::string(call) + " during the step function only");
    Require(parameter >= 0 && parameter < reducer_.parameters_.size(),
            std::string(call) + " with the index of a parameter");
    State& state = states_[static_cast<std::size_t>(parameter)];
    const std::string& name = reducer_.parameters_[parameter].name;
    Require(Place(parameter).bucket >= 0,
            std::string(call) + " for a trainable parameter; '" + name + "' is not");
    Require(state != State::kReady, std::string(call) +
                                        " before the parameter is Ready, which it "
                                        "is once in a pass; '" +
                                        name + "' is already");
    return state;
  }

  const BucketPlan::Place& Place(int parameter) const {
    return reducer_.plan_.places[static_cast<std::size_t>(parameter)];
  }

  std::span<float> GradientOf(int parameter) const {
    const BucketPlan::Place& place = Place(parameter);
    return reducer_.arena(replica_).subspan(static_cast<std::size_t>(place.offset),
                                            static_cast<std::size_t>(place.elements));
  }

  void Close(int parameter) {
    State& state = states_[static_cast<std::size_t>(parameter)];
    if (state == State::kUntouched) {
      const std::span<float> gradient = GradientOf(parameter);
      std::fill(gradient.begin(), gradient.end(), 0.0F);
    }
    state = State::kReady;
    weight_used_ = true;
    const int bucket = Place(parameter).bucket;
    if (--left_[static_cast<std::size_t>(bucket)] == 0) {
      CompleteBucket(bucket);
    }
  }

  void CompleteBucket(int bucket) {
    const std::span<float> memory = reducer_.SpanOf(replica_, bucket);
    if (bucket == 0) {
      PackWeight(weight_, memory);
    }
    if (weight_ == 0) {
      // A mean over nothing is often NaN, and NaN times 0 would reach every replica.
      stream_->Enqueue([memory]() -> Status {
        std::fill(memory.begin(), memory.end(), 0.0F);
        return {};
      });
    }
    reducer_.Complete(replica_, bucket, *stream_);
  }

  Reducer& reducer_;
  const int replica_;
  Stream* stream_ = nullptr;  // nullptr: not in a pass
  double weight_ = 0;
  mutable bool weight_used_ = false;
  std::vector<State> states_;  // by parameter
  std::vector<int> left_;      // by bucket: parameters that are not Ready
};

Reducer::Reducer(const ParameterSet& parameters, const Options& options)
    : parameters_(parameters),
      options_(options),
      plan_(BucketPlan::Make(parameters, options.first_bucket_bytes, options.bucket_bytes)) {
  for (int r = 0; r < options_.replicas; ++r) {
    arenas_.emplace_back(DType::kFloat32, Shape{plan_.elements});
    sinks_.push_back(std::make_unique<Sink>(*this, r));
  }
  flights_.resize(plan_.buckets.size());
}

Reducer::~Reducer() = default;

std::span<float> Reducer::arena(int replica) const {
  return arenas_[static_cast<std::size_t>(replica)].data<float>();
}

std::span<float> Reducer::SpanOf(int replica, int bucket) const {
  const BucketPlan::Bucket& b = plan_.buckets[static_cast<std::size_t>(bucket)];
  return arena(replica).subspan(static_cast<std::size_t>(b.begin),
                                static_cast<std::size_t>(b.end - b.begin));
}

void Reducer::StartPass() {
  const std::lock_guard lock(mutex_);
  for (Flight& flight : flights_) {
    flight = Flight{};
    flight.replicas_left = options_.replicas;
    flight.complete.resize(static_cast<std::size_t>(options_.replicas));
  }
  next_launch_ = 0;
}

void Reducer::Begin(int replica, double weight, Stream& stream) {
  sinks_[static_cast<std::size_t>(replica)]->Begin(weight, stream);
}

GradientSink& Reducer::sink(int replica) { return *sinks_[static_cast<std::size_t>(replica)]; }

double Reducer::weight(int replica) const {
  return sinks_[static_cast<std::size_t>(replica)]->weight();
}

void Reducer::End(int replica, bool ran) {
  const std::vector<int> missing = sinks_[static_cast<std::size_t>(replica)]->End();
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

void Reducer::Complete(int replica, int bucket, Stream& stream) {
  if (options_.communicator == nullptr) {
    return;
  }
  std::shared_ptr<Event> point = options_.replicas > 1 ? stream.Record() : nullptr;
  std::unique_lock lock(mutex_);
  Flight& completed = flights_[static_cast<std::size_t>(bucket)];
  completed.complete[static_cast<std::size_t>(replica)] = std::move(point);
  --completed.replicas_left;
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

void Reducer::Launch(int bucket, Stream& stream) {
  Flight& flight = flights_[static_cast<std::size_t>(bucket)];
  if (options_.replicas > 1) {
    for (std::shared_ptr<Event>& point : flight.complete) {
      stream.WaitFor(std::move(point));
    }
    stream.Enqueue([this, bucket]() -> Status {
      SumBucket(bucket);
      return {};
    });
  }
  CollectiveOptions options;
  options.name = plan_.buckets[static_cast<std::size_t>(bucket)].name;
  options.timeout = options_.timeout;
  options.stream = &stream;
  Communicator::Pending pending =
      options_.communicator->AllReduce(SpanOf(0, bucket), ReduceOp::kSum, options);
  if (pending.ok()) {
    flight.work = std::move(pending).value();
  } else {
    flight.launched = pending.status();
  }
}

void Reducer::SumBucket(int bucket) {
  const std::span<float> to = SpanOf(0, bucket);
  for (int r = 1; r < options_.replicas; ++r) {
    const std::span<const float> from = SpanOf(r, bucket);
    for (std::size_t i = 0; i < to.size(); ++i) {
      to[i] += from[i];
    }
  }
}

Status Reducer::Landed(int bucket) {
  Flight& flight = flights_[static_cast<std::size_t>(bucket)];
  COHORT_RETURN_IF_ERROR(flight.launched);
  Require(flight.work != nullptr, "Landed after every replica's End");
  return flight.work->Wait();
}

double Reducer::total_weight() const {
  if (options_.communicator != nullptr) {
    return UnpackWeight(arena(0));
  }
  double total = 0;
  for (const std::unique_ptr<Sink>& sink : sinks_) {
    total += sink->weight();
  }
  return total;
}

void Reducer::Sum(const BucketPlan::Chunk& chunk) {
  if (options_.communicator != nullptr) {
    return;
  }
  float* to = arena(0).data() + chunk.gradient;
  for (int r = 1; r < options_.replicas; ++r) {
    const float* from = arena(r).data() + chunk.gradient;
    for (std::int64_t i = 0; i < chunk.elements; ++i) {
      to[i] += from[i];
    }
  }
}

void Reducer::GiveUp() {
  for (Flight& flight : flights_) {
    if (flight.work != nullptr) {
      (void)flight.work->Wait();
      flight.work.reset();
    }
  }
}

}  // namespace cohort
