// Models to start from: what the benchmarks measure and the examples train. Each declares its
// parameters in the set; Build is the caller's.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

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
// each with relu between, and
// "resnet18", "resnet34", "resnet50"
//           as resnet.h has them; images of fewer than 64 pixels a side get the stem for
//           small images
// InvalidArgument for another name.
Result<std::unique_ptr<ImageModel>> MakeImageModel(std::string_view name, ParameterSet& parameters,
                                                   const ImageModelOptions& options = {});

struct DlrmOptions {
  std::int64_t integers = 13;
  std::int64_t categories = 26;
  std::int64_t width = 16;                   // of a category's vector
  std::vector<std::int64_t> bottom = {64};   // hidden layers; one of `width` follows
  std::vector<std::int64_t> top = {64, 32};  // hidden layers; the logit follows
  TableSpec table;                           // of the vectors: optimizer, initializer, ...
  std::uint64_t seed = 0;
};

// Who clicks on what: a bottom network on integers, vectors for categories, the inner products of
// all pairs of these, a top network on them. Naumov et al., "Deep Learning Recommendation Model for
// Personalization and Recommendation Systems", 2019. The vectors of all categories are one sparse
// table, "vectors/table": the ids of different categories must differ.
//
// Thread rules: Logits from any number of replicas at the same time.
class Dlrm {
 public:
  explicit Dlrm(ParameterSet& parameters, const DlrmOptions& options = {});
  // [batch], for integers float32 [batch, integers] and categories int64 [batch, categories].
  Variable Logits(Tape& tape, const Tensor& integers, const Tensor& categories) const;

 private:
  std::int64_t width_;
  Embedding vectors_;
  std::vector<Dense> bottom_;
  std::vector<Dense> top_;
};

}  // namespace cohort::nn
