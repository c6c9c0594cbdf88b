// What each mode of consistency promises, as properties under random delays.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <map>
#include <thread>
#include <utility>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/consistency.h>

#include "parameter_server/chief/round_table.h"
#include "parameter_server/variables/clock_table.h"
#include "parameter_server/variables/parameter_store.h"

namespace cohort::ps {
namespace {

using std::chrono::microseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

TEST(Consistency, WhatIsWrittenIsRead) {
  for (const char* text : {"async", "ssp:0", "ssp:3", "sync", "sync:2", "hybrid", "auto"}) {
    EXPECT_EQ(OrThrow(Consistency::Parse(text)).ToString(), text);
  }
  EXPECT_EQ(OrThrow(Consistency::Parse("ssp:3")).staleness, 3);
  EXPECT_EQ(OrThrow(Consistency::Parse("sync:2")).backup_workers, 2);
  for (const char* text : {"", "ssp", "ssp:", "ssp:-1", "ssp:1x", "async:1", "sync:99999999999",
                           "sync:", "hybrid:1", "auto:1", "bsp"}) {
    EXPECT_THAT(Consistency::Parse(text).status().message(), HasSubstr("async, ssp:STALENESS"))
        << text;
  }
}

// ---- Bounded staleness --------------------------------------------------------------------------

class BoundedStaleness : public ::testing::TestWithParam<int> {};

// Workers of different speeds, one of them much slower, push into a store and read it. Worker w
// counts down element w. One leaves early, one is lost in the middle.
TEST_P(BoundedStaleness, AReadHasAllButTheLastStepsOfOthersAndAllOfItsOwn) {
  constexpr std::uint64_t kWorkers = 4;
  constexpr std::uint64_t kSteps[kWorkers] = {60, 60, 20, 60};
  const auto staleness = static_cast<std::uint64_t>(GetParam());
  ParameterStore store(0);
  const ModelSpec spec{
      .parameters = {{"counts", {kWorkers}, true, 0}},
      .optimizer = Sgd({.learning_rate = 1})->config(),
      .consistency = {.mode = Consistency::Mode::kBoundedStaleness, .staleness = GetParam()}};
  OrThrow(store.Declare(spec, "chief:0"));
  const auto header_of = [&](std::uint64_t worker) {
    FrameHeader header;
    header.set_client(worker + 1);
    header.set_layout(spec.Fingerprint());
    header.add_chunks(0);
    header.add_versions(0);
    return header;
  };
  const std::vector<float> zeros(kWorkers, 0);
  const auto payload_of = [](const std::vector<float>& values) {
    return PayloadReader(Segments{std::as_bytes(std::span(values))});
  };
  ASSERT_EQ(store.Assign(header_of(0), payload_of(zeros)).kind(), Error::NONE);
  std::atomic<bool> live[kWorkers];
  for (std::atomic<bool>& l : live) {
    l = true;
  }
  std::atomic<int> violations = 0;
  // One read, and what it must have.
  const auto read = [&](std::uint64_t worker, std::uint64_t clock) {
    FrameHeader header = header_of(worker);
    header.set_bounded(true);
    header.set_clock(clock);
    if (store.Admit(header, DeadlineAfter(seconds(20))).kind() != Error::NONE) {
      return false;
    }
    std::vector<ParameterStore::Reading> readings;
    EXPECT_EQ(store.Plan(header, &readings).kind(), Error::NONE);
    std::vector<float> values(kWorkers);
    store.Copy(readings.at(0), false, values);
    for (std::uint64_t other = 0; other < kWorkers; ++other) {
      const double has = -static_cast<double>(values[other]);
      const double must = other == worker
                              ? static_cast<double>(clock)
                              : static_cast<double>(clock) - static_cast<double>(staleness);
      // Who has left (after the read, perhaps) is not waited for.
      violations += live[other] && has < must ? 1 : 0;
    }
    return true;
  };
  // All are there before the first step: who comes later starts with the slowest.
  for (std::uint64_t w = 0; w < kWorkers; ++w) {
    ASSERT_TRUE(read(w, 0));
  }
  std::vector<std::future<void>> workers;
  for (std::uint64_t w = 0; w < kWorkers; ++w) {
    workers.push_back(std::async(std::launch::async, [&, w] {
      const Philox random(w);
      for (std::uint64_t clock = 1; clock <= kSteps[w]; ++clock) {
        std::this_thread::sleep_for(microseconds(random.At(clock)[0] % 100 * (w == 3 ? 10 : 1)));
        if (w == 1 && clock == 30) {
          live[w] = false;  // lost
          store.Retire(w + 1);
        }
        std::vector<float> gradient(kWorkers, 0);
        gradient[w] = 1;
        FrameHeader header = header_of(w);
        header.set_sequence(clock);
        header.set_weight(1);
        header.set_advance(true);
        header.set_clock(clock);
        ParameterStore::Pushed pushed;
        const Error error = store.Push(header, payload_of(gradient), &pushed);
        if (error.kind() == Error::FENCED && !live[w]) {
          return;
        }
        EXPECT_EQ(error.kind(), Error::NONE);
        EXPECT_TRUE(read(w, clock));
      }
      live[w] = false;  // done
      store.Retire(w + 1);
    }));
  }
  for (std::future<void>& worker : workers) {
    worker.get();
  }
  EXPECT_EQ(violations, 0);
  EXPECT_LE(store.stats().max_lead, staleness);
  EXPECT_GT(store.stats().parked, 0U)
      << "the slow worker never held anybody up: nothing was tested";
  std::vector<ParameterStore::Reading> readings;
  EXPECT_EQ(store.Plan(header_of(0), &readings).kind(), Error::NONE);
  std::vector<float> values(kWorkers);
  store.Copy(readings.at(0), false, values);
  EXPECT_THAT(values, ::testing::ElementsAre(-60, -29, -20, -60));
}

INSTANTIATE_TEST_SUITE_P(Consistency, BoundedStaleness, ::testing::Values(0, 1, 3));

// A table, with workers that keep their clocks as clients do.
class Clocks {
 public:
  explicit Clocks(std::uint64_t staleness) : table_(staleness) {}
  void Advance(std::uint64_t worker, const std::string& name = {}) {
    const std::uint64_t clock = Entered(worker, name) + 1;
    table_.Advance(worker, own_[worker].clock = clock, name);
  }
  bool Await(std::uint64_t worker, Deadline deadline, const std::string& name = {}) {
    return table_.Await(worker, Entered(worker, name), deadline, name);
  }
  void Pause(std::uint64_t worker) {
    own_[worker].entered = false;
    table_.Pause(worker);
  }
  void Retire(std::uint64_t first, std::uint64_t last) { table_.Retire(first, last); }
  void Retire(std::uint64_t worker) { table_.Retire(worker); }
  std::string Slowest(std::uint64_t worker) const { return table_.Slowest(worker); }
  ClockTable::Stats stats() const { return table_.stats(); }

 private:
  struct Own {
    std::uint64_t clock = 0;
    bool entered = false;
  };
  std::uint64_t Entered(std::uint64_t worker, const std::string& name) {
    Own& own = own_[worker];
    if (!std::exchange(own.entered, true)) {
      own.clock = table_.Enter(worker, own.clock, name);
    }
    return own.clock;
  }

  ClockTable table_;
  std::map<std::uint64_t, Own> own_;
};

// Who is back at different times at two servers has one clock at both: were it counted at each,
// both workers would wait, each for the other.
TEST(ClockTable, AWorkerHasOneClockAtAllServers) {
  const Deadline at_once = DeadlineAfter(microseconds(100));
  ClockTable first(1);
  ClockTable second(1);
  std::uint64_t mine = first.Enter(1, 0);
  const std::uint64_t others = first.Enter(2, 0);
  for (ClockTable* table : {&first, &second}) {
    table->Advance(2, others + 1);
  }
  mine = std::max(mine, first.Enter(1, mine));
  second.Advance(2, others + 2);  // it is further at one of them already
  first.Advance(2, others + 2);
  for (ClockTable* table : {&first, &second}) {
    table->Advance(1, mine + 1);
    EXPECT_TRUE(table->Await(1, mine + 1, at_once)) << "the slowest never waits";
  }
  EXPECT_EQ(first.Await(2, others + 2, at_once), second.Await(2, others + 2, at_once));
}

// What one server knows another one learns, but of who was given up there.
TEST(ClockTable, IsToldToAnother) {
  const Deadline at_once = DeadlineAfter(microseconds(100));
  ClockTable table(1);
  table.Advance(1, 5, "worker:1");
  table.Advance(2, 3, "worker:2");
  table.Advance(3, 1, "worker:3");
  table.Advance(4, 2, "worker:4");
  table.Pause(3);
  ClockTable other(1);
  other.Retire(4);
  other.Advance(9, 1, "worker:9");  // is forgotten
  ClockTable::Clocks clocks;
  table.Tell(&clocks);
  EXPECT_EQ(clocks.size(), 4);
  other.Learn(clocks);
  EXPECT_FALSE(other.Await(1, 5, at_once));
  EXPECT_EQ(other.Slowest(1), "worker:2 is 2 steps behind this one");
  other.Advance(2, 4);
  EXPECT_TRUE(other.Await(1, 5, at_once));
  EXPECT_EQ(other.Enter(3, 1), 4U) << "at the clock of the slowest";
}

TEST(ClockTable, TheSlowestNeverWaitsAndAParkedReadWakesWhenItIsNoLongerHeldUp) {
  Clocks clocks(1);
  const Deadline never = DeadlineAfter(seconds(20));
  EXPECT_TRUE(clocks.Await(1, never));
  EXPECT_TRUE(clocks.Await(2, never));
  clocks.Advance(1);
  EXPECT_TRUE(clocks.Await(1, never)) << "one ahead";
  clocks.Advance(1);
  EXPECT_TRUE(clocks.Await(2, never));
  EXPECT_FALSE(clocks.Await(1, DeadlineAfter(microseconds(100)))) << "two ahead";
  const auto parked = [&] {
    return std::async(std::launch::async, [&] { return clocks.Await(1, never); });
  };
  std::future<bool> read = parked();
  clocks.Advance(2);
  EXPECT_TRUE(read.get());
  clocks.Advance(1);
  read = parked();
  clocks.Pause(2);  // between two pieces of work
  EXPECT_TRUE(read.get());
  for (int i = 0; i < 10; ++i) {
    clocks.Advance(1);
    EXPECT_TRUE(clocks.Await(1, never));
  }
  EXPECT_TRUE(clocks.Await(2, never)) << "back, at the clock of the others";
  clocks.Advance(1);
  EXPECT_TRUE(clocks.Await(1, never));
  clocks.Advance(1);
  read = parked();
  clocks.Retire(2);
  EXPECT_TRUE(read.get());
  EXPECT_LE(clocks.stats().max_lead, 1U);
}

// As where a connection was taken for dead, and what it carried was sent again on another one.
TEST(ClockTable, AnEnteringOrAPauseThatComesLateOrTwiceHasNoEffect) {
  const Deadline at_once = DeadlineAfter(std::chrono::milliseconds(0));
  ClockTable clocks(0);
  EXPECT_EQ(clocks.Enter(1, 0, "worker:0", {.epoch = 1, .number = 1}), 0U);
  EXPECT_EQ(clocks.Enter(2, 0, "worker:1", {.epoch = 1, .number = 1}), 0U);
  clocks.Pause(2, {.epoch = 1, .number = 2});
  clocks.Advance(1, 3);
  EXPECT_EQ(clocks.Enter(2, 0, "worker:1", {.epoch = 1, .number = 1}), 0U);
  EXPECT_TRUE(clocks.Await(1, 3, at_once)) << "worker:1 pauses";
  EXPECT_EQ(clocks.Enter(2, 0, "worker:1", {.epoch = 1, .number = 3}), 3U);
  clocks.Pause(2, {.epoch = 1, .number = 2});
  EXPECT_EQ(clocks.Enter(2, 0, "worker:1", {.epoch = 1, .number = 3}), 3U) << "the same answer";
  clocks.Advance(1, 4);
  EXPECT_FALSE(clocks.Await(1, 4, at_once)) << "worker:1 is at work";
  clocks.Pause(2, {.epoch = 2, .number = 1});
  EXPECT_TRUE(clocks.Await(1, 4, at_once)) << "in another epoch numbers begin anew";
}

TEST(ClockTable, TheSlowestIsNamed) {
  Clocks clocks(1);
  const Deadline at_once = DeadlineAfter(microseconds(1));
  EXPECT_TRUE(clocks.Await(1, at_once, "worker:1"));
  EXPECT_TRUE(clocks.Await(2, at_once, "worker:2"));
  EXPECT_TRUE(clocks.Await(3, at_once, "worker:3"));
  for (int i = 0; i < 3; ++i) {
    clocks.Advance(1, "worker:1");
  }
  clocks.Advance(2, "worker:2");
  EXPECT_FALSE(clocks.Await(1, at_once));
  EXPECT_EQ(clocks.Slowest(1), "worker:3 is 3 steps behind this one");
  clocks.Pause(3);
  EXPECT_EQ(clocks.Slowest(1), "worker:2 is 2 steps behind this one");
  clocks.Retire(2);
  EXPECT_EQ(clocks.Slowest(1), "no worker is behind any more");
}

TEST(ClockTable, NobodyWaitsForWhatANewcomerHasMissed) {
  Clocks clocks(1);
  const Deadline never = DeadlineAfter(seconds(20));
  for (int i = 0; i < 100; ++i) {
    clocks.Advance(1);
  }
  clocks.Pause(1);
  EXPECT_TRUE(clocks.Await(2, never));  // comes while the other is between two pieces of work
  EXPECT_TRUE(clocks.Await(1, never));
  clocks.Advance(1);
  EXPECT_TRUE(clocks.Await(1, never));
  clocks.Advance(1);
  EXPECT_FALSE(clocks.Await(1, DeadlineAfter(microseconds(100))));
  // Pausing again and again is no way around the bound.
  clocks.Pause(1);
  EXPECT_FALSE(clocks.Await(1, DeadlineAfter(microseconds(100))));
}

// Its last push may still be at work when it is given up.
TEST(ClockTable, WhoWasRetiredDoesNotComeBackAndHoldOthersUp) {
  Clocks clocks(1);
  const Deadline never = DeadlineAfter(seconds(20));
  clocks.Advance(2);
  clocks.Retire(2);
  clocks.Advance(2);
  EXPECT_TRUE(clocks.Await(2, never)) << "its next frame is refused";
  for (int i = 0; i < 10; ++i) {
    clocks.Advance(1);
    EXPECT_TRUE(clocks.Await(1, never));
  }
  clocks.Advance(5);
  clocks.Retire(3, 6);
  clocks.Advance(5);
  clocks.Advance(1);
  EXPECT_TRUE(clocks.Await(1, never)) << "nor do those of a range";
}

// ---- Backup workers -----------------------------------------------------------------------------

// Workers take turns at random, one of them seldom. Whatever the order: every batch is applied
// once, with the first N - b parts, whose sums are the round's.
TEST(BackupWorkers, TheFirstPartsWinAndNobodyWaitsForTheLast) {
  constexpr int kWorkers = 4;
  constexpr int kBackup = 1;
  constexpr std::int64_t kBatches = 50;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const Philox random(seed);
    std::set<TaskId> tasks;
    for (int w = 0; w < kWorkers; ++w) {
      tasks.insert({TaskType::kWorker, w});
    }
    RoundTable table(0, tasks, kBackup);
    table.OpenEpoch({}, 0, kBatches);
    std::optional<RoundPart> held[kWorkers];
    bool over[kWorkers] = {};
    bool slow_finished_something = false;
    std::int64_t late = 0;
    std::map<std::uint64_t, RoundCommit> commits;
    std::map<std::uint64_t, std::set<int>> finished;  // parts, in time
    std::uint64_t turns = 0;
    while (std::count(over, over + kWorkers, true) < kWorkers) {
      ASSERT_LT(++turns, 100'000U) << "nobody goes on";
      const Philox::Block draw = random.At(turns);
      const int w = static_cast<int>(draw[0] % kWorkers);
      if (over[w] || (w == 3 && draw[1] % 8 != 0)) {
        continue;
      }
      const TaskId task{TaskType::kWorker, w};
      if (!held[w].has_value()) {
        RoundPart part;
        switch (table.Join(task, {}, &part)) {
          case RoundTable::Reply::kGo:
            ASSERT_EQ(part.parts, kWorkers);
            ASSERT_EQ(part.batch, static_cast<std::int64_t>(part.round) - 1);
            ASSERT_EQ(part.previous.round, part.round - 1)
                << "what values it is to be computed from";
            held[w] = part;
            break;
          case RoundTable::Reply::kOver:
            over[w] = true;
            break;
          case RoundTable::Reply::kWait:
            break;
        }
        continue;
      }
      const RoundPart part = *std::exchange(held[w], std::nullopt);
      if (!commits.contains(part.round)) {
        finished[part.round].insert(part.part);
        slow_finished_something = slow_finished_something || w == 3;
      } else {
        ++late;
      }
      RoundTotal total;
      const RoundTable::Reply reply = table.Finish(
          task, part.round, part.attempt,
          {.loss_sum = 0, .weight = static_cast<double>(1 << part.part), .metric_sums = {}},
          &total);
      if (reply == RoundTable::Reply::kWait) {
        held[w] = part;  // asks again
      } else if (reply == RoundTable::Reply::kGo) {
        ASSERT_EQ(total.commit.round, part.round);
        ASSERT_EQ(total.commit.winners.size(), static_cast<std::size_t>(kWorkers - kBackup));
        double weight = 0;
        for (const int winner : total.commit.winners) {
          EXPECT_TRUE(finished[part.round].contains(winner)) << "a winner that has not finished";
          weight += 1 << winner;
        }
        EXPECT_EQ(total.weight, weight);
        const auto [known, first] = commits.emplace(part.round, total.commit);
        EXPECT_TRUE(first || known->second == total.commit) << "two decisions on one round";
      }
    }
    EXPECT_EQ(table.applied({}), kBatches);
    EXPECT_EQ(table.dropped(), kBatches * kBackup);
    EXPECT_EQ(table.superseded(), 0);
    EXPECT_GT(late, 0);
    EXPECT_TRUE(slow_finished_something);
  }
}

TEST(BackupWorkers, ALostWorkerIsWhatTheyAreFor) {
  const TaskId a{TaskType::kWorker, 0};
  const TaskId b{TaskType::kWorker, 1};
  const TaskId c{TaskType::kWorker, 2};
  RoundTable table(0, {a, b, c}, 1);
  table.OpenEpoch({}, 0, 10);
  RoundPart part;
  for (const TaskId& task : {a, b, c}) {
    table.Join(task, {}, &part);
  }
  table.Leave(c);
  EXPECT_EQ(table.superseded(), 0) << "two of three parts are still to come";
  RoundTotal total;
  EXPECT_EQ(table.Finish(a, 1, 0, {.weight = 1}, &total), RoundTable::Reply::kWait);
  EXPECT_EQ(table.Finish(b, 1, 0, {.weight = 2}, &total), RoundTable::Reply::kGo);
  EXPECT_EQ(total.commit, (RoundCommit{.round = 1, .attempt = 0, .winners = {0, 1}}));
  EXPECT_EQ(total.weight, 3);
  // The next round is cut among those that are left.
  ASSERT_EQ(table.Join(a, {}, &part), RoundTable::Reply::kGo);
  EXPECT_EQ(part.parts, 2);
  EXPECT_EQ(table.Finish(a, 2, 0, {.weight = 1}, &total), RoundTable::Reply::kGo);
  EXPECT_EQ(total.commit.winners, std::vector<int>{0});
  // With too few left for a round it is cut anew.
  ASSERT_EQ(table.Join(a, {}, &part), RoundTable::Reply::kGo);
  table.Leave(a);
  EXPECT_EQ(table.superseded(), 0);
  ASSERT_EQ(table.Join(b, {}, &part), RoundTable::Reply::kGo);
  EXPECT_EQ(part.part, 1);
  EXPECT_EQ(table.Finish(b, 3, 0, {.weight = 1}, &total), RoundTable::Reply::kGo);
  EXPECT_EQ(total.commit.winners, std::vector<int>{1});
}

// Others need not wait for a worker that asks late, and may be rounds ahead when it does.
TEST(BackupWorkers, WhosePartCountsIsToldSoHoweverLateItAsks) {
  const TaskId a{TaskType::kWorker, 0};
  const TaskId b{TaskType::kWorker, 1};
  const TaskId c{TaskType::kWorker, 2};
  RoundTable table(0, {a, b, c}, 1);
  table.OpenEpoch({}, 0, 10);
  RoundPart part;
  RoundTotal total;
  for (const TaskId& task : {a, b, c}) {
    table.Join(task, {}, &part);
  }
  EXPECT_EQ(table.Finish(a, 1, 0, {.weight = 1}, &total), RoundTable::Reply::kWait);
  EXPECT_EQ(table.Finish(b, 1, 0, {.weight = 2}, &total), RoundTable::Reply::kGo);
  for (std::uint64_t round = 2; round <= 4; ++round) {
    for (const TaskId& task : {b, c}) {
      ASSERT_EQ(table.Join(task, {}, &part), RoundTable::Reply::kGo);
      ASSERT_EQ(part.round, round);
    }
    EXPECT_EQ(table.Finish(b, round, 0, {.weight = 4}, &total), RoundTable::Reply::kWait);
    EXPECT_EQ(table.Finish(c, round, 0, {.weight = 4}, &total), RoundTable::Reply::kGo);
    EXPECT_EQ(table.Finish(c, 1, 0, {.weight = 4}, &total), RoundTable::Reply::kOver)
        << "its part came too late";
    for (int repetition = 0; repetition < 2; ++repetition) {
      total = {};
      ASSERT_EQ(table.Finish(a, 1, 0, {.weight = 1}, &total), RoundTable::Reply::kGo);
      EXPECT_EQ(total.commit, (RoundCommit{.round = 1, .attempt = 0, .winners = {0, 1}}));
      EXPECT_EQ(total.weight, 3);
    }
  }
  EXPECT_EQ(table.Finish(a, 2, 0, {.weight = 1}, &total), RoundTable::Reply::kOver);
  // Another process in its place has no part in anything.
  table.Leave(a);
  EXPECT_EQ(table.Finish(a, 1, 0, {.weight = 1}, &total), RoundTable::Reply::kOver);
}

// Servers that were given values know of no parts that these came from.
TEST(BackupWorkers, ServersThatHaveGoneBackAreToldOfNoRoundBefore) {
  const TaskId a{TaskType::kWorker, 0};
  const TaskId b{TaskType::kWorker, 1};
  RoundTable table(0, {a, b}, 1);
  table.OpenEpoch({}, 0, 10);
  RoundPart part;
  RoundTotal total;
  for (const TaskId& task : {a, b}) {
    table.Join(task, {}, &part);
  }
  ASSERT_EQ(table.Finish(a, 1, 0, {.weight = 1}, &total), RoundTable::Reply::kGo);
  RoundTable saved(table.Keep(), 1);
  ASSERT_EQ(table.Join(a, {}, &part), RoundTable::Reply::kGo);
  EXPECT_EQ(part.previous.round, 1U);
  saved.Restart({a});
  ASSERT_EQ(saved.Join(a, {}, &part), RoundTable::Reply::kGo);
  EXPECT_EQ(part.round, 2U);
  EXPECT_EQ(part.previous, RoundCommit());
  EXPECT_EQ(saved.last_round(), 1U);
}

}  // namespace
}  // namespace cohort::ps
