#include <cohort/nn/tape.h>

#include <algorithm>
#include <string>
#include <utility>

#include <cohort/device/ahead_copy.h>

namespace cohort::nn {

float Variable::value() const {
  Require(tensor_.elements() == 1,
          "value() of a variable with one element, not of shape " + tensor_.shape().ToString());
  if (tensor_.space() == MemorySpace::kHost) {
    return tensor_.data<float>()[0];
  }
  const Tensor copy = tape().Fetch(tensor_);
  OrThrow(tape().Finish());
  return copy.data<float>()[0];
}

Tape& Variable::tape() const {
  Require(tape_ != nullptr, "a variable of a tape, not a default-constructed one");
  return *tape_;
}

Tape::Tape(ParameterSet& parameters, Stream& stream, Workspace& workspace, TapeOptions options)
    : parameters_(parameters),
      stream_(stream),
      workspace_(workspace),
      options_(options),
      kernels_(workspace.KernelsFor(options.intra_op_threads)),
      forward_(Phase::kForward, options.step) {
  Require(parameters.built(), "a tape needs parameters that are built");
}

Tape::~Tape() {
  // The stream may not have come to the work that reads these.
  for (Operation& operation : operations_) {
    operation.backward = nullptr;
  }
  if (!finished_) {
    stream_.Enqueue([kept = std::move(kept_)] { return OkStatus(); });
  }
}

Tensor Tape::Place(const Tensor& tensor) {
  Keep(tensor);
  if (tensor.space() == workspace_.device().memory_space()) {
    return tensor;
  }
  if (const auto ahead = AheadCopy::Of(tensor, workspace_.device(), stream_); ahead.has_value()) {
    Keep(*ahead);
    return *ahead;
  }
  // From memory that the copy need not wait for: a batch's is, other may be any.
  Tensor from = tensor;
  if (!workspace_.device().PageLocked(tensor.raw())) {
    from = workspace_.TakeHost(tensor.dtype(), tensor.shape());
    std::copy_n(tensor.raw(), tensor.bytes(), from.raw());
    Keep(from);
  }
  Tensor placed = workspace_.Take(tensor.dtype(), tensor.shape());
  workspace_.device().Copy(stream_, from.raw(), placed.raw(), tensor.bytes());
  Keep(placed);
  return placed;
}

Tensor Tape::InFloat32(const Tensor& given) {
  if (!IsHalf(given.dtype())) {
    return given;
  }
  const Tensor tensor = Place(given);
  const Tensor wide = Buffer(tensor.shape());
  kernels_.Copy(stream_, ElementsOf(tensor), Floats(wide));
  Keep(wide);
  return wide;
}

Tensor Tape::Fetch(const Tensor& given) {
  const Tensor tensor = InFloat32(given);
  if (tensor.space() == MemorySpace::kHost) {
    return tensor;
  }
  Tensor copy = workspace_.TakeHost(tensor.dtype(), tensor.shape());
  workspace_.device().Copy(stream_, tensor.raw(), copy.raw(), tensor.bytes());
  Keep(tensor);
  return copy;
}

Variable Tape::Input(const Tensor& tensor, bool needs_gradient) {
  Require(tensor.dtype() == DType::kFloat32,
          "an input of float32, not of " + std::string(DTypeName(tensor.dtype())));
  Variable v;
  v.tape_ = this;
  v.node_ = static_cast<int>(nodes_.size());
  v.tensor_ = Place(tensor);
  nodes_.push_back({.shape = tensor.shape(), .needs_gradient = needs_gradient, .leaf = true});
  return v;
}

Variable Tape::Record(Tensor output, const std::vector<Variable>& inputs,
                      std::vector<int> parameters, BackwardFunction backward, bool trains_rows) {
  Variable v;
  v.tape_ = this;
  v.node_ = static_cast<int>(nodes_.size());
  v.tensor_ = output;
  Node node{.shape = output.shape(), .type = output.dtype(), .needs_gradient = trains_rows};
  Operation operation{.output = v.node_, .parameters = std::move(parameters)};
  for (const Variable& input : inputs) {
    Require(&input.tape() == this, "operands of one tape");
    operation.inputs.push_back(input.node_);
    node.needs_gradient |= nodes_[static_cast<std::size_t>(input.node_)].needs_gradient;
  }
  for (const int parameter : operation.parameters) {
    node.needs_gradient |= parameters_[parameter].trainable;
  }
  node.needs_gradient &= options_.training;
  if (node.needs_gradient) {
    operation.backward = std::move(backward);
    operations_.push_back(std::move(operation));
  }
  nodes_.push_back(std::move(node));
  return v;
}

ConstFloatSpan Tape::Value(int parameter, const Shape& shape) const {
  Require(parameters_[parameter].shape == shape, "parameter " + parameters_[parameter].name +
                                                     " of shape " + shape.ToString() + ", not " +
                                                     parameters_[parameter].shape.ToString());
  return std::as_const(parameters_).value(parameter);
}

ConstElements Tape::Operand(int parameter, const Shape& shape) {
  const ConstFloatSpan value = Value(parameter, shape);
  if (compute_type() == DType::kFloat32) {
    return value;
  }
  if (operands_.raw() == nullptr) {
    const ConstFloatSpan all = std::as_const(parameters_).all();
    operands_ = Buffer({static_cast<std::int64_t>(all.size())}, compute_type());
    Keep(operands_);
    kernels_.Copy(stream_, all, ElementsOf(operands_));
  }
  const std::size_t offset =
      static_cast<std::size_t>(parameters_[parameter].offset) * SizeOf(compute_type());
  return {operands_.raw() + offset, value.size(), compute_type()};
}

// Which nodes lie between leaves or parameters and the loss, and how often each parameter is used
// there.
void Tape::MarkReached(int loss) {
  reached_.assign(nodes_.size(), false);
  uses_left_.assign(static_cast<std::size_t>(parameters_.size()), 0);
  written_.assign(uses_left_.size(), false);
  reached_[static_cast<std::size_t>(loss)] = true;
  for (auto it = operations_.rbegin(); it != operations_.rend(); ++it) {
    if (!reached_[static_cast<std::size_t>(it->output)]) {
      continue;
    }
    for (const int input : it->inputs) {
      reached_[static_cast<std::size_t>(input)] = true;
    }
    for (const int parameter : it->parameters) {
      ++uses_left_[static_cast<std::size_t>(parameter)];
    }
  }
}

void Tape::Backward(const Variable& loss, GradientSink& sink) {
  Require(&loss.tape() == this && loss.tensor().elements() == 1,
          "Backward starts from a loss of this tape with one element");
  Require(options_.training && sink_ == nullptr, "Backward once, on a tape that is training");
  sink_ = &sink;
  forward_.End();
  const Range range(Phase::kBackward, options_.step);
  MarkReached(loss.node_);
  const std::vector<int> uses = uses_left_;
  Require(loss.tensor().dtype() == DType::kFloat32, "Backward starts from a loss of float32");
  AddGradient(loss.node_, [&](FloatSpan seed) { kernels_.Fill(stream_, seed, sink.loss_seed()); });
  for (int i = static_cast<int>(operations_.size()) - 1; i >= 0; --i) {
    Operation& operation = operations_[static_cast<std::size_t>(i)];
    Node& output = nodes_[static_cast<std::size_t>(operation.output)];
    if (output.has_gradient) {
      BackwardPass pass(*this, i);
      operation.backward(pass);
      output.gradient = {};
    }
    operation.backward = nullptr;  // and with it what it kept: the next operations reuse the memory
  }
  SendRows();
  for (int p = 0; p < parameters_.size(); ++p) {
    if (parameters_[p].trainable && uses[static_cast<std::size_t>(p)] == 0) {
      sink.Ready(p);
    }
  }
}

Status Tape::Finish(std::chrono::milliseconds timeout) {
  Status status = stream_.Synchronize(DeadlineAfter(timeout));
  finished_ = status.code() != StatusCode::kDeadlineExceeded;
  return failed_.has_value() ? *std::exchange(failed_, std::nullopt) : status;
}

bool Tape::Drain() {
  NotReplayable();
  if (!failed_.has_value()) {
    if (Status status = stream_.Synchronize(DeadlineAfter(std::chrono::minutes(10)));
        !status.ok()) {
      failed_ = std::move(status);
    }
  }
  return !failed_.has_value();
}

Tensor Tape::Gradient(const Variable& input) const {
  const Node& node = nodes_.at(static_cast<std::size_t>(input.node_));
  Require(node.leaf && node.needs_gradient && node.has_gradient,
          "the gradient of an input that needs it, and that the loss depends on, after Backward");
  return node.gradient;
}

void Tape::AddGradient(int index, const BackwardPass::Write& write) {
  Node& node = nodes_[static_cast<std::size_t>(index)];
  const Tensor to = Buffer(node.shape, node.type);
  write(ElementsOf(to));
  if (node.has_gradient) {
    kernels_.Add(stream_, ElementsOf(node.gradient), ElementsOf(to), ElementsOf(node.gradient));
  } else {
    node.gradient = to;
    node.has_gradient = true;
  }
}

Elements BackwardPass::output_gradient() const {
  const int output = tape_.operations_[static_cast<std::size_t>(operation_)].output;
  return ElementsOf(tape_.nodes_[static_cast<std::size_t>(output)].gradient);
}

bool BackwardPass::WantsInput(int input) const {
  const auto& inputs = tape_.operations_[static_cast<std::size_t>(operation_)].inputs;
  const int node = inputs.at(static_cast<std::size_t>(input));
  return tape_.nodes_[static_cast<std::size_t>(node)].needs_gradient;
}

void BackwardPass::Input(int input, const Write& write) {
  if (WantsInput(input)) {
    const auto& inputs = tape_.operations_[static_cast<std::size_t>(operation_)].inputs;
    tape_.AddGradient(inputs[static_cast<std::size_t>(input)], write);
  }
}

void BackwardPass::PassOn(int input) {
  if (!WantsInput(input)) {
    return;
  }
  const Tape::Operation& operation = tape_.operations_[static_cast<std::size_t>(operation_)];
  const int index = operation.inputs[static_cast<std::size_t>(input)];
  Tape::Node& to = tape_.nodes_[static_cast<std::size_t>(index)];
  const Tensor& from = tape_.nodes_[static_cast<std::size_t>(operation.output)].gradient;
  Require(to.type == from.dtype(), "PassOn to an input of the output's type");
  if (to.has_gradient) {
    tape_.kernels_.Add(tape_.stream_, ElementsOf(to.gradient), ElementsOf(from),
                       ElementsOf(to.gradient));
  } else {
    to.gradient = from.Reshaped(to.shape);
    to.has_gradient = true;
  }
}

bool BackwardPass::WantsParameter(int parameter) const {
  const auto& parameters = tape_.operations_[static_cast<std::size_t>(operation_)].parameters;
  return tape_.parameters_[parameters.at(static_cast<std::size_t>(parameter))].trainable;
}

void BackwardPass::Parameter(int parameter, const WriteParameter& write) {
  if (!WantsParameter(parameter)) {
    return;
  }
  const auto& parameters = tape_.operations_[static_cast<std::size_t>(operation_)].parameters;
  const int index = parameters[static_cast<std::size_t>(parameter)];
  const FloatSpan accumulator = tape_.sink_->Accumulator(index);
  if (tape_.written_[static_cast<std::size_t>(index)]) {
    const Tensor more = tape_.Buffer({static_cast<std::int64_t>(accumulator.size())});
    write(Floats(more));
    tape_.kernels_.Add(tape_.stream_, accumulator, Floats(more), accumulator);
  } else {
    write(accumulator);
    tape_.written_[static_cast<std::size_t>(index)] = true;
  }
  Done(index);
}

void BackwardPass::ParameterSlices(int parameter, const IndexedSlices& slices) {
  if (!WantsParameter(parameter)) {
    return;
  }
  const auto& parameters = tape_.operations_[static_cast<std::size_t>(operation_)].parameters;
  const int index = parameters[static_cast<std::size_t>(parameter)];
  if (tape_.Drain()) {
    tape_.sink_->AddSlices(index, slices);
  }
  Done(index);
}

void BackwardPass::Rows(int table, std::span<const std::uint64_t> ids) {
  const int output = tape_.operations_[static_cast<std::size_t>(operation_)].output;
  const Tensor values = tape_.Fetch(tape_.nodes_[static_cast<std::size_t>(output)].gradient);
  if (tape_.Drain()) {
    tape_.sink_->AddRows(table, ids, Floats(values));
  }
}

void BackwardPass::Done(int parameter) {
  if (--tape_.uses_left_[static_cast<std::size_t>(parameter)] == 0) {
    tape_.sink_->Ready(parameter);
  }
}

}  // namespace cohort::nn
