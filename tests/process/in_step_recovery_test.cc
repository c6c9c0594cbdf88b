// Workers in step whose servers of tables are killed and replaced while they train: they go back to
// their last save, or their beginning, without being started again, and end with the bits of a job
// that lost nothing.
//
// worker:0 stops at gates, so that it is known where the job is when a server is lost.

#include <filesystem>
#include <regex>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/core/status.h>

#include "process/in_step_job.h"
#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const Tasks kInStep = {{"worker", 2}, {"ps", 2}};

JobSettings Program() { return InStepProgram(); }

// Of a job that loses nothing.
const std::string& Undisturbed() {
  static const std::string digest = [] {
    Job job({}, /*gate_at=*/0, kInStep, Program());
    job.ExpectCodes();
    return DigestIn(job.cluster.Stdout("worker:0"));
  }();
  return digest;
}

// The evaluations that a worker says it has, in order.
std::vector<std::string> EvaluationsOf(const Job& job, const std::string& worker) {
  const std::string said = job.cluster.Stdout(worker);
  const std::regex line("evaluated epoch [^\n]*");
  std::vector<std::string> evaluations;
  for (std::sregex_iterator at(said.begin(), said.end(), line), end; at != end; ++at) {
    evaluations.push_back(at->str());
  }
  return evaluations;
}

void ExpectUndisturbedEnd(Job& job) {
  job.ExpectCodes();
  ASSERT_NE(Undisturbed(), "none");
  EXPECT_EQ(DigestIn(job.cluster.Stdout("worker:0")), Undisturbed()) << job.cluster.Logs();
  for (const char* worker : {"worker:0", "worker:1"}) {
    EXPECT_THAT(job.cluster.Stdout(worker), HasSubstr("epochs 3, at step 120")) << worker;
  }
}

class InStepWithSaves : public ::testing::Test {
 protected:
  std::vector<std::string> Saving(std::vector<std::string> more = {}) {
    more.insert(more.end(), {"--folder", folder_ / "saves", "--save-steps", "10"});
    return more;
  }

  const TempDir folder_;
};

TEST_F(InStepWithSaves, ALostServerIsReplacedAndTheWorkersGoBackToTheLastSave) {
  Job job(Saving(), /*gate_at=*/57, kInStep, Program());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  job.OpenGate();
  ExpectUndisturbedEnd(job);
  const std::vector<int> steps = StepsBackTo(job);
  ASSERT_EQ(steps.size(), 1U) << job.cluster.Logs();
  // The save before the last one is whole, the last one perhaps.
  EXPECT_TRUE(steps[0] == 40 || steps[0] == 50) << steps[0];
}

// Nor need the other servers be started again: those that live go back as well.
TEST_F(InStepWithSaves, SoItIsWithAllServersAtOnceAndOnceMore) {
  Job job(Saving({"--again-at", "90"}), /*gate_at=*/33, kInStep, Program());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate\n", kPatience));
  job.Kill("ps:0");
  job.Kill("ps:1");
  job.Replace(0, "second 0");
  job.Replace(1, "second 1");
  job.OpenGate();
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate.again", kPatience));
  job.Kill("second 0");
  job.Replace(0, "third 0");
  job.OpenGate(".again");
  ExpectUndisturbedEnd(job);
  const std::vector<int> steps = StepsBackTo(job);
  // Twice; once more where one of the two was missed only when the other one was back.
  ASSERT_GE(steps.size(), 2U) << job.cluster.Logs();
  EXPECT_GE(steps.front(), 20);
  EXPECT_GE(steps.back(), 70);
}

TEST_F(InStepWithSaves, AnotherOneIsLostWhileTheWorkersWait) {
  Job job(Saving(), /*gate_at=*/57, kInStep, Program());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  job.Kill("ps:1");
  job.OpenGate();
  ASSERT_TRUE(
      job.cluster.WaitForOutput("worker:0", "ps:1 is lost, and the workers wait", kPatience));
  job.Kill("ps:0");
  job.Replace(0, "again 0");
  job.Replace(1, "again 1");
  ExpectUndisturbedEnd(job);
  const std::vector<int> steps = StepsBackTo(job);
  ASSERT_FALSE(steps.empty()) << job.cluster.Logs();
  EXPECT_GE(steps.back(), 40);
}

TEST_F(InStepWithSaves, WithoutASaveTheyBeginAnew) {
  Job job(Saving(), /*gate_at=*/7, kInStep, Program());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  job.Kill("ps:0");
  job.Replace(0, "again");
  job.OpenGate();
  ExpectUndisturbedEnd(job);
  EXPECT_EQ(StepsBackTo(job), std::vector<int>{0}) << job.cluster.Logs();
}

// The save of the last epoch's end is whole when its evaluation begins: it is what they go back to,
// and evaluated from there.
TEST_F(InStepWithSaves, TheEvaluationThatALossComesIntoIsMadeAgain) {
  Job undisturbed({"--evaluate"}, /*gate_at=*/0, kInStep, Program());
  undisturbed.ExpectCodes();
  const std::vector<std::string> expected = EvaluationsOf(undisturbed, "worker:0");
  ASSERT_EQ(expected.size(), 3U) << undisturbed.cluster.Logs();
  Job job({"--evaluate", "--gate-evaluation", "120", "--folder", folder_ / "saves"}, /*gate_at=*/0,
          kInStep, Program());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate.evaluation", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  job.OpenGate(".evaluation");
  ExpectUndisturbedEnd(job);
  EXPECT_EQ(StepsBackTo(job), std::vector<int>{120}) << job.cluster.Logs();
  for (const char* worker : {"worker:0", "worker:1"}) {
    EXPECT_EQ(EvaluationsOf(job, worker), expected) << worker;
  }
}

// Of each save a half of the rows' file. No worker goes on with the values of one, or begins anew.
TEST_F(InStepWithSaves, ThatAllSavesAreDamagedIsSaidByEveryProcess) {
  namespace fs = std::filesystem;
  const fs::path saves = folder_ / "saves";
  Job job(Saving(), /*gate_at=*/57, kInStep, Program());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  // It is written behind the steps up to the gate, and nothing after it.
  ASSERT_TRUE(Job::Await([&] { return fs::exists(saves / "step-0000000050"); }));
  int damaged = 0;
  for (const auto& entry : fs::directory_iterator(saves)) {
    const fs::path rows = entry.path() / "table-0.rows";
    if (entry.path().filename().string().starts_with("step-")) {
      fs::resize_file(rows, fs::file_size(rows) / 2);
      ++damaged;
    }
  }
  ASSERT_GE(damaged, 1) << job.cluster.Logs();
  job.Kill("ps:1");
  job.Replace(1, "again");
  job.OpenGate();
  for (const std::string name : {"worker:0", "worker:1", "ps:0", "again"}) {
    job.Expect(name, ExitCode(DataLoss("")));
  }
  job.ExpectCodes();
  for (const std::string name : {"worker:0", "worker:1", "ps:0", "again"}) {
    EXPECT_THAT(job.cluster.Stderr(name),
                AllOf(HasSubstr("all " + std::to_string(damaged) + " checkpoints in " +
                                saves.string() + " are damaged"),
                      HasSubstr("table-0.rows is truncated")))
        << name;
  }
  EXPECT_EQ(StepsBackTo(job), std::vector<int>());
  EXPECT_EQ(DigestIn(job.cluster.Stdout("worker:0")), "none");
}

// In the second epoch: the first one is done again.
TEST(InStepRecoveryTest, WithoutACheckpointFolderTheyBeginAnew) {
  Job job({}, /*gate_at=*/57, kInStep, Program());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  job.OpenGate();
  ExpectUndisturbedEnd(job);
  EXPECT_EQ(StepsBackTo(job), std::vector<int>{0}) << job.cluster.Logs();
}

TEST(InStepRecoveryTest, ThatNobodyComesInItsPlaceIsSaidWithItsName) {
  Job job({"--rejoin-ms", "500"}, /*gate_at=*/57, kInStep, Program());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  job.Kill("ps:1");
  job.OpenGate();
  for (const char* name : {"worker:0", "worker:1", "ps:0"}) {
    EXPECT_EQ(job.cluster.Wait(name, kPatience), kPeerLost) << name;
    EXPECT_THAT(job.cluster.Stderr(name),
                HasSubstr("no other process has taken its place within 0.5 s (rejoin_grace) [start "
                          "ps:1 again"))
        << name;
  }
}

// Nobody would wait for a server that is lost then.
TEST(InStepRecoveryTest, WhenTrainingIsOverALostServerEndsTheJob) {
  Job job({"--gate-end"}, /*gate_at=*/0, kInStep, Program());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate.end", kPatience));
  job.Kill("ps:1");
  EXPECT_EQ(job.cluster.Wait("worker:1", kPatience), kPeerLost);
  job.OpenGate(".end");
  for (const char* name : {"worker:0", "ps:0"}) {
    EXPECT_EQ(job.cluster.Wait(name, kPatience), kPeerLost) << name;
    EXPECT_THAT(job.cluster.Stderr(name), HasSubstr("ps:1")) << name;
  }
}

// Whatever its code: no server is waited for, of which a loss is known after 600 s here.
TEST(InStepRecoveryTest, AnUnavailableOfTheStepFunctionsOwnEndsTheJobAtOnce) {
  Job job({"--fail-at", "20", "--heartbeat-ms", "600000"}, /*gate_at=*/0, kInStep, Program());
  for (const char* name : {"worker:1", "worker:0", "ps:0", "ps:1"}) {
    EXPECT_EQ(job.cluster.Wait(name, kPatience), kPeerLost) << name;
    EXPECT_THAT(job.cluster.Stderr(name), HasSubstr("the feature store is down")) << name;
  }
}

}  // namespace
}  // namespace cohort::testing
