// What commands do alike between their options and their exit code.

#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>

#include <cohort/core/status.h>

namespace cohort {

// The exit code if there is nothing to run: help was printed (0), or a mistake (2).
std::optional<int> ParseCommandLine(CLI::App& app, int argc, char** argv);

// The exit code of what has been done; an error goes to standard error after the command's name.
int Finish(const char* command, const Status& status);

// All of a command that does nothing else.
int ParseAndRun(CLI::App& app, int argc, char** argv, const std::function<Status()>& run);

}  // namespace cohort
