#include "training_rounds.h"

#include <malloc.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <optional>
#include <sstream>
#include <utility>

#include <cohort/cluster/folder_store.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>
#include <cohort/data/memory.h>
#include <cohort/strategies/synchronous.h>

#include "core/commands/processes.h"
#include "core/commands/scratch_folder.h"
#include "nn/commands/torch_peer.h"
#include "training_job.h"
#include "training_models.h"

namespace cohort {
namespace {

using Clock = std::chrono::steady_clock;

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

// All of them as they come, drawn or decoded.
Result<data::Batch> ReadAll(const data::Dataset& examples) {
  COHORT_ASSIGN_OR_RETURN(const auto iterator, examples.Batch(examples.size()).Iterate());
  COHORT_ASSIGN_OR_RETURN(std::optional<data::Batch> all, iterator->Next());
  return std::move(all).value();
}

// A contestant on one worker.
class Trainee {
 public:
  static Result<std::unique_ptr<Trainee>> Make(const Contestant& contestant,
                                               const TrainingOptions& options) {
    std::unique_ptr<Trainee> trainee(new Trainee());
    const bool together = contestant.communicates && options.workers > 1;
    const std::int64_t global_batch =
        std::int64_t{contestant.batch} * (together ? options.workers : 1);
    // A data set is the same on all that share it; otherwise each reads its own.
    const bool shares = together && options.info().tables;
    COHORT_ASSIGN_OR_RETURN(
        trainee->model_, MakeTrainingModel({.name = options.model,
                                            .sizes = options.sizes,
                                            .examples = (shares ? global_batch : contestant.batch) *
                                                        options.info().batches,
                                            .global_batch = global_batch,
                                            .rank = shares ? 0 : options.rank},
                                           trainee->parameters_));
    trainee->parameters_.Build();
    trainee->step_ = trainee->model_->Step();
    COHORT_ASSIGN_OR_RETURN(trainee->strategy_, MakeStrategy(contestant, options, together));
    trainee->in_job_ = together && options.servers() > 0;
    COHORT_RETURN_IF_ERROR(
        trainee->strategy_->Bind(trainee->parameters_, trainee->model_->MakeOptimizer()));
    COHORT_ASSIGN_OR_RETURN(const data::Batch all, ReadAll(trainee->model_->examples()));
    if (options.info().tables) {
      COHORT_RETURN_IF_ERROR(trainee->Distribute(all, global_batch));
    } else {
      trainee->Cut(all, contestant.batch);
    }
    return trainee;
  }

  Status Step() {
    if (dataset_ == nullptr) {
      return strategy_->Step(batches_[next_++ % batches_.size()], step_).status();
    }
    COHORT_ASSIGN_OR_RETURN(std::optional<DistributedBatch> batch, dataset_->Next());
    if (!batch.has_value()) {
      COHORT_RETURN_IF_ERROR(dataset_->BeginEpoch(++epoch_));
      COHORT_ASSIGN_OR_RETURN(batch, dataset_->Next());
    }
    return strategy_->Step(batch.value(), step_).status();
  }
  // Lets the servers of its tables end.
  Status Leave() { return in_job_ ? strategy_->Shutdown() : OkStatus(); }
  std::int64_t gradient_bytes() const {
    return static_cast<std::int64_t>(parameters_.all().size_bytes());
  }

 private:
  Trainee() = default;

  // Batches that are there, so that input costs nothing.
  void Cut(const data::Batch& all, int batch) {
    for (std::int64_t at = 0; at < all.size; at += batch) {
      batches_.emplace_back().replicas = {all.Slice(at, at + batch)};
    }
  }
  // Strategies ask servers for the rows of the batch that comes next, of a data set alone.
  Status Distribute(const data::Batch& all, std::int64_t global_batch) {
    constexpr std::int64_t kTimes = 1'000'000;  // an epoch does not end
    COHORT_ASSIGN_OR_RETURN(const data::Dataset examples, data::FromTensors(all.features));
    COHORT_ASSIGN_OR_RETURN(dataset_,
                            strategy_->Distribute(examples.Repeat(kTimes).Batch(global_batch)));
    return dataset_->BeginEpoch(0);
  }
  static Result<std::unique_ptr<Strategy>> MakeStrategy(const Contestant& contestant,
                                                        const TrainingOptions& options,
                                                        bool together) {
    StrategyOptions how;
    how.intra_op_threads = 1;
    how.communication.timeout = options.timeout;
    how.communication.implementation = together ? contestant.algorithm : "auto";
    if (contestant.bucket_bytes > 0) {
      how.first_bucket_bytes = contestant.first_bucket_bytes;
      how.communication.bytes_per_pack = contestant.bucket_bytes;
    }
    if (together && options.servers() > 0) {
      how.communication.transport = options.transport;
      return JoinTrainingJob(options, contestant.name, std::move(how));
    }
    SynchronousParts parts = {.kind = "one_device", .cluster = {}, .communicator = nullptr};
    if (together) {
      parts.kind = "multi_worker_mirrored";
      COHORT_ASSIGN_OR_RETURN(parts.communicator, Connect(options, contestant.name));
    }
    return MakeSynchronousStrategy(std::move(parts), std::move(how));
  }

  ParameterSet parameters_;
  std::unique_ptr<TrainingModel> model_;
  StepFn step_;
  std::vector<DistributedBatch> batches_;
  std::size_t next_ = 0;
  std::unique_ptr<Strategy> strategy_;
  std::unique_ptr<DistributedDataset> dataset_;  // of models with tables
  std::int64_t epoch_ = 0;
  bool in_job_ = false;
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
      steps.push_back(std::clamp(static_cast<int>(options_.seconds * 1e3 / milliseconds), 1, 5000));
    }
    for (int round = 0; round < options_.rounds; ++round) {
      for (std::size_t turn = 0; turn < contestants_.size(); ++turn) {
        const std::size_t i = (turn + static_cast<std::size_t>(round)) % contestants_.size();
        COHORT_ASSIGN_OR_RETURN(const double milliseconds, Turn(i, steps[i]));
        times_.rounds[contestants_[i].name].push_back(milliseconds);
      }
    }
    for (const auto& [name, trainee] : trainees_) {
      COHORT_RETURN_IF_ERROR(trainee->Leave());
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
    Status status = !options_.exec_prefix.empty()
                        ? Unimplemented("it goes over loopback, so without --exec-prefix only")
                    : options_.info().torch.empty() || options_.sizes != options_.info().sizes
                        ? Unimplemented("it has no such model")
                        : Status();
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
    std::vector<std::string> arguments = {options_.info().torch, std::to_string(contestant.batch),
                                          "1", "1"};
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

// A worker, or a server, waited in vain.
Status WithAdvice(const Status& status) {
  return status.code() == StatusCode::kDeadlineExceeded
             ? DeadlineExceeded(status.message() + " [--timeout, where steps take seconds]")
             : status;
}

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
  if (options.server >= 0) {
    std::vector<std::string> jobs;
    for (const Contestant& contestant : contestants) {
      if (contestant.communicates && !contestant.torch) {
        jobs.push_back(contestant.name);
      }
    }
    COHORT_RETURN_IF_ERROR(WithAdvice(ServeTables(options, jobs)));
    return TrainingTimes();
  }
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  PinToCore(options.rank, options.workers);
  // Freed memory stays mapped: a step that pays for page faults is a third slower.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  Rounds rounds(options, contestants);
  COHORT_RETURN_IF_ERROR(WithAdvice(rounds.Prepare()));
  Result<TrainingTimes> times = rounds.Run();
  if (!times.ok()) {
    return WithAdvice(times.status());
  }
  return times;
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
  for (int server = 0; server < options.servers(); ++server) {
    std::vector<std::string> argv = {ThisProgram(), "bench", command};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    argv.insert(argv.end(), {"--join", folder.path(), "--server", std::to_string(server)});
    COHORT_RETURN_IF_ERROR(processes.Start("server " + std::to_string(server), argv));
  }
  // Who waits for another worker gives up by itself; this is for all that hang elsewhere. Of a slow
  // model a turn is one step, or three before the first round.
  constexpr int kContestants = 8;  // at most
  const auto turns = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::duration<double>((options.rounds + 2) * options.seconds * kContestants));
  return processes.Finish(DeadlineAfter((2 * options.rounds + 7) * options.timeout + turns));
}

}  // namespace cohort
