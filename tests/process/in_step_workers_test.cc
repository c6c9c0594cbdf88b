// Workers in step, with a table on servers, that lose one of them while they train: they go back to
// their last save, or their beginning, without it or with another process in its place. They end
// with the bits of a job that was ended at that save, and started again with as many workers.
//
// worker:0 stops at gates, so that it is known where the job is when a process is lost.

#include <csignal>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "process/in_step_job.h"
#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kStepsOfEpoch = 40;

Tasks Workers(int workers) { return {{"worker", workers}, {"ps", 2}}; }

// Of one that was ended at the ends of epochs, and started again: so many workers in each epoch.
std::string DigestOfRestarted(const std::vector<int>& workers) {
  const TempDir folder;
  std::string digest;
  for (std::size_t epoch = 0; epoch < workers.size(); ++epoch) {
    Job job({"--epochs", std::to_string(epoch + 1), "--folder", folder / "saves"}, /*gate_at=*/0,
            Workers(workers[epoch]), InStepProgram());
    job.ExpectCodes();
    digest = DigestIn(job.cluster.Stdout("worker:0"));
  }
  return digest;
}

const std::string& Restarted(const std::vector<int>& workers) {
  static std::map<std::vector<int>, std::string> digests;
  const auto known = digests.find(workers);
  return known != digests.end()
             ? known->second
             : digests.emplace(workers, DigestOfRestarted(workers)).first->second;
}

// Of a job that loses nothing.
const std::string& Undisturbed(int workers) {
  static std::map<int, std::string> digests;
  std::string& digest = digests[workers];
  if (digest.empty()) {
    Job job({}, /*gate_at=*/0, Workers(workers), InStepProgram());
    job.ExpectCodes();
    digest = DigestIn(job.cluster.Stdout("worker:0"));
  }
  return digest;
}

class InStepWorkers : public ::testing::Test {
 protected:
  // Saves at the ends of epochs only.
  std::vector<std::string> Saving(std::vector<std::string> more = {}) {
    more.insert(more.end(), {"--folder", Saves()});
    return more;
  }
  // The others wait for nobody.
  std::vector<std::string> Shrinking(std::vector<std::string> more = {}) {
    more.insert(more.end(), {"--worker-patience-ms", "0"});
    return Saving(std::move(more));
  }
  std::string Saves() const { return folder_ / "saves"; }

  // That of the end of so many epochs is whole.
  [[nodiscard]] bool WaitForSaveOf(int epochs) const {
    const std::string step = std::to_string(epochs * kStepsOfEpoch);
    return Job::Await([&] {
      std::error_code none;
      for (const auto& entry : std::filesystem::directory_iterator(Saves(), none)) {
        const std::string name = entry.path().filename();
        if (name.starts_with("step") && name.ends_with(step)) {
          return true;
        }
      }
      return false;
    });
  }

  static void ExpectEnd(Job& job, const std::string& digest,
                        const std::vector<std::string>& workers) {
    job.ExpectCodes();
    ASSERT_NE(digest, "none");
    EXPECT_EQ(DigestIn(job.cluster.Stdout("worker:0")), digest) << job.cluster.Logs();
    for (const std::string& worker : workers) {
      EXPECT_THAT(job.cluster.Stdout(worker), HasSubstr("at step 120")) << worker;
    }
  }

  const TempDir folder_;
};

TEST_F(InStepWorkers, ALostOneIsDoneWithoutFromTheLastSaveOn) {
  const std::string& expected = Restarted({3, 2, 2});
  Job job(Shrinking(), /*gate_at=*/57, Workers(3), InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  ASSERT_TRUE(WaitForSaveOf(1));
  job.Kill("worker:1");
  job.OpenGate();
  ExpectEnd(job, expected, {"worker:0", "worker:2"});
  EXPECT_THAT(StepsBackTo(job), ElementsAre(40)) << job.cluster.Logs();
  EXPECT_THAT(job.cluster.Stderr("worker:0"), HasSubstr("2 of 3 workers go back"));
}

// Who is left alone has nobody to add gradients with, in any way.
TEST_F(InStepWorkers, SoItIsOnceMoreUntilOneIsLeft) {
  const std::string& expected = Restarted({3, 2, 1});
  Job job(Shrinking({"--again-at", "90", "--all-reduce", "shared"}), /*gate_at=*/57, Workers(3),
          InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate\n", kPatience));
  ASSERT_TRUE(WaitForSaveOf(1));
  job.Kill("worker:1");
  job.OpenGate();
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate.again", kPatience));
  ASSERT_TRUE(WaitForSaveOf(2));
  job.Kill("worker:2");
  job.OpenGate(".again");
  ExpectEnd(job, expected, {"worker:0"});
  EXPECT_THAT(StepsBackTo(job), ElementsAre(40, 80)) << job.cluster.Logs();
  EXPECT_THAT(job.cluster.Stderr("worker:0"), HasSubstr("cannot add gradients by 'shared'"));
}

// From the values that training began with.
TEST_F(InStepWorkers, BeforeTheFirstSaveTheyBeginAnew) {
  const std::string& expected = Undisturbed(2);
  Job job(Shrinking(), /*gate_at=*/7, Workers(3), InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  job.Kill("worker:2");
  job.OpenGate();
  ExpectEnd(job, expected, {"worker:0", "worker:1"});
  EXPECT_THAT(StepsBackTo(job), ElementsAre(0)) << job.cluster.Logs();
}

TEST_F(InStepWorkers, AnotherProcessTakesTheLostOnesPlace) {
  const std::string& expected = Undisturbed(3);
  Job job(Saving(), /*gate_at=*/57, Workers(3), InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  ASSERT_TRUE(WaitForSaveOf(1));
  job.Kill("worker:1");
  job.Start("worker", 1, "again");
  job.OpenGate();
  ExpectEnd(job, expected, {"worker:0", "again", "worker:2"});
  EXPECT_THAT(StepsBackTo(job), ElementsAre(40)) << job.cluster.Logs();
  EXPECT_THAT(job.cluster.Stderr("worker:0"), HasSubstr("with another process for worker:1"));
}

TEST_F(InStepWorkers, AnotherProcessTakesItsPlaceFromTheBeginning) {
  const std::string& expected = Undisturbed(2);
  Job job({"--evaluate"}, /*gate_at=*/7, Workers(2), InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  job.Kill("worker:1");
  job.Start("worker", 1, "again");
  job.OpenGate();
  ExpectEnd(job, expected, {"worker:0", "again"});
  EXPECT_THAT(StepsBackTo(job), ElementsAre(0)) << job.cluster.Logs();
}

// The evaluation of the epoch that they go back to the end of is owed by the others, and the new
// process takes part in it.
TEST_F(InStepWorkers, AnEvaluationIsMadeWithTheProcessThatHasTakenItsPlace) {
  const std::string& expected = Undisturbed(2);
  Job job(Saving({"--evaluate", "--gate-evaluation", "80"}), /*gate_at=*/0, Workers(2),
          InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate.evaluation", kPatience));
  ASSERT_TRUE(WaitForSaveOf(2));
  job.Kill("worker:1");
  job.Start("worker", 1, "again");
  job.OpenGate(".evaluation");
  ExpectEnd(job, expected, {"worker:0", "again"});
  EXPECT_THAT(StepsBackTo(job), ElementsAre(80)) << job.cluster.Logs();
  EXPECT_THAT(job.cluster.Stdout("worker:0"),
              AllOf(HasSubstr("evaluated epoch 0"), HasSubstr("evaluated epoch 1"),
                    HasSubstr("evaluated epoch 2")));
}

// Whichever save they go back to: as many workers end with the same bits.
TEST_F(InStepWorkers, OneIsLostWhileASaveIsWritten) {
  const std::string& expected = Undisturbed(2);
  Job job(Saving({"--save-steps", "1"}), /*gate_at=*/110, Workers(2), InStepProgram());
  std::set<std::string> seen;
  for (int saves = 0; saves < 3; ++saves) {
    ASSERT_TRUE(Job::WaitForWriting(Saves(), "", seen)) << job.cluster.Logs();
  }
  job.Kill("worker:1");
  job.Start("worker", 1, "again");
  job.OpenGate();
  ExpectEnd(job, expected, {"worker:0", "again"});
  EXPECT_EQ(StepsBackTo(job).size(), 1U) << job.cluster.Logs();
}

TEST_F(InStepWorkers, OneIsLostTogetherWithAServer) {
  const std::string& expected = Undisturbed(2);
  Job job(Saving(), /*gate_at=*/57, Workers(2), InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  ASSERT_TRUE(WaitForSaveOf(1));
  job.Kill("worker:1");
  job.Kill("ps:0");
  job.Start("worker", 1, "again");
  job.Replace(0, "again 0");
  job.OpenGate();
  ExpectEnd(job, expected, {"worker:0", "again"});
  const std::vector<int> steps = StepsBackTo(job);
  // Twice where one of the two was missed only when the other one was back.
  ASSERT_FALSE(steps.empty()) << job.cluster.Logs();
  EXPECT_EQ(steps.back(), 40);
}

TEST_F(InStepWorkers, OneIsDoneWithoutWhileAServerIsReplaced) {
  const std::string& expected = Restarted({3, 2, 2});
  Job job(Shrinking(), /*gate_at=*/57, Workers(3), InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  ASSERT_TRUE(WaitForSaveOf(1));
  job.Kill("ps:0");
  job.OpenGate();
  ASSERT_TRUE(
      job.cluster.WaitForOutput("worker:0", "ps:0 is lost, and the workers wait", kPatience));
  job.Kill("worker:2");
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "a task is lost: worker:2", kPatience));
  job.Replace(0, "again 0");
  ExpectEnd(job, expected, {"worker:0", "worker:1"});
  EXPECT_THAT(StepsBackTo(job), ElementsAre(40)) << job.cluster.Logs();
}

// One that only stood still is told so, and what it had sent, or sends, has no effect.
TEST_F(InStepWorkers, OneThatWasGivenUpEndsWhenItGoesOn) {
  const std::string& expected = Restarted({2, 1, 1});
  Job job(Shrinking({"--again-at", "90", "--heartbeat-ms", "3000"}), /*gate_at=*/57, Workers(2),
          InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate\n", kPatience));
  ASSERT_TRUE(WaitForSaveOf(1));
  ASSERT_TRUE(job.cluster.Signal("worker:1", SIGSTOP));
  job.Expect("worker:1", kPeerLost);
  job.OpenGate();
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate.again", kPatience));
  ASSERT_TRUE(job.cluster.Signal("worker:1", SIGCONT));
  EXPECT_EQ(job.cluster.Wait("worker:1", kPatience), kPeerLost);
  job.OpenGate(".again");
  ExpectEnd(job, expected, {"worker:0"});
}

TEST_F(InStepWorkers, OneThatComesTooLateWaitsAndEndsWithTheJob) {
  const std::string& expected = Restarted({2, 1, 1});
  Job job(Shrinking({"--again-at", "90"}), /*gate_at=*/57, Workers(2), InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate\n", kPatience));
  ASSERT_TRUE(WaitForSaveOf(1));
  job.Kill("worker:1");
  job.OpenGate();
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate.again", kPatience));
  job.Start("worker", 1, "late");
  job.Expect("late", kPeerLost);
  ASSERT_TRUE(job.cluster.WaitForOutput("late", "waits until the job goes back", kPatience));
  job.OpenGate(".again");
  ExpectEnd(job, expected, {"worker:0"});
  EXPECT_THAT(job.cluster.Stderr("late"), HasSubstr("the job has ended without worker:1"));
}

// It is needed when one more is lost.
TEST_F(InStepWorkers, OneThatComesTooLateIsThereForTheNextLoss) {
  const std::string& expected = Restarted({3, 2, 2});
  Job job(Shrinking({"--again-at", "90"}), /*gate_at=*/57, Workers(3), InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate\n", kPatience));
  ASSERT_TRUE(WaitForSaveOf(1));
  job.Kill("worker:1");
  job.OpenGate();
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate.again", kPatience));
  ASSERT_TRUE(WaitForSaveOf(2));
  job.Start("worker", 1, "late");
  ASSERT_TRUE(job.cluster.WaitForOutput("late", "waits until the job goes back", kPatience));
  job.Kill("worker:2");
  job.OpenGate(".again");
  ExpectEnd(job, expected, {"worker:0", "late"});
  EXPECT_THAT(StepsBackTo(job), ElementsAre(40, 80)) << job.cluster.Logs();
}

TEST_F(InStepWorkers, FewerThanTheJobNeedsEndItAndItIsSaidWhoIsMissing) {
  Job job({"--worker-patience-ms", "500", "--min-workers", "2"}, /*gate_at=*/57, Workers(2),
          InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  job.Kill("worker:1");
  job.OpenGate();
  for (const char* name : {"worker:0", "ps:0", "ps:1"}) {
    EXPECT_EQ(job.cluster.Wait(name, kPatience), kPeerLost) << name;
    EXPECT_THAT(job.cluster.Stderr(name),
                AllOf(HasSubstr("worker:1"),
                      HasSubstr("no other process has taken its place within 0.5 s "
                                "(worker_patience), and 1 workers are left of the 2")))
        << name;
  }
  EXPECT_THAT(job.cluster.Stderr("worker:0"), Not(HasSubstr("rolled back")));
}

TEST_F(InStepWorkers, WithoutAGraceALostOneEndsTheJob) {
  Job job({"--rejoin-ms", "0"}, /*gate_at=*/57, Workers(2), InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  job.Kill("worker:1");
  job.OpenGate();
  for (const char* name : {"worker:0", "ps:0", "ps:1"}) {
    EXPECT_EQ(job.cluster.Wait(name, kPatience), kPeerLost) << name;
    EXPECT_THAT(job.cluster.Stderr(name), HasSubstr("worker:1")) << name;
  }
  EXPECT_THAT(job.cluster.Stderr("worker:0"), Not(HasSubstr("rolled back")));
}

TEST_F(InStepWorkers, TheLossOfTheFirstEndsTheJob) {
  Job job({}, /*gate_at=*/57, Workers(2), InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate", kPatience));
  job.Kill("worker:0");
  for (const char* name : {"worker:1", "ps:0", "ps:1"}) {
    EXPECT_EQ(job.cluster.Wait(name, kPatience), kPeerLost) << name;
    EXPECT_THAT(job.cluster.Stderr(name), HasSubstr("worker:0")) << name;
  }
}

TEST_F(InStepWorkers, WhenTrainingIsOverALostOneEndsTheJob) {
  Job job({"--gate-end", "--gate-all"}, /*gate_at=*/0, Workers(2), InStepProgram());
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "waits at gate.end", kPatience));
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "waits at gate.end", kPatience));
  job.Kill("worker:1");
  job.OpenGate(".end");
  for (const char* name : {"worker:0", "ps:0", "ps:1"}) {
    EXPECT_EQ(job.cluster.Wait(name, kPatience), kPeerLost) << name;
    EXPECT_THAT(job.cluster.Stderr(name), HasSubstr("worker:1")) << name;
  }
}

}  // namespace
}  // namespace cohort::testing
