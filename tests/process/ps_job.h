// A job of ps_program, or of another program with gates, whose processes are lost, stopped and
// replaced while it trains; and what it says where it ends as if nothing had happened.
//
// worker:0 stops at a gate before its last steps, so that no job is over before its process was
// lost. The counting model tells how often each example is in the values.

#pragma once

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "testing/process_cluster.h"
#include "testing/tcp_proxy.h"
#include "testing/temp_dir.h"

namespace cohort::testing {

using Tasks = std::vector<std::pair<std::string, int>>;

inline constexpr std::chrono::seconds kPatience{60};
inline constexpr int kPeerLost = 138;
inline constexpr int kKilled = 128 + SIGKILL;
inline const Tasks kJob = {{"chief", 1}, {"worker", 2}, {"ps", 2}};

struct JobSettings {
  bool proxied = false;                      // a TcpProxy stands between all processes
  std::map<std::string, Variables> of_task;  // environments, of those that have one of their own
  std::vector<std::string> absent;           // tasks that Start starts, or nobody
  std::string program = "ps_program";        // which takes --gate and --gate-at
  std::function<void(TcpProxy&)> network;    // what is asked of it before any task starts
};

class Job {
 public:
  // The program's arguments; 0: worker:0 has no gate.
  explicit Job(const std::vector<std::string>& arguments, int gate_at, const Tasks& tasks = kJob,
               JobSettings settings = {});

  void Kill(const std::string& name);
  // Another process for ps:`index`, or for the chief.
  void Replace(int index, const std::string& name) { Start("ps", index, name); }
  void ReplaceChief(const std::string& name) { Start("chief", 0, name); }
  void Start(const std::string& type, int index, const std::string& name);
  // Of one of the job's tasks, by its name.
  void StartTask(const std::string& task);
  void OpenGate(const std::string& suffix = "");  // of the gate's file, where there are others
  // Codes are 0 but for those that were killed and what is said here.
  void Expect(const std::string& name, int code) { expected_[name] = code; }
  void ExpectCodes();
  // A whole checkpoint, or one that is being written.
  static bool WaitForSave(const std::string& folder, bool whole);
  // The newest checkpoint builds on another one, and is newer than `after`, which it becomes.
  static bool WaitForChain(const std::string& folder, std::filesystem::path* after = nullptr);
  // One is being written that is not of `seen`, and has `file` so far; empty: has begun.
  static bool WaitForWriting(const std::string& folder, const std::string& file,
                             std::set<std::string>& seen);
  static bool Await(const std::function<bool()>& holds);
  std::string Folder() const { return dir_.path() + "/saves"; }
  TcpProxy& proxy() { return *proxy_; }

 private:
  std::string Gate() const { return dir_.path() + "/gate"; }

  ProcessCluster network_;
  std::optional<TcpProxy> proxy_;

 public:
  ProcessCluster cluster;

 private:
  TempDir dir_;
  JobSettings settings_;
  std::vector<std::string> argv_;
  std::string cluster_json_;
  std::map<std::string, int> expected_;  // exit codes
};

// COHORT_FAULT_SEED, which has the faults of an earlier run again; else the time.
std::uint64_t FaultSeed();

// Of a synchronous job of `epochs`.
std::string DigestOf(int epochs);

// "_far" behind a parameter of a test: the replicas are on devices. True, without it, if it is
// there.
bool TakeFar(std::string& parameter);

std::vector<std::string> Arguments(std::string consistency, int epochs,
                                   std::vector<std::string> more = {});

// Steps that take a while are shared out evenly, whoever has a processor: worker:0 gets to its
// gate.
inline const std::vector<std::string> kEven = {"--step-ms", "1"};

// These ended, since nobody took the place of `task` within half a second (--rejoin-ms 500).
void ExpectNobodyCame(Job& job, const std::vector<std::string>& names, const std::string& task);

// As if nothing had been lost.
void ExpectWholeOutcome(Job& job, const std::string& chief, std::string consistency, int epochs);

}  // namespace cohort::testing
