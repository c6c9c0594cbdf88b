#include "synchronous/replica_sink.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace cohort {
namespace {

void Sort(std::vector<std::int64_t>& indices) {
  std::ranges::sort(indices);
  indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
}

}  // namespace

ReplicaSink::ReplicaSink(Parts parts) : parts_(std::move(parts)) {}

void ReplicaSink::StartPass(double loss_scale) {
  loss_scale_ = loss_scale;
  ready_.clear();
  as_rows_.assign(static_cast<std::size_t>(parts_.parameters.size()), 0);
  dense_ = as_rows_;
}

void ReplicaSink::Begin(double weight, Stream& stream, TurnArenas arenas, bool last) {
  weight_ = weight;
  stream_ = &stream;
  weight_used_ = false;
  arenas_ = std::move(arenas);
  last_ = last;
  if (parts_.kernels != nullptr) {
    parts_.kernels->Fill(stream, Current().values().subspan(BucketPlan::kHeaderElements), 0.0F);
  }
  ready_.clear();
  states_.assign(static_cast<std::size_t>(parts_.parameters.size()), State::kUntouched);
  left_.clear();
  for (const BucketPlan::Bucket& bucket : parts_.plan.buckets) {
    left_.push_back(static_cast<int>(bucket.parameters.size()));
  }
}

std::span<float> ReplicaSink::Accumulator(int parameter) {
  Open(parameter, "Accumulator");
  const std::span<float> gradient = Touch(parameter);
  dense_[static_cast<std::size_t>(parameter)] = 1;
  if (IsRows(parameter)) {
    Touched(parameter).all = true;
  }
  return gradient;
}

void ReplicaSink::AddSlices(int parameter, const IndexedSlices& slices) {
  Open(parameter, "AddSlices");
  const ParameterSet::Parameter& declared = parts_.parameters[parameter];
  if (parts_.apart) {
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
      touched->indices.insert(touched->indices.end(), slices.indices.begin(), slices.indices.end());
    }
    return {};
  });
}

void ReplicaSink::AddRows(const RowGradients& gradients) {
  Require(stream_ != nullptr && parts_.rows != nullptr,
          "AddRows during a pass, of a model with tables");
  parts_.rows->Add(parts_.replica, gradients);
}

void ReplicaSink::Ready(int parameter) {
  Open(parameter, "Ready");
  Close(parameter);
}

void ReplicaSink::SetWeight(double weight) {
  Require(stream_ != nullptr && !weight_used_,
          "SetWeight before loss_seed() and before the first Ready of the pass");
  Require(std::isfinite(weight) && weight >= 0, "SetWeight with a finite weight of at least 0");
  weight_ = weight;
}

float ReplicaSink::loss_seed() const {
  weight_used_ = true;
  return static_cast<float>((parts_.seed_with_weight ? weight_ : 1.0) * loss_scale_);
}

std::vector<int> ReplicaSink::End(bool ran) {
  std::vector<int> missing;
  for (const BucketPlan::Bucket& bucket : parts_.plan.buckets) {
    for (const int parameter : bucket.parameters) {
      if (states_[static_cast<std::size_t>(parameter)] != State::kReady) {
        missing.push_back(parameter);
        Close(parameter);
      }
    }
  }
  if (parts_.plan.buckets.front().parameters.empty()) {  // nothing is trainable, or all rows
    CompleteBucket(0);
  }
  if (!ran) {
    ready_.clear();  // the order says nothing
  }
  stream_ = nullptr;
  return missing;
}

// Is `call` allowed?
void ReplicaSink::Open(int parameter, const char* call) {
  Require(stream_ != nullptr, std::string(call) + " during the step function only");
  Require(parameter >= 0 && parameter < parts_.parameters.size(),
          std::string(call) + " with the index of a parameter");
  const std::string& name = parts_.parameters[parameter].name;
  Require(Place(parameter).bucket >= 0,
          std::string(call) + " for a trainable parameter; '" + name + "' is not");
  Require(StateOf(parameter) != State::kReady,
          std::string(call) + " before the parameter is Ready, which it is once in a pass; '" +
              name + "' is already");
}

// Its gradient, zeroed at the first touch: on the host, since the last turn is long over, and
// whatever is written comes after this call. A device's were when the turn began.
std::span<float> ReplicaSink::Touch(int parameter) {
  const std::span<float> gradient = GradientIn(Current(), parameter);
  if (StateOf(parameter) == State::kUntouched) {
    if (IsRows(parameter)) {
      ZeroTouched(TableIn(Current(), parameter));
    } else if (parts_.kernels == nullptr) {
      std::ranges::fill(gradient, 0.0F);
    }
    StateOf(parameter) = State::kTouched;
  }
  return gradient;
}

void ReplicaSink::Close(int parameter) {
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
void ReplicaSink::CloseDense(int parameter, std::span<float> gradient) {
  if (parts_.kernels != nullptr) {
    if (weight_ == 0) {
      parts_.kernels->Fill(*stream_, gradient, 0.0F);
    }
    return;
  }
  if (weight_ == 0) {
    stream_->Enqueue([gradient]() -> Status {
      std::ranges::fill(gradient, 0.0F);
      return {};
    });
  }
  for (const Arena* level : arenas_.closes) {
    stream_->Enqueue([gradient, more = GradientIn(*level, parameter)]() -> Status {
      AddTo(gradient, more);
      return {};
    });
  }
}

void ReplicaSink::CloseRows(int parameter) {
  std::vector<RowTable> levels;
  for (Arena* level : arenas_.closes) {
    levels.push_back(TableIn(*level, parameter));
  }
  stream_->Enqueue([table = TableIn(Current(), parameter), levels = std::move(levels),
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

void ReplicaSink::CompleteBucket(int bucket) {
  if (bucket == 0) {
    const std::span<float> header = Current().header();
    std::ranges::fill(header, 0.0F);
    PackWeight(weight_, header);
    for (const Arena* level : arenas_.closes) {
      AddTo(header, level->header());
    }
  }
  if (parts_.kernels != nullptr) {
    const auto [begin, end] = parts_.plan.GradientsOf(bucket);
    const std::span<float> sum = Current().values(begin, end - begin);
    for (const Arena* level : arenas_.closes) {
      parts_.kernels->Add(*stream_, sum, level->values(begin, end - begin), sum);
    }
  }
  if (last_) {
    parts_.complete(bucket, *stream_);
  }
}

}  // namespace cohort
