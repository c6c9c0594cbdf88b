// Conductor: starts the processes of all subjects, gives their groups orders in turns, and sees to
// it that none is left behind: one that ends early or misses a deadline ends the run, with all
// others.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include <cohort/core/status.h>

#include "channel.h"
#include "core/commands/processes.h"
#include "core/commands/scratch_folder.h"
#include "options.h"
#include "subject.h"

namespace cohort::bench {

// Use on the program's main thread: the kernel ties the processes' lives to it.
class Conductor {
 public:
  // `arguments`: those this command was given. Returns when every rank of every group is ready.
  static Result<std::unique_ptr<Conductor>> Start(const Options& options,
                                                  const std::vector<std::string>& arguments,
                                                  std::vector<SubjectSpec> specs);
  ~Conductor();

  const std::vector<SubjectSpec>& specs() const { return specs_; }
  // The order to every rank of a group, and their answers by rank.
  Result<std::vector<nlohmann::json>> Order(std::size_t group, const nlohmann::json& order);
  // Lets all processes end; the first that does not end well.
  Status Finish();

 private:
  Conductor(const Options& options, std::vector<SubjectSpec> specs, ScratchFolder folder);
  Status StartGroup(std::size_t group, const std::vector<std::string>& arguments);
  Status MeetAll();
  bool AllHere() const;
  std::string Name(std::size_t group) const;

  const Options options_;
  const std::vector<SubjectSpec> specs_;
  const ScratchFolder folder_;
  Socket listener_;
  std::vector<std::vector<std::unique_ptr<Channel>>> channels_;  // by group and rank
  Processes processes_;
};

}  // namespace cohort::bench
