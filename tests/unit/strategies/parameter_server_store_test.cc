// One server's store: updates, exactly-once, and everything that a client may get wrong.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <thread>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>

#include "parameter_server/variables/parameter_store.h"
#include "store_test.h"
#include "testing/text_case_name.h"

namespace cohort::ps {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

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
