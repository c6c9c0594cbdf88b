// A job that goes on for long on a bad network: dense values and rows, buckets that move, of every
// hundred pieces one that breaks its connection, each push twice. Every example counts once, and
// what the chief and the servers hold does not grow. F29.
//
// As long as COHORT_SOAK_SECONDS says, at least 60 seconds.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <regex>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "process/ps_job.h"

namespace cohort::testing {
namespace {

using std::chrono::duration;
using std::chrono::steady_clock;

// The first third of the time is for what is filled once: caches, arenas of threads, connections.
constexpr double kWarm = 1.0 / 3;
// What a process may grow in a minute, in KiB: samples scatter by as much as an arena. Of each of
// the 10,000 requests a second that a server answers one byte would be 600 KiB.
constexpr double kMostOfAMinute = 2048;

double ResidentKilobytes(pid_t pid) {
  std::ifstream statm("/proc/" + std::to_string(pid) + "/statm");
  std::int64_t size = 0;
  std::int64_t resident = 0;
  statm >> size >> resident;
  return static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)) / 1024;
}

struct Sample {
  double at = 0;  // seconds
  double kilobytes = 0;
};

// Least squares.
double SlopeOf(const std::vector<Sample>& samples) {
  double n = 0, x = 0, y = 0, xx = 0, xy = 0;
  for (const Sample& sample : samples) {
    n += 1;
    x += sample.at;
    y += sample.kilobytes;
    xx += sample.at * sample.at;
    xy += sample.at * sample.kilobytes;
  }
  return (n * xy - x * y) / (n * xx - x * x);
}

TEST(ParameterServerSoakTest, NothingIsLostAndNothingGrows) {
  const char* const asked = std::getenv("COHORT_SOAK_SECONDS");
  const double length = std::max(60.0, asked == nullptr ? 0 : std::stod(asked));
  const TempDir dir;
  const std::string until = dir / "until";
  Job job({"--count", "--floats", "20000", "--epochs", "1000000", "--until", until, "--balance-ms",
           "1000", "--consistency", "async", "--heartbeat-ms", "30000"},
          /*gate_at=*/0, kJob, {.proxied = true});
  for (const char* worker : {"worker:0", "worker:1"}) {
    ASSERT_TRUE(job.cluster.WaitForOutput(worker, "step 11 ", kPatience));
  }
  job.proxy().Lose("*", "*", 0.01, /*seed=*/29);
  job.proxy().Duplicate("*", "*");

  const std::vector<std::string> watched = {"chief:0", "ps:0", "ps:1"};
  std::map<std::string, std::vector<Sample>> samples;
  const auto begun = steady_clock::now();
  double now = 0;
  for (; now < length; now = duration<double>(steady_clock::now() - begun).count()) {
    for (const std::string& name : watched) {
      ASSERT_FALSE(job.cluster.Wait(name, std::chrono::milliseconds(0)).has_value()) << name;
      if (now >= kWarm * length) {
        samples[name].push_back({now, ResidentKilobytes(job.cluster.pid(name))});
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
  }
  std::ofstream(until) << "now";
  job.ExpectCodes();

  const std::string out = job.cluster.Stdout("chief:0");
  std::smatch each;
  ASSERT_TRUE(std::regex_search(out, each, std::regex("each ([0-9]+) to ([0-9]+) times"))) << out;
  EXPECT_EQ(each[1], each[2]);
  for (const std::string& name : watched) {
    const double slope = 60 * SlopeOf(samples[name]);
    std::printf("%-8s %6.0f KiB, %+.0f KiB a minute\n", name.c_str(),
                samples[name].back().kilobytes, slope);
    EXPECT_LE(slope, kMostOfAMinute) << name;
  }
  const std::size_t at = out.find("counted ");
  std::printf("%lld pieces lost, %lld frames twice; %s\n",
              static_cast<long long>(job.proxy().lost()),
              static_cast<long long>(job.proxy().duplicated()),
              at == std::string::npos ? "" : out.substr(at, out.find('\n', at) - at).c_str());
  EXPECT_GT(job.proxy().lost(), 100);
}

}  // namespace
}  // namespace cohort::testing
