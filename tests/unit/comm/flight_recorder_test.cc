#include "flight_recorder.h"

#include <cohort/comm/local.h>
#include <cohort/comm/tcp.h>
#include <gmock/gmock.h>

#include <chrono>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <thread>

#include "testing/memory_store.h"
#include "testing/run_ranks.h"
#include "testing/temp_dir.h"

namespace cohort {
namespace {

using ::testing::HasSubstr;

OperationRecord Named(const std::string& name, std::int64_t count) {
  return {
      .kind = OperationKind::kAllReduce, .dtype = DType::kFloat32, .count = count, .name = name};
}

TEST(FlightRecorder, KeepsTheLastOperationsAndHowFarTheyCame) {
  FlightRecorder recorder;
  EXPECT_FALSE(recorder.Last());
  const Deadline now = std::chrono::steady_clock::now();
  constexpr std::uint64_t kCount = FlightRecorder::kOperations + 200;
  for (std::uint64_t i = 1; i <= kCount; ++i) {
    OperationRecord record = Named("bucket " + std::to_string(i), static_cast<std::int64_t>(i));
    EXPECT_EQ(recorder.Queued(record, now), i);
    if (i < kCount) {
      record.sequence = i;
      recorder.Started(i, record, now);
    }
    if (i < kCount - 1) {
      recorder.Ended(i, i % 2 == 0, now);
    }
  }
  const std::vector<FlightEntry> entries = recorder.Entries();
  ASSERT_EQ(entries.size(), FlightRecorder::kOperations);
  EXPECT_EQ(entries.front().index, 201U);
  EXPECT_EQ(entries.front().record.name, "bucket 201");
  EXPECT_EQ(entries.front().record.count, 201);
  EXPECT_EQ(entries.front().state, FlightState::kFailed);
  EXPECT_EQ(entries[1].state, FlightState::kDone);
  EXPECT_EQ(entries[kCount - 202].state, FlightState::kStarted);
  EXPECT_EQ(entries.back().state, FlightState::kQueued);
  ASSERT_TRUE(recorder.Last());
  EXPECT_EQ(recorder.Last()->record.sequence, kCount - 1);
  recorder.Ended(1, true, now);  // long overwritten: no trace of it
  EXPECT_EQ(recorder.Entries().front().state, FlightState::kFailed);
}

// In a slot that had a longer name, a pair's number and an end.
TEST(FlightRecorder, AnOperationMayBeginAsItIsCalled) {
  FlightRecorder recorder;
  const Deadline now = std::chrono::steady_clock::now();
  for (std::size_t i = 1; i <= FlightRecorder::kOperations; ++i) {
    OperationRecord record = Named("a longer name than the next", 1);
    record.pair_sequence = 9;
    const std::uint64_t index = recorder.Queued(record, now);
    recorder.Started(index, record, now);
    recorder.Ended(index, true, now);
  }
  OperationRecord record = Named("short", 5);
  record.sequence = 77;
  record.generation = 3;
  const std::uint64_t index = recorder.Begun(record, now);
  EXPECT_EQ(index, FlightRecorder::kOperations + 1);
  std::optional<FlightEntry> last = recorder.Last();
  ASSERT_TRUE(last);
  EXPECT_EQ(last->index, index);
  EXPECT_EQ(last->record.name, "short");
  EXPECT_EQ(last->record.count, 5);
  EXPECT_EQ(last->record.sequence, 77U);
  EXPECT_EQ(last->record.pair_sequence, 0U);
  EXPECT_EQ(last->record.generation, 3U);
  EXPECT_EQ(last->state, FlightState::kStarted);
  EXPECT_EQ(last->queued, now);
  EXPECT_EQ(last->started, now);
  EXPECT_EQ(last->ended, Deadline());
  recorder.Ended(index, false, now);
  last = recorder.Last();
  ASSERT_TRUE(last);
  EXPECT_EQ(last->state, FlightState::kFailed);
  EXPECT_EQ(last->ended, now);
}

TEST(FlightRecorder, LongAndStrangeNamesAreDumpedAsJson) {
  FlightRecorder recorder;
  const Deadline now = std::chrono::steady_clock::now();
  recorder.Queued(Named(std::string(100, 'x'), 3), now);
  recorder.Queued(Named("a\"\n\xff", 3), now);
  recorder.Queued(Named("", 3), now);
  const std::string dump =
      FlightDump({"group/1", "worker:0", "local", 0, 2, 7, "test", OkStatus()}, recorder);
  EXPECT_THAT(dump, HasSubstr("\"name\": \"" + std::string(64, 'x') + "\""));
  EXPECT_THAT(dump, HasSubstr("a\\\"\\u000a\\u00ff"));
  EXPECT_THAT(dump, HasSubstr("\"name\": \"\""));
  EXPECT_THAT(dump, HasSubstr("\"generation\": 7"));
  EXPECT_THAT(dump, HasSubstr("{\"end\": 3}\n"));
  EXPECT_EQ(FlightFileName({"group/1", "", "", 4, 5, 7, "", OkStatus()}), "group_1.g7.rank4.jsonl");
}

// What is read is whole, whatever is written meanwhile.
TEST(FlightRecorder, IsReadWhileItIsWritten) {
  FlightRecorder recorder;
  std::jthread writer([&](const std::stop_token& stop) {
    const Deadline now = std::chrono::steady_clock::now();
    for (std::int64_t i = 1; !stop.stop_requested(); ++i) {
      OperationRecord record = Named(std::to_string(i), i);
      const std::uint64_t index = recorder.Queued(record, now);
      record.sequence = static_cast<std::uint64_t>(i);
      recorder.Started(index, record, now);
      recorder.Ended(index, true, now);
    }
  });
  std::size_t read = 0;
  while (read < 200'000) {
    for (const FlightEntry& entry : recorder.Entries()) {
      ASSERT_EQ(entry.record.name, std::to_string(entry.index));
      ASSERT_EQ(entry.record.count, static_cast<std::int64_t>(entry.index));
      ++read;
    }
  }
}

// What `comm` dumps now of the operation of that name.
nlohmann::json Dumped(const Communicator& comm, const std::string& name) {
  std::ifstream file(OrThrow(comm.DumpFlightRecord("asked for")));
  for (std::string line; std::getline(file, line);) {
    if (auto entry = nlohmann::json::parse(line); entry.value("name", "") == name) {
      return entry;
    }
  }
  return {};
}

std::int64_t WallMicroseconds() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Rank 1 comes late to an operation, and never to the next. Rank 0's record says that these have
// begun, and has their ends once they come.
TEST(FlightRecord, TellsWhenAnOperationEndedWhosePeerWasLate) {
  constexpr std::int64_t kSlack = 1000;  // us: two clocks are read for a time
  constexpr std::chrono::milliseconds kLate{30};
  constexpr std::chrono::milliseconds kTimeout{100};
  constexpr std::chrono::seconds kPatience{20};
  for (const std::string transport : {"local", "tcp"}) {
    for (const std::size_t count : {10UL, 1UL << 20}) {
      SCOPED_TRACE(transport + " " + std::to_string(count));
      const testing::TempDir folder;
      CommunicatorOptions options;
      options.flight_folder = folder.path();
      auto local = MakeLocalCommunicators(2, options);
      testing::MemoryStore store;
      std::promise<void> looked;
      std::promise<void> given_up;
      testing::ExpectAllOk(testing::RunRanks(2, [&](int rank) -> Status {
        Result<std::unique_ptr<Communicator>> made =
            transport == "local" ? std::move(local[static_cast<std::size_t>(rank)])
                                 : MakeTcpCommunicator(rank, 2, store, "job", {}, options);
        COHORT_RETURN_IF_ERROR(made.status());
        Communicator& comm = **made;
        std::vector<float> values(count);
        if (rank == 1) {
          looked.get_future().wait_for(kPatience);
          std::this_thread::sleep_for(kLate);  // it is late
        }
        const std::int64_t called = WallMicroseconds();
        COHORT_ASSIGN_OR_RETURN(
            const auto work, comm.AllReduce(std::span(values), ReduceOp::kSum, {.name = "late"}));
        nlohmann::json before;
        if (rank == 0) {
          const Deadline until = DeadlineAfter(kPatience);
          while (!comm.progress().under_way && std::chrono::steady_clock::now() < until) {
            std::this_thread::yield();
          }
          before = Dumped(comm, "late");
          EXPECT_EQ(before["state"], "started");
          EXPECT_FALSE(before.contains("ended_us"));
          looked.set_value();
        }
        COHORT_RETURN_IF_ERROR(work->Wait());
        const std::int64_t returned = WallMicroseconds();
        const nlohmann::json after = Dumped(comm, "late");
        EXPECT_EQ(after["state"], "done");
        const std::int64_t started = after["started_us"];
        const std::int64_t ended = after["ended_us"];
        EXPECT_GE(started, called - kSlack);
        EXPECT_LE(ended, returned + kSlack);
        EXPECT_LE(started, ended);
        if (rank == 0) {
          EXPECT_NEAR(started, before["started_us"].get<std::int64_t>(), kSlack);
          EXPECT_GE(ended - started, std::chrono::microseconds(kLate).count() - kSlack);
          const Result<std::unique_ptr<Work>> alone = comm.AllReduce(
              std::span(values), ReduceOp::kSum, {.name = "alone", .timeout = kTimeout});
          COHORT_RETURN_IF_ERROR(alone.status());
          EXPECT_EQ((*alone)->Wait().code(), StatusCode::kDeadlineExceeded);
          const nlohmann::json failed = Dumped(comm, "alone");
          EXPECT_EQ(failed["state"], "failed");
          EXPECT_GE(
              failed["ended_us"].get<std::int64_t>() - failed["started_us"].get<std::int64_t>(),
              std::chrono::microseconds(kTimeout).count() - kSlack);
          EXPECT_LE(failed["ended_us"].get<std::int64_t>(), WallMicroseconds() + kSlack);
          given_up.set_value();
        } else {
          given_up.get_future().wait_for(kPatience);
          EXPECT_TRUE(Dumped(comm, "alone").is_null());
        }
        return {};
      }));
    }
  }
}

}  // namespace
}  // namespace cohort
