#include <gmock/gmock.h>

#include "job.h"

namespace cohort::testing {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

class Agreed {
 public:
  RegroupTable::Done Done() {
    return [answer = answer_](const Result<RegroupTable::Decision>& decision) {
      ASSERT_FALSE(answer->has_value()) << "answered twice";
      *answer = decision;
    };
  }
  bool given() const { return answer_->has_value(); }
  Status status() const { return given() ? (*answer_)->status() : Internal("not answered"); }
  std::string text() const {
    if (!status().ok()) {
      return status().ToString();
    }
    std::string text = std::to_string((*answer_)->value().generation) + ":";
    for (const RegroupTable::Member& member : (*answer_)->value().members) {
      text += " " + member.task.ToString();
    }
    return text;
  }

 private:
  // Owners: this object and the closure.
  std::shared_ptr<std::optional<Result<RegroupTable::Decision>>> answer_ =
      std::make_shared<std::optional<Result<RegroupTable::Decision>>>();
};

CoordinationOptions AllMayLeave() {
  CoordinationOptions options;
  options.may_leave = [](const TaskId&) { return true; };
  return options;
}

TEST(Regroup, IsDecidedAtOnceWhenAllAreThere) {
  Job job(3, AllMayLeave());
  const std::vector<Caller> callers = job.JoinAll();
  std::vector<Agreed> agreed(3);
  for (const std::size_t i : {2, 0, 1}) {
    EXPECT_FALSE(agreed[0].given());
    job.state->Regroup(callers[i], 0, 2, seconds(60), job.In(seconds(100)), agreed[i].Done());
  }
  for (const Agreed& one : agreed) {
    EXPECT_EQ(one.text(), "2: worker:0 worker:1 worker:2");
  }
}

TEST(Regroup, ShrinksWhenTheLostIsKnownToBeAndPatienceHasRunOut) {
  Job job(3, AllMayLeave());
  const std::vector<Caller> callers = job.JoinAll();
  std::vector<Agreed> agreed(2);
  for (const std::size_t i : {0, 1}) {
    job.state->Regroup(callers[i], 5, 2, seconds(15), job.In(seconds(100)), agreed[i].Done());
  }
  EXPECT_THAT(job.state->RegroupAsked(callers[2]).message(),
              HasSubstr("worker:0, worker:1 wait for a new generation"));
  EXPECT_TRUE(job.state->RegroupAsked(callers[0]).ok());
  job.beating.erase(Worker(2));
  job.Pass(seconds(12));  // lost after 10
  EXPECT_FALSE(agreed[0].given());
  job.Pass(seconds(4));
  EXPECT_EQ(agreed[0].text(), "6: worker:0 worker:1");
  EXPECT_EQ(agreed[1].text(), "6: worker:0 worker:1");
}

TEST(Regroup, ANewcomerTakesTheLastRanksWhateverItsTask) {
  Job job(3, AllMayLeave());
  const std::vector<Caller> callers = job.JoinAll();
  std::vector<Agreed> agreed(3);
  job.state->Regroup(callers[0], 0, 2, seconds(0), job.In(seconds(100)), agreed[0].Done());
  for (const std::size_t i : {1, 2}) {
    job.state->Regroup(callers[i], 4, 2, seconds(0), job.In(seconds(100)), agreed[i].Done());
  }
  EXPECT_EQ(agreed[0].text(), "5: worker:1 worker:2 worker:0");
}

TEST(Regroup, TheDeadlineNamesWhoDidNotCallAndWhoIsAbsent) {
  Job job(4, AllMayLeave());
  std::vector<Caller> callers;
  for (const int worker : {0, 1, 2}) {
    callers.push_back(job.Join(Worker(worker)));
  }
  std::vector<Agreed> agreed(2);
  for (const std::size_t i : {0, 1}) {
    job.state->Regroup(callers[i], 1, 3, seconds(1), job.In(seconds(20 + i)), agreed[i].Done());
  }
  job.Pass(seconds(21));
  for (const Agreed& one : agreed) {
    EXPECT_EQ(one.status().code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(one.status().message(),
                HasSubstr("2/4 tasks called within 20.0 s, at least 3 are needed; alive but not "
                          "calling: worker:2; absent: worker:3"));
  }
}

TEST(Regroup, ARepeatedCallIsAnsweredWithWhatWasDecided) {
  Job job(2, AllMayLeave());
  const std::vector<Caller> callers = job.JoinAll();
  std::vector<Agreed> agreed(4);
  job.state->Regroup(callers[0], 1, 1, seconds(0), job.In(seconds(9)), agreed[0].Done());
  job.state->Regroup(callers[0], 1, 1, seconds(0), job.In(seconds(9)), agreed[1].Done());
  EXPECT_EQ(agreed[0].status().code(), StatusCode::kAborted);
  job.state->Regroup(callers[1], 1, 1, seconds(0), job.In(seconds(9)), agreed[2].Done());
  EXPECT_EQ(agreed[1].text(), "2: worker:0 worker:1");
  job.state->Regroup(callers[1], 1, 1, seconds(0), job.In(seconds(9)), agreed[3].Done());
  EXPECT_EQ(agreed[3].text(), "2: worker:0 worker:1");
}

TEST(Regroup, TheJobsEndEndsIt) {
  Job job(2);
  const std::vector<Caller> callers = job.JoinAll();
  Agreed agreed;
  job.state->Regroup(callers[0], 1, 1, seconds(0), job.In(seconds(50)), agreed.Done());
  EXPECT_TRUE(job.state->ReportError(callers[1], Internal("no more")).ok());
  EXPECT_EQ(agreed.status(), Internal("worker:1: no more"));
}

}  // namespace
}  // namespace cohort::testing
