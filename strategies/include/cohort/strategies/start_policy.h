// StartPolicy: which workers a parameter-server job waits for before it begins. The chief and the
// servers are always waited for, all of it for at most StrategyOptions::join_timeout. Workers that
// are not waited for may come at any time while the job trains, or not at all.

#pragma once

#include <string>
#include <string_view>

#include <cohort/core/status.h>

namespace cohort {

struct StartPolicy {
  enum class Mode {
    kAll,      // all workers of the cluster
    kQuorum,   // as many as `workers`, whichever come first
    kElastic,  // none: the first that comes begins
  };
  Mode mode = Mode::kAll;
  int workers = 0;  // kQuorum

  // Of so many workers of a cluster, how many are waited for.
  int Least(int of) const { return mode == Mode::kAll ? of : mode == Mode::kQuorum ? workers : 0; }

  // "all", "quorum:2", "elastic". InvalidArgument for others.
  static Result<StartPolicy> Parse(std::string_view text);
  std::string ToString() const;
  friend bool operator==(const StartPolicy&, const StartPolicy&) = default;
};

}  // namespace cohort
