#include "core/commands/run_command.h"

#include <cstdio>

namespace cohort {

std::optional<int> ParseCommandLine(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return std::nullopt;
}

int Finish(const char* command, const Status& status) {
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", command, status.ToString().c_str());
  }
  return ExitCode(status);
}

int ParseAndRun(CLI::App& app, int argc, char** argv, const std::function<Status()>& run) {
  if (const std::optional<int> code = ParseCommandLine(app, argc, argv)) {
    return *code;
  }
  return Finish(argv[0], run());
}

}  // namespace cohort
