#include "training_options.h"

#include <CLI/CLI.hpp>

namespace cohort {
namespace {

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const auto& [name, info] : TrainingModels()) {
    names.push_back(name);
  }
  return names;
}

// What `value` says of each model, for help.
template <typename Value>
std::string ByModel(const Value& value) {
  std::string text;
  for (const auto& [name, info] : TrainingModels()) {
    if (const std::string of_it = value(info); !of_it.empty()) {
      text += (text.empty() ? "" : ", ") + name + " " + of_it;
    }
  }
  return text;
}

void DeclareSize(CLI::App& app, TrainingOptions& options, const std::string& name,
                 const std::string& what, const CLI::Validator& check) {
  const std::string defaults = ByModel([&](const TrainingModelInfo& info) {
    const auto found = info.sizes.find(name);
    return found == info.sizes.end() ? std::string() : std::to_string(found->second);
  });
  app.add_option_function<std::int64_t>(
         "--" + name, [&options, name](const std::int64_t& value) { options.sizes[name] = value; },
         what + " (default: " + defaults + ")")
      ->check(check);
}

void DeclareSizes(CLI::App& app, TrainingOptions& options) {
  DeclareSize(app, options, "hidden", "units of each hidden layer", CLI::Range(1, 1 << 16));
  DeclareSize(app, options, "depth", "layers of the ResNet", CLI::IsMember({18, 34, 50}));
  DeclareSize(app, options, "image-size", "height and width of its images", CLI::Range(8, 4096));
  DeclareSize(app, options, "width", "channels of its first stage; of GPT's layers",
              CLI::Range(1, 1 << 16));
  DeclareSize(app, options, "layers", "of GPT", CLI::Range(1, 1024));
  DeclareSize(app, options, "heads", "of GPT; divides the width", CLI::Range(1, 1024));
  DeclareSize(app, options, "length", "tokens of a window", CLI::Range(1, 1 << 16));
  DeclareSize(app, options, "embedding", "floats of a row", CLI::Range(1, 1024));
  DeclareSize(app, options, "ids", "values of all categories together", CLI::Range(1LL, 1LL << 32));
  DeclareSize(app, options, "servers", "processes that hold the tables", CLI::Range(1, 16));
}

}  // namespace

void DeclareTrainingOptions(CLI::App& app, TrainingOptions& options) {
  app.add_option("--model", options.model,
                 "of the examples: " +
                     ByModel([](const TrainingModelInfo& info) { return "(" + info.what + ")"; }))
      ->check(CLI::IsMember(Names()))
      ->capture_default_str();
  app.add_option("--workers", options.workers, "processes, each with one core while there are some")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option(
         "--batch", options.batch,
         "examples of a worker's step (default: " + ByModel([](const TrainingModelInfo& info) {
           return std::to_string(info.batch);
         }) + ")")
      ->check(CLI::Range(1, 1 << 20));
  DeclareSizes(app, options);
  app.add_option("--transport", options.transport, "how the workers' gradients travel")
      ->check(CLI::IsMember({"shm", "tcp"}))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "turns of each contestant")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "of one turn")
      ->check(CLI::Range(0.001, 600.0))
      ->capture_default_str();
  app.add_option_function<double>(
         "--timeout",
         [&options](const double& seconds) {
           options.timeout = std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1e3));
         },
         "seconds, beside a turn's, that a worker waits for another: more than three steps of one "
         "worker with all examples take (default: " +
             std::to_string(options.timeout.count() / 1000) + ")")
      ->check(CLI::Range(1.0, 86400.0));
  app.add_option("--rendezvous-host", options.rendezvous_host,
                 "tcp: use the interface that routes to this host, instead of loopback");
  app.add_option("--exec-prefix", options.exec_prefix,
                 "words before the command of a worker's process, {rank} replaced: "
                 "\"ip netns exec cohort{rank}\"");
  app.add_flag("--json", options.json, "one JSON object instead of a table");
  app.add_option("--join", options.folder)->group("");  // what workers are started with
  app.add_option("--rank", options.rank)->group("");
  app.add_option("--server", options.server)->group("");
}

Status CompleteTrainingOptions(TrainingOptions& options) {
  const TrainingModelInfo& info = options.info();
  // The others wait while one trains alone, for about a turn's time.
  options.timeout += std::chrono::milliseconds(static_cast<std::int64_t>(2e3 * options.seconds));
  if (options.batch == 0) {
    options.batch = info.batch;
  }
  for (const auto& [name, value] : options.sizes) {
    if (!info.sizes.contains(name)) {
      std::string its;
      for (const auto& [own, otherwise] : info.sizes) {
        its += " --" + own;
      }
      return InvalidArgument("model " + options.model + " has no --" + name +
                             (its.empty() ? "" : " [it has" + its + "]"));
    }
  }
  if (options.workers == 1 && options.sizes.contains("servers")) {
    return InvalidArgument("--servers for one worker, which holds its tables itself");
  }
  options.sizes.insert(info.sizes.begin(), info.sizes.end());
  if (info.sizes.contains("heads") && options.sizes["width"] % options.sizes["heads"] != 0) {
    return InvalidArgument("--heads " + std::to_string(options.sizes["heads"]) +
                           " does not divide --width " + std::to_string(options.sizes["width"]));
  }
  if (options.servers() > 0 && !(options.exec_prefix.empty() && options.rendezvous_host.empty())) {
    return InvalidArgument("model " + options.model +
                           " has tables on servers, which are reached over loopback [without "
                           "--exec-prefix and --rendezvous-host]");
  }
  return {};
}

}  // namespace cohort
