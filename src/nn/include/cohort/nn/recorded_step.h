// RecordedStep: a training step that a device is fed once, and then replays.
//
// The step of a small model is many short kernels, and to feed them takes longer than to run them.
// From the third step with inputs of the same shapes on, where the device can capture
// (Device::Capture), all of them go to the stream as one.
//
//   RecordedStep step(parameters, workspace);
//   COHORT_ASSIGN_OR_RETURN(const auto out, step.Run(
//       stream, sink, {.training = true}, {images, labels},
//       [&](Tape& tape, std::span<const Tensor> in) -> std::vector<Variable> {
//         const Variable logits = model.Logits(tape.Input(in[0]));
//         return {SoftmaxCrossEntropy(logits, in[1]), logits};
//       }));
//   // out[0] is the loss, out[1] the logits
//
// The body must put the same work on the stream for inputs of the same shapes. What cannot be
// replayed is fed every time: on a device that does not capture, and where an operation depends on
// the step's number (dropout) or works on the host (rows of tables, batch norm over replicas,
// sparse gradients).
//
// Where gradients are awaited while the pass goes on (GradientSink::early_bytes), the step is
// captured in a few parts, and Ready is said behind the part that wrote a gradient: what is done
// with it begins while the next ones run. Elsewhere it is one graph.
//
// Thread rules: the thread that feeds the stream. Lives no longer than the workspace.

#pragma once

#include <chrono>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include <cohort/nn/tape.h>

namespace cohort::nn {

class RecordedStep {
 public:
  // Records the forward pass. The first variable is the loss; all are brought to the host.
  using Body = std::function<std::vector<Variable>(Tape& tape, std::span<const Tensor> inputs)>;

  // Both must outlive this.
  RecordedStep(ParameterSet& parameters, Workspace& workspace);
  ~RecordedStep();
  RecordedStep(const RecordedStep&) = delete;
  RecordedStep& operator=(const RecordedStep&) = delete;

  // Forward and backward, finished when it returns; what the body's variables hold, in the host's
  // memory, until the next Run. Inputs are in the host's memory or the device's.
  Result<std::vector<Tensor>> Run(Stream& stream, GradientSink& sink, const TapeOptions& options,
                                  std::span<const Tensor> inputs, const Body& body,
                                  std::chrono::milliseconds timeout = std::chrono::minutes(10));

  std::int64_t replays() const { return replays_; }
  ParameterSet& parameters() const { return parameters_; }

 private:
  struct Recording;
  static void GiveUp(Recording& recording);
  bool PageLocked(const Tensor& input) const;
  Recording& Find(std::span<const Tensor> inputs, float loss_seed, Precision precision);
  Result<std::vector<Tensor>> Feed(Recording& recording, Stream& stream, GradientSink& sink,
                                   const TapeOptions& options, std::span<const Tensor> inputs,
                                   const Body& body, std::chrono::milliseconds timeout);
  bool Capture(Recording& recording, Stream& stream, GradientSink& sink, const TapeOptions& options,
               std::span<const Tensor> inputs, const Body& body);
  Result<std::vector<Tensor>> Replay(Recording& recording, Stream& stream, GradientSink& sink,
                                     std::span<const Tensor> inputs,
                                     std::chrono::milliseconds timeout);

  ParameterSet& parameters_;
  Workspace& workspace_;
  std::list<Recording> recordings_;  // one for each set of shapes
  std::int64_t replays_ = 0;
};

// A step for each local replica, made at the first call. Any thread may call For.
class RecordedSteps {
 public:
  // Outlives this, as do parameters.
  explicit RecordedSteps(Workspaces& workspaces) : workspaces_(workspaces) {}
  // The replica's, whose parameters stay where they are.
  RecordedStep& For(int local_replica, const std::shared_ptr<Device>& device,
                    ParameterSet& parameters);

 private:
  Workspaces& workspaces_;
  std::mutex mutex_;
  std::map<int, RecordedStep> steps_;
};

}  // namespace cohort::nn
