// A job that goes on for long on a bad network: dense values and rows, saves, buckets that move, of
// every hundred pieces one that breaks its connection, each pull and push twice. What the chief and
// the servers hold does not grow; and each example counts once, as another job finds that goes on
// from its last save. F29.
//
// As long as COHORT_SOAK_SECONDS says, at least 60 seconds.

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "process/ps_job.h"
#include "testing/resident_bytes.h"

namespace cohort::testing {
namespace {

using std::chrono::duration;
using std::chrono::steady_clock;

// The first third of the time is for what is filled once: caches, arenas of threads, chains of
// saves.
constexpr double kWarm = 1.0 / 3;
// What a process may grow in the rest, in KiB, by its samples' line, however long that is: an arena
// or two. One byte of each of the requests that a server answers in a minute would be 100 KiB.
constexpr double kMost = 4096;
constexpr int kStopped = 143;

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
  const auto arguments = [&](int epochs) -> std::vector<std::string> {
    return {"--count",      "--floats",    "20000",         "--epochs", std::to_string(epochs),
            "--balance-ms", "1000",        "--consistency", "async",    "--heartbeat-ms",
            "30000",  // beside other work
            "--folder",     dir / "saves", "--save-steps",  "150"};
  };
  Job job(arguments(1'000'000), /*gate_at=*/0, kJob, {.proxied = true});
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
        samples[name].push_back(
            {now, static_cast<double>(ResidentBytes(job.cluster.pid(name))) / 1024});
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
  }
  job.cluster.Signal("chief:0", SIGTERM);
  for (const char* name : {"chief:0", "worker:0", "worker:1"}) {
    job.Expect(name, kStopped);
  }
  job.ExpectCodes();

  for (const std::string& name : watched) {
    const double slope = SlopeOf(samples[name]);
    const double grown = slope * (1 - kWarm) * length;
    std::printf("%-8s %6.0f KiB, %+.0f in %.0f s, %+.1f a minute\n", name.c_str(),
                samples[name].back().kilobytes, grown, (1 - kWarm) * length, 60 * slope);
    EXPECT_LE(grown, kMost) << name;
  }
  std::printf("%lld pieces lost, %lld frames twice\n", static_cast<long long>(job.proxy().lost()),
              static_cast<long long>(job.proxy().duplicated()));
  EXPECT_GT(job.proxy().lost(), 100);

  const std::string said = job.cluster.Stderr("chief:0");
  EXPECT_EQ(said.find(" is lost"), std::string::npos);
  int over = 0;
  for (std::size_t at = 0; said.find(": loss ", at) != std::string::npos; ++over) {
    at = said.find(": loss ", at) + 1;
  }
  ASSERT_GT(over, 0) << said;
  Job rest(arguments(over + 1), /*gate_at=*/0);
  rest.ExpectCodes();
  const std::string times = std::to_string(over + 1);
  EXPECT_THAT(rest.cluster.Stdout("chief:0"),
              ::testing::HasSubstr(", each " + times + " to " + times + " times"));
  std::printf("each of 2000 examples counts %s times\n", times.c_str());
}

}  // namespace
}  // namespace cohort::testing
