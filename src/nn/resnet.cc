#include <cohort/nn/resnet.h>

#include <cohort/nn/initializers.h>
#include <cohort/nn/operations.h>

#include <array>
#include <cmath>
#include <utility>

#include "checks.h"

namespace cohort::nn {
namespace {

constexpr int kStages = 4;

bool IsBottleneck(const ResNetOptions& o) { return o.depth == 50; }
// Channels of a block's output for each of its 3x3 convolutions.
std::int64_t Expansion(const ResNetOptions& o) { return IsBottleneck(o) ? 4 : 1; }
std::array<int, kStages> BlocksOf(const ResNetOptions& o) {
  return o.depth == 18 ? std::array<int, kStages>{2, 2, 2, 2}
                       : std::array<int, kStages>{3, 4, 6, 3};
}

ResNetOptions Checked(const ResNetOptions& o) {
  Require(o.depth == 18 || o.depth == 34 || o.depth == 50, "a ResNet of depth 18, 34 or 50");
  Require(o.classes >= 1 && o.channels >= 1 && o.width >= 1,
          "a ResNet of at least one class, channel and unit");
  return o;
}

}  // namespace

ResNet::Unit ResNet::MakeUnit(ParameterSet& parameters, const ResNetOptions& o,
                              const std::string& name, std::int64_t in, std::int64_t out,
                              std::int64_t kernel, std::int64_t stride, Activation activation,
                              float scale) {
  const double fan_out = static_cast<double>(kernel * kernel * out);
  BatchNormOptions norm = o.norm;
  norm.activation = activation;
  norm.scale_initializer = Constant(scale);
  return {Conv2D(parameters, name, in, out,
                 {.kernel = {kernel, kernel},
                  .stride = {stride, stride},
                  .padding = Padding::kSymmetric,
                  .bias = false,
                  .kernel_initializer = Normal(0.0F, static_cast<float>(std::sqrt(2.0 / fan_out)),
                                               o.seed, name + "/kernel")}),
          BatchNorm(parameters, name + "/norm", out, std::move(norm))};
}

ResNet::Block ResNet::MakeBlock(ParameterSet& parameters, const ResNetOptions& o,
                                const std::string& name, std::int64_t in, std::int64_t width,
                                std::int64_t stride) {
  const std::int64_t out = width * Expansion(o);
  Block block;
  const auto add = [&](std::int64_t from, std::int64_t to, std::int64_t kernel, std::int64_t by,
                       float scale = 1) {
    block.units.push_back(MakeUnit(parameters, o,
                                   name + "/conv" + std::to_string(block.units.size() + 1), from,
                                   to, kernel, by, Activation::kRelu, scale));
  };
  const float last_scale = o.zero_last_scale ? 0.0F : 1.0F;
  if (IsBottleneck(o)) {
    add(in, width, 1, 1);
    add(width, width, 3, stride);
    add(width, out, 1, 1, last_scale);
  } else {
    add(in, width, 3, stride);
    add(width, out, 3, 1, last_scale);
  }
  if (in != out || stride != 1) {
    block.shortcut =
        MakeUnit(parameters, o, name + "/shortcut", in, out, 1, stride, Activation::kNone);
  }
  return block;
}

std::vector<ResNet::Block> ResNet::MakeBlocks(ParameterSet& parameters, const ResNetOptions& o) {
  std::vector<Block> blocks;
  std::int64_t in = o.width;
  for (std::size_t stage = 0; stage < kStages; ++stage) {
    const std::int64_t width = o.width << stage;
    for (int b = 0; b < BlocksOf(o)[stage]; ++b) {
      blocks.push_back(MakeBlock(
          parameters, o, "stage" + std::to_string(stage + 1) + "/block" + std::to_string(b + 1), in,
          width, stage > 0 && b == 0 ? 2 : 1));
      in = width * Expansion(o);
    }
  }
  return blocks;
}

ResNet::ResNet(ParameterSet& parameters, const ResNetOptions& options)
    : small_images_(Checked(options).small_images),
      stem_(MakeUnit(parameters, options, "stem", options.channels, options.width,
                     small_images_ ? 3 : 7, small_images_ ? 1 : 2)),
      blocks_(MakeBlocks(parameters, options)),
      logits_(parameters, "logits", (options.width << (kStages - 1)) * Expansion(options),
              options.classes,
              {.kernel_initializer = Normal(0.0F, 0.01F, options.seed, "logits/kernel")}) {}

Variable ResNet::Apply(const Block& block, const Variable& x) {
  Variable y = x;
  for (std::size_t u = 0; u + 1 < block.units.size(); ++u) {
    y = block.units[u](y);
  }
  const Unit& last = block.units.back();
  return last.norm(last.conv(y), block.shortcut ? (*block.shortcut)(x) : x);
}

Variable ResNet::Logits(const Variable& images) const {
  Variable x = stem_(images);
  if (!small_images_) {
    x = MaxPool2D(x, {.window = {3, 3}, .stride = {2, 2}, .padding = Padding::kSymmetric});
  }
  for (const Block& block : blocks_) {
    x = Apply(block, x);
  }
  return logits_(GlobalAvgPool2D(x));
}

}  // namespace cohort::nn
