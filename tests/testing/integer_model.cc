#include "testing/integer_model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include <cohort/core/random.h>
#include <cohort/data/memory.h>
#include <cohort/optim/gradients.h>

namespace cohort::testing {
namespace {

constexpr std::int64_t kColumns = 4;
constexpr const char* kTable = "table";  // its gradient comes as rows

std::int64_t Factor(float value) {
  return 1 + static_cast<std::int64_t>(std::clamp(std::floor(value * 8.0F), -15.0F, 15.0F));
}

struct Examples {
  explicit Examples(const data::Batch& batch)
      : size(batch.size), x(batch["x"]), id(batch["id"]), tokens(batch["tokens"]) {}

  std::int64_t X(std::int64_t i, std::int64_t k) const {
    return static_cast<std::int64_t>(x.data<float>()[static_cast<std::size_t>(i * kColumns + k)]);
  }
  std::int64_t Id(std::int64_t i) const {
    return id.data<std::int64_t>()[static_cast<std::size_t>(i)];
  }
  std::int64_t Count(std::int64_t i, bool by_tokens) const {
    return by_tokens ? tokens.data<std::int64_t>()[static_cast<std::size_t>(i)] : 1;
  }
  double Weight(bool by_tokens) const {
    double weight = 0;
    for (std::int64_t i = 0; i < size; ++i) {
      weight += static_cast<double>(Count(i, by_tokens));
    }
    return weight;
  }

  std::int64_t size;
  Tensor x, id, tokens;
};

// Of a parameter's elements, summed over the examples.
class GradientOf {
 public:
  GradientOf(const Examples& examples, bool by_tokens, int parameter) : parameter_(parameter) {
    for (std::int64_t i = 0; i < examples.size; ++i) {
      for (std::int64_t k = 0; k < kColumns; ++k) {
        sums_[k] += examples.Count(i, by_tokens) * examples.X(i, k);
      }
    }
  }
  float operator()(std::size_t element, float value) const {
    const std::int64_t k = (static_cast<std::int64_t>(element) + parameter_) % kColumns;
    return static_cast<float>(sums_[k] * Factor(value));
  }

 private:
  const int parameter_;
  std::int64_t sums_[kColumns] = {};
};

// Rows of the table that an example touches: two, of which the second is shared by many.
std::int64_t RowOf(const Examples& examples, std::int64_t i, int which, std::int64_t rows) {
  return which == 0 ? examples.Id(i) % rows : examples.Id(i) % 2;
}

std::int64_t LossOf(const Examples& examples, std::int64_t i, float first) {
  return examples.X(i, 0) * 3 + examples.X(i, 1) + Factor(first);
}

ReplicaResult Score(const Examples& examples, bool by_tokens, float first) {
  ReplicaResult result;
  result.weight = examples.Weight(by_tokens);
  result.metric_sums.resize(1);
  for (std::int64_t i = 0; i < examples.size; ++i) {
    const std::int64_t count = examples.Count(i, by_tokens);
    result.loss_sum += static_cast<double>(count * LossOf(examples, i, first));
    result.metric_sums[0] += static_cast<double>(examples.Id(i) % 2 == 0 ? count : 0);
  }
  return result;
}

struct Rows {
  std::vector<std::int64_t> indices;
  std::vector<float> values;
};

void FeedTable(ReplicaContext& context, const Examples& examples, bool by_tokens, int p,
               float factor) {
  // Lives until the stream has run the addition: the last piece of work holds it.
  auto rows = std::make_shared<Rows>();
  const Shape& shape = context.parameters[p].shape;
  for (std::int64_t i = 0; i < examples.size; ++i) {
    rows->indices.push_back(RowOf(examples, i, 0, shape[0]));
    rows->indices.push_back(RowOf(examples, i, 1, shape[0]));
  }
  rows->values.resize(rows->indices.size() * static_cast<std::size_t>(shape[1]));
  context.stream.Enqueue([=, row = shape[1], table = context.parameters.value(p)]() -> Status {
    for (std::size_t k = 0; k < rows->values.size(); ++k) {
      const auto i = static_cast<std::int64_t>(k) / row / 2;
      const auto e = rows->indices[k / static_cast<std::size_t>(row)] * row +
                     static_cast<std::int64_t>(k) % row;
      rows->values[k] =
          factor * static_cast<float>(examples.Count(i, by_tokens) * examples.X(i, e % kColumns) *
                                      Factor(table[static_cast<std::size_t>(e)]));
    }
    return {};
  });
  context.gradients.AddSlices(p, {.indices = rows->indices, .values = rows->values});
  context.stream.Enqueue([rows]() -> Status { return {}; });
}

std::vector<float> WholeGradient(const ParameterSet::Parameter& parameter, int p,
                                 std::span<const float> value, const Examples& examples,
                                 bool by_tokens) {
  std::vector<float> gradient(value.size());
  if (parameter.name == kTable) {
    const std::int64_t row = parameter.shape[1];
    for (std::int64_t i = 0; i < examples.size; ++i) {
      for (const int which : {0, 1}) {
        const std::int64_t at = RowOf(examples, i, which, parameter.shape[0]) * row;
        for (std::int64_t e = at; e < at + row; ++e) {
          const auto index = static_cast<std::size_t>(e);
          gradient[index] += static_cast<float>(examples.Count(i, by_tokens) *
                                                examples.X(i, e % kColumns) * Factor(value[index]));
        }
      }
    }
    return gradient;
  }
  const GradientOf sum(examples, by_tokens, p);
  for (std::size_t e = 0; e < gradient.size(); ++e) {
    gradient[e] = sum(e, value[e]);
  }
  return gradient;
}

// Values and gradients of a device on their way through the host's memory.
class HostBlocks {
 public:
  explicit HostBlocks(ReplicaContext& context)
      : device_(*context.device), stream_(context.stream) {}

  std::span<float> Make(std::size_t elements) {
    blocks_.push_back(device_.AllocateHost(elements * sizeof(float), "a test's gradients"));
    return {reinterpret_cast<float*>(blocks_.back().get()), elements};
  }
  std::span<float> Fetch(std::span<const float> from) {
    const std::span<float> to = Make(from.size());
    Copy(from, to);
    return to;
  }
  void Copy(std::span<const float> from, std::span<float> to) {
    device_.Copy(stream_, reinterpret_cast<const std::byte*>(from.data()),
                 reinterpret_cast<std::byte*>(to.data()), from.size_bytes());
  }

 private:
  Device& device_;
  Stream& stream_;
  std::vector<std::shared_ptr<std::byte>> blocks_;
};

void FeedThroughHost(ReplicaContext& context, HostBlocks& blocks, const Examples& examples,
                     bool by_tokens, int p, float factor) {
  const std::span<const float> value = blocks.Fetch(context.parameters.value(p));
  const std::span<float> gradient = blocks.Make(value.size());
  context.stream.Enqueue([=, parameter = context.parameters[p]]() -> Status {
    const std::vector<float> whole = WholeGradient(parameter, p, value, examples, by_tokens);
    std::ranges::transform(whole, gradient.begin(), [&](float g) { return factor * g; });
    return {};
  });
  blocks.Copy(gradient, context.gradients.Accumulator(p));
}

Result<ReplicaResult> Step(ReplicaContext& context, const data::Batch& batch, bool by_tokens) {
  const Examples examples(batch);
  const double weight = examples.Weight(by_tokens);
  if (by_tokens) {
    context.gradients.SetWeight(weight);
  }
  // 1 where the seed is the weight, so that gradients are sums; 1/weight where it is 1.
  const float factor =
      weight == 0 ? NAN : context.gradients.loss_seed() / static_cast<float>(weight);
  const bool apart = context.parameters.memory_space() == MemorySpace::kDevice;
  HostBlocks blocks(context);  // until the stream has run dry
  std::vector<int> order(static_cast<std::size_t>(context.parameters.size()));
  std::iota(order.begin(), order.end(), 0);
  const Permutation shuffled(order.size(), static_cast<std::uint64_t>(context.replica * 1000) +
                                               static_cast<std::uint64_t>(context.step));
  for (std::size_t i = 0; i < order.size(); ++i) {
    const int p = order[shuffled(i)];
    if (!context.parameters[p].trainable) {
      continue;
    }
    if (apart) {
      FeedThroughHost(context, blocks, examples, by_tokens, p, factor);
    } else if (context.parameters[p].name == kTable) {
      FeedTable(context, examples, by_tokens, p, factor);
    } else {
      const std::span<float> gradient = context.gradients.Accumulator(p);
      context.stream.Enqueue([gradient, examples, by_tokens, p, factor,
                              value = context.parameters.value(p)]() -> Status {
        const GradientOf sum(examples, by_tokens, p);
        for (std::size_t e = 0; e < gradient.size(); ++e) {
          gradient[e] += factor * sum(e, value[e]);
        }
        return {};
      });
    }
    context.gradients.Ready(p);
  }
  std::span<const float> first = std::as_const(context.parameters).value(0).first(1);
  if (apart) {
    first = blocks.Fetch(first);
    COHORT_RETURN_IF_ERROR(context.stream.Synchronize(DeadlineAfter(std::chrono::minutes(1))));
  }
  return Score(examples, by_tokens, first[0]);
}

}  // namespace

ParameterSet IntegerParameters(int seed) {
  ParameterSet parameters;
  const auto initial = [seed](int parameter) {
    return [seed, parameter](std::uint64_t e) {
      return static_cast<float>((e * 7 + static_cast<std::uint64_t>(parameter * 3 + seed)) % 11) /
                 8.0F -
             0.5F;
    };
  };
  parameters.Add("dense/kernel", {9, 5}, initial(0));
  parameters.Add("dense/bias", {5}, initial(1));
  parameters.Add("average", {5}, initial(2), /*trainable=*/false);
  parameters.Add("large", {20'011}, initial(3));
  parameters.Add(kTable, {6, 4}, initial(4));
  parameters.Add("scalar", {}, initial(5));
  parameters.Add("output/kernel", {5, 33}, initial(6));
  parameters.Build();
  return parameters;
}

data::Dataset IntegerData(std::int64_t examples, std::int64_t global_batch, bool drop_remainder) {
  std::vector<float> x(static_cast<std::size_t>(examples * kColumns));
  std::vector<std::int64_t> id(static_cast<std::size_t>(examples));
  std::vector<std::int64_t> tokens(id.size());
  const Philox random(17, "integer data");
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(random.Below(7, i)) - 3.0F;
  }
  std::iota(id.begin(), id.end(), 0);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<std::int64_t>(random.Below(4, i, 1));
  }
  return OrThrow(data::FromTensors({
                     {"x", Tensor::Of<float>({examples, kColumns}, x)},
                     {"id", Tensor::Of<std::int64_t>({examples}, id)},
                     {"tokens", Tensor::Of<std::int64_t>({examples}, tokens)},
                 }))
      .Shuffle(5)
      .Batch(global_batch, drop_remainder);
}

StepFn IntegerStep(bool by_tokens) {
  return [by_tokens](ReplicaContext& context, const data::Batch& batch) {
    return Step(context, batch, by_tokens);
  };
}

Trained TrainOnOneThread(const data::Dataset& dataset, const Optimizer& optimizer, int epochs,
                         bool by_tokens) {
  ParameterSet parameters = IntegerParameters();
  Trained trained;
  for (int slot = 0; slot < optimizer.num_slots(); ++slot) {
    trained.slots.emplace_back(parameters.all().size(), optimizer.slot_initial_value(slot));
  }
  for (int epoch = 0; epoch < epochs; ++epoch) {
    const auto iterator = OrThrow(dataset.Iterate({.epoch = epoch}));
    while (const auto batch = OrThrow(iterator->Next())) {
      const Examples examples(*batch);
      const ReplicaResult score = Score(examples, by_tokens, parameters.value(0)[0]);
      trained.losses.push_back(score.loss_sum / score.weight);
      trained.metrics.push_back({score.metric_sums[0] / score.weight});
      trained.weights.push_back(score.weight);
      ++trained.step;
      std::vector<std::vector<float>> gradients(static_cast<std::size_t>(parameters.size()));
      double squared_norm = 0;
      for (int p = 0; p < parameters.size(); ++p) {
        if (parameters[p].trainable) {
          auto& gradient = gradients[static_cast<std::size_t>(p)];
          gradient = WholeGradient(parameters[p], p, parameters.value(p), examples, by_tokens);
          squared_norm += SquaredNorm(gradient);  // exact: of integers
        }
      }
      const double scale = static_cast<float>(1.0 / score.weight);
      const auto clipped = static_cast<float>(
          scale * ClipFactor(squared_norm * scale * scale, optimizer.global_clip_norm()));
      for (int p = 0; p < parameters.size(); ++p) {
        if (!parameters[p].trainable) {
          continue;
        }
        const auto at = static_cast<std::size_t>(parameters[p].offset);
        std::vector<std::span<float>> slots;
        for (std::vector<float>& slot : trained.slots) {
          slots.push_back(std::span(slot).subspan(at, parameters.value(p).size()));
        }
        optimizer.Apply({.value = parameters.value(p),
                         .gradient = gradients[static_cast<std::size_t>(p)],
                         .slots = slots,
                         .gradient_scale = clipped,
                         .step = trained.step});
      }
    }
  }
  trained.values.assign(parameters.all().begin(), parameters.all().end());
  return trained;
}

Trained TrainWith(Strategy& strategy, const data::Dataset& dataset,
                  std::unique_ptr<Optimizer> optimizer, int epochs, const StepFn& fn) {
  ParameterSet parameters = IntegerParameters();
  OrThrow(strategy.Bind(parameters, std::move(optimizer)));
  const auto distributed = OrThrow(strategy.Distribute(dataset));
  Trained trained;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    OrThrow(distributed->BeginEpoch(epoch));
    while (const auto batch = OrThrow(distributed->Next())) {
      const StepResult result = OrThrow(strategy.Step(*batch, fn));
      trained.losses.push_back(result.loss);
      trained.metrics.push_back(result.metrics);
      trained.weights.push_back(result.weight);
    }
  }
  OrThrow(strategy.PullState());
  trained.values.assign(parameters.all().begin(), parameters.all().end());
  for (const std::span<float> slot : strategy.slots()) {
    trained.slots.emplace_back(slot.begin(), slot.end());
  }
  trained.step = strategy.step();
  return trained;
}

}  // namespace cohort::testing
