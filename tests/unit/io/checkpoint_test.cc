#include <cohort/io/checkpoint.h>
#include <cohort/io/crc32c.h>
#include <cohort/io/safetensors.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <sstream>

#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::io {
namespace {

namespace fs = std::filesystem;
using testing::FaultyFileSystem;

// Two tensors and one slot each, told apart by step.
struct Model {
  explicit Model(float mark = 0)
      : w(6, mark), b(1, mark + 0.25F), w_m(6, mark + 0.5F), b_m(1, mark + 0.75F) {}
  std::vector<CheckpointSource> sources() const { return {{"w", {2, 3}, w}, {"b", {}, b}}; }
  std::vector<CheckpointSource> slots() const { return {{"w/m", {2, 3}, w_m}, {"b/m", {}, b_m}}; }
  Status Read(const Checkpoint& from) {
    const std::vector<CheckpointTarget> model = {{"b", {}, b}, {"w", {2, 3}, w}};
    const std::vector<CheckpointTarget> optimizer = {{"w/m", {2, 3}, w_m}, {"b/m", {}, b_m}};
    COHORT_RETURN_IF_ERROR(from.Read(CheckpointPart::kModel, model));
    return from.Read(CheckpointPart::kOptimizer, optimizer);
  }
  friend bool operator==(const Model&, const Model&) = default;

  std::vector<float> w, b, w_m, b_m;
};

CheckpointState StateAt(std::int64_t step) {
  return {.step = step,
          .epoch = step / 10,
          .batch = step % 10,
          .seed = 0xfedcba9876543210U,
          .dataset_fingerprint = 0xffffffffffffff01U,
          .data_position = "epoch 1 example 20 of 7",
          .optimizer = R"({"name":"adam"})",
          .strategy = "mirrored",
          .world_size = 3,
          .user = {{"note", "line\n\"two\""}}};
}

class CheckpointTest : public ::testing::Test {
 protected:
  // Syncing is left out, here and below: it only costs time while the machine stays up.
  FaultyFileSystem files_{[](std::string_view, const std::string&) { return Status(); }};
  testing::TempDir dir_;
  std::string folder_ = dir_ / "ckpt";
  std::vector<std::string> warnings_;

  CheckpointStore Store(int max_to_keep = 0) { return StoreOn(files_, max_to_keep); }
  CheckpointStore StoreOn(FileSystem& files, int max_to_keep = 0) {
    return {files,
            folder_,
            {.max_to_keep = max_to_keep, .log = Log([this](LogLevel level, std::string_view text) {
                                           EXPECT_EQ(level, LogLevel::kWarning);
                                           warnings_.emplace_back(text);
                                         })}};
  }
  Result<std::string> Save(CheckpointStore& store, std::int64_t step) {
    const Model model(static_cast<float>(step));
    return store.Save(StateAt(step), model.sources(), model.slots());
  }
  static void Put(const std::string& path, const std::string& content) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
  }
  std::string Get(const std::string& path) { return *ReadFile(files_, path); }
  // Makes manifest and COMMIT true of a model file that was exchanged.
  void Reseal(const std::string& path, const std::string& model) {
    const auto hex = [](std::uint32_t crc) {
      std::ostringstream text;
      text << std::hex << std::setw(8) << std::setfill('0') << crc;
      return text.str();
    };
    auto manifest = nlohmann::ordered_json::parse(Get(path + "/manifest.json"));
    manifest["files"]["model.safetensors"] = {{"bytes", model.size()},
                                              {"crc32c", hex(Crc32c(model))}};
    const std::string text = manifest.dump();
    Put(path + "/manifest.json", text);
    Put(path + "/COMMIT",
        "manifest.json " + std::to_string(text.size()) + " " + hex(Crc32c(text)) + "\n");
  }
};

TEST_F(CheckpointTest, RoundTrip) {
  CheckpointStore store = Store();
  const auto path = Save(store, 12);
  ASSERT_TRUE(path.ok()) << path.status().ToString();
  EXPECT_EQ(*path, folder_ + "/step-0000000012");
  EXPECT_EQ(Get(folder_ + "/LATEST"), "step-0000000012\n");
  const auto checkpoint = store.OpenLatest();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  EXPECT_EQ((*checkpoint)->state(), StateAt(12));
  EXPECT_EQ((*checkpoint)->path(), *path);
  Model read;
  ASSERT_TRUE(read.Read(**checkpoint).ok());
  EXPECT_EQ(read, Model(12));
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(CheckpointTest, OtherFilesAreSealedWithTheTensors) {
  CheckpointStore store = Store();
  const Model model(1);
  const std::vector<CheckpointFile> others = {{"table-0.rows", [&](const std::string& path) {
                                                 return WriteFileAtomically(files_, path, "rows");
                                               }}};
  const std::string path = OrThrow(store.Save(StateAt(1), model.sources(), model.slots(), others));
  EXPECT_EQ(Get(OrThrow(OrThrow(store.Open(1))->File("table-0.rows"))), "rows");
  EXPECT_EQ(OrThrow(store.Open(1))->File("table-1.rows").status().code(),
            StatusCode::kFailedPrecondition);
  Put(path + "/table-0.rows", "sows");
  EXPECT_EQ(store.Open(1).status().code(), StatusCode::kDataLoss);
  std::filesystem::remove(path + "/table-0.rows");
  EXPECT_EQ(store.Open(1).status().code(), StatusCode::kDataLoss);

  const std::vector<CheckpointFile> broken = {
      {"table-0.rows", [](const std::string&) { return Unavailable("the servers are gone"); }}};
  EXPECT_EQ(store.Save(StateAt(2), model.sources(), model.slots(), broken).status().code(),
            StatusCode::kUnavailable);
  EXPECT_EQ(OrThrow(store.Steps()), std::vector<std::int64_t>{1});
}

TEST_F(CheckpointTest, FolderIsMovable) {
  CheckpointStore store = Store();
  OrThrow(Save(store, 3));
  fs::rename(folder_, dir_ / "elsewhere");
  const CheckpointStore moved(files_, dir_ / "elsewhere/");
  EXPECT_EQ(OrThrow(moved.OpenLatest())->state().step, 3);
}

TEST_F(CheckpointTest, NothingThere) {
  EXPECT_EQ(Store().OpenLatest().status().code(), StatusCode::kNotFound);
  EXPECT_EQ(Store().Open(5).status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(OrThrow(Store().Steps()).empty());
  fs::create_directories(folder_ + "/step-abc");
  fs::create_directories(folder_ + "/step-12");
  fs::create_directories(folder_ + "/.tmp-7-1");
  EXPECT_TRUE(OrThrow(Store().Steps()).empty()) << "other names are no checkpoints";
}

TEST_F(CheckpointTest, NewestWins) {
  CheckpointStore store = Store();
  for (const std::int64_t step : std::vector<std::int64_t>{20, 5, 12'345'678'901, 100}) {
    OrThrow(Save(store, step));
  }
  EXPECT_EQ(OrThrow(store.Steps()), (std::vector<std::int64_t>{5, 20, 100, 12'345'678'901}));
  EXPECT_EQ(OrThrow(store.OpenLatest())->state().step, 12'345'678'901);
  EXPECT_EQ(OrThrow(store.Open(20))->state().step, 20);
}

TEST_F(CheckpointTest, RetentionKeepsTheNewest) {
  CheckpointStore store = Store(/*max_to_keep=*/2);
  fs::create_directories(folder_ + "/.tmp-7-1");
  Put(folder_ + "/LATEST.tmp-1", "cut off");
  for (const std::int64_t step : {1, 2, 3, 4}) {
    OrThrow(Save(store, step));
  }
  EXPECT_EQ(OrThrow(store.Steps()), (std::vector<std::int64_t>{3, 4}));
  EXPECT_EQ(OrThrow(files_.List(folder_)),
            (std::vector<std::string>{"LATEST", "step-0000000003", "step-0000000004"}))
      << "nothing is left over, not even of an interrupted save";
}

TEST_F(CheckpointTest, TheOneJustWrittenIsNeverDeleted) {
  CheckpointStore store = Store(1);
  OrThrow(Save(store, 50));
  OrThrow(Save(store, 10));
  EXPECT_EQ(OrThrow(store.Steps()), std::vector<std::int64_t>{10});
}

TEST_F(CheckpointTest, SameStepIsReplacedOnlyIfDamaged) {
  CheckpointStore store = Store();
  const std::string path = OrThrow(Save(store, 7));
  EXPECT_EQ(Save(store, 7).status().code(), StatusCode::kAlreadyExists);
  fs::resize_file(path + "/model.safetensors", 20);
  ASSERT_TRUE(Save(store, 7).ok());
  EXPECT_TRUE(store.Open(7).ok());
}

TEST_F(CheckpointTest, EachDamageHasItsMessageAndTheOlderIsTaken) {
  struct Case {
    std::string message;
    std::function<void(const std::string& path)> damage;
  };
  const auto flip = [this](const std::string& path, std::size_t at) {
    std::string content = Get(path);
    content.at(at) = static_cast<char>(content.at(at) ^ 4);
    Put(path, content);
  };
  const std::vector<Case> cases = {
      {"model.safetensors is truncated",
       [](const std::string& p) {
         fs::resize_file(p + "/model.safetensors", fs::file_size(p + "/model.safetensors") - 1);
       }},
      {"optimizer.safetensors is too long",
       [](const std::string& p) {
         fs::resize_file(p + "/optimizer.safetensors",
                         fs::file_size(p + "/optimizer.safetensors") + 1);
       }},
      {"model.safetensors is corrupted",
       [&](const std::string& p) {
         flip(p + "/model.safetensors", fs::file_size(p + "/model.safetensors") - 3);
       }},
      {"model.safetensors is corrupted",
       [&](const std::string& p) { flip(p + "/model.safetensors", 11); }},
      {"optimizer.safetensors is missing",
       [](const std::string& p) { fs::remove(p + "/optimizer.safetensors"); }},
      {"manifest.json is missing", [](const std::string& p) { fs::remove(p + "/manifest.json"); }},
      {"manifest.json is corrupted: COMMIT does not match",
       [&](const std::string& p) { flip(p + "/manifest.json", 30); }},
      {"manifest.json is corrupted: COMMIT does not match",
       [&](const std::string& p) { flip(p + "/COMMIT", 15); }},
      {"COMMIT is missing", [](const std::string& p) { fs::remove(p + "/COMMIT"); }},
      {"the manifest is of step 2",
       [&](const std::string& p) {
         fs::remove_all(p);
         fs::copy(folder_ + "/step-0000000002", p);
       }},
  };
  for (const Case& c : cases) {
    fs::remove_all(folder_);
    warnings_.clear();
    CheckpointStore store = Store();
    OrThrow(Save(store, 1));
    OrThrow(Save(store, 2));
    const std::string newest = OrThrow(Save(store, 3));
    c.damage(newest);
    const Status status = store.Open(3).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << c.message;
    EXPECT_NE(status.message().find(c.message), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(newest), std::string::npos) << status.message();
    const auto latest = store.OpenLatest();
    ASSERT_TRUE(latest.ok()) << latest.status().ToString();
    EXPECT_EQ((*latest)->state().step, 2);
    ASSERT_EQ(warnings_.size(), 1U);
    EXPECT_NE(warnings_[0].find(c.message), std::string::npos);
  }
}

TEST_F(CheckpointTest, AllDamagedIsAnError) {
  CheckpointStore store = Store();
  fs::remove(OrThrow(Save(store, 1)) + "/COMMIT");
  fs::remove(OrThrow(Save(store, 2)) + "/manifest.json");
  const Status status = store.OpenLatest().status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_NE(status.message().find("all 2 checkpoints"), std::string::npos);
  EXPECT_NE(status.message().find("manifest.json is missing"), std::string::npos);
}

TEST_F(CheckpointTest, WhatCannotBeReadNowIsNotPassedOver) {
  CheckpointStore store = Store();
  OrThrow(Save(store, 1));
  OrThrow(Save(store, 2));
  bool away = true;
  FaultyFileSystem files([&](std::string_view operation, const std::string& path) {
    return away && operation == "open" && path.find("/step-0000000002/") != std::string::npos
               ? ResourceExhausted(path + ": too many open files")
               : Status();
  });
  const CheckpointStore busy = StoreOn(files, 2);
  EXPECT_EQ(busy.OpenLatest().status().code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(warnings_.empty());
  away = false;
  EXPECT_EQ(OrThrow(busy.OpenLatest())->state().step, 2);
}

TEST_F(CheckpointTest, ReadNamesEveryTensorThatDoesNotFit) {
  CheckpointStore store = Store();
  OrThrow(Save(store, 1));
  const auto checkpoint = OrThrow(store.OpenLatest());
  std::vector<float> w(6, -1.0F);
  std::vector<float> c(2, -1.0F);
  const std::vector<CheckpointTarget> targets = {{"w", {3, 2}, w}, {"c", {2}, c}};
  const Status status = checkpoint->Read(CheckpointPart::kModel, targets);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  for (const char* const part : {"tensor \"w\" has shape [2,3], not [3,2]",
                                 "tensor \"c\" is missing", "tensor \"b\" is not expected"}) {
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  }
  EXPECT_EQ(w, std::vector<float>(6, -1.0F)) << "nothing is written";
  const std::vector<CheckpointTarget> breach = {{"w", {3, 3}, w}};
  EXPECT_THROW(static_cast<void>(checkpoint->Read(CheckpointPart::kModel, breach)), ContractError);
}

TEST_F(CheckpointTest, ReadNamesATensorOfAnotherType) {
  CheckpointStore store = Store();
  const std::string path = OrThrow(Save(store, 1));
  // The same file with one float64 tensor, under a manifest that lists it rightly.
  const std::vector<SafetensorsEntry> entries = {
      {.name = "w", .dtype = DType::kFloat64, .shape = {2, 3}},
      {.name = "b", .dtype = DType::kFloat32, .shape = {}}};
  const std::string file = EncodeSafetensorsHeader(entries) + std::string(52, '\0');
  Put(path + "/model.safetensors", file);
  Reseal(path, file);
  const auto checkpoint = store.Open(1);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  Model read;
  const Status status = read.Read(**checkpoint);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("tensor \"w\" has dtype float64, not float32"), std::string::npos)
      << status.message();
}

TEST_F(CheckpointTest, SavingABreachThrows) {
  CheckpointStore store = Store();
  const std::vector<float> two(2);
  const std::vector<CheckpointSource> twice = {{"a", {2}, two}, {"a", {2}, two}};
  const std::vector<CheckpointSource> short_span = {{"a", {3}, two}};
  EXPECT_THROW(static_cast<void>(store.Save(StateAt(1), twice, {})), ContractError);
  EXPECT_THROW(static_cast<void>(store.Save(StateAt(1), short_span, {})), ContractError);
  EXPECT_THROW(static_cast<void>(store.Save({.step = -1}, {}, {})), ContractError);
}

TEST_F(CheckpointTest, ReadOnlyFolderIsAClearError) {
  OrThrow(WriteFileAtomically(files_, dir_ / "file", "x"));
  CheckpointStore below_a_file(files_, dir_ / "file/ckpt");
  const Status status = Save(below_a_file, 1).status();
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find(dir_ / "file/ckpt"), std::string::npos) << status.message();
}

// A save that breaks off at its k-th operation, for every k: `crash` lets nothing work from there
// on, else only the k-th fails, as on a disk that is full for a moment.
void BreakOffEverywhere(const std::string& folder, bool crash, bool same_step_damaged) {
  int broken_saves = 0;
  for (int k = 0;; ++k) {
    fs::remove_all(folder);
    int calls = 0;
    bool armed = false;
    FaultyFileSystem files([&](std::string_view operation, const std::string& path) {
      const bool fails = armed && (crash ? calls >= k : calls == k);
      calls += armed ? 1 : 0;
      return fails ? ResourceExhausted(std::string(operation) + " " + path +
                                       ": No space left on device")
                   : Status();
    });
    CheckpointStore store(files, folder, {.max_to_keep = 2});
    for (const std::int64_t step : {1, 2}) {
      const Model model(static_cast<float>(step));
      OrThrow(store.Save(StateAt(step), model.sources(), model.slots()));
    }
    if (same_step_damaged) {
      const Model model(3);
      fs::remove(OrThrow(store.Save(StateAt(3), model.sources(), model.slots())) + "/COMMIT");
    }
    armed = true;
    const Model third(3);
    const auto saved = store.Save(StateAt(3), third.sources(), third.slots());
    const bool all_calls_worked = calls <= k;
    armed = false;

    const CheckpointStore after(FileSystem::Local(), folder);
    const auto latest = after.OpenLatest();
    ASSERT_TRUE(latest.ok()) << "broken off at " << k << ": " << latest.status().ToString();
    const std::int64_t step = (*latest)->state().step;
    EXPECT_TRUE(step == 2 || step == 3) << "broken off at " << k;
    EXPECT_TRUE(!saved.ok() || step == 3) << "a save that said OK is there";
    EXPECT_TRUE(saved.ok() || crash || step == 2)
        << "a save that said it failed is not, broken off at " << k;
    Model read;
    ASSERT_TRUE(read.Read(**latest).ok());
    EXPECT_EQ(read, Model(static_cast<float>(step)));
    if (!saved.ok()) {
      ++broken_saves;
      EXPECT_EQ(saved.status().code(), StatusCode::kResourceExhausted);
      EXPECT_NE(saved.status().message().find(folder), std::string::npos);
      // The next save works, whatever was left behind, unless this one had come far enough.
      CheckpointStore again(files, folder, {.max_to_keep = 2});
      const Model fourth(4);
      OrThrow(again.Save(StateAt(4), fourth.sources(), fourth.slots()));
      EXPECT_EQ(OrThrow(again.OpenLatest())->state().step, 4);
      for (const std::string& name : OrThrow(FileSystem::Local().List(folder))) {
        EXPECT_NE(name.front(), '.') << name << " is left over";
      }
    }
    if (all_calls_worked) {
      EXPECT_TRUE(saved.ok());
      break;
    }
  }
  EXPECT_GT(broken_saves, 15) << "the faults reached the save";
}

TEST_F(CheckpointTest, CrashAnywhereLeavesALoadableCheckpoint) {
  BreakOffEverywhere(folder_, /*crash=*/true, /*same_step_damaged=*/false);
}
TEST_F(CheckpointTest, OneErrorAnywhereLeavesALoadableCheckpoint) {
  BreakOffEverywhere(folder_, /*crash=*/false, /*same_step_damaged=*/false);
}
TEST_F(CheckpointTest, CrashWhileReplacingADamagedCheckpoint) {
  BreakOffEverywhere(folder_, /*crash=*/true, /*same_step_damaged=*/true);
}

TEST_F(CheckpointTest, LatestThatCannotBeWrittenIsAWarning) {
  CheckpointStore store = Store(1);
  OrThrow(Save(store, 1));
  FaultyFileSystem files([&](std::string_view operation, const std::string& path) {
    return operation == "append" && path.find("LATEST") != std::string::npos
               ? ResourceExhausted("write " + path + ": no space left on device")
               : Status();
  });
  CheckpointStore full = StoreOn(files, 1);
  EXPECT_TRUE(Save(full, 2).ok());
  ASSERT_EQ(warnings_.size(), 1U);
  EXPECT_NE(warnings_[0].find("LATEST"), std::string::npos);
  EXPECT_EQ(Get(folder_ + "/LATEST"), "step-0000000001\n");
  EXPECT_EQ(OrThrow(store.OpenLatest())->state().step, 2);
  EXPECT_EQ(OrThrow(store.Steps()).size(), 1U) << "old ones are deleted";
}

TEST_F(CheckpointTest, DeletionThatFailsIsAWarning) {
  CheckpointStore store = Store(1);
  OrThrow(Save(store, 1));
  FaultyFileSystem files([&](std::string_view operation, const std::string& path) {
    return operation == "rename" && path.ends_with("step-0000000001")
               ? PermissionDenied("rename " + path)
               : Status();
  });
  CheckpointStore stubborn = StoreOn(files, 1);
  EXPECT_TRUE(Save(stubborn, 2).ok());
  ASSERT_EQ(warnings_.size(), 1U);
  EXPECT_NE(warnings_[0].find("not deleted"), std::string::npos);
  EXPECT_EQ(OrThrow(store.Steps()).size(), 2U);
}

}  // namespace
}  // namespace cohort::io
