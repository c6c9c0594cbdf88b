// Files by a pattern, on the machine or in S3.
//
// Thread rules: free functions, any thread.

#pragma once

#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>

namespace cohort::data {

// The paths that match, in bytewise order: * and ? stand for characters of a name but '/', [a-z]
// for one of those. "s3://bucket/train/part-*" asks for names that begin with "part-" alone.
// Without any of these characters, and with http:// (which lists nothing), the pattern itself.
// NotFound names the pattern that nothing matches.
Result<std::vector<std::string>> Glob(FileSystem& files, const std::string& pattern);

// What matches any of the patterns, in bytewise order, each file once: also where it has two names,
// the first of which counts, as a warning says.
Result<std::vector<std::string>> GlobAll(FileSystem& files,
                                         const std::vector<std::string>& patterns,
                                         const Log& log = {});

}  // namespace cohort::data
