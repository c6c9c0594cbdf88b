// The devices that this build, and this machine, have.

#include "device_conformance.h"

#include <cstdio>
#include <cstdlib>

#include "testing/far_device.h"

namespace cohort::testing {
namespace {

std::vector<DeviceCase> FindCases() {
  std::vector<DeviceCase> cases = {
      {.name = "Cpu", .make = CpuDevice, .threads = 2, .inline_streams = true},
      {.name = "Far", .make = [] {
         static const std::shared_ptr<Device> far = MakeFarDevice();
         return far;
       }}};
  const auto gpus = OpenDevices("cuda");
  if (!gpus.ok()) {
    std::fprintf(stderr, "device conformance without a GPU: %s\n",
                 gpus.status().ToString().c_str());
    return cases;
  }
  // Tools that watch every access are slow: with COHORT_TEST_SMALL set, large sizes are left out.
  const bool large = std::getenv("COHORT_TEST_SMALL") == nullptr;
  for (const auto& gpu : *gpus) {
    std::string name = gpu->name();
    name.erase(name.find(':'), 1);
    cases.push_back({.name = name, .make = [gpu] { return gpu; }, .large = large});
  }
  return cases;
}

// Looked for once.
const std::vector<DeviceCase>& Cases() {
  static const std::vector<DeviceCase> cases = FindCases();
  return cases;
}

// The same, and a GPU whose products are on tensor cores: only its plans are others.
std::vector<DeviceCase> PlanCases() {
  std::vector<DeviceCase> cases = Cases();
  const auto gpus = OpenDevices("cuda:0+tf32");
  if (gpus.ok()) {
    cases.push_back({.name = "cuda0tf32",
                     .make = [gpu = gpus->front()] { return gpu; },
                     .large = cases.back().large,
                     .tf32 = true});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(, DeviceConformance, ::testing::ValuesIn(Cases()), DeviceCaseName);
INSTANTIATE_TEST_SUITE_P(, DeviceKernels, ::testing::ValuesIn(Cases()), DeviceCaseName);
INSTANTIATE_TEST_SUITE_P(, DeviceHalves, ::testing::ValuesIn(Cases()), DeviceCaseName);
INSTANTIATE_TEST_SUITE_P(, DevicePlans, ::testing::ValuesIn(PlanCases()), DeviceCaseName);

}  // namespace
}  // namespace cohort::testing
