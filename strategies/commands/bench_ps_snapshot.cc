// `cohort bench ps snapshot`: a server's process with a sparse table, a worker's that pulls and
// pushes without a pause, and the chief, which has the server keep a snapshot and writes it into a
// file meanwhile. How long the worker stands still, what becomes of its pulls, and how fast the
// file is written, beside the same bytes written and synced plainly: without the worker, which is
// the limit, and with it.

#include <sys/socket.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/random.h>
#include <cohort/core/status.h>
#include <cohort/core/zipf.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_optimizer.h>

#include "bench_children.h"
#include "bench_ps_modes.h"
#include "core/commands/processes.h"
#include "core/commands/run_command.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_file.h"
#include "parameter_server/variables/client.h"

namespace cohort {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::int64_t bytes = std::int64_t{1} << 30;  // of the table's records
  std::int64_t dim = 16;
  std::size_t ids = 4096;  // of one call
  double zipf = 1.05;
  std::string optimizer = "adagrad";
  std::int64_t dense = 4 << 20;  // bytes of a variable that is pushed and pulled as well
  double seconds = 3;            // of training without a snapshot
  int rounds = 3;
  std::string folder = ".";
  bool json = false;
};

double SecondsSince(Clock::time_point begun) {
  return std::chrono::duration<double>(Clock::now() - begun).count();
}

// ---- What all of them know ----------------------------------------------------------------------

std::uint64_t IdOf(std::uint64_t position) { return ps::HashId(position ^ 0x5EED); }

struct Subject {
  ps::ModelSpec model;
  std::uint64_t rows = 0;

  static Result<Subject> Of(const Options& options) {
    Subject subject;
    subject.model.parameters = {
        {.name = "w", .shape = {std::max<std::int64_t>(options.dense / 4, 1)}}};
    subject.model.optimizer = Sgd()->config();
    ps::TableSpec spec;
    spec.name = "items";
    spec.dim = options.dim;
    COHORT_ASSIGN_OR_RETURN(const auto rule,
                            RowOptimizer::Make("{\"name\":\"" + options.optimizer + "\"}"));
    spec.optimizer = rule->config();
    COHORT_RETURN_IF_ERROR(spec.Check());
    const auto dim = static_cast<std::size_t>(options.dim);
    subject.rows = static_cast<std::uint64_t>(options.bytes) /
                   (sizeof(ps::RowHeader) + (dim + rule->slot_floats(dim)) * sizeof(float));
    subject.model.tables = {std::move(spec)};
    return subject;
  }
};

// ---- The worker ---------------------------------------------------------------------------------

// It is told one letter at a time, between two steps: begin a Part of measuring and Train; stand
// still (Pause) until Go; Report the part, and wait.
enum Order : char { kTrain = 'T', kPause = 'P', kGo = 'G', kReport = 'R' };

struct Part {
  std::uint64_t pulls = 0;  // that many doubles follow: the seconds of each
  double seconds = 0;
  double pause = 0;  // the longest between the end of a step and the begin of the next
};

Status Train(const Options& options, const Subject& subject, const std::string& address,
             int socket) {
  const std::vector<std::string> addresses = {address};
  ps::ClientOptions identity;
  identity.client = 2;
  const auto client = ps::Client::Make(subject.model, addresses, identity);
  const auto rows = ps::RowClient::Make(subject.model, addresses, identity);
  const auto dim = static_cast<std::size_t>(options.dim);
  const Zipf popularity(subject.rows, options.zipf);
  const Philox random(3);
  std::vector<std::uint64_t> ids(options.ids);
  std::vector<float> weights(options.ids * dim);
  const std::vector<float> gradients(options.ids * dim, 0.001F);
  const std::vector<float> gradient(static_cast<std::size_t>(options.dense / 4), 0.001F);
  std::vector<float> values(gradient.size());
  COHORT_RETURN_IF_ERROR(client->Pull(values, true));

  std::vector<double> pulls;
  Part part;
  Clock::time_point begun;
  Clock::time_point stepped;
  std::uint64_t draws = 0;
  for (std::int64_t step = 0;; ++step) {
    char order = 0;
    const ssize_t got = ::recv(socket, &order, 1, step == 0 ? 0 : MSG_DONTWAIT);
    if (got == 0) {
      return {};
    }
    if (got == 1 && order == kPause) {
      COHORT_RETURN_IF_ERROR(SendAll(socket, &order, 1));
      COHORT_RETURN_IF_ERROR(ReceiveAll(socket, &order, 1));
    }
    if (got == 1 && order == kReport) {
      part.pulls = pulls.size();
      part.seconds = SecondsSince(begun);
      COHORT_RETURN_IF_ERROR(SendAll(socket, &part, sizeof(part)));
      COHORT_RETURN_IF_ERROR(SendAll(socket, pulls.data(), pulls.size() * sizeof(double)));
      if (::recv(socket, &order, 1, 0) != 1) {
        return {};
      }
    }
    if (order == kTrain) {
      pulls.clear();
      part = {};
      begun = stepped = Clock::now();
    }
    part.pause = std::max(part.pause, SecondsSince(stepped));
    for (std::uint64_t& id : ids) {
      id = IdOf(popularity([&] { return random.Uniform(draws++); }) - 1);
    }
    const Clock::time_point before = Clock::now();
    COHORT_RETURN_IF_ERROR(rows->Pull(0, ids, step + 1, /*training=*/true, weights));
    pulls.push_back(SecondsSince(before));
    const ps::RowClient::Gradients of_step{.table = 0, .ids = ids, .values = gradients};
    COHORT_RETURN_IF_ERROR(rows->Push(std::span(&of_step, 1), step + 1, 1));
    if (!gradient.empty()) {
      COHORT_RETURN_IF_ERROR(client->Push({.arena = gradient, .weight = 1}, values));
    }
    stepped = Clock::now();
  }
}

// ---- The chief ----------------------------------------------------------------------------------

struct Measured {
  double p50 = 0;
  double p99 = 0;
  double steps_per_second = 0;
  double pause = 0;
};

class Worker {
 public:
  explicit Worker(int socket) : socket_(socket) {}
  Status Begin() { return Order(kTrain); }
  Status Pause() {
    COHORT_RETURN_IF_ERROR(Order(kPause));
    char answer = 0;
    return ReceiveAll(socket_, &answer, 1);
  }
  Status Go() { return Order(kGo); }
  Result<Measured> Report() {
    COHORT_RETURN_IF_ERROR(Order(kReport));
    Part part;
    COHORT_RETURN_IF_ERROR(ReceiveAll(socket_, &part, sizeof(part)));
    std::vector<double> pulls(part.pulls);
    COHORT_RETURN_IF_ERROR(ReceiveAll(socket_, pulls.data(), pulls.size() * sizeof(double)));
    if (pulls.empty()) {
      return Internal("the worker made no step");
    }
    std::ranges::sort(pulls);
    return Measured{.p50 = pulls[pulls.size() / 2],
                    .p99 = pulls[pulls.size() * 99 / 100],
                    .steps_per_second = static_cast<double>(pulls.size()) / part.seconds,
                    .pause = part.pause};
  }

 private:
  Status Order(char order) { return SendAll(socket_, &order, 1); }
  const int socket_;
};

// As many bytes as the file has, written and synced; the seconds.
Result<double> WritePlainly(const std::string& path, std::uint64_t bytes) {
  const std::vector<std::byte> piece(std::size_t{1} << 20, std::byte{1});
  const Clock::time_point begun = Clock::now();
  COHORT_ASSIGN_OR_RETURN(const auto file, FileSystem::Local().OpenForWrite(path));
  for (std::uint64_t done = 0; done < bytes;) {
    const std::size_t some = std::min<std::uint64_t>(piece.size(), bytes - done);
    COHORT_RETURN_IF_ERROR(file->Append(std::span(piece).first(some)));
    done += some;
  }
  COHORT_RETURN_IF_ERROR(file->Sync());
  COHORT_RETURN_IF_ERROR(file->Close());
  const double seconds = SecondsSince(begun);
  COHORT_RETURN_IF_ERROR(FileSystem::Local().RemoveAll(path));
  return seconds;
}

Status Measure(const Options& options, const Subject& subject, pid_t server, Worker& worker,
               ps::Client& client, ps::RowClient& rows) {
  const std::string path = options.folder + "/bench_snapshot.rows";
  const std::string plain_path = options.folder + "/bench_snapshot.plain";
  const ps::TableSpec& spec = subject.model.tables[0];
  struct Round {
    Measured alone, beside_write, beside_snapshot;
    double flip = 0, write = 0, plain_alone = 0, plain = 0;
  };
  std::int64_t memory = 0;
  std::vector<Round> rounds;
  std::uint64_t bytes = 0;
  std::vector<float> values(static_cast<std::size_t>(subject.model.parameters[0].shape.elements()));
  for (int r = 0; r < options.rounds; ++r) {
    Round round;
    COHORT_RETURN_IF_ERROR(worker.Begin());
    std::this_thread::sleep_for(std::chrono::duration<double>(options.seconds));
    COHORT_ASSIGN_OR_RETURN(round.alone, worker.Report());
    memory = r == 0 ? MemoryOf(server, "VmHWM") : memory;

    COHORT_RETURN_IF_ERROR(worker.Begin());
    COHORT_RETURN_IF_ERROR(worker.Pause());
    const Clock::time_point before = Clock::now();
    COHORT_RETURN_IF_ERROR(client.Freeze(static_cast<std::uint64_t>(r) + 1).status());
    round.flip = SecondsSince(before);
    COHORT_RETURN_IF_ERROR(worker.Go());
    rows.ReadSnapshot(static_cast<std::uint64_t>(r) + 1);
    const Clock::time_point begun = Clock::now();
    COHORT_RETURN_IF_ERROR(client.PullState(values, {}));
    COHORT_RETURN_IF_ERROR(ps::SaveTable(rows, 0, spec, FileSystem::Local(), path));
    round.write = SecondsSince(begun);
    rows.ReadSnapshot(0);
    COHORT_RETURN_IF_ERROR(client.Thaw().status());
    COHORT_ASSIGN_OR_RETURN(round.beside_snapshot, worker.Report());
    bytes = std::filesystem::file_size(path);
    COHORT_RETURN_IF_ERROR(FileSystem::Local().RemoveAll(path));

    COHORT_RETURN_IF_ERROR(worker.Begin());
    COHORT_ASSIGN_OR_RETURN(round.plain, WritePlainly(plain_path, bytes));
    COHORT_ASSIGN_OR_RETURN(round.beside_write, worker.Report());
    COHORT_ASSIGN_OR_RETURN(round.plain_alone, WritePlainly(plain_path, bytes));
    rounds.push_back(round);
  }

  const auto median = [&](const auto& of) {
    std::vector<double> all;
    for (const Round& round : rounds) {
      all.push_back(of(round));
    }
    return Median(std::move(all));
  };
  const auto worst = [&](const auto& of) {
    double most = 0;
    for (const Round& round : rounds) {
      most = std::max(most, of(round));
    }
    return most;
  };
  const auto pulls = [&](const auto& of) {
    return nlohmann::ordered_json{
        {"p50_ms", 1e3 * median([&](const Round& r) { return of(r).p50; })},
        {"p99_ms", 1e3 * median([&](const Round& r) { return of(r).p99; })},
        {"steps_per_second", median([&](const Round& r) { return of(r).steps_per_second; })}};
  };
  const auto gigabytes = [&](const auto& of) {
    return static_cast<double>(bytes) / 1e9 / median(of);
  };
  const nlohmann::ordered_json report = {
      {"rows", subject.rows},
      {"file_bytes", bytes},
      {"ids_per_call", options.ids},
      {"rounds", options.rounds},
      {"pause_ms", 1e3 * median([](const Round& r) { return r.beside_snapshot.pause; })},
      {"worst_pause_ms", 1e3 * worst([](const Round& r) { return r.beside_snapshot.pause; })},
      {"flip_ms", 1e3 * median([](const Round& r) { return r.flip; })},
      {"server_bytes", memory},
      {"server_bytes_with_snapshots", MemoryOf(server, "VmHWM")},
      {"alone", pulls([](const Round& r) { return r.alone; })},
      {"beside_snapshot", pulls([](const Round& r) { return r.beside_snapshot; })},
      {"beside_plain_write", pulls([](const Round& r) { return r.beside_write; })},
      {"p99_ratio", median([](const Round& r) { return r.beside_snapshot.p99 / r.alone.p99; })},
      {"snapshot_gb_per_second", gigabytes([](const Round& r) { return r.write; })},
      {"plain_gb_per_second", gigabytes([](const Round& r) { return r.plain; })},
      {"plain_alone_gb_per_second", gigabytes([](const Round& r) { return r.plain_alone; })}};
  if (options.json) {
    std::printf("%s\n", report.dump().c_str());
    return {};
  }
  std::printf("%.2f M rows, a file of %.0f MiB; %zu ids a pull; medians of %d rounds\n",
              static_cast<double>(subject.rows) / 1e6, static_cast<double>(bytes) / (1 << 20),
              options.ids, options.rounds);
  std::printf("training stands still for %.2f ms (worst %.2f), of which the flip %.2f ms\n",
              report["pause_ms"].get<double>(), report["worst_pause_ms"].get<double>(),
              report["flip_ms"].get<double>());
  std::printf("%-20s %10s %10s %10s\n", "pulls", "p50 ms", "p99 ms", "steps/s");
  for (const char* name : {"alone", "beside_snapshot", "beside_plain_write"}) {
    std::printf("%-20s %10.3f %10.3f %10.1f\n", name, report[name]["p50_ms"].get<double>(),
                report[name]["p99_ms"].get<double>(),
                report[name]["steps_per_second"].get<double>());
  }
  std::printf(
      "p99 with a snapshot: %.2f times that without; the server's memory %lld MiB, and at "
      "most %lld with snapshots\n",
      report["p99_ratio"].get<double>(), static_cast<long long>(memory >> 20),
      static_cast<long long>(MemoryOf(server, "VmHWM") >> 20));
  std::printf("written at %.2f GB/s; the same bytes plainly %.2f GB/s, and %.2f with no training\n",
              report["snapshot_gb_per_second"].get<double>(),
              report["plain_gb_per_second"].get<double>(),
              report["plain_alone_gb_per_second"].get<double>());
  return {};
}

// Declares the model, has every row made, and measures.
Status Lead(const Options& options, const Subject& subject, const ServerProcess& server,
            int training) {
  const std::vector<std::string> addresses = {server.address()};
  const auto client = ps::Client::Make(subject.model, addresses, {});
  COHORT_RETURN_IF_ERROR(client->Declare());
  COHORT_RETURN_IF_ERROR(client->Assign(
      std::vector<float>(static_cast<std::size_t>(subject.model.parameters[0].shape.elements())),
      {}, 0));
  const auto rows = ps::RowClient::Make(subject.model, addresses, {});
  const auto dim = static_cast<std::size_t>(options.dim);
  std::vector<float> out((std::size_t{1} << 16) * dim);
  for (std::uint64_t begin = 0; begin < subject.rows; begin += 1 << 16) {
    std::vector<std::uint64_t> ids(std::min<std::uint64_t>(1 << 16, subject.rows - begin));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = IdOf(begin + i);
    }
    COHORT_RETURN_IF_ERROR(
        rows->Pull(0, ids, 1, /*training=*/true, std::span(out).first(ids.size() * dim)));
  }
  COHORT_RETURN_IF_ERROR(SendAll(training, "D", 1));
  Worker worker(training);
  return Measure(options, subject, server.pid(), worker, *client, *rows);
}

// gRPC has no part in a process before it forks.
Status Run(const Options& options) {
  COHORT_ASSIGN_OR_RETURN(const Subject subject, Subject::Of(options));
  Children children;
  COHORT_ASSIGN_OR_RETURN(const auto server, ServerProcess::Start(children));
  COHORT_ASSIGN_OR_RETURN(const auto training,
                          ConnectedProcess::Start(children, "worker", [&](int socket) -> Status {
                            char declared = 0;
                            if (::recv(socket, &declared, 1, 0) != 1) {
                              return {};
                            }
                            return Train(options, subject, server->address(), socket);
                          }));
  COHORT_RETURN_IF_ERROR(Lead(options, subject, *server, training->socket()));
  training->End();
  server->End();
  return children.Wait();
}

}  // namespace

int BenchPsSnapshotCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Measures a snapshot of a parameter server that is being trained on: a process for the "
      "server, the worker and the chief each. How long training stands still, how slow its pulls "
      "get, and how fast the snapshot is written beside the same bytes written plainly.",
      argv[0]);
  app.add_option("--bytes", options.bytes, "of the sparse table")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::int64_t{1} << 10, std::int64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--dense", options.dense, "bytes of a variable beside it; 0: none to speak of")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 32))
      ->capture_default_str();
  app.add_option("--dim", options.dim, "floats of a row")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--ids", options.ids, "of one call")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  app.add_option("--zipf", options.zipf, "exponent of the ids' popularity; 0: all alike")
      ->check(CLI::Range(0.0, 4.0))
      ->capture_default_str();
  app.add_option("--optimizer", options.optimizer, "sgd, adagrad, adam, ..., with defaults")
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "of training without a snapshot, in each round")
      ->check(CLI::Range(0.001, 600.0))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "the medians of so many")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--folder", options.folder, "for the files")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  app.add_flag("--json", options.json, "machine-readable output");
  return ParseAndRun(app, argc, argv, [&] { return Run(options); });
}

}  // namespace cohort
