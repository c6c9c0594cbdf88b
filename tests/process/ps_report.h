// What ps_program says at its end.

#pragma once

#include <string>
#include <utility>

#include <cohort/core/random.h>
#include <cohort/optim/optimizer.h>

#include "testing/integer_model.h"

namespace cohort::testing {

// Of a job that is equal to one process.
inline std::string DigestOf(std::int64_t examples, std::int64_t batch, int epochs,
                            const Optimizer& optimizer) {
  ParameterSet parameters = IntegerParameters();
  const Trained trained = TrainOnOneThread(IntegerData(examples, batch), optimizer, epochs);
  std::copy(trained.values.begin(), trained.values.end(), parameters.all().begin());
  std::uint64_t digest = 0;
  for (int p = 0; p < parameters.size(); ++p) {
    const std::span<const float> value = std::as_const(parameters).value(p);
    digest = Hash64({reinterpret_cast<const char*>(value.data()), value.size_bytes()}, digest);
  }
  return "step " + std::to_string(trained.step) + " digest " + std::to_string(digest);
}

}  // namespace cohort::testing
