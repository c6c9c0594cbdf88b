// ProcessCluster: real processes for tests: started from a command line, signalled by name, waited
// for with a deadline, and never left behind.
//
// Standard input is /dev/null; output goes to files, so that no child ever blocks on a reader.
// Children lead process groups of their own and are killed when the cluster is destroyed or when
// the test process dies. The destructor prints the output of every process if the test has failed.
//
// Thread rules: one thread, and that thread must outlive the children (the kernel ties their lives
// to the thread that started them). Misuse (an unknown name, a program that cannot be executed)
// throws std::runtime_error, which fails the test.

#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "testing/temp_dir.h"

namespace cohort::testing {

using Variables = std::map<std::string, std::string>;

class ProcessCluster {
 public:
  ProcessCluster() = default;
  ~ProcessCluster();
  ProcessCluster(const ProcessCluster&) = delete;
  ProcessCluster& operator=(const ProcessCluster&) = delete;

  // Starts `argv` (argv[0] is searched in PATH) under a name of the test's choice. The environment
  // is the test's own, without what launchers set (TF_CONFIG, RANK, OMPI_*, SLURM_*, ...), plus
  // `env`.
  void Start(const std::string& name, const std::vector<std::string>& argv,
             const Variables& env = {});
  // Starts `argv` once for each task of `jobs` ({{"chief", 1}, {"worker", 2}}), named "worker:0"
  // and so on, with a TF_CONFIG of loopback addresses; returns that cluster as JSON
  // ({"worker":["127.0.0.1:4711"]}). Tasks in `absent` get an address but no process.
  std::string StartTasks(const std::vector<std::pair<std::string, int>>& jobs,
                         const std::vector<std::string>& argv, const Variables& env = {},
                         const std::vector<std::string>& absent = {});

  pid_t pid(const std::string& name) const;
  std::vector<std::string> names() const;  // in the order started
  // To that process alone, not to its group. False if it has ended.
  bool Signal(const std::string& name, int signal);

  // The exit code, 128 + signal if a signal ended it; nothing if it still runs at the deadline.
  std::optional<int> Wait(const std::string& name, std::chrono::milliseconds timeout);
  // Every exit code; nothing for those that still run at the deadline, which all share.
  std::map<std::string, std::optional<int>> WaitAll(std::chrono::milliseconds timeout);
  // True once `text` stands in the process's output (either stream); false at the deadline or if
  // the process has ended without.
  bool WaitForOutput(const std::string& name, const std::string& text,
                     std::chrono::milliseconds timeout);

  // The most memory (resident) that an ended process has had, in KB, as the kernel counts it: not
  // less than this one's own when it was started.
  std::int64_t PeakKilobytes(const std::string& name) const;

  // What was written so far.
  std::string Stdout(const std::string& name) const;
  std::string Stderr(const std::string& name) const;
  // Both streams of all processes, with headings: for the message of an assertion.
  std::string Logs() const;

 private:
  struct Process {
    std::string name;
    pid_t pid = -1;
    std::optional<int> code;
    std::int64_t peak_kilobytes = 0;
    std::string stdout_path, stderr_path;
  };

  const Process& Find(const std::string& name) const;
  Process& Find(const std::string& name);
  static bool Ended(Process& process);  // reaps

  TempDir dir_;
  std::vector<Process> processes_;
};

// Distinct TCP ports that nothing listens on at this moment, of a block that is this process's:
// other tests' processes have others. `cohort launch` or a stranger may take one before it is used:
// prefer port 0 wherever the address can be published.
std::vector<int> UnusedPorts(int count);
// On the loopback address, at this moment: without SO_REUSEADDR, as the pickiest of programs.
bool CanListen(int port);

}  // namespace cohort::testing
