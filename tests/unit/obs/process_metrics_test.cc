#include <cohort/obs/process_metrics.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <string>
#include <vector>

namespace cohort {
namespace {

// Of a sample without labels.
double Value(const Metrics& metrics, const std::string& name) {
  const std::string page = metrics.ToText();
  const std::size_t at = page.find("\n" + name + " ");
  return at == page.npos ? -1 : std::stod(page.substr(at + name.size() + 2));
}

TEST(ProcessMetrics, FollowTheProcess) {
  Metrics metrics;
  AddProcessMetrics(metrics);
  const double memory = Value(metrics, "process_resident_memory_bytes");
  const double files = Value(metrics, "process_open_fds");
  const double cpu = Value(metrics, "process_cpu_seconds_total");
  EXPECT_GT(memory, 1 << 20);
  EXPECT_GE(files, 3);

  std::vector<char> bytes(32 << 20);
  std::memset(bytes.data(), 1, bytes.size());
  EXPECT_GE(Value(metrics, "process_resident_memory_bytes"), memory + (24 << 20));
  EXPECT_EQ(bytes[bytes.size() / 2], 1);

  const int fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(Value(metrics, "process_open_fds"), files + 1);
  ::close(fd);
  EXPECT_EQ(Value(metrics, "process_open_fds"), files);

  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (Value(metrics, "process_cpu_seconds_total") < cpu + 0.01 &&
         std::chrono::steady_clock::now() < end) {
  }
  EXPECT_GE(Value(metrics, "process_cpu_seconds_total"), cpu + 0.01);
}

TEST(ProcessMetrics, SayWhatTheBuildIs) {
  Metrics metrics;
  AddProcessMetrics(metrics);
  AddProcessMetrics(metrics);  // does nothing more
  EXPECT_THAT(metrics.ToText(), ::testing::ContainsRegex(
                                    "\ncohort_build_info\\{version=\"[0-9.]+\",cuda=\"[a-z0-9.]+\""
                                    ",mpi=\"[a-z0-9.]+\"\\} 1\n"));
}

}  // namespace
}  // namespace cohort
