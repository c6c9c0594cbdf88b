// Tape: records operations as they are called, and runs them backwards.
//
// One tape is one step of one replica: record a forward pass, call Backward, Finish. Everything is
// put on the replica's stream, which may run late: elements of a Variable may be read only after
// Finish. Each operation is coarse (a whole layer) and brings its own backward function.
//
//   Tape tape(parameters, stream, workspace, {.step = step});
//   Variable logits = model.Logits(tape, tape.Input(images));
//   Variable loss = SoftmaxCrossEntropy(logits, labels);
//   tape.Backward(loss, sink);
//   COHORT_RETURN_IF_ERROR(tape.Finish());
//
// Thread rules: used by the thread that feeds the stream. Shapes and types that do not fit are a
// ContractError; what only the data can tell (a label out of range) is Finish's status.

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <cohort/core/tensor.h>
#include <cohort/device/kernels.h>
#include <cohort/device/range.h>
#include <cohort/device/stream.h>
#include <cohort/nn/precision.h>
#include <cohort/nn/workspace.h>
#include <cohort/optim/gradient_sink.h>
#include <cohort/optim/parameter_set.h>

namespace cohort::nn {

class Tape;
struct LookedUp;  // looked_up.h

// A value on a tape. A handle: copies are the same value. Lives no longer than its tape, but its
// tensor may.
class Variable {
 public:
  const Shape& shape() const { return tensor_.shape(); }
  const Tensor& tensor() const { return tensor_; }
  // Of a variable with one element, after Finish; of one in a device's memory a copy that the host
  // waits for.
  float value() const;
  Tape& tape() const;

 private:
  friend class Tape;
  friend class BackwardPass;
  Tape* tape_ = nullptr;
  int node_ = -1;
  Tensor tensor_;
};

struct TapeOptions {
  bool training = true;  // false: nothing is recorded, dropout is off, batch norm uses its averages
  std::uint64_t seed = 0;          // of dropout
  std::int64_t step = 0;           // of dropout: other numbers in every step
  std::int64_t first_example = 0;  // of dropout: where this replica's slice of the batch begins
  // Whether batch norm moves its running averages. False on all but one of the replicas that share
  // a ParameterSet: they would write to the same memory.
  bool updates_averages = true;
  int intra_op_threads = 0;  // 0: one for each core that this process may run on
  Precision precision = Precision::kFloat32;
};

// What an operation's backward function works with. `write` functions put the work that overwrites
// a span on the stream; where the same value was used before, the span is scratch memory that is
// then added.
class BackwardPass {
 public:
  using Write = std::function<void(Elements gradient)>;
  using WriteParameter = std::function<void(FloatSpan gradient)>;

  // d(loss)/d(output). The operation may overwrite it: nobody reads it afterwards.
  Elements output_gradient() const;
  bool WantsInput(int input) const;
  // An input's gradient is of the input's type, as the output's is of the output's.
  void Input(int input, const Write& write);
  // The output's gradient, under another shape, is the input's, which is of the same type.
  void PassOn(int input);
  bool WantsParameter(int parameter) const;
  // Declares the gradient complete for this use; the last use makes it Ready.
  void Parameter(int parameter, const WriteParameter& write);
  // The same with rows; waits for the stream first, since the sink may read them at once.
  void ParameterSlices(int parameter, const IndexedSlices& slices);
  // The output's gradient is that of these rows of a table; waits for the stream first.
  void Rows(int table, std::span<const std::uint64_t> ids);
  // The same on a device. At the end of the pass the gradients of equal ids are added up there, of
  // all lookups of a table, and the sums alone are copied to the host.
  void Rows(std::shared_ptr<const LookedUp> rows);

 private:
  friend class Tape;
  BackwardPass(Tape& tape, int operation) : tape_(tape), operation_(operation) {}
  void Done(int parameter);

  Tape& tape_;
  int operation_;
};

class Tape {
 public:
  // All must outlive the tape. `parameters` is built.
  Tape(ParameterSet& parameters, Stream& stream, Workspace& workspace, TapeOptions options = {});
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // A constant; float32, of the host's memory or the device's. With `needs_gradient`, Backward
  // computes Gradient(variable) too.
  Variable Input(const Tensor& tensor, bool needs_gradient = false);
  // Puts the backward pass on the stream, once per tape. `loss` has one element. Every trainable
  // parameter becomes Ready exactly once: at its last use, or at the end if the loss does not
  // depend on it.
  void Backward(const Variable& loss, GradientSink& sink);
  // Blocks until all has run; the first error of this tape's work.
  Status Finish(std::chrono::milliseconds timeout = std::chrono::minutes(10));
  Tensor Gradient(const Variable& input) const;
  // The elements in the host's memory, there after Finish: the tensor itself where the device
  // shares the host's memory, otherwise a copy. What is of 16 bits comes as float32.
  Tensor Fetch(const Tensor& tensor);
  Tensor Fetch(const Variable& variable) { return Fetch(variable.tensor()); }

  // --- for operations
  // The tensor in the device's memory: itself if that is where it is, otherwise a copy put on the
  // stream. Kept until the stream is past this tape's work.
  Tensor Place(const Tensor& tensor);
  using BackwardFunction = std::function<void(BackwardPass&)>;
  // A variable made of `inputs` and `parameters` (indices in the set). Both keep their order in the
  // numbers that BackwardPass takes. `trains_rows`: of a table too.
  Variable Record(Tensor output, const std::vector<Variable>& inputs, std::vector<int> parameters,
                  BackwardFunction backward, bool trains_rows = false);
  // Memory for an output or for something between; freed with its last handle.
  Tensor Buffer(const Shape& shape, DType type = DType::kFloat32) {
    return workspace_.Take(type, shape);
  }
  // Keeps memory until the stream is past this tape's work.
  void Keep(Tensor tensor) {
    finished_ = false;
    kept_.push_back(std::move(tensor));
  }
  // What was kept, to the caller: whoever puts this tape's work on the stream again.
  std::vector<Tensor> TakeKept() {
    finished_ = true;
    return std::move(kept_);
  }
  // Says that this tape's work must not be put on the stream again as it is: it depends on the
  // step's number, or was done by the host.
  void NotReplayable() { replayable_ = false; }
  bool replayable() const { return replayable_; }
  // Blocks until the stream has run dry; false if its work, or earlier work, failed.
  bool Drain();
  // The parameter's values, which must have this shape.
  ConstFloatSpan Value(int parameter, const Shape& shape) const;
  // What products take under the tape's policy, and the parameter's values in it. Those of 16 bits
  // are made of all parameters at the first call.
  DType compute_type() const { return ComputeType(options_.precision); }
  ConstElements Operand(int parameter, const Shape& shape);
  // On the device; of 16 bits, a copy in float32.
  Tensor InFloat32(const Tensor& tensor);

  ParameterSet& parameters() { return parameters_; }
  Stream& stream() { return stream_; }
  Kernels& kernels() { return kernels_; }
  Workspace& workspace() { return workspace_; }
  const TapeOptions& options() const { return options_; }

 private:
  friend class BackwardPass;
  struct Node {
    Shape shape;
    DType type = DType::kFloat32;
    bool needs_gradient = false;
    bool leaf = false;
    Tensor gradient;
    bool has_gradient = false;
  };
  struct Operation {
    int output;
    std::vector<int> inputs;
    std::vector<int> parameters;
    BackwardFunction backward;
  };
  struct RowGradient {
    std::shared_ptr<const LookedUp> rows;
    Tensor gradient;  // [asked, width] on the device; of SumOfRows, [ids, width] on the host
  };
  void AddGradient(int node, const BackwardPass::Write& write);
  void MarkReached(int loss);
  // tape_rows.cc
  RowGradient AsOne(const std::vector<RowGradient>& parts);
  Tensor SumOfRows(const RowGradient& gradient);
  void SendRows();

  ParameterSet& parameters_;
  Stream& stream_;
  Workspace& workspace_;
  const TapeOptions options_;
  Kernels& kernels_;
  Range forward_;  // until Backward
  std::vector<Node> nodes_;
  std::vector<Operation> operations_;
  std::vector<Tensor> kept_;
  Tensor operands_;               // all parameters in compute_type(), once it is needed
  std::optional<Status> failed_;  // an error that the stream told before Finish
  bool replayable_ = true;
  bool finished_ = false;  // nothing of this tape is left on the stream
  // During Backward.
  GradientSink* sink_ = nullptr;
  std::vector<bool> reached_;   // by node: the loss depends on it
  std::vector<int> uses_left_;  // by parameter
  std::vector<bool> written_;   // by parameter: a use has written the accumulator
  // Of lookups on a device, in the order in which the pass came to them.
  std::vector<RowGradient> row_gradients_;
};

inline FloatSpan Floats(const Tensor& tensor) { return tensor.data<float>(); }
inline Elements ElementsOf(const Tensor& tensor) {
  return {tensor.raw(), static_cast<std::size_t>(tensor.elements()), tensor.dtype()};
}

}  // namespace cohort::nn
