// Jobs of in_step_task, and what their output tells: workers in step with a table on servers.

#pragma once

#include <regex>
#include <string>
#include <vector>

#include "process/ps_job.h"

namespace cohort::testing {

inline JobSettings InStepProgram() { return {.program = "in_step_task"}; }

// Of all values and rows at a job's end.
inline std::string DigestIn(const std::string& output) {
  std::smatch found;
  return std::regex_search(output, found, std::regex("digest ([0-9]+)")) ? found[1].str() : "none";
}

// The job went back to these steps, in turn.
inline std::vector<int> StepsBackTo(const Job& job) {
  const std::string said = job.cluster.Stderr("worker:0");
  const std::regex line("rolled back [0-9]+ steps to step ([0-9]+); the job goes on after");
  std::vector<int> steps;
  for (std::sregex_iterator at(said.begin(), said.end(), line), end; at != end; ++at) {
    steps.push_back(std::stoi((*at)[1]));
  }
  return steps;
}

}  // namespace cohort::testing
