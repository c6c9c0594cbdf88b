#include "conformance/strategy_conformance.h"

#include <cohort/comm/local.h>
#include <cohort/comm/nccl.h>
#include <cohort/strategies/synchronous.h>

#include <utility>
#include <vector>

#include "testing/fake_nccl.h"
#include "testing/far_device.h"
#include "testing/memory_store.h"

namespace cohort::testing {
namespace {

// `processes` threads with local communicators between them; one process has none.
StrategyWorld Synchronous(int processes, int replicas) {
  StrategyWorld world;
  world.name = std::to_string(processes) + "x" + std::to_string(replicas);
  world.processes = processes;
  world.replicas = replicas;
  struct Meeting {
    std::vector<std::unique_ptr<Communicator>> communicators;
    MemoryStore store;
  };
  auto meeting = std::make_shared<std::unique_ptr<Meeting>>();
  world.start = [meeting, processes] {
    *meeting = std::make_unique<Meeting>();
    (*meeting)->communicators = MakeLocalCommunicators(processes);
  };
  world.make = [meeting, processes](int process, StrategyOptions options) {
    SynchronousParts parts;
    if (processes > 1) {
      parts.communicator = std::move((*meeting)->communicators[static_cast<std::size_t>(process)]);
      parts.store = &(*meeting)->store;
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
      options.communication.implementation = algorithm;
    }
    return make(process, std::move(options));
  };
  return world;
}

// The same on devices of which only their kernels reach the memory: by replica, which far device it
// is on, or the CPU. Their streams are those that `options` asks for.
constexpr int kCpu = -1;

struct Far {
  std::string cross_device_ops = "auto";
  bool reach = false;  // each other's memory
};

StrategyWorld OnFarDevices(std::string name, int processes, const std::vector<int>& replicas,
                           const Far& how = {}) {
  StrategyWorld world = Synchronous(processes, static_cast<int>(replicas.size()));
  world.name = std::move(name);
  world.make = [replicas, how, make = world.make](int process, StrategyOptions options) {
    const auto far = MakeFarDevices(
        4, options.make_stream ? options.make_stream : [] { return MakeInlineStream(); },
        how.reach);
    if (options.virtual_shards == 0) {
      options.cross_device_ops = how.cross_device_ops;
    }
    for (const int replica : replicas) {
      options.devices.push_back(replica == kCpu ? CpuDevice()
                                                : far[static_cast<std::size_t>(replica)]);
    }
    return make(process, std::move(options));
  };
  return world;
}

// The same with a fake in NCCL's place, by process: what its replicas are on. Streams are late.
// Where NCCL can be, it is asked for by name, so that nothing else takes its place unseen.
StrategyWorld ByNccl(std::string name, const std::vector<std::vector<int>>& replicas) {
  const int processes = static_cast<int>(replicas.size());
  StrategyWorld world = Synchronous(processes, static_cast<int>(replicas.front().size()));
  world.name = std::move(name);
  auto nccl = std::make_shared<std::shared_ptr<FakeNccl::World>>();
  world.start = [nccl, start = world.start] {
    *nccl = std::make_shared<FakeNccl::World>();
    start();
  };
  world.stop = [nccl] { EXPECT_EQ((*nccl)->live, 0) << "handles of NCCL left behind"; };
  world.make = [=, make = world.make](int process, StrategyOptions options) {
    const auto far = MakeFarDevices(2, options.make_stream);
    for (const int replica : replicas[static_cast<std::size_t>(process)]) {
      options.devices.push_back(far[static_cast<std::size_t>(replica)]);
    }
    options.make_nccl = [fake = *nccl, process](const Device& device) {
      return std::make_shared<FakeNccl>(fake, "GPU-" + std::to_string(process) + device.name(),
                                        [&device](std::byte* address, std::size_t bytes) {
                                          return BytesOf(device, address, bytes);
                                        });
    };
    const bool hooked = options.make_bucket_hook != nullptr;
    if (options.virtual_shards == 0 &&
        (processes == 1 || !hooked || options.make_bucket_hook()->on_devices().has_value())) {
      options.cross_device_ops = "nccl";
    }
    return make(process, std::move(options));
  };
  return world;
}

// On the first GPU, where there is one.
std::vector<StrategyWorld> OnTheGpu(const std::string& ops = "auto") {
  const auto gpu = OpenDevices("cuda:0");
  if (!gpu.ok()) {
    return {};
  }
  const auto world = [device = gpu->front(), ops](std::string name, int processes, int replicas,
                                                  bool cpu_too) {
    StrategyWorld made = Synchronous(processes, replicas);
    made.name = std::move(name);
    made.make = [=, make = made.make](int process, StrategyOptions options) {
      options.devices.assign(static_cast<std::size_t>(replicas), device);
      if (cpu_too) {
        options.devices.back() = CpuDevice();
      }
      if (options.virtual_shards == 0) {
        options.cross_device_ops = ops;
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

// Two devices on the first GPU, which read each other's memory.
std::vector<StrategyWorld> OnDevicesThatReach() {
  const auto gpu = OpenDevices("cuda:0,cuda:0+tf32");
  if (!gpu.ok()) {
    return {};
  }
  const auto world = [devices = *gpu](std::string name, std::string ops) {
    StrategyWorld made = Synchronous(1, 3);
    made.name = std::move(name);
    made.make = [=, make = made.make](int process, StrategyOptions options) {
      options.devices = {devices[0], devices[1], devices[0]};
      options.cross_device_ops = options.virtual_shards == 0 ? ops : "auto";
      return make(process, std::move(options));
    };
    return made;
  };
  return {world("that_reach", "auto"), world("to_one_that_reaches", "reduction_to_one_device")};
}

// NCCL itself, with one rank.
std::vector<StrategyWorld> ByNcclOnTheGpu() {
  if (OnTheGpu().empty() || !NcclVersion().ok()) {
    return {};
  }
  return {OnTheGpu("nccl")[0], OnTheGpu("nccl")[2]};
}

INSTANTIATE_TEST_SUITE_P(Gpu, StrategyConformance, ::testing::ValuesIn(OnTheGpu()),
                         [](const ::testing::TestParamInfo<StrategyWorld>& world) {
                           return world.param.name;
                         });

INSTANTIATE_TEST_SUITE_P(GpuThatReaches, StrategyConformance,
                         ::testing::ValuesIn(OnDevicesThatReach()),
                         [](const ::testing::TestParamInfo<StrategyWorld>& world) {
                           return world.param.name;
                         });

INSTANTIATE_TEST_SUITE_P(NcclOnTheGpu, StrategyConformance, ::testing::ValuesIn(ByNcclOnTheGpu()),
                         [](const ::testing::TestParamInfo<StrategyWorld>& world) {
                           return world.param.name;
                         });

INSTANTIATE_TEST_SUITE_P(Nccl, StrategyConformance,
                         ::testing::Values(ByNccl("one", {{0}}), ByNccl("two", {{0, 1}}),
                                           ByNccl("shared_by_three", {{0, 0, 0}}),
                                           ByNccl("in_turns", {{0, 1, 0, 1}}),
                                           ByNccl("2_processes", {{0}, {0}}),
                                           ByNccl("2_processes_of_two", {{0, 1}, {0, 1}}),
                                           ByNccl("3_processes_shared", {{0, 0}, {0, 0}, {0, 0}}),
                                           ByNccl("unequal", {{0, 0}, {0, 1}, {1, 0}})),
                         [](const ::testing::TestParamInfo<StrategyWorld>& world) {
                           return world.param.name;
                         });

INSTANTIATE_TEST_SUITE_P(
    FarDevices, StrategyConformance,
    ::testing::Values(
        OnFarDevices("one", 1, {0}), OnFarDevices("shared_by_two", 1, {0, 0}),
        OnFarDevices("shared_by_three", 1, {0, 0, 0}), OnFarDevices("two", 1, {0, 1}),
        OnFarDevices("two_in_turns", 1, {0, 1, 0, 1}), OnFarDevices("far_and_cpu", 1, {0, kCpu}),
        OnFarDevices("cpu_and_two_far", 1, {kCpu, 0, 1}), OnFarDevices("four", 1, {0, 1, 2, 3}),
        OnFarDevices("that_reach", 1, {0, 1, 2, 1, 3}, {.reach = true}),
        OnFarDevices("2_processes_that_reach", 2, {0, 1, 0}, {.reach = true}),
        OnFarDevices("to_one", 1, {0, 1, 0, 2, 1}, {"reduction_to_one_device"}),
        OnFarDevices("to_one_that_reach", 1, {0, 1, 2}, {"reduction_to_one_device", true}),
        OnFarDevices("to_the_cpu", 1, {kCpu, 1, 2}, {"reduction_to_one_device"}),
        OnFarDevices("2_processes_to_one", 2, {1, 0}, {"reduction_to_one_device"}),
        OnFarDevices("2_processes", 2, {0}), OnFarDevices("2_processes_of_two", 2, {0, 1}),
        OnFarDevices("2_processes_mixed", 2, {kCpu, 0}),
        OnFarDevices("3_processes_shared", 3, {0, 0})),
    [](const ::testing::TestParamInfo<StrategyWorld>& world) { return world.param.name; });

INSTANTIATE_TEST_SUITE_P(Synchronous, StrategyConformance,
                         ::testing::Values(Synchronous(1, 1), Synchronous(1, 2), Synchronous(1, 3),
                                           Synchronous(1, 4), Synchronous(2, 1), Synchronous(3, 1),
                                           Synchronous(4, 1), Synchronous(2, 2), Synchronous(3, 2),
                                           Synchronous(2, 3), By("shared", 1), By("one_bucket", 1),
                                           By("shared", 2), By("one_bucket", 2)),
                         [](const ::testing::TestParamInfo<StrategyWorld>& world) {
                           return world.param.name;
                         });

}  // namespace
}  // namespace cohort::testing
