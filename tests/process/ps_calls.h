// ps_program's chief where it calls functions: a call of "train" for each so many examples, in
// order, with the first one's number for its argument and its result.

#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include <cohort/core/status.h>
#include <cohort/data/dataset.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/strategy.h>

namespace cohort::testing {

inline constexpr std::int64_t kExamplesOfACall = 50;

struct CallOptions {
  std::int64_t examples = 0;
  std::string folder;  // of saves; it goes on from the one that is there
  int save_calls = 0;  // saves when it has scheduled so many more and one has returned
  int full_save_every = 8;
  // Where the chief stands, if anywhere, until the test has done something: it calls `stand` there.
  //   saved: behind a save that is whole, in the function of Coordinator::Save. In place of the
  //     first save it gives the servers the values that they have.
  //   given: when half of the calls are over and it has what they came to, which it gives the
  //     servers then; says how that was refused before it had pulled the state anew.
  //   kept: then, too, when it has given them back, and one call more and a save of the program's
  //     own are over.
  //   refused: then, when it has tried to load a table from where there is none.
  //   evaluation: in one, of `data`, at the end. Says which values and rows it has seen.
  std::string place;
  std::function<void()> stand;
  data::Dataset data;
};

// Says where it goes on, what was saved, and how many results it has fetched.
Status CallAll(Strategy& strategy, ParameterSet& parameters, const CallOptions& options);

}  // namespace cohort::testing
