// Where buckets are, as one server knows it; and which of them should move.

#include "parameter_server/rows/bucket_places.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "parameter_server/rows/bucket_balance.h"
#include "parameter_server/rows/row_routes.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(BucketPlacesTest, AtFirstEachServerHasItsRange) {
  const BucketPlaces places(1, 3, 8);
  for (std::uint32_t b = 0; b < 8; ++b) {
    EXPECT_EQ(places.server(b), ServerOf(b, 3, 8));
  }
  EXPECT_FALSE(places.has_all());
  EXPECT_TRUE(BucketPlaces(0, 1, 8).has_all());
}

// A chain of moves, of which each server knows its own part, leads to the bucket from anywhere.
TEST(BucketPlacesTest, WhoFollowsWhatServersSayFindsTheBucket) {
  std::array<BucketPlaces, 3> servers = {BucketPlaces(0, 3, 8), BucketPlaces(1, 3, 8),
                                         BucketPlaces(2, 3, 8)};
  int at = servers[0].server(5);
  for (const int to : {2, 0, 1, 0, 2, 1}) {
    if (to == at) {
      continue;
    }
    servers[static_cast<std::size_t>(at)].Give(5, to);
    servers[static_cast<std::size_t>(to)].Take(5);
    at = to;
    for (int from = 0; from < 3; ++from) {
      int asked = from;
      for (int hops = 0; hops < 6 && !servers[static_cast<std::size_t>(asked)].here(5); ++hops) {
        asked = servers[static_cast<std::size_t>(asked)].server(5);
      }
      EXPECT_EQ(asked, at) << "from " << from;
    }
  }
}

// What was found here while a visit lasts is still here at its end: Give waits for it, and for
// none that begins later.
TEST(BucketPlacesTest, ABucketDoesNotLeaveUnderAVisit) {
  BucketPlaces places(0, 2, 2);
  std::array<std::atomic<int>, 2> inside{};  // visits that found the bucket here
  std::atomic<bool> stop{false};
  std::atomic<std::int64_t> found{0};
  std::vector<std::thread> visitors;
  for (int t = 0; t < 2; ++t) {
    visitors.emplace_back([&] {
      while (!stop) {
        const BucketPlaces::Visit visit = places.Enter();
        for (std::uint32_t b = 0; b < 2; ++b) {
          if (places.here(b)) {
            ++inside[b];
            ++found;
            --inside[b];
          }
        }
      }
    });
  }
  // At least until the visitors have begun.
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  for (int i = 0; i < 100 || (found == 0 && std::chrono::steady_clock::now() < until); ++i) {
    const auto bucket = static_cast<std::uint32_t>(i % 2);
    places.Give(bucket, 1);
    ASSERT_EQ(inside[bucket], 0) << i;
    std::this_thread::yield();
    ASSERT_EQ(inside[bucket], 0) << i;
    places.Take(bucket);
  }
  stop = true;
  for (std::thread& visitor : visitors) {
    visitor.join();
  }
  EXPECT_GT(found, 0);
}

TEST(RowRoutesTest, ServersSayWhereBucketsAre) {
  TableSpec spec;
  spec.buckets = 8;
  RowRoutes routes({spec}, 2);
  EXPECT_EQ(routes.ServerOf(0, 3), 0);
  const std::vector<std::uint32_t> moved = {3, 1, 7, 0};
  OrThrow(routes.Learn(0, moved));
  EXPECT_EQ(routes.ServerOf(0, 3), 1);
  EXPECT_EQ(routes.ServerOf(0, 7), 0);
  EXPECT_EQ(routes.ServerOf(0, 6), 1);
  for (const std::vector<std::uint32_t>& bad : {std::vector<std::uint32_t>{8, 0}, {0, 2}}) {
    EXPECT_EQ(routes.Learn(0, bad).code(), StatusCode::kInternal);
  }
}

TEST(BucketBalanceTest, HotBucketsMoveToTheIdlestServer) {
  // 100 and 90 of 210 on ps:0; ps:2 has nothing.
  const std::vector<BucketLoad> loads = {{0, 0, 100}, {1, 0, 90}, {2, 0, 5},
                                         {3, 1, 15},  {4, 2, 0},  {5, 2, 0}};
  EXPECT_THAT(PlanMoves(loads, 3, 8), ElementsAre(BucketMoveTo{0, 2}))
      << "which then is the busiest, and has nothing else to give";
  const std::vector<BucketLoad> alike = {{0, 0, 10}, {1, 0, 10}, {2, 0, 10}, {3, 0, 10}};
  EXPECT_THAT(PlanMoves(alike, 2, 8), ElementsAre(BucketMoveTo{0, 1}, BucketMoveTo{1, 1}));
  EXPECT_THAT(PlanMoves(alike, 2, 1), ElementsAre(BucketMoveTo{0, 1}));
}

TEST(BucketBalanceTest, WhatMovingCannotHelpStays) {
  EXPECT_THAT(PlanMoves({{0, 0, 100}, {1, 1, 0}}, 2, 8), IsEmpty()) << "one hot bucket, alone";
  EXPECT_THAT(PlanMoves({{0, 0, 10}, {1, 1, 9}}, 2, 8), IsEmpty()) << "a tenth is no reason";
  EXPECT_THAT(PlanMoves({{0, 0, 0}, {1, 1, 0}}, 2, 8), IsEmpty());
  EXPECT_THAT(PlanMoves({}, 2, 8), IsEmpty());
}

TEST(BucketBalanceTest, TheMeterCountsWhatCameSinceTheLastLook) {
  LoadMeter meter;
  EXPECT_EQ(meter.Since({{0, 0, 50}})[0].updates, 0U);
  EXPECT_EQ(meter.Since({{0, 0, 80}})[0].updates, 30U);
  EXPECT_EQ(meter.Since({{0, 1, 7}})[0].updates, 0U) << "it counts anew where it went";
  EXPECT_EQ(meter.Since({{0, 1, 9}})[0].updates, 2U);
  EXPECT_EQ(meter.Since({{0, 1, 3}})[0].updates, 0U);
}

}  // namespace
}  // namespace cohort::ps
