// Synchronous jobs whose processes are killed at a random step end with the bits of one that lost
// nothing. COHORT_FAULT_SEED has the steps of an earlier run again.

#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/core/random.h>

#include "process/ps_job.h"

namespace cohort::testing {
namespace {

constexpr int kEpochs = 1;
constexpr int kSteps = 200 * kEpochs;

// From 5 on; twice as many are before kGate.
int RandomStep(std::uint64_t seed, std::uint64_t draw) {
  return 5 + static_cast<int>(Philox(seed, "a step").Below(kSteps / 2 - 20, draw));
}
constexpr int kGate = kSteps - 25;

std::vector<std::string> Sync(const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments = {
      "--consistency", "sync", "--step-ms", "1", "--epochs", std::to_string(kEpochs)};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::string LastLine(Job& job) {
  const std::string out = job.cluster.Stdout("chief:0");
  const std::string step = "step " + std::to_string(kSteps) + " digest ";
  const std::size_t at = out.find(step);
  EXPECT_NE(at, std::string::npos) << out;
  return at == std::string::npos ? "" : out.substr(at, out.find('\n', at) - at);
}

bool AwaitPushes(Job& job, const std::string& worker, const std::string& server, int pushes) {
  return Job::Await(
      [&] { return job.proxy().Count(worker, server, TcpProxy::Frame::kPush) >= pushes; });
}

// What is added up in another order has other bits; so a round that was made of other parts, or
// had one of them twice, shows.
TEST(KilledAtARandomStep, ServersOfAModelOfRealNumbers) {
  std::string expected;
  {
    Job job(Sync({"--real"}), /*gate_at=*/0);
    job.ExpectCodes();
    expected = LastLine(job);
  }
  const std::uint64_t seed = FaultSeed();
  const int first = RandomStep(seed, 0);
  const int second = first + RandomStep(seed, 1);
  SCOPED_TRACE("seed " + std::to_string(seed) + ": steps " + std::to_string(first) + " and " +
               std::to_string(second));
  std::printf("seed %llu: servers are killed after %d and %d pushes\n",
              static_cast<unsigned long long>(seed), first, second);
  const TempDir folder;
  Job job(Sync({"--real", "--folder", folder.path() + "/saves", "--save-steps", "25"}), kGate, kJob,
          {.proxied = true});
  for (const auto& [server, pushes] : {std::pair(1, first), std::pair(0, second)}) {
    const std::string name = "ps:" + std::to_string(server);
    ASSERT_TRUE(AwaitPushes(job, "worker:0", name, pushes));
    job.Kill(name);
    job.Replace(server, "again " + std::to_string(server));
    ASSERT_TRUE(job.cluster.WaitForOutput(
        "worker:0", "goes on in epoch " + std::to_string(3 - server), kPatience));
  }
  job.OpenGate();
  job.ExpectCodes();
  EXPECT_EQ(LastLine(job), expected);
}

// The rounds without it have fewer parts: the same bits where sums are exact.
TEST(KilledAtARandomStep, AWorkerOfAModelOfIntegers) {
  const std::uint64_t seed = FaultSeed();
  const int step = RandomStep(seed, 2);
  SCOPED_TRACE("seed " + std::to_string(seed) + ": step " + std::to_string(step));
  std::printf("seed %llu: the worker is killed after %d pushes\n",
              static_cast<unsigned long long>(seed), step);
  Job job(Sync(), kGate, kJob, {.proxied = true});
  ASSERT_TRUE(AwaitPushes(job, "worker:1", "ps:0", step));
  job.Kill("worker:1");
  job.Start("worker", 1, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput("again", "joined, ", kPatience));
  job.OpenGate();
  job.ExpectCodes();
  EXPECT_EQ(LastLine(job), DigestOf(kEpochs));
}

}  // namespace
}  // namespace cohort::testing
