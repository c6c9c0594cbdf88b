// Jobs of several processes that cannot begin. Those that can:
// tests/process/strategy_process_test.cc.
#include <cohort/strategies/strategy.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/far_device.h"

namespace cohort {
namespace {

TEST(JoinJob, AChiefWithoutAPortCannotBeFound) {
  StrategyOptions options;
  options.cluster = ClusterConfig{
      .cluster = ClusterSpec({{{TaskType::kWorker, 0}, "a:0"}, {{TaskType::kWorker, 1}, "b:0"}}),
      .task = {TaskType::kWorker, 1},
      .source = "flags"};
  const auto strategy = Strategy::FromEnv("", options);
  ASSERT_FALSE(strategy.ok());
  EXPECT_THAT(strategy.status().message(), ::testing::HasSubstr("worker:0, a:0, has no port"));
}

TEST(JoinJob, AParameterServersWorkerIsOnTheCpu) {
  StrategyOptions options;
  options.devices = {testing::MakeFarDevice()};
  options.cluster = ClusterConfig{.cluster = ClusterSpec({{{TaskType::kChief, 0}, "a:1"},
                                                          {{TaskType::kPs, 0}, "b:1"},
                                                          {{TaskType::kWorker, 0}, "c:1"}}),
                                  .task = {TaskType::kWorker, 0},
                                  .source = "flags"};
  const Status status = Strategy::FromEnv("parameter_server", options).status();
  EXPECT_EQ(status.code(), StatusCode::kUnimplemented);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("StrategyOptions::devices"));
}

}  // namespace
}  // namespace cohort
