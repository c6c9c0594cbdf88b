// What came of a peer before it was asked for.

#include "kept_frames.h"

#include <gtest/gtest.h>

#include <vector>

namespace cohort {
namespace {

std::vector<std::byte> Body(std::size_t bytes, int first) {
  std::vector<std::byte> body(bytes);
  body.at(0) = static_cast<std::byte>(first);
  return body;
}

TEST(KeptFrames, AreSmallAndNotMany) {
  KeptFrames kept;
  EXPECT_FALSE(kept.MayKeep(KeptFrames::kFrameBytes + 1));
  std::size_t frames = 0;
  for (; kept.MayKeep(KeptFrames::kFrameBytes); ++frames) {
    ASSERT_LT(frames, 1000U);
    kept.Keep(Body(KeptFrames::kFrameBytes, static_cast<int>(frames)));
  }
  EXPECT_EQ(frames, KeptFrames::kAllBytes / KeptFrames::kFrameBytes - 1) << "each takes some more";
  for (std::size_t i = 0; i < frames; ++i) {
    ASSERT_TRUE(kept.HasData());
    EXPECT_EQ(kept.Take(), Body(KeptFrames::kFrameBytes, static_cast<int>(i)));
  }
  EXPECT_TRUE(kept.empty());
  EXPECT_TRUE(kept.MayKeep(KeptFrames::kFrameBytes));
}

TEST(KeptFrames, EmptyOnesTakeRoomToo) {
  KeptFrames kept;
  std::size_t frames = 0;
  for (; kept.MayKeep(0) && frames < KeptFrames::kAllBytes; ++frames) {
    kept.Keep({});
  }
  EXPECT_LT(frames, KeptFrames::kAllBytes);
}

TEST(KeptFrames, AnOperationIsGivenUpWithItsRejectOrAllThereIs) {
  KeptFrames kept;
  kept.Keep(Body(8, 1));
  kept.KeepReject();
  kept.Keep(Body(8, 2));
  EXPECT_TRUE(kept.GiveUp());
  ASSERT_TRUE(kept.HasData());
  EXPECT_EQ(kept.Take(), Body(8, 2));
  kept.Keep(Body(8, 3));
  EXPECT_FALSE(kept.GiveUp()) << "its reject is still to come";
  EXPECT_TRUE(kept.empty());
  kept.KeepReject();
  EXPECT_FALSE(kept.HasData());
  kept.Clear();
  EXPECT_TRUE(kept.empty());
}

}  // namespace
}  // namespace cohort
