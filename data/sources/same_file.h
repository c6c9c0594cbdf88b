// Paths that are the same file, whatever their names.

#pragma once

#include <string>
#include <vector>

#include <cohort/core/log.h>

namespace cohort::data {

// Equal for names of one file: the path without links; of a remote file, or one that is not there,
// the path.
std::string RealPath(const std::string& path);

// A warning that names two of them.
void WarnOfTwice(const std::vector<std::string>& paths, const Log& log);

}  // namespace cohort::data
