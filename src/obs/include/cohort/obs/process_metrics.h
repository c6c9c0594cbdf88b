// What every process tells of itself: cohort_build_info, process_resident_memory_bytes,
// process_cpu_seconds_total, process_open_fds. Read from the kernel with each page.

#pragma once

#include <cohort/core/metrics.h>

namespace cohort {

void AddProcessMetrics(Metrics& metrics);

}  // namespace cohort
