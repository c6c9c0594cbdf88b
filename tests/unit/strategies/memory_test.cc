// How much memory synchronous training takes: parameters, gradients, and at most one bucket.
#include <cstdint>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <cohort/comm/local.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include <gtest/gtest.h>

#include "testing/run_ranks.h"
#include "testing/sanitized.h"

namespace cohort {
namespace {

using testing::ExpectAllOk;
using testing::RunRanks;

std::int64_t Megabytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key + ":")) {
      return std::stoll(line.substr(key.size() + 1)) / 1024;
    }
  }
  ADD_FAILURE() << "/proc/self/status has no " << key;
  return 0;
}

// From here on the largest resident size is counted anew.
void ResetPeak() { std::ofstream("/proc/self/clear_refs") << "5"; }

TEST(Memory, OfAStepIsTheGradientsAndAtMostOneBucket) {
  if (testing::kSanitized) {
    GTEST_SKIP() << "a sanitizer's own memory is many times what is measured";
  }
  constexpr int kParameters = 8;
  constexpr std::int64_t kElements = 2 << 20;  // 8 MiB: 64 MiB in all
  constexpr std::int64_t kBucketMegabytes = 8;
  constexpr std::int64_t kGradientMegabytes = 64;
  constexpr std::int64_t kRest = 8;  // threads' stacks, the allocator's slack
  for (const int devices : {1, 2}) {
    constexpr int kProcesses = 2;
    auto communicators = MakeLocalCommunicators(kProcesses);
    std::vector<ParameterSet> sets(kProcesses);
    for (ParameterSet& parameters : sets) {
      for (int p = 0; p < kParameters; ++p) {
        parameters.Add("p" + std::to_string(p), {kElements},
                       [](std::uint64_t e) { return static_cast<float>(e % 3); });
      }
      parameters.Build();
    }
    ResetPeak();
    const std::int64_t before = Megabytes("VmRSS");
    ExpectAllOk(RunRanks(kProcesses, [&](int process) -> Status {
      SynchronousParts parts;
      parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
      StrategyOptions options;
      options.num_devices = devices;
      options.communication.bytes_per_pack = kBucketMegabytes << 20;
      COHORT_ASSIGN_OR_RETURN(const auto strategy,
                              MakeSynchronousStrategy(std::move(parts), options));
      ParameterSet& parameters = sets[static_cast<std::size_t>(process)];
      COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({.learning_rate = 0.5})));
      DistributedBatch batch;
      batch.replicas.assign(static_cast<std::size_t>(devices), {.size = 1, .features = {}});
      for (int step = 0; step < 3; ++step) {
        const auto result = strategy->Step(batch, [](ReplicaContext& context, const data::Batch&) {
          for (int p = 0; p < kParameters; ++p) {
            for (float& element : context.gradients.Accumulator(p)) {
              element = 1;
            }
            context.gradients.Ready(p);
          }
          return Result<ReplicaResult>({.loss_sum = 0, .weight = 1});
        });
        COHORT_RETURN_IF_ERROR(result.status());
      }
      return strategy->Shutdown();
    }));
    const std::int64_t grown = Megabytes("VmHWM") - before;
    EXPECT_LE(grown, kProcesses * (devices * kGradientMegabytes + kBucketMegabytes) + kRest);
    EXPECT_GE(grown, kProcesses * devices * kGradientMegabytes);  // it is measured at all
    EXPECT_EQ(sets[1].value(3)[1], 1 - 3 * 0.5F);
  }
}

}  // namespace
}  // namespace cohort
