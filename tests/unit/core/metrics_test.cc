#include <cohort/core/metrics.h>
#include <cohort/core/status.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <thread>
#include <vector>

namespace cohort {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::array kBounds = {0.5, 1.0};

TEST(Metrics, APageIsAsPrometheusReadsIt) {
  Metrics metrics;
  Counter& steps = metrics.AddCounter("cohort_steps_total", "Steps completed.");
  steps.Add();
  steps.Add(6);
  EXPECT_EQ(metrics.ToText(),
            "# HELP cohort_steps_total Steps completed.\n"
            "# TYPE cohort_steps_total counter\n"
            "cohort_steps_total 7\n");
}

TEST(Metrics, NoFamiliesIsAnEmptyPage) { EXPECT_EQ(Metrics().ToText(), ""); }

TEST(Metrics, BucketsOfAHistogramAreCumulative) {
  Metrics metrics;
  Histogram& seconds = metrics.AddHistogram("seconds", "Took.", kBounds);
  seconds.Observe(0.2);
  seconds.Observe(3);
  EXPECT_EQ(metrics.ToText(),
            "# HELP seconds Took.\n"
            "# TYPE seconds histogram\n"
            "seconds_bucket{le=\"0.5\"} 1\n"
            "seconds_bucket{le=\"1\"} 1\n"
            "seconds_bucket{le=\"+Inf\"} 2\n"
            "seconds_sum 3.2\n"
            "seconds_count 2\n");
}

TEST(Metrics, ABoundBelongsToItsBucketAndNaNToTheLast) {
  Histogram histogram(kBounds);
  for (const double value : {-1.0, 0.5, 1.0, std::numeric_limits<double>::quiet_NaN()}) {
    histogram.Observe(value);
  }
  EXPECT_THAT(histogram.counts(), ElementsAre(2, 1, 1));
}

TEST(Metrics, LabelsOfAHistogramComeBeforeLe) {
  Metrics metrics;
  metrics.AddHistogram("s", "h", kBounds, {{"op", "pull"}}).Observe(1);
  EXPECT_THAT(metrics.ToText(), HasSubstr("s_bucket{op=\"pull\",le=\"0.5\"} 0\n"));
  EXPECT_THAT(metrics.ToText(), HasSubstr("s_sum{op=\"pull\"} 1\ns_count{op=\"pull\"} 1\n"));
}

TEST(Metrics, TextIsEscaped) {
  Metrics metrics;
  metrics.AddGauge("g", "a \\ \"b\"\nc", {{"path", "C:\\\"x\"\n"}}).Set(1);
  EXPECT_EQ(metrics.ToText(),
            "# HELP g a \\\\ \"b\"\\nc\n"
            "# TYPE g gauge\n"
            "g{path=\"C:\\\\\\\"x\\\"\\n\"} 1\n");
}

TEST(Metrics, Numbers) {
  Metrics metrics;
  Gauge& gauge = metrics.AddGauge("g", "h");
  const auto printed = [&](double value) {
    gauge.Set(value);
    const std::string page = metrics.ToText();
    return page.substr(page.rfind(' ') + 1);
  };
  EXPECT_EQ(printed(std::numeric_limits<double>::quiet_NaN()), "NaN\n");
  EXPECT_EQ(printed(std::numeric_limits<double>::infinity()), "+Inf\n");
  EXPECT_EQ(printed(-std::numeric_limits<double>::infinity()), "-Inf\n");
  EXPECT_EQ(printed(-0.25), "-0.25\n");
  EXPECT_EQ(printed(100'000'000), "100000000\n");
  EXPECT_EQ(printed(1764265799.125), "1764265799.125\n");
  EXPECT_EQ(printed(1e300), "1e+300\n");
}

TEST(Metrics, SeriesOfAFamilyStandTogether) {
  Metrics metrics;
  Counter& good = metrics.AddCounter("a_total", "h", {{"result", "ok"}});
  metrics.AddGauge("b", "h");
  metrics.AddCounter("a_total", "h", {{"result", "bad"}}).Add(2);
  EXPECT_EQ(&metrics.AddCounter("a_total", "h", {{"result", "ok"}}), &good);
  EXPECT_EQ(metrics.ToText(),
            "# HELP a_total h\n"
            "# TYPE a_total counter\n"
            "a_total{result=\"ok\"} 0\n"
            "a_total{result=\"bad\"} 2\n"
            "# HELP b h\n"
            "# TYPE b gauge\n"
            "b 0\n");
}

TEST(Metrics, FunctionsAreAskedForEachPage) {
  Metrics metrics;
  double value = 1;
  metrics.AddGauge("g", "h", [&] { return value; });
  metrics.AddCounter("c_total", "h", [&] { return 10 * value; });
  value = 2;
  EXPECT_THAT(metrics.ToText(), HasSubstr("\ng 2\n"));
  EXPECT_THAT(metrics.ToText(), HasSubstr("\nc_total 20\n"));
}

TEST(Metrics, WhatPrometheusRefusesIsRefused) {
  Metrics metrics;
  for (const char* const name : {"", "1a", "a-b", "a b", "ä", "a_total"}) {
    EXPECT_THROW(metrics.AddGauge(name, "h"), ContractError) << name;
  }
  for (const char* const name : {"a_sum", "a_count", "a_bucket"}) {
    EXPECT_THROW(metrics.AddGauge(name, "h"), ContractError) << name;
  }
  EXPECT_THROW(metrics.AddCounter("steps", "h"), ContractError);
  for (const char* const label : {"", "1a", "a:b", "__a"}) {
    EXPECT_THROW(metrics.AddGauge("g", "h", {{label, "v"}}), ContractError) << label;
  }
  EXPECT_THROW(metrics.AddGauge("g", "h", {{"a", "1"}, {"a", "2"}}), ContractError);
  EXPECT_THROW(metrics.AddHistogram("s", "h", kBounds, {{"le", "1"}}), ContractError);
  EXPECT_THROW(metrics.AddHistogram("s", "h", std::array{1.0, 1.0}), ContractError);
  EXPECT_THROW(metrics.AddCounter("c_total", "h").Add(-1), ContractError);
}

TEST(Metrics, AFamilyHasOneMeaning) {
  Metrics metrics;
  metrics.AddGauge("g", "h", {{"a", "1"}});
  EXPECT_THROW(metrics.AddGauge("g", "another", {{"a", "1"}}), ContractError);
  EXPECT_THROW(metrics.AddGauge("g", "h", {{"b", "1"}}), ContractError);
  EXPECT_THROW(metrics.AddHistogram("g", "h", kBounds, {{"a", "1"}}), ContractError);
  metrics.AddHistogram("s", "h", kBounds);
  EXPECT_THROW(metrics.AddHistogram("s", "h", std::array{0.5}), ContractError);
}

TEST(Metrics, AFamilyIsBounded) {
  Metrics metrics;
  for (int i = 0; i < 256; ++i) {
    metrics.AddGauge("g", "h", {{"a", std::to_string(i)}});
  }
  EXPECT_THROW(metrics.AddGauge("g", "h", {{"a", "one more"}}), ContractError);
}

TEST(Metrics, NothingThatThreadsCountIsLost) {
  Metrics metrics;
  constexpr int kThreads = 4;
  constexpr int kTimes = 5000;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&metrics] {
        Counter& counter = metrics.AddCounter("c_total", "h");
        Histogram& histogram = metrics.AddHistogram("s", "h", kBounds);
        for (int i = 0; i < kTimes; ++i) {
          counter.Add();
          histogram.Observe(i % 2);
        }
      });
    }
    for (int i = 0; i < 20; ++i) {
      EXPECT_NO_THROW(metrics.ToText());
    }
  }
  EXPECT_EQ(metrics.AddCounter("c_total", "h").value(), kThreads * kTimes);
  const Histogram& histogram = metrics.AddHistogram("s", "h", kBounds);
  EXPECT_THAT(histogram.counts(), ElementsAre(kThreads * kTimes / 2, kThreads * kTimes / 2, 0));
  EXPECT_EQ(histogram.sum(), kThreads * kTimes / 2);
}

}  // namespace
}  // namespace cohort
