#include "synchronous/updater.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include <cohort/device/range.h>
#include <cohort/optim/gradients.h>

#include "synchronous/agreement.h"

namespace cohort {
namespace {

// Fewer chunks than this are applied by the caller alone: waking the others takes longer.
constexpr std::size_t kChunksWorthWaking = 4;
// More steps in a row that overflow are not the scale's fault.
constexpr int kMostSkips = 100;

// Of a power of two.
std::string ShortText(double scale) { return "2^" + std::to_string(std::ilogb(scale)); }

}  // namespace

Updater::Updater(Parts parts)
    : parts_(std::move(parts)), squares_(parts_.reducer.plan().chunks.size()) {}

// ---- Scales ----------------------------------------------------------------------------------

void Updater::ScaleFor(double usual_weight) {
  scaled_weight_ = parts_.loss_scale == LossScale::kGlobalMean ? usual_weight : 1;
}

double Updater::LossFactor() const {
  return parts_.scaler != nullptr ? parts_.scaler->scale() / scaled_weight_ : 1.0;
}

float Updater::GradientScale(double weight, int replicas) const {
  const double loss_scale = LossFactor();
  switch (parts_.loss_scale) {
    case LossScale::kGlobalMean:
      return static_cast<float>(1.0 / (weight * loss_scale));
    case LossScale::kReplicaMean:
      return static_cast<float>(1.0 / (replicas * loss_scale));
    case LossScale::kSum:
      break;
  }
  return static_cast<float>(1.0 / loss_scale);
}

// Bias correction counts what the moments have seen; schedules count steps. 0: they are the same.
std::int64_t Updater::BiasStep(std::int64_t step) const {
  return parts_.scaler != nullptr ? std::max<std::int64_t>(1, step - parts_.scaler->state().skipped)
                                  : 0;
}

// ---- The update ------------------------------------------------------------------------------

void Updater::Apply(int bucket, std::int64_t step, float scale) {
  if (parts_.copies.empty()) {
    const BucketPlan::Bucket& b = parts_.reducer.plan().buckets[static_cast<std::size_t>(bucket)];
    ApplyChunks(b.first_chunk, b.last_chunk, step, scale);
  } else {
    ApplyOnDevices(bucket, bucket + 1, step, scale);
  }
}

Result<bool> Updater::ApplyAll(std::int64_t step, float scale,
                               const std::function<Result<bool>()>& rows) {
  if (NeedsNorm()) {
    // Squares of float32, added up in double, are finite if all of them are: a process finds what
    // the others find, from the same sums.
    COHORT_ASSIGN_OR_RETURN(const double squared_norm, SquaredNormOfAll());
    if (parts_.scaler != nullptr) {
      bool finite = std::isfinite(squared_norm);
      if (finite && rows) {
        COHORT_ASSIGN_OR_RETURN(finite, rows());
      }
      if (!finite) {
        COHORT_RETURN_IF_ERROR(Skip(step));
        return false;
      }
      parts_.scaler->Update(true);
      skips_ = 0;
    }
    if (parts_.optimizer.global_clip_norm() > 0) {
      const double factor = scale;
      scale = static_cast<float>(
          factor * ClipFactor(squared_norm * factor * factor, parts_.optimizer.global_clip_norm()));
    }
  }
  const BucketPlan& plan = parts_.reducer.plan();
  if (parts_.copies.empty()) {
    ApplyChunks(0, plan.chunks.size(), step, scale);
  } else {
    ApplyOnDevices(0, static_cast<int>(plan.buckets.size()), step, scale);
  }
  return true;
}

// The step's gradients overflowed, on every process. An error if a lower scale does not help.
Status Updater::Skip(std::int64_t step) {
  parts_.untrained.PutBack();
  GradScaler& scaler = *parts_.scaler;
  const double scale = scaler.scale();
  scaler.Update(false);
  if (scaler.scale() == scale || ++skips_ >= kMostSkips) {
    return DataLoss("gradients are infinite or NaN, also where they are scaled by " +
                    ShortText(scale) + ", after " + std::to_string(scaler.state().skipped) +
                    " skipped steps [lower the learning rate, look for bad values in the input, or "
                    "train in mixed_bfloat16]");
  }
  parts_.log.Info("step " + std::to_string(step) +
                  ": gradients overflowed, nothing is updated; they are scaled by " +
                  ShortText(scaler.scale()) + " now");
  return {};
}

void Updater::ForChunks(std::size_t first, std::size_t last,
                        const std::function<void(std::size_t chunk)>& fn) {
  const std::size_t count = last - first;
  if (parts_.gang.size() == 1 || count < kChunksWorthWaking) {
    for (std::size_t chunk = first; chunk < last; ++chunk) {
      fn(chunk);
    }
    return;
  }
  const auto threads = static_cast<std::size_t>(parts_.gang.size());
  parts_.gang.Run([&](int thread) {
    const auto t = static_cast<std::size_t>(thread);
    for (std::size_t i = count * t / threads; i < count * (t + 1) / threads; ++i) {
      fn(first + i);
    }
  });
}

void Updater::ApplyChunks(std::size_t first_chunk, std::size_t last_chunk, std::int64_t step,
                          float scale) {
  const Range range(Phase::kUpdate, step);
  const std::span<float> values = parts_.parameters.all();
  const std::span<const float> gradients = parts_.reducer.gradients();
  const bool summed = NeedsNorm();
  ForChunks(first_chunk, last_chunk, [&](std::size_t index) {
    const BucketPlan::Chunk& chunk = parts_.reducer.plan().chunks[index];
    if (!summed) {
      parts_.reducer.Sum(chunk);
    }
    const auto value = static_cast<std::size_t>(chunk.value);
    const auto gradient = static_cast<std::size_t>(chunk.gradient);
    const auto elements = static_cast<std::size_t>(chunk.elements);
    std::vector<std::span<float>> slots;
    slots.reserve(parts_.slots.size());
    for (const std::span<float> slot : parts_.slots) {
      slots.push_back(slot.subspan(value, elements));
    }
    parts_.optimizer.Apply({.value = values.subspan(value, elements),
                            .gradient = gradients.subspan(gradient, elements),
                            .slots = slots,
                            .gradient_scale = scale,
                            .step = step,
                            .bias_step = BiasStep(step)});
  });
}

void Updater::ApplyOnDevices(int first_bucket, int last_bucket, std::int64_t step, float scale) {
  const Range range(Phase::kUpdate, step);
  const BucketPlan& plan = parts_.reducer.plan();
  const UpdateRule rule = parts_.optimizer.RuleAt(step, BiasStep(step));
  for (const std::unique_ptr<DeviceCopy>& copy : parts_.copies) {
    for (int b = first_bucket; b < last_bucket; ++b) {
      copy->Update(rule, plan, plan.buckets[static_cast<std::size_t>(b)],
                   parts_.reducer.gradients(*copy), scale);
    }
  }
}

// ---- The norm --------------------------------------------------------------------------------

// Of the whole gradient, for which all buckets must have landed. Squares are added in declaration
// order, however the buckets lie.
Result<double> Updater::SquaredNormOfAll() {
  if (!parts_.copies.empty()) {
    return SquaredNormOnDevices();
  }
  const std::vector<BucketPlan::Chunk>& chunks = parts_.reducer.plan().chunks;
  ForChunks(0, chunks.size(), [&](std::size_t index) {
    const BucketPlan::Chunk& chunk = chunks[index];
    parts_.reducer.Sum(chunk);
    squares_[chunk.ordinal] = SquaredNorm(parts_.reducer.gradients().subspan(
        static_cast<std::size_t>(chunk.gradient), static_cast<std::size_t>(chunk.elements)));
  });
  double squared_norm = 0;
  for (const double squares : squares_) {
    squared_norm += squares;
  }
  return squared_norm;
}

// Those of process 0's replica 0 count: another's kernels may add in another order.
Result<double> Updater::SquaredNormOnDevices() {
  DeviceCopy& first = *parts_.first_copy;
  double squared_norm = 0;
  try {
    COHORT_ASSIGN_OR_RETURN(
        squared_norm,
        first.Squares(parts_.reducer.plan(), parts_.reducer.gradients(first), parts_.timeout));
  } catch (const StatusError& error) {  // no memory for it
    return error.status();
  }
  // Whether it is finite, all know.
  if (parts_.communicator != nullptr && parts_.optimizer.global_clip_norm() > 0) {
    CollectiveOptions options;
    options.name = "norm of the gradient";
    COHORT_RETURN_IF_ERROR(
        Await(parts_.communicator->Broadcast(std::span<double>(&squared_norm, 1), 0, options)));
  }
  return squared_norm;
}

}  // namespace cohort
