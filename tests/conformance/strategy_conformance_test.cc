#include "conformance/strategy_conformance.h"

#include <cohort/comm/local.h>
#include <cohort/strategies/synchronous.h>

#include <utility>
#include <vector>

#include "testing/far_device.h"

namespace cohort::testing {
namespace {

// `processes` threads with local communicators between them; one process has none.
StrategyWorld Synchronous(int processes, int replicas) {
  StrategyWorld world;
  world.name = std::to_string(processes) + "x" + std::to_string(replicas);
  world.processes = processes;
  world.replicas = replicas;
  auto communicators = std::make_shared<std::vector<std::unique_ptr<Communicator>>>();
  world.start = [communicators, processes] { *communicators = MakeLocalCommunicators(processes); };
  world.make = [communicators, processes](int process, StrategyOptions options) {
    SynchronousParts parts;
    if (processes > 1) {
      parts.communicator = std::move((*communicators)[static_cast<std::size_t>(process)]);
    }
    return MakeSynchronousStrategy(std::move(parts), std::move(options));
  };
  return world;
}

StrategyWorld By(const std::string& algorithm, int replicas) {
  StrategyWorld world = Synchronous(2, replicas);
  world.name += "_" + algorithm;
  world.make = [algorithm, make = world.make](int process, StrategyOptions options) {
    if (options.virtual_shards == 0) {
      options.communication.algorithm = algorithm;
    }
    return make(process, std::move(options));
  };
  return world;
}

// The same on devices of which only their kernels reach the memory: by replica, which far device it
// is on, or the CPU. Their streams are those that `options` asks for.
constexpr int kCpu = -1;

StrategyWorld OnFarDevices(std::string name, int processes, const std::vector<int>& replicas) {
  StrategyWorld world = Synchronous(processes, static_cast<int>(replicas.size()));
  world.name = std::move(name);
  world.make = [replicas, make = world.make](int process, StrategyOptions options) {
    const auto far = MakeFarDevices(
        2, options.make_stream ? options.make_stream : [] { return MakeInlineStream(); });
    for (const int replica : replicas) {
      options.devices.push_back(replica == kCpu ? CpuDevice()
                                                : far[static_cast<std::size_t>(replica)]);
    }
    return make(process, std::move(options));
  };
  return world;
}

// On the first GPU, where there is one.
std::vector<StrategyWorld> OnTheGpu() {
  const auto gpu = OpenDevices("cuda:0");
  if (!gpu.ok()) {
    return {};
  }
  const auto world = [device = gpu->front()](std::string name, int processes, int replicas,
                                             bool cpu_too) {
    StrategyWorld made = Synchronous(processes, replicas);
    made.name = std::move(name);
    made.make = [=, make = made.make](int process, StrategyOptions options) {
      options.devices.assign(static_cast<std::size_t>(replicas), device);
      if (cpu_too) {
        options.devices.back() = CpuDevice();
      }
      return make(process, std::move(options));
    };
    return made;
  };
  return {world("one", 1, 1, false),
          world("shared_by_two", 1, 2, false),
          world("shared_by_four", 1, 4, false),
          world("gpu_and_cpu", 1, 2, true),
          world("2_processes", 2, 1, false),
          world("2_processes_shared", 2, 2, false)};
}

INSTANTIATE_TEST_SUITE_P(Gpu, StrategyConformance, ::testing::ValuesIn(OnTheGpu()),
                         [](const ::testing::TestParamInfo<StrategyWorld>& world) {
                           return world.param.name;
                         });

INSTANTIATE_TEST_SUITE_P(
    FarDevices, StrategyConformance,
    ::testing::Values(OnFarDevices("one", 1, {0}), OnFarDevices("shared_by_two", 1, {0, 0}),
                      OnFarDevices("shared_by_three", 1, {0, 0, 0}), OnFarDevices("two", 1, {0, 1}),
                      OnFarDevices("two_in_turns", 1, {0, 1, 0, 1}),
                      OnFarDevices("far_and_cpu", 1, {0, kCpu}),
                      OnFarDevices("cpu_and_two_far", 1, {kCpu, 0, 1}),
                      OnFarDevices("2_processes", 2, {0}),
                      OnFarDevices("2_processes_of_two", 2, {0, 1}),
                      OnFarDevices("2_processes_mixed", 2, {kCpu, 0}),
                      OnFarDevices("3_processes_shared", 3, {0, 0})),
    [](const ::testing::TestParamInfo<StrategyWorld>& world) { return world.param.name; });

INSTANTIATE_TEST_SUITE_P(Synchronous, StrategyConformance,
                         ::testing::Values(Synchronous(1, 1), Synchronous(1, 2), Synchronous(1, 3),
                                           Synchronous(1, 4), Synchronous(2, 1), Synchronous(3, 1),
                                           Synchronous(4, 1), Synchronous(2, 2), Synchronous(3, 2),
                                           Synchronous(2, 3), By("shared", 1), By("one_pass", 1),
                                           By("shared", 2), By("one_pass", 2)),
                         [](const ::testing::TestParamInfo<StrategyWorld>& world) {
                           return world.param.name;
                         });

}  // namespace
}  // namespace cohort::testing
