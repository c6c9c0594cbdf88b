// A caller's function on the threads of the pipeline: what it throws is an error like any other.

#pragma once

#include <exception>
#include <string>
#include <utility>

#include <cohort/core/status.h>

namespace cohort::data {

template <typename Function, typename... Arguments>
Status Guarded(const Function& function, Arguments&&... arguments) {
  try {
    return function(std::forward<Arguments>(arguments)...);
  } catch (const std::exception& error) {
    return Internal(std::string("exception: ") + error.what());
  }
}

}  // namespace cohort::data
