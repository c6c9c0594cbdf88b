// What every Communicator backend must do. A backend instantiates the suites with a few lines:
// see communicator_conformance_test.cc.
#pragma once

#include <cohort/comm/communicator.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace cohort::testing {

// Makes a group of `size` ranks and runs fn on each rank of it that lives in this process; their
// statuses. With options.generation above 1 it makes the generations from 1 to that, one after the
// other in the same store, and runs fn on each until one fails. The last communicator is destroyed
// when fn returns.
using RunGroup =
    std::function<std::vector<Status>(int size, const CommunicatorOptions& options,
                                      const std::function<Status(Communicator& communicator)>& fn)>;

// What a rank of it does; `make` makes one generation.
using MakeCommunicator =
    std::function<Result<std::unique_ptr<Communicator>>(const CommunicatorOptions& options)>;
Status RunGenerations(const CommunicatorOptions& options, const MakeCommunicator& make,
                      const std::function<Status(Communicator& communicator)>& fn);

struct CommunicatorCase {
  std::string name;
  RunGroup run;
  int size = 1;
  std::int64_t segment_bytes = 0;
  bool deterministic = true;  // false: the backend refuses to be, but for one rank
  bool joins = true;          // false: it has no Join
  bool reckons = true;        // false: its library chooses algorithms, and does not tell
};

class CommunicatorConformance : public ::testing::TestWithParam<CommunicatorCase> {
 protected:
  int size() const { return GetParam().size; }
  CommunicatorOptions options() const;
  // Runs fn on all ranks and expects OK of each.
  void Run(const std::function<Status(Communicator& communicator)>& fn);
};

// Failures: at least two ranks.
class CommunicatorFailureConformance : public CommunicatorConformance {
 protected:
  // Every rank gets `code`, with all of `parts` in the text.
  void RunAndExpect(const CommunicatorOptions& options, StatusCode code,
                    const std::vector<std::string>& parts,
                    const std::function<Status(Communicator& communicator)>& fn);
};

inline std::string CommunicatorCaseName(const ::testing::TestParamInfo<CommunicatorCase>& info) {
  return info.param.name + "_" + std::to_string(info.param.size) + "_ranks" +
         (info.param.segment_bytes > 0
              ? "_" + std::to_string(info.param.segment_bytes) + "_byte_segments"
              : "");
}

}  // namespace cohort::testing
