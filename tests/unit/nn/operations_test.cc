#include <cohort/nn/operations.h>
#include <gmock/gmock.h>

#include <cmath>

#include "oracles.h"

namespace cohort::nn {
namespace {

using testing::DistinctTensor;
using testing::ExpectGradients;
using testing::RandomTensor;

struct ActivationCase {
  const char* name;
  Activation f;
  double (*oracle)(double);
};

class ActivationTest : public ::testing::TestWithParam<ActivationCase> {};

TEST_P(ActivationTest, IsTheFormula) {
  for (const Shape& shape : {Shape{7, 301}, Shape{1}, Shape{0, 4}, Shape{64, 1024}}) {
    const Tensor x = RandomTensor(shape, 1, -9, 9);
    Bench bench;
    const Tensor y =
        bench.Run({x}, [](Tape&, const auto& in) { return Activate(in[0], GetParam().f); },
                  {.intra_op_threads = 2});
    Doubles want = AsDoubles(x);
    for (double& v : want) {
      v = GetParam().oracle(v);
    }
    ExpectNear(y.data<float>(), want, 2e-6);
  }
}

TEST_P(ActivationTest, HasTheGradientsOfFiniteDifferences) {
  ParameterSet none;
  none.Build();
  ExpectGradients(none, {DistinctTensor({3, 19}, 2)},
                  [](Tape&, const auto& in) { return Activate(in[0], GetParam().f); });
}

INSTANTIATE_TEST_SUITE_P(
    All, ActivationTest,
    ::testing::Values(
        ActivationCase{"relu", Activation::kRelu, [](double x) { return std::max(x, 0.0); }},
        ActivationCase{"gelu", Activation::kGelu,
                       [](double x) {
                         return 0.5 * x *
                                (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
                       }},
        ActivationCase{"sigmoid", Activation::kSigmoid,
                       [](double x) { return 1 / (1 + std::exp(-x)); }},
        ActivationCase{"tanh", Activation::kTanh, [](double x) { return std::tanh(x); }}),
    [](const auto& test) { return test.param.name; });

TEST(Gelu, DiffersLittleFromTheExactForm) {
  const Tensor x = RandomTensor({1000}, 1, -5, 5);
  Bench bench;
  const Tensor y = bench.Run({x}, [](Tape&, const auto& in) { return Gelu(in[0]); });
  for (std::size_t i = 0; i < 1000; ++i) {
    const double v = x.data<float>()[i];
    EXPECT_NEAR(y.data<float>()[i], v * 0.5 * (1 + std::erf(v / std::sqrt(2.0))), 5e-4);
  }
}

TEST(Activations, StayFiniteFarOut) {
  const std::vector<float> far = {-1e30F, -200, 200, 1e30F};
  const Tensor x = Tensor::Of<float>({4}, far);
  Bench bench;
  const Tensor s = bench.Run({x}, [](Tape&, const auto& in) { return Sigmoid(in[0]); });
  EXPECT_THAT(s.data<float>(), ::testing::ElementsAre(0, 0, 1, 1));
  const Tensor t = bench.Run({x}, [](Tape&, const auto& in) { return Tanh(in[0]); });
  EXPECT_THAT(t.data<float>(), ::testing::ElementsAre(-1, -1, 1, 1));
}

TEST(Softmax, IsTheFormulaAlsoForLargeValues) {
  const Tensor x = RandomTensor({5, 7}, 3, 900, 905);
  Doubles want = AsDoubles(x);
  for (std::size_t r = 0; r < 5; ++r) {
    double sum = 0;
    for (std::size_t c = 0; c < 7; ++c) {
      sum += want[r * 7 + c] = std::exp(want[r * 7 + c] - 905);
    }
    for (std::size_t c = 0; c < 7; ++c) {
      want[r * 7 + c] /= sum;
    }
  }
  Bench bench;
  ExpectNear(bench.Run({x}, [](Tape&, const auto& in) { return Softmax(in[0]); }).data<float>(),
             want);
  EXPECT_EQ(bench
                .Run({Tensor(DType::kFloat32, {0, 7})},
                     [](Tape&, const auto& in) { return Softmax(in[0]); })
                .elements(),
            0);
}

TEST(Softmax, HasTheGradientsOfFiniteDifferences) {
  ParameterSet none;
  none.Build();
  ExpectGradients(none, {RandomTensor({3, 5}, 1)},
                  [](Tape&, const auto& in) { return Softmax(in[0]); });
}

TEST(AddAndMultiply, AreElementByElement) {
  const Tensor a = RandomTensor({3, 4}, 1);
  const Tensor b = RandomTensor({3, 4}, 2);
  Doubles sum = AsDoubles(a);
  Doubles product = sum;
  for (std::size_t i = 0; i < sum.size(); ++i) {
    sum[i] += AsDoubles(b)[i];
    product[i] *= AsDoubles(b)[i];
  }
  Bench bench;
  ExpectNear(
      bench.Run({a, b}, [](Tape&, const auto& in) { return Add(in[0], in[1]); }).data<float>(),
      sum);
  ExpectNear(
      bench.Run({a, b}, [](Tape&, const auto& in) { return Multiply(in[0], in[1]); }).data<float>(),
      product);
}

TEST(AddAndMultiply, HaveTheGradientsOfFiniteDifferences) {
  ParameterSet none;
  none.Build();
  const std::vector<Tensor> inputs = {RandomTensor({2, 3}, 1), RandomTensor({2, 3}, 2)};
  ExpectGradients(none, inputs, [](Tape&, const auto& in) { return Add(in[0], in[1]); });
  ExpectGradients(none, inputs, [](Tape&, const auto& in) { return Multiply(in[0], in[1]); });
}

TEST(AddAndMultiply, TakeTheSameOperandTwice) {
  ParameterSet none;
  none.Build();
  const std::vector<Tensor> inputs = {RandomTensor({2, 3}, 1)};
  ExpectGradients(none, inputs, [](Tape&, const auto& in) { return Add(in[0], in[0]); });
  ExpectGradients(none, inputs, [](Tape&, const auto& in) { return Multiply(in[0], in[0]); });
  ExpectGradients(none, inputs, [](Tape&, const auto& in) {
    const Variable y = Tanh(in[0]);
    return Add(Multiply(y, in[0]), Add(y, Reshape(in[0], {2, 3})));
  });
}

TEST(Add, RejectsOtherShapes) {
  Bench bench;
  EXPECT_THROW(bench.Run({RandomTensor({2, 3}, 1), RandomTensor({3, 2}, 1)},
                         [](Tape&, const auto& in) { return Add(in[0], in[1]); }),
               ContractError);
}

TEST(DotInteraction, IsTheFirstAndTheDotProductOfEachPair) {
  for (const Shape& shape : {Shape{3, 26, 16}, Shape{2, 16, 16}, Shape{4, 4, 7}, Shape{2, 2, 33},
                             Shape{1, 1, 1}, Shape{0, 4, 4}, Shape{600, 8, 8}, Shape{3, 0, 5}}) {
    SCOPED_TRACE(shape.ToString());
    const std::int64_t features = shape[1];
    const std::int64_t width = shape[2];
    const Tensor first = RandomTensor({shape[0], width}, 1);
    const Tensor rest = RandomTensor(shape, 2);
    Bench bench;
    const Tensor y =
        bench.Run({first, rest}, [](Tape&, const auto& v) { return DotInteraction(v[0], v[1]); },
                  {.intra_op_threads = 2});
    EXPECT_EQ(y.shape(), Shape({shape[0], width + features * (features + 1) / 2}));
    Doubles want;
    for (std::int64_t b = 0; b < shape[0]; ++b) {
      const auto at = [&](std::int64_t f, std::int64_t c) {
        return double{
            f == 0
                ? first.data<float>()[static_cast<std::size_t>(b * width + c)]
                : rest.data<float>()[static_cast<std::size_t>((b * features + f - 1) * width + c)]};
      };
      for (std::int64_t c = 0; c < width; ++c) {
        want.push_back(at(0, c));
      }
      for (std::int64_t i = 0; i <= features; ++i) {
        for (std::int64_t j = 0; j < i; ++j) {
          double dot = 0;
          for (std::int64_t c = 0; c < width; ++c) {
            dot += at(i, c) * at(j, c);
          }
          want.push_back(dot);
        }
      }
    }
    ExpectNear(y.data<float>(), want);
  }
}

TEST(DotInteraction, HasTheGradientsOfFiniteDifferences) {
  ParameterSet none;
  none.Build();
  const auto run = [](Tape&, const auto& in) { return DotInteraction(in[0], in[1]); };
  for (const Shape& shape : {Shape{2, 3, 3}, Shape{1, 18, 2}, Shape{2, 2, 18}, Shape{3, 6, 16}}) {
    ExpectGradients(none, {RandomTensor({shape[0], shape[2]}, 2), RandomTensor(shape, 3)}, run);
  }
  Bench bench;
  const Tensor pair = RandomTensor({2, 3}, 1);
  EXPECT_THROW(bench.Run({pair, pair}, run), ContractError);
  EXPECT_THROW(bench.Run({pair, RandomTensor({2, 4, 5}, 1)}, run), ContractError) << "other width";
  EXPECT_THROW(bench.Run({pair, RandomTensor({3, 4, 3}, 1)}, run), ContractError) << "other batch";
}

TEST(Concat, JoinsAlongEachAxis) {
  const std::vector<float> a = {1, 2, 3, 4};
  const std::vector<float> b = {5, 6};
  Bench bench;
  const Tensor rows = bench.Run({Tensor::Of<float>({2, 2}, a), Tensor::Of<float>({1, 2}, b)},
                                [](Tape&, const auto& in) {
                                  return Concat({in[0], in[1]}, 0);
                                });
  EXPECT_EQ(rows.shape(), Shape({3, 2}));
  EXPECT_THAT(rows.data<float>(), ::testing::ElementsAre(1, 2, 3, 4, 5, 6));
  const Tensor columns = bench.Run({Tensor::Of<float>({2, 2}, a), Tensor::Of<float>({2, 1}, b)},
                                   [](Tape&, const auto& in) {
                                     return Concat({in[0], in[1]}, -1);
                                   });
  EXPECT_EQ(columns.shape(), Shape({2, 3}));
  EXPECT_THAT(columns.data<float>(), ::testing::ElementsAre(1, 2, 5, 3, 4, 6));
}

TEST(Concat, HasTheGradientsOfFiniteDifferences) {
  ParameterSet none;
  none.Build();
  for (const int axis : {0, 1, 2}) {
    std::vector<std::int64_t> dims = {2, 3, 2};
    dims[static_cast<std::size_t>(axis)] += 1;
    ExpectGradients(
        none,
        {RandomTensor({2, 3, 2}, 1), RandomTensor(Shape(dims), 2), RandomTensor({2, 3, 2}, 3)},
        [&](Tape&, const auto& in) { return Concat(in, axis); });
  }
  Bench bench;
  EXPECT_THROW(bench.Run({RandomTensor({2, 3}, 1), RandomTensor({3, 2}, 1)},
                         [](Tape&, const auto& in) { return Concat(in, 0); }),
               ContractError);
}

TEST(Sum, AddsUpAlongEachAxis) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  const Tensor x = Tensor::Of<float>({2, 3, 2}, values);
  const auto sum = [&](int axis) {
    Bench bench;
    return bench.Run({x}, [&](Tape&, const auto& in) { return Sum(in[0], axis); });
  };
  EXPECT_EQ(sum(0).shape(), Shape({3, 2}));
  EXPECT_THAT(sum(0).data<float>(), ::testing::ElementsAre(8, 10, 12, 14, 16, 18));
  EXPECT_THAT(sum(1).data<float>(), ::testing::ElementsAre(9, 12, 27, 30));
  EXPECT_THAT(sum(-1).data<float>(), ::testing::ElementsAre(3, 7, 11, 15, 19, 23));
}

TEST(Sum, HasTheGradientsOfFiniteDifferences) {
  ParameterSet none;
  none.Build();
  for (const int axis : {0, 1, 2}) {
    ExpectGradients(none, {RandomTensor({2, 3, 2}, 1)},
                    [&](Tape&, const auto& in) { return Sum(Multiply(in[0], in[0]), axis); });
  }
}

TEST(Reshape, KeepsTheElements) {
  Bench bench;
  const Tensor x = RandomTensor({2, 3, 4}, 1);
  const Tensor y = bench.Run({x}, [](Tape&, const auto& in) { return Flatten(in[0]); });
  EXPECT_EQ(y.shape(), Shape({2, 12}));
  ExpectNear(y.data<float>(), AsDoubles(x));
  EXPECT_EQ(bench
                .Run({Tensor(DType::kFloat32, {0, 3, 4})},
                     [](Tape&, const auto& in) { return Flatten(in[0]); })
                .shape(),
            Shape({0, 12}));
  ParameterSet none;
  none.Build();
  ExpectGradients(none, {x}, [](Tape&, const auto& in) {
    return Tanh(Reshape(Sigmoid(in[0]), {4, 6}));
  });
}

TEST(Dropout, KeepsTheShareAndTheMean) {
  Bench bench;
  Tensor ones(DType::kFloat32, {100, 1000});
  std::fill(ones.data<float>().begin(), ones.data<float>().end(), 1.0F);
  const Tensor y =
      bench.Run({ones}, [](Tape&, const auto& in) { return Dropout(in[0], 0.3F, "d"); });
  const auto kept = std::count(y.data<float>().begin(), y.data<float>().end(), 1.0F / 0.7F);
  const auto gone = std::count(y.data<float>().begin(), y.data<float>().end(), 0.0F);
  EXPECT_EQ(kept + gone, 100'000);
  EXPECT_NEAR(static_cast<double>(gone), 30'000, 600);  // four deviations
}

TEST(Dropout, IsAFunctionOfSeedLayerStepAndExample) {
  Bench bench;
  const Tensor x = RandomTensor({6, 5}, 1, 1, 2);
  const auto run = [&](const Tensor& in, TapeOptions options, const char* name) {
    const Tensor y = bench.Run(
        {in}, [&](Tape&, const auto& v) { return Dropout(v[0], 0.5F, name); }, options);
    return std::vector<float>(y.data<float>().begin(), y.data<float>().end());
  };
  const auto whole = run(x, {.seed = 1, .step = 3}, "d");
  EXPECT_EQ(whole, run(x, {.seed = 1, .step = 3, .intra_op_threads = 2}, "d"));
  EXPECT_NE(whole, run(x, {.seed = 2, .step = 3}, "d"));
  EXPECT_NE(whole, run(x, {.seed = 1, .step = 4}, "d"));
  EXPECT_NE(whole, run(x, {.seed = 1, .step = 3}, "other"));
  EXPECT_EQ(run(x, {.training = false, .seed = 1}, "d"),
            std::vector<float>(x.data<float>().begin(), x.data<float>().end()));
  // Two replicas with a part each draw what one draws for the whole.
  auto parts = run(x.Rows(0, 1), {.seed = 1, .step = 3}, "d");
  const auto rest = run(x.Rows(1, 6), {.seed = 1, .step = 3, .first_example = 1}, "d");
  parts.insert(parts.end(), rest.begin(), rest.end());
  EXPECT_EQ(whole, parts);
}

TEST(Dropout, HasTheGradientsOfFiniteDifferences) {
  ParameterSet none;
  none.Build();
  ExpectGradients(none, {RandomTensor({4, 5}, 1)},
                  [](Tape&, const auto& in) { return Dropout(in[0], 0.4F, "d"); },
                  {.tape = {.seed = 5, .step = 2}});
}

}  // namespace
}  // namespace cohort::nn
