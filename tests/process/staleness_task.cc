// One task of a job of three workers and two servers: clients of parameter servers under bounded
// staleness, each of which looks, after every step, at what it reads (strategies/README.md). What
// does not hold is an error.
//
//   staleness_task STALENESS FOLDER
//
// Each worker counts its steps in values of its own on both servers, and in rows of its own. All
// are at work from before the first step to after the last one, so that a worker's clock is how
// many steps it has made; they meet by files in FOLDER. worker:2 is slow. worker:0 ends with
// "holds" and what the servers have counted.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <cohort/cluster/resolve.h>
#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>

#include "parameter_server/rows/row_client.h"
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"

namespace cohort::ps {
namespace {

using std::chrono::seconds;

constexpr int kWorkers = 3;
constexpr std::int64_t kSteps = 60;
constexpr std::size_t kWide = 10'000;  // values of a worker: a chunk is more than TCP takes at once
constexpr std::size_t kDim = 4;
constexpr std::size_t kIds = 4;  // rows of a worker
constexpr seconds kPatience{60};

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

ParameterSet Parameters() {
  ParameterSet parameters;
  const Shape shape({kWorkers, static_cast<std::int64_t>(kWide)});
  parameters.Add("first", shape, {});
  parameters.Add("second", shape, {});
  parameters.AddTable({.name = "rows", .dim = static_cast<std::int64_t>(kDim), .buckets = 16});
  parameters.Build();
  return parameters;
}

class Worker {
 public:
  Worker(int index, int staleness, std::string folder, const std::vector<std::string>& addresses)
      : index_(index), staleness_(staleness), folder_(std::move(folder)) {
    const ModelSpec spec = ModelSpec::Of(
        parameters_, Sgd({.learning_rate = 1})->config(),
        {.mode = Consistency::Mode::kBoundedStaleness, .staleness = staleness}, /*servers=*/2);
    const ClientOptions options = {.client = static_cast<std::uint64_t>(index) + 1,
                                   .task = "worker:" + std::to_string(index),
                                   .peer_timeout = kPatience,
                                   .transport = FrameTransport::kTcp};
    client_ = Client::Make(spec, addresses, options);
    rows_ = RowClient::Make(spec, addresses, options);
  }

  Status Run() {
    COHORT_RETURN_IF_ERROR(client_->Declare());
    if (index_ == 0) {
      COHORT_RETURN_IF_ERROR(client_->Assign(parameters_.all(), {}, 0));
    }
    COHORT_RETURN_IF_ERROR(Meet("declared"));
    COHORT_RETURN_IF_ERROR(client_->PullForStep(parameters_.all(), {}));
    COHORT_RETURN_IF_ERROR(Meet("at work"));
    for (std::int64_t clock = 1; clock <= kSteps; ++clock) {
      const auto number = static_cast<std::uint64_t>(clock);
      std::this_thread::sleep_for(std::chrono::microseconds(
          random_.Below(1000, number, static_cast<std::uint64_t>(index_)) +
          (index_ == 2 ? 3000 : 0)));  // its work
      COHORT_RETURN_IF_ERROR(Step(clock));
      COHORT_RETURN_IF_ERROR(CheckValues(clock));
      COHORT_RETURN_IF_ERROR(CheckRows(clock));
    }
    COHORT_RETURN_IF_ERROR(client_->Pause());
    COHORT_RETURN_IF_ERROR(Meet("done"));
    if (index_ > 0) {
      return {};
    }
    COHORT_ASSIGN_OR_RETURN(const StoreStats stats, client_->Stats());
    Say(fmt::format("holds, lead at most {}, {}", stats.max_lead,
                    stats.parked > 0 ? "some parked" : "none parked"));
    return client_->Drain();
  }

 private:
  // Until all workers are there.
  Status Meet(const std::string& where) const {
    std::ofstream(folder_ + "/" + where + std::to_string(index_)) << "here";
    const Deadline deadline = DeadlineAfter(kPatience);
    for (int w = 0; w < kWorkers; ++w) {
      while (!std::filesystem::exists(folder_ + "/" + where + std::to_string(w))) {
        if (std::chrono::steady_clock::now() >= deadline) {
          return DeadlineExceeded(fmt::format("worker:{} is not {}", w, where));
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    }
    return {};
  }

  // One more of its own: of rows first, as a worker's step does.
  Status Step(std::int64_t clock) {
    std::vector<std::uint64_t> ids;
    for (std::size_t i = 0; i < kIds; ++i) {
      ids.push_back(IdOf(index_, i));
    }
    const std::vector<float> ones(ids.size() * kDim, -1);
    const RowClient::Gradients of_rows = {.table = 0, .ids = ids, .values = ones};
    COHORT_RETURN_IF_ERROR(rows_->Push({&of_rows, 1}, clock, /*weight=*/1));
    std::vector<float> arena(parameters_.all().size(), 0);
    for (int p = 0; p < 2; ++p) {
      const auto begin = static_cast<std::size_t>(parameters_[p].offset) +
                         static_cast<std::size_t>(index_) * kWide;
      std::ranges::fill(std::span(arena).subspan(begin, kWide), -1.0F);
    }
    return client_->Push({.arena = arena, .weight = 1}, parameters_.all());
  }

  // Of `who` it has read `values`, which are one.
  Status Check(std::int64_t clock, int who, std::span<const float> values,
               const std::string& where) const {
    if (std::ranges::any_of(values, [&](float v) { return v != values[0]; })) {
      return DataLoss(fmt::format("worker:{}, step {}: a step of worker:{} is in {} in part",
                                  index_, clock, who, where));
    }
    const auto has = static_cast<std::int64_t>(values[0]);
    const std::int64_t must = who == index_ ? clock : std::max<std::int64_t>(clock - staleness_, 0);
    if (has < must || (who == index_ && has != clock) || has > kSteps) {
      return DataLoss(
          fmt::format("worker:{}, step {}: {} has {} steps of worker:{}, it must have {}", index_,
                      clock, where, has, who, must));
    }
    return {};
  }

  Status CheckValues(std::int64_t clock) const {
    for (int p = 0; p < 2; ++p) {
      for (int who = 0; who < kWorkers; ++who) {
        COHORT_RETURN_IF_ERROR(Check(
            clock, who, parameters_.value(p).subspan(static_cast<std::size_t>(who) * kWide, kWide),
            parameters_[p].name));
      }
    }
    return {};
  }

  Status CheckRows(std::int64_t clock) {
    std::vector<std::uint64_t> ids;
    for (int who = 0; who < kWorkers; ++who) {
      for (std::size_t i = 0; i < kIds; ++i) {
        ids.push_back(IdOf(who, i));
      }
    }
    std::vector<float> rows(ids.size() * kDim);
    COHORT_RETURN_IF_ERROR(rows_->Pull(0, ids, clock, /*training=*/false, rows));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      COHORT_RETURN_IF_ERROR(Check(clock, static_cast<int>(i / kIds),
                                   std::span<const float>(rows).subspan(i * kDim, kDim),
                                   "row " + std::to_string(ids[i])));
    }
    return {};
  }

  static std::uint64_t IdOf(int worker, std::size_t i) {
    return static_cast<std::uint64_t>(worker) * 1000 + i;
  }

  const int index_;
  const int staleness_;
  const std::string folder_;
  const Philox random_{3, "work"};
  ParameterSet parameters_ = Parameters();
  std::unique_ptr<Client> client_;
  std::unique_ptr<RowClient> rows_;
};

Status Run(int staleness, const std::string& folder) {
  COHORT_ASSIGN_OR_RETURN(const ClusterConfig config, ResolveCluster({}, Environment::OfProcess()));
  if (config.task.type == TaskType::kPs) {
    COHORT_ASSIGN_OR_RETURN(const auto server, Server::Start(config.cluster.Address(config.task),
                                                             config.task.index, Log()));
    return server->WaitDrained(DeadlineAfter(kPatience))
               ? OkStatus()
               : DeadlineExceeded("the workers do not come to an end");
  }
  const std::vector<std::string> addresses = {config.cluster.Address({TaskType::kPs, 0}),
                                              config.cluster.Address({TaskType::kPs, 1})};
  return Worker(config.task.index, staleness, folder, addresses).Run();
}

}  // namespace
}  // namespace cohort::ps

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "staleness_task STALENESS FOLDER\n");
    return 2;
  }
  const cohort::Status status = cohort::ps::Run(std::stoi(argv[1]), argv[2]);
  if (!status.ok()) {
    std::fprintf(stderr, "error: %s\n", status.ToString().c_str());
  }
  return cohort::ExitCode(status);
}
