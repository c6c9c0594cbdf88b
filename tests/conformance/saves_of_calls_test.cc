// Saves of a job whose chief calls functions, in one process: what is refused beside one, and disks
// that do not take it, or lose a part of it.
#include <cohort/core/file_system.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <cohort/strategies/coordinator.h>
#include <cohort/strategies/parameter_server.h>
#include <cohort/train/checkpoint_manager.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "conformance/parameter_server_job.h"
#include "testing/integer_model.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr std::chrono::minutes kPatience{1};
constexpr std::int64_t kExamples = 200;
constexpr std::int64_t kBatch = 10;

// Every example adds 1 to a parameter and to its own row.
ParameterSet Counts() {
  ParameterSet parameters;
  parameters.Add("count", {1}, {});
  parameters.AddTable({.name = "examples", .dim = 1, .buckets = 16});
  parameters.Build();
  return parameters;
}

std::unique_ptr<Optimizer> Adds() { return Sgd({.learning_rate = kBatch}); }

std::vector<std::uint64_t> IdsOf(const data::Batch& batch) {
  const std::int64_t* const id = batch["id"].data<std::int64_t>().data();
  return {id, id + batch.size};
}

Result<ReplicaResult> Count(ReplicaContext& context, const data::Batch& batch) {
  const std::vector<std::uint64_t> ids = IdsOf(batch);
  std::vector<float> rows(ids.size());
  COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, ids, /*training=*/true, rows));
  context.gradients.AddRows(0, ids, std::vector<float>(ids.size(), -1));
  context.gradients.Accumulator(0)[0] -= static_cast<float>(batch.size);
  context.gradients.Ready(0);
  return ReplicaResult{.loss_sum = 0, .weight = static_cast<double>(batch.size), .metric_sums = {}};
}

// The loss is the mean of the examples' rows, beside the count.
Result<ReplicaResult> Look(ReplicaContext& context, const data::Batch& batch) {
  const std::vector<std::uint64_t> ids = IdsOf(batch);
  std::vector<float> rows(ids.size());
  COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, ids, /*training=*/false, rows));
  ReplicaResult result{.loss_sum = 0, .weight = static_cast<double>(batch.size), .metric_sums = {}};
  for (const float row : rows) {
    result.loss_sum += row;
  }
  return result;
}

// A call of "train" is of one batch, with the number of its first example for an argument.
Status Work(const Job& job) {
  StrategyOptions options;
  options.consistency = OrThrow(Consistency::Parse("async"));
  COHORT_ASSIGN_OR_RETURN(const auto strategy, job.Make({TaskType::kWorker, 0}, options));
  ParameterSet parameters = Counts();
  COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Adds()));
  const data::Dataset data = IntegerData(kExamples, kBatch);
  Functions functions;
  functions.Add("train", [&](const std::string& text) -> Result<std::string> {
    const std::int64_t begin = std::stoll(text);
    COHORT_ASSIGN_OR_RETURN(const auto batches,
                            data.Iterate({.begin = begin, .end = begin + kBatch}));
    COHORT_ASSIGN_OR_RETURN(std::optional<data::Batch> batch, batches->Next());
    DistributedBatch alone;
    alone.replicas.push_back(*std::move(batch));
    COHORT_RETURN_IF_ERROR(strategy->Step(alone, Count).status());
    return text;
  });
  COHORT_RETURN_IF_ERROR(ServeFunctions(*strategy, functions));
  return strategy->Shutdown();
}

// A job of one worker and two servers, whose chief is the test.
class Chief {
 public:
  explicit Chief(milliseconds collective_timeout = std::chrono::minutes(2))
      : job_(1, 2, {}, {}, /*chief=*/true) {
    job_.Start();
    worker_ = std::async(std::launch::async, [this] { return Work(job_); });
    StrategyOptions options;
    options.consistency = OrThrow(Consistency::Parse("async"));
    options.communication.timeout = collective_timeout;
    strategy = OrThrow(job_.Make({TaskType::kChief, 0}, options));
    OrThrow(strategy->Bind(parameters, Adds()));
  }
  ~Chief() {
    if (coordinator == nullptr) {  // the worker waits for one
      Create();
    }
    coordinator.reset();
    EXPECT_EQ(strategy->Serve(), OkStatus());
    EXPECT_EQ(strategy->Shutdown(), OkStatus());
    EXPECT_EQ(worker_.get(), OkStatus());
    job_.Stop();
  }
  Chief(const Chief&) = delete;
  Chief& operator=(const Chief&) = delete;

  void Create() { coordinator = OrThrow(Coordinator::Create(*strategy)); }
  // The next so many batches.
  void Train(int calls) {
    for (int call = 0; call < calls; ++call, next_ += kBatch) {
      OrThrow(coordinator->Schedule("train", std::to_string(next_)).status());
    }
    OrThrow(coordinator->Join(DeadlineAfter(kPatience)));
  }
  float Counted() {
    OrThrow(strategy->PullState());
    return parameters.value(0)[0];
  }

 private:
  ParameterSet made_ = Counts();
  Job job_;
  std::future<Status> worker_;
  std::int64_t next_ = 0;

 public:
  ParameterSet& parameters = made_;
  std::unique_ptr<ParameterServerStrategy> strategy;
  std::unique_ptr<Coordinator> coordinator;
};

// ---- Beside a save ------------------------------------------------------------------------------

TEST(SavesOfCalls, WhatHasNotTheSnapshotIsRefusedInTheSavesFunction) {
  Chief chief;
  chief.Create();
  chief.Train(2);
  const auto evaluation =
      OrThrow(chief.strategy->Distribute(IntegerData(kExamples, kBatch), {.evaluation = true}));
  OrThrow(evaluation->BeginEpoch(0));
  const auto batch = OrThrow(evaluation->Next());
  std::vector<Status> refused;
  float counted = 0;
  const auto save = [&](std::int64_t calls) -> Status {
    EXPECT_EQ(calls, 2);
    refused = {
        evaluation->BeginEpoch(1), chief.strategy->Evaluate(*batch, Look).status(),
        chief.strategy->PushState(), chief.strategy->LoadTable(0, FileSystem::Local(), {"rows"}),
        chief.coordinator->Save([](std::int64_t) { return OkStatus(); }, DeadlineAfter(kPatience))};
    counted = chief.Counted();
    return {};
  };
  OrThrow(chief.coordinator->Save(save, DeadlineAfter(kPatience)));
  ASSERT_EQ(refused.size(), 5U);
  for (const Status& status : refused) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("in the function that Coordinator::Save was given"));
  }
  EXPECT_EQ(counted, 2 * kBatch) << "PullState is there";
  OrThrow(evaluation->BeginEpoch(0));  // whose first batches are those of the calls
  EXPECT_EQ(OrThrow(chief.strategy->Evaluate(*OrThrow(evaluation->Next()), Look)).loss, 1);
  OrThrow(chief.strategy->PushState());
  chief.Train(1);
  EXPECT_EQ(chief.Counted(), 3 * kBatch);
}

TEST(SavesOfCalls, OtherThreadsWaitForOneUntilTheirDeadline) {
  Chief chief(std::chrono::seconds(3));
  chief.Create();
  chief.Train(1);
  Status pulled;
  Status saved;
  const auto nothing = [](std::int64_t) { return OkStatus(); };
  const auto save = [&](std::int64_t) -> Status {
    std::async(std::launch::async, [&] {
      pulled = chief.strategy->PullState();
      saved = chief.coordinator->Save(nothing, DeadlineAfter(milliseconds(0)));
    }).get();
    return {};
  };
  OrThrow(chief.coordinator->Save(save, DeadlineAfter(kPatience)));
  EXPECT_EQ(pulled.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(pulled.message(), HasSubstr("PullState at its deadline: another thread saves"));
  EXPECT_EQ(saved.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(saved.message(), HasSubstr("Save at its deadline: another thread saves"));
  OrThrow(chief.strategy->PullState());
}

TEST(SavesOfCalls, AnErrorOfTheFunctionIsTheSavesAndEndsNothing) {
  Chief chief;
  chief.Create();
  chief.Train(1);
  const auto save = [&](const std::function<Status()>& what) {
    return chief.coordinator->Save([&](std::int64_t) { return what(); }, DeadlineAfter(kPatience));
  };
  EXPECT_EQ(save([] { return Unavailable("nfs: server is away"); }),
            Unavailable("nfs: server is away"));
  EXPECT_EQ(save([]() -> Status { throw StatusError(DataLoss("bad block")); }),
            DataLoss("bad block"));
  EXPECT_EQ(save([]() -> Status { throw 7; }).code(), StatusCode::kInternal);
  EXPECT_EQ(save([] { return OkStatus(); }), OkStatus());
  chief.Train(1);
  EXPECT_EQ(chief.Counted(), 2 * kBatch);
}

// ---- Disks --------------------------------------------------------------------------------------

// Files of this process are no longer than that, until it is gone.
class ShortFiles {
 public:
  explicit ShortFiles(rlim_t bytes) : before_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &limit_);
    const rlimit less{.rlim_cur = bytes, .rlim_max = limit_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &less);
  }
  ~ShortFiles() {
    ::setrlimit(RLIMIT_FSIZE, &limit_);
    std::signal(SIGXFSZ, before_);
  }
  ShortFiles(const ShortFiles&) = delete;
  ShortFiles& operator=(const ShortFiles&) = delete;

 private:
  void (*before_)(int);
  rlimit limit_{};
};

Result<std::string> SaveTo(CheckpointManager& saves, Chief& chief,
                           const std::function<void()>& before = {}) {
  const auto program = [&](std::int64_t calls) {
    if (before) {
      before();
    }
    return std::to_string(calls) + " calls" + std::string(8192, '.');
  };
  return saves.Save(*chief.coordinator, program, DeadlineAfter(kPatience));
}

// What the program had stored, where another job goes on.
Result<std::string> RestoredFrom(const std::string& folder, float* counted) {
  Chief chief;
  CheckpointManager saves(*chief.strategy, chief.parameters, {.folder = folder});
  COHORT_ASSIGN_OR_RETURN(const std::optional<std::string> program, saves.Restore());
  chief.Create();
  *counted = chief.Counted();
  return program.has_value() ? program->substr(0, program->find('.')) : "nothing";
}

TEST(SavesOfCalls, AFolderThatIsAFileOrAbsentIsRefusedBeforeTheJobBegins) {
  const TempDir folder;
  const std::string file = folder / "file";
  std::ofstream(file) << "no folder";
  Chief chief;
  for (const std::string& path : {file, file + "/below"}) {
    CheckpointManager saves(*chief.strategy, chief.parameters, {.folder = path});
    const Status status = saves.Restore().status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.message(), HasSubstr("the checkpoint folder cannot be written to"));
  }
  chief.Create();
  chief.Train(1);
}

TEST(SavesOfCalls, ADiskThatDoesNotTakeOneCostsThatSaveAndTheNextOneCounts) {
  const TempDir dir;
  const std::string folder = dir / "saves";
  const std::string away = dir / "away";
  {
    Chief chief;
    CheckpointManager saves(*chief.strategy, chief.parameters, {.folder = folder});
    EXPECT_FALSE(OrThrow(saves.Restore()).has_value());
    chief.Create();
    chief.Train(1);
    OrThrow(SaveTo(saves, chief).status());
    chief.Train(1);
    // The folder is gone, and a file in its place.
    const Status lost = SaveTo(saves, chief, [&] {
                          std::filesystem::rename(folder, away);
                          std::ofstream(folder) << "no folder";
                        }).status();
    EXPECT_FALSE(lost.ok());
    EXPECT_THAT(lost.message(), HasSubstr("checkpoint in " + folder));
    std::filesystem::remove(folder);
    std::filesystem::rename(away, folder);
    // As one that is full.
    std::optional<ShortFiles> full;
    const Status refused = SaveTo(saves, chief, [&] { full.emplace(64); }).status();
    full.reset();
    EXPECT_FALSE(refused.ok());
    EXPECT_THAT(refused.message(), HasSubstr("checkpoint in " + folder));
    // Neither is in its way.
    chief.Train(1);
    EXPECT_TRUE(std::filesystem::exists(OrThrow(SaveTo(saves, chief))));
    chief.Train(1);
    EXPECT_EQ(chief.Counted(), 4 * kBatch);
  }
  float counted = 0;
  EXPECT_EQ(OrThrow(RestoredFrom(folder, &counted)), "3 calls");
  EXPECT_EQ(counted, 3 * kBatch);
}

void TruncateLargest(const std::string& checkpoint) {
  std::filesystem::path largest;
  std::uintmax_t most = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(checkpoint)) {
    if (entry.is_regular_file() && entry.file_size() > most) {
      most = entry.file_size();
      largest = entry.path();
    }
  }
  ASSERT_GT(most, 1U) << checkpoint;
  std::filesystem::resize_file(largest, most / 2);
}

TEST(SavesOfCalls, AJobGoesOnFromTheNewestOneThatIsWhole) {
  const TempDir folder;
  std::vector<std::string> paths;
  {
    Chief chief;
    CheckpointManager saves(*chief.strategy, chief.parameters, {.folder = folder.path()});
    OrThrow(saves.Restore().status());
    chief.Create();
    for (int save = 0; save < 2; ++save) {
      chief.Train(2);
      paths.push_back(OrThrow(SaveTo(saves, chief)));
    }
  }
  float counted = 0;
  EXPECT_EQ(OrThrow(RestoredFrom(folder.path(), &counted)), "4 calls");
  EXPECT_EQ(counted, 4 * kBatch);
  TruncateLargest(paths[1]);
  EXPECT_EQ(OrThrow(RestoredFrom(folder.path(), &counted)), "2 calls");
  EXPECT_EQ(counted, 2 * kBatch);
  TruncateLargest(paths[0]);
  Chief chief;
  CheckpointManager saves(*chief.strategy, chief.parameters, {.folder = folder.path()});
  const Status status = saves.Restore().status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr(folder.path()));
}

}  // namespace
}  // namespace cohort::testing
