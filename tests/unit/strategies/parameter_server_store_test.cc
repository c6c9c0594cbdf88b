// One server's store: updates, exactly-once, rounds, and everything that a client may get wrong.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/server_side.h>

#include "parameter_server/frames/dense_codec.h"
#include "parameter_server/variables/parameter_store.h"
#include "testing/text_case_name.h"

namespace cohort::ps {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::HasSubstr;

class StoreTest : public ::testing::Test {
 protected:
  // Two variables, a [4] and b [2]; `fixed` [1] is not trained by gradients.
  void Declare(const Optimizer& optimizer, const std::string& consistency = "async") {
    spec_ = {.parameters = {{"a", {4}, true, 0}, {"b", {2}, true, 16}, {"fixed", {1}, false, 32}},
             .optimizer = optimizer.config(),
             .consistency = OrThrow(Consistency::Parse(consistency)),
             .servers = 1};
    OrThrow(store_.Declare(spec_, "chief:0"));
  }
  void Assign(std::vector<float> values, std::uint64_t version = 0) {
    FrameHeader header = Header({0, 1, 2}, version);
    ASSERT_EQ(store_.Assign(header, Payload(values)).kind(), Error::NONE);
  }

  FrameHeader Header(std::vector<std::uint32_t> chunks, std::uint64_t version = 0) {
    FrameHeader header;
    header.set_client(1);
    header.set_layout(spec_.Fingerprint());
    for (const std::uint32_t chunk : chunks) {
      header.add_chunks(chunk);
      header.add_versions(version);
    }
    return header;
  }
  FrameHeader PushHeader(double weight = 1) {
    FrameHeader header = Header({0, 1, 2});
    header.set_sequence(++sequence_);
    header.set_weight(weight);
    return header;
  }
  FrameHeader RoundHeader(std::uint64_t round, int part, int parts, double weight,
                          int attempt = 0) {
    FrameHeader header = PushHeader(weight);
    header.set_client(static_cast<std::uint64_t>(part) + 1);
    header.mutable_round()->set_round(round);
    header.mutable_round()->set_part(static_cast<std::uint32_t>(part));
    header.mutable_round()->set_parts(static_cast<std::uint32_t>(parts));
    header.mutable_round()->set_attempt(static_cast<std::uint32_t>(attempt));
    return header;
  }
  // Borrows; `values` must outlive it.
  static PayloadReader Payload(const std::vector<float>& values) {
    return PayloadReader(Segments{std::as_bytes(std::span(values))});
  }
  std::vector<float> Read(int chunk) {
    FrameHeader header = Header({static_cast<std::uint32_t>(chunk)});
    std::vector<ParameterStore::Reading> readings;
    EXPECT_EQ(store_.Plan(header, &readings).kind(), Error::NONE);
    std::vector<float> values(readings.at(0).floats);
    store_.Copy(readings[0], false, values);
    return values;
  }
  Error Push(const FrameHeader& header, const std::vector<float>& values) {
    ParameterStore::Pushed pushed;
    return store_.Push(header, Payload(values), &pushed);
  }

  ParameterStore store_{0};
  ModelSpec spec_;
  std::uint64_t sequence_ = 0;
  const std::vector<float> ones_{1, 1, 1, 1, 1, 1, 1};
};

TEST_F(StoreTest, NothingIsServedBeforeAllIsAssigned) {
  EXPECT_EQ(Push(PushHeader(), ones_).kind(), Error::NOT_READY);
  Declare(*Sgd({.learning_rate = 1}));
  EXPECT_EQ(Push(PushHeader(), ones_).kind(), Error::NOT_READY);
  std::vector<ParameterStore::Reading> readings;
  EXPECT_EQ(store_.Plan(Header({0}), &readings).kind(), Error::NOT_READY);
  const std::vector<float> some{1, 2, 3, 4};
  EXPECT_EQ(store_.Assign(Header({0}), Payload(some)).kind(), Error::NONE);
  EXPECT_FALSE(store_.ready());
  Assign({1, 2, 3, 4, 5, 6, 7}, 12);
  EXPECT_TRUE(store_.ready());
  EXPECT_THAT(Read(1), ElementsAre(5, 6));
  EXPECT_EQ(store_.version(1), 12U);
}

// ---- Snapshots ----------------------------------------------------------------------------------

// Of all chunks, with slots and versions, as the store is or was at a snapshot.
struct State {
  std::vector<std::vector<float>> chunks;
  std::vector<std::uint64_t> versions;
  bool operator==(const State&) const = default;
};

class SnapshotTest : public StoreTest {
 protected:
  State Now(std::uint64_t snapshot = 0) {
    FrameHeader header = Header({0, 1, 2});
    header.set_slots(true);
    header.set_snapshot(snapshot);
    std::vector<ParameterStore::Reading> readings;
    EXPECT_EQ(store_.Plan(header, &readings).kind(), Error::NONE);
    State state;
    for (ParameterStore::Reading& reading : readings) {
      store_.Copy(reading, true, state.chunks.emplace_back(reading.floats));
      state.versions.push_back(reading.version);
    }
    return state;
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
  const State before = Now();
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

  const State then = Now();
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
  const State before = Now();
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
    const State before = Now();
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

TEST_F(StoreTest, DeclaringAgainComparesAndChangesNothing) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({1, 2, 3, 4, 5, 6, 7});
  EXPECT_TRUE(store_.Declare(spec_, "worker:0").ok());
  ModelSpec other = spec_;
  other.parameters[1].name = "c";
  EXPECT_THAT(store_.Declare(other, "worker:1").message(),
              HasSubstr("declared b [2], worker:1 has c [2]"));
  EXPECT_THAT(Read(0), ElementsAre(1, 2, 3, 4));
}

TEST_F(StoreTest, AnUnknownOptimizerIsRefused) {
  ModelSpec spec{.parameters = {{"a", {4}}}, .optimizer = R"({"name":"magic"})", .servers = 1};
  EXPECT_EQ(store_.Declare(spec, "chief:0").code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(store_.ready());
}

TEST_F(StoreTest, APushIsTheMeanOverItsOwnBatch) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({0, 0, 0, 0, 0, 0, 0});
  EXPECT_EQ(Push(PushHeader(4), {4, 8, 0, 0, 12, 0, 0.5}).kind(), Error::NONE);
  EXPECT_THAT(Read(0), ElementsAre(-1, -2, 0, 0));
  EXPECT_THAT(Read(1), ElementsAre(-3, 0));
  EXPECT_THAT(Read(2), ElementsAre(0.5)) << "what is not trained moves by the difference";
  EXPECT_EQ(store_.version(0), 1U);
}

TEST_F(StoreTest, TheOptimizerIsTheOneOfASingleProcess) {
  const auto optimizer = Adam({.learning_rate = 0.1});
  Declare(*optimizer);
  Assign({1, 2, 3, 4, 5, 6, 7});
  std::vector<float> value{1, 2, 3, 4, 5, 6};
  std::vector<float> m(6, 0);
  std::vector<float> v(6, 0);
  for (int step = 1; step <= 5; ++step) {
    std::vector<float> gradient(7);
    for (std::size_t i = 0; i < 7; ++i) {
      gradient[i] = std::sin(static_cast<float>(step * 10) + static_cast<float>(i));
    }
    gradient[6] = 0;
    ASSERT_EQ(Push(PushHeader(3), gradient).kind(), Error::NONE);
    const std::span<float> slots[] = {m, v};
    optimizer->Apply({.value = value,
                      .gradient = std::span(gradient).first(6),
                      .slots = slots,
                      .gradient_scale = static_cast<float>(1.0 / 3),
                      .step = step});
  }
  EXPECT_EQ(Read(0), std::vector<float>(value.begin(), value.begin() + 4));
  EXPECT_EQ(Read(1), std::vector<float>(value.begin() + 4, value.end()));
}

TEST_F(StoreTest, ARepeatedPushIsAppliedOnceOnly) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({0, 0, 0, 0, 0, 0, 0});
  const FrameHeader header = PushHeader();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Push(header, ones_).kind(), Error::NONE);
  }
  EXPECT_THAT(Read(0), Each(-1));
  EXPECT_EQ(store_.stats().duplicates, 2U);
  FrameHeader other = header;  // another process, or its successor, counts from 1 again
  other.set_client(2);
  EXPECT_EQ(Push(other, ones_).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-2));
}

TEST_F(StoreTest, ServersThatStayKnowThePushesThatTheyHad) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({0, 0, 0, 0, 0, 0, 0});
  const FrameHeader header = PushHeader();
  EXPECT_EQ(Push(header, ones_).kind(), Error::NONE);
  EXPECT_EQ(store_.Stay(), 1U);
  EXPECT_EQ(Push(header, ones_).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-1));
  EXPECT_EQ(store_.stats().duplicates, 1U);
  store_.Reset();
  Assign({0, 0, 0, 0, 0, 0, 0});
  EXPECT_EQ(Push(header, ones_).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-1)) << "of what is gone nothing is known";
}

// A server that has tables only: its chunk has no elements, and is a chunk all the same.
class StepsOfTablesTest : public ::testing::TestWithParam<std::string> {};

TEST_P(StepsOfTablesTest, AreCounted) {
  const ModelSpec spec{.optimizer = Sgd({.learning_rate = 1, .global_clip_norm = 1})->config(),
                       .consistency = OrThrow(Consistency::Parse(GetParam())),
                       .servers = 1,
                       .counts_steps = true};
  ParameterStore store(0);
  OrThrow(store.Declare(spec, "chief:0"));
  EXPECT_FALSE(store.ready()) << "its rows may be on their way";
  const auto header = [&](std::uint64_t version) {
    FrameHeader made;
    made.set_client(1);
    made.set_layout(spec.Fingerprint());
    made.add_chunks(0);
    made.add_versions(version);
    return made;
  };
  ASSERT_EQ(store.Assign(header(7), PayloadReader(Segments())).kind(), Error::NONE);
  EXPECT_TRUE(store.ready());
  const auto push = [&](std::uint64_t number) {
    FrameHeader pushed = header(6 + number);
    pushed.set_sequence(number);
    pushed.set_weight(3);
    if (spec.consistency.synchronous()) {
      pushed.mutable_round()->set_round(7 + number);
      pushed.mutable_round()->set_parts(1);
    }
    ParameterStore::Pushed result;
    return store.Push(pushed, PayloadReader(Segments()), &result);
  };
  for (std::uint64_t number = 1; number <= 2; ++number) {
    EXPECT_EQ(push(number).kind(), Error::NONE);
    EXPECT_EQ(push(number).kind(), Error::NONE) << "comes again";
    if (spec.consistency.synchronous()) {
      Commit commit;
      commit.set_round(7 + number);
      commit.add_winners(0);
      const auto norms = store.RoundNorms(spec.Fingerprint(), 7 + number, commit);
      ASSERT_EQ(norms.status(), OkStatus());
      EXPECT_TRUE(norms->squares.empty());
      EXPECT_EQ(norms->weight, 3);
      EXPECT_EQ(store.Settle(spec.Fingerprint(), 7 + number, 1), OkStatus());
    }
    EXPECT_EQ(store.version(0), 7 + number);
  }
  EXPECT_EQ(OrThrow(store.Freeze(spec.Fingerprint(), 1)), 9U);
  EXPECT_EQ(push(3).kind(), Error::NONE);
  FrameHeader asked = header(0);
  asked.set_snapshot(1);
  asked.set_slots(true);
  std::vector<ParameterStore::Reading> readings;
  ASSERT_EQ(store.Plan(asked, &readings).kind(), Error::NONE);
  ASSERT_EQ(readings.size(), 1U);
  EXPECT_EQ(readings[0].floats, 0U);
  EXPECT_TRUE(store.Copy(readings[0], /*slots=*/true, {}));
  EXPECT_EQ(readings[0].version, 9U) << "as it was";
  EXPECT_EQ(store.Reset(), spec.consistency.synchronous() ? 9U : 10U);
  EXPECT_FALSE(store.ready());
}

INSTANTIATE_TEST_SUITE_P(StoreTest, StepsOfTablesTest,
                         ::testing::Values("async", "ssp:1", "sync", "sync:1"),
                         testing::TextCaseName);

// ---- What servers do to gradients beside the rule -----------------------------------------------

TEST_F(StoreTest, GradientsAreCompensatedForWhatHasMovedSinceTheirPull) {
  Declare(*ServerSide(Sgd({.learning_rate = 1}), {.delay_compensation = 0.5}));
  Assign({4, 4, 4, 4, 4, 4, 4});
  const std::vector<float> twos(7, 2);
  const auto pull = [&](std::uint64_t client) {
    std::vector<ParameterStore::Reading> readings;
    EXPECT_EQ(store_.Plan(Header({0, 1, 2}), &readings).kind(), Error::NONE);
    for (ParameterStore::Reading& reading : readings) {
      std::vector<float> values(reading.floats);
      store_.Copy(reading, false, values, DType::kFloat32, client);
    }
  };
  const auto push = [&](std::uint64_t client, std::uint64_t version,
                        const std::vector<float>& gradient, double weight = 1) {
    FrameHeader header = PushHeader(weight);
    header.set_client(client);
    for (int i = 0; i < 3; ++i) {
      header.set_versions(i, version);
    }
    EXPECT_EQ(Push(header, gradient).kind(), Error::NONE);
  };
  pull(1);
  pull(2);
  push(2, 0, ones_);
  EXPECT_THAT(Read(0), Each(3)) << "it was fresh";
  push(1, 0, twos);  // 2 + 0.5 * 4 * (3 - 4) = 0
  EXPECT_THAT(Read(0), Each(3));
  EXPECT_THAT(Read(1), Each(3));
  EXPECT_THAT(Read(2), Each(7)) << "what is not trained moves by differences";
  pull(1);
  push(2, 0, std::vector<float>(7, 4), /*weight=*/2);  // the mean is what is compensated
  EXPECT_THAT(Read(0), Each(3));
  push(1, 2, twos);  // nothing has moved since
  EXPECT_THAT(Read(0), Each(1));
  push(2, 0, twos);  // 2 + 0.5 * 4 * (1 - 4) = -4
  EXPECT_THAT(Read(0), Each(5));
  push(1, 1, twos);
  EXPECT_THAT(Read(0), Each(3)) << "as it is, where the copy is not of its version";
  push(9, 0, twos);
  EXPECT_THAT(Read(0), Each(1)) << "or there is none";
  pull(3);
  store_.Stay();
  push(3, 7, ones_);
  push(3, 7, twos);  // 2 + 0.5 * 4 * (0 - 1) = 0
  EXPECT_THAT(Read(0), Each(0)) << "what stays knows what it gave";
  pull(3);
  store_.Reset();
  Assign({0, 0, 0, 0, 0, 0, 0}, 9);
  push(3, 9, ones_);
  push(3, 9, twos);
  EXPECT_THAT(Read(0), Each(-3)) << "not after a roll-back";
}

TEST_F(StoreTest, WhatTravelsRoundedIsCompensatedForAsItTravelled) {
  Declare(*ServerSide(Sgd({.learning_rate = 1}), {.delay_compensation = 1}));
  const float odd = 1 + 0x1p-10F;  // 1 as bfloat16
  Assign({odd, odd, odd, odd, odd, odd, odd});
  std::vector<ParameterStore::Reading> readings;
  ASSERT_EQ(store_.Plan(Header({0}), &readings).kind(), Error::NONE);
  std::vector<float> values(EncodedFloats(DType::kBFloat16, 4));
  ASSERT_TRUE(store_.Copy(readings.at(0), false, values, DType::kBFloat16, /*client=*/1));
  FrameHeader other = PushHeader();
  other.set_client(2);
  ASSERT_EQ(Push(other, ones_).kind(), Error::NONE);
  ASSERT_EQ(Push(PushHeader(), ones_).kind(), Error::NONE);
  // 1 + 1 * (2^-10 - 1) is taken off 2^-10.
  EXPECT_THAT(Read(0), Each(0));
}

TEST_F(StoreTest, WhereThereAreCopiesAPushCarriesWhatItWasComputedFrom) {
  ParameterStore store(0);
  spec_ = {
      .parameters = {{"a", {2}, true, 0}, {"fixed", {1}, false, 8}},
      .optimizer = ServerSide(Sgd({.learning_rate = 1}), {.delay_compensation = 0.5})->config(),
      .servers = 1,
      .copies = true};
  OrThrow(store.Declare(spec_, "chief:0"));
  const std::vector<float> fours = {4, 4, 4};
  ASSERT_EQ(store.Assign(Header({0, 1}), Payload(fours)).kind(), Error::NONE);
  ParameterStore::Pushed pushed;
  std::uint64_t number = 0;
  const auto push = [&](const std::vector<float>& payload, std::uint64_t version,
                        DType wire = DType::kFloat32) {
    FrameHeader header = Header({0, 1}, version);
    header.set_sequence(++number);
    header.set_weight(1);
    header.set_wire(WireNumber(wire));
    return store.Push(header, Payload(payload), &pushed);
  };
  const auto value = [&] {
    std::vector<ParameterStore::Reading> readings;
    EXPECT_EQ(store.Plan(Header({0}), &readings).kind(), Error::NONE);
    std::vector<float> values(readings.at(0).floats);
    store.Copy(readings[0], false, values, DType::kFloat32, /*client=*/1);
    EXPECT_EQ(values[0], values[1]);
    return values[0];
  };
  // Gradients, what they were computed from, and the difference of what is not trained.
  EXPECT_EQ(push({1, 1, 9, 9, 0}, 0).kind(), Error::NONE);
  EXPECT_EQ(value(), 3) << "it was not late";
  EXPECT_EQ(push({2, 2, 4, 4, 0}, 0).kind(), Error::NONE);  // 2 + 0.5 * 4 * (3 - 4) = 0
  EXPECT_EQ(value(), 3);
  EXPECT_EQ(push({2, 2, 1, 1, 0}, 1).kind(), Error::NONE);  // 2 + 0.5 * 4 * (3 - 1) = 6
  EXPECT_EQ(value(), -3);
  std::vector<float> rounded(EncodedFloats(DType::kBFloat16, 2));
  ASSERT_TRUE(EncodeValues(DType::kBFloat16, std::vector<float>{2, 2}, rounded));
  rounded.insert(rounded.end(), {-2, -2, 0});
  EXPECT_EQ(push(rounded, 1, DType::kBFloat16).kind(), Error::NONE);  // 2 + 0.5 * 4 * -1 = 0
  EXPECT_EQ(value(), -3);
  Error error = push({2, 2, 0}, 1);
  EXPECT_EQ(error.kind(), Error::BAD_FRAME);
  EXPECT_THAT(error.message(), HasSubstr("a: 12 bytes left of the payload, 16 needed"));
  rounded.resize(1);
  EXPECT_EQ(push(rounded, 1, DType::kBFloat16).kind(), Error::BAD_FRAME);
  error = push({2, 2, 1, std::numeric_limits<float>::infinity(), 0}, 1);
  EXPECT_EQ(error.kind(), Error::NOT_FINITE);
  EXPECT_THAT(error.message(), HasSubstr("values of a that a gradient was computed from"));
  EXPECT_EQ(value(), -3);
}

TEST_F(StoreTest, TheRateIsDividedByTheStaleness) {
  Declare(*ServerSide(Sgd({.learning_rate = 1}), {.staleness_scaling = true}));
  Assign({0, 0, 0, 0, 0, 0, 0});
  const std::vector<float> twelve(7, 12);
  for (const float expected : {-12.0F, -24.0F, -30.0F, -34.0F, -37.0F}) {  // 12 / 1, 1, 2, 3, 4
    EXPECT_EQ(Push(PushHeader(), twelve).kind(), Error::NONE);  // all computed from version 0
    EXPECT_THAT(Read(0), Each(FloatEq(expected)));
  }
}

TEST_F(StoreTest, ElementsOfTheMeanAreClipped) {
  for (const char* consistency : {"async", "sync"}) {
    ParameterStore store(0);
    spec_ = {.parameters = {{"a", {2}, true, 0}},
             .optimizer = ServerSide(Sgd({.learning_rate = 1}), {.clip_value = 3})->config(),
             .consistency = OrThrow(Consistency::Parse(consistency)),
             .servers = 1};
    OrThrow(store.Declare(spec_, "chief:0"));
    const std::vector<float> zeros = {0, 0};
    ASSERT_EQ(store.Assign(Header({0}), Payload(zeros)).kind(), Error::NONE);
    const std::vector<float> gradient = {4, -20};
    ParameterStore::Pushed pushed;
    FrameHeader header = Header({0});
    header.set_sequence(1);
    header.set_weight(2);
    if (spec_.consistency.synchronous()) {
      header.mutable_round()->set_round(1);
      header.mutable_round()->set_parts(1);
    }
    ASSERT_EQ(store.Push(header, Payload(gradient), &pushed).kind(), Error::NONE);
    std::vector<ParameterStore::Reading> readings;
    ASSERT_EQ(store.Plan(Header({0}), &readings).kind(), Error::NONE);
    std::vector<float> values(readings.at(0).floats);
    store.Copy(readings[0], false, values);
    EXPECT_THAT(values, ElementsAre(-2, 3)) << consistency;
  }
}

TEST_F(StoreTest, WhatNeedsSinglePushesIsRefusedWhereThereAreRounds) {
  for (const auto& [options, field] :
       {std::pair{ServerSideOptions{.clip_norm = 1}, "clip_norm"},
        std::pair{ServerSideOptions{.delay_compensation = 1}, "delay_compensation"},
        std::pair{ServerSideOptions{.staleness_scaling = true}, "staleness_scaling"}}) {
    for (const char* consistency : {"sync", "sync:1", "async", "ssp:2"}) {
      ModelSpec spec = {.parameters = {{"a", {2}, true, 0}},
                        .optimizer = ServerSide(Sgd(), options)->config(),
                        .consistency = OrThrow(Consistency::Parse(consistency)),
                        .servers = 1};
      const Status status = ParameterStore(0).Declare(spec, "chief:0");
      if (spec.consistency.synchronous()) {
        EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
        EXPECT_THAT(status.message(),
                    AllOf(HasSubstr("sgd: " + std::string(field)), HasSubstr(consistency)));
      } else {
        EXPECT_TRUE(status.ok()) << status.message();
      }
    }
  }
}

TEST_F(StoreTest, StalenessIsMeasured) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({0, 0, 0, 0, 0, 0, 0});
  for (int i = 0; i < 3; ++i) {
    Push(PushHeader(), ones_);  // all computed from version 0
  }
  EXPECT_EQ(store_.stats().max_staleness, 2U);
  EXPECT_DOUBLE_EQ(store_.stats().mean_staleness, 1.0);
  EXPECT_EQ(store_.stats().updates, 9U);
}

TEST_F(StoreTest, WrongFramesChangeNothingAndNameTheParameter) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({1, 2, 3, 4, 5, 6, 7});
  FrameHeader header = PushHeader();
  header.set_layout(1);
  EXPECT_EQ(Push(header, ones_).kind(), Error::SPEC_MISMATCH);

  header = PushHeader();
  header.set_chunks(2, 77);
  EXPECT_EQ(Push(header, ones_).kind(), Error::UNKNOWN_CHUNK);

  header = PushHeader();
  header.set_chunks(1, 0);
  EXPECT_EQ(Push(header, ones_).kind(), Error::BAD_FRAME) << "a chunk twice";

  header = PushHeader();
  header.add_versions(3);
  EXPECT_EQ(Push(header, ones_).kind(), Error::BAD_FRAME);

  Error error = Push(PushHeader(), {1, 1, 1, 1, 1});
  EXPECT_EQ(error.kind(), Error::BAD_FRAME);
  EXPECT_THAT(error.message(), HasSubstr("b: 4 bytes left"));
  EXPECT_EQ(Push(PushHeader(), {1, 1, 1, 1, 1, 1, 1, 1}).kind(), Error::BAD_FRAME);
  EXPECT_EQ(Push(PushHeader(), {}).kind(), Error::BAD_FRAME);

  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    error = Push(PushHeader(), {1, 1, 1, 1, 1, bad, 1});
    EXPECT_EQ(error.kind(), Error::NOT_FINITE);
    EXPECT_THAT(error.message(), HasSubstr("gradient of b"));
  }
  for (const double weight : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_EQ(Push(PushHeader(weight), ones_).kind(), Error::BAD_FRAME);
  }
  header = PushHeader();
  header.set_sequence(0);
  EXPECT_EQ(Push(header, ones_).kind(), Error::BAD_FRAME);
  EXPECT_EQ(Push(RoundHeader(1, 0, 1, 1), ones_).kind(), Error::BAD_FRAME);

  const std::vector<float> six{1, 1, 1, 1, 1, 1};
  EXPECT_EQ(store_.Assign(Header({0, 1, 2}), Payload(six)).kind(), Error::BAD_FRAME);

  EXPECT_THAT(Read(0), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(Read(1), ElementsAre(5, 6));
  EXPECT_EQ(store_.stats().pushes, 0U);
  EXPECT_GT(store_.stats().rejected, 10U);
}

TEST_F(StoreTest, SlotsTravelWithTheirChunk) {
  Declare(*Sgd({.learning_rate = 1, .momentum = 0.5}));
  FrameHeader header = Header({0, 1, 2}, 9);
  header.set_slots(true);
  const std::vector<float> state{1, 2, 3, 4, 10, 20, 30, 40, 5, 6, 50, 60, 7};
  ASSERT_EQ(store_.Assign(header, Payload(state)).kind(), Error::NONE);
  std::vector<ParameterStore::Reading> readings;
  ASSERT_EQ(store_.Plan(header, &readings).kind(), Error::NONE);
  std::vector<float> read;
  for (ParameterStore::Reading& reading : readings) {
    std::vector<float> part(reading.floats);
    store_.Copy(reading, true, part);
    read.insert(read.end(), part.begin(), part.end());
    EXPECT_EQ(reading.version, 9U);
  }
  EXPECT_EQ(read, state);
}

TEST_F(StoreTest, OnlyWhatIsNewerIsRead) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({0, 0, 0, 0, 0, 0, 0}, 5);
  std::vector<ParameterStore::Reading> readings;
  EXPECT_EQ(store_.Plan(Header({0, 1, 2}, 6), &readings).kind(), Error::NONE);
  EXPECT_TRUE(readings.empty());
  FrameHeader push = Header({1}, 5);
  push.set_sequence(1);
  push.set_weight(1);
  const std::vector<float> two{1, 1};
  ASSERT_EQ(Push(push, two).kind(), Error::NONE);
  EXPECT_EQ(store_.Plan(Header({0, 1, 2}, 6), &readings).kind(), Error::NONE);
  ASSERT_EQ(readings.size(), 1U);
  EXPECT_EQ(readings[0].chunk, 1);
}

// ---- Rounds -------------------------------------------------------------------------------------

TEST_F(StoreTest, ARoundIsAppliedWhenAllPartsAreThereInTheOrderOfParts) {
  Declare(*Sgd({.learning_rate = 1}), "sync");
  Assign({0, 0, 0, 0, 0, 0, 0});
  // In floats 1e8 + -1e8 + 1 is 1, in another order 0.
  const std::vector<float> big(7, 1e8F);
  const std::vector<float> minus(7, -1e8F);
  EXPECT_EQ(Push(RoundHeader(1, 2, 3, 1), ones_).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(1, 1, 3, 1), minus).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(0));
  EXPECT_EQ(store_.version(0), 0U);
  EXPECT_EQ(Push(RoundHeader(1, 0, 3, 2), big).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-0.25)) << "divided by the weights of all parts";
  EXPECT_EQ(store_.version(0), 1U);
  EXPECT_EQ(Push(RoundHeader(1, 0, 3, 2), big).kind(), Error::NONE) << "applied already: ignored";
  EXPECT_THAT(Read(0), Each(-0.25));
  EXPECT_EQ(Push(RoundHeader(3, 0, 1, 2), ones_).kind(), Error::OUT_OF_ORDER);
}

TEST_F(StoreTest, APartWithoutExamplesSendsNothing) {
  Declare(*Sgd({.learning_rate = 1}), "sync");
  Assign({0, 0, 0, 0, 0, 0, 3});
  EXPECT_EQ(Push(RoundHeader(1, 0, 2, 0), {}).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(1, 1, 2, 2), {2, 2, 2, 2, 2, 2, 9}).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-1));
  EXPECT_THAT(Read(2), ElementsAre(9));
  EXPECT_EQ(Push(RoundHeader(2, 0, 1, 0), {}).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-1));
  EXPECT_EQ(store_.version(0), 2U);
}

TEST_F(StoreTest, ANewAttemptDropsThePartsOfTheOldOne) {
  Declare(*Sgd({.learning_rate = 1}), "sync");
  Assign({0, 0, 0, 0, 0, 0, 0});
  const std::vector<float> hundred(7, 100);
  EXPECT_EQ(Push(RoundHeader(1, 0, 3, 1, 0), hundred).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(1, 0, 2, 1, 1), ones_).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(1, 1, 3, 1, 0), hundred).kind(), Error::NONE) << "late: no effect";
  EXPECT_EQ(Push(RoundHeader(1, 2, 3, 1, 0), hundred).kind(), Error::NONE);
  EXPECT_EQ(store_.version(0), 0U);
  EXPECT_EQ(Push(RoundHeader(1, 1, 2, 1, 1), ones_).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-1));
  EXPECT_EQ(store_.version(0), 1U);
}

TEST_F(StoreTest, WithBackupWorkersACommitNamesThePartsThatCountAndLateOnesAreTold) {
  Declare(*Sgd({.learning_rate = 1}), "sync:1");
  Assign({0, 0, 0, 0, 0, 0, 0});
  const std::vector<float> hundred(7, 100);
  const std::vector<float> threes(7, 3);
  const auto commit = [&](std::vector<std::uint32_t> winners) {
    FrameHeader header = Header({0, 1, 2});
    header.mutable_commit()->set_round(1);
    header.mutable_commit()->mutable_winners()->Assign(winners.begin(), winners.end());
    return store_.Admit(header, DeadlineAfter(std::chrono::seconds(1))).kind();
  };
  EXPECT_EQ(Push(RoundHeader(1, 2, 3, 1), threes).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(1, 0, 3, 1), ones_).kind(), Error::NONE);
  EXPECT_EQ(store_.version(0), 0U) << "nothing is applied before it is decided who has won";
  EXPECT_EQ(commit({0, 1}), Error::OUT_OF_ORDER) << "part 1 is not there";
  EXPECT_EQ(commit({}), Error::OUT_OF_ORDER);
  EXPECT_EQ(commit({0, 7}), Error::OUT_OF_ORDER);
  EXPECT_EQ(store_.version(0), 0U);
  EXPECT_EQ(commit({0, 2}), Error::NONE);
  EXPECT_THAT(Read(0), Each(-2)) << "the mean over the two that have won";
  ParameterStore::Pushed late;
  EXPECT_EQ(store_.Push(RoundHeader(1, 1, 3, 1), Payload(hundred), &late).kind(), Error::NONE);
  EXPECT_TRUE(late.late);
  EXPECT_EQ(commit({0, 2}), Error::NONE) << "every worker brings it";
  EXPECT_THAT(Read(0), Each(-2));
  EXPECT_EQ(store_.version(0), 1U);
  EXPECT_EQ(store_.stats().late, 3U) << "by chunk";

  // A part that was there in time for the push, not for the decision, has no effect later either.
  EXPECT_EQ(Push(RoundHeader(2, 0, 3, 1), ones_).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(2, 1, 3, 1), hundred).kind(), Error::NONE);
  EXPECT_EQ(Push(RoundHeader(2, 2, 3, 1), ones_).kind(), Error::NONE);
  FrameHeader header = Header({0, 1, 2});
  header.mutable_commit()->set_round(2);
  header.mutable_commit()->add_winners(0);
  header.mutable_commit()->add_winners(2);
  EXPECT_EQ(store_.Admit(header, DeadlineAfter(std::chrono::seconds(1))).kind(), Error::NONE);
  EXPECT_THAT(Read(0), Each(-3));
  EXPECT_EQ(store_.stats().late, 6U);
}

// Between the sum over the parts that count and the factor by which it is clipped.
TEST_F(StoreTest, WithBackupWorkersALatePartDoesNotTakeThePlaceOfASumThatWaits) {
  Declare(*Sgd({.learning_rate = 1, .global_clip_norm = 1e6}), "sync:1");
  Assign({0, 0, 0, 0, 0, 0, 0});
  const std::vector<float> large(7, 100);
  for (const int part : {1, 2}) {
    EXPECT_EQ(Push(RoundHeader(1, part, 3, 1), ones_).kind(), Error::NONE);
  }
  Commit commit;
  commit.set_round(1);
  commit.add_winners(1);
  commit.add_winners(2);
  const auto norms = OrThrow(store_.RoundNorms(spec_.Fingerprint(), 1, commit));
  EXPECT_EQ(norms.weight, 2);
  ParameterStore::Pushed pushed;
  EXPECT_EQ(store_.Push(RoundHeader(1, 0, 3, 1), Payload(large), &pushed).kind(), Error::NONE);
  EXPECT_TRUE(pushed.late);
  OrThrow(store_.Settle(spec_.Fingerprint(), 1, 1));
  EXPECT_THAT(Read(0), Each(FloatEq(-1)));
  EXPECT_THAT(Read(2), ElementsAre(1)) << "the mean of what the winners have";
}

TEST_F(StoreTest, NothingOfARetiredWorkerIsTaken) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({0, 0, 0, 0, 0, 0, 0});
  EXPECT_EQ(Push(PushHeader(), ones_).kind(), Error::NONE);
  store_.Retire(1);
  EXPECT_EQ(Push(PushHeader(), ones_).kind(), Error::FENCED);
  EXPECT_THAT(Read(0), Each(-1));
  FrameHeader other = PushHeader();
  other.set_client(2);
  EXPECT_EQ(Push(other, ones_).kind(), Error::NONE) << "its successor is another";
}

TEST_F(StoreTest, ABoundedReadWaitsForThePushBeforeIt) {
  Declare(*Sgd({.learning_rate = 1}), "ssp:0");
  Assign({0, 0, 0, 0, 0, 0, 0});
  const auto soon = [] { return DeadlineAfter(std::chrono::milliseconds(1)); };
  FrameHeader push = PushHeader();
  push.set_advance(true);
  push.set_clock(1);
  FrameHeader read = Header({0, 1, 2});
  read.set_bounded(true);
  read.set_clock(1);
  read.set_sequence(push.sequence());
  EXPECT_EQ(store_.Admit(read, soon()).kind(), Error::NOT_YET) << "it has not come";
  ASSERT_EQ(store_.pushes().Claim(1, push.sequence()), PushLedger::Claimed::kNew);
  EXPECT_EQ(store_.Admit(read, soon()).kind(), Error::NOT_YET) << "another thread is at it";
  std::jthread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    store_.pushes().Finish(1, push.sequence(), /*applied=*/false);
  });
  EXPECT_EQ(store_.Admit(read, DeadlineAfter(std::chrono::seconds(20))).kind(), Error::NOT_YET)
      << "it was taken back, and is to come again";
  EXPECT_EQ(Push(push, ones_).kind(), Error::NONE);
  EXPECT_EQ(store_.Admit(read, soon()).kind(), Error::NONE);
  store_.Retire(1);
  EXPECT_EQ(store_.Admit(read, soon()).kind(), Error::FENCED);
}

TEST_F(StoreTest, RoundsThatMakeNoSenseAreRefused) {
  Declare(*Sgd({.learning_rate = 1}), "sync");
  Assign({0, 0, 0, 0, 0, 0, 0});
  EXPECT_EQ(Push(PushHeader(), ones_).kind(), Error::BAD_FRAME) << "no round";
  EXPECT_EQ(Push(RoundHeader(1, 2, 2, 1), ones_).kind(), Error::BAD_FRAME);
  EXPECT_EQ(Push(RoundHeader(1, 0, 0, 1), ones_).kind(), Error::BAD_FRAME);
  EXPECT_EQ(Push(RoundHeader(1, 0, 1 << 30, 1), ones_).kind(), Error::BAD_FRAME);
}

// ---- Many at once -------------------------------------------------------------------------------

TEST_F(StoreTest, ConcurrentPushesAreAllCounted) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({0, 0, 0, 0, 0, 0, 0});
  constexpr int kClients = 4;
  constexpr int kPushes = 200;
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      for (int i = 1; i <= kPushes; ++i) {
        FrameHeader header = Header({0, 1, 2});
        header.set_client(static_cast<std::uint64_t>(c) + 1);
        header.set_sequence(static_cast<std::uint64_t>(i));
        header.set_weight(1);
        Push(header, ones_);
        Push(header, ones_);  // each one twice
      }
    });
  }
  for (std::thread& client : clients) {
    client.join();
  }
  EXPECT_THAT(Read(0), Each(-kClients * kPushes));
  EXPECT_THAT(Read(2), Each(kClients * kPushes));
  EXPECT_EQ(store_.stats().duplicates, static_cast<std::uint64_t>(kClients * kPushes));
}

TEST_F(StoreTest, FormatsAreChecked) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({0, 0, 0, 0, 0, 0, 0});
  FrameHeader header = PushHeader();
  header.set_wire(2);  // int8, which is of rows
  EXPECT_EQ(Push(header, ones_).kind(), Error::BAD_FRAME);
  header.set_wire(1);
  EXPECT_THAT(Push(header, ones_).message(), HasSubstr("belong to no chunk"));
  EXPECT_THAT(Push(header, {1}).message(), HasSubstr("left of the payload"));
  header.clear_wire();
  header.set_pull_wire(7);
  std::vector<ParameterStore::Reading> readings;
  EXPECT_EQ(store_.Plan(header, &readings).kind(), Error::BAD_FRAME);
  header.set_pull_wire(1);
  header.set_slots(true);  // which are saved
  EXPECT_EQ(store_.Plan(header, &readings).kind(), Error::BAD_FRAME);
  EXPECT_THAT(Read(0), Each(0));
}

TEST_F(StoreTest, RandomHeadersNeverHarm) {
  Declare(*Sgd({.learning_rate = 1}));
  Assign({0, 0, 0, 0, 0, 0, 0});
  const Philox random(3);
  for (std::uint64_t i = 0; i < 20'000; ++i) {
    const Philox::Block draw = random.At(i);
    FrameHeader header = PushHeader();
    std::string bytes = header.SerializeAsString();
    bytes[draw[0] % bytes.size()] = static_cast<char>(draw[1]);
    bytes[draw[2] % bytes.size()] = static_cast<char>(draw[3]);
    FrameHeader bad;
    if (!bad.ParseFromString(bytes)) {
      continue;
    }
    const std::vector<float> values(draw[1] % 12, 1.0F);
    Push(bad, values);
    std::vector<ParameterStore::Reading> readings;
    if (store_.Plan(bad, &readings).kind() == Error::NONE) {
      for (ParameterStore::Reading& reading : readings) {
        std::vector<float> to(reading.floats);
        store_.Copy(reading, bad.slots(), to);
      }
    }
  }
  EXPECT_EQ(Push(PushHeader(), ones_).kind(), Error::NONE);
}

}  // namespace
}  // namespace cohort::ps
