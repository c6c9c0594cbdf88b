// `cohort bench feed`: a model that trains from TFRecord files, beside the same one trained from a
// batch that is there already. What the input takes away is the difference; how long the step waits
// for it is measured, too.

#include <malloc.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include <cohort/core/random.h>
#include <cohort/core/thread_pool.h>
#include <cohort/data/tf_example.h>
#include <cohort/data/tf_record.h>
#include <cohort/io/record_file.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/models.h>
#include <cohort/nn/workspace.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include "command.h"
#include "core/commands/processes.h"
#include "core/commands/run_command.h"
#include "core/commands/scratch_folder.h"

namespace cohort {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string model = "mlp";
  std::int64_t batch = 256;
  std::int64_t examples = 40'000;
  int compute_threads = 0;  // 0: every core
  int input_threads = data::kAutotune;
  int rounds = 7;
  double seconds = 1;  // of each of a round's turns
  bool json = false;
};

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Examples of 784 floats and a label, in four files.
Result<data::Dataset> WriteImages(const Options& options, const ScratchFolder& folder) {
  constexpr std::int64_t kFiles = 4;
  constexpr std::size_t kPixels = 784;
  const Philox random(1, "images");
  std::uint64_t at = 0;
  std::vector<std::string> paths;
  for (std::int64_t file = 0; file < kFiles; ++file) {
    paths.push_back(folder / ("images-" + std::to_string(file) + ".tfrecord"));
    COHORT_ASSIGN_OR_RETURN(const auto writer,
                            io::RecordWriter::Create(FileSystem::Local(), paths.back()));
    for (std::int64_t i = file; i < options.examples; i += kFiles) {
      data::TfFeatures features;
      data::TfFeature& image = features["image"];
      image.kind = data::TfFeature::Kind::kFloat;
      for (std::size_t pixel = 0; pixel < kPixels; ++pixel) {
        image.floats.push_back(random.Uniform(at++));
      }
      data::TfFeature& label = features["label"];
      label.kind = data::TfFeature::Kind::kInt64;
      label.ints = {static_cast<std::int64_t>(random.Below(10, at++))};
      COHORT_RETURN_IF_ERROR(writer->Write(data::EncodeTfExample(features)));
    }
    COHORT_RETURN_IF_ERROR(writer->Close());
  }
  return data::TfRecords(paths, {.features = {{.name = "image", .shape = Shape({28, 28, 1})},
                                              {.name = "label", .type = data::TfType::kInt64}}});
}

// The model, and how it is fed.
class Trainee {
 public:
  static Result<std::unique_ptr<Trainee>> Make(const Options& options) {
    std::unique_ptr<Trainee> trainee(new Trainee());
    COHORT_ASSIGN_OR_RETURN(trainee->model_,
                            nn::MakeImageModel(options.model, trainee->parameters_, {.seed = 1}));
    trainee->parameters_.Build();
    trainee->threads_ = options.compute_threads > 0 ? options.compute_threads : AvailableCores();
    StrategyOptions how;
    how.intra_op_threads = trainee->threads_;
    COHORT_ASSIGN_OR_RETURN(
        trainee->strategy_,
        MakeSynchronousStrategy({.kind = "one_device", .cluster = {}, .communicator = nullptr},
                                std::move(how)));
    COHORT_RETURN_IF_ERROR(
        trainee->strategy_->Bind(trainee->parameters_, Sgd({.learning_rate = 0.01})));
    return trainee;
  }

  Strategy& strategy() { return *strategy_; }
  Status Step(const DistributedBatch& batch) {
    return strategy_
        ->Step(batch,
               [this](ReplicaContext& context, const data::Batch& one) -> Result<ReplicaResult> {
                 nn::Tape tape(context.parameters, context.stream, workspace_,
                               {.step = context.step, .intra_op_threads = threads_});
                 const nn::Variable loss = nn::SoftmaxCrossEntropy(
                     model_->Logits(tape.Input(one["image"])), one["label"]);
                 tape.Backward(loss, context.gradients);
                 COHORT_RETURN_IF_ERROR(tape.Finish());
                 const auto examples = static_cast<double>(one.size);
                 return ReplicaResult{.loss_sum = loss.value() * examples, .weight = examples};
               })
        .status();
  }

 private:
  Trainee() = default;

  ParameterSet parameters_;
  std::unique_ptr<nn::ImageModel> model_;
  int threads_ = 1;
  nn::Workspace workspace_;
  std::unique_ptr<Strategy> strategy_;
};

// Batches of one epoch after another.
class Feed {
 public:
  Feed(Strategy& strategy, const data::Dataset& dataset) {
    dataset_ = OrThrow(strategy.Distribute(dataset));
    OrThrow(dataset_->BeginEpoch(epoch_));
  }
  Result<DistributedBatch> Next() {
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(std::optional<DistributedBatch> batch, dataset_->Next());
      if (batch.has_value()) {
        return *std::move(batch);
      }
      COHORT_RETURN_IF_ERROR(dataset_->BeginEpoch(++epoch_));
    }
  }

 private:
  std::unique_ptr<DistributedDataset> dataset_;
  std::int64_t epoch_ = 0;
};

struct Turn {
  double rate = 0;  // examples per second
  double wait = 0;  // of the time, for the next batch
};

// Steps for so many seconds. Without a feed, from `batch` again and again.
Result<Turn> Train(Trainee& trainee, Feed* feed, const DistributedBatch& batch, double seconds) {
  std::int64_t examples = 0;
  double waited = 0;
  const Clock::time_point start = Clock::now();
  double elapsed = 0;
  do {
    DistributedBatch next = batch;
    if (feed != nullptr) {
      const Clock::time_point before = Clock::now();
      COHORT_ASSIGN_OR_RETURN(next, feed->Next());
      waited += SecondsSince(before);
    }
    COHORT_RETURN_IF_ERROR(trainee.Step(next));
    examples += next.replicas[0].size;
    elapsed = SecondsSince(start);
  } while (elapsed < seconds);
  return Turn{static_cast<double>(examples) / elapsed, waited / elapsed};
}

Status Run(const Options& options) {
  // Freed memory stays mapped: a step that pays for page faults is a third slower.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  COHORT_ASSIGN_OR_RETURN(const ScratchFolder folder, ScratchFolder::Make());
  COHORT_ASSIGN_OR_RETURN(const data::Dataset records, WriteImages(options, folder));
  data::Dataset batches = records.Shuffle(1).Batch(options.batch);
  if (options.input_threads != 0) {
    const int ahead =
        options.input_threads == data::kAutotune ? data::kAutotune : 2 * options.input_threads;
    batches = batches.Prefetch(ahead, options.input_threads);
  }
  COHORT_ASSIGN_OR_RETURN(const auto trainee, Trainee::Make(options));
  Feed feed(trainee->strategy(), batches);
  COHORT_ASSIGN_OR_RETURN(const DistributedBatch resident, feed.Next());

  std::vector<double> fed, unfed, ratios, waits;
  for (int round = -1; round < options.rounds; ++round) {  // the first is to warm up
    COHORT_ASSIGN_OR_RETURN(const Turn without,
                            Train(*trainee, nullptr, resident, options.seconds));
    COHORT_ASSIGN_OR_RETURN(const Turn with, Train(*trainee, &feed, resident, options.seconds));
    if (round >= 0) {
      unfed.push_back(without.rate);
      fed.push_back(with.rate);
      ratios.push_back(with.rate / without.rate);
      waits.push_back(with.wait);
    }
  }
  if (options.json) {
    const nlohmann::ordered_json result = {{"command", "bench feed"},
                                           {"model", options.model},
                                           {"batch", options.batch},
                                           {"compute_threads", options.compute_threads},
                                           {"input_threads", options.input_threads},
                                           {"examples_per_second", Median(fed)},
                                           {"limit", "the same batch again and again"},
                                           {"limit_examples_per_second", Median(unfed)},
                                           {"of_limit", Median(ratios)},
                                           {"input_wait", Median(waits)},
                                           {"rounds_of_limit", ratios},
                                           {"rounds_input_wait", waits}};
    std::printf("%s\n", result.dump().c_str());
    return {};
  }
  std::printf("%s, batches of %lld from TFRecord files, shuffled, checksums verified\n",
              options.model.c_str(), static_cast<long long>(options.batch));
  std::printf("  fed from the files               %9.0f examples/s, %.1f %% of the time waiting\n",
              Median(fed), 100 * Median(waits));
  std::printf("  the same batch again and again   %9.0f examples/s: %.3f of it\n", Median(unfed),
              Median(ratios));
  return {};
}

}  // namespace

int BenchFeedCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Measures how much of a training step the input takes: a model that trains from TFRecord "
      "files (written to the temporary folder), beside the same one without input.",
      argv[0]);
  app.add_option("--model", options.model)
      ->check(CLI::IsMember({"linear", "mlp", "cnn"}))
      ->capture_default_str();
  app.add_option("--batch", options.batch, "examples of a step")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000}))
      ->capture_default_str();
  app.add_option("--examples", options.examples, "in the files, 3.1 KB each")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{10'000'000}))
      ->capture_default_str();
  app.add_option("--threads", options.compute_threads, "of the model; 0: every core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--input-threads", options.input_threads,
                 "of the input; -1: as many as it needs, 0: none of its own")
      ->check(CLI::Range(-1, 256))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "of which medians are taken")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "of each turn in a round")
      ->check(CLI::Range(0.001, 600.0))
      ->capture_default_str();
  app.add_flag("--json", options.json, "print a JSON object");
  return ParseAndRun(app, argc, argv, [&] { return Run(options); });
}

}  // namespace cohort
