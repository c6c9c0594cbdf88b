// A name for what becomes `path` when it is complete.

#pragma once

#include <string>

namespace cohort {

// "PATH.tmp-PID-RANDOM": beside it, so that it can be renamed to it, and used by no other thread or
// process, on whatever host.
std::string TemporaryName(const std::string& path);

}  // namespace cohort
