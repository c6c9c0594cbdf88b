// What a program's own function returns, or throws, as a status.

#pragma once

#include <exception>
#include <string>

#include <cohort/core/status.h>

namespace cohort::ps {

// The status of a StatusError; Internal of anything else that is thrown.
template <typename F>
auto CaughtAsStatus(const F& function) -> decltype(function()) {
  try {
    return function();
  } catch (const StatusError& error) {
    return error.status();
  } catch (const std::exception& error) {
    return Internal(std::string("exception: ") + error.what());
  } catch (...) {
    return Internal("an exception that is no std::exception");
  }
}

}  // namespace cohort::ps
