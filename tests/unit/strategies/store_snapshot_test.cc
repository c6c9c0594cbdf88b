// A snapshot of a store: one state of it, while pushes, rounds and assignments go on.

#include <gtest/gtest.h>

#include <thread>

#include <cohort/optim/optimizers.h>

#include "parameter_server/variables/parameter_store.h"
#include "store_state.h"
#include "store_test.h"

namespace cohort::ps {
namespace {

class SnapshotTest : public StoreTest {
 protected:
  StoreState Now(std::uint64_t snapshot = 0) {
    return StateOf(store_, Header({0, 1, 2}), snapshot);
  }
  std::uint64_t Freeze(std::uint64_t snapshot) {
    return OrThrow(store_.Freeze(spec_.Fingerprint(), snapshot));
  }
  FrameHeader PushHeaderOf(std::uint64_t client, std::uint64_t sequence) {
    FrameHeader header = Header({0, 1, 2});
    header.set_client(client + 10);
    header.set_sequence(sequence);
    header.set_weight(1);
    return header;
  }
  Error::Kind Ask(std::uint64_t snapshot) {
    FrameHeader header = Header({0, 1, 2});
    header.set_snapshot(snapshot);
    std::vector<ParameterStore::Reading> readings;
    return store_.Plan(header, &readings).kind();
  }
};

TEST_F(SnapshotTest, PushesAndAssignmentsGoOnBesideIt) {
  Declare(*Adam({.learning_rate = 0.1}));
  EXPECT_FALSE(store_.Freeze(spec_.Fingerprint(), 1).ok()) << "nothing is assigned";
  Assign({1, 2, 3, 4, 5, 6, 7}, 4);
  EXPECT_EQ(Push(PushHeader(2), {3, 1, 4, 1, 5, 9, 2}).kind(), Error::NONE);
  const StoreState before = Now();
  EXPECT_EQ(Freeze(1), 5U);
  EXPECT_EQ(Now(1), before);
  EXPECT_EQ(store_.kept_bytes(), 0U) << "nothing has changed";
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Push(PushHeader(), ones_).kind(), Error::NONE);
    EXPECT_EQ(Now(1), before);
    EXPECT_NE(Now(), before);
  }
  EXPECT_EQ(Freeze(1), 8U) << "asked again: the same snapshot";
  EXPECT_EQ(Now(1), before);
  EXPECT_EQ(store_.kept_bytes(), (3 * 6 + 1) * sizeof(float)) << "each chunk once, with slots";
  Assign({0, 0, 0, 0, 0, 0, 0}, 90);
  EXPECT_EQ(Now(1), before);

  const StoreState then = Now();
  EXPECT_EQ(Freeze(2), 90U);
  EXPECT_EQ(store_.kept_bytes(), 0U);
  EXPECT_EQ(Ask(1), Error::BAD_FRAME) << "another one has taken its place";
  EXPECT_EQ(Push(PushHeader(), ones_).kind(), Error::NONE);
  EXPECT_EQ(Now(2), then);
  Freeze(0);
  EXPECT_EQ(store_.kept_bytes(), 0U);
  EXPECT_EQ(Ask(2), Error::BAD_FRAME);
  EXPECT_EQ(store_.Freeze(17, 3).status().code(), StatusCode::kFailedPrecondition);
}

TEST_F(SnapshotTest, RoundsGoOnBesideIt) {
  Declare(*Sgd({.learning_rate = 1, .momentum = 0.5}), "sync");
  Assign({1, 2, 3, 4, 5, 6, 7});
  EXPECT_EQ(Push(RoundHeader(1, 0, 1, 1), ones_).kind(), Error::NONE);
  const StoreState before = Now();
  EXPECT_EQ(Freeze(1), 1U);
  EXPECT_EQ(Push(RoundHeader(2, 0, 2, 1), ones_).kind(), Error::NONE);
  EXPECT_EQ(store_.kept_bytes(), 0U) << "a part changes nothing yet";
  EXPECT_EQ(Push(RoundHeader(2, 1, 2, 1), ones_).kind(), Error::NONE);
  EXPECT_EQ(Now(1), before);
  EXPECT_EQ(Now().versions[0], 2U);
}

TEST_F(SnapshotTest, AnotherEpochOfTheServersEndsIt) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({1, 2, 3, 4, 5, 6, 7});
  Freeze(1);
  EXPECT_EQ(Push(PushHeader(), ones_).kind(), Error::NONE);
  EXPECT_GT(store_.kept_bytes(), 0U);
  EXPECT_EQ(store_.Stay(), 1U);
  EXPECT_EQ(store_.kept_bytes(), 0U);
  EXPECT_EQ(Ask(1), Error::BAD_FRAME);
  Freeze(1);
  store_.Reset();
  Assign({1, 2, 3, 4, 5, 6, 7});
  EXPECT_EQ(store_.kept_bytes(), 0U);
  EXPECT_EQ(Ask(1), Error::BAD_FRAME);
}

TEST_F(SnapshotTest, ItIsOneStateUnderPushesFromManyThreads) {
  Declare(*Adagrad({.learning_rate = 0.1}));
  Assign({1, 2, 3, 4, 5, 6, 7});
  for (std::uint64_t snapshot = 1; snapshot <= 20; ++snapshot) {
    const StoreState before = Now();
    Freeze(snapshot);
    std::vector<std::thread> threads;
    for (std::uint64_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 20; ++i) {
          FrameHeader header = PushHeaderOf(t, snapshot * 100 + static_cast<std::uint64_t>(i));
          EXPECT_EQ(Push(header, ones_).kind(), Error::NONE);
        }
      });
    }
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(Now(snapshot), before);
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    EXPECT_EQ(Now(snapshot), before);
    EXPECT_EQ(Now().versions[0], snapshot * 60) << "every push counts once";
  }
}

}  // namespace
}  // namespace cohort::ps
