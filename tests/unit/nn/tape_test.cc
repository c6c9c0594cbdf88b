#include <cohort/nn/tape.h>

#include <cohort/nn/initializers.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/optim/row_source.h>
#include <gmock/gmock.h>

#include "oracles.h"
#include "testing/late_stream.h"

namespace cohort::nn {
namespace {

using testing::CollectingSink;
using ::testing::Each;
using ::testing::ElementsAre;
using testing::ExpectGradients;
using testing::RandomTensor;

Initializer Random(std::uint64_t seed) { return Uniform(-1.0F, 1.0F, seed, "test"); }

TEST(Tape, ParametersAreReadyAsEarlyAsPossibleInBackwardOrder) {
  Bench bench;
  const Dense first(bench.parameters, "first", 3, 4);                 // 0, 1
  const Dense unused(bench.parameters, "unused", 3, 4);               // 2, 3
  const Dense last(bench.parameters, "last", 4, 2, {.bias = false});  // 4
  bench.parameters.Build();
  Tape tape(bench.parameters, *bench.stream, bench.workspace);
  const Variable x = tape.Input(RandomTensor({5, 3}, 1));
  const Variable aside = unused(x);  // the loss does not depend on it
  const Variable loss = MeanSquaredError(last(first(x)), Tensor(DType::kFloat32, {5, 2}));
  CollectingSink sink(bench.parameters);
  tape.Backward(loss, sink);
  ASSERT_EQ(tape.Finish(), OkStatus());
  EXPECT_THAT(sink.ready(), ElementsAre(4, 1, 0, 2, 3));
  EXPECT_THAT(sink.gradient(2), Each(0.0F));
  EXPECT_EQ(aside.shape(), Shape({5, 4}));
}

TEST(Tape, ASharedParameterIsReadyAtItsLastUseAndItsGradientsAddUp) {
  ParameterSet parameters;
  const Dense shared(parameters, "shared", 3, 3, {.kernel_initializer = Random(1)});
  const Dense head(parameters, "head", 3, 2, {.kernel_initializer = Random(2)});
  parameters.Build();
  const auto forward = [&](Tape&, const std::vector<Variable>& in) {
    return head(Tanh(shared(Tanh(shared(in[0])))));
  };
  ExpectGradients(parameters, {RandomTensor({4, 3}, 1)}, forward);

  const auto stream = MakeInlineStream();
  Workspace workspace;
  Tape tape(parameters, *stream, workspace);
  CollectingSink sink(parameters);
  tape.Backward(testing::Dot(forward(tape, {tape.Input(RandomTensor({4, 3}, 1))}), 1), sink);
  ASSERT_EQ(tape.Finish(), OkStatus());
  EXPECT_THAT(sink.ready(), ElementsAre(3, 2, 1, 0));
}

TEST(Tape, AFrozenParameterGetsNoGradient) {
  ParameterSet parameters;
  const int frozen = parameters.Add("frozen", {2, 2}, Random(1), false);
  const Dense dense(parameters, "d", 2, 2);
  parameters.Build();
  const auto stream = MakeInlineStream();
  Workspace workspace;
  Tape tape(parameters, *stream, workspace);
  CollectingSink sink(parameters);  // fails on parameters that are not trained
  tape.Backward(testing::Dot(dense(tape.Input(RandomTensor({1, 2}, 1))), 1), sink);
  ASSERT_EQ(tape.Finish(), OkStatus());
  EXPECT_EQ(frozen, 0);
  EXPECT_THAT(sink.ready(), ElementsAre(2, 1));
}

TEST(Tape, SteadyStepsTakeNoMoreMemory) {
  Bench bench;
  const Dense a(bench.parameters, "a", 20, 64, {.activation = Activation::kRelu});
  const Dense b(bench.parameters, "b", 64, 10);
  bench.parameters.Build();
  CollectingSink* last = nullptr;
  std::int64_t after_first = 0;
  for (int step = 0; step < 5; ++step) {
    CollectingSink sink(bench.parameters);
    last = &sink;
    Tape tape(bench.parameters, *bench.stream, bench.workspace);
    tape.Backward(testing::Dot(b(a(tape.Input(RandomTensor({32, 20}, 1)))), 1), *last);
    ASSERT_EQ(tape.Finish(), OkStatus());
    if (step == 0) {
      after_first = bench.workspace.bytes();
    }
    EXPECT_EQ(bench.workspace.bytes(), after_first);
  }
  EXPECT_GT(after_first, 0);
}

TEST(Tape, AResultOutlivesTapeAndWorkspace) {
  Tensor kept;
  {
    Bench bench;
    kept = bench.Run({RandomTensor({2, 2}, 1)},
                     [](Tape&, const auto& in) { return Add(in[0], in[0]); });
    bench.Run({RandomTensor({2, 2}, 2)}, [](Tape&, const auto& in) { return Relu(in[0]); });
  }
  const Tensor x = RandomTensor({2, 2}, 1);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(kept.data<float>()[i], 2 * x.data<float>()[i]);
  }
}

TEST(Tape, NothingIsRecordedOutsideOfTraining) {
  Bench bench;
  const Dense dense(bench.parameters, "d", 2, 2);
  bench.parameters.Build();
  Tape tape(bench.parameters, *bench.stream, bench.workspace, {.training = false});
  const Variable y = testing::Dot(dense(tape.Input(RandomTensor({2, 2}, 1))), 1);
  CollectingSink sink(bench.parameters);
  EXPECT_THROW(tape.Backward(y, sink), ContractError);
  EXPECT_EQ(tape.Finish(), OkStatus());
}

TEST(Tape, MisuseIsAContractError) {
  Bench bench;
  EXPECT_THROW(Tape(bench.parameters, *bench.stream, bench.workspace), ContractError);
  bench.parameters.Build();
  Tape tape(bench.parameters, *bench.stream, bench.workspace);
  Tape other(bench.parameters, *bench.stream, bench.workspace);
  CollectingSink sink(bench.parameters);
  const Variable x = tape.Input(RandomTensor({2}, 1), true);
  EXPECT_THROW(tape.Input(Tensor(DType::kUInt8, {2})), ContractError);
  EXPECT_THROW(Add(x, other.Input(RandomTensor({2}, 1))), ContractError);
  EXPECT_THROW(tape.Backward(x, sink), ContractError);  // two elements
  EXPECT_THROW((void)Variable().tape(), ContractError);
  const Variable loss = testing::Dot(x, 1);
  tape.Backward(loss, sink);
  EXPECT_THROW(tape.Backward(loss, sink), ContractError);
}

TEST(Tape, ResultsDoNotDependOnWhenTheStreamRuns) {
  ParameterSet parameters;
  const Conv2D conv(parameters, "c", 1, 4, {.activation = Activation::kRelu});
  const BatchNorm norm(parameters, "n", 4);
  const Dense dense(parameters, "d", 36, 3, {.activation = Activation::kGelu});
  parameters.Build();
  std::vector<std::vector<float>> gradients[2];
  for (const bool late : {false, true}) {
    const std::unique_ptr<Stream> stream = late ? testing::MakeLateStream(7) : MakeInlineStream();
    Workspace workspace;
    CollectingSink sink(parameters);
    {
      Tape tape(parameters, *stream, workspace, {.updates_averages = false, .intra_op_threads = 1});
      // Labels and images are gone before a late stream reads them, but for the tape.
      const Variable logits =
          dense(Flatten(MaxPool2D(norm(conv(tape.Input(RandomTensor({2, 6, 6, 1}, 1)))))));
      tape.Backward(MeanSquaredError(logits, RandomTensor({2, 3}, 2)), sink);
    }
    ASSERT_EQ(stream->Synchronize(DeadlineAfter(std::chrono::seconds(30))), OkStatus());
    for (int p = 0; p < parameters.size(); ++p) {
      gradients[late ? 1 : 0].push_back(sink.gradient(p));
    }
  }
  EXPECT_EQ(gradients[0], gradients[1]);
}

TEST(Embedding, LooksRowsUpAndAddsTheirGradients) {
  const std::vector<std::int64_t> ids = {2, 0, 2, 4};
  for (const bool sparse : {false, true}) {
    ParameterSet parameters;
    const Embedding embedding(parameters, "e", 5, 3,
                              {.sparse_gradient = sparse, .initializer = Random(1)});
    parameters.Build();
    const auto forward = [&](Tape& tape, const std::vector<Variable>&) {
      return embedding(tape, Tensor::Of<std::int64_t>({2, 2}, ids));
    };
    ExpectGradients(parameters, {}, forward);
    const auto stream = MakeInlineStream();
    Workspace workspace;
    Tape tape(parameters, *stream, workspace);
    const Variable y = forward(tape, {});
    ASSERT_EQ(y.shape(), Shape({2, 2, 3}));
    for (std::size_t i = 0; i < 12; ++i) {
      EXPECT_EQ(y.tensor().data<float>()[i],
                parameters.value(0)[static_cast<std::size_t>(ids[i / 3]) * 3 + i % 3]);
    }
    CollectingSink sink(parameters);
    tape.Backward(testing::Dot(y, 1), sink);
    ASSERT_EQ(tape.Finish(), OkStatus());
    EXPECT_EQ(sink.slices(), sparse ? 1 : 0);
  }
}

// Rows that are `100 * table + id` and remember what was asked of them.
class NumberedRows final : public RowSource, public GradientSink {
 public:
  Status Lookup(int table, std::span<const std::uint64_t> ids, bool training,
                std::span<float> rows) override {
    asked.emplace_back(ids.begin(), ids.end());
    trained = training;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i] = static_cast<float>(100 * table) + static_cast<float>(ids[i / 2]);
    }
    return {};
  }
  void AddRows(const RowGradients& given) override {
    tables.push_back(given.table);
    gradient_ids.emplace_back(given.ids.begin(), given.ids.end());
    gradients.emplace_back(given.values.begin(), given.values.end());
  }
  std::span<float> Accumulator(int) override { throw ContractError("no parameters"); }
  void AddSlices(int, const IndexedSlices&) override { throw ContractError("no parameters"); }
  void Ready(int) override { throw ContractError("no parameters"); }
  float loss_seed() const override { return 1; }

  std::vector<std::vector<std::uint64_t>> asked;
  bool trained = false;
  std::vector<int> tables;
  std::vector<std::vector<std::uint64_t>> gradient_ids;
  std::vector<std::vector<float>> gradients;
};

TEST(Embedding, OfATableLooksUpWhereTheRowsAre) {
  Bench bench;
  const Embedding first(bench.parameters, "first", 0, 2, {.table = TableSpec()});
  const Embedding second(bench.parameters, "second", 9, 2, {.seed = 4, .table = TableSpec()});
  bench.parameters.Build();
  EXPECT_EQ(bench.parameters.size(), 0);
  ASSERT_EQ(bench.parameters.tables().size(), 2U);
  EXPECT_EQ(bench.parameters.tables()[1].name, "second/table");
  EXPECT_EQ(bench.parameters.tables()[1].dim, 2);
  EXPECT_EQ(bench.parameters.tables()[1].seed, 4U);
  NumberedRows rows;
  bench.parameters.SetRows(&rows);
  Tape tape(bench.parameters, *bench.stream, bench.workspace, {.intra_op_threads = 1});
  const std::vector<std::int64_t> any = {-1, 7, 7};
  const std::vector<std::int32_t> known = {8, 0, 8};
  const Variable x = first(tape, Tensor::Of<std::int64_t>({3}, any));
  const Variable y = second(tape, Tensor::Of<std::int32_t>({3}, known));
  EXPECT_EQ(y.shape(), Shape({3, 2}));
  tape.Backward(testing::Dot(Add(x, y), 1), rows);
  ASSERT_EQ(tape.Finish(), OkStatus());
  EXPECT_TRUE(rows.trained);
  EXPECT_EQ(rows.asked[0], (std::vector<std::uint64_t>{~std::uint64_t{0}, 7, 7}));
  EXPECT_EQ(y.tensor().data<float>()[0], 108);
  EXPECT_EQ(y.tensor().data<float>()[3], 100);
  EXPECT_EQ(rows.tables, (std::vector<int>{1, 0}));
  EXPECT_EQ(rows.gradient_ids[0], (std::vector<std::uint64_t>{8, 0, 8}));
  EXPECT_EQ(rows.gradients[0].size(), 6U);
  EXPECT_EQ(rows.gradients[0], rows.gradients[1]);
}

TEST(Embedding, OfATableNamesAnIdThatIsOutOfRange) {
  Bench bench;
  const Embedding layer(bench.parameters, "e", 9, 2, {.table = TableSpec()});
  bench.parameters.Build();
  NumberedRows rows;
  bench.parameters.SetRows(&rows);
  Tape tape(bench.parameters, *bench.stream, bench.workspace, {.intra_op_threads = 1});
  const std::vector<std::int64_t> ids = {8, 9};
  tape.Backward(testing::Dot(layer(tape, Tensor::Of<std::int64_t>({2}, ids)), 1), rows);
  EXPECT_EQ(tape.Finish(), InvalidArgument("Embedding e: id 9 at place 1 is not in [0, 9)"));
  EXPECT_TRUE(rows.asked.empty());
  EXPECT_TRUE(rows.tables.empty()) << "no gradients of what was not looked up";
}

TEST(Embedding, AnEmptyBatchGivesAZeroGradient) {
  for (const bool sparse : {false, true}) {
    ParameterSet parameters;
    const Embedding embedding(parameters, "e", 5, 3, {.sparse_gradient = sparse});
    parameters.Build();
    const auto stream = MakeInlineStream();
    Workspace workspace;
    Tape tape(parameters, *stream, workspace);
    CollectingSink sink(parameters);
    tape.Backward(testing::Dot(embedding(tape, Tensor(DType::kInt32, {0})), 1), sink);
    ASSERT_EQ(tape.Finish(), OkStatus());
    EXPECT_THAT(sink.gradient(0), Each(0.0F));
    EXPECT_THAT(sink.ready(), ElementsAre(0));
  }
}

TEST(Embedding, NamesAnIdThatIsOutOfRange) {
  ParameterSet parameters;
  const Embedding embedding(parameters, "e", 5, 3, {.sparse_gradient = true});
  parameters.Build();
  const auto stream = MakeInlineStream();
  Workspace workspace;
  Tape tape(parameters, *stream, workspace);
  const std::vector<std::int32_t> ids = {1, 5};
  CollectingSink sink(parameters);
  tape.Backward(testing::Dot(embedding(tape, Tensor::Of<std::int32_t>({2}, ids)), 1), sink);
  EXPECT_EQ(sink.slices(), 0);
  EXPECT_EQ(tape.Finish(), InvalidArgument("id 5 of element 1 is outside the embedding's 5 rows "
                                           "[ids must be in [0, 5)]"));
  EXPECT_THAT(sink.ready(), ElementsAre(0));
}

}  // namespace
}  // namespace cohort::nn
