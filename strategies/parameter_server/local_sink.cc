#include "parameter_server/local_sink.h"

#include <algorithm>
#include <cmath>

#include <cohort/optim/gradients.h>

#include "parameter_server/frames/frame_memory.h"

namespace cohort::ps {

LocalSink::LocalSink(const ParameterSet& parameters, DeviceReplica* device, FrameMemory* memory)
    : parameters_(parameters),
      device_(device),
      zeroed_(static_cast<std::size_t>(parameters.size())),
      ready_(static_cast<std::size_t>(parameters.size())),
      rows_(parameters.tables().size()) {
  const std::size_t floats = parameters.all().size();
  if (device_ != nullptr) {
    arena_ = device_->gradients();
  } else if (memory != nullptr && floats > 0) {
    lent_memory_ = OrThrow(memory->Allocate(floats * sizeof(float)));
    arena_ = {reinterpret_cast<float*>(lent_memory_->bytes().data()), floats};
  } else {
    memory_ = Tensor(DType::kFloat32, Shape{static_cast<std::int64_t>(floats)});
    arena_ = memory_.data<float>();
  }
}

void LocalSink::Begin(double weight, bool seed_with_weight, Stream& stream) {
  std::fill(zeroed_.begin(), zeroed_.end(), 0);
  std::fill(ready_.begin(), ready_.end(), 0);
  for (RowGradientBuffer& rows : rows_) {
    rows.Clear();
  }
  weight_ = weight;
  seed_with_weight_ = seed_with_weight;
  stream_ = &stream;
  if (device_ != nullptr) {
    device_->BeginPass();
  }
}

void LocalSink::End() {
  for (int p = 0; p < parameters_.size(); ++p) {
    if (parameters_[p].trainable) {
      Accumulator(p);
      if (device_ != nullptr && ready_[static_cast<std::size_t>(p)] == 0) {
        device_->Ready(p);
      }
    }
  }
  if (device_ != nullptr) {
    device_->EndPass();
  }
  stream_ = nullptr;
}

double LocalSink::SquaredNorm() const {
  double sum = 0;
  for (int p = 0; p < parameters_.size(); ++p) {
    if (parameters_[p].trainable) {
      sum += cohort::SquaredNorm(SpanOf(p));
    }
  }
  return sum;
}

std::span<float> LocalSink::SpanOf(int parameter) const {
  return arena().subspan(static_cast<std::size_t>(parameters_[parameter].offset),
                         static_cast<std::size_t>(parameters_[parameter].shape.elements()));
}

void LocalSink::CheckTrainable(int parameter) const {
  Require(parameter >= 0 && parameter < parameters_.size(), "a parameter of the set");
  Require(parameters_[parameter].trainable,
          "gradients of trainable parameters only, not of " + parameters_[parameter].name);
}

std::span<float> LocalSink::Accumulator(int parameter) {
  CheckTrainable(parameter);
  if (device_ != nullptr) {
    return device_->gradient(parameter);
  }
  const std::span<float> span = SpanOf(parameter);
  char& zeroed = zeroed_[static_cast<std::size_t>(parameter)];
  if (zeroed == 0) {
    std::fill(span.begin(), span.end(), 0.0F);
    zeroed = 1;
  }
  return span;
}

void LocalSink::ClipEach(double scale, double clip_norm) {
  for (int p = 0; p < parameters_.size(); ++p) {
    if (!parameters_[p].trainable) {
      continue;
    }
    const std::span<float> gradient = SpanOf(p);
    const double factor = ClipFactor(cohort::SquaredNorm(gradient) * scale * scale, clip_norm);
    if (factor < 1) {  // what is not finite is the server's to name
      for (float& g : gradient) {
        g *= static_cast<float>(factor);
      }
    }
  }
}

void LocalSink::AddSlices(int parameter, const IndexedSlices& slices) {
  if (device_ != nullptr) {
    throw StatusError(Unimplemented("AddSlices on a device: gradient of '" +
                                    parameters_[parameter].name +
                                    "' [write the whole gradient into its Accumulator]"));
  }
  const std::span<float> to = Accumulator(parameter);
  const Shape& shape = parameters_[parameter].shape;
  Require(shape.rank() >= 1, "rows of a parameter that has rows");
  const std::int64_t rows = shape[0];
  const std::size_t width = rows == 0 ? 0 : to.size() / static_cast<std::size_t>(rows);
  Require(slices.values.size() == slices.indices.size() * width, "as many rows as indices");
  stream_->Enqueue([to, slices, rows, width, name = parameters_[parameter].name]() -> Status {
    for (std::size_t i = 0; i < slices.indices.size(); ++i) {
      const std::int64_t row = slices.indices[i];
      if (row < 0 || row >= rows) {
        return OutOfRange("gradient of " + name + ": row " + std::to_string(row) + " of " +
                          std::to_string(rows));
      }
      float* out = to.data() + static_cast<std::size_t>(row) * width;
      const float* in = slices.values.data() + i * width;
      for (std::size_t j = 0; j < width; ++j) {
        out[j] += in[j];
      }
    }
    return {};
  });
}

void LocalSink::AddRows(const RowGradients& gradients) {
  rows_.at(static_cast<std::size_t>(gradients.table))
      .Add(gradients.ids, gradients.values, gradients.counts);
}

std::vector<RowClient::Gradients> LocalSink::rows() const {
  std::vector<RowClient::Gradients> gradients;
  for (std::size_t t = 0; t < rows_.size(); ++t) {
    if (!rows_[t].ids.empty()) {
      gradients.push_back({.table = static_cast<int>(t),
                           .ids = rows_[t].ids,
                           .values = rows_[t].values,
                           .counts = rows_[t].counts});
    }
  }
  return gradients;
}

void LocalSink::Ready(int parameter) {
  CheckTrainable(parameter);
  char& ready = ready_[static_cast<std::size_t>(parameter)];
  Require(ready == 0, "Ready once per pass, twice for " + parameters_[parameter].name);
  ready = 1;
  if (device_ != nullptr) {
    device_->Ready(parameter);
  }
}

std::int64_t LocalSink::early_bytes() const {
  return device_ == nullptr ? 0 : DeviceReplica::kLandedBytes;
}

float LocalSink::loss_seed() const {
  return seed_with_weight_ ? static_cast<float>(weight_) : 1.0F;
}

void LocalSink::SetWeight(double weight) {
  Require(std::isfinite(weight) && weight >= 0, "a finite weight of at least 0");
  Require(std::find(ready_.begin(), ready_.end(), 1) == ready_.end(),
          "SetWeight before the first Ready");
  weight_ = weight;
}

}  // namespace cohort::ps
