// `cohort data serve`: a process of the data service, with a pipeline made of files.

#include <signal.h>
#include <time.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <thread>

#include <cohort/core/log.h>
#include <cohort/data_service/data_service.h>

#include "../../commands/files.h"
#include "command.h"
#include "open_files.h"

namespace cohort {
namespace {

struct Options {
  data::OpenOptions files;
  data::ServeOptions serve;
  std::string name = "data";
  bool bytes = false;
  std::int64_t max_mb = 256;
  double join_seconds = 300;
  bool json = false;
};

std::string Describe(const data::Source& source) {
  std::string text;
  for (const data::FeatureSpec& feature : source.features()) {
    text += (text.empty() ? "" : ", ") + feature.name + " " +
            std::string(DTypeName(feature.dtype)) + feature.shape.ToString();
  }
  for (const data::RaggedSpec& feature : source.ragged()) {
    text += (text.empty() ? "" : ", ") + feature.name + " " +
            std::string(DTypeName(feature.dtype)) + " of any length";
  }
  return text;
}

// SIGINT and SIGTERM, from before any thread is started: until it serves, they end the process at
// once; then they ask it to end in order.
class Signals {
 public:
  Signals() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    thread_ = std::thread([this] { Watch(); });
  }
  ~Signals() {
    done_ = true;
    thread_.join();
  }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  void Serving() { serving_ = true; }
  bool asked() const { return asked_; }

 private:
  void Watch() {
    const timespec slice{.tv_sec = 0, .tv_nsec = 100'000'000};
    while (!done_) {
      const int signal = ::sigtimedwait(&signals_, nullptr, &slice);
      if (signal > 0 && !serving_) {
        std::_Exit(128 + signal);
      }
      asked_ = asked_ || signal > 0;
    }
  }

  sigset_t signals_{};
  std::atomic<bool> done_{false};
  std::atomic<bool> serving_{false};
  std::atomic<bool> asked_{false};
  std::thread thread_;
};

// Until a signal asks for the end, or trainers are not sent here any more.
Status Wait(const data::DataServer& server, const Signals& signals) {
  while (!signals.asked()) {
    COHORT_RETURN_IF_ERROR(server.failure());
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return {};
}

Status Run(Options options) {
  Signals signals;
  std::vector<data::ServedPipeline> pipelines;
  std::string what;
  if (!options.files.paths.empty()) {
    options.files.unit_range = !options.bytes;
    COHORT_ASSIGN_OR_RETURN(const data::OpenedFiles opened, data::OpenFiles(options.files));
    COHORT_ASSIGN_OR_RETURN(const auto source, opened.dataset.AsSource());
    what = std::to_string(source->size()) + " examples of " + Describe(*source);
    for (const std::string& field : opened.unread) {
      options.serve.log.Warning("left out: '" + field + "'");
    }
    pipelines.push_back({options.name, opened.dataset, opened.version});
  }
  options.serve.max_bytes = options.max_mb << 20;
  options.serve.join_timeout =
      std::chrono::milliseconds(static_cast<std::int64_t>(options.join_seconds * 1e3));
  COHORT_ASSIGN_OR_RETURN(const auto server, data::Serve(pipelines, options.serve));
  signals.Serving();
  if (options.json) {
    std::printf("%s\n", nlohmann::json({{"command", "data serve"},
                                        {"port", server->port()},
                                        {"pipeline", pipelines.empty() ? "" : options.name},
                                        {"serves", what}})
                            .dump()
                            .c_str());
  } else {
    std::printf("listening on port %d%s%s%s%s\n", server->port(),
                pipelines.empty() ? ", a dispatcher only" : ", pipeline '",
                pipelines.empty() ? "" : options.name.c_str(),
                pipelines.empty() ? "" : "': ", what.c_str());
  }
  std::fflush(stdout);
  const Status status = Wait(*server, signals);
  const data::DataServerStats stats = server->stats();
  options.serve.log.Info("served " + std::to_string(stats.examples) + " examples, " +
                         std::to_string(stats.bytes) + " bytes, in " + std::to_string(stats.reads) +
                         " reads");
  return status;
}

}  // namespace

int DataServeCommand(int argc, char** argv) {
  Options options;
  options.serve.log = StderrLog("data serve");
  CLI::App app(
      "Makes the examples of files for trainers, which get them by "
      "data::FromService(\"HOST:PORT\", "
      "NAME): TFRecord of Examples, tar (WebDataset), CSV, .npy, safetensors, or a folder of "
      "images "
      "as MNIST is published. The first process is the dispatcher, at which trainers ask; the "
      "others --join it with the same files and options. Without files: a dispatcher only. Ends in "
      "order at SIGTERM.",
      argv[0]);
  app.add_option("path", options.files.paths, "files, or a folder; also http(s):// and s3://");
  app.add_option("--name", options.name, "by which trainers ask for the pipeline")
      ->capture_default_str();
  app.add_option("--listen", options.serve.listen, "address and port; port 0: any free one")
      ->capture_default_str();
  app.add_option("--join", options.serve.dispatcher, "HOST:PORT of the dispatcher");
  app.add_option("--advertise", options.serve.advertise,
                 "HOST or HOST:PORT at which trainers reach this process, if not where the "
                 "dispatcher sees it come from");
  app.add_option("--threads", options.serve.threads, "that make examples; 0: one a core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  app.add_option("--max-mb", options.max_mb, "of examples that are being made or sent, in MiB")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--join-timeout", options.join_seconds, "for the dispatcher's answer, in seconds")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  app.add_option("--image", options.files.image, "HEIGHTxWIDTH of images");
  app.add_option("--fit", options.files.fit, "how images come to that size")
      ->check(CLI::IsMember({"cover", "stretch", "exact"}))
      ->capture_default_str();
  app.add_flag("--uint8", options.bytes, "images as bytes, not as float32 in [0, 1]");
  app.add_flag("--json", options.json, "say as a JSON object where it listens");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (options.files.paths.empty() && !options.serve.dispatcher.empty()) {
    std::fprintf(stderr, "%s: --join comes with files to serve\n", argv[0]);
    return 2;
  }
  if (const int code = data::ExpandPaths(argv[0], options.files.paths); code != 0) {
    return code;
  }
  const Status status = Run(options);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
