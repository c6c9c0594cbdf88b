#include <cohort/nn/recorded_step.h>

#include <algorithm>
#include <utility>

#include <cohort/device/ahead_copy.h>

namespace cohort::nn {
namespace {

// Steps that are fed before one is captured: the first to see shapes, make plans and fill the pool;
// the second with the recording's own memory taken out of the pool.
constexpr int kFedSteps = 2;
// Sets of shapes and weights that are kept; beyond them the one that was used longest ago goes.
constexpr std::size_t kRecordings = 8;
// Of them, so many that differ in the weight only: one may not come again (of padded batches, or of
// scaled gradients).
constexpr int kWeights = 2;
// A recording that has been made so often anew, since gradients lie elsewhere each time, is not
// worth it.
constexpr int kCaptures = 4;
// Of a step whose gradients are awaited while it runs, about: each costs the host a launch.
constexpr std::size_t kParts = 8;

// Which parameters are Ready behind each part of a step.
using ReadyParts = std::vector<std::vector<int>>;

// Accumulators as they were before the capture; the order of Ready is kept. Cuts the step where so
// many bytes are Ready.
class CaptureSink final : public GradientSink {
 public:
  CaptureSink(const std::vector<FloatSpan>& accumulators, float loss_seed, std::size_t bytes,
              Device::Cut cut, ReadyParts& ready)
      : accumulators_(accumulators),
        loss_seed_(loss_seed),
        bytes_(bytes),
        cut_(std::move(cut)),
        ready_(ready) {
    ready_.assign(1, {});
  }
  std::span<float> Accumulator(int parameter) override {
    return accumulators_.at(static_cast<std::size_t>(parameter));
  }
  void AddSlices(int /*parameter*/, const IndexedSlices& /*slices*/) override {
    throw ContractError("a step with rows is not captured");
  }
  void Ready(int parameter) override {
    ready_.back().push_back(parameter);
    uncut_ += accumulators_.at(static_cast<std::size_t>(parameter)).size_bytes();
    if (bytes_ > 0 && uncut_ >= bytes_) {
      uncut_ = 0;
      cut_();
      ready_.emplace_back();
    }
  }
  float loss_seed() const override { return loss_seed_; }

 private:
  const std::vector<FloatSpan>& accumulators_;
  const float loss_seed_;
  const std::size_t bytes_;  // 0: it is not cut
  const Device::Cut cut_;
  ReadyParts& ready_;
  std::size_t uncut_ = 0;
};

// Of gradients behind which a step is cut; 0: nowhere.
std::size_t BytesOfPart(const std::vector<FloatSpan>& accumulators, const GradientSink& sink) {
  const auto early = static_cast<std::size_t>(sink.early_bytes());
  std::size_t all = 0;
  for (const FloatSpan span : accumulators) {
    all += span.size_bytes();
  }
  return early == 0 ? 0 : std::max(early, (all + kParts - 1) / kParts);
}

// By parameter; empty where it is not trainable.
std::vector<FloatSpan> Accumulators(const ParameterSet& parameters, GradientSink& sink) {
  std::vector<FloatSpan> spans(static_cast<std::size_t>(parameters.size()));
  for (int p = 0; p < parameters.size(); ++p) {
    if (parameters[p].trainable) {
      spans[static_cast<std::size_t>(p)] = sink.Accumulator(p);
    }
  }
  return spans;
}

bool SameMemory(const std::vector<FloatSpan>& a, const std::vector<FloatSpan>& b) {
  return std::ranges::equal(
      a, b, [](FloatSpan x, FloatSpan y) { return x.data() == y.data() && x.size() == y.size(); });
}

}  // namespace

struct RecordedStep::Recording {
  struct Input {
    DType dtype = DType::kFloat32;
    Shape shape;
    const std::byte* on_device = nullptr;  // read where it is; nullptr: copied to `placed`
    bool page_locked = false;  // then from where it is, before the graph; else through `staged`
    Tensor staged;             // in the host's memory
    Tensor placed;
  };
  std::vector<Input> inputs;
  float loss_seed = 0;
  Precision precision = Precision::kFloat32;
  int fed = 0;
  int captures = 0;
  bool replayable = true;
  std::vector<FloatSpan> accumulators;
  ReadyParts ready;
  std::vector<Tensor> outputs;                 // in the host's memory
  std::vector<Tensor> kept;                    // what the captured work reads
  std::vector<std::unique_ptr<Graph>> graphs;  // as many as parts of `ready`; empty: not captured
};

// The memory of a recording that will not be made.
void RecordedStep::GiveUp(Recording& recording) {
  for (Recording::Input& input : recording.inputs) {
    input.staged = Tensor();
    input.placed = Tensor();
  }
  recording.outputs.clear();
  recording.kept.clear();
  recording.accumulators.clear();
}

RecordedStep::RecordedStep(ParameterSet& parameters, Workspace& workspace)
    : parameters_(parameters), workspace_(workspace) {}

RecordedStep::~RecordedStep() = default;

bool RecordedStep::PageLocked(const Tensor& input) const {
  return input.space() == MemorySpace::kHost && workspace_.device().PageLocked(input.raw());
}

RecordedStep::Recording& RecordedStep::Find(std::span<const Tensor> inputs, float loss_seed,
                                            Precision precision) {
  const auto alike = [&](const Recording& r) {
    return r.precision == precision &&
           std::ranges::equal(r.inputs, inputs, [this](const Recording::Input& a, const Tensor& b) {
             return a.dtype == b.dtype() && a.shape == b.shape() &&
                    a.on_device == (b.space() == MemorySpace::kDevice ? b.raw() : nullptr) &&
                    a.page_locked == PageLocked(b);
           });
  };
  const auto same = [&](const Recording& r) { return r.loss_seed == loss_seed && alike(r); };
  if (const auto it = std::ranges::find_if(recordings_, same); it != recordings_.end()) {
    recordings_.splice(recordings_.begin(), recordings_, it);
    return recordings_.front();
  }
  int others = 0;
  recordings_.remove_if([&](const Recording& r) { return alike(r) && ++others >= kWeights; });
  if (recordings_.size() == kRecordings) {
    recordings_.pop_back();
  }
  Recording& made = recordings_.emplace_front();
  made.loss_seed = loss_seed;
  made.precision = precision;
  for (const Tensor& input : inputs) {
    made.inputs.push_back(
        {.dtype = input.dtype(),
         .shape = input.shape(),
         .on_device = input.space() == MemorySpace::kDevice ? input.raw() : nullptr,
         .page_locked = PageLocked(input),
         .staged = {},
         .placed = {}});
  }
  return made;
}

Result<std::vector<Tensor>> RecordedStep::Run(Stream& stream, GradientSink& sink,
                                              const TapeOptions& options,
                                              std::span<const Tensor> inputs, const Body& body,
                                              std::chrono::milliseconds timeout) {
  Require(options.training, "a recorded step is one that trains");
  Recording& recording = Find(inputs, sink.loss_seed(), options.precision);
  if (!recording.graphs.empty() &&
      !SameMemory(recording.accumulators, Accumulators(parameters_, sink))) {
    recording.graphs.clear();  // gradients lie elsewhere now
  }
  if (recording.graphs.empty() && (!recording.replayable || recording.fed < kFedSteps ||
                                   !Capture(recording, stream, sink, options, inputs, body))) {
    return Feed(recording, stream, sink, options, inputs, body, timeout);
  }
  const Range range(Phase::kReplay, options.step);
  return Replay(recording, stream, sink, inputs, timeout);
}

Result<std::vector<Tensor>> RecordedStep::Feed(Recording& recording, Stream& stream,
                                               GradientSink& sink, const TapeOptions& options,
                                               std::span<const Tensor> inputs, const Body& body,
                                               std::chrono::milliseconds timeout) {
  Tape tape(parameters_, stream, workspace_, options);
  const std::vector<Variable> variables = body(tape, inputs);
  Require(!variables.empty(), "a step's body returns its loss");
  tape.Backward(variables.front(), sink);
  std::vector<Tensor> outputs;
  outputs.reserve(variables.size());
  for (const Variable& variable : variables) {
    outputs.push_back(tape.Fetch(variable));
  }
  COHORT_RETURN_IF_ERROR(tape.Finish(timeout));
  recording.replayable = recording.replayable && tape.replayable();
  if (++recording.fed == 1 && recording.replayable) {
    for (Recording::Input& input : recording.inputs) {
      if (input.on_device == nullptr) {
        if (!input.page_locked) {
          input.staged = workspace_.TakeHost(input.dtype, input.shape);
        }
        input.placed = workspace_.Take(input.dtype, input.shape);
      }
    }
    for (const Tensor& output : outputs) {
      recording.outputs.push_back(workspace_.TakeHost(output.dtype(), output.shape()));
    }
  }
  return outputs;
}

// The step as a graph; false if the device makes none.
bool RecordedStep::Capture(Recording& recording, Stream& stream, GradientSink& sink,
                           const TapeOptions& options, std::span<const Tensor> inputs,
                           const Body& body) {
  if (++recording.captures > kCaptures) {
    recording.replayable = false;
    GiveUp(recording);
    return false;
  }
  Device& device = workspace_.device();
  recording.accumulators = Accumulators(parameters_, sink);
  recording.kept.clear();
  const std::size_t bytes = BytesOfPart(recording.accumulators, sink);
  recording.graphs = device.CaptureParts(stream, [&](const Device::Cut& cut) {
    CaptureSink capture_sink(recording.accumulators, recording.loss_seed, bytes, cut,
                             recording.ready);
    std::vector<Tensor> placed;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const Recording::Input& input = recording.inputs[i];
      placed.push_back(input.on_device == nullptr ? input.placed : inputs[i]);
      if (input.on_device != nullptr) {
        recording.kept.push_back(inputs[i]);
      } else if (!input.page_locked) {
        device.Copy(stream, input.staged.raw(), input.placed.raw(), input.placed.bytes());
      }
    }
    Tape tape(parameters_, stream, workspace_, options);
    const std::vector<Variable> variables = body(tape, placed);
    tape.Backward(variables.front(), capture_sink);
    for (std::size_t i = 0; i < variables.size(); ++i) {
      const Tensor from = tape.InFloat32(variables[i].tensor());
      const Tensor& to = recording.outputs.at(i);
      Require(from.bytes() == to.bytes(), "a body puts the same work on the stream every time");
      device.Copy(stream, from.raw(), to.raw(), to.bytes());
    }
    std::ranges::move(tape.TakeKept(), std::back_inserter(recording.kept));
  });
  if (recording.graphs.size() == 1) {  // the device may not have cut it
    ReadyParts whole(1);
    for (const std::vector<int>& part : recording.ready) {
      whole.front().insert(whole.front().end(), part.begin(), part.end());
    }
    recording.ready = std::move(whole);
  }
  recording.replayable = !recording.graphs.empty();
  if (!recording.replayable) {
    GiveUp(recording);
  }
  return recording.replayable;
}

Result<std::vector<Tensor>> RecordedStep::Replay(Recording& recording, Stream& stream,
                                                 GradientSink& sink, std::span<const Tensor> inputs,
                                                 std::chrono::milliseconds timeout) {
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Recording::Input& input = recording.inputs[i];
    if (input.page_locked) {
      const auto ahead = AheadCopy::Of(inputs[i], workspace_.device(), stream);
      workspace_.device().Copy(stream, ahead.value_or(inputs[i]).raw(), input.placed.raw(),
                               inputs[i].bytes());
    } else if (input.on_device == nullptr) {
      std::copy_n(inputs[i].raw(), inputs[i].bytes(), input.staged.raw());
    }
  }
  for (std::size_t part = 0; part < recording.graphs.size(); ++part) {
    recording.graphs[part]->Replay(stream);
    for (const int parameter : recording.ready.at(part)) {
      sink.Ready(parameter);
    }
  }
  COHORT_RETURN_IF_ERROR(stream.Synchronize(DeadlineAfter(timeout)));
  ++replays_;
  return recording.outputs;
}

RecordedStep& RecordedSteps::For(int local_replica, const std::shared_ptr<Device>& device,
                                 ParameterSet& parameters) {
  const std::lock_guard lock(mutex_);
  RecordedStep& step =
      steps_.try_emplace(local_replica, parameters, workspaces_.For(local_replica, device))
          .first->second;
  Require(&step.parameters() == &parameters,
          "a replica's recorded step is asked for with the parameters it was made of; other "
          "strategies take other RecordedSteps");
  return step;
}

}  // namespace cohort::nn
