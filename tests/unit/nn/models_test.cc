#include <cohort/nn/models.h>

#include <cohort/nn/losses.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <gmock/gmock.h>

#include "oracles.h"

namespace cohort::nn {
namespace {

using testing::CollectingSink;
using testing::RandomTensor;

class ModelTest : public ::testing::TestWithParam<const char*> {};

TEST_P(ModelTest, LearnsAFewExamplesByHeart) {
  ParameterSet parameters;
  const auto model =
      OrThrow(MakeImageModel(GetParam(), parameters, {.image = {8, 9, 2}, .classes = 3}));
  parameters.Build();
  const auto stream = MakeInlineStream();
  Workspace workspace;
  const Tensor images = RandomTensor({6, 8, 9, 2}, 1);
  const std::vector<std::int64_t> classes = {0, 1, 2, 2, 1, 0};
  const Tensor labels = Tensor::Of<std::int64_t>({6}, classes);
  const auto optimizer = Sgd({.learning_rate = 0.1});
  float first = 0;
  float last = 0;
  for (int step = 1; step <= 40; ++step) {
    Tape tape(parameters, *stream, workspace, {.step = step, .intra_op_threads = 1});
    CollectingSink sink(parameters);
    const Variable loss = SoftmaxCrossEntropy(model->Logits(tape.Input(images)), labels);
    tape.Backward(loss, sink);
    ASSERT_EQ(tape.Finish(), OkStatus());
    last = loss.value();
    first = step == 1 ? last : first;
    for (int p = 0; p < parameters.size(); ++p) {
      optimizer->Apply({.value = parameters.value(p), .gradient = sink.gradient(p), .step = step});
    }
  }
  EXPECT_GT(first, 0.8F);
  EXPECT_LT(last, 0.3F * first);
}

TEST_P(ModelTest, TakesAnEmptyBatch) {
  ParameterSet parameters;
  const auto model = OrThrow(MakeImageModel(GetParam(), parameters));
  parameters.Build();
  const auto stream = MakeInlineStream();
  Workspace workspace;
  Tape tape(parameters, *stream, workspace);
  CollectingSink sink(parameters, 0.0F);
  const Variable loss =
      SoftmaxCrossEntropy(model->Logits(tape.Input(Tensor(DType::kFloat32, {0, 28, 28, 1}))),
                          Tensor(DType::kInt64, {0}));
  tape.Backward(loss, sink);
  ASSERT_EQ(tape.Finish(), OkStatus());
  EXPECT_EQ(loss.value(), 0.0F);
  EXPECT_EQ(sink.ready().size(), static_cast<std::size_t>(parameters.size()));
  for (int p = 0; p < parameters.size(); ++p) {
    EXPECT_THAT(sink.gradient(p), ::testing::Each(0.0F));
  }
}

TEST_P(ModelTest, TwoRunsAreBitwiseEqual) {
  std::vector<float> results[2];
  for (auto& result : results) {
    ParameterSet parameters;
    const auto model = OrThrow(MakeImageModel(GetParam(), parameters));
    parameters.Build();
    const auto stream = MakeInlineStream();
    Workspace workspace;
    Tape tape(parameters, *stream, workspace, {.intra_op_threads = 2});
    CollectingSink sink(parameters);
    tape.Backward(testing::Dot(model->Logits(tape.Input(RandomTensor({16, 28, 28, 1}, 1))), 1),
                  sink);
    ASSERT_EQ(tape.Finish(), OkStatus());
    for (int p = 0; p < parameters.size(); ++p) {
      result.insert(result.end(), sink.gradient(p).begin(), sink.gradient(p).end());
    }
  }
  EXPECT_EQ(results[0], results[1]);
}

INSTANTIATE_TEST_SUITE_P(All, ModelTest, ::testing::Values("linear", "mlp", "cnn"),
                         [](const auto& test) { return std::string(test.param); });

TEST(MakeImageModel, SaysWhatItCannotMake) {
  ParameterSet parameters;
  const auto message = [&](std::string_view name, const ImageModelOptions& options) {
    return MakeImageModel(name, parameters, options).status().message();
  };
  EXPECT_THAT(message("resnet", {}), ::testing::HasSubstr("unknown model 'resnet'"));
  EXPECT_THAT(message("cnn", {.image = {3, 3, 1}}), ::testing::HasSubstr("at least 4 by 4"));
  EXPECT_THAT(message("mlp", {.image = {784}}), ::testing::HasSubstr("[height,width,channels]"));
  EXPECT_THAT(message("mlp", {.classes = 0}), ::testing::HasSubstr("classes at least 1"));
  EXPECT_EQ(parameters.size(), 0);
}

// Every id's row is its number in each element.
class NumberRows final : public RowSource {
 public:
  Status Lookup(int, std::span<const std::uint64_t> ids, bool, std::span<float> rows) override {
    const std::size_t width = rows.size() / ids.size();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i] = 0.1F * static_cast<float>(ids[i / width]);
    }
    return {};
  }
};

TEST(Dlrm, IsTheFormula) {
  ParameterSet parameters;
  const Dlrm model(parameters, {.integers = 2,
                                .categories = 2,
                                .width = 3,
                                .bottom = {},
                                .top = {},
                                .table = {.optimizer = Sgd()->config()}});
  parameters.Build();
  NumberRows rows;
  parameters.SetRows(&rows);
  // One layer each: bottom = relu(integers K), logit = [bottom, products] . w.
  const auto fill = [&](const char* name, std::initializer_list<float> values) {
    const auto value = parameters.value(parameters.Find(name));
    ASSERT_EQ(value.size(), values.size()) << name;
    std::ranges::copy(values, value.begin());
  };
  fill("bottom1/kernel", {1, 0, 2, 0, 1, -3});  // [2, 3]
  fill("logit/kernel", {1, 10, 100, 0.5F, 0.25F, 2});
  const auto stream = MakeInlineStream();
  Workspace workspace;
  Tape tape(parameters, *stream, workspace, {.intra_op_threads = 1});
  const std::vector<float> integers = {1, 2};
  const std::vector<std::int64_t> categories = {10, 20};  // vectors of 1 and 2
  const Variable logit = model.Logits(tape, Tensor::Of<float>({1, 2}, integers),
                                      Tensor::Of<std::int64_t>({1, 2}, categories));
  ASSERT_EQ(tape.Finish(), OkStatus());
  EXPECT_EQ(logit.shape(), Shape({1}));
  // bottom = (1, 2, 0); products: bottom.1 = 3, bottom.2 = 6, 1.2 = 6.
  EXPECT_FLOAT_EQ(logit.tensor().data<float>()[0], 1 + 20 + 0 + 1.5F + 1.5F + 12);
}

}  // namespace
}  // namespace cohort::nn
