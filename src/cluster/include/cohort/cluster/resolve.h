// ResolveCluster: from what a process was started with to its place in a cluster.
//
// Sources, the first that is present wins: the flags, COHORT_CONFIG, TF_CONFIG, torchrun, PET_*
// (Kubeflow), MPI (Open MPI, PMI, MVAPICH2), a Slurm step, SageMaker; without any, a local job of
// one process. Every source that is present must be free of mistakes and agree with the winner on
// rank and size. See src/cluster/README.md for the rules.
//
// Pure functions of their arguments: no environment is read, no socket opened; the only file read
// is the one that --cluster-spec names. Thread rules: any thread. Nothing blocks.

#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/environment.h>
#include <cohort/core/file_system.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>

namespace cohort {

// The command line's part; empty: not given.
struct ClusterFlags {
  std::string
      cluster_spec;  // {"worker": ["a:1", "b:1"]}, or a whole TF_CONFIG, or a file of either
  std::string role;  // this process's, where the cluster does not tell; must agree if it does
  std::optional<int> index;
  std::string topology;  // roles of bare ranks, in rank order: "chief=1,ps=2,worker=rest"
};

struct ClusterReport {
  std::optional<ClusterConfig> config;  // there exactly if there are no errors
  std::vector<std::string> errors;      // all of them; one may span lines (text with a caret)
  std::vector<std::string> warnings;    // accepted, but probably not meant
  std::vector<std::string> notes;       // how it was decided
};

ClusterReport InspectCluster(const ClusterFlags& flags, const Environment& env,
                             FileSystem& files = FileSystem::Local());

// The same, for programs: warnings and notes go to `log`, all errors into one InvalidArgument, each
// on its own line.
Result<ClusterConfig> ResolveCluster(const ClusterFlags& flags, const Environment& env,
                                     const Log& log = {}, FileSystem& files = FileSystem::Local());

// Whether a variable is one of those by which launchers tell a process its place. A program that
// starts another cluster inside of one must not pass them on.
bool IsLauncherVariable(std::string_view name);

}  // namespace cohort
