// The JSON that TF_CONFIG, COHORT_CONFIG and --cluster-spec share.

#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include <cohort/cluster/cluster_spec.h>

#include "problems.h"

namespace cohort {

enum class ConfigDialect {
  kTfConfig,     // unknown keys are warned of, as TensorFlow lets them pass
  kCohort,       // unknown keys are errors; `rendezvous` is known
  kClusterSpec,  // as kCohort, and the cluster itself may be the whole document
};

// What a text says. Parts with mistakes are there as far as they can be read, so that what depends
// on them can be checked too.
struct ConfigText {
  std::string source;
  std::optional<std::map<TaskId, std::string>> cluster;  // without evaluators; never empty
  std::optional<TaskId> task;
  bool task_is_wrong = false;  // a task was given, and has mistakes
  std::string rendezvous;
};

// Nothing if the text is {} or no JSON at all.
std::optional<ConfigText> ParseConfigText(std::string_view source, std::string_view text,
                                          ConfigDialect dialect, Problems& problems);

}  // namespace cohort
