#include <cohort/nn/gpt.h>

#include <cohort/nn/initializers.h>

#include <cmath>

#include "checks.h"

namespace cohort::nn {
namespace {

constexpr float kDeviation = 0.02F;

GptOptions Checked(const GptOptions& o) {
  Require(o.vocabulary >= 1 && o.length >= 1 && o.layers >= 0 && o.heads >= 1 && o.width >= 1,
          "a Gpt of at least one token, place, head and element");
  Require(o.width % o.heads == 0, "a Gpt whose number of heads divides its width");
  Require(0.0F <= o.dropout && o.dropout < 1.0F, "a dropout rate in [0, 1)");
  return o;
}

Initializer Table(const GptOptions& o, const std::string& name) {
  return Normal(0.0F, kDeviation, o.seed, name + "/table");
}

// The options of dense layer `name`.
DenseOptions Weights(const GptOptions& o, const std::string& name, float deviation) {
  return {.kernel_initializer = Normal(0.0F, deviation, o.seed, name + "/kernel")};
}

// The deviation of layers whose output is added to a residual connection, of which there are two
// a block.
float Residual(const GptOptions& o) {
  return kDeviation / std::sqrt(2.0F * static_cast<float>(o.layers));
}

}  // namespace

Gpt::Block::Block(ParameterSet& parameters, const std::string& block, const GptOptions& o)
    : name(block),
      dropout(o.dropout),
      attention_norm(parameters, name + "/attention_norm", o.width),
      attention(parameters, name + "/attention", o.width, o.heads,
                {.qkv = Weights(o, name + "/attention/qkv", kDeviation),
                 .out = Weights(o, name + "/attention/out", Residual(o))}),
      mlp_norm(parameters, name + "/mlp_norm", o.width),
      mlp(parameters, name + "/up", name + "/down", o.width, 4 * o.width,
          Weights(o, name + "/up", kDeviation), Weights(o, name + "/down", Residual(o))) {}

Variable Gpt::Block::operator()(const Variable& x) const {
  const Variable attended =
      Add(x, Dropout(attention(attention_norm(x)), dropout, name + "/attention"));
  return Add(attended, Dropout(mlp(mlp_norm(attended)), dropout, name + "/mlp"));
}

Gpt::Gpt(ParameterSet& parameters, const GptOptions& options)
    : dropout_(Checked(options).dropout),
      tokens_(parameters, "tokens", options.vocabulary, options.width,
              {.initializer = Table(options, "tokens")}),
      positions_(parameters, "positions", options.length, options.width,
                 {.initializer = Table(options, "positions")}),
      blocks_([&] {
        std::vector<Block> blocks;
        for (std::int64_t i = 0; i < options.layers; ++i) {
          blocks.emplace_back(parameters, "block" + std::to_string(i + 1), options);
        }
        return blocks;
      }()),
      norm_(parameters, "norm", options.width) {}

Variable Gpt::Hidden(Tape& tape, const Tensor& tokens) const {
  RequireShape(tokens.shape().rank() == 2, "Gpt", tokens.shape(), "[batch, length]");
  Variable x = Dropout(positions_(tokens_(tape, tokens)), dropout_, "embedding");
  for (const Block& block : blocks_) {
    x = block(x);
  }
  return norm_(x);
}

Variable Gpt::Loss(Tape& tape, const Tensor& tokens, const Tensor& next) const {
  return tokens_.ScoresLoss(Hidden(tape, tokens), next);
}

Variable Gpt::Logits(Tape& tape, const Tensor& tokens) const {
  const Variable scores = tokens_.Scores(Hidden(tape, tokens));
  return Reshape(scores, {tokens.elements(), scores.shape()[2]});
}

}  // namespace cohort::nn
