// The files that commands read and write: those of the machine, http(s):// and s3://.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>

namespace cohort::data {

// With the credentials and the endpoint of AWS's variables in the environment.
FileSystem& CommandFiles();
// Puts what s3:// patterns stand for in their places; a shell has done it for other paths. The exit
// code where that fails, which it prints; otherwise 0.
int ExpandPaths(const char* program, std::vector<std::string>& paths);
// Bytes of each.
Result<std::vector<std::uint64_t>> SizesOf(const std::vector<std::string>& paths);
// Whether both are the same file, whatever their names.
bool SameFile(const std::string& one, const std::string& other);

}  // namespace cohort::data
