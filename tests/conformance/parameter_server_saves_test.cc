// Saves of parameter-server jobs in the middle of training, and what goes on from them.
#include <cohort/core/file_system.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/parameter_server.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <future>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "conformance/parameter_server_job.h"
#include "testing/integer_model.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

struct Saved {
  std::int64_t epoch = 0;
  std::int64_t batch = 0;
  std::int64_t step = 0;
  std::vector<float> values;
  std::vector<std::vector<float>> slots;
  std::uint64_t failed_saves = 0;  // of the end
};

constexpr std::int64_t kSaveExamples = 203;
constexpr std::int64_t kSaveBatch = 10;
constexpr std::int64_t kSaveBatches = 21;
constexpr int kSaveEpochs = 3;

Saved StateOf(Strategy& strategy, const ParameterSet& parameters) {
  OrThrow(strategy.PullState());
  Saved state{.step = strategy.step(),
              .values = {parameters.all().begin(), parameters.all().end()}};
  for (const std::span<float> slot : strategy.slots()) {
    state.slots.emplace_back(slot.begin(), slot.end());
  }
  return state;
}

void ExpectNoTables(Strategy& strategy) {
  EXPECT_EQ(strategy.rows_saved_at(), std::nullopt);
  for (const int table : {-1, 0}) {
    EXPECT_EQ(strategy.SaveTable(table, FileSystem::Local(), "rows").code(),
              StatusCode::kInvalidArgument);
    EXPECT_EQ(strategy.SaveTableChanges(table, FileSystem::Local(), "rows").code(),
              StatusCode::kInvalidArgument);
    EXPECT_EQ(strategy.LoadTable(table, FileSystem::Local(), {"rows"}).code(),
              StatusCode::kInvalidArgument);
  }
}

// Trains three epochs, from `from` on if that is given. Returns the saves, and the end's state
// last.
std::vector<Saved> TrainAndSave(int workers, int servers, const std::string& consistency,
                                std::int64_t every_steps, const Saved* from, double clip = 0,
                                const std::function<Status(std::int64_t epoch)>& disk = {},
                                const std::string& partitioner = "pieces") {
  Job job(workers, servers, OrThrow(Partitioner::Parse(partitioner)));
  job.Start();
  std::vector<Saved> saves;
  const data::Dataset dataset = IntegerData(kSaveExamples, kSaveBatch);
  std::vector<std::future<void>> running;
  for (int w = 0; w < workers; ++w) {
    running.push_back(std::async(std::launch::async, [&, w] {
      StrategyOptions options;
      options.consistency = OrThrow(Consistency::Parse(consistency));
      const auto strategy = OrThrow(job.Make({TaskType::kWorker, w}, options));
      ParameterSet parameters = IntegerParameters();
      OrThrow(strategy->Bind(
          parameters, Sgd({.learning_rate = 0.0625, .momentum = 0.5, .global_clip_norm = clip})));
      if (from != nullptr && strategy->is_chief()) {
        std::copy(from->values.begin(), from->values.end(), parameters.all().begin());
        for (std::size_t s = 0; s < from->slots.size(); ++s) {
          std::copy(from->slots[s].begin(), from->slots[s].end(), strategy->slots()[s].begin());
        }
        OrThrow(strategy->SetStep(from->step));
        OrThrow(strategy->PushState());
      }
      for (const auto policy : {data::ShardPolicy::kFile, data::ShardPolicy::kOff,
                                data::ShardPolicy::kHint, data::ShardPolicy::kOwn}) {
        EXPECT_EQ(strategy->Distribute(dataset, {.policy = policy}).status().code(),
                  StatusCode::kInvalidArgument);
      }
      ASSERT_TRUE(strategy->SaveBetweenUpdates(
          {.every_steps = every_steps, .save = [&](std::int64_t epoch, std::int64_t batch) {
             Saved state = StateOf(*strategy, parameters);
             ExpectNoTables(*strategy);
             COHORT_RETURN_IF_ERROR(disk ? disk(epoch) : OkStatus());
             state.epoch = epoch;
             state.batch = batch;
             saves.push_back(std::move(state));
             return OkStatus();
           }}));
      const auto data = OrThrow(strategy->Distribute(dataset));
      const std::int64_t first = from == nullptr ? 0 : from->epoch;
      for (std::int64_t epoch = first; epoch < kSaveEpochs; ++epoch) {
        OrThrow(data->BeginEpoch(epoch, from != nullptr && epoch == first ? from->batch : 0));
        while (const auto batch = OrThrow(data->Next())) {
          OrThrow(strategy->Step(*batch, IntegerStep()).status());
        }
      }
      if (strategy->is_chief()) {
        saves.push_back(StateOf(*strategy, parameters));
        saves.back().failed_saves = OrThrow(strategy->stats()).failed_saves;
        saves.back().epoch = kSaveEpochs;
      }
      OrThrow(strategy->Shutdown());
    }));
  }
  for (std::future<void>& worker : running) {
    worker.get();
  }
  job.Stop();
  return saves;
}

TEST(SavesOfParameterServers, ASaveIsAPointBetweenTwoUpdates) {
  for (const auto& [consistency, clip] : {std::pair("async", 0.0),
                                          {"ssp:1", 0.0},
                                          {"sync", 0.0},
                                          {"sync", 3.0},
                                          {"sync:1", 0.0},
                                          {"sync:1", 3.0}}) {
    const std::vector<Saved> saves = TrainAndSave(3, 2, consistency, 6, nullptr, clip);
    EXPECT_GT(saves.size(), 3U) << consistency;
    for (const Saved& save : saves) {
      const bool end = &save == &saves.back();
      EXPECT_EQ(save.step,
                end ? kSaveEpochs * kSaveBatches : save.epoch * kSaveBatches + save.batch)
          << consistency << " " << clip << ": as many updates as there are batches before it";
    }
  }
}

// F13: a disk that is full for a while. The newest whole save counts, training goes on.
TEST(SavesOfParameterServers, ASaveThatFailsEndsNothing) {
  // The last three are those of lost processes, too: of an NFS server, or of S3.
  const std::vector<Status> errors = {ResourceExhausted("write part-0: no space left on device"),
                                      DeadlineExceeded("write part-0: connection timed out"),
                                      Unavailable("PUT part-0: 503"), Aborted("PUT part-0: 409")};
  std::size_t failed = 0;
  const std::vector<Saved> saves =
      TrainAndSave(2, 2, "sync", 3, nullptr, 0, [&](std::int64_t epoch) {
        return epoch == 1 ? errors[failed++ % errors.size()] : OkStatus();
      });
  EXPECT_GE(failed, errors.size());
  EXPECT_EQ(saves.back().failed_saves, failed);
  EXPECT_EQ(saves.back().step, kSaveEpochs * kSaveBatches);
  std::set<std::int64_t> epochs;
  for (const Saved& save : saves) {
    epochs.insert(save.epoch);
  }
  EXPECT_TRUE(epochs.contains(2)) << "it saves again when there is room";
  EXPECT_FALSE(epochs.contains(1));
}

// What one thread waits for that another does; with a deadline.
class Events {
 public:
  void Do(const std::function<void()>& fn) {
    {
      const std::lock_guard lock(mutex_);
      fn();
    }
    changed_.notify_all();
  }
  Status Await(const std::function<bool()>& done) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), done)
               ? OkStatus()
               : DeadlineExceeded("the other thread");
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

// The chief's journal, in the place of which there is a folder for a while: the way back to a save
// that has failed cannot be taken out of it, and that to the next one not be written.
TEST(SavesOfParameterServers, AJournalThatCannotBeWrittenForAWhileEndsNothing) {
  const TempDir folder;
  const std::string journal = folder / "chief.journal";
  StrategyOptions options;
  options.consistency = OrThrow(Consistency::Parse("sync"));
  options.journal_folder = folder.path();
  StrategyOptions of_chief = options;
  Job job(1, 1, {}, options, /*chief=*/true);
  job.Start();
  Events events;
  int tried = 0;  // saves
  const data::Dataset dataset = IntegerData(kSaveExamples, kSaveBatch);
  auto worker = std::async(std::launch::async, [&] {
    const auto strategy = OrThrow(job.Make({TaskType::kWorker, 0}, options));
    ParameterSet parameters = IntegerParameters();
    OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = 0.0625})));
    const auto data = OrThrow(strategy->Distribute(dataset));
    OrThrow(data->BeginEpoch(0));
    for (int steps = 0;; ++steps) {
      OrThrow(events.Await([&] { return tried >= steps / 3; }));
      const auto batch = OrThrow(data->Next());
      if (!batch.has_value()) {
        break;
      }
      OrThrow(strategy->Step(*batch, IntegerStep()).status());
    }
    OrThrow(strategy->Shutdown());
  });
  std::vector<int> saved;
  of_chief.log = Log([&](LogLevel /*level*/, std::string_view text) {
    if (text.find("has failed, training goes on") != std::string_view::npos) {
      if (tried == 2) {
        std::filesystem::remove(journal);
        std::filesystem::rename(journal + ".aside", journal);
      }
      events.Do([&] { ++tried; });
    }
  });
  const auto strategy = OrThrow(job.Make({TaskType::kChief, 0}, of_chief));
  ParameterSet parameters = IntegerParameters();
  OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = 0.0625})));
  ASSERT_TRUE(strategy->SaveBetweenUpdates(
      {.every_steps = 3,
       .save = [&](std::int64_t /*epoch*/, std::int64_t /*batch*/) -> Status {
         if (tried == 1) {
           std::filesystem::rename(journal, journal + ".aside");
           std::filesystem::create_directory(journal);
           return ResourceExhausted("write part-0: no space left on device");
         }
         saved.push_back(tried);
         events.Do([&] { ++tried; });
         return {};
       },
       .restore = [] { return Result<std::int64_t>(NotFound("")); }}));
  OrThrow(strategy->Distribute(dataset).status());
  EXPECT_EQ(strategy->Serve(), OkStatus());
  EXPECT_EQ(OrThrow(strategy->stats()).failed_saves, 2U) << "the third could not be noted";
  EXPECT_EQ(saved, (std::vector<int>{0, 3, 4, 5, 6}));
  EXPECT_EQ(strategy->step(), kSaveBatches);
  // Nor can it be removed at first. Called again, the shutdown does what is left.
  std::filesystem::rename(journal, journal + ".aside");
  OrThrow(WriteFileAtomically(FileSystem::Local(), journal, "no journal"));
  EXPECT_EQ(strategy->Shutdown().code(), StatusCode::kDataLoss);
  std::filesystem::rename(journal + ".aside", journal);
  EXPECT_EQ(strategy->Shutdown(), OkStatus());
  worker.get();
  job.Stop();
  EXPECT_FALSE(std::filesystem::exists(journal));
}

// worker:0 saves where there is no chief; what others have made meanwhile is in what it trains on.
TEST(SavesOfParameterServers, WorkerZeroGoesOnFromTheValuesAfterTheSave) {
  constexpr int kMeanwhile = 5;
  Job job(2, 2);
  job.Start();
  Events events;
  bool saving = false;
  bool went_on = false;  // worker:0 has made a step since
  int others = 0;        // steps that worker:1 has begun
  std::int64_t staleness = -1;
  const data::Dataset dataset = IntegerData(2030, 10);
  const auto run = [&](int w) {
    const auto strategy = OrThrow(job.Make({TaskType::kWorker, w}, {}));
    ParameterSet parameters = IntegerParameters();
    OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = 0.0625})));
    ASSERT_TRUE(strategy->SaveBetweenUpdates(
        {.every_steps = 1, .save = [&](std::int64_t /*epoch*/, std::int64_t /*batch*/) -> Status {
           COHORT_RETURN_IF_ERROR(strategy->PullState());
           events.Do([&] { saving = true; });
           return events.Await([&] { return others > kMeanwhile; });
         }}));
    const auto data = OrThrow(strategy->Distribute(dataset));
    if (w == 1) {
      OrThrow(events.Await([&] { return saving; }));
    }
    const StepFn integers = IntegerStep();
    const StepFn step = [&](ReplicaContext& context,
                            const data::Batch& batch) -> Result<ReplicaResult> {
      if (w == 1) {
        events.Do([&] { ++others; });
        COHORT_RETURN_IF_ERROR(events.Await([&] { return others <= kMeanwhile || went_on; }));
      }
      return integers(context, batch);
    };
    OrThrow(data->BeginEpoch(0));
    while (const auto batch = OrThrow(data->Next())) {
      const StepResult result = OrThrow(strategy->Step(*batch, step));
      if (w == 0 && saving && !went_on) {
        staleness = result.staleness;
        events.Do([&] { went_on = true; });
      }
    }
    OrThrow(strategy->Shutdown());
  };
  auto other = std::async(std::launch::async, run, 1);
  run(0);
  other.get();
  job.Stop();
  EXPECT_EQ(staleness, 0) << "nobody has moved the values since the save";
}

TEST(SavesOfParameterServers, AResumedJobEndsWithTheBitsOfOneThatWentOn) {
  const std::vector<Saved> saves = TrainAndSave(2, 2, "sync", 10, nullptr);
  ASSERT_GT(saves.size(), 2U);
  for (const std::size_t from : {std::size_t{0}, saves.size() / 2}) {
    // On another number of servers.
    const std::vector<Saved> again = TrainAndSave(2, 3, "sync", 0, &saves[from]);
    ASSERT_EQ(again.size(), 1U);
    EXPECT_EQ(again.back().values, saves.back().values) << "from save " << from;
    EXPECT_EQ(again.back().slots, saves.back().slots);
    EXPECT_EQ(again.back().step, saves.back().step);
  }
}

// Neither values nor saves depend on how parameters are cut, or among how many servers.
TEST(SavesOfParameterServers, AnyPartitionerAndNumberOfServersGivesTheSameBits) {
  const std::vector<Saved> whole = TrainAndSave(2, 1, "sync", 10, nullptr);
  ASSERT_GT(whole.size(), 2U);
  int servers = 2;
  for (const char* partitioner : {"fixed:3", "min:8:5", "max:4"}) {
    const std::vector<Saved> cut =
        TrainAndSave(2, servers, "sync", 10, nullptr, 0, {}, partitioner);
    EXPECT_EQ(cut.back().values, whole.back().values) << partitioner;
    EXPECT_EQ(cut.back().slots, whole.back().slots) << partitioner;
    const std::vector<Saved> again =
        TrainAndSave(2, 5 - servers, "sync", 0, &whole[whole.size() / 2], 0, {}, partitioner);
    EXPECT_EQ(again.back().values, whole.back().values) << partitioner;
    EXPECT_EQ(again.back().slots, whole.back().slots) << partitioner;
    servers = 5 - servers;
  }
}

}  // namespace
}  // namespace cohort::testing
