#include <cohort/optim/schedule.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace cohort {
namespace {

TEST(Schedule, ConstantIsANumber) {
  const Schedule s = 0.25;
  EXPECT_EQ(s.At(1), 0.25);
  EXPECT_EQ(s.At(1'000'000), 0.25);
  EXPECT_EQ(s, Schedule::Constant(0.25));
}

TEST(Schedule, StepFallsEverySteps) {
  const Schedule s = Schedule::Step(1.0, 3, 0.5);
  EXPECT_EQ(s.At(1), 1.0);
  EXPECT_EQ(s.At(3), 1.0);
  EXPECT_EQ(s.At(4), 0.5);
  EXPECT_EQ(s.At(7), 0.25);
}

TEST(Schedule, ExponentialIsContinuous) {
  const Schedule s = Schedule::Exponential(2.0, 4, 0.5);
  EXPECT_EQ(s.At(1), 2.0);
  EXPECT_NEAR(s.At(3), 2.0 * std::sqrt(0.5), 1e-15);
  EXPECT_EQ(s.At(5), 1.0);
}

TEST(Schedule, CosineEndsAtTheFinalRateAndStays) {
  const Schedule s = Schedule::Cosine(1.0, 8, 0.2);
  EXPECT_EQ(s.At(1), 1.0);
  EXPECT_NEAR(s.At(5), 0.6, 1e-15);
  EXPECT_NEAR(s.At(3), 0.2 + 0.8 * (1 + std::cos(std::numbers::pi / 4)) / 2, 1e-15);
  EXPECT_NEAR(s.At(9), 0.2, 1e-15);
  EXPECT_NEAR(s.At(1000), 0.2, 1e-15);
}

TEST(Schedule, WarmUpRampsThenTheDecayBegins) {
  const Schedule s = Schedule::Step(1.0, 2, 0.1).WithWarmUp(4);
  EXPECT_EQ(s.At(1), 0.25);
  EXPECT_EQ(s.At(4), 1.0);
  EXPECT_EQ(s.At(5), 1.0);
  EXPECT_EQ(s.At(6), 1.0);
  EXPECT_NEAR(s.At(7), 0.1, 1e-15);
}

TEST(Schedule, CheckNamesTheField) {
  const auto message = [](const Schedule& s) { return s.Check().message(); };
  EXPECT_TRUE(Schedule::Cosine(1, 1).Check().ok());
  EXPECT_NE(message(Schedule(-1)).find("rate"), std::string::npos);
  EXPECT_NE(message(Schedule::Cosine(1, 0)).find("steps"), std::string::npos);
  EXPECT_NE(message(Schedule::Cosine(1, 1, -1)).find("final_rate"), std::string::npos);
  EXPECT_NE(message(Schedule::Step(1, 1, 1.5)).find("factor"), std::string::npos);
  EXPECT_NE(message(Schedule(1).WithWarmUp(-1)).find("warm_up_steps"), std::string::npos);
  EXPECT_THROW(Schedule(1).At(0), ContractError);
}

}  // namespace
}  // namespace cohort
