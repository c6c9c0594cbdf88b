// Gpt: the language model of Radford et al., "Language models are unsupervised multitask learners",
// 2019 (GPT-2): embeddings of tokens and positions, blocks of attention and a network of two layers
// (4 * width, gelu), each behind a layer norm and beside a residual connection, a last layer norm,
// and scores that are products with the token table.
//
// First values are the paper's: normal with deviation 0.02, divided by sqrt(2 * layers) where a
// residual connection is added to; biases 0.
//
// Thread rules: Logits from any number of replicas at the same time.

#pragma once

#include <cohort/nn/layers.h>
#include <cohort/nn/tape.h>

#include <cstdint>
#include <string>
#include <vector>

namespace cohort::nn {

struct GptOptions {
  std::int64_t vocabulary = 50'257;
  std::int64_t length = 1024;  // the most tokens of a sequence
  std::int64_t layers = 12;
  std::int64_t heads = 12;
  std::int64_t width = 768;
  // Of embeddings and of what is added to a residual connection; attention's weights are never
  // dropped.
  float dropout = 0;
  std::uint64_t seed = 0;
};

class Gpt {
 public:
  // Declares the parameters; Build is the caller's. ContractError for sizes that make no model.
  Gpt(ParameterSet& parameters, const GptOptions& options);
  // [batch * length, vocabulary]: the scores of the token behind each of tokens [batch, length]
  // (int64 or int32).
  Variable Logits(Tape& tape, const Tensor& tokens) const;
  // The mean softmax cross-entropy of Logits and the tokens behind each, as many: faster than
  // SoftmaxCrossEntropy in 16 bits (Embedding::ScoresLoss).
  Variable Loss(Tape& tape, const Tensor& tokens, const Tensor& next) const;

 private:
  struct Block {
    Block(ParameterSet& parameters, const std::string& name, const GptOptions& options);
    Variable operator()(const Variable& x) const;

    std::string name;
    float dropout;
    LayerNorm attention_norm;
    SelfAttention attention;
    LayerNorm mlp_norm;
    FeedForward mlp;
  };

  Variable Hidden(Tape& tape, const Tensor& tokens) const;

  float dropout_;
  Embedding tokens_;
  PositionEmbedding positions_;
  std::vector<Block> blocks_;
  LayerNorm norm_;
};

}  // namespace cohort::nn
