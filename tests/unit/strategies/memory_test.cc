// How much memory synchronous training takes: parameters, gradients, and at most one bucket.
#include <algorithm>
#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <cohort/comm/local.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include <gtest/gtest.h>

#include "testing/memory_store.h"
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

constexpr int kProcesses = 2;
constexpr int kParameters = 8;
constexpr std::int64_t kElements = 2 << 20;  // 8 MiB: 64 MiB in all
constexpr std::int64_t kGradientMegabytes = 64;
constexpr std::int64_t kRest = 8;  // threads' stacks, the allocator's slack

Result<ReplicaResult> FillAll(ReplicaContext& context, const data::Batch& /*batch*/) {
  for (int p = 0; p < kParameters; ++p) {
    std::ranges::fill(context.gradients.Accumulator(p), 1.0F);
    context.gradients.Ready(p);
  }
  return ReplicaResult{.loss_sum = 0, .weight = 1};
}

class SynchronousMemory : public ::testing::TestWithParam<std::string> {
 protected:
  // By how much three steps make this process grow, in which all processes of the job are threads.
  std::int64_t MegabytesOfSteps(const StrategyOptions& options, bool accumulate) {
    auto local = MakeLocalCommunicators(kProcesses);
    testing::MemoryStore store;
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
      Result<std::unique_ptr<Communicator>> made =
          GetParam() == "local" ? std::move(local[static_cast<std::size_t>(process)])
          : GetParam() == "shm" ? MakeShmCommunicator(process, kProcesses, store, "job")
                                : MakeTcpCommunicator(process, kProcesses, store, "job", {});
      COHORT_RETURN_IF_ERROR(made.status());
      SynchronousParts parts;
      parts.communicator = std::move(made).value();
      COHORT_ASSIGN_OR_RETURN(const auto strategy,
                              MakeSynchronousStrategy(std::move(parts), options));
      ParameterSet& parameters = sets[static_cast<std::size_t>(process)];
      COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({.learning_rate = 0.5})));
      DistributedBatch batch;
      batch.replicas.assign(static_cast<std::size_t>(options.num_devices),
                            {.size = 1, .features = {}});
      for (int step = 0; step < 3; ++step) {
        if (accumulate) {
          COHORT_RETURN_IF_ERROR(strategy->Accumulate(batch, FillAll).status());
        }
        COHORT_RETURN_IF_ERROR(strategy->Step(batch, FillAll).status());
      }
      return strategy->Shutdown();
    }));
    EXPECT_EQ(sets[1].value(3)[1], 1 - 3 * 0.5F);
    return Megabytes("VmHWM") - before;
  }
};

// With small buckets and with the default, of 25 MiB; with gradients that are accumulated, which
// takes one more arena for each replica.
TEST_P(SynchronousMemory, OfAStepIsTheGradientsAndAtMostOneBucket) {
  if (testing::kSanitized) {
    GTEST_SKIP() << "a sanitizer's own memory is many times what is measured";
  }
  // Memory that processes share counts once for each that maps it: here all do.
  const std::int64_t mapped = GetParam() == "shm" ? kProcesses : 1;
  for (const int devices : {1, 2}) {
    for (const std::int64_t bucket : {8, 25}) {
      for (const bool accumulate : {false, true}) {
        SCOPED_TRACE(std::to_string(devices) + " devices, buckets of " + std::to_string(bucket) +
                     (accumulate ? " MiB, accumulated" : " MiB"));
        StrategyOptions options;
        options.num_devices = devices;
        options.communication.bytes_per_pack = bucket == 25 ? 0 : bucket << 20;
        const std::int64_t gradients = kGradientMegabytes * devices * (accumulate ? 2 : 1);
        const std::int64_t grown = MegabytesOfSteps(options, accumulate);
        EXPECT_LE(grown, mapped * kProcesses * (gradients + bucket) + kRest);
        EXPECT_GE(grown, mapped * kProcesses * gradients);  // it is measured at all
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, SynchronousMemory, ::testing::Values("local", "tcp", "shm"),
                         [](const auto& transport) { return transport.param; });

}  // namespace
}  // namespace cohort
