// Trains a GPT on text, under any strategy, and writes some.
//
// One process:                   gpt --data FILE
// Two replicas in it:            gpt --data FILE --strategy mirrored --devices 2
// Two processes under MPI:       mpirun -n 2 gpt --data FILE
// Two processes without MPI:     cohort launch -n 2 -- gpt --data FILE
// Workers and servers:           cohort launch -n 2 --ps 2 --chief -- gpt --data FILE
//
// FILE is any text; its bytes are the tokens, and its last tenth is what the model is tested on.
// Without --data the program makes up sentences, of which it knows how well they can be predicted.
// --synthetic takes tokens without meaning instead, as many kinds as a large model has, to measure
// speed.
//
// An epoch is so many steps on windows of the text that begin anywhere, none twice in an epoch
// while there are others.

#include <cohort/core/random.h>
#include <cohort/data/memory.h>
#include <cohort/data/tokens.h>
#include <cohort/nn/gpt.h>
#include <cohort/workloads/language.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "job.h"

namespace {

using cohort::Result;
using cohort::Status;
using cohort::Tensor;
namespace nn = cohort::nn;
namespace workloads = cohort::workloads;

struct Flags {
  JobFlags job{.global_batch = 32};
  std::string data;
  bool synthetic = false;
  std::int64_t vocabulary = 50'304;
  std::string size = "tiny";
  // 0: as `size` says.
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t width = 0;
  std::int64_t length = 0;
  double dropout = 0;
  int epochs = 10;
  std::int64_t steps_per_epoch = 100;
  double learning_rate = 0.002;
  std::int64_t warm_up = 100;
  double weight_decay = 0.1;
  double clip_norm = 1;
  std::int64_t generate = 0;
  double temperature = 0.8;
  std::string prompt = "\n";
};

void DeclareFlags(CLI::App& app, Flags& f) {
  app.add_option("--data", f.data, "a text file (default: sentences that the program makes up)");
  app.add_flag("--synthetic", f.synthetic, "tokens without meaning, to measure speed")
      ->excludes("--data");
  app.add_option("--vocabulary", f.vocabulary, "kinds of tokens, with --synthetic")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  app.add_option("--size", f.size,
                 "of the model: tiny (4 layers of 128, 128 tokens), small (6 of 384, 256), gpt2 "
                 "(12 of 768, 1024)")
      ->check(CLI::IsMember({"tiny", "small", "gpt2"}))
      ->capture_default_str();
  app.add_option("--layers", f.layers, "instead of the size's")->check(CLI::PositiveNumber);
  app.add_option("--heads", f.heads, "instead of the size's; divides the width")
      ->check(CLI::PositiveNumber);
  app.add_option("--width", f.width, "instead of the size's")->check(CLI::PositiveNumber);
  app.add_option("--length", f.length, "tokens of a window, instead of the size's")
      ->check(CLI::PositiveNumber);
  app.add_option("--dropout", f.dropout, "share of activations that a step leaves out")
      ->check(CLI::Range(0.0, 0.99))
      ->capture_default_str();
  app.add_option("--epochs", f.epochs, "each ends with a look at the validation loss")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--steps-per-epoch", f.steps_per_epoch)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--learning-rate", f.learning_rate,
                 "of AdamW, after the warm-up; falls to a tenth along a cosine")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--warm-up", f.warm_up, "steps to the full learning rate")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--weight-decay", f.weight_decay)
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--clip-norm", f.clip_norm, "of the gradient; 0: not clipped")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--generate", f.generate, "tokens to write at the end")
      ->check(CLI::NonNegativeNumber)
      ->excludes("--synthetic");
  app.add_option("--temperature", f.temperature, "of what is written: below 1, less is risked")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--prompt", f.prompt, "what it begins with (default: a new line)")
      ->check([](const std::string& text) { return text.empty() ? "is empty" : ""; });
  DeclareJobFlags(app, f.job);
}

// ---- Text ---------------------------------------------------------------------------------------

struct Tokens {
  Tensor train, test;
  std::int64_t vocabulary = 0;
  std::optional<cohort::data::ByteVocabulary> bytes;  // empty: tokens without meaning
  Tensor prompt;                                      // of what is written
  double best = 0;  // nats per token that the test's cannot be predicted better than; 0: unknown
};

Result<Tokens> LoadTokens(const Flags& f) {
  constexpr std::int64_t kTestShare = 10;
  if (f.synthetic) {
    const std::int64_t count = 64 * (f.length + 1);
    return Tokens{.train = workloads::DrawTokens(kTestShare * count, f.vocabulary, f.job.seed),
                  .test = workloads::DrawTokens(count, f.vocabulary, f.job.seed + 1),
                  .vocabulary = f.vocabulary,
                  .bytes = {},
                  .prompt = {}};
  }
  std::string text;
  double best = 0;
  if (f.data.empty()) {
    cohort::data::GeneratedText generated = cohort::data::GenerateText(1'000'000);
    text = std::move(generated.text);
    best = generated.nats_per_byte;
  } else {
    COHORT_ASSIGN_OR_RETURN(text, cohort::ReadFile(cohort::FileSystem::Local(), f.data));
  }
  const cohort::data::ByteVocabulary bytes(text);
  COHORT_ASSIGN_OR_RETURN(const Tensor all, bytes.Encode(text));
  const std::int64_t train = all.elements() - all.elements() / kTestShare;
  if (all.elements() - train <= f.length) {
    return cohort::InvalidArgument(f.data + ": " + std::to_string(all.elements()) +
                                   " bytes are too few for windows of " + std::to_string(f.length) +
                                   " [a tenth is for testing]");
  }
  Tokens tokens{.train = all.Rows(0, train),
                .test = all.Rows(train, all.elements()),
                .vocabulary = bytes.size(),
                .bytes = bytes,
                .prompt = {},
                .best = best};
  if (f.generate > 0) {
    Result<Tensor> prompt = bytes.Encode(f.prompt);
    if (!prompt.ok()) {
      return prompt.status().Annotate("--prompt");
    }
    tokens.prompt = std::move(prompt).value();
  }
  return tokens;
}

// The windows of one epoch's steps.
Result<cohort::data::Dataset> TrainingWindows(const Flags& f, const Tokens& tokens) {
  COHORT_ASSIGN_OR_RETURN(const cohort::data::Dataset windows,
                          cohort::data::TokenWindows(tokens.train, f.length, 1));
  const std::int64_t wanted = f.steps_per_epoch * f.job.batches_per_step * f.job.global_batch;
  const std::int64_t times = (wanted + windows.size() - 1) / windows.size();
  const cohort::data::Dataset shuffled = windows.Shuffle(f.job.seed);
  return (times > 1 ? shuffled.Repeat(times) : shuffled)
      .Take(wanted)
      .Batch(f.job.global_batch)
      .Prefetch(2);
}

// ---- Writing ------------------------------------------------------------------------------------

// The token whose share of exp(score / temperature) holds `at` of their sum.
std::int32_t Draw(std::span<const float> scores, double temperature, double at) {
  const double maximum = *std::max_element(scores.begin(), scores.end());
  std::vector<double> sums;
  double sum = 0;
  for (const float score : scores) {
    sum += std::exp((score - maximum) / temperature);
    sums.push_back(sum);
  }
  const auto found = std::upper_bound(sums.begin(), sums.end() - 1, at * sum);
  return static_cast<std::int32_t>(found - sums.begin());
}

// The tokens that the model goes on with behind `text`.
Result<std::vector<std::int32_t>> GoOn(const nn::Gpt& model, nn::Workspaces& workspaces,
                                       const Flags& f, cohort::ReplicaContext& context,
                                       std::vector<std::int32_t> text,
                                       const cohort::Philox& random) {
  for (std::int64_t i = 0; i < f.generate; ++i) {
    // The model sees what fits; behind it stands what it does not look at.
    const auto seen = std::min<std::int64_t>(std::ssize(text), f.length);
    Tensor window(cohort::DType::kInt32, {1, f.length});
    std::fill(std::copy(text.end() - seen, text.end(), window.data<std::int32_t>().begin()),
              window.data<std::int32_t>().end(), 0);
    nn::Tape tape(context.parameters, context.stream,
                  workspaces.For(context.local_replica, context.device),
                  {.training = false,
                   .intra_op_threads = context.intra_op_threads,
                   .precision = PrecisionOf(f.job)});
    const nn::Variable logits = model.Logits(tape, window);
    const Tensor scores = tape.Fetch(logits.tensor().Rows(seen - 1, seen));
    COHORT_RETURN_IF_ERROR(tape.Finish());
    text.push_back(
        Draw(scores.data<float>(), f.temperature, random.Uniform(static_cast<std::uint64_t>(i))));
  }
  text.erase(text.begin(), text.end() - f.generate);
  return text;
}

// How the model goes on behind each example, a beginning: int32 [examples, generate].
cohort::PredictFn MakeWriter(const nn::Gpt& model, nn::Workspaces& workspaces, const Flags& f) {
  return [&model, &workspaces, &f](cohort::ReplicaContext& context,
                                   const cohort::data::Batch& batch) -> Result<Tensor> {
    Tensor written(cohort::DType::kInt32, {batch.size, f.generate});
    auto to = written.data<std::int32_t>().begin();
    for (std::int64_t row = 0; row < batch.size; ++row) {
      const Tensor prompt = batch["tokens"].Rows(row, row + 1);
      const std::span<const std::int32_t> tokens = prompt.data<std::int32_t>();
      COHORT_ASSIGN_OR_RETURN(
          const std::vector<std::int32_t> text,
          GoOn(model, workspaces, f, context, {tokens.begin(), tokens.end()},
               cohort::Philox(f.job.seed, "writing " + std::to_string(context.replica + row))));
      to = std::copy(text.begin(), text.end(), to);
    }
    return written;
  };
}

// ---- The job ------------------------------------------------------------------------------------

// Each replica writes; the chief prints what the first wrote.
Status Write(const Flags& f, const Tokens& tokens, const nn::Gpt& model, nn::Workspaces& workspaces,
             cohort::Trainer& trainer, const cohort::Strategy& strategy) {
  const std::int64_t count = std::max(1, strategy.num_replicas_in_sync());
  const std::span<const std::int32_t> prompt = tokens.prompt.data<std::int32_t>();
  const Tensor prompts(cohort::DType::kInt32, {count, std::ssize(prompt)});
  for (std::int64_t i = 0; i < count; ++i) {
    std::copy(prompt.begin(), prompt.end(), prompts.Rows(i, i + 1).data<std::int32_t>().begin());
  }
  COHORT_ASSIGN_OR_RETURN(const auto beginnings, cohort::data::FromTensors({{"tokens", prompts}}));
  COHORT_ASSIGN_OR_RETURN(const Tensor written, trainer.Predict(beginnings.Batch(count),
                                                                MakeWriter(model, workspaces, f)));
  if (strategy.is_chief()) {
    std::printf("%s%s\n", f.prompt.c_str(),
                tokens.bytes->Decode(written.Rows(0, 1).data<std::int32_t>()).c_str());
  }
  return {};
}

Status Report(const Flags& f, cohort::Strategy& strategy, const cohort::ParameterSet& parameters,
              const cohort::History& history, const Tokens& tokens,
              const cohort::EpochResult& test) {
  COHORT_ASSIGN_OR_RETURN(nlohmann::json metrics, JobMetrics(strategy, parameters, history));
  const double tokens_per_second = history.examples_per_second() * static_cast<double>(f.length);
  // Forward and backward: 6 a parameter and token, and what attention adds (Chowdhery et al.,
  // "PaLM", 2022, appendix B).
  const double flops = 6 * static_cast<double>(parameters.elements()) +
                       12 * static_cast<double>(f.layers * f.width * f.length);
  nlohmann::json losses = nlohmann::json::array();
  for (const cohort::EpochResult& epoch : history.evaluations) {
    losses.push_back(epoch.loss);
  }
  metrics.update({{"parameters", parameters.elements()},
                  {"vocabulary", tokens.vocabulary},
                  {"loss", test.loss},
                  {"best_loss", tokens.best},
                  {"validation_losses", losses},
                  {"tokens_per_second", tokens_per_second},
                  {"model_flops_per_second", flops * tokens_per_second}});
  std::printf(
      "%.2f million parameters, %s, %d replicas: test loss %.4f nats per token; %lld steps in %.1f "
      "s (%.0f tokens/s, %.1f GFLOP/s)\n",
      static_cast<double>(parameters.elements()) / 1e6, std::string(strategy.kind()).c_str(),
      strategy.num_replicas_in_sync(), test.loss, static_cast<long long>(history.steps),
      history.seconds, tokens_per_second, flops * tokens_per_second / 1e9);
  if (tokens.best > 0) {
    std::printf("best possible:  %.4f\n", tokens.best);
  }
  return WriteMetrics(f.job, metrics);
}

Status Train(const Flags& f, const Tokens& tokens, cohort::Strategy& strategy) {
  cohort::ParameterSet parameters;
  const nn::Gpt model(parameters, {.vocabulary = tokens.vocabulary,
                                   .length = f.length,
                                   .layers = f.layers,
                                   .heads = f.heads,
                                   .width = f.width,
                                   .dropout = static_cast<float>(f.dropout),
                                   .seed = f.job.seed});
  parameters.Build();
  const std::int64_t steps = std::max<std::int64_t>(1, f.epochs * f.steps_per_epoch - f.warm_up);
  COHORT_RETURN_IF_ERROR(strategy.Bind(
      parameters, cohort::AdamW(workloads::GptAdamW(
                      cohort::Schedule::Cosine(f.learning_rate, steps, 0.1 * f.learning_rate)
                          .WithWarmUp(f.warm_up),
                      f.weight_decay, f.clip_norm))));

  COHORT_ASSIGN_OR_RETURN(const cohort::data::Dataset training, TrainingWindows(f, tokens));
  COHORT_ASSIGN_OR_RETURN(const cohort::data::Dataset test,
                          cohort::data::TokenWindows(tokens.test, f.length, f.length));
  constexpr std::int64_t kLook = 128;  // windows that are tested on during training
  const auto look = test.Take(kLook).Batch(f.job.global_batch);
  cohort::TrainerOptions options = MakeTrainerOptions(f.job);
  options.epochs = f.epochs;
  workloads::GptStep step(
      model,
      {.seed = f.job.seed, .global_batch = f.job.global_batch, .precision = PrecisionOf(f.job)});
  cohort::Trainer trainer(strategy, parameters, std::move(options));
  const cohort::StepFn evaluate = step.Of(false);
  COHORT_ASSIGN_OR_RETURN(const cohort::History history,
                          trainer.Fit(training, step.Of(true), &look, evaluate));
  COHORT_ASSIGN_OR_RETURN(const cohort::EpochResult result,
                          trainer.Evaluate(test.Batch(f.job.global_batch), evaluate));
  if (f.generate > 0) {
    COHORT_RETURN_IF_ERROR(Write(f, tokens, model, step.workspaces(), trainer, strategy));
  }
  return strategy.is_chief() ? Report(f, strategy, parameters, history, tokens, result) : Status();
}

// The sizes that were not given.
Status FillIn(Flags& f) {
  COHORT_ASSIGN_OR_RETURN(const nn::GptOptions size, workloads::GptSize(f.size));
  f.layers = f.layers == 0 ? size.layers : f.layers;
  f.heads = f.heads == 0 ? size.heads : f.heads;
  f.width = f.width == 0 ? size.width : f.width;
  f.length = f.length == 0 ? size.length : f.length;
  if (f.width % f.heads != 0) {
    return cohort::InvalidArgument("--heads " + std::to_string(f.heads) +
                                   " does not divide --width " + std::to_string(f.width));
  }
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  Flags f;
  CLI::App app("Trains a GPT on text under any strategy.");
  DeclareFlags(app, f);
  return RunProgram("gpt", app, argc, argv, [&]() -> Status {
    COHORT_RETURN_IF_ERROR(FillIn(f));
    return RunJob(f.job, [&](cohort::Strategy& strategy) -> Status {
      COHORT_ASSIGN_OR_RETURN(const Tokens tokens, LoadTokens(f));
      return Train(f, tokens, strategy);
    });
  });
}
