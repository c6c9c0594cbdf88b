// The launch of buckets: what a Reducer does on a replica's thread when the last one has completed
// a bucket, and the sums over this process's replicas.

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include <cohort/device/range.h>

#include "synchronous/reducer.h"
#include "synchronous/row_exchange.h"

namespace cohort {
namespace {

constexpr std::int64_t kSumElements = std::int64_t{8} * 1024;  // stays in the cache

}  // namespace

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
    try {
      Launch(launch, stream);
    } catch (...) {
      lock.lock();
      StopLaunching(launch);
      throw;
    }
    lock.lock();
  }
  launching_ = false;
}

// A launch threw, a hook's for instance: collectives are in order, so that none of the pass follows
// it. Who lands the bucket gets an error, also where the step function took the exception.
void Reducer::StopLaunching(int index) {
  flights_[static_cast<std::size_t>(index)].launched =
      Internal("bucket " + std::to_string(index) + " (" +
               plan_.buckets[static_cast<std::size_t>(index)].name +
               ") is not on its way: an exception ended its launch, and the step");
  next_launch_ = static_cast<int>(flights_.size());
  launching_ = false;
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
  if (launches_late(index)) {
    SumReplicas(bucket, stream);
    return;
  }
  CollectiveOptions options = OptionsOf(bucket);
  options.stream = devices_ != nullptr ? &devices_->copy(0).stream() : &stream;
  flight.launched_at = std::chrono::steady_clock::now();
  flight.alone = index == 0 || has_landed(index - 1);
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

CollectiveOptions Reducer::OptionsOf(const BucketPlan::Bucket& bucket) const {
  CollectiveOptions options;
  options.name = bucket.name;
  options.timeout = options_.timeout;
  options.algorithm = options_.algorithm;
  return options;
}

Status Reducer::LaunchLate(Flight& flight, int index) {
  flight.launched_at = std::chrono::steady_clock::now();
  flight.alone = index == 0 || has_landed(index - 1);
  COHORT_ASSIGN_OR_RETURN(
      flight.work,
      options_.communicator->AllReduce(LandingOf(index), ReduceOp::kSum,
                                       OptionsOf(plan_.buckets[static_cast<std::size_t>(index)])));
  return {};
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

// From where a bucket travels.
std::span<float> Reducer::LandingOf(int bucket) {
  const BucketPlan::Bucket& b = plan_.buckets[static_cast<std::size_t>(bucket)];
  Arena& first = stack(0).current;
  return (devices_ != nullptr ? devices_->Landing(first) : first).values(b.begin, b.end - b.begin);
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
  flight.bucket.reset(new GradientBucket{.index = index,
                                         .values = values.subspan(header),
                                         .parts = bucket.parts,
                                         .weight = BucketWeight(),
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
  std::vector<Buffer> parts;
  for (const int first : devices_->firsts()) {
    const std::span<float> values = stack(first).current.values(begin, end - begin);
    parts.push_back(
        compression_ == nullptr
            ? Buffer(values)
            : compression_->Compress(parts.size(), values, begin,
                                     plan_.buckets[static_cast<std::size_t>(index)].parts,
                                     BucketWeight()));
  }
  return options_.nccl->AllReduce(parts, options);
}

// Back from 16 bits, on every device.
void Reducer::Expand(int bucket) {
  const auto [begin, end] = plan_.GradientsOf(bucket);
  std::size_t copy = 0;
  for (const int first : devices_->firsts()) {
    compression_->Expand(copy++, stack(first).current.values(begin, end - begin), begin);
  }
}

// What this process's gradients were scaled by.
double Reducer::BucketWeight() const {
  return options_.seed_with_weight || pass_weight_ == 0 ? pass_weight_ : 1.0;
}

Communicator::Pending Reducer::LaunchRows(const BucketPlan::Bucket& bucket,
                                          const CollectiveOptions& options) {
  std::vector<RowTable> tables;
  for (Stack& mine : stacks_) {
    tables.push_back(TableOf(parameters_, plan_, bucket.parameters.front(), mine.current));
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

}  // namespace cohort
