// Workers that hang while their processes live, and what the scheduler makes of them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "parameter_server/chief/progress_line.h"
#include "parameter_server/chief/scheduler.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr milliseconds kStep{1000};
constexpr milliseconds kWait{50};
constexpr Duration kAtOnce{0};

Sender Process(int worker) {
  return {.task = {TaskType::kWorker, worker},
          .incarnation = 10 + static_cast<std::uint64_t>(worker)};
}

class HangingWorker : public ::testing::Test {
 protected:
  HangingWorker() {
    OrThrow(scheduler_.OpenDataset("chief:0", 0, {.examples = 100, .batch_size = 10}));
    for (const int worker : {0, 1}) {
      clients_.push_back(OrThrow(scheduler_.Attach(Process(worker))));
    }
    OrThrow(scheduler_.Open(0));
  }
  SplitReply Next(int worker, std::int64_t finished = 0) {
    return OrThrow(
        scheduler_.NextSplit(Process(worker), {0, 0}, 0, {.id = finished, .steps = 1}, kWait));
  }
  // All that there is to be had, by worker:0.
  std::int64_t FinishRest(std::int64_t finished, milliseconds patience) {
    const auto until = std::chrono::steady_clock::now() + patience;
    std::int64_t splits = 0;
    while (std::chrono::steady_clock::now() < until) {
      const SplitReply reply = Next(0, std::exchange(finished, 0));
      if (reply.progress == Progress::kOver) {
        return splits;
      }
      if (reply.progress == Progress::kGo) {
        finished = reply.split.id;
        ++splits;
      }
    }
    return -1;
  }

  std::vector<std::uint64_t> gone_;
  Scheduler scheduler_{{.workers = {Process(0).task, Process(1).task},
                        .step_timeout = kStep,
                        .on_gone = [this](std::uint64_t client) { gone_.push_back(client); }}};
  std::vector<std::uint64_t> clients_;
};

TEST_F(HangingWorker, ItsSplitIsAnothersAtTheEndOfAnEpoch) {
  EXPECT_EQ(Next(1).progress, Progress::kGo);
  EXPECT_EQ(FinishRest(0, milliseconds(10'000)), 10);
  EXPECT_THAT(gone_, ElementsAre(clients_[1]));
  const Status told = scheduler_.NextSplit(Process(1), {0, 0}, 0, {}, kAtOnce).status();
  EXPECT_EQ(told.code(), StatusCode::kAborted);
  EXPECT_THAT(told.message(), HasSubstr("worker:1 hangs"));
}

TEST_F(HangingWorker, WhoIsOnlySlowIsWaitedFor) {
  const SplitReply slow = Next(1);
  std::uint64_t steps = 0;
  std::int64_t finished = 0;
  const auto until = std::chrono::steady_clock::now() + 4 * kStep;
  while (std::chrono::steady_clock::now() < until) {
    scheduler_.Progressed(Process(1), ++steps);
    const SplitReply reply = Next(0, std::exchange(finished, 0));
    ASSERT_NE(reply.progress, Progress::kOver);
    finished = reply.progress == Progress::kGo ? reply.split.id : 0;
  }
  EXPECT_TRUE(gone_.empty());
  EXPECT_EQ(Next(1, slow.split.id).progress, Progress::kOver);
}

TEST_F(HangingWorker, ItsPartOfARoundIsCutAnew) {
  const auto join = [&](int worker, Duration wait) {
    return OrThrow(scheduler_.JoinRound(Process(worker), {0, 0}, 0, wait));
  };
  EXPECT_EQ(join(0, kAtOnce).progress, Progress::kWait);
  EXPECT_EQ(join(1, kAtOnce).progress, Progress::kGo);
  const RoundPart part = join(0, kAtOnce).part;
  EXPECT_EQ(part.parts, 2);
  FinishReply reply;
  for (int i = 0; i < 100 && reply.progress == Progress::kWait; ++i) {
    reply = OrThrow(scheduler_.FinishRound(Process(0), part.round, part.attempt, {}, 2 * kWait));
  }
  EXPECT_EQ(reply.progress, Progress::kOver) << "superseded";
  EXPECT_EQ(join(0, kAtOnce).part.parts, 1);
  EXPECT_THAT(gone_, ElementsAre(clients_[1]));
}

TEST_F(HangingWorker, ACutWaitsForItNoLonger) {
  EXPECT_EQ(Next(1).progress, Progress::kGo);
  std::optional<Scheduler::Cut> cut;
  for (int i = 0; i < 200 && gone_.empty(); ++i) {
    cut = OrThrow(scheduler_.BeginCut(kWait));
    EXPECT_FALSE(cut.has_value());
    EXPECT_EQ(scheduler_.AtWork(), gone_.empty() ? "worker:1" : "");
  }
  EXPECT_THAT(gone_, ElementsAre(clients_[1]));
  EXPECT_EQ(Next(0).progress, Progress::kGo) << "what it held";
  scheduler_.Acknowledge(Process(0), {0, 0}, {.id = 1, .steps = 1});
  EXPECT_TRUE(OrThrow(scheduler_.BeginCut(kWait)).has_value());
  EXPECT_GT(scheduler_.longest_piece(), Duration(0));
}

TEST_F(HangingWorker, BeforeItsFirstWorkAWorkerHasTheTimeThatTheJobWaits) {
  const auto until = std::chrono::steady_clock::now() + 3 * kStep;
  while (std::chrono::steady_clock::now() < until) {
    EXPECT_EQ(OrThrow(scheduler_.JoinRound(Process(0), {0, 0}, 0, kWait)).progress,
              Progress::kWait);
  }
  EXPECT_TRUE(gone_.empty());
}

TEST_F(HangingWorker, TheChiefTellsHowFarItIsEveryTenSeconds) {
  const std::chrono::steady_clock::time_point begun;
  ProgressLine progress(begun);
  EXPECT_FALSE(progress.Due(begun + std::chrono::milliseconds(9'999)));
  EXPECT_TRUE(progress.Due(begun + std::chrono::seconds(10)));
  const auto line = [&](int seconds) {
    return progress.Of(scheduler_.coverage(), scheduler_.workers(),
                       begun + std::chrono::seconds(seconds));
  };
  EXPECT_EQ(line(10), std::nullopt) << "nothing has begun";
  const std::int64_t first = Next(0).split.id;
  const std::int64_t second = Next(0, first).split.id;
  const std::int64_t third = Next(0, second).split.id;
  EXPECT_EQ(line(20), "epoch 1: 20 of 100 examples, 2 steps, loss 0.0000, 2 workers, 2 examples/s");
  scheduler_.Lost(Process(1).task, Unavailable("it was killed"));
  EXPECT_EQ(line(30), "epoch 1: 20 of 100 examples, 2 steps, loss 0.0000, 1 worker, 0 examples/s");
  EXPECT_FALSE(progress.Due(begun + std::chrono::seconds(39)));
  EXPECT_EQ(FinishRest(third, milliseconds(10'000)), 7);
  EXPECT_EQ(line(40), std::nullopt) << "the end of the epoch has been told";
}

}  // namespace
}  // namespace cohort::ps
