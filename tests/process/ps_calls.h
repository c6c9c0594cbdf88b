// ps_program's chief where it calls functions: a call of "train" for each so many examples, in
// order, with the first one's number for its argument and its result.

#pragma once

#include <cstdint>
#include <string>

#include <cohort/core/status.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/strategy.h>

namespace cohort::testing {

inline constexpr std::int64_t kExamplesOfACall = 50;

struct CallOptions {
  std::int64_t examples = 0;
  std::string folder;  // of saves; it goes on from the one that is there
  int save_calls = 0;  // saves when it has scheduled so many more and one has returned
  int full_save_every = 8;
};

// Says where it goes on, what was saved, and how many results it has fetched.
Status CallAll(Strategy& strategy, ParameterSet& parameters, const CallOptions& options);

}  // namespace cohort::testing
