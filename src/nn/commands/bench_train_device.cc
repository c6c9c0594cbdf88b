#include "nn/commands/bench_train_device.h"

#include <cohort/core/random.h>
#include <cohort/device/range.h>
#include <cohort/device/step_trace.h>
#include <cohort/nn/gpt.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/models.h>
#include <cohort/nn/recorded_step.h>
#include <cohort/optim/optimizers.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace cohort {
namespace {

constexpr std::chrono::minutes kTimeout{5};
constexpr int kWarmUp = 4;  // steps: the last of them is a graph's first replay

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

double MillisecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

// Memory of one device, and copies to it.
class Placement {
 public:
  explicit Placement(std::shared_ptr<Device> device)
      : device_(std::move(device)), stream_(device_->MakeStream()) {}

  const std::shared_ptr<Device>& device() const { return device_; }
  Stream& stream() const { return *stream_; }
  Tensor Allocate(DType dtype, const Shape& shape) const {
    const auto bytes = static_cast<std::size_t>(shape.elements()) * SizeOf(dtype);
    return {dtype, shape, device_->Allocate(bytes, "bench"), device_->memory_space()};
  }
  Tensor Place(const Tensor& tensor) const {
    Tensor placed = Allocate(tensor.dtype(), tensor.shape());
    device_->Copy(*stream_, tensor.raw(), placed.raw(), tensor.bytes());
    OrThrow(Synchronize());
    return placed;
  }
  Status Synchronize() const { return stream_->Synchronize(DeadlineAfter(kTimeout)); }

 private:
  const std::shared_ptr<Device> device_;
  const std::unique_ptr<Stream> stream_;
};

// Gradients in an arena laid out like the parameters.
class ArenaSink final : public GradientSink {
 public:
  ArenaSink(const ParameterSet& parameters, Tensor arena, float weight)
      : parameters_(parameters), arena_(std::move(arena)), weight_(weight) {}
  std::span<float> Accumulator(int parameter) override {
    return all().subspan(static_cast<std::size_t>(parameters_[parameter].offset),
                         parameters_.value(parameter).size());
  }
  void AddSlices(int, const IndexedSlices&) override {
    throw ContractError("no model here has sparse gradients");
  }
  void Ready(int) override {}
  float loss_seed() const override { return weight_; }
  std::span<float> all() const { return arena_.data<float>(); }

 private:
  const ParameterSet& parameters_;
  const Tensor arena_;
  const float weight_;
};

Tensor RandomIds(const Shape& shape, std::int64_t below, std::uint64_t seed) {
  Tensor ids(DType::kInt64, shape);
  const Philox philox(seed, "ids");
  std::uint64_t i = 0;
  for (std::int64_t& id : ids.data<std::int64_t>()) {
    id = static_cast<std::int64_t>(philox.Below(static_cast<std::uint64_t>(below), i++));
  }
  return ids;
}

bool IsResNet(const std::string& model) { return model.starts_with("resnet"); }

class Trainer {
 public:
  Trainer(const DeviceBenchOptions& options, std::shared_ptr<Device> device)
      : options_(options), place_(std::move(device)), workspace_(place_.device()) {
    if (options.model == "gpt2") {
      MakeGpt();
    } else if (IsResNet(options.model)) {
      MakeResNet();
    } else {
      MakeImages();
    }
    parameters_.Build();
    on_device_.emplace(parameters_.CopyOn(*place_.device(), place_.stream()));
    OrThrow(place_.Synchronize());
    const Shape arena{static_cast<std::int64_t>(parameters_.all().size())};
    sink_.emplace(*on_device_, place_.Place(Tensor(DType::kFloat32, arena)),
                  static_cast<float>(examples_));
    for (int s = 0; s < optimizer_->num_slots(); ++s) {
      slots_.push_back(place_.Place(Tensor(DType::kFloat32, arena)));
    }
    step_.emplace(*on_device_, workspace_);
    MakeParts();
  }

  double StepMilliseconds() {
    const auto start = std::chrono::steady_clock::now();
    ++steps_;
    const Range step(Phase::kStep, steps_);
    const auto out = OrThrow(step_->Run(
        place_.stream(), *sink_,
        {.step = steps_, .intra_op_threads = options_.threads, .precision = options_.precision},
        inputs_, body_, kTimeout));
    loss_ = out.front().data<float>()[0];
    const Range update(Phase::kUpdate, steps_);
    workspace_.KernelsFor(options_.threads)
        .Update(place_.stream(), optimizer_->RuleAt(steps_), parts_);
    return MillisecondsSince(start);
  }
  Status Synchronize() { return place_.Synchronize(); }

  double flops() const { return flops_; }
  std::int64_t tokens() const { return tokens_; }
  std::int64_t replays() const { return step_->replays(); }
  float loss() const { return loss_; }
  std::int64_t parameters() const { return parameters_.elements(); }

 private:
  // What is updated: parameters that are trained, those that lie together as one.
  void MakeParts() {
    for (int begin = 0; begin < parameters_.size();) {
      int end = begin;
      while (end < parameters_.size() && parameters_[end].trainable) {
        ++end;
      }
      if (end > begin) {
        const auto offset = static_cast<std::size_t>(parameters_[begin].offset);
        const auto size = static_cast<std::size_t>(parameters_[end - 1].offset) +
                          parameters_.value(end - 1).size() - offset;
        UpdatePart& part =
            parts_.emplace_back(UpdatePart{.value = on_device_->all().subspan(offset, size),
                                           .gradient = sink_->all().subspan(offset, size),
                                           .slots = {},
                                           .gradient_scale = 1.0F / sink_->loss_seed()});
        for (std::size_t s = 0; s < slots_.size(); ++s) {
          part.slots[s] = slots_[s].data<float>().subspan(offset, size);
        }
      }
      begin = end + 1;
    }
  }

  // Random images [height, width, channels] of random classes.
  void MakeClassifier(const nn::ImageModelOptions& model) {
    images_ = OrThrow(nn::MakeImageModel(options_.model, parameters_, model));
    const Shape& image = model.image;
    Tensor pixels(DType::kFloat32, {options_.batch, image[0], image[1], image[2]});
    const Philox philox(1, "images");
    std::uint64_t i = 0;
    for (float& pixel : pixels.data<float>()) {
      pixel = philox.Uniform(i++);
    }
    inputs_ = {place_.Place(pixels), place_.Place(RandomIds({options_.batch}, model.classes, 2))};
    body_ = [this](nn::Tape& tape, std::span<const Tensor> in) -> std::vector<nn::Variable> {
      return {nn::SoftmaxCrossEntropy(images_->Logits(tape.Input(in[0])), in[1])};
    };
    examples_ = options_.batch;
  }

  void MakeImages() {
    MakeClassifier({.seed = 1});
    optimizer_ = Sgd({.learning_rate = 0.01});
    const std::vector<double> products =
        options_.model == "mlp"
            ? std::vector<double>{784.0 * 512, 512.0 * 512, 512.0 * 10}
            : std::vector<double>{784.0 * 9 * 32, 196.0 * 9 * 32 * 64, 3136.0 * 128, 128.0 * 10};
    for (std::size_t p = 0; p < products.size(); ++p) {
      flops_ += 2.0 * options_.batch * products[p] * (p == 0 ? 2 : 3);
    }
  }

  void MakeResNet() {
    MakeClassifier(
        {.image = {options_.image_size, options_.image_size, 3}, .classes = 1000, .seed = 1});
    optimizer_ = Sgd({.learning_rate = 0.1, .momentum = 0.9, .l2 = 1e-4});
    // Of the forward pass on 224 x 224, as the field counts; backward twice as many. Other images
    // have them in proportion to their pixels, but for rounding at the edges.
    const double multiply_adds = options_.model == "resnet50" ? 4.1e9 : 1.8e9;
    const double side = options_.image_size / 224.0;
    flops_ = 3 * 2 * multiply_adds * side * side * options_.batch;
  }

  void MakeGpt() {
    const nn::GptOptions gpt{.length = options_.length, .seed = 1};
    gpt_ = std::make_unique<nn::Gpt>(parameters_, gpt);
    optimizer_ = AdamW({.learning_rate = 3e-4});
    tokens_ = std::int64_t{options_.batch} * options_.length;
    inputs_ = {place_.Place(RandomIds({options_.batch, options_.length}, gpt.vocabulary, 1)),
               place_.Place(RandomIds({tokens_}, gpt.vocabulary, 2))};
    body_ = [this](nn::Tape& tape, std::span<const Tensor> in) -> std::vector<nn::Variable> {
      return {gpt_->Loss(tape, in[0], in[1])};
    };
    examples_ = tokens_;
    // 6 for each parameter but the positions', and attention's two products, forward and twice
    // backward, over all places (as the field counts, though half of them are masked).
    const double weights = 124'439'808.0 - 1024.0 * 768.0;
    flops_ = static_cast<double>(tokens_) *
             (6 * weights + 12.0 * static_cast<double>(gpt.layers * gpt.width * gpt.length));
  }

  const DeviceBenchOptions options_;
  Placement place_;
  ParameterSet parameters_;
  std::optional<ParameterSet> on_device_;
  std::unique_ptr<nn::ImageModel> images_;
  std::unique_ptr<nn::Gpt> gpt_;
  std::unique_ptr<Optimizer> optimizer_;
  std::optional<ArenaSink> sink_;
  std::vector<Tensor> slots_;
  std::vector<UpdatePart> parts_;
  nn::Workspace workspace_;
  std::optional<nn::RecordedStep> step_;
  nn::RecordedStep::Body body_;
  std::vector<Tensor> inputs_;
  std::int64_t examples_ = 0;
  std::int64_t tokens_ = 0;
  std::int64_t steps_ = 0;
  double flops_ = 0;
  float loss_ = 0;
};

// Of one large product, the best of a few.
double MatMulFlopsPerSecond(const std::shared_ptr<Device>& device, int threads, DType type) {
  const std::int64_t n = device->memory_space() == MemorySpace::kHost ? 1024 : 8192;
  const Placement place(device);
  const std::unique_ptr<Kernels> kernels = device->MakeKernels(threads);
  Tensor random(DType::kFloat32, {n, n});
  const Philox philox(1, "product");
  std::uint64_t i = 0;
  for (float& x : random.data<float>()) {
    x = philox.Uniform(i++) - 0.5F;
  }
  const Tensor wide = place.Place(random);
  const Tensor a = place.Allocate(type, {n, n});
  const Tensor b = place.Allocate(type, {n, n});
  const Tensor c = place.Allocate(type, {n, n});
  for (const Tensor& operand : {a, b}) {
    kernels->Copy(place.stream(), nn::Floats(wide), nn::ElementsOf(operand));
  }
  OrThrow(place.Synchronize());
  double best = 1e30;
  for (int round = 0; round < 5; ++round) {
    const auto start = std::chrono::steady_clock::now();
    kernels->MatMul({.m = n, .n = n, .k = n, .type = type, .out = type})
        .Run(place.stream(), a.raw(), b.raw(), nullptr, c.raw());
    OrThrow(place.Synchronize());
    best = std::min(best, MillisecondsSince(start));
  }
  const auto size = static_cast<double>(n);
  return 2 * size * size * size / (best * 1e-3);
}

}  // namespace

Result<nlohmann::json> MeasureOnDevice(const DeviceBenchOptions& options) {
  COHORT_ASSIGN_OR_RETURN(const auto devices, OpenDevices(options.device));
  const double peak =
      MatMulFlopsPerSecond(devices.front(), options.threads, nn::ComputeType(options.precision));
  const int steps = options.model == "gpt2" ? 2 : IsResNet(options.model) ? 4 : 100;
  std::unique_ptr<StepTrace> trace;
  if (!options.step_trace.empty()) {
    COHORT_ASSIGN_OR_RETURN(
        trace, StepTrace::Start({.path = options.step_trace,
                                 .first_step = kWarmUp + 1,
                                 .last_step = kWarmUp + std::min(10, options.rounds * steps),
                                 .log = options.log}));
  }
  Trainer trainer(options, devices.front());
  for (int i = 0; i < kWarmUp; ++i) {
    trainer.StepMilliseconds();
  }
  COHORT_RETURN_IF_ERROR(trainer.Synchronize());
  std::vector<double> rounds;
  for (int round = 0; round < options.rounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < steps; ++i) {
      trainer.StepMilliseconds();
    }
    COHORT_RETURN_IF_ERROR(trainer.Synchronize());
    rounds.push_back(MillisecondsSince(start) / steps);
  }
  if (trace != nullptr) {
    COHORT_RETURN_IF_ERROR(trace->Finish());
  }
  const double milliseconds = Median(rounds);
  nlohmann::json result = {{"model", options.model},
                           {"device", options.device},
                           {"precision", nn::PrecisionName(options.precision)},
                           {"batch", options.batch},
                           {"parameters", trainer.parameters()},
                           {"rounds", options.rounds},
                           {"ms_per_step", milliseconds},
                           {"fastest_ms_per_step", *std::ranges::min_element(rounds)},
                           {"replayed", trainer.replays() > 0},
                           {"loss", trainer.loss()},
                           {"tflops", trainer.flops() / milliseconds / 1e9},
                           {"matmul_tflops", peak / 1e12},
                           {"share_of_matmul", trainer.flops() / (milliseconds * 1e-3) / peak}};
  if (IsResNet(options.model)) {
    result["image_size"] = options.image_size;
  }
  if (trainer.tokens() > 0) {
    result["tokens_per_second"] = static_cast<double>(trainer.tokens()) / milliseconds * 1e3;
  } else {
    result["examples_per_second"] = options.batch / milliseconds * 1e3;
  }
  return result;
}

}  // namespace cohort
