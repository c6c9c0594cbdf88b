// One task of a job that goes on when others are lost, for regroup_process_test.
//
//   regroup_task ADDRESS worker:INDEX WORKERS TIMEOUT_MS [BACKEND [COUNT] | model]
//
// worker:0 runs the service at ADDRESS and prints "port N.". All form a generation over BACKEND
// (tcp), all-reduce COUNT (1) times 2^INDEX again and again, and say "generation G over BACKEND:
// size N, sum S, rank R, state K" after the first time; K counts the steps of the whole job, which
// newcomers learn from rank 0. After a failure, or when asked, they regroup. The second generation
// of all WORKERS ends the job after 20 steps. A task that the service counts as lost joins again,
// in the same process.
//
// With "model" they train the integer model, say "step K of N" (N processes) after each step, and
// at the end "done K CRC" of the parameters.
#include <cohort/strategies/regroup.h>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "testing/integer_model.h"

namespace cohort {
namespace {

void Say(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

Status Await(Result<std::unique_ptr<Work>> work) {
  return work.ok() ? work.value()->Wait() : work.status();
}

class Task {
 public:
  Task(std::string address, const std::string& name, int workers, int timeout_ms,
       const std::string& what, std::size_t count)
      : address_(std::move(address)),
        task_(OrThrow(TaskId::Parse(name))),
        workers_(workers),
        model_(what == "model"),
        sums_(count) {
    std::map<TaskId, std::string> addresses;
    for (int i = 0; i < workers; ++i) {
      addresses[{TaskType::kWorker, i}] = "127.0.0.1:0";
    }
    cluster_ = ClusterSpec(addresses);
    options_.join_timeout = std::chrono::seconds(60);
    options_.heartbeat_interval = std::chrono::milliseconds(200);
    options_.heartbeat_timeout = std::chrono::milliseconds(1500);
    options_.reconnect_grace = std::chrono::milliseconds(300);
    options_.log = StderrLog(name);
    options_.may_leave = [](const TaskId& id) { return id.index > 0; };
    transport_.communicator.timeout = std::chrono::milliseconds(timeout_ms);
    transport_.communicator.log = options_.log;
    if (!model_) {
      transport_.backend = what;
    }
  }

  Status Run() {
    std::unique_ptr<CoordinationServer> server;
    if (task_.index == 0) {
      COHORT_ASSIGN_OR_RETURN(server, CoordinationServer::Start(address_, cluster_, options_));
      address_ = "127.0.0.1:" + std::to_string(server->port());
      Say("port " + std::to_string(server->port()) + ".");
    }
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(const auto client,
                              CoordinationClient::Join(address_, cluster_, task_, false, options_));
      const Status status = model_ ? TrainModel(*client) : Train(*client);
      if (status.ok()) {
        return client->Shutdown();
      }
      if (task_.index == 0 || ++lost_ > 3) {
        return status;
      }
      Say("lost: " + status.ToString());
    }
  }

 private:
  Status Train(CoordinationClient& client) {
    for (bool first = true;; first = false) {
      // At first all are waited for; later those that are there go on at once.
      const std::chrono::seconds patience(first ? 30 : 0);
      COHORT_ASSIGN_OR_RETURN(const Regrouped group,
                              Regroup(client, {2, patience, std::chrono::seconds(60)}, transport_));
      const bool last = generations_++ > 0 || group.generation.number > 2;
      Communicator& comm = *group.communicator;
      Status status = RunGeneration(client, group.generation, comm, last);
      if (status.ok()) {
        return status;
      }
      Say("generation " + std::to_string(group.generation.number) + " ends: " + status.ToString());
      comm.Abort(status);
    }
  }

  // Until it fails, or others wait for us. OK: the job is done.
  Status RunGeneration(const CoordinationClient& client, const Generation& generation,
                       Communicator& comm, bool may_end) {
    COHORT_RETURN_IF_ERROR(Await(comm.Broadcast(std::span(&state_, 1), 0)));
    for (int step = 1;; ++step) {
      std::ranges::fill(sums_, std::int64_t{1} << task_.index);
      COHORT_RETURN_IF_ERROR(
          Await(comm.AllReduce(std::span(sums_), ReduceOp::kSum, {.name = "step"})));
      std::int64_t sum = 0;
      for (const TaskId& member : generation.members) {
        sum += std::int64_t{1} << member.index;
      }
      if (std::ranges::count(sums_, sum) != std::ssize(sums_)) {
        Say("wrong sums in step " + std::to_string(step));
        std::exit(1);
      }
      ++state_;
      if (step == 1) {
        Say("generation " + std::to_string(generation.number) + " over " +
            std::string(comm.backend()) + ": size " + std::to_string(comm.size()) + ", sum " +
            std::to_string(sum) + ", rank " + std::to_string(comm.rank()) + ", state " +
            std::to_string(state_));
      }
      if (may_end && comm.size() == workers_ && step == 20) {
        return {};
      }
      COHORT_RETURN_IF_ERROR(client.RegroupAsked());
    }
  }

  Status TrainModel(CoordinationClient& client) {
    ParameterSet parameters = testing::IntegerParameters();
    std::unique_ptr<Strategy> strategy;
    for (bool first = true;; first = false) {
      const std::chrono::seconds patience(first ? 30 : 0);
      COHORT_ASSIGN_OR_RETURN(Regrouped group,
                              Regroup(client, {2, patience, std::chrono::seconds(60)}, transport_));
      const bool last = generations_++ > 0 || group.generation.number > 2;
      Result<std::unique_ptr<Strategy>> recovered =
          Recover(group, parameters, Sgd({.learning_rate = 0.0625, .momentum = 0.5}),
                  strategy.get(), StrategyOptions());
      if (recovered.ok()) {
        strategy = std::move(recovered).value();
        const Status status = RunSteps(client, *strategy, last);
        if (status.ok()) {
          const auto values = parameters.all();
          Say("done " + std::to_string(strategy->step()) + " " +
              std::to_string(
                  Hash64({reinterpret_cast<const char*>(values.data()), values.size_bytes()})));
          return status;
        }
        strategy->ReportError(status);  // aborts its collectives: the others hear at once
        Say("ends: " + status.ToString());
      } else if (recovered.status().code() != StatusCode::kUnavailable) {
        return recovered.status();
      }
    }
  }

  Status RunSteps(const CoordinationClient& client, Strategy& strategy, bool may_end) const {
    constexpr std::int64_t kBatches = 6;  // of an epoch
    COHORT_ASSIGN_OR_RETURN(const auto dataset, strategy.Distribute(testing::IntegerData(61, 12)));
    const StepFn model = testing::IntegerStep();
    const std::int64_t begun = strategy.step();
    COHORT_RETURN_IF_ERROR(dataset->BeginEpoch(begun / kBatches, begun % kBatches));
    const bool whole = strategy.num_replicas_in_sync() == workers_;
    while (!(may_end && whole && strategy.step() == begun + 50)) {
      COHORT_ASSIGN_OR_RETURN(const auto batch, dataset->Next());
      if (!batch) {
        COHORT_RETURN_IF_ERROR(dataset->BeginEpoch(strategy.step() / kBatches));
        continue;
      }
      COHORT_ASSIGN_OR_RETURN(const StepResult result, strategy.Step(*batch, model));
      Say("step " + std::to_string(result.step) + " of " +
          std::to_string(strategy.num_replicas_in_sync()));
      COHORT_RETURN_IF_ERROR(client.RegroupAsked());
    }
    return {};
  }

  std::string address_;
  const TaskId task_;
  const int workers_;
  const bool model_;
  ClusterSpec cluster_;
  CoordinationOptions options_;
  RegroupTransport transport_;
  int generations_ = 0;
  int lost_ = 0;
  std::int64_t state_ = 0;
  std::vector<std::int64_t> sums_;  // private to the process
};

}  // namespace
}  // namespace cohort

int main(int argc, char** argv) {
  const cohort::Status status =
      cohort::Task(argv[1], argv[2], std::stoi(argv[3]), std::stoi(argv[4]),
                   argc > 5 ? argv[5] : "tcp", argc > 6 ? std::stoul(argv[6]) : 1)
          .Run();
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return cohort::ExitCode(status);
}
