// Processes: those that a command starts to measure something, none of which is left behind.

#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include "core/commands/child_process.h"

namespace cohort {

std::string ThisProgram();  // its path

// Pins the calling thread to the core that is rank's, unless there are more ranks than cores.
void PinToCore(int rank, int ranks);

double Median(std::vector<double> values);  // 0 for none

// Use on the program's main thread: the kernel ties the processes' lives to it. The destructor
// kills those that still run.
class Processes {
 public:
  // What they write to standard output goes to `out`; the rest to standard error.
  explicit Processes(std::FILE* out) : out_(out) {}

  // With this process's environment, without what launchers and tuners set there, with `variables`
  // (NAME=value), and with the same pages for all: malloc asks for huge ones. `name` is for errors.
  Status Start(std::string name, const std::vector<std::string>& argv,
               const std::vector<std::string>& variables = {});
  // Passes on what they write, until one of `fds` can be read (true), or a little while.
  bool Pump(const std::vector<int>& fds);
  void PassOnTheRest();
  // An error if one has ended, and how.
  Status CheckNoneEnded();
  // Waits for all to end; the first that does not end well: FailedPrecondition where its exit code
  // is 2, else Unavailable.
  Status Finish(Deadline deadline);
  void Kill() { processes_.clear(); }

 private:
  struct Process {
    std::string name;
    ChildProcess child;
  };
  bool PassOn();

  std::FILE* const out_;
  std::vector<Process> processes_;
};

}  // namespace cohort
