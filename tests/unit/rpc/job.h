// Job: a CoordinationState under a fake clock, with tasks that beat by themselves.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordination_state.h"
#include "testing/fake_clock.h"

namespace cohort::testing {

inline TaskId Chief() { return {TaskType::kChief, 0}; }
inline TaskId Worker(int index) { return {TaskType::kWorker, index}; }
inline TaskId Ps(int index) { return {TaskType::kPs, index}; }

// The answer to a parked request, once there is one.
class Answer {
 public:
  std::function<void(const Status&)> Done() {
    return [answer = answer_](const Status& status) {
      ASSERT_FALSE(answer->has_value()) << "answered twice: " << status.ToString();
      *answer = status;
    };
  }
  bool given() const { return answer_->has_value(); }
  Status status() const { return answer_->value_or(Internal("not answered")); }
  StatusCode code() const { return status().code(); }
  std::string message() const { return status().message(); }

 private:
  // Owners: this object and the closure.
  std::shared_ptr<std::optional<Status>> answer_ = std::make_shared<std::optional<Status>>();
};

class Job {
 public:
  explicit Job(int workers, CoordinationOptions options = {}, bool chief = false) {
    if (chief) {
      addresses_[Chief()] = "10.0.0.1:2222";
    }
    for (int i = 0; i < workers; ++i) {
      addresses_[Worker(i)] = "10.0.0." + std::to_string(10 + i) + ":2222";
    }
    options.clock = &clock;
    options.log = Log([this](LogLevel, std::string_view line) { log.emplace_back(line); });
    state.emplace(ClusterSpec(addresses_), options);
  }

  Registration Form(const TaskId& task, std::uint64_t incarnation) const {
    const ClusterSpec cluster(addresses_);
    return {.caller = {task, incarnation},
            .host = "host-" + std::to_string(task.index),
            .pid = 100 + task.index,
            .uptime = std::chrono::seconds(5),
            .fingerprint = cluster.Fingerprint(),
            .cluster_json = cluster.ToJson()};
  }
  Caller Join(const TaskId& task, std::uint64_t incarnation = 7) {
    const Status status = state->Register(Form(task, incarnation));
    EXPECT_TRUE(status.ok()) << status.ToString();
    beating.insert(task);
    return {task, incarnation};
  }
  std::vector<Caller> JoinAll() {
    std::vector<Caller> callers;
    for (const auto& [task, address] : addresses_) {
      callers.push_back(Join(task));
    }
    return callers;
  }

  // Time passes, in steps no longer than the state asks for; `beating` tasks beat every step.
  void Pass(std::chrono::milliseconds time) {
    constexpr std::chrono::milliseconds kStep{100};
    for (; time.count() > 0; time -= kStep) {
      clock.Advance(std::min(time, kStep));
      for (const TaskId& task : beating) {
        (void)state->Heartbeat({task, 7});
      }
      state->Tick();
    }
  }
  Deadline In(std::chrono::milliseconds time) const { return clock.Now() + time; }

  FakeClock clock;
  std::vector<std::string> log;
  std::set<TaskId> beating;
  std::optional<CoordinationState> state;

 private:
  std::map<TaskId, std::string> addresses_;
};

}  // namespace cohort::testing
