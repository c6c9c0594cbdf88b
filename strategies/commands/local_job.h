// LocalJob: a cluster of processes on this machine, from start to a single exit code.

#pragma once

#include <chrono>
#include <map>
#include <string>
#include <vector>

namespace cohort {

struct LocalJobOptions {
  int workers = 1;
  int servers = 0;     // tasks of the role ps
  bool chief = false;  // a task chief:0 beside the workers
  // The loss of a worker does not end the others.
  bool keep_going = false;
  // Parameter servers that fail are started again, so many times in all; with restart_workers so is
  // a worker that is killed, but for the first where there is no chief.
  int restarts = 0;
  bool restart_workers = false;
  // A job that fails is started again as a whole, on other ports, so many times.
  int job_restarts = 0;
  std::vector<std::string> program;          // and its arguments
  std::map<std::string, std::string> extra;  // environment variables, on top of this process's own
  std::chrono::milliseconds grace{10'000};   // from SIGTERM to SIGKILL
};

// Starts the job, passes its output on (each line after its task's name), and returns the exit code
// that the command ends with when nothing of the job is left. Takes over SIGINT, SIGTERM, SIGHUP,
// SIGCHLD and SIGPIPE of the whole program: call it once, from the main thread, with no other
// thread running.
int RunLocalJob(const LocalJobOptions& options);

}  // namespace cohort
