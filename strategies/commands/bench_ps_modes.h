// `cohort bench ps hot`, `resume`, `snapshot` and `workers`, and what they have in common.

#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace cohort {

int BenchPsWorkersCommand(int argc, char** argv);
int BenchPsSnapshotCommand(int argc, char** argv);
int BenchPsResumeCommand(int argc, char** argv);
int BenchPsHotCommand(int argc, char** argv);

// Of a process, in bytes: "VmRSS" now, "VmHWM" at its most. 0: not known.
std::int64_t MemoryOf(pid_t pid, const std::string& what);

}  // namespace cohort
