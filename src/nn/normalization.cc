#include <cohort/nn/initializers.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/operations.h>

#include "checks.h"

namespace cohort::nn {
namespace {

// Puts the replicas' sum on the stream; nothing where each keeps to itself. The function that sums
// works in the host's memory.
void SumOverReplicas(Tape& tape, const BatchNormOptions& options, const Tensor& sums) {
  if (!options.sum_over_replicas) {
    return;
  }
  tape.NotReplayable();
  const Tensor fetched = tape.Fetch(sums);
  if (sums.space() == MemorySpace::kHost) {
    tape.stream().Enqueue([sum = options.sum_over_replicas, sums] { return sum(Floats(sums)); });
    return;
  }
  Status status = Aborted("earlier work of this replica failed");
  if (tape.Drain()) {
    status = options.sum_over_replicas(Floats(fetched));
  }
  if (!status.ok()) {
    tape.stream().Enqueue([status] { return status; });
  }
  tape.workspace().device().Copy(tape.stream(), fetched.raw(), sums.raw(), sums.bytes());
  tape.Keep(fetched);
}

}  // namespace

BatchNorm::BatchNorm(ParameterSet& parameters, const std::string& name, std::int64_t channels,
                     BatchNormOptions options)
    : name_(name), channels_(channels), options_(std::move(options)) {
  Require(options_.activation == Activation::kNone || options_.activation == Activation::kRelu,
          "BatchNorm " + name + ": an activation with it is none or relu");
  scale_ = parameters.Add(name + "/scale", {channels},
                          options_.scale_initializer ? options_.scale_initializer : Constant(1.0F));
  options_.scale_initializer = nullptr;
  offset_ = parameters.Add(name + "/offset", {channels}, Zeros());
  mean_ = parameters.Add(name + "/mean", {channels}, Zeros(), false);
  variance_ = parameters.Add(name + "/variance", {channels}, Constant(1.0F), false);
}

// What one application knows of its batch. Over replicas statistics go in two passes, mean first:
// the difference of squares that one pass would take loses all digits of a small variance beside a
// large mean.
struct BatchStatistics {
  Tensor mean;
  Tensor inverse_deviation;
  Tensor count;  // rows over all replicas, one element; unset outside of training
};

static BatchStatistics Measure(Tape& tape, const BatchNormOptions& options, RowsOf size,
                               ConstElements x, FloatSpan running_mean,
                               FloatSpan running_variance) {
  Kernels& kernels = tape.kernels();
  Stream& stream = tape.stream();
  const auto c = static_cast<std::size_t>(size.columns);
  BatchStatistics s{tape.Buffer({size.columns}), tape.Buffer({size.columns}), {}};
  if (!tape.options().training) {
    // The running variance as the sum of squares of one row.
    const Tensor one = tape.Buffer({1});
    kernels.Fill(stream, Floats(one), 1.0F);
    kernels.Copy(stream, running_mean, Floats(s.mean));
    kernels.FinishMoments(stream, {.mean = Floats(s.mean),
                                   .square_sums = running_variance,
                                   .count = Floats(one),
                                   .epsilon = options.epsilon,
                                   .inverse_deviation = Floats(s.inverse_deviation)});
    return s;
  }
  s.count = tape.Buffer({1});
  const Tensor squares = tape.Buffer({size.columns});
  if (options.sum_over_replicas) {
    const Tensor sums = tape.Buffer({size.columns + 1});
    kernels.SumRows(stream, size, x, Floats(sums).first(c));
    kernels.Fill(stream, Floats(sums).last(1), static_cast<float>(size.rows));
    SumOverReplicas(tape, options, sums);
    kernels.Copy(stream, Floats(sums).last(1), Floats(s.count));
    kernels.DivideByCount(stream, Floats(sums).first(c), Floats(s.count), Floats(s.mean));
    kernels.SumSquaresRows(stream, size, x, Floats(s.mean), Floats(squares));
    SumOverReplicas(tape, options, squares);
  } else {
    kernels.Fill(stream, Floats(s.count), static_cast<float>(size.rows));
    kernels.Moments(stream, size, x, Floats(s.mean), Floats(squares));
  }
  const bool updates = tape.options().updates_averages;
  kernels.FinishMoments(stream, {.mean = Floats(s.mean),
                                 .square_sums = Floats(squares),
                                 .count = Floats(s.count),
                                 .epsilon = options.epsilon,
                                 .momentum = options.momentum,
                                 .inverse_deviation = Floats(s.inverse_deviation),
                                 .running_mean = updates ? running_mean : FloatSpan(),
                                 .running_variance = updates ? running_variance : FloatSpan()});
  return s;
}

Variable BatchNorm::operator()(const Variable& x) const { return Apply(x, nullptr); }

Variable BatchNorm::operator()(const Variable& x, const Variable& added) const {
  RequireShape(x.shape() == added.shape(), "BatchNorm " + name_, added.shape(),
               x.shape().ToString() + " as what is normalised");
  const Variable same = Cast(added, x.tensor().dtype());
  return Apply(x, &same);
}

Variable BatchNorm::Apply(const Variable& x, const Variable* added) const {
  RequireShape(x.shape().rank() >= 1 && Last(x.shape()) == channels_, "BatchNorm " + name_,
               x.shape(), "[..., " + std::to_string(channels_) + "]");
  Tape& tape = x.tape();
  const RowsOf size{RowsBeforeLast(x.shape()), channels_};
  const BatchStatistics s =
      Measure(tape, options_, size, ElementsOf(x.tensor()), tape.parameters().value(mean_),
              tape.parameters().value(variance_));
  const ConstFloatSpan scale = tape.Value(scale_, {channels_});
  const ConstFloatSpan offset = tape.Value(offset_, {channels_});
  const Tensor y = tape.Buffer(x.shape(), x.tensor().dtype());
  NormArguments arguments{.rows = size.rows,
                          .columns = size.columns,
                          .x = ElementsOf(x.tensor()),
                          .scale = scale,
                          .offset = offset,
                          .mean = Floats(s.mean),
                          .inverse_deviation = Floats(s.inverse_deviation),
                          .y = ElementsOf(y),
                          .activation = options_.activation};
  std::vector<Variable> inputs = {x};
  if (added != nullptr) {
    arguments.added = ElementsOf(added->tensor());
    inputs.push_back(*added);
  }
  tape.kernels().BatchNorm(tape.stream(), arguments);
  const bool relu = options_.activation == Activation::kRelu;
  const bool adds = added != nullptr;
  return tape.Record(y, inputs, {scale_, offset_},
                     [&tape, size, s, scale, offset, options = options_, adds, x = x.tensor(),
                      y = relu && adds ? y : Tensor()](BackwardPass& pass) {
                       Kernels& kernels = tape.kernels();
                       Stream& stream = tape.stream();
                       const auto c = static_cast<std::size_t>(size.columns);
                       NormBackwardArguments n{.rows = size.rows,
                                               .columns = size.columns,
                                               .x = ElementsOf(x),
                                               .scale = scale,
                                               .mean = Floats(s.mean),
                                               .inverse_deviation = Floats(s.inverse_deviation),
                                               .dy = pass.output_gradient(),
                                               .activation = options.activation,
                                               .offset = offset};
                       if (y.raw() != nullptr) {
                         n.y = ElementsOf(y);
                       }
                       const Tensor sums = tape.Buffer({2 * size.columns});
                       kernels.BatchNormBackwardSums(stream, n, Floats(sums));
                       if (y.raw() != nullptr) {
                         n.activation = Activation::kNone;
                       }
                       // This replica's share; the strategy adds the shares up, like every
                       // gradient.
                       pass.Parameter(1, [&](FloatSpan doffset) {
                         kernels.Copy(stream, Floats(sums).first(c), doffset);
                       });
                       pass.Parameter(0, [&](FloatSpan dscale) {
                         kernels.Copy(stream, Floats(sums).last(c), dscale);
                       });
                       SumOverReplicas(tape, options, sums);
                       pass.Input(0, [&](Elements dx) {
                         n.dx = dx;
                         kernels.BatchNormBackward(stream, n, Floats(sums), Floats(s.count));
                       });
                       if (adds) {
                         pass.PassOn(1);
                       }
                     });
}

LayerNorm::LayerNorm(ParameterSet& parameters, const std::string& name, std::int64_t width,
                     float epsilon)
    : name_(name), width_(width), epsilon_(epsilon) {
  scale_ = parameters.Add(name + "/scale", {width}, Constant(1.0F));
  offset_ = parameters.Add(name + "/offset", {width}, Zeros());
}

Variable LayerNorm::operator()(const Variable& given) const {
  const Variable x = Cast(given, DType::kFloat32);
  RequireShape(x.shape().rank() >= 1 && Last(x.shape()) == width_, "LayerNorm " + name_, x.shape(),
               "[..., " + std::to_string(width_) + "]");
  Tape& tape = x.tape();
  const std::int64_t rows = RowsBeforeLast(x.shape());
  const ConstFloatSpan scale = tape.Value(scale_, {width_});
  const Tensor mean = tape.Buffer({rows});
  const Tensor inverse_deviation = tape.Buffer({rows});
  // Mostly what a product takes.
  const Tensor y = tape.Buffer(x.shape(), tape.compute_type());
  tape.kernels().LayerNorm(tape.stream(), {.rows = rows,
                                           .columns = width_,
                                           .epsilon = epsilon_,
                                           .x = Floats(x.tensor()),
                                           .scale = scale,
                                           .offset = tape.Value(offset_, {width_}),
                                           .mean = Floats(mean),
                                           .inverse_deviation = Floats(inverse_deviation),
                                           .y = ElementsOf(y)});
  return tape.Record(y, {x}, {scale_, offset_},
                     [&tape, rows, width = width_, scale, mean, inverse_deviation,
                      x = x.tensor()](BackwardPass& pass) {
                       const Tensor dscale = tape.Buffer({width});
                       const Tensor doffset = tape.Buffer({width});
                       NormBackwardArguments n{.rows = rows,
                                               .columns = width,
                                               .x = Floats(x),
                                               .scale = scale,
                                               .mean = Floats(mean),
                                               .inverse_deviation = Floats(inverse_deviation),
                                               .dy = pass.output_gradient(),
                                               .dscale = Floats(dscale),
                                               .doffset = Floats(doffset)};
                       if (pass.WantsInput(0)) {
                         pass.Input(0, [&](FloatSpan dx) {
                           n.dx = dx;
                           tape.kernels().LayerNormBackward(tape.stream(), n);
                         });
                       } else {
                         tape.kernels().LayerNormBackward(tape.stream(), n);
                       }
                       pass.Parameter(1, [&](FloatSpan to) {
                         tape.kernels().Copy(tape.stream(), Floats(doffset), to);
                       });
                       pass.Parameter(0, [&](FloatSpan to) {
                         tape.kernels().Copy(tape.stream(), Floats(dscale), to);
                       });
                     });
}

}  // namespace cohort::nn
