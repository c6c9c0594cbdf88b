// `cohort bench allreduce|reducescatter|allgather|broadcast`.

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include <cohort/comm/mpi.h>

#include "../../mpi/mpi_peer.h"
#include "block.h"
#include "command.h"
#include "conductor.h"
#include "options.h"
#include "rank.h"
#include "report.h"
#include "subject.h"

namespace cohort {
namespace bench {
namespace {

constexpr int kTrial = 3;  // operations that tell how long a round is
constexpr int kMostIterations = 2000;

int IterationsOf(double trial_seconds, const Options& options) {
  // Of what no rank waits for (a limit, of one rank alone) the late one's sleep is not in the
  // trial.
  const double late = std::chrono::duration<double>(options.late).count();
  const double fit = options.seconds / options.rounds / std::max({trial_seconds, late, 1e-9});
  return static_cast<int>(std::clamp(fit, 1.0, static_cast<double>(kMostIterations)));
}

// An operation takes as long as its slowest rank.
std::vector<double> SlowestRank(const std::vector<nlohmann::json>& answers) {
  auto slowest = answers[0].at("seconds").get<std::vector<double>>();
  for (const nlohmann::json& answer : answers) {
    const auto seconds = answer.at("seconds").get<std::vector<double>>();
    for (std::size_t i = 0; i < slowest.size(); ++i) {
      slowest[i] = std::max(slowest[i], seconds.at(i));
    }
  }
  return slowest;
}

// --- ranks that this process starts

// The median of one block, which is also checked.
Result<double> RunTurn(Conductor& conductor, std::size_t group, int iterations, Row& row) {
  COHORT_ASSIGN_OR_RETURN(
      const std::vector<nlohmann::json> answers,
      conductor.Order(group, {{"prepare", false}, {"bytes", 0}, {"iterations", iterations}}));
  for (const nlohmann::json& answer : answers) {
    row.wrong += answer.at("wrong").get<std::int64_t>();
    row.waited += answer.at("waited").get<double>();
    row.cpu += answer.at("cpu").get<double>();
  }
  return Median(SlowestRank(answers));
}

Result<std::vector<Row>> MeasureSize(Conductor& conductor, std::int64_t bytes,
                                     const Options& options) {
  const std::size_t groups = conductor.specs().size();
  std::vector<Row> rows(groups);
  for (std::size_t g = 0; g < groups; ++g) {
    COHORT_ASSIGN_OR_RETURN(const std::vector<nlohmann::json> ready,
                            conductor.Order(g, {{"prepare", true}, {"bytes", bytes}}));
    rows[g].bytes = ready[0].at("bytes").get<std::int64_t>();
    COHORT_ASSIGN_OR_RETURN(const double trial, RunTurn(conductor, g, kTrial, rows[g]));
    rows[g].iterations = IterationsOf(trial, options);
  }
  for (int round = 0; round < options.rounds; ++round) {
    for (std::size_t i = 0; i < groups; ++i) {
      const std::size_t g = (i + static_cast<std::size_t>(round)) % groups;  // none is always first
      COHORT_ASSIGN_OR_RETURN(const double median,
                              RunTurn(conductor, g, rows[g].iterations, rows[g]));
      rows[g].rounds.push_back(median);
    }
  }
  for (std::size_t g = 0; g < groups; ++g) {
    COHORT_RETURN_IF_ERROR(conductor.Order(g, {{"prepare", true}, {"bytes", 0}}).status());
  }
  return rows;
}

Status Conduct(const Options& options, const std::vector<std::string>& arguments,
               std::vector<SubjectSpec> specs) {
  COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Conductor> conductor,
                          Conductor::Start(options, arguments, std::move(specs)));
  const Report report(options);
  report.Begin();
  Status right;
  for (const std::int64_t bytes : options.sizes) {
    COHORT_ASSIGN_OR_RETURN(const std::vector<Row> rows, MeasureSize(*conductor, bytes, options));
    report.Print(conductor->specs(), rows);
    right = right.ok() ? CheckResults(conductor->specs(), rows) : right;
  }
  COHORT_RETURN_IF_ERROR(conductor->Finish());
  return right;
}

// --- ranks that mpirun has started, on one host or several: they agree among themselves

struct Turns {
  Communicator& comm;
  Subject& ours;
  const Options& options;

  Status Run(Subject& subject, Workload& workload, int iterations, std::uint64_t& k, Row& row,
             double& median) const {
    const std::unique_ptr<StartLine> start = MakeBarrierStartLine(subject);
    COHORT_ASSIGN_OR_RETURN(Block block,
                            RunBlock(subject, *start, workload, iterations, k, options));
    median = Median(std::move(block.seconds));
    row.wrong += block.wrong;
    row.waited += block.waited;  // of rank 0, which prints: it is not the late one
    row.cpu += block.cpu;
    return {};
  }

  Status Agree(Row& row, double& median) const {
    std::vector<double> slowest = {median};
    std::vector<std::int64_t> wrong = {row.wrong};
    COHORT_ASSIGN_OR_RETURN(auto max, comm.AllReduce(std::span(slowest), ReduceOp::kMax));
    COHORT_RETURN_IF_ERROR(max->Wait());
    COHORT_ASSIGN_OR_RETURN(auto sum, comm.AllReduce(std::span(wrong), ReduceOp::kMax));
    COHORT_RETURN_IF_ERROR(sum->Wait());
    median = slowest[0];
    row.wrong = wrong[0];
    return {};
  }

  // MPI's own turn: it has the library for itself.
  Status RunMpi(Workload& workload, int iterations, std::uint64_t& k, Row& row,
                double& median) const {
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Subject> mpi, MakeMpiSubject());
    return Run(*mpi, workload, iterations, k, row, median);
  }

  Result<std::vector<Row>> MeasureSize(std::int64_t bytes) const {
    std::vector<Row> rows(2);
    std::uint64_t k = 0;
    COHORT_ASSIGN_OR_RETURN(Workload workload,
                            Workload::Make(ours, options.operation, options.dtype, bytes));
    for (int round = -1; round < options.rounds; ++round) {
      for (std::size_t i = 0; i < rows.size(); ++i) {
        rows[i].bytes = workload.bytes();
        const int iterations = round < 0 ? kTrial : rows[i].iterations;
        double median = 0;
        COHORT_RETURN_IF_ERROR(i == 0 ? Run(ours, workload, iterations, k, rows[i], median)
                                      : RunMpi(workload, iterations, k, rows[i], median));
        COHORT_RETURN_IF_ERROR(Agree(rows[i], median));
        if (round < 0) {
          rows[i].iterations = IterationsOf(median, options);
        } else {
          rows[i].rounds.push_back(median);
        }
      }
    }
    return rows;
  }
};

Status RunUnderMpirun(Options options) {
  COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> comm,
                          MakeMpiCommunicator({.implementation = options.mpi_implementation}, {}));
  Communicator& ours = *comm;
  options.ranks = ours.size();
  options.transport = "mpi";
  const std::unique_ptr<Subject> subject =
      MakeCohortSubject(std::move(comm), options.algorithm, options.buffers[0]);
  const std::string peer = MpiLibrary().rfind("Open MPI", 0) == 0 ? "openmpi" : "mpich";
  const std::vector<SubjectSpec> specs = {{"cohort", "", "mpi", true, {}},
                                          {peer, "as started", "mpi", true, {}}};
  const Report report(options);
  if (ours.rank() == 0) {
    report.Begin();
  }
  Status right;
  for (const std::int64_t bytes : options.sizes) {
    // MPI's calls have no deadline: the process has.
    ::alarm(static_cast<unsigned>(options.timeout.count() / 1000 + 60));
    COHORT_ASSIGN_OR_RETURN(const std::vector<Row> rows,
                            (Turns{ours, *subject, options}.MeasureSize(bytes)));
    right = right.ok() ? CheckResults(specs, rows) : right;
    if (ours.rank() == 0) {
      report.Print(specs, rows);
    }
  }
  ::alarm(0);
  return right;
}

bool UnderMpirun() {
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMI_SIZE") != nullptr;
}

Status Run(const Options& options, const std::vector<std::string>& arguments) {
  if (options.folder.empty() && UnderMpirun()) {
    return RunUnderMpirun(options);
  }
  COHORT_ASSIGN_OR_RETURN(std::vector<SubjectSpec> specs, SubjectsOf(options));
  if (!options.folder.empty()) {
    return RunRankProcess(specs.at(static_cast<std::size_t>(options.group)), options);
  }
  return Conduct(options, arguments, std::move(specs));
}

}  // namespace
}  // namespace bench

int BenchCollectiveCommand(int argc, char** argv) {
  bench::Options options;
  if (const std::optional<int> code = bench::ParseOptions(argc, argv, options)) {
    return *code;
  }
  const Status status = bench::Run(options, {argv + 1, argv + argc});
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
