// ResNet: the image classifier of He, Zhang, Ren, Sun, "Deep residual learning for image
// recognition", CVPR 2016, with 18, 34 or 50 layers: a stem, four stages of residual blocks, the
// mean over all places, and a dense layer.
//
// Blocks of 18 and 34 layers are two 3x3 convolutions; those of 50 are 1x1, 3x3 and 1x1, the 3x3
// one with the stride, as in torchvision's models ("v1.5"; the paper has it in the first 1x1).
// Where a block's input has another shape than its output, the shortcut is a 1x1 convolution. Every
// convolution is without bias and followed by a batch norm. Parameters are as many as
// torchvision's.
//
// Padding is Padding::kSymmetric, torchvision's.
//
// First values: kernels normal with variance 2 / fan out, the last layer's with deviation 0.01,
// scales 1, or 0 where a block ends (zero_last_scale).
//
// Thread rules: Logits from any number of replicas at the same time.

#pragma once

#include <cohort/nn/layers.h>
#include <cohort/nn/models.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cohort::nn {

struct ResNetOptions {
  int depth = 50;  // 18, 34 or 50
  std::int64_t classes = 1000;
  std::int64_t channels = 3;  // of an image
  std::int64_t width = 64;  // channels of the first stage's 3x3 convolutions; doubles from stage to
                            // stage
  // The stem is one 3x3 convolution instead of a 7x7 of stride 2 and a 3x3 pool of stride 2: for
  // images of about 32x32, which those would leave 8x8 of.
  bool small_images = false;
  // Each block starts as its shortcut alone: Goyal et al., "Accurate, large minibatch SGD", 2017.
  // torchvision's zero_init_residual.
  bool zero_last_scale = false;
  // Of all batch norms, but for the activation and first scale.
  BatchNormOptions norm = {.momentum = 0.9F, .epsilon = 1e-5F};
  std::uint64_t seed = 0;
};

class ResNet final : public ImageModel {
 public:
  // Declares the parameters; Build is the caller's. ContractError for sizes that make no model.
  explicit ResNet(ParameterSet& parameters, const ResNetOptions& options = {});
  // [batch, classes] for images [batch, height, width, channels] of any height and width.
  Variable Logits(const Variable& images) const override;

 private:
  // A convolution and its batch norm, with the relu behind it if there is one.
  struct Unit {
    Conv2D conv;
    BatchNorm norm;
    Variable operator()(const Variable& x) const { return norm(conv(x)); }
  };
  struct Block {
    std::vector<Unit> units;       // the last adds the shortcut before its relu
    std::optional<Unit> shortcut;  // empty: the input as it is
  };
  static Unit MakeUnit(ParameterSet& parameters, const ResNetOptions& options,
                       const std::string& name, std::int64_t in, std::int64_t out,
                       std::int64_t kernel, std::int64_t stride,
                       Activation activation = Activation::kRelu, float scale = 1);
  static Block MakeBlock(ParameterSet& parameters, const ResNetOptions& options,
                         const std::string& name, std::int64_t in, std::int64_t width,
                         std::int64_t stride);
  static std::vector<Block> MakeBlocks(ParameterSet& parameters, const ResNetOptions& options);
  static Variable Apply(const Block& block, const Variable& x);

  bool small_images_;
  Unit stem_;
  std::vector<Block> blocks_;
  Dense logits_;
};

}  // namespace cohort::nn
