// A small regression on which Trainer's tests train: two replicas in each process, or as many as
// are asked for.
#pragma once

#include <cohort/comm/communicator.h>
#include <cohort/data/memory.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>
#include <cohort/train/trainer.h>

#include <memory>
#include <vector>

namespace cohort::testing {

inline constexpr int kExamples = 50;
inline constexpr int kBatch = 8;  // does not divide: the last batch has 2

// y = 2 x0 - 3 x1 + 1.
inline data::Dataset PointsInOrder() {
  Tensor x(DType::kFloat32, {kExamples, 2});
  Tensor y(DType::kFloat32, {kExamples});
  for (int i = 0; i < kExamples; ++i) {
    const float a = static_cast<float>(i % 7) / 7;
    const float b = static_cast<float>(i % 5) / 5;
    x.data<float>()[static_cast<std::size_t>(2 * i)] = a;
    x.data<float>()[static_cast<std::size_t>(2 * i + 1)] = b;
    y.data<float>()[static_cast<std::size_t>(i)] = 2 * a - 3 * b + 1;
  }
  return OrThrow(data::FromTensors({{"x", x}, {"y", y}}));
}
inline data::Dataset Points(std::uint64_t shuffle_seed = 1, int batch = kBatch) {
  return PointsInOrder().Shuffle(shuffle_seed).Batch(batch);
}

inline float Apply(const ParameterSet& parameters, std::span<const float> x) {
  return parameters.value(0)[0] * x[0] + parameters.value(0)[1] * x[1] + parameters.value(1)[0];
}

inline Result<ReplicaResult> SquaredError(ReplicaContext& context, const data::Batch& batch,
                                          bool train) {
  const auto x = batch["x"].data<float>();
  const auto y = batch["y"].data<float>();
  double loss = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(batch.size); ++i) {
    const float error = Apply(context.parameters, x.subspan(2 * i, 2)) - y[i];
    loss += error * error;
    if (train) {
      context.gradients.Accumulator(0)[0] += 2 * error * x[2 * i];
      context.gradients.Accumulator(0)[1] += 2 * error * x[2 * i + 1];
      context.gradients.Accumulator(1)[0] += 2 * error;
    }
  }
  if (train) {
    context.gradients.Ready(1);
    context.gradients.Ready(0);
  }
  const auto n = static_cast<double>(batch.size);
  return ReplicaResult{.loss_sum = loss, .weight = n, .metric_sums = {n}};
}

inline const StepFn kTrain = [](ReplicaContext& context, const data::Batch& batch) {
  return SquaredError(context, batch, true);
};
inline const StepFn kEvaluate = [](ReplicaContext& context, const data::Batch& batch) {
  return SquaredError(context, batch, false);
};

// One process of a job, ready to train; the whole job without a communicator.
struct Job {
  explicit Job(TrainerOptions options, double learning_rate = 0.1,
               std::unique_ptr<Communicator> communicator = nullptr, int devices = 2) {
    parameters.Add("weights", {2}, [](std::uint64_t) { return 0.0F; });
    parameters.Add("bias", {1}, [](std::uint64_t) { return 0.0F; });
    parameters.Build();
    StrategyOptions strategy_options;
    strategy_options.num_devices = devices;
    strategy = OrThrow(
        MakeSynchronousStrategy({.communicator = std::move(communicator)}, strategy_options));
    OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = learning_rate, .momentum = 0.5})));
    options.metric_names = {"ones"};
    trainer = std::make_unique<Trainer>(*strategy, parameters, std::move(options));
  }
  std::vector<float> values() const { return {parameters.all().begin(), parameters.all().end()}; }

  ParameterSet parameters;
  std::unique_ptr<Strategy> strategy;
  std::unique_ptr<Trainer> trainer;
};

}  // namespace cohort::testing
