#include <cohort/nn/bags.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/operations.h>
#include <cohort/optim/row_source.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "oracles.h"
#include "testing/far_device.h"

namespace cohort::nn {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr Combiner kAll[] = {Combiner::kSum, Combiner::kMean, Combiner::kSqrtN};

// Two rows, none, three of which two are one, and one.
const std::vector<std::int64_t> kIds = {4, 0, 2, 1, 2, 3};
const std::vector<std::int64_t> kSplits = {0, 2, 2, 5, 6};
const std::vector<float> kWeights = {0.5F, 2, -1, 3, 0.25F, 4};

Tensor Splits(const std::vector<std::int64_t>& splits = kSplits) {
  return Tensor::Of<std::int64_t>({static_cast<std::int64_t>(splits.size())}, splits);
}
Tensor Weights(bool weighted) {
  return weighted ? Tensor::Of<float>({static_cast<std::int64_t>(kWeights.size())}, kWeights)
                  : Tensor();
}

TEST(Combine, IsTheFormulaForEveryBag) {
  const Tensor rows = testing::RandomTensor({6, 3}, 1);
  for (const Combiner combiner : kAll) {
    for (const bool weighted : {false, true}) {
      Bench bench;
      const Tensor y = bench.Run({rows}, [&](Tape&, const std::vector<Variable>& x) {
        return Combine(x[0], Splits(), combiner, Weights(weighted));
      });
      ASSERT_EQ(y.shape(), Shape({4, 3}));
      Doubles want(12, 0.0);
      for (std::size_t b = 0; b < 4; ++b) {
        double sum = 0;
        double squares = 0;
        for (auto i = static_cast<std::size_t>(kSplits[b]);
             i < static_cast<std::size_t>(kSplits[b + 1]); ++i) {
          const double w = weighted ? kWeights[i] : 1;
          sum += w;
          squares += w * w;
          for (std::size_t j = 0; j < 3; ++j) {
            want[b * 3 + j] += w * rows.data<float>()[i * 3 + j];
          }
        }
        const double divisor = combiner == Combiner::kSum    ? 1
                               : combiner == Combiner::kMean ? sum
                                                             : std::sqrt(squares);
        for (std::size_t j = 0; j < 3; ++j) {
          want[b * 3 + j] /= squares == 0 ? 1 : divisor;
        }
      }
      ExpectNear(y.data<float>(), want);
      EXPECT_THAT(y.data<float>().subspan(3, 3), Each(0.0F)) << "an empty bag";
    }
  }
}

TEST(Combine, HasTheGradientsOfFiniteDifferences) {
  for (const Combiner combiner : kAll) {
    for (const bool weighted : {false, true}) {
      ParameterSet none;
      none.Build();
      testing::ExpectGradients(none, {testing::RandomTensor({6, 3}, 1)},
                               [&](Tape&, const std::vector<Variable>& x) {
                                 return Combine(x[0], Splits(), combiner, Weights(weighted));
                               });
      // Of a table, in which one row is in a bag twice.
      for (const bool sparse : {false, true}) {
        ParameterSet parameters;
        const Embedding embedding(parameters, "e", 5, 3, {.sparse_gradient = sparse});
        parameters.Build();
        testing::ExpectGradients(parameters, {}, [&](Tape& tape, const std::vector<Variable>&) {
          return Combine(embedding(tape, Tensor::Of<std::int64_t>({6}, kIds)), Splits(), combiner,
                         Weights(weighted));
        });
      }
    }
  }
}

TEST(Combine, BagsOfNothing) {
  for (const Combiner combiner : kAll) {
    Bench bench;
    EXPECT_EQ(bench
                  .Run({Tensor(DType::kFloat32, {0, 3})},
                       [&](Tape&, const std::vector<Variable>& x) {
                         return Combine(x[0], Splits({0}), combiner);
                       })
                  .shape(),
              Shape({0, 3}));
    EXPECT_THAT(bench
                    .Run({Tensor(DType::kFloat32, {0, 3})},
                         [&](Tape&, const std::vector<Variable>& x) {
                           return Combine(x[0], Splits({0, 0, 0}), combiner);
                         })
                    .data<float>(),
                Each(0.0F));
    const std::vector<float> zeros = {0, 0};
    EXPECT_THAT(
        bench
            .Run({testing::RandomTensor({2, 3}, 1)},
                 [&](Tape&, const std::vector<Variable>& x) {
                   return Combine(x[0], Splits({0, 2}), combiner, Tensor::Of<float>({2}, zeros));
                 })
            .data<float>(),
        Each(0.0F))
        << "weights of 0";
  }
}

// The rows of a sparse table: row `id` is [id, -id].
class SomeRows final : public RowSource {
 public:
  Status Lookup(int /*table*/, std::span<const std::uint64_t> ids, bool /*training*/,
                std::span<float> rows) override {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      rows[2 * i] = static_cast<float>(ids[i]);
      rows[2 * i + 1] = -static_cast<float>(ids[i]);
    }
    return {};
  }
};
class RowSink final : public GradientSink {
 public:
  void AddRows(const RowGradients& given) override {
    got_ids.assign(given.ids.begin(), given.ids.end());
    got.assign(given.values.begin(), given.values.end());
  }
  std::span<float> Accumulator(int) override { throw ContractError("no parameters"); }
  void AddSlices(int, const IndexedSlices&) override { throw ContractError("no parameters"); }
  void Ready(int) override { throw ContractError("no parameters"); }
  float loss_seed() const override { return 1; }

  std::vector<std::uint64_t> got_ids;
  std::vector<float> got;
};

TEST(Combine, TakesTheRowsOfASparseTable) {
  Bench bench;
  const Embedding embedding(bench.parameters, "e", 0, 2, {.table = TableSpec()});
  bench.parameters.Build();
  SomeRows rows;
  bench.parameters.SetRows(&rows);
  Tape tape(bench.parameters, *bench.stream, bench.workspace, {.intra_op_threads = 1});
  const Variable y =
      Combine(embedding(tape, Tensor::Of<std::int64_t>({6}, kIds)), Splits(), Combiner::kMean);
  RowSink sink;
  tape.Backward(Sum(Sum(y, 0), 0), sink);
  ASSERT_EQ(tape.Finish(), OkStatus());
  ExpectNear(y.tensor().data<float>(), {2, -2, 0, 0, 5.0 / 3, -5.0 / 3, 3, -3});
  EXPECT_EQ(sink.got_ids, std::vector<std::uint64_t>(kIds.begin(), kIds.end()));
  const double third = 1.0 / 3;
  ExpectNear(sink.got, {0.5, 0.5, 0.5, 0.5, third, third, third, third, third, third, 1, 1});
}

TEST(Combine, WhatIsNoBagIsRefused) {
  const auto message = [](const std::vector<std::int64_t>& splits,
                          const std::vector<float>& weights) {
    Bench bench;
    bench.parameters.Build();
    Tape tape(bench.parameters, *bench.stream, bench.workspace, {.intra_op_threads = 1});
    const Variable rows = tape.Input(testing::RandomTensor({2, 3}, 1), /*needs_gradient=*/true);
    testing::CollectingSink sink(bench.parameters);
    tape.Backward(
        testing::Dot(
            Combine(rows, Splits(splits), Combiner::kMean, Tensor::Of<float>({2}, weights)), 1),
        sink);
    const Status status = tape.Finish();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  const std::vector<float> ones = {1, 1};
  EXPECT_THAT(message({0, 3}, ones), HasSubstr("bags are of rows 0 to 3, there are 2"));
  EXPECT_THAT(message({1, 2}, ones), HasSubstr("bags are of rows 1 to 2, there are 2"));
  EXPECT_THAT(message({0, 2, 1, 2}, ones), HasSubstr("bag 1 is from row 2 to 1"));
  EXPECT_THAT(message({0, 0, 2}, {1, -1}), HasSubstr("the weights of bag 1 add up to 0"));
  EXPECT_THAT(message({0, 2}, {1, std::numeric_limits<float>::quiet_NaN()}),
              HasSubstr("bag 0 has a weight that is not finite"));
  Bench bench;
  bench.parameters.Build();
  Tape tape(bench.parameters, *bench.stream, bench.workspace, {.intra_op_threads = 1});
  const Variable rows = tape.Input(testing::RandomTensor({2, 3}, 1));
  const Tensor no_splits(DType::kInt32, {2});
  EXPECT_THROW(Combine(rows, no_splits, Combiner::kSum), ContractError);
  EXPECT_THROW(Combine(rows, Splits({0, 2}), Combiner::kSum, Tensor(DType::kFloat32, {3})),
               ContractError);
}

// What travels to a device is a bag and a factor for each row, however wide it is.
TEST(Combine, OfADeviceWithMemoryOfItsOwnCopiesWhatDoesNotDependOnTheWidth) {
  const auto device = testing::MakeFarDevice();
  ParameterSet declared;
  declared.Build();
  const auto stream = device->MakeStream();
  ParameterSet parameters = declared.CopyOn(*device, *stream);
  Workspace workspace(device);
  Tape tape(parameters, *stream, workspace, {.intra_op_threads = 1});
  const Variable rows = tape.Input(testing::RandomTensor({6, 30}, 1));
  const std::int64_t before = testing::TrafficOf(*device).to_device;
  static_cast<void>(Combine(rows, Splits(), Combiner::kMean, Weights(true)));
  EXPECT_EQ(testing::TrafficOf(*device).to_device - before, 6 * (8 + 4));
  EXPECT_EQ(tape.Finish(), OkStatus());
}

TEST(Combine, OfADeviceWithMemoryOfItsOwnNamesWhatIsNoBagToo) {
  const auto device = testing::MakeFarDevice();
  ParameterSet declared;
  declared.Build();
  const auto stream = device->MakeStream();
  ParameterSet parameters = declared.CopyOn(*device, *stream);
  Workspace workspace(device);
  Tape tape(parameters, *stream, workspace, {.intra_op_threads = 1});
  const Variable rows = tape.Input(testing::RandomTensor({2, 3}, 1));
  EXPECT_EQ(Combine(rows, Splits({0, 3}), Combiner::kSum).shape(), Shape({1, 3}));
  const Status status = tape.Finish();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("there are 2 rows"));
}

}  // namespace
}  // namespace cohort::nn
