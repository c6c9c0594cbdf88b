// `cohort bench embedding`: rows looked up and updated per second by one thread in a sparse table
// that is larger than the caches, beside the same reads and writes in a flat array: no hashing, no
// locks, no index. With --remote: through one client of one server, which is a process of its own,
// beside such a table in this process; with --tables: of many tables in one call, beside a call for
// each; with --rounds-of: as parts of rounds, beside pushes by themselves.

#include "command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <optional>
#include <string>

#include <cohort/core/status.h>

#include "core/commands/run_command.h"
#include "modes.h"

namespace cohort {
namespace {

Status Run(const embedding::Options& options) {
  return options.tables > 1      ? RunTables(options)
         : options.rounds_of > 0 ? RunRounds(options)
         : options.remote        ? RunRemote(options)
                                 : RunLocal(options);
}

}  // namespace

int BenchEmbeddingCommand(int argc, char** argv) {
  embedding::Options options;
  CLI::App app(
      "Measures lookups and updates of rows in a sparse table, beside the same reads and writes in "
      "a flat array without hashing and locks.",
      argv[0]);
  app.add_option("--rows", options.rows, "of the table")
      ->check(CLI::Range(1, 1'000'000'000))
      ->capture_default_str();
  app.add_option("--dim", options.dim, "floats of a row")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--ids", options.ids, "of one call")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  app.add_option("--calls", options.calls, "of a round, each with other ids")
      ->check(CLI::Range(1, 10'000))
      ->capture_default_str();
  app.add_option("--zipf", options.zipf, "exponent of the ids' popularity; 0: all alike")
      ->check(CLI::Range(0.0, 4.0))
      ->capture_default_str();
  app.add_option("--optimizer", options.optimizer,
                 "sgd, adagrad, row_wise_adagrad, rmsprop, adam, adamw or ftrl, with defaults")
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "the median of so many, all taken in turns")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--remote", options.remote,
               "through a client, and a server in another process, beside a table in this one");
  app.add_option("--tables", options.tables,
                 "with --remote: --rows and --ids in so many tables, all of a step in one call "
                 "beside a call for each")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option(
         "--rounds-of", options.rounds_of,
         "with --remote: so many workers, of which each pushes its share of a call as a part "
         "of one update, beside pushes of the same shares")
      ->check(CLI::Range(1, 256));
  const std::map<std::string, TableSpec::Wire> wires = {{"float32", TableSpec::Wire::kFloat32},
                                                        {"float16", TableSpec::Wire::kFloat16},
                                                        {"bfloat16", TableSpec::Wire::kBFloat16},
                                                        {"int8", TableSpec::Wire::kInt8}};
  app.add_option(
         "--transport", options.transport,
         "with --remote: auto (shared memory, since the server is on this host), shm or tcp")
      ->check(CLI::IsMember({"auto", "shm", "tcp"}))
      ->capture_default_str();
  app.add_option("--wire", options.wire,
                 "with --remote: how rows travel, float32, float16, bfloat16 or int8")
      ->transform(CLI::CheckedTransformer(wires));
  app.add_option("--wire-feedback", options.wire_feedback,
                 "with --remote: rows of which the client keeps what is rounded off gradients")
      ->check(CLI::Range(0LL, 1LL << 31))
      ->capture_default_str();
  app.add_flag("--json", options.json, "machine-readable output");
  if (const std::optional<int> code = ParseCommandLine(app, argc, argv)) {
    return *code;
  }
  if ((options.tables > 1 || options.rounds_of > 0) && !options.remote) {
    std::fprintf(stderr, "%s: --tables and --rounds-of need --remote\n", argv[0]);
    return 2;
  }
  if (options.tables > 1 && options.rounds_of > 0) {
    std::fprintf(stderr, "%s: --tables and --rounds-of are two measurements [give one of them]\n",
                 argv[0]);
    return 2;
  }
  return Finish(argv[0], Run(options));
}

}  // namespace cohort
