#include <cohort/nn/layers.h>
#include <gmock/gmock.h>

#include "oracles.h"

namespace cohort::nn {
namespace {

using testing::ExpectGradients;
using testing::RandomTensor;

void Randomise(ParameterSet& parameters) {
  for (int p = 0; p < parameters.size(); ++p) {
    const Tensor values = RandomTensor(parameters[p].shape, 50 + static_cast<std::uint64_t>(p));
    std::copy_n(values.data<float>().begin(), values.elements(), parameters.value(p).begin());
  }
}

TEST(Attention, IsTheFormula) {
  Bench bench;
  const std::int64_t length = 3;
  const Tensor qkv = RandomTensor({1, length, 3 * 4}, 1);
  const Doubles x = AsDoubles(qkv);
  Doubles want(static_cast<std::size_t>(length * 4));
  for (std::size_t head = 0; head < 2; ++head) {
    for (std::size_t i = 0; i < 3; ++i) {
      Doubles p(i + 1);
      double sum = 0;
      for (std::size_t j = 0; j <= i; ++j) {
        double score = 0;
        for (std::size_t c = 0; c < 2; ++c) {
          score += x[i * 12 + head * 2 + c] * x[j * 12 + 4 + head * 2 + c];
        }
        sum += p[j] = std::exp(score / std::sqrt(2.0));
      }
      for (std::size_t j = 0; j <= i; ++j) {
        for (std::size_t c = 0; c < 2; ++c) {
          want[i * 4 + head * 2 + c] += p[j] / sum * x[j * 12 + 8 + head * 2 + c];
        }
      }
    }
  }
  const Tensor y =
      bench.Run({qkv}, [](Tape&, const auto& in) { return Attention(in[0], 2, true); });
  EXPECT_EQ(y.shape(), (Shape{1, length, 4}));
  ExpectNear(y.data<float>(), want);
}

TEST(Attention, HasTheGradientsOfFiniteDifferences) {
  for (const std::int64_t batch : {0, 2}) {
    for (const bool causal : {false, true}) {
      ParameterSet parameters;
      parameters.Build();
      ExpectGradients(parameters, {RandomTensor({batch, 5, 3 * 6}, 2)},
                      [&](Tape&, const auto& in) { return Attention(in[0], 3, causal); });
    }
  }
}

TEST(Attention, RefusesWhatDoesNotDivide) {
  Bench bench;
  const auto run = [&](const Shape& shape, std::int64_t heads) {
    bench.Run({RandomTensor(shape, 1)},
              [&](Tape&, const auto& in) { return Attention(in[0], heads, true); });
  };
  EXPECT_THROW(run({1, 2, 12}, 0), ContractError);
  EXPECT_THROW(run({1, 2, 12}, 3), ContractError);
  EXPECT_THROW(run({2, 12}, 2), ContractError);
  ParameterSet parameters;
  EXPECT_THROW(SelfAttention(parameters, "a", 6, 4), ContractError);
}

TEST(SelfAttention, HasTheGradientsOfFiniteDifferences) {
  ParameterSet parameters;
  const SelfAttention attention(parameters, "a", 6, 2);
  parameters.Build();
  Randomise(parameters);
  EXPECT_EQ(parameters[0].name, "a/qkv/kernel");
  EXPECT_EQ(parameters[0].shape, (Shape{6, 18}));
  EXPECT_EQ(parameters[2].name, "a/out/kernel");
  ExpectGradients(parameters, {RandomTensor({2, 4, 6}, 3)},
                  [&](Tape&, const auto& in) { return attention(in[0]); });
}

TEST(PositionEmbedding, AddsARowToEachPlace) {
  Bench bench;
  const PositionEmbedding positions(bench.parameters, "p", 4, 2);
  bench.parameters.Build();
  Randomise(bench.parameters);
  const Tensor x = RandomTensor({2, 3, 2}, 1);
  Doubles want = AsDoubles(x);
  for (std::size_t i = 0; i < want.size(); ++i) {
    want[i] += bench.parameters.value(0)[i % 6];
  }
  const auto add = [&](Tape&, const std::vector<Variable>& in) { return positions(in[0]); };
  ExpectNear(bench.Run({x}, add).data<float>(), want);
  EXPECT_THROW(bench.Run({RandomTensor({2, 5, 2}, 1)}, add), ContractError);
  EXPECT_THROW(bench.Run({RandomTensor({2, 3, 1}, 1)}, add), ContractError);
}

TEST(PositionEmbedding, HasTheGradientsOfFiniteDifferences) {
  for (const std::int64_t batch : {0, 3}) {
    for (const std::int64_t length : {2, 4}) {
      ParameterSet parameters;
      const PositionEmbedding positions(parameters, "p", 4, 3);
      parameters.Build();
      ExpectGradients(parameters, {RandomTensor({batch, length, 3}, 2)},
                      [&](Tape&, const auto& in) { return positions(in[0]); });
    }
  }
}

// The table is used twice: looked up, and as a matrix.
TEST(Embedding, ScoresShareItsTable) {
  ParameterSet parameters;
  const Embedding embedding(parameters, "e", 5, 3);
  parameters.Build();
  Randomise(parameters);
  const std::vector<std::int32_t> ids = {4, 0, 4, 2};
  const Tensor tokens = Tensor::Of<std::int32_t>({2, 2}, ids);
  ExpectGradients(parameters, {RandomTensor({2, 2, 3}, 1)}, [&](Tape& tape, const auto& in) {
    return embedding.Scores(Multiply(embedding(tape, tokens), in[0]));
  });
  ExpectGradients(parameters, {RandomTensor({0, 3}, 1)},
                  [&](Tape&, const auto& in) { return embedding.Scores(in[0]); });

  Bench bench;
  const Embedding sparse(bench.parameters, "s", 5, 3, {.sparse_gradient = true});
  EXPECT_THROW(bench.Run({RandomTensor({2, 3}, 1)},
                         [&](Tape&, const auto& in) { return sparse.Scores(in[0]); }),
               ContractError);
}

}  // namespace
}  // namespace cohort::nn
