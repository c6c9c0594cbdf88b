#include "training_rounds.h"

#include <malloc.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <sstream>

#include <cohort/cluster/folder_store.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>
#include <cohort/core/random.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/models.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include "core/commands/processes.h"
#include "core/commands/scratch_folder.h"
#include "nn/commands/torch_peer.h"

namespace cohort {
namespace {

using Clock = std::chrono::steady_clock;

// 23 MB of parameters, nearly all in two matrices: more to send than to compute.
class WideMlp final : public nn::ImageModel {
 public:
  explicit WideMlp(ParameterSet& p)
      : hidden1_(p, "hidden1", 784, 2048, {.activation = Activation::kRelu, .seed = 1}),
        hidden2_(p, "hidden2", 2048, 2048, {.activation = Activation::kRelu, .seed = 1}),
        logits_(p, "logits", 2048, 10, {.seed = 1}) {}
  nn::Variable Logits(const nn::Variable& images) const override {
    return logits_(hidden2_(hidden1_(nn::Flatten(images))));
  }

 private:
  nn::Dense hidden1_, hidden2_, logits_;
};

Result<std::unique_ptr<nn::ImageModel>> MakeModel(const std::string& name,
                                                  ParameterSet& parameters) {
  if (name == "mlp2048") {
    return std::make_unique<WideMlp>(parameters);
  }
  return nn::MakeImageModel(name, parameters, {.seed = 1});
}

data::Batch RandomBatch(int size, int rank) {
  Tensor images(DType::kFloat32, {size, 28, 28, 1});
  Tensor labels(DType::kInt64, {size});
  const Philox philox(static_cast<std::uint64_t>(rank) + 1, "images");
  std::uint64_t i = 0;
  for (float& pixel : images.data<float>()) {
    pixel = philox.Uniform(i++);
  }
  for (std::int64_t& label : labels.data<std::int64_t>()) {
    label = static_cast<std::int64_t>(philox.Below(10, i++));
  }
  return {.size = size, .features = {{"image", images}, {"label", labels}}};
}

Result<std::unique_ptr<Communicator>> Connect(const TrainingOptions& options,
                                              const std::string& name) {
  FolderStore store(options.folder);
  if (options.transport == "shm") {
    return MakeShmCommunicator(options.rank, options.workers, store, name,
                               {.connect_timeout = options.timeout}, {.timeout = options.timeout});
  }
  return MakeTcpCommunicator(
      options.rank, options.workers, store, name,
      {.rendezvous_host = options.rendezvous_host, .connect_timeout = options.timeout},
      {.timeout = options.timeout});
}

// A contestant on one worker.
class Trainee {
 public:
  static Result<std::unique_ptr<Trainee>> Make(const Contestant& contestant,
                                               const TrainingOptions& options) {
    std::unique_ptr<Trainee> trainee(new Trainee());
    COHORT_ASSIGN_OR_RETURN(trainee->model_, MakeModel(options.model, trainee->parameters_));
    trainee->parameters_.Build();
    trainee->batch_.replicas = {RandomBatch(contestant.batch, options.rank)};
    SynchronousParts parts = {.kind = "one_device", .cluster = {}, .communicator = nullptr};
    if (contestant.communicates && options.workers > 1) {
      parts.kind = "multi_worker_mirrored";
      COHORT_ASSIGN_OR_RETURN(parts.communicator, Connect(options, contestant.name));
    }
    StrategyOptions how;
    how.intra_op_threads = 1;
    how.communication.timeout = options.timeout;
    how.communication.implementation =
        parts.communicator == nullptr ? "auto" : contestant.algorithm;
    if (contestant.bucket_bytes > 0) {
      how.first_bucket_bytes = contestant.first_bucket_bytes;
      how.communication.bytes_per_pack = contestant.bucket_bytes;
    }
    COHORT_ASSIGN_OR_RETURN(trainee->strategy_,
                            MakeSynchronousStrategy(std::move(parts), std::move(how)));
    COHORT_RETURN_IF_ERROR(
        trainee->strategy_->Bind(trainee->parameters_, Sgd({.learning_rate = 0.01})));
    return trainee;
  }

  Status Step() {
    return strategy_
        ->Step(batch_,
               [this](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
                 nn::Tape tape(context.parameters, context.stream, workspace_,
                               {.step = context.step, .intra_op_threads = 1});
                 const nn::Variable loss = nn::SoftmaxCrossEntropy(
                     model_->Logits(tape.Input(batch["image"])), batch["label"]);
                 tape.Backward(loss, context.gradients);
                 COHORT_RETURN_IF_ERROR(tape.Finish());
                 const auto examples = static_cast<double>(batch.size);
                 return ReplicaResult{.loss_sum = loss.value() * examples, .weight = examples};
               })
        .status();
  }
  std::int64_t gradient_bytes() const {
    return static_cast<std::int64_t>(parameters_.all().size_bytes());
  }

 private:
  Trainee() = default;

  ParameterSet parameters_;
  std::unique_ptr<nn::ImageModel> model_;
  nn::Workspace workspace_;
  DistributedBatch batch_;
  std::unique_ptr<Strategy> strategy_;
};

class Rounds {
 public:
  Rounds(const TrainingOptions& options, std::vector<Contestant> contestants)
      : options_(options), contestants_(std::move(contestants)) {}

  Status Prepare() {
    COHORT_ASSIGN_OR_RETURN(control_, Connect(options_, "control"));
    COHORT_RETURN_IF_ERROR(PrepareTorch());
    for (const Contestant& contestant : contestants_) {
      if (!contestant.torch) {
        COHORT_ASSIGN_OR_RETURN(trainees_[contestant.name], Trainee::Make(contestant, options_));
      }
    }
    times_.gradient_bytes = trainees_.begin()->second->gradient_bytes();
    return {};
  }

  // Milliseconds of a step, of the slowest worker. All workers begin together.
  Result<double> Turn(std::size_t i, int steps) {
    COHORT_ASSIGN_OR_RETURN(auto barrier, control_->Barrier());
    COHORT_RETURN_IF_ERROR(barrier->Wait());
    const auto start = Clock::now();
    COHORT_RETURN_IF_ERROR(Train(contestants_[i], steps));
    const double mine =
        std::chrono::duration<double, std::milli>(Clock::now() - start).count() / steps;
    std::vector<double> slowest = {mine};
    COHORT_ASSIGN_OR_RETURN(auto max, control_->AllReduce(std::span(slowest), ReduceOp::kMax));
    COHORT_RETURN_IF_ERROR(max->Wait());
    return slowest[0];
  }

  Result<TrainingTimes> Run() {
    constexpr int kTrial = 3;
    std::vector<int> steps;
    for (std::size_t i = 0; i < contestants_.size(); ++i) {
      COHORT_RETURN_IF_ERROR(Turn(i, kTrial).status());  // first steps are slower
      COHORT_ASSIGN_OR_RETURN(const double milliseconds, Turn(i, kTrial));
      steps.push_back(std::clamp(static_cast<int>(options_.seconds * 1e3 / milliseconds), 3, 5000));
    }
    for (int round = 0; round < options_.rounds; ++round) {
      for (std::size_t turn = 0; turn < contestants_.size(); ++turn) {
        const std::size_t i = (turn + static_cast<std::size_t>(round)) % contestants_.size();
        COHORT_ASSIGN_OR_RETURN(const double milliseconds, Turn(i, steps[i]));
        times_.rounds[contestants_[i].name].push_back(milliseconds);
      }
    }
    return times_;
  }

 private:
  Status Train(const Contestant& contestant, int steps) {
    if (contestant.alone && options_.rank != 0) {
      return {};
    }
    if (contestant.torch) {
      return torches_.at(contestant.name)->Round(steps).status();
    }
    for (int step = 0; step < steps; ++step) {
      if (contestant.in_step) {
        COHORT_ASSIGN_OR_RETURN(auto together, control_->Barrier());
        COHORT_RETURN_IF_ERROR(together->Wait());
      }
      COHORT_RETURN_IF_ERROR(trainees_.at(contestant.name)->Step());
    }
    return {};
  }

  // Starts LibTorch's programs, and has each run a step. Where one does not, on any worker, all do
  // without.
  Status PrepareTorch() {
    Status status = options_.exec_prefix.empty()
                        ? Status()
                        : Unimplemented("it goes over loopback, so without --exec-prefix only");
    for (const Contestant& contestant : contestants_) {
      if (contestant.torch && status.ok() && (!contestant.alone || options_.rank == 0)) {
        status = StartTorch(contestant);
      }
    }
    std::vector<float> failures = {status.ok() ? 0.0F : 1.0F};
    COHORT_ASSIGN_OR_RETURN(auto sum, control_->AllReduce(std::span(failures), ReduceOp::kSum));
    COHORT_RETURN_IF_ERROR(sum->Wait());
    if (failures[0] > 0) {
      times_.no_torch = status.ok() ? "not on every worker" : status.message();
      torches_.clear();
      std::erase_if(contestants_, [](const Contestant& contestant) { return contestant.torch; });
    }
    return {};
  }

  Status StartTorch(const Contestant& contestant) {
    std::vector<std::string> arguments = {options_.model, std::to_string(contestant.batch), "1",
                                          "1"};
    if (contestant.communicates) {
      arguments.insert(arguments.end(),
                       {std::to_string(options_.rank), std::to_string(options_.workers),
                        options_.folder + "/libtorch"});
    }
    COHORT_ASSIGN_OR_RETURN(torches_[contestant.name], TorchPeer::Start(arguments, 1));
    return torches_[contestant.name]->Round(1).status();
  }

  const TrainingOptions& options_;
  std::vector<Contestant> contestants_;
  std::unique_ptr<Communicator> control_;
  std::map<std::string, std::unique_ptr<Trainee>> trainees_;  // by contestant
  std::map<std::string, std::unique_ptr<TorchPeer>> torches_;
  TrainingTimes times_;
};

}  // namespace

double TrainingTimes::Milliseconds(const std::string& name) const {
  return Median(rounds.at(name));
}

double TrainingTimes::Ratio(const std::string& a, const std::string& b) const {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < rounds.at(a).size(); ++i) {
    ratios.push_back(rounds.at(a)[i] / rounds.at(b)[i]);
  }
  return Median(std::move(ratios));
}

Result<TrainingTimes> RunTrainingRounds(const TrainingOptions& options,
                                        const std::vector<Contestant>& contestants) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  PinToCore(options.rank, options.workers);
  // Freed memory stays mapped: a step that pays for page faults is a third slower.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  Rounds rounds(options, contestants);
  COHORT_RETURN_IF_ERROR(rounds.Prepare());
  return rounds.Run();
}

Status RunTrainingWorkers(const TrainingOptions& options, const std::string& command,
                          const std::vector<std::string>& arguments) {
  COHORT_ASSIGN_OR_RETURN(const ScratchFolder folder, ScratchFolder::Make());
  Processes processes(stdout);
  for (int rank = 0; rank < options.workers; ++rank) {
    std::vector<std::string> argv;
    std::istringstream words(options.exec_prefix);
    for (std::string word; words >> word;) {
      if (const std::size_t at = word.find("{rank}"); at != std::string::npos) {
        word.replace(at, 6, std::to_string(rank));
      }
      argv.push_back(word);
    }
    argv.insert(argv.end(), {ThisProgram(), "bench", command});
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    argv.insert(argv.end(), {"--join", folder.path(), "--rank", std::to_string(rank)});
    COHORT_RETURN_IF_ERROR(processes.Start("worker " + std::to_string(rank), argv));
  }
  // Each collective has its own deadline; this one is for a worker that hangs elsewhere.
  const auto turns = std::chrono::duration<double>((options.rounds + 2) * options.seconds * 8);
  return processes.Finish(DeadlineAfter(
      3 * options.timeout + std::chrono::duration_cast<std::chrono::milliseconds>(turns)));
}

}  // namespace cohort
