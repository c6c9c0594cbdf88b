#include <cohort/obs/process_metrics.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <system_error>

#include "obs/build_info.h"

namespace cohort {
namespace {

double ResidentBytes() {
  double pages = 0;
  double resident = std::numeric_limits<double>::quiet_NaN();
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

double CpuSeconds() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double OpenFiles() {
  std::error_code error;
  double count = 0;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end;
       it.increment(error)) {
    ++count;
  }
  return error ? std::numeric_limits<double>::quiet_NaN() : count - 1;  // that of the folder
}

}  // namespace

void AddProcessMetrics(Metrics& metrics) {
  metrics.AddGauge("cohort_build_info", "What this program was built with; always 1.", kBuildInfo)
      .Set(1);
  metrics.AddGauge("process_resident_memory_bytes", "Resident memory size in bytes.",
                   ResidentBytes);
  metrics.AddCounter("process_cpu_seconds_total",
                     "Total user and system CPU time spent in seconds.", CpuSeconds);
  metrics.AddGauge("process_open_fds", "Number of open file descriptors.", OpenFiles);
}

}  // namespace cohort
