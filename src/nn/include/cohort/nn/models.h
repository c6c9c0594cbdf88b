// Image classifiers to start from: what the benchmarks measure and the examples train.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include <cohort/nn/layers.h>
#include <cohort/nn/tape.h>

namespace cohort::nn {

// Thread rules: Logits from any number of replicas at the same time.
class ImageModel {
 public:
  virtual ~ImageModel() = default;
  // [batch, classes] for images [batch, height, width, channels].
  virtual Variable Logits(const Variable& images) const = 0;
};

struct ImageModelOptions {
  Shape image = {28, 28, 1};  // height, width, channels
  std::int64_t classes = 10;
  std::int64_t hidden = 512;  // units of each hidden layer of "mlp"
  std::uint64_t seed = 0;
};

// "linear"  dense classes
// "mlp"     dense hidden - dense hidden - dense classes
// "cnn"     conv 32 - pool - conv 64 - pool - dense 128 - dense classes; 3x3 same, max 2x2
// each with relu between. InvalidArgument for another name. Declares its parameters in the set;
// Build is the caller's.
Result<std::unique_ptr<ImageModel>> MakeImageModel(std::string_view name, ParameterSet& parameters,
                                                   const ImageModelOptions& options = {});

}  // namespace cohort::nn
