#include <cohort/device/device.h>

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cohort {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

TEST(OpenDevices, GivesOneDeviceForEachReplica) {
  const auto one = OrThrow(OpenDevices("cpu"));
  ASSERT_EQ(one.size(), 1);
  EXPECT_EQ(one[0], CpuDevice());
  EXPECT_EQ(OrThrow(OpenDevices("cpu:3")).size(), 3);
  const auto list = OrThrow(OpenDevices("cpu:2,cpu"));
  ASSERT_EQ(list.size(), 3);
  EXPECT_EQ(list[2], CpuDevice());
}

TEST(OpenDevices, NamesThePartThatIsNone) {
  for (const std::string bad : {"",         "gpu",         "CPU",
                                "cpu:",     "cpu:0",       "cpu:02",
                                "cpu:-1",   "cpu:1025",    "cpu:99999999999",
                                "cpu ",     "cpu+tf32",    "cuda:",
                                "cuda:x",   "cuda:-1",     "cuda:0/",
                                "cuda:0/0", "cuda:0/x",    "cuda:0/1/1",
                                "cuda/2",   "cuda:0+tf16", "cuda:+tf32",
                                "+tf32"}) {
    for (const std::string& text : {bad, "cpu," + bad, bad + ",cpu"}) {
      const auto devices = OpenDevices(text);
      ASSERT_FALSE(devices.ok()) << text;
      EXPECT_EQ(devices.status().code(), StatusCode::kInvalidArgument) << text;
      EXPECT_THAT(devices.status().message(),
                  HasSubstr("devices \"" + text + "\": \"" + bad + "\" is none"));
    }
  }
}

// Holds on machines with a GPU and without one, and in builds without CUDA.
TEST(OpenDevices, AGpuIsThereOrWhatIsMissingIsSaid) {
  for (const std::string text : {"cuda:0", "cpu,cuda:0/2+tf32", "cuda"}) {
    const auto devices = OpenDevices(text);
    if (devices.ok()) {
      EXPECT_EQ((*devices).back()->memory_space(), MemorySpace::kDevice);
      EXPECT_THAT((*devices).back()->name(), HasSubstr("cuda:"));
      continue;
    }
    EXPECT_EQ(devices.status().code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(devices.status().message(), HasSubstr("devices \"" + text + "\": cuda"));
    EXPECT_THAT(devices.status().message(),
                AnyOf(HasSubstr("this build has no CUDA [configure with -DCOHORT_CUDA=ON"),
                      HasSubstr("there is no driver for CUDA "), HasSubstr("there is no GPU here"),
                      HasSubstr("the GPUs can't be used"), HasSubstr("a GPU needs lib"),
                      HasSubstr("this build has no code for compute capability")));
  }
  const auto absent = OpenDevices("cuda:999");
  ASSERT_FALSE(absent.ok());
  EXPECT_EQ(absent.status().code(), StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace cohort
